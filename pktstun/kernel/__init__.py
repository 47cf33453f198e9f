"""The kernel's objects, one thin class each: context managers without policy.

`Ring` stands on its own: a capture ring that anyone can iterate for frames. The others are
what the engine is built from. Importing this package needs the compiled module.
"""

from __future__ import annotations

from .bpf import Program
from .iface import Interface, InterfaceAddress, interface, local_addresses
from .packet_socket import FanoutMode, PacketSocket, PacketStatistics, RingGeometry
from .ring import Frame, Ring
from .udp_socket import Datagram, UDPSocket

__all__ = [
    "Datagram",
    "FanoutMode",
    "Frame",
    "Interface",
    "InterfaceAddress",
    "PacketSocket",
    "PacketStatistics",
    "Program",
    "Ring",
    "RingGeometry",
    "UDPSocket",
    "interface",
    "local_addresses",
]
