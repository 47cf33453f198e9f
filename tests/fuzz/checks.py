"""What must hold for any bytes that reach the codec: one function, for the fuzzer and for pytest.

Theory of operation: `check` takes a datagram and asks the codec everything that a user may ask
of it. Wherever two answers have to agree, they are compared; a difference raises
`BrokenError`, whose text is the claim that does not hold. Any other exception out of `check` is
a finding as well: no function that is called here may raise anything but the `StunError` that
is caught on the spot.

An input is a datagram and nothing else, so that a file of the corpus can be sent to a server
or fed to a dissector as it is. What `respond()` wants beside the datagram is chosen by the
first bytes of the transaction id, which mean nothing to the codec; each datagram is tried with
the default server, too.

The claims are not written with `assert`: they have to hold under `python -O`, and pytest does
not rewrite this module. Where a claim needs an expectation, that is worked out here, from the
RFC's words and not by the codec's functions.
"""

from __future__ import annotations

import zlib
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from pktstun.stun import (
    ATTRIBUTES,
    HEADER_SIZE,
    AttributeType,
    Class,
    Drop,
    ErrorCode,
    Fingerprint,
    MappedAddress,
    Message,
    MessageIntegrity,
    MessageIntegritySha256,
    Method,
    Nonce,
    PasswordAlgorithm,
    RawAttribute,
    Reply,
    ResponderOptions,
    Software,
    StunError,
    TransportAddress,
    UnknownAttributes,
    XorMappedAddress,
    nonce_cookie,
    respond,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from pktstun.stun import Attribute


class BrokenError(Exception):
    """A claim about the codec that does not hold."""


def require(holds: object, claim: str) -> None:
    """Raise BrokenError with the claim unless it holds."""
    if not holds:
        raise BrokenError(claim)


# The password of RFC 5769 section 2, so that its messages pass for authentic here.
KEY = b"VOkJxbRl1RmTxUk/WvJxBt"
# HMAC pads keys with zeros: two keys have to differ in more than zeros at the end.
OTHER_KEY = b"another"

MAX_SIZE = HEADER_SIZE + 0xFFFC

_PROTECTION: tuple[Any, ...] = (MessageIntegrity, MessageIntegritySha256, Fingerprint)
_TABLE: tuple[Any, ...] = tuple(ATTRIBUTES.values())
_CLASSES = (*_TABLE, RawAttribute)

# What the constructor accepts only at some place, or in some messages.
_BOUND: tuple[Any, ...] = (*_PROTECTION, ErrorCode, UnknownAttributes, PasswordAlgorithm)

# Reasons for which no message can be decoded either.
_NO_MESSAGE = frozenset(
    {
        Drop.SHORT,
        Drop.NOT_STUN,
        Drop.BAD_LENGTH,
        Drop.NO_COOKIE,
        Drop.MALFORMED,
        Drop.BAD_FINGERPRINT,
    }
)

_address = TransportAddress.parse

CLIENT = _address("192.0.2.1:4000")
SERVER = _address("198.51.100.1:3478")
DEFAULT = ResponderOptions()

# Clients first; then those that are dropped, by default or always.
SOURCES = (
    CLIENT,
    _address("[2001:db8::1]:4000"),
    _address("[::ffff:192.0.2.1]:65535"),
    _address("[fe80::1%eth0]:1"),
    _address("10.0.0.1:3478"),
    _address("127.0.0.1:4000"),
    _address("[::1]:4000"),
    SERVER,
    _address("192.0.2.1:0"),
    _address("0.0.0.1:4000"),
    _address("[::]:4000"),
    _address("224.0.0.1:4000"),
    _address("[::ffff:224.0.0.1]:4000"),
    _address("[ff02::1]:4000"),
    _address("255.255.255.255:4000"),
    _address("192.0.2.255:4000"),
)

DESTINATIONS = (
    SERVER,
    _address("[2001:db8:ffff::1]:3478"),
    _address("[::ffff:198.51.100.1]:3478"),
    _address("198.51.100.2:3478"),
    _address("192.0.2.255:3478"),
    _address("255.255.255.255:3478"),
    _address("[ff02::1]:3478"),
    _address("0.0.0.0:0"),
)

_ENDPOINTS = frozenset({SERVER, DESTINATIONS[1]})
_BROADCASTS = frozenset({IPv4Address("192.0.2.255")})

OPTIONS = (
    DEFAULT,
    ResponderOptions(allow_loopback=True),
    ResponderOptions(endpoints=_ENDPOINTS, broadcasts=_BROADCASTS),
    ResponderOptions(endpoints=_ENDPOINTS, check_destination=True),
    ResponderOptions(software=""),
    ResponderOptions(software="pktstun"),
    ResponderOptions(software=127 * "\U0001f600", endpoints=_ENDPOINTS),
)


def check(data: bytes) -> Message | None:
    """Check everything about a datagram; return the message that it is, if it is one.

    Raises:
        BrokenError: something that must hold does not. Any other exception is a finding, too.
    """
    message = check_decode(data)
    if message is not None:
        check_parts(message)
        check_untouched(message)
        check_attributes(message)
        check_rebuilt(message)
        check_fingerprint(message)
        check_integrity(message)
    _check_agreement(message, check_respond(data, CLIENT, SERVER, DEFAULT))
    check_respond(data, *delivery(data))
    return message


def delivery(data: bytes) -> tuple[TransportAddress, TransportAddress, ResponderOptions]:
    """Return source, destination and configuration as the transaction id chooses them."""
    chosen = data[8:11].ljust(3, b"\0")
    return (
        SOURCES[chosen[0] % len(SOURCES)],
        DESTINATIONS[chosen[1] % len(DESTINATIONS)],
        OPTIONS[chosen[2] % len(OPTIONS)],
    )


# --- Decoding ---


def _decoded(data: Buffer) -> Message | StunError:
    try:
        return Message.decode(data)
    except StunError as error:
        return error


def check_decode(data: bytes) -> Message | None:
    """Check that bytes are a message or a StunError that says where, in any kind of buffer."""
    message = _decoded(data)
    buffer = bytearray(data)
    others = [_decoded(buffer), _decoded(memoryview(b"-" + data + b"-")[1:-1])]
    require(buffer == data, "decode does not change its buffer")
    if isinstance(message, StunError):
        require(type(message) is StunError, "decode raises StunError itself")
        offset = message.offset
        require(type(offset) is int and 0 <= offset <= len(data), "the offset is in the bytes")
        for other in others:
            require(isinstance(other, StunError), "bytes that are no message are none elsewhere")
            require(str(other) == str(message), "the error is the same in any kind of buffer")
        return None
    # A BufferError here means that decode holds on to its buffer.
    buffer.clear()
    for other in others:
        require(isinstance(other, Message), "a message is one in any kind of buffer")
        require(other == message, "the message is the same in any kind of buffer")
        require(hash(other) == hash(message), "equal messages have equal hashes")
        require(repr(other) == repr(message), "equal messages look the same")
        require(isinstance(other, Message) and other.encode() == data, "encode undoes decode")
    require(message.encode() == data, "encode undoes decode")
    require(bytes(message) == data, "bytes() is encode()")
    require(message.transaction_id == data[8:HEADER_SIZE], "the transaction id is in the header")
    return message


def _check_round_trip(message: Message, what: str) -> None:
    """Check that a message that was made comes back as what it is."""
    decoded = _decoded(message.encode())
    require(isinstance(decoded, Message), f"{what} can be decoded")
    require(decoded == message, f"{what} is decoded as it was")
    require(hash(decoded) == hash(message), f"{what} is decoded with its hash")


# --- What a message says ---


def check_parts(message: Message) -> None:
    """Check what is found in the attributes against the attributes."""
    attributes, offsets = message.attributes, message.offsets
    require(len(attributes) == len(offsets), "each attribute has an offset")
    seen: set[Any] = set()
    counted: list[Attribute] = []
    for attribute in attributes:
        # RFC 8489 sections 14.5 to 14.7
        if (
            isinstance(attribute, Fingerprint)
            or not (MessageIntegrity in seen or MessageIntegritySha256 in seen)
            or (
                isinstance(attribute, MessageIntegritySha256) and MessageIntegritySha256 not in seen
            )
        ):
            counted.append(attribute)
        seen.add(type(attribute))
    require(message.processed == tuple(counted), "processed follows sections 14.5 to 14.7")

    found: dict[Any, list[Attribute]] = {}
    for attribute in counted:
        found.setdefault(type(attribute), []).append(attribute)
    for cls in _CLASSES:
        first = found[cls][0] if cls in found else None
        require(message.get(cls) is first, "get finds the first of a class")
    for cls, expected in found.items():
        require(message.get_all(cls) == tuple(expected), "get_all finds all of a class")
    require(seen or message.get_all(Software) == (), "get_all finds nothing in nothing")

    raw = dict.fromkeys(a.type for a in found.get(RawAttribute, []))
    required = tuple(kind for kind in raw if kind < 0x8000)
    require(message.unknown_required == required, "unknown_required names unknown types once")
    addresses: list[Any] = [*found.get(XorMappedAddress, []), *found.get(MappedAddress, [])]
    mapped = addresses[0].address if addresses else None
    require(message.mapped_address == mapped, "mapped_address prefers the masked one")
    require(message.error is message.get(ErrorCode), "error is the first ERROR-CODE")
    require(message.has_fingerprint is (Fingerprint in seen), "has_fingerprint sees FINGERPRINT")
    require(type(message.check_message_integrity(KEY)) is bool, "a check is True or False")
    if MessageIntegrity not in seen and MessageIntegritySha256 not in seen:
        require(not message.check_message_integrity(KEY), "nothing is no integrity")


def check_untouched(message: Message) -> None:
    """Check that a message says the same to whoever asks it first: attributes are built late."""
    data = message.encode()
    untouched = Message.decode(data)
    for cls in _TABLE:
        require(untouched.get(cls) == message.get(cls), "get finds the first of a class at once")
    same = untouched.mapped_address == message.mapped_address
    require(same, "mapped_address is known at once")
    require(untouched.error == message.error, "error is known at once")
    same = untouched.check_message_integrity(KEY) is message.check_message_integrity(KEY)
    require(same, "the integrity is known at once")
    require(untouched.has_fingerprint is message.has_fingerprint, "has_fingerprint is, too")
    require(untouched.attributes == message.attributes, "looking does not change a message")
    same = Message.decode(data).unknown_required == message.unknown_required
    require(same, "unknown_required is known at once")
    require(Message.decode(data).processed == message.processed, "processed is known at once")
    require(Message.decode(data).offsets == message.offsets, "offsets are known at once")
    first, second = (_attempt(one.with_fingerprint) for one in (Message.decode(data), message))
    require(first == second, "with_fingerprint does not depend on what has been asked")


def check_attributes(message: Message) -> None:
    """Check each attribute on its own: encoded again it means the same."""
    data, transaction_id = message.encode(), message.transaction_id
    counted = set(map(id, message.processed))
    end = HEADER_SIZE
    for attribute, offset in zip(message.attributes, message.offsets, strict=True):
        require(offset == end, "an attribute begins where the one before it ends")
        kind, size = (int.from_bytes(data[offset + at :][:2], "big") for at in (0, 2))
        end = offset + 4 + size + -size % 4
        require(attribute.type == kind, "an attribute has the type that was sent")
        require(attribute.type.label, "a type has a label")
        comprehension = attribute.type.comprehension_required
        require(comprehension is (kind < 0x8000), "the first bit of a type makes it optional")
        require(hash(attribute) is not None, "an attribute has a hash")
        require(type(attribute).__name__ in repr(attribute), "an attribute names its class")
        value = attribute.encode(transaction_id)
        cls = ATTRIBUTES.get(kind)
        if cls is None:
            require(type(attribute) is RawAttribute, "an unknown attribute is raw")
            require(value == data[offset + 4 :][:size], "an unknown attribute is kept")
            require(RawAttribute(AttributeType(kind), value) == attribute, "a raw one can be made")
            continue
        if type(attribute) is RawAttribute:
            require(id(attribute) not in counted, "only what is ignored may be malformed")
            require(value == data[offset + 4 :][:size], "a malformed attribute is kept")
            require(not _is_valid(cls, value), "only what is malformed stays raw")
            continue
        require(_is_valid(cls, value), "an encoded value is one of its class")
        again = cls.build(value, transaction_id)
        require(again == attribute, "an encoded value means what it meant")
        require(hash(again) == hash(attribute), "equal attributes have equal hashes")
        if isinstance(attribute, Nonce):
            _check_nonce(attribute)
    require(end == len(data), "the last attribute ends where the message does")


def _is_valid(cls: Any, value: bytes) -> bool:
    """Whether a value is one of a class, as the class says."""
    if len(value) not in cls.SIZES:
        return False
    try:
        cls.check(value)
    except StunError:
        return False
    return True


def _check_nonce(nonce: Nonce) -> None:
    features = nonce.security_features
    if features is None:
        # 4 characters of base64 always say something.
        text = nonce.text
        encoded = text[9:13]
        complete = len(encoded) == 4 and encoded.isascii()
        known = complete and encoded.replace("+", "0").replace("/", "0").isalnum()
        require(not (text.startswith("obMatJos2") and known), "a nonce cookie is seen")
    else:
        require(nonce.text.startswith(nonce_cookie(features)), "a nonce cookie is what was sent")


# --- What can be made of a message ---


def _attempt(make: Callable[[], Message]) -> Message | None:
    """Return what is made, or None where that is refused."""
    try:
        return make()
    except StunError:
        return None


def check_rebuilt(message: Message) -> None:
    """Check that a message made of the parts of another is the same, or may not be sent."""
    parts = message.message_class, message.method, message.transaction_id, message.attributes
    rebuilt = _attempt(lambda: Message(*parts))
    if rebuilt is None:
        bound = any(isinstance(a, _BOUND) for a in message.attributes)
        error = message.message_class is Class.ERROR
        require(bound or error, "only bound attributes and errors are refused")
        return
    require(rebuilt == message, "parts make the message that they are of")
    require(hash(rebuilt) == hash(message), "parts make the same hash")
    _check_round_trip(rebuilt, "a message made of parts")


def check_fingerprint(message: Message) -> None:
    """Check that FINGERPRINT can be had, once and right, wherever there is room for it."""
    data = message.encode()
    protected = _attempt(message.with_fingerprint)
    if protected is None:
        require(not message.has_fingerprint, "a message has room for the FINGERPRINT it has")
        require(len(data) + 8 > MAX_SIZE, "with_fingerprint needs 8 bytes of room")
        return
    require(protected.has_fingerprint, "with_fingerprint leaves a FINGERPRINT")
    _check_round_trip(protected, "a message with_fingerprint")
    if message.has_fingerprint:
        require(protected.encode() == data, "with_fingerprint twice is once")
        return
    require(protected.attributes[:-1] == message.attributes, "with_fingerprint keeps attributes")
    covered, last = protected.encode()[:-8], protected.encode()[-4:]
    require(covered[HEADER_SIZE:] == data[HEADER_SIZE:], "with_fingerprint keeps the body")
    crc = zlib.crc32(covered) ^ 0x5354554E
    require(last == crc.to_bytes(4, "big"), "FINGERPRINT is the CRC-32 of what is before it")


def _unprotected(message: Message) -> Message:
    """Return the part of a message that is in front of its first protection."""
    for attribute, offset in zip(message.attributes, message.offsets, strict=True):
        if isinstance(attribute, _PROTECTION):
            data = message.encode()
            length = (offset - HEADER_SIZE).to_bytes(2, "big")
            return Message.decode(data[:2] + length + data[4:offset])
    return message


def check_integrity(message: Message) -> None:
    """Check that both kinds of integrity prove the key, and nothing else does."""
    bare = _unprotected(message)
    if bare is not message:
        refused = _attempt(lambda: message.with_message_integrity(KEY)) is None
        require(refused, "MESSAGE-INTEGRITY is refused behind protection")
    seed = int.from_bytes(bare.transaction_id[:4], "big")
    size = 16 + 4 * (seed % 5)

    signed = _attempt(lambda: bare.with_message_integrity(KEY))
    if signed is None:
        require(len(bare.encode()) + 24 > MAX_SIZE, "MESSAGE-INTEGRITY needs 24 bytes of room")
        return
    _check_signed(signed, KEY, OTHER_KEY, seed, 32)

    short = _attempt(lambda: bare.with_message_integrity_sha256(KEY, size))
    if short is None:
        require(len(bare.encode()) + 4 + size > MAX_SIZE, "SHA256 needs the room that it takes")
        return
    _check_signed(short, KEY, OTHER_KEY, seed, size)
    cut = size < 32
    require(short.check_message_integrity(KEY) is not cut, "a cut SHA256 is not taken unasked")

    both = _attempt(lambda: signed.with_message_integrity_sha256(OTHER_KEY))
    if signed.message_class in {Class.SUCCESS, Class.ERROR}:
        require(both is None, "a response has one integrity")
        return
    if both is None:
        require(len(signed.encode()) + 36 > MAX_SIZE, "SHA256 needs 36 bytes of room")
        return
    # MESSAGE-INTEGRITY is right for the other key, and does not count beside SHA256.
    _check_signed(both, OTHER_KEY, KEY, seed, 32)


def _check_signed(signed: Message, key: bytes, wrong: bytes, seed: int, size: int) -> None:
    """Check a message that `key` has signed; `seed` says which bit is to be flipped."""
    _check_round_trip(signed, "a signed message")
    data = signed.encode()
    for one in (signed, _attempt(signed.with_fingerprint) or signed):
        require(one.check_message_integrity(key, minimum_length=size), "the key fits")
        require(not one.check_message_integrity(wrong, minimum_length=size), "no other key fits")
    require(signed.check_message_integrity(b"", minimum_length=size) is False, "a key is needed")
    bit = seed % (8 * len(data))
    flipped = bytearray(data)
    flipped[bit // 8] ^= 0x80 >> bit % 8
    forged = _decoded(flipped)
    if isinstance(forged, Message):
        fits = forged.check_message_integrity(key, minimum_length=size)
        require(not fits, "no bit of a signed message can be changed")


# --- Answers ---


def check_respond(
    data: bytes,
    source: TransportAddress,
    destination: TransportAddress,
    options: ResponderOptions,
) -> Reply | Drop:
    """Check that a datagram is dropped, or answered as it may be; return which."""
    result = respond(data, source, destination, options)
    again = respond(bytearray(data), source, destination, options)
    require(again == result, "the answer is the same in any kind of buffer")
    if not isinstance(result, Reply):
        require(type(result) is Drop, "what is not answered is dropped")
        return result
    require(result.destination == source, "a reply goes to where the request came from")
    require(result.source == destination, "a reply comes from where the request went to")
    reply = _decoded(result.datagram)
    if not isinstance(reply, Message):
        raise BrokenError("a reply can be decoded")
    require(reply.method is Method.BINDING, "a reply is about Binding")
    require(reply.transaction_id == data[8:HEADER_SIZE], "a reply has the request's id")
    if reply.has_fingerprint:
        crc = zlib.crc32(data[:-8]) ^ 0x5354554E
        ends = data.endswith(b"\x80\x28\0\4" + crc.to_bytes(4, "big"))
        require(ends, "FINGERPRINT answers a right one at the end")
    # Without the zone that an IPv6 address may have here: it means nothing to the client.
    client = source.unmapped()
    client = TransportAddress(type(client.ip)(int(client.ip)), client.port)
    if reply.message_class is Class.SUCCESS:
        require(reply.mapped_address == client, "a success response tells the source")
        require(reply.error is None, "a success response has no error")
    else:
        require(reply.message_class is Class.ERROR, "a reply is a response")
        require(reply.error == ErrorCode(420), "the only error is 420")
        unknown = reply.get(UnknownAttributes)
        types = unknown.types if unknown else ()
        require(types, "a 420 names types")
        require(len(set(types)) == len(types), "a 420 names each type once")
        require(all(kind < 0x8000 for kind in types), "a 420 names types that are required")
    if options.software is None:
        require(reply.get(Software) is None, "SOFTWARE is sent only when configured")
        growth = 12 if client.ip.version == 4 else 24
        require(len(result.datagram) <= len(data) + growth, "a reply is hardly longer")
    else:
        require(reply.get(Software) == Software(options.software), "SOFTWARE is sent as configured")
    echo = respond(result.datagram, CLIENT, SERVER)
    require(echo is Drop.NOT_REQUEST, "a reply is not answered by another server")
    echo = respond(result.datagram, result.source, result.destination, options)
    require(isinstance(echo, Drop), "a reply that comes back is not answered")
    return result


def _check_agreement(message: Message | None, result: Reply | Drop) -> None:
    """Check that the default server and the decoder see the same in a datagram."""
    if message is None:
        # The server may answer all the same: it does not look at values.
        require(result not in (Drop.BAD_SOURCE, Drop.OWN_SOURCE, Drop.NOT_FOR_US), "a good client")
        return
    require(result not in _NO_MESSAGE, "what decodes is not dropped as malformed")
    if message.message_class is not Class.REQUEST:
        require(result is Drop.NOT_REQUEST, "only requests are answered")
    elif message.method is not Method.BINDING:
        require(result is Drop.UNKNOWN_METHOD, "only Binding is answered")
    else:
        if not isinstance(result, Reply):
            raise BrokenError("a Binding request that decodes is answered")
        reply = Message.decode(result.datagram)
        same = reply.has_fingerprint is message.has_fingerprint
        require(same, "a reply has FINGERPRINT if the request has")
        unknown = reply.get(UnknownAttributes)
        types = unknown.types if unknown else ()
        require(set(message.unknown_required) <= set(types), "a 420 names all unknown types")
