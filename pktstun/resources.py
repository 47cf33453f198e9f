"""The kernel objects of a running service, opened once and kept by the supervisor.

Theory of operation: workers borrow these objects and may die at any moment. Because the
supervisor holds the descriptors, frames stay in the rings, the order of the fanout members
and of the SO_REUSEPORT sockets does not shift, and the next worker goes on where the last one
stopped.

The order of opening is the order of safety: a port that somebody else has is noticed before
anything is shared; in ring mode the sockets have their filter before they are bound, so that
no datagram is answered twice; every ring is made on the CPU that it will serve; and packets
are let in when all members of the fanout group have joined. Last comes the takeover, when the
rings hold what it takes away.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pktstun.config import Mode
from pktstun.direct import ReturnPathWatch
from pktstun.engine import DirectPath, RingEngine, SocketEngine
from pktstun.errors import ConfigError, EngineError, PktstunError, PrivilegeError
from pktstun.kernel import (
    FanoutMode,
    PacketSocket,
    TcxLink,
    UDPSocket,
    VerifierError,
    takeover,
)
from pktstun.kernel._closing import Closing
from pktstun.kernel.bpf import DROP_ALL, member_for_cpu, not_from, udp_to
from pktstun.stats import SharedPage

if TYPE_CHECKING:
    from pktstun.config import Listen, Plan
    from pktstun.engine import Engine
    from pktstun.kernel import Interface

__all__ = ["RECEIVE_BUFFER", "SEND_BUFFER", "Resources"]

log = logging.getLogger("pktstun")

RECEIVE_BUFFER = 4 << 20
"""Bytes asked for the receive buffer of a socket that is read with recvmmsg: some thousand
small datagrams, which the kernel accounts with their overhead."""

SEND_BUFFER = 4 << 20
"""Bytes asked for the send buffers: what a network card has not sent yet counts, and without
enough of it a burst of replies has to wait."""

SOCKET_FILTER = (
    "Without it the kernel routes its copy of every request until a socket filter drops it, which "
    "was measured to make a reply of direct mode cost 1.2 to 1.6 times the CPU time"
)


class Resources(Closing):
    """Everything that a service holds open; a context manager.

    Args:
        plan: what to open.

    Raises:
        ConfigError: an address is not local.
        PrivilegeError: a capability is missing.
        EngineError: a port is in use, or the kernel refuses something else.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        with ExitStack() as stack:
            self._stack = stack
            _check_nice(plan.nice)
            self.page = stack.enter_context(SharedPage(len(plan.cpus)))
            self.sockets: list[list[UDPSocket]] = [[] for _ in plan.cpus]
            self.packet_sockets: list[PacketSocket] = []
            self.frame_sockets: list[PacketSocket] = []
            self.return_paths: ReturnPathWatch | None = None
            self.takeover: TcxLink | None = None
            self.listens = [listen for listen in plan.listens if self._probe(listen)]
            if not self.listens:
                raise EngineError("the host has neither IPv4 nor IPv6")
            for listen in self.listens:
                self._open_group(listen)
            if plan.iface is not None and plan.mode.reads_ring:
                self._open_rings(plan.iface)
                if plan.mode is Mode.DIRECT:
                    self._open_senders(plan.iface)
                if plan.takeover is not False:
                    self._take_over(plan.iface)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close everything."""
        self._stack.close()

    def engine(self, index: int) -> Engine:
        """Return the engine of a worker, not yet open."""
        plan, slot, sockets = self.plan, self.page.slots[index], self.sockets[index]
        if not plan.mode.reads_ring:
            return SocketEngine(slot, sockets, plan.options, tuning=plan.tuning)
        return RingEngine(
            slot,
            sockets,
            plan.options,
            packet_socket=self.packet_sockets[index],
            geometry=plan.geometry,
            ring_options=plan.ring_options,
            direct=DirectPath(self.frame_sockets[index], self.page.routes)
            if self.frame_sockets
            else None,
            tuning=plan.tuning,
        )

    def descriptors(self, index: int) -> set[int]:
        """Return the descriptors that a worker needs."""
        packet_sockets = self.packet_sockets[index:][:1] + self.frame_sockets[index:][:1]
        return {sock.fileno() for sock in self.sockets[index]} | {
            packet_socket.fileno() for packet_socket in packet_sockets
        }

    def stop_receiving(self) -> None:
        """Let nothing new in; what is there already can still be read."""
        for packet_socket in self.packet_sockets:
            packet_socket.set_filter(DROP_ALL)
        for sockets in self.sockets:
            for sock in sockets:
                sock.set_filter(DROP_ALL)

    def collect_statistics(self) -> None:
        """Add what the kernel counted on the rings to the slots.

        Reading clears the kernel's counters, so there must be one reader: the supervisor.
        """
        for slot, packet_socket in zip(self.page.slots, self.packet_sockets, strict=False):
            slot.add_ring(packet_socket.statistics())

    def _probe(self, listen: Listen) -> bool:
        """Find out whether the address can be had alone; False where its family is missing.

        With SO_REUSEPORT a second server of the same user would silently get a share of the
        first one's requests.
        """
        try:
            UDPSocket(listen.address, scope=listen.scope, share=False).close()
        except OSError as error:
            if listen.optional and error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                return False
            raise _explain_bind(error, listen) from error
        return True

    def _open_group(self, listen: Listen) -> None:
        iface, cpus = self.plan.iface, self.plan.cpus
        ring = self.plan.mode.reads_ring
        program = not_from([iface.index]) if ring and iface else None
        group = []
        for sockets in self.sockets:
            try:
                sock = UDPSocket(
                    listen.address,
                    scope=listen.scope,
                    program=program,
                    receive_buffer=None if ring else RECEIVE_BUFFER,
                    send_buffer=SEND_BUFFER,
                )
            except OSError as error:
                raise _explain_bind(error, listen) from error
            sockets.append(self._stack.enter_context(sock))
            group.append(sock)
        if len(cpus) > 1:
            group[0].set_group_program(member_for_cpu(cpus))

    def _open_rings(self, iface: Interface) -> None:
        plan = self.plan
        # CPU mode means member = CPU modulo members: right for CPUs 0 to n-1 only.
        in_order = plan.cpus == tuple(range(len(plan.cpus)))
        mode = FanoutMode.CPU if in_order else FanoutMode.CBPF
        affinity = os.sched_getaffinity(0)
        group: int | None = None
        try:
            for cpu in plan.cpus:
                # The retire timer runs on the CPU that asks for the ring.
                os.sched_setaffinity(0, {cpu})
                packet_socket = self._stack.enter_context(PacketSocket())
                self.packet_sockets.append(packet_socket)
                packet_socket.set_filter(DROP_ALL)
                packet_socket.set_ring(plan.geometry)
                packet_socket.bind(iface.name)
                group = packet_socket.join_fanout(group, mode)
            if mode is FanoutMode.CBPF:
                self.packet_sockets[0].set_fanout_program(member_for_cpu(plan.cpus))
            for packet_socket in self.packet_sockets:
                # Kernels before 6.2 do not know the group's flag for outgoing packets.
                packet_socket.set_filter(udp_to(plan.ports, outgoing=False))
                packet_socket.statistics()
        except OSError as error:
            raise _explain_ring(error, plan) from error
        finally:
            os.sched_setaffinity(0, affinity)

    def _open_senders(self, iface: Interface) -> None:
        try:
            for _ in self.plan.cpus:
                sender = self._stack.enter_context(PacketSocket())
                sender.bind_sender(iface.name, SEND_BUFFER)
                self.frame_sockets.append(sender)
        except OSError as error:
            raise _explain_ring(error, self.plan) from error
        self.return_paths = self._stack.enter_context(ReturnPathWatch(iface, self.page.routes))

    def _take_over(self, iface: Interface) -> None:
        # A link-local address of another interface is somebody else's on this one.
        here = {listen.address for listen in self.listens if listen.scope in {0, iface.index}}
        foreign = {listen.address for listen in self.listens} - here
        endpoints = self.plan.ring_options.endpoints - foreign
        if not endpoints:
            if self.plan.takeover:
                raise ConfigError(
                    f"--takeover: {iface.name} receives nothing for the addresses to serve; leave "
                    "it out, or correct --listen"
                )
            return
        try:
            self.takeover = self._stack.enter_context(TcxLink(iface.index, takeover(endpoints)))
        except OSError as error:
            refusal = _explain_takeover(error)
            if self.plan.takeover:
                raise refusal from error
            log.warning("%s. %s", refusal, SOCKET_FILTER)


def _check_nice(wanted: int | None) -> None:
    """Find out whether the workers may take this nice value; to give it back is always allowed."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if wanted is None or wanted >= before:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, wanted)
    except PermissionError as error:
        raise PrivilegeError(
            f"--nice {wanted} needs CAP_SYS_NICE: run as root, give the service "
            "AmbientCapabilities=CAP_SYS_NICE, or leave it out"
        ) from error
    os.setpriority(os.PRIO_PROCESS, 0, before)


def _explain_bind(error: OSError, listen: Listen) -> PktstunError:
    address, port = listen.address, listen.address.port
    if error.errno == errno.EADDRINUSE:
        return EngineError(
            f"UDP port {port} on {address.ip} is in use: stop the program that has it "
            f"('ss -lunp sport = :{port}' shows it), choose another with --port, or have each "
            "serve addresses of its own with --listen"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(
            f"{address.ip} is no address of this host ('ip address' shows those): correct "
            "--listen, or add the address first"
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return PrivilegeError(
            f"port {port} needs CAP_NET_BIND_SERVICE: run as root, give the service "
            "AmbientCapabilities=CAP_NET_BIND_SERVICE, or choose a port above 1023"
        )
    if error.errno == errno.EAFNOSUPPORT:
        return ConfigError(f"this host has no IPv{address.ip.version}: correct --listen")
    return EngineError(f"cannot listen on {address}: {error.strerror}")


def _explain_takeover(error: OSError) -> PktstunError:
    if isinstance(error, VerifierError):
        return EngineError(f"takeover is not possible, the kernel refuses the program: {error}")
    if isinstance(error, PermissionError):
        return PrivilegeError(
            "takeover needs CAP_BPF and CAP_NET_ADMIN: run as root, give the service "
            "AmbientCapabilities=CAP_BPF CAP_NET_ADMIN, or use --no-takeover"
        )
    if error.errno in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
        return EngineError(
            "takeover is not possible, this kernel has no tcx: use Linux 6.6 or later, "
            "or --no-takeover"
        )
    return EngineError(f"takeover is not possible: {error.strerror}; use --no-takeover")


def _explain_ring(error: OSError, plan: Plan) -> PktstunError:
    if isinstance(error, PermissionError):
        return PrivilegeError(
            f"{plan.mode} mode needs CAP_NET_RAW: run as root, give the service "
            "AmbientCapabilities=CAP_NET_RAW, or use --mode recvmmsg, which needs no privilege"
        )
    name = plan.iface.name if plan.iface else ""
    if error.errno == errno.ENOMEM:
        return EngineError(
            f"no memory for {len(plan.cpus)} rings of {plan.geometry.size >> 20} MiB: "
            "free some, or use fewer --cpus"
        )
    return EngineError(f"cannot open a packet ring on {name}: {error.strerror}")
