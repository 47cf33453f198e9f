"""The STUN codec: RFC 8489 messages as values, and what a server answers.

Sans-IO and standard library only: no sockets, no clock, no randomness except a transaction
id that the caller may also choose. Messages are immutable values; any bytes-like object
decodes to a `Message` or raises `StunError`, never anything else.

>>> from pktstun import stun
>>> request = stun.Message.request(stun.Software("example"), transaction_id=bytes(range(12)))
>>> data = request.with_fingerprint().encode()
>>> stun.Message.decode(data).get(stun.Software)
Software(text='example')

What a server would say to it:

>>> client = stun.TransportAddress.parse("192.0.2.1:4000")
>>> server = stun.TransportAddress.parse("198.51.100.1:3478")
>>> reply = stun.respond(data, client, server)
>>> stun.Message.decode(reply.datagram).mapped_address
TransportAddress(ip=IPv4Address('192.0.2.1'), port=4000)

Credentials: `short_term_key` or `long_term_key` make a key, `Message.with_message_integrity`
signs with it and `Message.check_message_integrity` checks. `ShortTerm` and `LongTerm` decide for
a server whose requests it answers. `Transaction` says when to send a request again. `ATTRIBUTES`
is the table of all attributes that the codec knows: those of RFC 8489 (STUN), RFC 5780 (NAT
behaviour discovery), RFC 8445 (ICE) and RFC 8656 (TURN).
"""

from __future__ import annotations

from pktstun.errors import StunError

from ._attributes import (
    ATTRIBUTES,
    AdditionalAddressFamily,
    AddressErrorCode,
    AlternateDomain,
    AlternateServer,
    ChangeRequest,
    ChannelNumber,
    Data,
    DontFragment,
    ErrorCode,
    EvenPort,
    Fingerprint,
    IceControlled,
    IceControlling,
    Icmp,
    Lifetime,
    MappedAddress,
    MessageIntegrity,
    MessageIntegritySha256,
    Nonce,
    OtherAddress,
    Padding,
    PasswordAlgorithm,
    PasswordAlgorithms,
    Priority,
    RawAttribute,
    Realm,
    RequestedAddressFamily,
    RequestedTransport,
    ReservationToken,
    ResponseOrigin,
    ResponsePort,
    Software,
    UnknownAttributes,
    UseCandidate,
    UserHash,
    Username,
    XorMappedAddress,
    XorPeerAddress,
    XorRelayedAddress,
)
from ._authenticator import (
    NONCE_LIFETIME,
    Admission,
    Authenticator,
    LongTerm,
    LongTermSecret,
    Refusal,
    ShortTerm,
)
from ._credentials import (
    long_term_key,
    nonce_cookie,
    opaque_string,
    security_features,
    short_term_key,
    userhash,
)
from ._discovery import NatDiscovery
from ._forms import Attribute, AttributeClass
from ._integrity import fingerprint, message_integrity, message_integrity_sha256
from ._message import Message, new_transaction_id
from ._respond import Drop, Reply, ResponderOptions, respond
from ._transaction import Action, Transaction
from ._types import (
    HEADER_SIZE,
    MAGIC_COOKIE,
    PORT,
    REASON_PHRASES,
    TRANSACTION_ID_SIZE,
    AddressFamily,
    AttributeType,
    Class,
    Method,
    PasswordAlgorithmNumber,
    SecurityFeature,
    TransportAddress,
    join_type,
    split_type,
)

__all__ = [
    "ATTRIBUTES",
    "HEADER_SIZE",
    "MAGIC_COOKIE",
    "NONCE_LIFETIME",
    "PORT",
    "REASON_PHRASES",
    "TRANSACTION_ID_SIZE",
    "Action",
    "AdditionalAddressFamily",
    "AddressErrorCode",
    "AddressFamily",
    "Admission",
    "AlternateDomain",
    "AlternateServer",
    "Attribute",
    "AttributeClass",
    "AttributeType",
    "Authenticator",
    "ChangeRequest",
    "ChannelNumber",
    "Class",
    "Data",
    "DontFragment",
    "Drop",
    "ErrorCode",
    "EvenPort",
    "Fingerprint",
    "IceControlled",
    "IceControlling",
    "Icmp",
    "Lifetime",
    "LongTerm",
    "LongTermSecret",
    "MappedAddress",
    "Message",
    "MessageIntegrity",
    "MessageIntegritySha256",
    "Method",
    "NatDiscovery",
    "Nonce",
    "OtherAddress",
    "Padding",
    "PasswordAlgorithm",
    "PasswordAlgorithmNumber",
    "PasswordAlgorithms",
    "Priority",
    "RawAttribute",
    "Realm",
    "Refusal",
    "Reply",
    "RequestedAddressFamily",
    "RequestedTransport",
    "ReservationToken",
    "ResponderOptions",
    "ResponseOrigin",
    "ResponsePort",
    "SecurityFeature",
    "ShortTerm",
    "Software",
    "StunError",
    "Transaction",
    "TransportAddress",
    "UnknownAttributes",
    "UseCandidate",
    "UserHash",
    "Username",
    "XorMappedAddress",
    "XorPeerAddress",
    "XorRelayedAddress",
    "fingerprint",
    "join_type",
    "long_term_key",
    "message_integrity",
    "message_integrity_sha256",
    "new_transaction_id",
    "nonce_cookie",
    "opaque_string",
    "respond",
    "security_features",
    "short_term_key",
    "split_type",
    "userhash",
]
