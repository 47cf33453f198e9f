"""Files of the kernel are read as it writes them, and no text at all makes the readers raise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.doctor._parse import (
    PacketSocketLine,
    Softnet,
    cpu_list,
    cpu_list_text,
    cpu_mask,
    cpu_mask_text,
    cpu_times,
    hard_limit,
    kibibytes,
    number,
    packet_socket_lines,
    parent_of,
    plain,
    service_of,
    softnet,
    version,
)

if TYPE_CHECKING:
    from collections.abc import Callable

cpu_sets = st.frozensets(st.integers(0, 300))
# What resembles these files, and what does not.
texts = st.one_of(
    st.text(),
    st.text(alphabet="0123456789abcdef,-: \n()[]\tcpuVmSwap.@/", max_size=200),
    st.lists(st.lists(st.text("0123456789abcdefx²", max_size=24), max_size=14).map(" ".join)).map(
        "\n".join
    ),
)

READERS: list[Callable[[str], object]] = [
    *(cpu_list, cpu_mask, cpu_times, softnet, parent_of, service_of, version, number),
    lambda text: list(packet_socket_lines(text)),
    lambda text: hard_limit(text, "Max open files"),
    lambda text: hard_limit(f"Max open files{text}", "Max open files"),
    lambda text: kibibytes(text, "VmSwap"),
    lambda text: kibibytes(f"VmSwap:{text}", "VmSwap"),
    lambda text: cpu_times(f"cpu {text}"),
]


@pytest.mark.parametrize("reader", READERS)
@given(text=texts)
def test_no_text_makes_a_reader_raise(reader: Callable[[str], object], text: str) -> None:
    assert reader(text) == reader(text)


@given(cpu_sets)
def test_lists_of_cpus(cpus: frozenset[int]) -> None:
    assert cpu_list(cpu_list_text(cpus)) == cpus


@given(cpu_sets)
def test_masks_of_cpus(cpus: frozenset[int]) -> None:
    text = cpu_mask_text(cpus)
    assert cpu_mask(text) == cpus
    assert int(text.replace(",", ""), 16) == sum(1 << cpu for cpu in cpus)
    assert all(len(word) <= 8 for word in text.split(","))


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8\n", {0, 1, 2, 3, 8}), ("", set()), ("5", {5}), ("3-1", set()), ("0-99999999", set())],
)
def test_lists_that_the_kernel_writes(text: str, cpus: set[int]) -> None:
    assert cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("3\n", {0, 1}), ("00000000,00000000\n", set()), ("1,00000000", {32}), ("zz", set())],
)
def test_masks_that_the_kernel_writes(text: str, cpus: set[int]) -> None:
    assert cpu_mask(text) == cpus


@given(st.lists(st.tuples(*[st.integers(0, 0xFFFFFFFF)] * 13)))
def test_softnet_stat(rows: list[tuple[int, ...]]) -> None:
    """softnet_seq_show in net/core/net-procfs.c: words of 8 hexadecimal digits, a row a CPU."""
    text = "".join(" ".join(f"{word:08x}" for word in row) + "\n" for row in rows)
    assert softnet(text) == Softnet(sum(row[1] for row in rows), sum(row[2] for row in rows))


def test_stat() -> None:
    text = "cpu  4230 1226 1280 6856 12 0 164 678 5 0\ncpu0 1 2 3 4 5 6 7 8 0 0\nintr 7\n"
    assert cpu_times(text) == (4230 + 1226 + 1280 + 6856 + 12 + 164 + 678, 678)
    assert cpu_times("intr 7\n") == (0, 0)


def test_packet_sockets() -> None:
    text = (
        "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n"
        "00000000a1b2c3d4 3      3    0003   2     1 0      0      41234 \n"
        "00000000a1b2c3d5 3      2    88cc   0     1 0      109    41235 \n"
    )
    assert list(packet_socket_lines(text)) == [
        PacketSocketLine(3, 2, 41234),
        PacketSocketLine(0x88CC, 0, 41235),
    ]


@pytest.mark.parametrize(
    ("text", "service"),
    [
        ("0::/system.slice/lldpd.service\n", "lldpd.service"),
        ("0::/system.slice/docker.service/abc\n", "docker.service"),
        ("0::/user.slice/user-0.slice/user@0.service/app.slice/x.scope\n", ""),
        ("12:cpu:/\n1:name=systemd:/system.slice/ssh.service\n", "ssh.service"),
        ("0::/\n", ""),
    ],
)
def test_services(text: str, service: str) -> None:
    assert service_of(text) == service


@given(st.text())
def test_names_are_fit_for_a_terminal(name: str) -> None:
    assert plain(name).isascii()
    assert plain(name).isprintable() or not name


def test_an_ordinary_name_stays() -> None:
    assert plain("napi/eth0-8193") == "napi/eth0-8193"
    assert plain("x\n\x1b[2Jrm") == "x??[2Jrm"


@pytest.mark.parametrize(
    ("release", "expected"),
    [("6.18.44-fc", (6, 18)), ("5.3", (5, 3)), ("6.6-rc1", (6, 6)), ("7", (7, 0)), ("", (0, 0))],
)
def test_releases(release: str, expected: tuple[int, int]) -> None:
    assert version(release) == expected


def test_files_of_a_process() -> None:
    assert parent_of("12 (a) b (c) S 7 12 12 0") == 7
    limits = "Limit  Soft  Hard  Units\nMax open files            1024    524288    files\n"
    assert hard_limit(limits, "Max open files") == 524288
    assert hard_limit("Max open files   unlimited  unlimited  files\n", "Max open files") is None
    assert kibibytes("Name:\tx\nVmSwap:\t     128 kB\n", "VmSwap") == 128
