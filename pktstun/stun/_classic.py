"""Responses to clients of RFC 3489, "classic STUN", which knew no magic cookie.

The cookie's place is part of their transaction id, which has 16 bytes. They know IPv4 only, and
the address in MAPPED-ADDRESS is as it is. SOURCE-ADDRESS and CHANGED-ADDRESS are what RFC 5780
calls RESPONSE-ORIGIN and OTHER-ADDRESS. RESPONSE-ADDRESS is never honoured: it would have the
server send wherever a client wants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._attributes import MappedAddress
from ._types import HEADER_SIZE, AttributeType, Class, Method, join_type
from ._wire import ATTRIBUTE_HEADER_SIZE, write_attribute_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._forms import Attribute
    from ._types import TransportAddress

KNOWN = frozenset({AttributeType.USERNAME, AttributeType.MESSAGE_INTEGRITY})
"""Known and of no meaning: passwords came from shared secret requests, which nobody serves."""


def success(
    request: bytes,
    client: TransportAddress,
    origin: TransportAddress,
    changed: TransportAddress | None,
) -> bytes:
    """Return the Binding response (RFC 3489 section 8.1).

    Args:
        request: gives the transaction id.
        client: for MAPPED-ADDRESS.
        origin: for SOURCE-ADDRESS.
        changed: for CHANGED-ADDRESS; None where there is no other address.
    """
    attributes = [_address(AttributeType.MAPPED_ADDRESS, client)]
    attributes.append(_address(AttributeType.SOURCE_ADDRESS, origin))
    if changed is not None:
        attributes.append(_address(AttributeType.CHANGED_ADDRESS, changed))
    return _response(Class.SUCCESS, request, b"".join(attributes))


def error(request: bytes, attributes: Sequence[Attribute]) -> bytes:
    """Return the Binding error response (RFC 3489 section 8.1).

    Args:
        request: gives the transaction id.
        attributes: ERROR-CODE, and UNKNOWN-ATTRIBUTES with a 420: an odd number of types becomes
            even by giving the last one twice (section 11.2.10).
    """
    encoded = b""
    for attribute in attributes:
        value = attribute.encode(b"")
        value += value[-2:] if len(value) % 4 else b""
        encoded += write_attribute_header(attribute.type, len(value)) + value
    return _response(Class.ERROR, request, encoded)


def _address(kind: AttributeType, address: TransportAddress) -> bytes:
    value = MappedAddress(address).encode(b"")
    return write_attribute_header(kind, len(value)) + value


def _response(message_class: Class, request: bytes, attributes: bytes) -> bytes:
    head = join_type(Method.BINDING, message_class).to_bytes(2) + len(attributes).to_bytes(2)
    return head + request[ATTRIBUTE_HEADER_SIZE:HEADER_SIZE] + attributes
