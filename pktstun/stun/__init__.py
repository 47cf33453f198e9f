"""The STUN codec: RFC 8489 messages as values, and what a server answers.

Sans-IO and standard library only: no sockets, no clock, no randomness except a transaction
id that the caller may also choose. Messages are immutable values; any bytes-like object
decodes to a `Message` or raises `StunError`, never anything else.

>>> from pktstun import stun
>>> request = stun.Message.request(transaction_id=bytes(range(12)))
>>> stun.Message.decode(request.encode()) == request
True
>>> client = stun.TransportAddress.parse("192.0.2.1:4000")
>>> server = stun.TransportAddress.parse("198.51.100.1:3478")
>>> reply = stun.respond(request.encode(), client, server)
>>> stun.Message.decode(reply.datagram).mapped_address
TransportAddress(ip=IPv4Address('192.0.2.1'), port=4000)
"""

from __future__ import annotations

from pktstun.errors import StunError

from ._attributes import (
    Attribute,
    ErrorCode,
    Fingerprint,
    MappedAddress,
    RawAttribute,
    Software,
    UnknownAttributes,
    XorMappedAddress,
)
from ._integrity import fingerprint
from ._message import Message, new_transaction_id
from ._respond import Drop, Reply, ResponderOptions, respond
from ._transaction import Action, Transaction
from ._types import (
    HEADER_SIZE,
    MAGIC_COOKIE,
    PORT,
    TRANSACTION_ID_SIZE,
    AttributeType,
    Class,
    Method,
    TransportAddress,
    join_type,
    split_type,
)

__all__ = [
    "HEADER_SIZE",
    "MAGIC_COOKIE",
    "PORT",
    "TRANSACTION_ID_SIZE",
    "Action",
    "Attribute",
    "AttributeType",
    "Class",
    "Drop",
    "ErrorCode",
    "Fingerprint",
    "MappedAddress",
    "Message",
    "Method",
    "RawAttribute",
    "Reply",
    "ResponderOptions",
    "Software",
    "StunError",
    "Transaction",
    "TransportAddress",
    "UnknownAttributes",
    "XorMappedAddress",
    "fingerprint",
    "join_type",
    "new_transaction_id",
    "respond",
    "split_type",
]
