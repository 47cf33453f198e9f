"""The kernel's objects, one thin class each: context managers without policy.

`Ring` stands on its own: a capture ring that anyone can iterate for frames. The others are
what the engine is built from. Importing this package needs the compiled module.
"""

from __future__ import annotations

from .bpf import Program
from .ebpf import EbpfProgram, VerifierError
from .iface import Interface, InterfaceAddress, interface, link_monitor, local_addresses
from .netlink import Monitor
from .packet_socket import FanoutMode, PacketSocket, PacketStatistics, RingGeometry
from .priority import Priority
from .queues import ReceiveQueue, receive_queues, worker_cpus
from .ring import Frame, Ring
from .route import (
    MAX_RETURN_PATHS,
    ReturnPath,
    UnclearRoutingError,
    lookup,
    return_paths,
    route_monitor,
)
from .tcp_socket import ListeningSocket
from .tcx import TcxLink, ingress_programs, takeover
from .udp_socket import Datagram, UDPSocket

__all__ = [
    "MAX_RETURN_PATHS",
    "Datagram",
    "EbpfProgram",
    "FanoutMode",
    "Frame",
    "Interface",
    "InterfaceAddress",
    "ListeningSocket",
    "Monitor",
    "PacketSocket",
    "PacketStatistics",
    "Priority",
    "Program",
    "ReceiveQueue",
    "ReturnPath",
    "Ring",
    "RingGeometry",
    "TcxLink",
    "UDPSocket",
    "UnclearRoutingError",
    "VerifierError",
    "ingress_programs",
    "interface",
    "link_monitor",
    "local_addresses",
    "lookup",
    "receive_queues",
    "return_paths",
    "route_monitor",
    "takeover",
    "worker_cpus",
]
