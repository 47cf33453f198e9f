"""Where receive queues are served, and that frames do arrive there."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.kernel import (
    FanoutMode,
    ReceiveQueue,
    interface,
    local_addresses,
    receive_queues,
    worker_cpus,
)
from pktstun.kernel.queues import (
    _handlers,
    _irqs_by_name,
    _match,
    _Napi,
    _parse_list,
    _parse_mask,
    _receive_queue,
    _sysfs_shows,
)
from tests.kernel.test_packet_socket import fanout, numbers
from tests.kernel.wire import Wire, descriptors
from tests.lab import two_hosts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.lab import Lab, Namespace

CPUS = sorted(os.sched_getaffinity(0))
POSSIBLE = range(os.sysconf("SC_NPROCESSORS_CONF"))
UNKNOWN = (ReceiveQueue(0, frozenset(), ""),)

cpu_sets = st.frozensets(st.integers(0, 200))


def served(*queues: frozenset[int]) -> tuple[ReceiveQueue, ...]:
    return tuple(ReceiveQueue(index, cpus, "irq") for index, cpus in enumerate(queues))


# --- What the kernel writes ---


@given(cpu_sets, st.integers(1, 8))
def test_masks(cpus: frozenset[int], parts: int) -> None:
    """bitmap_print_to_pagebuf: parts of 32 bits, as many as there may be CPUs."""
    mask = sum(1 << cpu for cpu in cpus)
    parts = max(parts, -(-mask.bit_length() // 32))
    words = [mask >> 32 * at & 0xFFFFFFFF for at in reversed(range(parts))]
    assert _parse_mask(",".join(f"{word:08x}" for word in words)) == cpus
    assert _parse_mask(f"{mask:x}") == cpus


def test_a_file_without_a_mask_names_no_cpu() -> None:
    assert _parse_mask("") == frozenset()


@given(cpu_sets)
def test_lists(cpus: frozenset[int]) -> None:
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    text = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    assert _parse_list(text) == cpus


# --- Which interrupt belongs to which queue ---


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["virtio2-config", "virtio2-input.0", "virtio2-output.0", "virtio2-input.1"], [1, 3]),
        (["eth0-TxRx-0", "eth0-TxRx-1", "eth0"], [0, 1]),
        (["i40e-eth0-TxRx-1", "i40e-eth0-TxRx-0", "i40e-0000:01:00.0:misc"], [1, 0]),
        (["ena-mgmnt@pci:0000:00:05.0", "eth0-Tx-Rx-0", "eth0-Tx-Rx-1"], [1, 2]),
        (
            ["mlx5_async0@pci:0000:01:00.0", *(f"mlx5_comp{n}@pci:0000:01:00.0" for n in "01")],
            [1, 2],
        ),
        (["eth0-rxtx-0", "eth0-rxtx-1", "eth0-event-2"], [0, 1]),
        (["eth0-rx-0", "eth0-rx-1", "eth0-tx-0", "eth0-tx-1"], [0, 1]),
        (["eth0-fp-0", "eth0-fp-1", "eth0"], [0, 1]),
        # More vectors than queues in use: what `ethtool -L` has taken away comes last.
        (["eth0-TxRx-0", "eth0-TxRx-1", "eth0-TxRx-2"], [0, 1]),
        # Counted from 1.
        (["eth0-0", "eth0-rx-1", "eth0-rx-2"], [1, 2]),
        # One interrupt for everything.
        (["eth0"], [0, 0]),
        # An interface may have any name.
        (["rx-7-TxRx-0", "rx-7-TxRx-1", "rx-7"], [0, 1]),
        (["eth0-0", "eth0-1"], None),
        (["eth0-rx-2", "eth0-rx-3"], None),
        (["eth0-rx-0", "eth0-rx-0", "eth0-rx-1"], None),
        (["virtio2-config", "virtio2-virtqueues"], None),
        ([], None),
    ],
)
def test_handlers_name_their_queue(names: list[str], expected: list[int] | None) -> None:
    handlers = {50 + at: [name] for at, name in enumerate(names)}
    wanted = {} if expected is None else {q: 50 + at for q, at in enumerate(expected)}
    assert _irqs_by_name(handlers, range(2)) == wanted


def test_a_queue_without_an_interrupt_stays_without() -> None:
    handlers = {40: ["eth0-rx-0"], 41: ["eth0-rx-1"]}
    assert _irqs_by_name(handlers, range(3)) == {0: 40, 1: 41}


def test_a_shared_interrupt_is_the_queue_s_as_well() -> None:
    handlers = {16: ["ehci_hcd:usb1", "eth0-rx-0"], 17: ["eth0-rx-1"]}
    assert _irqs_by_name(handlers, range(2)) == {0: 16, 1: 17}


# --- Which NAPI instance belongs to which queue ---

A, B, C = _Napi(1, None), _Napi(2, None), _Napi(3, None)


@pytest.mark.parametrize(
    ("queues", "instances", "expected"),
    [
        ({0: 8, 1: 7}, {7: A, 8: B, 9: C}, {0: B, 1: A}),
        ({0: 8, 1: 0}, {7: A, 8: B}, {0: B}),
        ({0: 8, 1: 9}, {8: A}, {0: A}),
        ({0: 0, 1: 0}, {8: B, 7: A}, {0: A, 1: B}),
        ({0: 0, 1: 0}, {7: A, 8: B, 9: C}, {}),
        ({0: 0, 1: 0}, {7: A}, {}),
        ({}, {}, {}),
    ],
)
def test_queues_and_napi_instances(
    queues: dict[int, int], instances: dict[int, _Napi], expected: dict[int, _Napi]
) -> None:
    assert _match(queues, instances) == expected


# --- Which CPUs get a worker ---


@given(st.lists(cpu_sets.filter(bool), min_size=1), cpu_sets)
def test_workers_are_where_queues_are_served(sets: list[frozenset[int]], usable: set[int]) -> None:
    cpus = worker_cpus(served(*sets), usable)
    assert list(cpus) == sorted(set(cpus) & usable)
    if all(each & usable for each in sets):
        assert set(cpus) == frozenset().union(*sets) & usable
    else:
        assert set(cpus) == usable


@given(st.lists(cpu_sets), st.integers(min_value=0), cpu_sets)
def test_a_queue_that_cannot_be_told_takes_all(
    sets: list[frozenset[int]], where: int, usable: set[int]
) -> None:
    sets.insert(where % (len(sets) + 1), frozenset())
    assert worker_cpus(served(*sets), usable) == tuple(sorted(usable))


@given(cpu_sets)
def test_no_queue_takes_all(usable: set[int]) -> None:
    assert worker_cpus((), usable) == tuple(sorted(usable))


# --- This host, whoever runs the tests ---


def test_every_interface_of_this_host_has_an_answer() -> None:
    for each in local_addresses():
        queues = receive_queues(each)
        assert [queue.index for queue in queues] == list(range(len(queues)))
        assert queues or not each.is_up
        for queue in queues:
            assert queue.cpus <= set(POSSIBLE)
            assert bool(queue.cpus) == (queue.source in {"rps", "napi thread", "irq"})


def test_handlers_are_those_of_proc_interrupts() -> None:
    """All that sysfs has a device for: what it says of an interrupt, /proc says as well."""
    listed = {
        irq: line
        for irq, _, line in (
            line.strip().partition(":")
            for line in Path("/proc/interrupts").read_text(encoding="ascii").splitlines()
        )
    }
    for device in Path("/sys/class/net").glob("*/device"):
        for irq, names in _handlers(device).items():
            assert all(name in listed[str(irq)] for name in names)


def test_sysfs_shows_more_than_some_of_these_interfaces() -> None:
    assert not _sysfs_shows(local_addresses()[1:])


def test_which_interrupt_decides() -> None:
    """The one that the kernel tells, else the one by name; neither for a thread unknown here."""

    def affinity(irq: int) -> frozenset[int]:
        path = Path(f"/proc/irq/{irq}/effective_affinity_list")
        return _parse_list(path.read_text(encoding="ascii").strip() if path.exists() else "")

    irqs = [int(each.name) for each in Path("/proc/irq").iterdir() if each.name.isdecimal()]
    told = next(irq for irq in irqs if irq and affinity(irq))
    expected = ReceiveQueue(0, affinity(told), "irq")
    absent = max(irqs) + 1
    assert _receive_queue(0, None, _Napi(told, None), absent) == expected
    assert _receive_queue(0, None, _Napi(0, None), told) == expected
    assert _receive_queue(0, None, None, told) == expected
    assert (_receive_queue(0, None, _Napi(told, 0), told),) == UNKNOWN
    assert (_receive_queue(0, None, _Napi(absent, None), told),) == UNKNOWN


# --- Namespaces ---

# Mount a sysfs for this namespace, ask, and print; with the descriptor of another namespace, go
# there between the two.
PROGRAM = """
import ctypes, json, sys
from pktstun.kernel import interface, receive_queues
name, *fds = sys.argv[1:]
for fd in fds:
    assert ctypes.CDLL(None).setns(int(fd), 0x40000000) == 0
queues = receive_queues(interface(name))
print(json.dumps([[queue.index, sorted(queue.cpus), queue.source] for queue in queues]))
"""
MOUNT = ["unshare", "--mount", "sh", "-c", 'mount -t sysfs sysfs /sys && exec "$@"', "sh"]
OTHER_PIDS = ["unshare", "--pid", "--fork", "--kill-child"]


def parse(text: str) -> tuple[ReceiveQueue, ...]:
    return tuple(ReceiveQueue(index, frozenset(cpus), how) for index, cpus, how in json.loads(text))


def ask(
    ns: Namespace, name: str, *, prefix: Sequence[str] = MOUNT, then: Namespace | None = None
) -> tuple[ReceiveQueue, ...]:
    """Ask in a process that was born in the namespace, with its own sysfs."""
    fds = () if then is None else (then.fd,)
    argv = [*prefix, sys.executable, "-c", PROGRAM, name, *map(str, fds)]
    return parse(ns.run(argv, pass_fds=fds, check=True).stdout)


def look(ns: Namespace, name: str) -> tuple[ReceiveQueue, ...]:
    """Ask in this process, whose sysfs shows another namespace."""
    with ns.enter():
        return receive_queues(interface(name))


def everywhere(source: str, *cpus: int) -> tuple[ReceiveQueue, ...]:
    """Two queues served on the same CPUs."""
    return tuple(ReceiveQueue(index, frozenset(cpus), source) for index in (0, 1))


def mask_of(cpus: Iterable[int]) -> str:
    """A mask as the kernel reads it: parts of 32 bits at most."""
    mask = sum(1 << cpu for cpu in cpus)
    parts = range(mask.bit_length() // 32 + 1)
    return ",".join(f"{mask >> 32 * part & 0xFFFFFFFF:08x}" for part in reversed(parts))


def set_rps(ns: Namespace, name: str, queue: int, *cpus: int) -> None:
    ns.sysfs_write(f"/sys/class/net/{name}/queues/rx-{queue}/rps_cpus", mask_of(cpus))


def aim(wire: Wire, queue: int) -> None:
    """Make the far end send into one queue of the near end, from every CPU (XPS)."""
    for index in (0, 1):
        path = f"/sys/class/net/{wire.far_if}/queues/tx-{index}/xps_cpus"
        wire.far.sysfs_write(path, mask_of(CPUS if index == queue else ()))


def arrivals(wire: Wire) -> set[int]:
    """The CPUs whose ring gets frames that are sent from every CPU."""
    with fanout(wire, FanoutMode.CPU, members=max(CPUS) + 1) as members:
        for cpu in CPUS:
            wire.send(*map(wire.frame, range(20)), cpu=cpu)
        return {cpu for cpu, got in enumerate(numbers(members, 20 * len(CPUS))) if got}


@pytest.fixture
def pair(lab: Lab) -> Iterator[Wire]:
    """A wire of two queues, over which frames pass through NAPI where there is NAPI.

    While the sender's end segments TCP, veth hands over most frames on the sender's CPU and
    past the NAPI instance (veth_skb_is_eligible_for_gro).
    """
    with closing(Wire(lab, queues=2)) as wire:
        lab.offload(wire.far, wire.far_if, tso=False)
        yield wire


@pytest.mark.root
def test_veth_without_napi_cannot_be_told(pair: Wire) -> None:
    assert look(pair.near, "v0") == everywhere("") == ask(pair.near, "v0")
    assert arrivals(pair) == set(CPUS)  # the sender's


@pytest.mark.root
def test_napi_without_a_thread_cannot_be_told(pair: Wire) -> None:
    pair.lab.offload(pair.near, "v0", gro=True)
    assert look(pair.near, "v0") == everywhere("") == ask(pair.near, "v0")
    assert arrivals(pair) == set(CPUS)


@pytest.mark.root
def test_lo_cannot_be_told(lab: Lab) -> None:
    ns = lab.namespace("bare")
    assert look(ns, "lo") == UNKNOWN == ask(ns, "lo")


@pytest.mark.root
def test_frames_arrive_where_the_thread_of_their_queue_runs(pair: Wire) -> None:
    pair.lab.threaded_napi(pair.near, "v0")
    assert all(queue.source == "napi thread" for queue in look(pair.near, "v0"))
    for cpus in (CPUS[0], CPUS[-1]), (CPUS[-1], CPUS[0]):
        pids = pair.lab.napi_threads(pair.near, "v0")
        for pid, cpu in zip(sorted(pids, key=napi_id), cpus, strict=True):
            os.sched_setaffinity(pid, {cpu})
        expected = tuple(
            ReceiveQueue(index, frozenset({cpu}), "napi thread") for index, cpu in enumerate(cpus)
        )
        assert look(pair.near, "v0") == expected == ask(pair.near, "v0")
        for queue in expected:
            aim(pair, queue.index)
            assert arrivals(pair) == queue.cpus


def napi_id(pid: int) -> int:
    """The number in the name of a thread, napi/v0-<id>."""
    return int(Path(f"/proc/{pid}/comm").read_text(encoding="ascii").rpartition("-")[2])


@pytest.mark.root
def test_a_thread_that_goes_is_no_answer(pair: Wire) -> None:
    pair.lab.threaded_napi(pair.near, "v0")
    pair.lab.pin_napi(pair.near, "v0", CPUS[0])
    assert look(pair.near, "v0") == everywhere("napi thread", CPUS[0])
    pair.near.sysfs_write("/sys/class/net/v0/threaded", "0")
    assert look(pair.near, "v0") == everywhere("")
    assert arrivals(pair) == set(CPUS)


@pytest.mark.root
def test_a_thread_in_another_pid_namespace_is_not_oneself(pair: Wire) -> None:
    pair.lab.threaded_napi(pair.near, "v0")
    pair.lab.pin_napi(pair.near, "v0", CPUS[0])
    assert ask(pair.near, "v0", prefix=OTHER_PIDS) == everywhere("")


@pytest.mark.root
@pytest.mark.parametrize("gro", [False, True])
def test_frames_arrive_where_rps_passes_them(pair: Wire, *, gro: bool) -> None:
    pair.lab.offload(pair.near, "v0", gro=gro)
    for cpu in CPUS:
        for queue in (0, 1):
            set_rps(pair.near, "v0", queue, cpu)
        assert ask(pair.near, "v0") == everywhere("rps", cpu)
        for queue in (0, 1):
            aim(pair, queue)
            assert arrivals(pair) == {cpu}


@pytest.mark.root
def test_rps_overrides_the_thread(pair: Wire) -> None:
    pair.lab.threaded_napi(pair.near, "v0")
    pair.lab.pin_napi(pair.near, "v0", CPUS[0])
    set_rps(pair.near, "v0", 1, CPUS[-1])
    assert ask(pair.near, "v0") == (
        ReceiveQueue(0, frozenset({CPUS[0]}), "napi thread"),
        ReceiveQueue(1, frozenset({CPUS[-1]}), "rps"),
    )
    set_rps(pair.near, "v0", 0, CPUS[-1])
    assert ask(pair.near, "v0") == everywhere("rps", CPUS[-1])
    assert arrivals(pair) == {CPUS[-1]}


@pytest.mark.root
def test_rps_of_several_cpus(pair: Wire) -> None:
    for queue in (0, 1):
        set_rps(pair.near, "v0", queue, *CPUS)
    assert ask(pair.near, "v0") == everywhere("rps", *CPUS)


@pytest.mark.root
def test_rps_on_lo(lab: Lab) -> None:
    ns = lab.namespace("bare")
    set_rps(ns, "lo", 0, CPUS[-1])
    assert ask(ns, "lo") == (ReceiveQueue(0, frozenset({CPUS[-1]}), "rps"),)


@pytest.mark.root
def test_rps_of_a_device_on_top_of_another_is_without_effect(pair: Wire) -> None:
    with pair.near.iproute() as ipr:
        index = socket.if_nametoindex("v0")
        ipr.link("add", ifname="m0", kind="macvlan", link=index)
    pair.lab.link_set(pair.near, "m0", state="up")
    set_rps(pair.near, "m0", 0, CPUS[-1])
    assert ask(pair.near, "m0") == UNKNOWN
    pair.near_if = "m0"
    pair.near_mac = bytes.fromhex(pair.lab.link(pair.near, "m0").get("address").replace(":", ""))
    assert arrivals(pair) == set(CPUS)


@pytest.mark.root
def test_the_sysfs_of_another_namespace_is_not_believed(lab: Lab) -> None:
    """Both have a v0 with the same index; it is the other one that has RPS."""
    other, ours = two_hosts(lab).server, two_hosts(lab).server
    set_rps(other, "v0", 0, CPUS[0])
    assert ask(other, "v0") == (ReceiveQueue(0, frozenset({CPUS[0]}), "rps"),)
    assert lab.link(other, "v0")["index"] == lab.link(ours, "v0")["index"]
    assert ask(other, "v0", then=ours) == UNKNOWN
    set_rps(ours, "v0", 0, CPUS[-1])
    assert ask(ours, "v0", then=other) == UNKNOWN


@pytest.mark.root
def test_one_interface_more_or_less_is_another_namespace(lab: Lab) -> None:
    """Twins but for an interface that does not matter: a container and its copy."""
    twins = [lab.namespace("one"), lab.namespace("two")]
    for ns, address in ((twins[0], "1"), (twins[1], "2")):
        lab.veth(ns, "v0", ns, "v1")
        lab.link_set(ns, "v0", address="02:00:00:00:00:aa")
        lab.link_set(ns, "v1", address=f"02:00:00:00:00:b{address}")
        set_rps(ns, "v0", 0, CPUS[0])
    assert ask(twins[0], "v0") == (ReceiveQueue(0, frozenset({CPUS[0]}), "rps"),)
    assert ask(twins[0], "v0", then=twins[1]) == UNKNOWN


@pytest.mark.root
def test_only_queues_in_use_count(pair: Wire) -> None:
    set_channels(pair.near, "v0", rx=1, tx=2)
    assert look(pair.near, "v0") == UNKNOWN == ask(pair.near, "v0")
    set_channels(pair.near, "v0", rx=2, tx=2)
    assert look(pair.near, "v0") == everywhere("")


def set_channels(ns: Namespace, name: str, *, rx: int, tx: int) -> None:
    """`ethtool -L`; linux/ethtool.h, struct ethtool_channels."""
    values = (0x3D, 0, 0, 0, 0, rx, tx, 0, 0)  # ETHTOOL_SCHANNELS, maxima, counts
    data = (ctypes.c_uint32 * len(values))(*values)
    request = struct.pack("16sP16x", name.encode("ascii"), ctypes.addressof(data))
    with ns.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8946, request)  # SIOCETHTOOL


@pytest.mark.root
def test_an_interface_that_is_down(pair: Wire) -> None:
    """Generic netlink knows no queue of it, sysfs does."""
    set_rps(pair.near, "v0", 1, CPUS[0])
    pair.lab.link_set(pair.near, "v0", state="down")
    assert look(pair.near, "v0") == ()
    assert ask(pair.near, "v0") == (
        ReceiveQueue(0, frozenset(), ""),
        ReceiveQueue(1, frozenset({CPUS[0]}), "rps"),
    )


@pytest.mark.root
def test_an_interface_that_has_gone(pair: Wire) -> None:
    with pair.near.enter():
        iface = interface("v0")
    pair.lab.delete_link(pair.near, "v0")
    with pair.near.enter():
        assert receive_queues(iface) == ()


@pytest.mark.root
def test_nothing_is_left_open(pair: Wire) -> None:
    before = descriptors()
    look(pair.near, "v0")
    assert descriptors() == before
