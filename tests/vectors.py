"""The messages of RFC 5769 and RFC 8489 appendix B.1, typed off and signed by their own proof.

Every one ends in an HMAC, so that a mistyped digit would be found: `tests.stun.test_vectors`
computes it without the codec. What the RFC says of the sender stands beside the bytes.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from pktstun.stun import (
    Attribute,
    Class,
    IceControlled,
    Nonce,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
    Priority,
    Realm,
    Software,
    TransportAddress,
    UserHash,
    Username,
    XorMappedAddress,
)


class Vector(NamedTuple):
    """A message, what it says in front of its integrity, and the key."""

    name: str
    message_class: Class
    transaction_id: bytes
    attributes: tuple[Attribute, ...]
    key: bytes
    padding: bytes
    """The byte that the sender padded with: RFC 5389 let it be any."""
    integrity: int
    """Type of the integrity attribute."""
    fingerprint: bool
    data: bytes


_ICE_ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
_TURN_ID = bytes.fromhex("78ad3433c6ad72c029da412e")
_PASSWORD = b"VOkJxbRl1RmTxUk/WvJxBt"
_USER = "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"
# After SASLprep; the RFCs also give a spelling before it, which OpaqueString forbids.
_LONG_TERM = f"{_USER}:example.org:TheMatrIX".encode()

# RFC 5769 section 2.1: a request with short-term credentials. Padding is of spaces.
REQUEST = bytes.fromhex(
    "0001 0058 2112a442 b7e7a701bc34d686fa87dfae"
    "8022 0010 5354554e207465737420636c69656e74"
    "0024 0004 6e0001ff"
    "8029 0008 932ff9b151263b36"
    "0006 0009 6576746a3a68367659 202020"
    "0008 0014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "8028 0004 e57a3bcf"
)

# RFC 5769 sections 2.2 and 2.3: its answers over IPv4 and IPv6.
RESPONSE_IPV4 = bytes.fromhex(
    "0101 003c 2112a442 b7e7a701bc34d686fa87dfae"
    "8022 000b 7465737420766563746f72 20"
    "0020 0008 0001a147e112a643"
    "0008 0014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "8028 0004 c07d4c96"
)
RESPONSE_IPV6 = bytes.fromhex(
    "0101 0048 2112a442 b7e7a701bc34d686fa87dfae"
    "8022 000b 7465737420766563746f72 20"
    "0020 0014 0002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "0008 0014 a382954e4be67bf11784c97c8292c275bfe3ed41"
    "8028 0004 c8fb0b4c"
)

# RFC 5769 section 2.4: a request with long-term credentials. Padding is of zeros.
LONG_TERM_REQUEST = bytes.fromhex(
    "0001 0060 2112a442 78ad3433c6ad72c029da412e"
    "0006 0012 e3839ee38388e383aae38383e382afe382b9 0000"
    "0015 001c 662f2f3439396b39353464364f4c33346f4c394653547679363473 41"
    "0014 000b 6578616d706c652e6f7267 00"
    "0008 0014 f67024656dd64a3e02b8e0712e85c9a28ca89666"
)

# RFC 8489 appendix B.1 as corrected by the errata; the bytes in the RFC itself do not verify.
SHA256_REQUEST = bytes.fromhex(
    "0001 0090 2112a442 78ad3433c6ad72c029da412e"
    "001e 0020 4a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704"
    "0015 0029 6f624d61744a6f73324141414366 2f2f3439396b39353464364f4c33346f4c39465354767936347341"
    "000000"
    "0014 000b 6578616d706c652e6f7267 00"
    "001d 0004 0002 0000"
    "001c 0020 b5c7bf005b6c52a21c51c5e892f81924136296cb927c43149309278cc6518e65"
)

_SOFTWARE = Software("test vector")
VECTORS = (
    Vector(
        "RFC 5769 2.1",
        Class.REQUEST,
        _ICE_ID,
        (
            Software("STUN test client"),
            Priority(0x6E0001FF),
            IceControlled(0x932FF9B151263B36),
            Username("evtj:h6vY"),
        ),
        _PASSWORD,
        b" ",
        0x0008,
        fingerprint=True,
        data=REQUEST,
    ),
    Vector(
        "RFC 5769 2.2",
        Class.SUCCESS,
        _ICE_ID,
        (_SOFTWARE, XorMappedAddress(TransportAddress.parse("192.0.2.1:32853"))),
        _PASSWORD,
        b" ",
        0x0008,
        fingerprint=True,
        data=RESPONSE_IPV4,
    ),
    Vector(
        "RFC 5769 2.3",
        Class.SUCCESS,
        _ICE_ID,
        (
            _SOFTWARE,
            XorMappedAddress(
                TransportAddress.parse("[2001:db8:1234:5678:11:2233:4455:6677]:32853")
            ),
        ),
        _PASSWORD,
        b" ",
        0x0008,
        fingerprint=True,
        data=RESPONSE_IPV6,
    ),
    Vector(
        "RFC 5769 2.4",
        Class.REQUEST,
        _TURN_ID,
        (Username(_USER), Nonce("f//499k954d6OL34oL9FSTvy64sA"), Realm("example.org")),
        hashlib.md5(_LONG_TERM).digest(),
        b"\0",
        0x0008,
        fingerprint=False,
        data=LONG_TERM_REQUEST,
    ),
    Vector(
        "RFC 8489 B.1",
        Class.REQUEST,
        _TURN_ID,
        (
            UserHash(hashlib.sha256(f"{_USER}:example.org".encode()).digest()),
            Nonce("obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA"),
            Realm("example.org"),
            PasswordAlgorithm(PasswordAlgorithmNumber.SHA_256),
        ),
        hashlib.sha256(_LONG_TERM).digest(),
        b"\0",
        0x001C,
        fingerprint=False,
        data=SHA256_REQUEST,
    ),
)
