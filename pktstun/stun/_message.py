"""A STUN message as a value: class, method, transaction id, and attributes in order.

Attributes are a tuple and not a mapping: order matters (FINGERPRINT is last), duplicates
occur on the wire (the first counts), and unknown ones must survive, since a 420 has to
name them. `decode` and `encode` are inverse to each other for every message whose padding
is zero, as senders must make it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeVar

from pktstun.errors import StunError

from ._attributes import (
    Attribute,
    ErrorCode,
    Fingerprint,
    MappedAddress,
    XorMappedAddress,
    decode_attribute,
)
from ._integrity import FINGERPRINT_SIZE, fingerprint
from ._types import (
    TRANSACTION_ID_SIZE,
    AttributeType,
    Class,
    Method,
    TransportAddress,
    join_type,
)
from ._wire import as_bytes, read_header, walk_attributes, write_attribute, write_message

if TYPE_CHECKING:
    from typing_extensions import Buffer

AttributeT = TypeVar("AttributeT")


def new_transaction_id() -> bytes:
    """Return 12 bytes from the system's cryptographic generator (RFC 8489 section 5)."""
    return secrets.token_bytes(TRANSACTION_ID_SIZE)


@dataclass(frozen=True, slots=True)
class Message:
    """A STUN message (RFC 8489 section 5).

    Args:
        message_class: request, indication, success or error response.
        method: what it is about; 12 bits.
        transaction_id: 12 bytes that a response copies from its request.
        attributes: in the order in which they are sent.

    Raises:
        StunError: a part has the wrong size, the attributes do not fit, or FINGERPRINT is
            not last or does not match.
    """

    message_class: Class
    method: Method = Method.BINDING
    transaction_id: bytes = field(default_factory=new_transaction_id)
    attributes: tuple[Attribute, ...] = ()

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "message_class", Class(self.message_class))
            object.__setattr__(self, "method", Method(self.method))
        except ValueError as error:
            raise StunError(str(error)) from error
        object.__setattr__(self, "attributes", tuple(self.attributes))
        object.__setattr__(self, "transaction_id", bytes(self.transaction_id))
        if len(self.transaction_id) != TRANSACTION_ID_SIZE:
            raise StunError(f"a transaction id has 12 bytes, not {len(self.transaction_id)}")
        _check_fingerprint(self.encode())

    @classmethod
    def request(cls, *attributes: Attribute, transaction_id: bytes | None = None) -> Self:
        """Return a Binding request, with a random transaction id unless one is given."""
        chosen = new_transaction_id() if transaction_id is None else transaction_id
        return cls(Class.REQUEST, Method.BINDING, chosen, attributes)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """Return the message that fills the buffer exactly.

        FINGERPRINT is checked if it is there. Padding is ignored, as receivers must.

        Args:
            data: any contiguous bytes-like object; it is not changed or kept.

        Raises:
            StunError: the bytes are no STUN message; `offset` says where.
        """
        view = as_bytes(data)
        header = read_header(view)
        attributes = []
        for span in walk_attributes(view):
            value = view[span.start : span.start + span.length]
            try:
                attributes.append(decode_attribute(span.type, value, header.transaction_id))
            except StunError as error:
                name = AttributeType(span.type).name
                raise StunError(f"{name}: {error}", span.start) from error
        _check_fingerprint(view)
        # Built past __post_init__: everything it would check has just been checked.
        message = object.__new__(cls)
        object.__setattr__(message, "message_class", Class(header.message_class))
        object.__setattr__(message, "method", Method(header.method))
        object.__setattr__(message, "transaction_id", header.transaction_id)
        object.__setattr__(message, "attributes", tuple(attributes))
        return message

    def encode(self) -> bytes:
        """Return the message as it is sent.

        Raises:
            StunError: the attributes do not fit a message.
        """
        return self._encode_with(self.attributes)

    def with_fingerprint(self) -> Self:
        """Return this message with FINGERPRINT at its end, in place of one that is there.

        Raises:
            StunError: there is no room for it.
        """
        attributes = tuple(a for a in self.attributes if not isinstance(a, Fingerprint))
        # The CRC counts the attribute's own size in the header's length field.
        covered = self._encode_with((*attributes, Fingerprint(0)))[:-FINGERPRINT_SIZE]
        return type(self)(
            self.message_class,
            self.method,
            self.transaction_id,
            (*attributes, Fingerprint(fingerprint(covered))),
        )

    def _encode_with(self, attributes: tuple[Attribute, ...]) -> bytes:
        return write_message(
            join_type(self.method, self.message_class),
            self.transaction_id,
            b"".join(
                write_attribute(attribute.type, attribute.encode(self.transaction_id))
                for attribute in attributes
            ),
        )

    def get(self, kind: type[AttributeT]) -> AttributeT | None:
        """Return the first attribute of a class: of duplicates the first counts."""
        return next((a for a in self.attributes if isinstance(a, kind)), None)

    @property
    def mapped_address(self) -> TransportAddress | None:
        """The client's address: XOR-MAPPED-ADDRESS, else MAPPED-ADDRESS, else None."""
        found = self.get(XorMappedAddress) or self.get(MappedAddress)
        return found.address if found else None

    @property
    def has_fingerprint(self) -> bool:
        """Whether there is a FINGERPRINT; it has been checked."""
        return self.get(Fingerprint) is not None

    @property
    def error(self) -> ErrorCode | None:
        """The error of an error response, or None."""
        return self.get(ErrorCode)


def _check_fingerprint(data: Buffer) -> None:
    view = as_bytes(data)
    for span in walk_attributes(view):
        if span.type != AttributeType.FINGERPRINT:
            continue
        if span.end != len(view):
            raise StunError("FINGERPRINT is not the last attribute", span.start - 4)
        if fingerprint(view[: span.start - 4]) != int.from_bytes(view[span.start : span.end]):
            raise StunError("FINGERPRINT does not match the message", span.start)
