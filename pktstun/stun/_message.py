"""A STUN message as a value: class, method, transaction id, and attributes in order.

Attributes are a tuple and not a mapping: order matters (FINGERPRINT is last), duplicates
occur on the wire (the first counts), and unknown ones must survive, since a 420 has to
name them.

Theory of operation: a message carries its wire image, made once: when the message is built, or
taken over when it is decoded. So `encode` is free, a decoded message is sent on exactly as it
came in, padding and reserved bits included, and an integrity check sees the bytes that the
sender signed. What a message means is its four public parts, and those alone are compared.

Decoding checks every value and builds no object yet: the attributes become objects when
somebody first looks at them. Checking costs less than building, and many who receive a message
(whoever looks only at its class, or drops it since its integrity is wrong) never look.

Building is strict: what RFC 8489 forbids to send is an error. Decoding refuses what is
malformed and keeps what a receiver has to ignore, which is all that stands behind the integrity:
it is in `attributes`, as a `RawAttribute` where it is malformed, and not in what `get` looks at.
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING, TypeVar, cast

from pktstun.errors import StunError

from ._attributes import (
    ATTRIBUTES,
    RULES,
    AlternateServer,
    ErrorCode,
    Fingerprint,
    MappedAddress,
    MessageIntegrity,
    MessageIntegritySha256,
    PasswordAlgorithm,
    RawAttribute,
    UnknownAttributes,
    XorMappedAddress,
    build_attribute,
    build_if_valid,
)
from ._integrity import (
    FINGERPRINT_SIZE,
    INTEGRITY_SIZE,
    check_sha256_size,
    fingerprint,
    message_integrity,
    message_integrity_sha256,
)
from ._types import (
    COMPREHENSION_OPTIONAL,
    MAGIC_COOKIE,
    TRANSACTION_ID_SIZE,
    AttributeType,
    Class,
    Method,
    TransportAddress,
    join_type,
    split_type,
)
from ._wire import (
    ATTRIBUTE_HEADER_SIZE,
    BEHIND,
    Span,
    as_bytes,
    processed_indices,
    read_header,
    walk_attributes,
    with_room,
    write_attribute_header,
    write_attributes,
    write_header,
)

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

    from ._forms import Attribute

AttributeT = TypeVar("AttributeT")

_REQUEST = Class.REQUEST
_ERROR = Class.ERROR
_BINDING = Method.BINDING
_FINGERPRINT = int(AttributeType.FINGERPRINT)
_INTEGRITY = int(AttributeType.MESSAGE_INTEGRITY)
_INTEGRITY_SHA256 = int(AttributeType.MESSAGE_INTEGRITY_SHA256)

_FINGERPRINT_HEADER = write_attribute_header(_FINGERPRINT, FINGERPRINT_SIZE)
_INTEGRITY_HEADER = write_attribute_header(_INTEGRITY, INTEGRITY_SIZE)

_PROTECTION = frozenset({_INTEGRITY, _INTEGRITY_SHA256, _FINGERPRINT})

# Types that are bound to a place in the message, or to a class of messages.
_BOUND = frozenset(
    {
        _FINGERPRINT,
        _INTEGRITY,
        _INTEGRITY_SHA256,
        int(AttributeType.ERROR_CODE),
        int(AttributeType.UNKNOWN_ATTRIBUTES),
        int(AttributeType.PASSWORD_ALGORITHM),
    }
)

# The type fields of the registered methods, both ways: enumerations are slow to look up.
_SPLIT = {join_type(method, cls): (cls, method) for method in Method for cls in Class}
_JOINED = {(cls, method): (cls, method, field) for field, (cls, method) in _SPLIT.items()}

# Class to type.
_TYPES: dict[object, int] = {cls: kind for kind, cls in ATTRIBUTES.items()}

_new = object.__new__


def new_transaction_id() -> bytes:
    """Return 12 bytes from the system's cryptographic generator (RFC 8489 section 5)."""
    return secrets.token_bytes(TRANSACTION_ID_SIZE)


class Message:
    """A STUN message (RFC 8489 section 5): an immutable value.

    >>> request = Message.request(transaction_id=bytes(12)).with_fingerprint()
    >>> Message.decode(request.encode()) == request
    True

    Args:
        message_class: request, indication, success or error response.
        method: what it is about; 12 bits.
        transaction_id: 12 bytes that a response copies from its request; random if None.
        attributes: in the order in which they are sent.

    What RFC 8489 forbids to send is refused as far as one message can show it. Attributes that
    were received may be sent on, whatever is in them; what a request and its response owe each
    other is for the application to see to.

    Raises:
        StunError: a part has the wrong size; the attributes do not fit; FINGERPRINT is not
            last or does not match; something stands behind the integrity, where it would be
            ignored; a response has both integrities; an error response says no error, or
            another message does; a 300 names no ALTERNATE-SERVER; UNKNOWN-ATTRIBUTES is where
            no 420 is, or the reverse; PASSWORD-ALGORITHM is in no request.
    """

    __slots__ = (
        "_attributes",
        "_message_class",
        "_method",
        "_spans",
        "_transaction_id",
        "_wire",
    )
    __match_args__ = ("message_class", "method", "transaction_id", "attributes")

    _attributes: tuple[Attribute, ...] | None
    _message_class: Class
    _method: Method
    _spans: list[Span] | None
    _transaction_id: bytes
    _wire: bytes

    def __init__(
        self,
        message_class: Class,
        method: Method = _BINDING,
        transaction_id: Buffer | None = None,
        attributes: tuple[Attribute, ...] = (),
    ) -> None:
        self._message_class, self._method, field = _JOINED.get((message_class, method)) or _join(
            message_class, method
        )
        if transaction_id is None:
            transaction_id = new_transaction_id()
        elif type(transaction_id) is not bytes:
            transaction_id = as_bytes(transaction_id)
        if len(transaction_id) != TRANSACTION_ID_SIZE:
            raise StunError(f"a transaction id has 12 bytes, not {len(transaction_id)}")
        self._transaction_id = transaction_id
        self._attributes = attributes = tuple(attributes)
        self._spans = None
        body = write_attributes(attributes, transaction_id) if attributes else b""
        self._wire = write_header(field, len(body), MAGIC_COOKIE, transaction_id) + body
        if self._message_class is _ERROR or (
            attributes and not _BOUND.isdisjoint([a.type for a in attributes])
        ):
            self._check_rules()

    @classmethod
    def request(
        cls,
        *attributes: Attribute,
        method: Method = _BINDING,
        transaction_id: Buffer | None = None,
    ) -> Self:
        """Return a request: Binding, with a random transaction id, unless others are given."""
        return cls(_REQUEST, method, transaction_id, attributes)

    def success(self, *attributes: Attribute) -> Self:
        """Return a success response to this request; StunError where it is no request."""
        return self._response(Class.SUCCESS, attributes)

    def failure(self, error: ErrorCode, *attributes: Attribute) -> Self:
        """Return an error response to this request; StunError where it is no request."""
        return self._response(_ERROR, (error, *attributes))

    def _response(self, message_class: Class, attributes: tuple[Attribute, ...]) -> Self:
        if self._message_class is not _REQUEST:
            raise StunError(f"{self._message_class.name} messages are not answered")
        return type(self)(message_class, self._method, self._transaction_id, attributes)

    def with_attributes(self, *attributes: Attribute) -> Self:
        """Return this message with more attributes behind the others.

        Where one of the kind is there already, it is the one that counts.

        Raises:
            StunError: the message is protected already, or the result must not be sent.
        """
        self._check_open(_PROTECTION)
        return type(self)(
            self._message_class,
            self._method,
            self._transaction_id,
            (*self.attributes, *attributes),
        )

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """Return the message that fills the buffer exactly.

        FINGERPRINT is checked if it is there. Padding and reserved bits are ignored, as
        receivers must. The integrity is not checked, since that takes a key: see
        `check_message_integrity`.

        Args:
            data: any bytes-like object; it is not changed or kept.

        Raises:
            StunError: the bytes are no STUN message; `offset` says where.
        """
        wire = data if type(data) is bytes else as_bytes(data)
        field, transaction_id = read_header(wire)
        spans = walk_attributes(wire, RULES)
        # Where these bytes are nowhere, there is no FINGERPRINT to look for.
        if spans and _FINGERPRINT_HEADER in wire:
            _check_fingerprint(wire, spans)
        message_class, method = _SPLIT.get(field) or _split(field)
        self = cls._made(message_class, method, transaction_id, None, wire)
        self._spans = spans
        return self

    @classmethod
    def _made(
        cls,
        message_class: Class,
        method: Method,
        transaction_id: bytes,
        attributes: tuple[Attribute, ...] | None,
        wire: bytes,
    ) -> Self:
        """Return a message of parts that are known to fit, past the checks of `__init__`."""
        self = _new(cls)
        self._message_class = message_class
        self._method = method
        self._transaction_id = transaction_id
        self._attributes = attributes
        self._spans = None
        self._wire = wire
        return self

    def encode(self) -> bytes:
        """Return the message as it is sent; a decoded one exactly as it came in."""
        return self._wire

    __bytes__ = encode

    # --- The parts ---

    @property
    def message_class(self) -> Class:
        """Request, indication, success or error response."""
        return self._message_class

    @property
    def method(self) -> Method:
        """What the message is about."""
        return self._method

    @property
    def transaction_id(self) -> bytes:
        """12 bytes."""
        return self._transaction_id

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """All attributes, in order: duplicates and those that are to be ignored as well."""
        if self._attributes is None:
            wire, transaction_id = self._wire, self._transaction_id
            spans = self._layout()
            counted = processed_indices([kind for kind, _, _ in spans])
            # What is ignored has not been checked.
            build = build_attribute if len(counted) == len(spans) else build_if_valid
            self._attributes = tuple(
                [
                    build(kind, wire[start : start + length], transaction_id)
                    for kind, start, length in spans
                ]
            )
        return self._attributes

    @property
    def offsets(self) -> tuple[int, ...]:
        """For each of `attributes`, the offset of its header in the encoded message."""
        return tuple(start - ATTRIBUTE_HEADER_SIZE for _, start, _ in self._layout())

    def _layout(self) -> list[Span]:
        if self._spans is None:
            self._spans = walk_attributes(self._wire)
        return self._spans

    @property
    def processed(self) -> tuple[Attribute, ...]:
        """The attributes that a receiver looks at (RFC 8489 section 9).

        Behind MESSAGE-INTEGRITY only MESSAGE-INTEGRITY-SHA256 and FINGERPRINT count, behind
        MESSAGE-INTEGRITY-SHA256 only FINGERPRINT: the rest could have been added by anyone.
        """
        attributes = self.attributes
        counted = processed_indices([a.type for a in attributes])
        if len(counted) == len(attributes):
            return attributes
        return tuple([attributes[i] for i in counted])

    def get(self, kind: type[AttributeT]) -> AttributeT | None:
        """Return the first of the processed attributes of a class: the one that counts.

        >>> from pktstun.stun import Software
        >>> Message.request(Software("first"), Software("second")).get(Software)
        Software(text='first')
        """
        if self._attributes is not None or kind not in _TYPES:
            return next(iter(self.get_all(kind)), None)
        # One of many that nobody has looked at: no need to build the others.
        wanted = _TYPES[kind]
        spans = self._layout()
        for i in processed_indices([span[0] for span in spans]):
            found, start, length = spans[i]
            if found == wanted:
                value = self._wire[start : start + length]
                return cast("AttributeT", build_attribute(found, value, self._transaction_id))
        return None

    def get_all(self, kind: type[AttributeT]) -> tuple[AttributeT, ...]:
        """Return the processed attributes of a class, where a usage lets one be repeated."""
        return tuple(a for a in self.processed if isinstance(a, kind))

    @property
    def unknown_required(self) -> tuple[AttributeType, ...]:
        """The types that must be understood and that the codec does not know, each once.

        Whoever receives a request with one answers with 420 (RFC 8489 section 6.3.1), and
        takes a response with one for a failure (section 6.3.3). An application that does
        not know all that the codec knows looks at `processed` itself.
        """
        found = {
            a.type: None
            for a in self.processed
            if isinstance(a, RawAttribute) and a.type < COMPREHENSION_OPTIONAL
        }
        return tuple(found)

    @property
    def mapped_address(self) -> TransportAddress | None:
        """The client's address: XOR-MAPPED-ADDRESS, else MAPPED-ADDRESS, else None."""
        found = self.get(XorMappedAddress) or self.get(MappedAddress)
        return found.address if found else None

    @property
    def error(self) -> ErrorCode | None:
        """The error of an error response, or None."""
        return self.get(ErrorCode)

    @property
    def has_fingerprint(self) -> bool:
        """Whether there is a FINGERPRINT; it has been checked."""
        if self._attributes is not None:
            return bool(self._attributes) and self._attributes[-1].type == _FINGERPRINT
        spans = self._layout()
        return bool(spans) and spans[-1][0] == _FINGERPRINT

    # --- Protection ---

    def with_message_integrity(self, key: bytes) -> Self:
        """Return this message with MESSAGE-INTEGRITY (HMAC-SHA1) at its end.

        Args:
            key: see `short_term_key` and `long_term_key`.

        Raises:
            StunError: there is an integrity or FINGERPRINT already, or no room.
        """
        self._check_open(_PROTECTION)
        covered = with_room(self._wire, ATTRIBUTE_HEADER_SIZE + INTEGRITY_SIZE)
        value = message_integrity(key, covered)
        return self._with(
            (*self.attributes, MessageIntegrity.build(value, b"")),
            covered + _INTEGRITY_HEADER + value,
        )

    def with_message_integrity_sha256(self, key: bytes, length: int = 32) -> Self:
        """Return this message with MESSAGE-INTEGRITY-SHA256 at its end.

        Args:
            key: see `short_term_key` and `long_term_key`.
            length: bytes of the HMAC-SHA256 to send, 16 to 32, a multiple of 4; less than
                all only where the usage of STUN says so.

        Raises:
            StunError: there is one or FINGERPRINT already, or in a response any integrity; a
                wrong length, or no room.
        """
        # RFC 8489 section 9.1.3: a response has one of the two.
        both = self._message_class in {_REQUEST, Class.INDICATION}
        self._check_open(_PROTECTION - {_INTEGRITY} if both else _PROTECTION)
        check_sha256_size(length)
        covered = with_room(self._wire, ATTRIBUTE_HEADER_SIZE + length)
        value = message_integrity_sha256(key, covered, length)
        return self._with(
            (*self.attributes, MessageIntegritySha256.build(value, b"")),
            covered + write_attribute_header(_INTEGRITY_SHA256, length) + value,
        )

    def check_message_integrity(self, key: bytes, *, minimum_length: int = 32) -> bool:
        """Return whether the message was made by someone who has the key.

        MESSAGE-INTEGRITY-SHA256 is checked where it is present, else MESSAGE-INTEGRITY (RFC
        8489 sections 9.1.3 and 9.2.4). Without either the answer is False. The comparison
        takes the same time whatever differs. A client that sent one of the two looks with
        `get` whether the response has the same (section 9.1.4).

        >>> request = Message.request().with_message_integrity(b"secret")
        >>> request.check_message_integrity(b"secret"), request.check_message_integrity(b"guess")
        (True, False)

        Args:
            key: see `short_term_key` and `long_term_key`.
            minimum_length: bytes of MESSAGE-INTEGRITY-SHA256 that are asked for; less than
                32 only where the usage of STUN lets it be cut short.
        """
        found = None
        for span in self._layout():
            if span[0] == _INTEGRITY_SHA256:
                found = span
                break
            if span[0] == _INTEGRITY and found is None:
                found = span
        if found is None:
            return False
        kind, start, length = found
        header = start - ATTRIBUTE_HEADER_SIZE
        covered = with_room(self._wire[:header], ATTRIBUTE_HEADER_SIZE + length)
        if kind == _INTEGRITY:
            expected = message_integrity(key, covered)
        elif length < minimum_length:
            return False
        else:
            expected = message_integrity_sha256(key, covered, length)
        return hmac.compare_digest(expected, self._wire[start : start + length])

    def with_fingerprint(self) -> Self:
        """Return this message with FINGERPRINT at its end, in place of one that is there.

        Raises:
            StunError: there is no room for it.
        """
        size = ATTRIBUTE_HEADER_SIZE + FINGERPRINT_SIZE
        attributes, wire = self.attributes, self._wire
        if self.has_fingerprint:
            attributes, wire = attributes[:-1], wire[:-size]
        covered = with_room(wire, size)
        value = fingerprint(covered).to_bytes(FINGERPRINT_SIZE)
        return self._with(
            (*attributes, Fingerprint.build(value, b"")), covered + _FINGERPRINT_HEADER + value
        )

    def _with(self, attributes: tuple[Attribute, ...], wire: bytes) -> Self:
        return self._made(self._message_class, self._method, self._transaction_id, attributes, wire)

    def _check_open(self, kinds: frozenset[int]) -> None:
        for attribute in self.attributes:
            if attribute.type in kinds:
                raise StunError(f"the message has {attribute.type.label} already")

    def _check_rules(self) -> None:
        kinds = [a.type for a in self.attributes]
        counted = processed_indices(kinds)
        if len(counted) != len(kinds):
            ignored = set(range(len(kinds))).difference(counted)
            raise StunError(f"{kinds[min(ignored)].label} would be ignored behind the integrity")
        if AttributeType.FINGERPRINT in kinds:
            _check_fingerprint(self._wire, self._layout())
        is_response = self._message_class not in {_REQUEST, Class.INDICATION}
        if is_response and BEHIND.keys() <= set(kinds):
            raise StunError("a response has one of the two integrities, not both")
        error = self.get(ErrorCode)
        if self._message_class is _ERROR and error is None:
            raise StunError("an error response needs an ErrorCode")
        if self._message_class is not _ERROR and error is not None:
            raise StunError("ERROR-CODE is for error responses only")
        code = error.code if error else 0
        if code == 300 and self.get(AlternateServer) is None:
            raise StunError("the error code 300 needs an AlternateServer")
        if (code == 420) != (self.get(UnknownAttributes) is not None):
            raise StunError("UNKNOWN-ATTRIBUTES and the error code 420 need each other")
        if self._message_class is not _REQUEST and self.get(PasswordAlgorithm) is not None:
            raise StunError("PASSWORD-ALGORITHM is for requests only")

    # --- A value ---

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return (
            self._transaction_id == other._transaction_id
            and self._message_class == other._message_class
            and self._method == other._method
            and self.attributes == other.attributes
        )

    def __hash__(self) -> int:
        return hash((self._transaction_id, self._message_class, self._method, self.attributes))

    def __repr__(self) -> str:
        return (
            f"Message(message_class={self._message_class!r}, method={self._method!r}, "
            f"transaction_id={self._transaction_id!r}, attributes={self.attributes!r})"
        )


def _join(message_class: int, method: int) -> tuple[Class, Method, int]:
    try:
        return Class(message_class), Method(method), join_type(method, message_class)
    except ValueError as error:
        raise StunError(str(error)) from error


def _split(field: int) -> tuple[Class, Method]:
    method, message_class = split_type(field)
    return Class(message_class), Method(method)


def _check_fingerprint(wire: bytes, spans: list[Span]) -> None:
    """Raise StunError where there is a FINGERPRINT that is not last or not right."""
    if wire.find(_FINGERPRINT_HEADER) != len(wire) - len(_FINGERPRINT_HEADER) - FINGERPRINT_SIZE:
        for kind, start, _ in spans[:-1]:
            if kind == _FINGERPRINT:
                raise StunError("FINGERPRINT is not the last attribute", start)
    kind, start, _ = spans[-1]
    if kind == _FINGERPRINT and fingerprint(wire[:-8]) != int.from_bytes(wire[-4:]):
        raise StunError("FINGERPRINT does not match the message", start)
