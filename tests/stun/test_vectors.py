"""The messages of RFC 5769 and RFC 8489 B.1: to the byte, cut everywhere, with any bit flipped."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from pktstun.stun import (
    Fingerprint,
    Message,
    MessageIntegrity,
    MessageIntegritySha256,
    Method,
    SecurityFeature,
    StunError,
    long_term_key,
    opaque_string,
    respond,
    short_term_key,
    userhash,
)
from tests.strategies.datagrams import attribute, fingerprinted, message, with_length
from tests.vectors import VECTORS, Vector

vectors = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)

SHA1, SHA256 = 0x0008, 0x001C


def integrity_at(vector: Vector) -> int:
    """Return the offset of the integrity attribute's header."""
    behind = 8 if vector.fingerprint else 0
    return len(vector.data) - behind - (24 if vector.integrity == SHA1 else 36)


def signed(covered: bytes, vector: Vector) -> bytes:
    """Return a message with what the vector ends in, computed with the standard library alone."""
    digest, size = (hashlib.sha1, 20) if vector.integrity == SHA1 else (hashlib.sha256, 32)
    covered = with_length(covered, len(covered) - 20 + 4 + size)
    data = covered + attribute(vector.integrity, hmac.digest(vector.key, covered, digest))
    return fingerprinted(data) if vector.fingerprint else data


def protect(bare: Message, vector: Vector) -> Message:
    if vector.integrity == SHA1:
        bare = bare.with_message_integrity(vector.key)
    else:
        bare = bare.with_message_integrity_sha256(vector.key)
    return bare.with_fingerprint() if vector.fingerprint else bare


@vectors
def test_no_digit_is_mistyped(vector: Vector) -> None:
    """The HMAC proves every byte in front of it, and the CRC those behind."""
    assert signed(vector.data[: integrity_at(vector)], vector) == vector.data


@vectors
def test_the_values_are_those_that_the_rfc_names(vector: Vector) -> None:
    decoded = Message.decode(vector.data)
    assert decoded.message_class is vector.message_class
    assert decoded.method is Method.BINDING
    assert decoded.transaction_id == vector.transaction_id
    count = len(vector.attributes)
    assert decoded.attributes[:count] == vector.attributes
    end = vector.data[integrity_at(vector) + 4 :]
    protection = (
        MessageIntegrity(end[:20]) if vector.integrity == SHA1 else MessageIntegritySha256(end[:32])
    )
    crc = (Fingerprint(int.from_bytes(end[-4:], "big")),) if vector.fingerprint else ()
    assert decoded.attributes[count:] == (protection, *crc)
    assert decoded.processed == decoded.attributes
    assert decoded.check_message_integrity(vector.key)


@vectors
def test_it_is_decoded_and_encoded_to_the_same_bytes(vector: Vector) -> None:
    assert Message.decode(vector.data).encode() == vector.data


@vectors
def test_it_is_signed_to_the_same_bytes(vector: Vector) -> None:
    """From what stands in front of the integrity, with the padding that the sender chose."""
    at = integrity_at(vector)
    bare = Message.decode(with_length(vector.data[:at], at - 20))
    assert bare.attributes == vector.attributes
    assert protect(bare, vector).encode() == vector.data


@vectors
def test_it_is_built_of_values_to_the_same_bytes(vector: Vector) -> None:
    """RFC 8489 section 14 wants zeros as padding; where the vector has spaces, that differs."""
    bare = Message(vector.message_class, Method.BINDING, vector.transaction_id, vector.attributes)
    values = [(a.type, a.encode(vector.transaction_id)) for a in vector.attributes]
    as_sent = message(
        *(attribute(kind, value, 3 * vector.padding) for kind, value in values),
        field=int.from_bytes(vector.data[:2], "big"),
        transaction_id=vector.transaction_id,
    )
    with_zeros = message(
        *(attribute(kind, value) for kind, value in values),
        field=int.from_bytes(vector.data[:2], "big"),
        transaction_id=vector.transaction_id,
    )
    assert signed(as_sent, vector) == vector.data
    assert bare.encode() == with_zeros
    assert protect(bare, vector).encode() == signed(with_zeros, vector)
    if vector.padding == b"\0":
        assert protect(bare, vector).encode() == vector.data


@vectors
def test_cut_at_any_length_it_is_none(vector: Vector) -> None:
    for size in range(len(vector.data)):
        with pytest.raises(StunError) as caught:
            Message.decode(vector.data[:size])
        assert caught.value.offset is not None
    for size in range(20, len(vector.data), 4):
        # With a true length a message may end at any attribute; what protected it is gone.
        shorter = with_length(vector.data[:size], size - 20)
        try:
            decoded = Message.decode(shorter)
        except StunError:
            continue
        assert not decoded.has_fingerprint
        assert decoded.check_message_integrity(vector.key) == (size == len(vector.data) - 8)
        assert decoded.encode() == shorter


@vectors
def test_no_flipped_bit_is_believed(vector: Vector) -> None:
    end = integrity_at(vector) + (24 if vector.integrity == SHA1 else 36)
    for bit in range(8 * len(vector.data)):
        flipped = bytearray(vector.data)
        flipped[bit // 8] ^= 0x80 >> bit % 8
        try:
            decoded = Message.decode(flipped)
        except StunError:
            continue
        # Three ways to pass: there is no FINGERPRINT to begin with, it has become another
        # type, or part of a longer neighbour. Whoever asks for it refuses the last two.
        assert not decoded.has_fingerprint
        # The integrity covers all in front of it, and itself.
        if bit // 8 < end:
            assert not decoded.check_message_integrity(vector.key, minimum_length=16)
        assert decoded.encode() == flipped


@vectors
def test_another_key_is_wrong(vector: Vector) -> None:
    decoded = Message.decode(vector.data)
    for key in (
        b"",
        vector.key[:-1],
        vector.key + b"\0",
        bytes([vector.key[0] ^ 1]) + vector.key[1:],
    ):
        # HMAC pads a short key with zeros: that one is the same key (RFC 2104 section 2).
        same = key.rstrip(b"\0") == vector.key.rstrip(b"\0")
        assert decoded.check_message_integrity(key) == same


def test_the_keys_are_made_as_the_rfcs_say() -> None:
    ice, _, _, long_term, sha256 = VECTORS
    user = "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"
    assert short_term_key("VOkJxbRl1RmTxUk/WvJxBt") == ice.key
    assert long_term_key(user, "example.org", "TheMatrIX") == long_term.key
    assert long_term_key(user, "example.org", "TheMatrIX", 2) == sha256.key
    assert userhash(user, "example.org") == sha256.data[24:56]
    nonce = Message.decode(sha256.data).attributes[1]
    assert getattr(nonce, "security_features", None) == SecurityFeature.USERNAME_ANONYMITY


def test_the_password_before_saslprep_is_none_of_opaquestring() -> None:
    """RFC 8489 B.1 gives it for the same as TheMatrIX; the profile forbids the soft hyphen."""
    with pytest.raises(StunError, match="OpaqueString does not allow"):
        opaque_string("The\u00adM\u00aatr\u2168")
    assert opaque_string("M\u00aatr\u2168") == "M\u00aatr\u2168"


def test_a_server_answers_the_requests() -> None:
    """It knows no credentials, and their attributes do not keep it from answering."""
    for vector in VECTORS[0], VECTORS[3], VECTORS[4]:
        address = Message.decode(VECTORS[1].data).mapped_address
        assert address is not None
        reply = respond(vector.data, address, address._replace(port=3478))
        decoded = Message.decode(getattr(reply, "datagram", b""))
        assert decoded.mapped_address == address
        assert decoded.has_fingerprint == vector.fingerprint
