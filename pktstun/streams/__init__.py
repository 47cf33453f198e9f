"""STUN over TCP and TLS (RFC 8489 section 6.2.2, RFC 7443): one more engine, for streams.

`_framing` finds the messages in the bytes, `_tls` is everything about certificates and records,
`_connection` what a client may do and for how long, `_engine` the loop around all connections.
What is answered is `pktstun.stun.respond()`'s business, as everywhere.
"""

from __future__ import annotations

from ._connection import StreamLimits
from ._engine import OWN_DESCRIPTORS, StreamEngine
from ._framing import BrokenStreamError, Framer
from ._tls import ALPN, CertificateFiles, check_certificate, server_context

__all__ = [
    "ALPN",
    "OWN_DESCRIPTORS",
    "BrokenStreamError",
    "CertificateFiles",
    "Framer",
    "StreamEngine",
    "StreamLimits",
    "check_certificate",
    "server_context",
]
