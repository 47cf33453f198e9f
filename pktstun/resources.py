"""The kernel objects of a running service, opened once and kept by the supervisor.

Theory of operation: workers borrow these objects and may die at any moment. Because the
supervisor holds the descriptors, frames stay in the rings, the order of the fanout members
and of the SO_REUSEPORT sockets does not shift, and the next worker goes on where the last one
stopped. A worker that does not come back soon keeps its objects, too: the programs that choose
a member give its share to the others meanwhile.

The order of opening is the order of safety: a port that somebody else has is noticed before
anything is shared; in ring mode the sockets have their filter before they are bound, so that
no datagram is answered twice; every ring is made on the CPU that it will serve; and packets
are let in when all members of the fanout group have joined. Last comes the takeover, when the
rings hold what it takes away.

A change has two halves, and between them the workers are replaced. Before, what is new is opened
beside the old (`widen`): requests to it wait for the first worker that knows of it. Behind, what
is of no use any more is closed (`narrow`). The takeover is the other way round: at no moment does
it take what no worker answers.

A UDP socket that is closed takes with it what waits in it, and as long as it is there it may be
preferred to one that is to take its place. So the workers read the old ones and the new until all
of them do; then the old ones are hidden from the network, and when the workers have been replaced
once more, having read what was left, closed. Where sockets alone receive, the new ones are bound
only when every worker reads them: what came before would have to wait for the last one.

An upgrade hands all of it to the program that takes this one's place (`hand_over`).
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pktstun.config import Listen, Mode, Running, ServeConfig
from pktstun.direct import ReturnPathWatch
from pktstun.engine import DirectPath, Limits, RingEngine, SocketEngine, Tuning, check_room
from pktstun.errors import ConfigError, EngineError
from pktstun.kernel import (
    FanoutMode,
    ListeningSocket,
    PacketSocket,
    RingGeometry,
    TcxLink,
    UDPSocket,
    privileges,
    takeover,
)
from pktstun.kernel._closing import Closing
from pktstun.kernel._ffi import lib
from pktstun.kernel.bpf import DROP_ALL, member_for_cpu, not_from, udp_to
from pktstun.limiter import LimiterTables, RateLimit
from pktstun.log import BURST
from pktstun.metrics import MetricsAddress, MetricsEngine, MetricsListener, Observed
from pktstun.refusals import check_nice, explain_bind, explain_ring, explain_takeover
from pktstun.stats import LAYOUT, SharedPage
from pktstun.streams import OWN_DESCRIPTORS, StreamEngine, StreamLimits
from pktstun.stun import TransportAddress
from pktstun.users import Credentials

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pktstun.config import Plan
    from pktstun.engine import Engine
    from pktstun.kernel import Interface
    from pktstun.stats import Slot

__all__ = ["RECEIVE_BUFFER", "SEND_BUFFER", "Resources", "config_from", "running_from"]

log = logging.getLogger("pktstun")

RECEIVE_BUFFER = 4 << 20
"""Bytes asked for the receive buffer of a socket that is read with recvmmsg: some thousand
small datagrams, which the kernel accounts with their overhead."""

SEND_BUFFER = 4 << 20
"""Bytes asked for the send buffers: what a network card has not sent yet counts, and without
enough of it a burst of replies has to wait."""

_UNPRIVILEGED_PORTS = 1024  # ip(7), ip_unprivileged_port_start, unless somebody has changed it

FEWEST_BLOCKS = 16
"""Blocks of a ring below which it is no use: where memory is short, there may be so few."""

SOCKET_FILTER = (
    "Without it the kernel routes its copy of every request until a socket filter drops it, which "
    "was measured to make a reply of direct mode cost 1.2 to 1.6 times the CPU time"
)


class Resources(Closing):
    """Everything that a service holds open; a context manager.

    Args:
        plan: what to open.
        handed: what `hand_over` of the program before this one returned, or None. Nothing that
            others see is changed then until `take_charge`, but that sockets for new addresses
            are opened.
        is_trial: another process goes on serving with what was handed over.

    Raises:
        ConfigError: an address is not local.
        PrivilegeError: a capability is missing.
        EngineError: a port is in use, or the kernel refuses something else.
    """

    def __init__(
        self, plan: Plan, handed: dict[str, Any] | None = None, *, is_trial: bool = False
    ) -> None:
        self.plan = plan
        self.geometry = plan.geometry
        self.page: SharedPage
        self.limiter: LimiterTables | None = None
        self.packet_sockets: list[PacketSocket] = []
        self.frame_sockets: list[PacketSocket] = []
        self.return_paths: ReturnPathWatch | None = None
        self.takeover: TcxLink | None = None
        self._taken: frozenset[TransportAddress] = frozenset()
        self._groups: dict[Listen, list[UDPSocket]] = {}
        self._hidden: list[UDPSocket] = []
        self._listeners: dict[Listen, ListeningSocket] = {}
        self._exports: dict[MetricsAddress, MetricsListener] = {}
        self.started = time.time()
        self._absent: frozenset[int] = frozenset()
        self._is_stopping = False
        self._has_old_ring = [False for _ in plan.cpus]
        try:
            if handed is None:
                self._open()
            else:
                self._adopt(handed, is_trial=is_trial)
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        plan = self.plan
        check_nice(plan.nice)
        self.page = SharedPage(plan.workers)
        self._open_limiter(plan)
        self._groups = self._open_groups(plan)
        self._listeners = self._open_listeners(plan)
        self._open_export(plan)
        _allow_connections(plan)
        if plan.iface is not None and plan.mode.reads_ring:
            self._open_rings(plan.iface)
            if plan.mode is Mode.DIRECT:
                self._open_senders(plan.iface)
                self.return_paths = ReturnPathWatch(plan.iface, self.page.routes)
            self._take_over(self._takeable(), insist=bool(plan.takeover))

    def close(self) -> None:
        """Close everything."""
        self._close_interface()
        if self.return_paths is not None:
            self.return_paths.close()
        for group in [*self._groups.values(), self._hidden]:
            _close_all(group)
        _close_all(self._listeners.values())
        for export in self._exports.values():
            export.remove()
        self._groups, self._hidden, self._listeners, self._exports = {}, [], {}, {}
        if hasattr(self, "page"):
            self.page.close()
        if self.limiter is not None:
            self.limiter.close()

    @property
    def listens(self) -> list[Listen]:
        """The addresses that sockets are bound to."""
        return [listen for listen in self.plan.listens if listen in self._groups]

    @property
    def capabilities(self) -> frozenset[int]:
        """What it takes to open the same again, for another interface or new addresses."""
        needed: set[int] = set()
        if self.plan.mode.reads_ring:
            needed.add(privileges.Capability.NET_RAW)
        if self.takeover is not None:
            needed |= {privileges.Capability.BPF, privileges.Capability.NET_ADMIN}
        streams = {each.address.port for each in _stream_listens(self.plan)}
        if any(port < _UNPRIVILEGED_PORTS for port in streams.union(self.plan.ports)):
            needed.add(privileges.Capability.NET_BIND_SERVICE)
        return frozenset(needed)

    def sockets(self, index: int) -> list[UDPSocket]:
        """Return the UDP sockets of a worker: those of the plan, and those on their way out."""
        leaving = [listen for listen in self._groups if listen not in self.plan.listens]
        return [self._groups[listen][index] for listen in [*self.listens, *leaving]]

    def stream_engine(self, slot: Slot | None = None) -> StreamEngine | None:
        """Return the engine of the worker for streams, as `engine`; None if there is none."""
        streams, number = self.plan.streams, self.plan.stream_worker
        if streams is None or number is None:
            return None
        return StreamEngine(
            slot or self.page.slots[number],
            tcp=[self._listeners[each] for each in streams.tcp if each in self._listeners],
            tls=[self._listeners[each] for each in streams.tls if each in self._listeners],
            tcp_options=streams.tcp_options,
            tls_options=streams.tls_options,
            limits=streams.limits,
            certificate=streams.certificate,
        )

    def metrics_engine(self, slot: Slot | None = None) -> MetricsEngine | None:
        """Return the engine of the exporter, as `engine`; None if there is none."""
        plan = self.plan
        if plan.metrics is None or plan.exporter is None:
            return None
        packet_slots = self.page.slots[: len(plan.cpus)]
        slot = slot or self.page.slots[plan.exporter]
        observed = Observed(
            mode=plan.mode,
            interface=plan.iface.name if plan.iface and plan.mode.reads_ring else None,
            is_loopback=bool(plan.iface and plan.iface.is_loopback),
            cpus=plan.cpus,
            slots=packet_slots,
            streams=None if plan.stream_worker is None else self.page.slots[plan.stream_worker],
            exporter=slot,
            ring_blocks=self.geometry.block_count if plan.mode.reads_ring else 0,
            is_limited=plan.rate_limit is not None,
            endpoints=tuple(plan.options.endpoints),
            error_codes=_error_codes(plan),
            started=self.started,
        )
        return MetricsEngine(slot, self._exports[plan.metrics], observed)

    def stream_listens(self, *, tls: bool) -> list[Listen]:
        """Return the addresses on which connections are taken in."""
        streams = self.plan.streams
        if streams is None:
            return []
        return [each for each in (streams.tls if tls else streams.tcp) if each in self._listeners]

    def engine(self, index: int, slot: Slot | None = None) -> Engine:
        """Return the engine of a packet worker, not yet open.

        `slot` takes the place of the worker's.
        """
        plan, sockets = self.plan, self.sockets(index)
        slot = slot or self.page.slots[index]
        limits = None
        if plan.rate_limit is not None and self.limiter is not None:
            limits = Limits(_limit(plan, plan.rate_limit), self.limiter.table(index))
        if not plan.mode.reads_ring:
            return SocketEngine(slot, sockets, plan.options, limits=limits, tuning=plan.tuning)
        return RingEngine(
            slot,
            sockets,
            plan.options,
            packet_socket=self.packet_sockets[index],
            geometry=self.geometry,
            ring_options=plan.ring_options,
            direct=DirectPath(self.frame_sockets[index], self.page.routes)
            if self.frame_sockets
            else None,
            limits=limits,
            tuning=plan.tuning,
        )

    def descriptors(self, index: int) -> set[int]:
        """Return the descriptors that a worker needs."""
        if index == self.plan.exporter:
            return {each.fileno() for each in self._exports.values()}
        if index >= len(self.plan.cpus):
            return {each.fileno() for each in self._listeners.values()}
        packet_sockets = self.packet_sockets[index:][:1] + self.frame_sockets[index:][:1]
        return {sock.fileno() for sock in self.sockets(index)} | {
            packet_socket.fileno() for packet_socket in packet_sockets
        }

    def sending(self, index: int) -> set[int]:
        """Return those of the descriptors through which a worker sends replies."""
        if index >= len(self.plan.cpus):
            return set()
        frames = {each.fileno() for each in self.frame_sockets[index:][:1]}
        return frames.union(sock.fileno() for sock in self.sockets(index))

    def prepare_slot(self, index: int) -> None:
        """Make the slot of a worker that has ended ready for its successor."""
        if index < len(self._has_old_ring) and self._has_old_ring[index]:
            self.page.slots[index].forget_ring()
            self._has_old_ring[index] = False

    def stop_receiving(self) -> None:
        """Let nothing new in; what is there already can still be read."""
        self._is_stopping = True
        sockets = [sock for group in self._groups.values() for sock in group]
        receiving: list[PacketSocket | UDPSocket] = [*self.packet_sockets, *sockets]
        for each in receiving:
            with suppress(OSError):
                each.set_filter(DROP_ALL)

    def collect_statistics(self) -> None:
        """Add what the kernel counted on the rings to the slots.

        Reading clears the kernel's counters, so there must be one reader: the supervisor.
        """
        for slot, packet_socket in zip(self.page.slots, self.packet_sockets, strict=False):
            slot.add_ring(packet_socket.statistics())
        # Beside rings, and once nothing is let in, what their filter drops is counted as well.
        if not self.plan.mode.reads_ring and not self._is_stopping:
            for index in range(len(self.plan.cpus)):
                drops = sum(sock.new_drops() for sock in self.sockets(index))
                self.page.slots[index].note_socket_drops(drops)

    # ---- changes ----

    def redirect(self, absent: frozenset[int]) -> None:
        """Give the shares of these workers to the others."""
        self._absent = absent
        if len(self.plan.cpus) == 1:
            return
        program = member_for_cpu(self.plan.cpus, absent)
        for group in self._groups.values():
            if group[0].is_bound:
                group[0].set_group_program(program)
        if self.packet_sockets:
            self.packet_sockets[0].set_fanout_program(program)

    def widen(self, plan: Plan) -> None:
        """Open what a plan needs beside what is open; workers started from now on follow it.

        Raises:
            PktstunError: something cannot be had; all is as it was.
        """
        check_nice(plan.nice)
        check_room(plan.options, len({*self._groups, *plan.listens}))
        opened = self._open_groups(plan, bound=_is_bound_first(plan))
        listeners: dict[Listen, ListeningSocket] = {}
        try:
            listeners = self._open_listeners(plan)
            self._open_export(plan)
        except BaseException:
            for group in [*opened.values(), listeners.values()]:
                _close_all(group)
            raise
        self._open_limiter(plan)
        before, self.plan = self.plan, plan
        self._groups.update(opened)
        self._listeners.update(listeners)
        _allow_connections(plan)
        if self.packet_sockets:
            self._let_in({*before.ports, *plan.ports})
            self._take_over(self._taken & self._takeable())

    def narrow(self) -> bool:
        """Close what the plan has no use for; every worker follows it by now.

        Returns:
            Whether the workers have to be replaced once more, and this is to be called again.

        Raises:
            EngineError: a new address cannot be had any more; what was served before is served
                on, and this may be called again.
        """
        for listen in self.listens:
            self._bind_group(listen, self._groups[listen])
        _close_all(self._hidden)
        self._hidden = []
        for listen in set(self._groups) - set(self.plan.listens):
            for sock in self._groups.pop(listen):
                # One whose address is gone cannot be connected; nobody finds it anyway.
                with suppress(OSError):
                    if sock.is_bound:  # else nobody ever found it
                        sock.hide()
                self._hidden.append(sock)
        for listen in set(self._listeners) - set(_stream_listens(self.plan)):
            listener = self._listeners.pop(listen)
            # A worker that serves its last connections has the descriptor as well.
            listener.silence()
            listener.close()
        for where in set(self._exports) - {self.plan.metrics}:
            self._exports.pop(where).remove()
        if self.packet_sockets:
            self._let_in(self.plan.ports)
            self._take_over(self._takeable())
        return bool(self._hidden)

    @property
    def has_lost_interface(self) -> bool:
        """Whether rings are missing, or belong to an interface that is gone."""
        plan = self.plan
        rings = len(plan.cpus) if plan.mode.reads_ring else 0
        senders = len(plan.cpus) if plan.mode is Mode.DIRECT else 0
        return (
            len(self.packet_sockets) != rings
            or len(self.frame_sockets) != senders
            or any(not packet_socket.is_bound for packet_socket in self.packet_sockets)
        )

    def reopen(self, plan: Plan) -> None:
        """Open the rings anew, on an interface that has taken the place of one that is gone.

        Raises:
            PktstunError: that cannot be done; there may be no rings then, so try again.
        """
        if plan.iface is None:
            return
        self._close_interface()
        self._groups.update(self._open_groups(plan))
        self._listeners.update(self._open_listeners(plan))
        self.plan = plan
        self._has_old_ring = [True for _ in plan.cpus]
        self._open_rings(plan.iface)
        if plan.mode is Mode.DIRECT:
            self._open_senders(plan.iface)
        # Until now they have answered what came in.
        for group in self._groups.values():
            for sock in group:
                sock.set_filter(not_from([plan.iface.index]))
        if self.return_paths is not None:
            self.return_paths.follow(plan.iface)
        if self._absent:
            self.redirect(self._absent)
        self._take_over(self._takeable())

    # ---- upgrades ----

    def hand_over(self) -> dict[str, Any]:
        """Return what another program needs to go on with all of this, as JSON knows it."""
        plan = self.plan
        return {
            "layout": LAYOUT,
            "page": self.page.fileno(),
            "limiter": self.limiter.fileno() if self.limiter is not None else -1,
            "limiter_version": LimiterTables.version,
            "mode": plan.mode,
            "config": dataclasses.asdict(dataclasses.replace(plan.config, credentials=None)),
            "credentials": plan.config.credentials and plan.config.credentials.hand_over(),
            "nonce_key": plan.nonce_key.hex(),
            "iface": plan.config.iface,
            "ifindex": plan.running.ifindex,
            "cpus": plan.cpus,
            "asked_geometry": dataclasses.asdict(plan.geometry),
            "geometry": dataclasses.asdict(self.geometry),
            "seen": sorted(map(str, plan.seen)),
            "groups": [[sock.fileno() for sock in group] for group in self._groups.values()],
            "listeners": [each.fileno() for each in self._listeners.values()],
            "metrics": {str(where): each.fileno() for where, each in self._exports.items()},
            "started": self.started,
            "rings": [each.fileno() for each in self.packet_sockets],
            "senders": [each.fileno() for each in self.frame_sockets],
            "takeover": self.takeover.fileno() if self.takeover is not None else -1,
        }

    def _adopt(self, handed: dict[str, Any], *, is_trial: bool) -> None:
        plan = self.plan
        theirs = {name: tuple(place) for name, place in handed["layout"].items()}
        if any(LAYOUT.get(name) != place for name, place in theirs.items()):
            raise EngineError("the counters of the running version mean something else here")
        self.page = SharedPage(plan.workers, handed["page"])
        self._adopt_limiter(handed)
        self._open_limiter(plan)
        self.geometry = RingGeometry(**handed["geometry"])
        self.packet_sockets = [PacketSocket(each) for each in handed["rings"]]
        self.frame_sockets = [PacketSocket(each) for each in handed["senders"]]
        if handed["takeover"] != -1:
            self.takeover = TcxLink.adopt(handed["takeover"])
        groups = [[UDPSocket.adopt(each) for each in group] for group in handed["groups"]]
        by_address = {(group[0].address, group[0].scope): group for group in groups}
        for listen in plan.listens:
            group = by_address.pop((listen.address, listen.scope), None)
            if group is not None:
                self._groups[listen] = group
        # What is of no use any more is closed when it has been read: see `narrow`.
        for (address, scope), group in by_address.items():
            self._groups[Listen(address, scope)] = group
        self._groups.update(self._open_groups(plan, bound=_is_bound_first(plan)))
        # A version that knew no streams has none of these either.
        wanted = {(each.address, each.scope): each for each in _stream_listens(plan)}
        for listener in map(ListeningSocket.adopt, handed.get("listeners", [])):
            place = listener.address, listener.scope
            self._listeners[wanted.get(place, Listen(*place))] = listener
        self._listeners.update(self._open_listeners(plan))
        # What is of no use any more is closed like the others.
        for text, descriptor in handed.get("metrics", {}).items():
            where = MetricsAddress.parse(text)
            self._exports[where] = MetricsListener.adopt(descriptor, where, own=not is_trial)
        self._open_export(plan)
        self.started = handed.get("started", self.started)
        # The page is the running version's as long as this is a trial.
        if plan.iface is not None and plan.mode is Mode.DIRECT and not is_trial:
            self.return_paths = ReturnPathWatch(plan.iface, self.page.routes, is_new=False)

    def _adopt_limiter(self, handed: dict[str, Any]) -> None:
        # A version that knew no limiter has none, and the first one that did gave it no number.
        file, version = handed.get("limiter", -1), handed.get("limiter_version", 1)
        if file == -1:
            return
        try:
            self.limiter = LimiterTables(len(self.plan.cpus), file, version)
        except ValueError as error:
            # Sources are forgiven what they have had; that is no reason to refuse an upgrade.
            os.close(file)
            log.warning("the rate limiter begins anew: it was handed %s", error)

    def take_charge(self) -> None:
        """Put this version's programs in the place of those that were adopted: they are code."""
        self.redirect(frozenset())
        _allow_connections(self.plan)
        if self.packet_sockets:
            self._let_in(self.plan.ports)
            if self.takeover is not None and not self._takeable():
                self._release(insist=False)
            self._take_over(self._takeable())

    def _open_limiter(self, plan: Plan) -> None:
        """Make the limiter's memory, once: what it knows is worth keeping."""
        if plan.rate_limit is not None and self.limiter is None:
            self.limiter = LimiterTables(len(plan.cpus))

    # ---- sockets ----

    def _open_groups(self, plan: Plan, *, bound: bool = True) -> dict[Listen, list[UDPSocket]]:
        """Open the sockets of the addresses that have none yet, and bind them if that is due."""
        opened: dict[Listen, list[UDPSocket]] = {}
        try:
            for listen in plan.listens:
                if listen not in self._groups and self._probe(listen):
                    opened[listen] = []
                    self._open_group(plan, listen, opened[listen], bound=bound)
        except BaseException:
            for group in opened.values():
                _close_all(group)
            raise
        if not opened and not any(listen in self._groups for listen in plan.listens):
            raise EngineError("the host has neither IPv4 nor IPv6")
        return opened

    def _probe(self, listen: Listen) -> bool:
        """Find out whether the address can be had alone; False where its family is missing.

        With SO_REUSEPORT a second server of the same user would silently get a share of the
        first one's requests. Beside a wildcard address of our own, nothing can be told but whether
        the address is local, with another port: a socket on this one would take requests.
        """
        ip, port = listen.address
        if any(listen.overlaps(own) for own in self._groups):
            port = 0
        try:
            UDPSocket(TransportAddress(ip, port), scope=listen.scope, share=False).close()
        except OSError as error:
            if listen.optional and error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                return False
            raise explain_bind(error, listen) from error
        return True

    def _open_group(
        self, plan: Plan, listen: Listen, group: list[UDPSocket], *, bound: bool
    ) -> None:
        ring = plan.mode.reads_ring
        for _ in plan.cpus:
            try:
                sock = UDPSocket(
                    listen.address,
                    scope=listen.scope,
                    program=not_from([plan.iface.index]) if ring and plan.iface else None,
                    receive_buffer=None if ring else RECEIVE_BUFFER,
                    send_buffer=SEND_BUFFER,
                    bound=False,
                )
            except OSError as error:
                raise explain_bind(error, listen) from error
            group.append(sock)
        if bound:
            self._bind_group(listen, group)

    def _bind_group(self, listen: Listen, group: list[UDPSocket]) -> None:
        if all(sock.is_bound for sock in group):
            return
        try:
            for sock in group:
                sock.bind()
        except OSError as error:
            raise explain_bind(error, listen) from error
        # Not before: a socket with a program joins no other's group.
        if len(group) > 1:
            group[0].set_group_program(member_for_cpu(self.plan.cpus, self._absent))

    # ---- connections ----

    def _open_listeners(self, plan: Plan) -> dict[Listen, ListeningSocket]:
        """Open listening sockets for the addresses that have none yet."""
        opened: dict[Listen, ListeningSocket] = {}
        try:
            for listen in _stream_listens(plan):
                if listen in self._listeners:
                    continue
                known = any(listen.overlaps(own) for own in (*self._listeners, *opened))
                protocol = "TLS" if plan.streams and listen in plan.streams.tls else "TCP"
                listener = _open_listener(listen, protocol, probe=not known)
                if listener is not None:
                    opened[listen] = listener
        except BaseException:
            _close_all(opened.values())
            raise
        return opened

    def _open_export(self, plan: Plan) -> None:
        """Listen where metrics are wanted, unless that is so already."""
        if plan.metrics is None:
            return
        known = self._exports.get(plan.metrics)
        if known is None or not known.can_be_found():
            self._exports[plan.metrics] = MetricsListener(plan.metrics)
            if known is not None:
                known.close()

    # ---- what belongs to the interface ----

    def _open_rings(self, iface: Interface) -> None:
        self.geometry = self.plan.geometry
        while True:
            try:
                self._open_ring_group(iface)
                break
            except OSError as error:
                _close_all(self.packet_sockets)
                self.packet_sockets = []
                fewer = self.geometry.block_count // 2
                if error.errno != errno.ENOMEM or fewer < FEWEST_BLOCKS:
                    raise explain_ring(error, self.plan) from error
                self.geometry = dataclasses.replace(self.geometry, block_count=fewer)
        if self.geometry != self.plan.geometry:
            log.warning(
                "no memory for rings of %d blocks: they have %d, and hold less of a burst",
                self.plan.geometry.block_count,
                self.geometry.block_count,
            )

    def _open_ring_group(self, iface: Interface) -> None:
        cpus = self.plan.cpus
        # A program does what FanoutMode.CPU does, and does not ask for CPUs 0 to n-1. It can be
        # exchanged when a worker is not coming back soon.
        mode = FanoutMode.CPU if len(cpus) == 1 else FanoutMode.CBPF
        affinity = os.sched_getaffinity(0)
        group: int | None = None
        try:
            for cpu in cpus:
                # The retire timer runs on the CPU that asks for the ring.
                os.sched_setaffinity(0, {cpu})
                packet_socket = PacketSocket()
                self.packet_sockets.append(packet_socket)
                packet_socket.set_filter(DROP_ALL)
                packet_socket.set_ring(self.geometry)
                packet_socket.bind(iface.name)
                group = packet_socket.join_fanout(group, mode)
        finally:
            os.sched_setaffinity(0, affinity)
        if mode is FanoutMode.CBPF:
            self.packet_sockets[0].set_fanout_program(member_for_cpu(cpus, self._absent))
        self._let_in(self.plan.ports)
        for packet_socket in self.packet_sockets:
            packet_socket.statistics()

    def _let_in(self, ports: Iterable[int]) -> None:
        # Kernels before 6.2 do not know the group's flag for outgoing packets.
        program = udp_to(sorted(ports), outgoing=False)
        for packet_socket in self.packet_sockets:
            packet_socket.set_filter(program)

    def _open_senders(self, iface: Interface) -> None:
        try:
            for _ in self.plan.cpus:
                sender = PacketSocket()
                self.frame_sockets.append(sender)
                sender.bind_sender(iface.name, SEND_BUFFER)
        except OSError as error:
            raise explain_ring(error, self.plan) from error

    def _close_interface(self) -> None:
        if self.takeover is not None:
            self.takeover.close()
            self.takeover, self._taken = None, frozenset()
        _close_all(self.packet_sockets + self.frame_sockets)
        self.packet_sockets, self.frame_sockets = [], []

    def _takeable(self) -> frozenset[TransportAddress]:
        """Return what the rings answer and the kernel would handle again."""
        plan = self.plan
        if plan.takeover is False or plan.iface is None:
            return frozenset()
        # A link-local address of another interface is somebody else's on this one.
        here = {listen.address for listen in self.listens if listen.scope in {0, plan.iface.index}}
        foreign = {listen.address for listen in self.listens} - here
        return plan.ring_options.endpoints - foreign

    def _take_over(self, endpoints: frozenset[TransportAddress], *, insist: bool = False) -> None:
        """Take these over and no others; where that is impossible, say so, or raise if `insist`."""
        if endpoints == self._taken and not insist:
            return
        try:
            if not endpoints:
                self._release(insist=insist)
            elif self.takeover is not None:
                self.takeover.replace(takeover(endpoints))
            elif self.plan.iface is not None:
                self.takeover = TcxLink(self.plan.iface.index, takeover(endpoints))
            self._taken = endpoints
        except OSError as error:
            refusal = explain_takeover(error)
            if insist or error.errno in {errno.EMFILE, errno.ENFILE}:
                raise refusal from error
            # Not again and again: the endpoints are noted as if they had been taken.
            self._taken = endpoints
            log.warning(
                "%s. %s", refusal, SOCKET_FILTER, extra={"cause": "takeover", "burst": BURST}
            )

    def _release(self, *, insist: bool) -> None:
        if insist and self.plan.iface is not None:
            raise ConfigError(
                f"--takeover: {self.plan.iface.name} receives nothing for the addresses to "
                "serve; leave it out, or correct --listen"
            )
        if self.takeover is not None:
            self.takeover.close()
            self.takeover = None


def _is_bound_first(plan: Plan) -> bool:
    """Whether new sockets are bound before every worker has them.

    A ring's workers answer through them, whoever reads them; and so does NAT discovery.
    """
    return plan.mode.reads_ring or bool(plan.options.discovery)


def running_from(handed: dict[str, Any]) -> Running:
    """Return what a plan has to know of the service that `hand_over` described."""
    return Running(
        Mode(handed["mode"]),
        handed["iface"],
        handed["ifindex"],
        tuple(handed["cpus"]),
        RingGeometry(**handed["asked_geometry"]),
        frozenset(map(ipaddress.ip_address, handed["seen"])),
        handed["config"].get("user"),
        # A version that knew no credentials has none.
        bytes.fromhex(handed.get("nonce_key", "")),
        handed["config"].get("tcp", False),
        handed["config"].get("tls", False),
        handed["config"].get("metrics") is not None,
        # Nor one that had no status socket.
        (handed["config"].get("status", True), handed["config"].get("status_socket")),
    )


def config_from(handed: dict[str, Any]) -> ServeConfig:
    """Return the configuration of the service that `hand_over` described."""
    given = handed["config"]
    # What that version did not know has its default.
    values = {
        each.name: given[each.name]
        for each in dataclasses.fields(ServeConfig)
        if each.name in given
    }
    rate_limit = values.get("rate_limit")
    if rate_limit is not None:
        rate_limit = RateLimit(**rate_limit | {"exempt": tuple(rate_limit["exempt"])})
    credentials = handed.get("credentials")
    return ServeConfig(
        **values
        | {
            "mode": Mode(values["mode"]) if values["mode"] else None,
            "listen": tuple(values["listen"]),
            "advertise": tuple(values.get("advertise", ())),
            "alternate_servers": tuple(values.get("alternate_servers", ())),
            "cpus": None if values["cpus"] is None else tuple(values["cpus"]),
            "geometry": RingGeometry(**values["geometry"]),
            "tuning": Tuning(**values["tuning"]),
            "rate_limit": rate_limit,
            "credentials": Credentials.adopt(credentials) if credentials else None,
            "stream_limits": StreamLimits(**values.get("stream_limits", {})),
        }
    )


def _error_codes(plan: Plan) -> frozenset[int]:
    """Return those of error responses that a plain Binding request may get."""
    codes: set[int] = set()
    if plan.options.authenticator is not None:
        codes |= {400, 401}  # RFC 8489 sections 9.1.3 and 9.2.4
    if plan.options.alternate_servers:
        codes.add(300)
    return frozenset(codes)


def _limit(plan: Plan, limit: RateLimit) -> RateLimit:
    """Return the rate limit, without one for the host itself where it asks for its health.

    A flood from its network would silence these questions otherwise. Nobody outside has its
    addresses; whoever pretends to would have the answers sent to the host itself.
    """
    if plan.metrics is None:
        return limit
    ips = {each.ip for each in plan.options.endpoints}
    own = sorted(str(ip) for ip in ips if not (ip.is_loopback or ip.is_link_local))
    room = lib.PKTSTUN_MAX_EXEMPT - len(limit.exempt)
    return dataclasses.replace(limit, exempt=(*limit.exempt, *own[:room]))


def _stream_listens(plan: Plan) -> tuple[Listen, ...]:
    return plan.streams.tcp + plan.streams.tls if plan.streams is not None else ()


def _open_listener(listen: Listen, protocol: str, *, probe: bool) -> ListeningSocket | None:
    """Open one, if `probe` only where nobody else has it; None where its family is missing."""
    try:
        if probe:
            # Another program of this user would share it silently: see `Resources._probe`.
            ListeningSocket(listen.address, scope=listen.scope, share=False).close()
        return ListeningSocket(listen.address, scope=listen.scope)
    except OSError as error:
        if listen.optional and error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
            return None
        raise explain_bind(error, listen, protocol) from error


def _allow_connections(plan: Plan) -> None:
    """Raise the limit of descriptors, as long as that is allowed; say so if it does not do."""
    if plan.streams is None:
        return
    wanted = plan.streams.limits.connections + OWN_DESCRIPTORS
    allowed = privileges.allow_descriptors(wanted)
    if allowed < wanted:
        log.warning(
            "there is room for %d connections and not for %d: raise the limit of open files "
            "('ulimit -n', LimitNOFILE= of a service) to %d, or lower --stream-connections",
            max(0, allowed - OWN_DESCRIPTORS),
            plan.streams.limits.connections,
            wanted,
        )


def _close_all(closing: Iterable[Closing]) -> None:
    for each in closing:
        each.close()
