"""FINGERPRINT and integrity: no bit of a message that they cover can change unnoticed."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pktstun.stun import (
    Class,
    Fingerprint,
    Message,
    MessageIntegrity,
    MessageIntegritySha256,
    Padding,
    Software,
    StunError,
    fingerprint,
    message_integrity,
    message_integrity_sha256,
)
from tests.strategies.datagrams import (
    FINGERPRINT,
    SOFTWARE,
    attribute,
    datagrams,
    fingerprint_of,
    fingerprinted,
    message,
    with_fingerprint_of_length,
    with_length,
)
from tests.strategies.stun import keys, messages, unprotected_messages


def crc32(data: bytes) -> int:
    """ITU V.42 section 8.1.1.6.2 as the textbooks have it: bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@given(st.binary(max_size=64))
@example(b"")
@example(b"123456789")
def test_fingerprint_is_the_textbook_crc(data: bytes) -> None:
    assert crc32(b"123456789") == 0xCBF43926
    assert fingerprint(data) == crc32(data) ^ 0x5354554E
    assert fingerprint(bytearray(data)) == fingerprint(memoryview(data)) == fingerprint(data)


# --- Messages with FINGERPRINT ---


@given(messages())
def test_with_fingerprint_adds_the_right_one_at_the_end(drawn: Message) -> None:
    bare = message_without_fingerprint(drawn)
    protected = bare.with_fingerprint()
    assert protected.encode() == fingerprinted(bare.encode())
    assert protected.attributes[:-1] == bare.attributes
    assert protected.has_fingerprint
    assert not bare.has_fingerprint
    assert Message.decode(protected.encode()) == protected


def message_without_fingerprint(drawn: Message) -> Message:
    attributes = tuple(a for a in drawn.attributes if not isinstance(a, Fingerprint))
    return Message(drawn.message_class, drawn.method, drawn.transaction_id, attributes)


@given(datagrams())
def test_with_fingerprint_keeps_what_was_received(data: bytes) -> None:
    try:
        decoded = Message.decode(data)
    except StunError:
        return
    bare = with_length(data[:-8], len(data) - 28) if decoded.has_fingerprint else data
    assert decoded.with_fingerprint().encode() == fingerprinted(bare)


@given(messages())
def test_with_fingerprint_twice_is_once(drawn: Message) -> None:
    once = drawn.with_fingerprint()
    assert once.with_fingerprint() == once
    assert (once == drawn) is drawn.has_fingerprint


def flip(data: bytes, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 0x80 >> bit % 8
    return bytes(flipped)


def assert_no_flip_is_believed(data: bytes, bit: int) -> None:
    try:
        decoded = Message.decode(flip(data, bit))
    except StunError:
        return
    # Two ways to pass: FINGERPRINT has become another type, or part of a longer neighbour.
    # Whoever asks for FINGERPRINT refuses both.
    assert not decoded.has_fingerprint


@given(messages(), st.data())
def test_no_flipped_bit_is_believed(drawn: Message, data: st.DataObject) -> None:
    encoded = drawn.with_fingerprint().encode()
    assert_no_flip_is_believed(encoded, data.draw(st.integers(0, 8 * len(encoded) - 1)))


@given(st.integers(1, 0xFFFFFFFF))
@example(0x5354554E)  # a bare CRC-32
def test_any_other_value_is_wrong(difference: int) -> None:
    covered = with_length(message(), 8)
    right = crc32(covered) ^ 0x5354554E
    assert Message.decode(covered + attribute(FINGERPRINT, right.to_bytes(4, "big")))
    wrong = right ^ difference
    with pytest.raises(StunError, match="does not match") as caught:
        Message.decode(covered + attribute(FINGERPRINT, wrong.to_bytes(4, "big")))
    assert caught.value.offset == 24


def test_a_fingerprint_that_is_not_last_is_refused() -> None:
    for behind in (attribute(SOFTWARE, b"abc"), attribute(FINGERPRINT, bytes(4))):
        # Its value is right: its place alone is to blame.
        covered = with_length(message(attribute(SOFTWARE)), 4 + 8 + len(behind))
        data = covered + attribute(FINGERPRINT, fingerprint_of(covered)) + behind
        with pytest.raises(StunError, match="not the last") as caught:
            Message.decode(data)
        assert caught.value.offset == 28


@pytest.mark.parametrize("kind", [0x0777, 0x8027, 0x8029, 0x8777])
def test_bytes_that_look_like_a_fingerprint_are_none(kind: int) -> None:
    header = attribute(FINGERPRINT, bytes(4))
    inside = attribute(kind, header)
    if kind != 0x8029:  # which is a number of 8 bytes
        assert not Message.decode(message(inside)).has_fingerprint
        assert Message.decode(fingerprinted(message(inside))).has_fingerprint
    assert Message.decode(message(transaction_id=header + bytes(4))).attributes == ()
    assert not Message.decode(message(attribute(0x8029, header))).has_fingerprint


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8])
def test_a_fingerprint_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(StunError, match=f"FINGERPRINT has {size} bytes") as caught:
        Message.decode(with_fingerprint_of_length(message(), size))
    assert caught.value.offset == 24


def test_a_message_with_a_wrong_fingerprint_is_not_made() -> None:
    protected = Message.request(Software("a"), transaction_id=bytes(12)).with_fingerprint()
    *others, right = protected.attributes
    assert isinstance(right, Fingerprint)
    assert Message.request(*others, right, transaction_id=bytes(12)) == protected
    with pytest.raises(StunError, match="does not match"):
        Message.request(*others, Fingerprint(right.value ^ 1), transaction_id=bytes(12))
    with pytest.raises(StunError, match="does not match"):
        Message.request(*others, right, transaction_id=bytes(11) + b"\1")
    with pytest.raises(StunError, match="not the last"):
        Message.request(right, *others, transaction_id=bytes(12))
    with pytest.raises(StunError, match="not the last"):
        Message.request(*others, right, right, transaction_id=bytes(12))


def test_fingerprint_needs_eight_bytes_of_room() -> None:
    # A body has at most 65532 bytes: room for 65520 of value beside both headers.
    fits = Message.request(Padding(bytes(65520)))
    assert len(fits.with_fingerprint().encode()) == 20 + 65532
    for size in (65524, 65528):
        full = Message.request(Padding(bytes(size)))
        with pytest.raises(StunError, match=f"{size + 12} bytes of attributes"):
            full.with_fingerprint()


# --- The integrity attributes ---

sizes = st.sampled_from([16, 20, 24, 28, 32])


def mac(digest: str, key: bytes, data: bytes, size: int) -> bytes:
    """RFC 2104, as RFC 8489 section 14.5 and 14.6 apply it: the length counts the attribute."""
    covered = with_length(data, len(data) - 20 + 4 + size)
    block = key if len(key) <= 64 else hashlib.new(digest, key).digest()
    block = block.ljust(64, b"\0")
    inner = hashlib.new(digest, bytes(byte ^ 0x36 for byte in block) + covered).digest()
    outer = hashlib.new(digest, bytes(byte ^ 0x5C for byte in block) + inner).digest()
    return outer[:size]


@given(unprotected_messages(), keys)
def test_message_integrity_is_the_textbook_hmac(bare: Message, key: bytes) -> None:
    signed = bare.with_message_integrity(key)
    value = mac("sha1", key, bare.encode(), 20)
    assert signed.attributes == (*bare.attributes, MessageIntegrity(value))
    data = bare.encode() + attribute(0x0008, value)
    assert signed.encode() == with_length(data, len(data) - 20)
    assert message_integrity(key, with_length(bare.encode(), len(bare.encode()) + 4)) == value
    assert Message.decode(signed.encode()) == signed


@given(unprotected_messages(), keys, sizes)
def test_message_integrity_sha256_is_the_textbook_hmac(
    bare: Message, key: bytes, size: int
) -> None:
    signed = bare.with_message_integrity_sha256(key, size)
    value = mac("sha256", key, bare.encode(), size)
    assert signed.attributes == (*bare.attributes, MessageIntegritySha256(value))
    data = bare.encode() + attribute(0x001C, value)
    assert signed.encode() == with_length(data, len(data) - 20)
    covered = with_length(bare.encode(), len(bare.encode()) - 20 + 4 + size)
    assert message_integrity_sha256(key, covered, size) == value
    assert message_integrity_sha256(key, covered)[:size] == value
    assert Message.decode(signed.encode()) == signed
    assert signed == bare.with_message_integrity_sha256(key) if size == 32 else True


def all_signed(bare: Message, key: bytes, size: int) -> list[Message]:
    """Return the message with either integrity, and with both where that is allowed."""
    sha1 = bare.with_message_integrity(key)
    signed = [sha1, bare.with_message_integrity_sha256(key, size)]
    if bare.message_class in {Class.REQUEST, Class.INDICATION}:
        return [*signed, sha1.with_message_integrity_sha256(key, size)]
    with pytest.raises(StunError, match="MESSAGE-INTEGRITY already"):
        sha1.with_message_integrity_sha256(key, size)
    return signed


def padded_key(key: bytes) -> bytes:
    """Keys of up to a block that differ in zeros at the end are one key (RFC 2104)."""
    return key.rstrip(b"\0") if len(key) <= 64 else key


@given(bare=unprotected_messages(), key=keys, other=keys, size=sizes, fingerprint=st.booleans())
def test_the_key_that_signed_is_the_one_that_checks(
    bare: Message, key: bytes, other: bytes, size: int, *, fingerprint: bool
) -> None:
    for signed in all_signed(bare, key, size):
        made = signed.with_fingerprint() if fingerprint else signed
        decoded = Message.decode(made.encode())
        for checked in (made, decoded):
            assert checked.check_message_integrity(key, minimum_length=size)
            same = padded_key(other) == padded_key(key)
            assert checked.check_message_integrity(other, minimum_length=size) == same
    assert not bare.check_message_integrity(key)
    assert not bare.with_fingerprint().check_message_integrity(key)


@given(messages(), keys, st.data())
def test_no_flipped_bit_that_the_integrity_covers_is_believed(
    drawn: Message, key: bytes, data: st.DataObject
) -> None:
    bare = message_without_protection(drawn)
    size = data.draw(sizes)
    for signed in all_signed(bare, key, size):
        encoded = signed.encode()
        bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
        try:
            decoded = Message.decode(flip(encoded, bit))
        except StunError:
            continue
        both = signed.get(MessageIntegrity) and signed.get(MessageIntegritySha256)
        if both and bit >= 8 * (len(encoded) - size - 4):
            continue  # it may hide the second, and the first does not cover that
        assert not decoded.check_message_integrity(key, minimum_length=16)


def message_without_protection(drawn: Message) -> Message:
    kinds = (MessageIntegrity, MessageIntegritySha256, Fingerprint)
    attributes = tuple(a for a in drawn.attributes if not isinstance(a, kinds))
    return Message(drawn.message_class, drawn.method, drawn.transaction_id, attributes)


def test_the_stronger_integrity_decides() -> None:
    """RFC 8489 section 9.1.3: MESSAGE-INTEGRITY-SHA256 where it is present."""
    bare = Message.request()
    right, wrong = b"right", b"wrong"
    mixed = bare.with_message_integrity(right).with_message_integrity_sha256(wrong)
    assert not mixed.check_message_integrity(right)
    assert mixed.check_message_integrity(wrong)
    mixed = bare.with_message_integrity(wrong).with_message_integrity_sha256(right)
    assert mixed.check_message_integrity(right)


def test_a_second_integrity_is_not_looked_at() -> None:
    bare = message()
    first = bare + attribute(0x0008, mac("sha1", b"right", bare, 20))
    for kind, digest, size in ((0x0008, "sha1", 20), (0x001C, "sha256", 32)):
        data = bare + attribute(kind, mac(digest, b"right", bare, size))
        forged = data + attribute(kind, mac(digest, b"forged", data, size))
        decoded = Message.decode(with_length(forged, len(forged) - 20))
        assert decoded.check_message_integrity(b"right")
        assert not decoded.check_message_integrity(b"forged")
    # What stands between is ignored, and covered by the second kind.
    between = first + attribute(SOFTWARE, b"x")
    both = between + attribute(0x001C, mac("sha256", b"right", between, 32))
    decoded = Message.decode(with_length(both, len(both) - 20))
    assert decoded.check_message_integrity(b"right")
    assert decoded.get(Software) is None
    # MESSAGE-INTEGRITY behind MESSAGE-INTEGRITY-SHA256 is ignored.
    data = bare + attribute(0x001C, mac("sha256", b"wrong", bare, 32))
    data += attribute(0x0008, mac("sha1", b"right", data, 20))
    assert not Message.decode(with_length(data, len(data) - 20)).check_message_integrity(b"right")


def test_a_truncated_hmac_counts_only_where_it_is_allowed() -> None:
    """RFC 8489 section 14.6: the full 32 bytes, unless the usage says otherwise."""
    for size in (16, 20, 24, 28):
        cut = Message.request().with_message_integrity_sha256(b"key", size)
        assert not cut.check_message_integrity(b"key")
        assert not cut.check_message_integrity(b"key", minimum_length=size + 4)
        assert cut.check_message_integrity(b"key", minimum_length=size)
        assert cut.check_message_integrity(b"key", minimum_length=16)
        # Nor does it hide behind a MESSAGE-INTEGRITY that is right.
        both = Message.request().with_message_integrity(b"key")
        assert not both.with_message_integrity_sha256(b"key", size).check_message_integrity(b"key")


@pytest.mark.parametrize("size", [-4, 0, 4, 12, 15, 17, 18, 33, 36, 64])
def test_a_truncated_hmac_has_16_to_32_bytes(size: int) -> None:
    for make in (
        lambda: Message.request().with_message_integrity_sha256(b"key", size),
        lambda: message_integrity_sha256(b"key", message(), size),
    ):
        with pytest.raises(StunError, match=f"a multiple of 4, not {size}"):
            make()


def test_the_order_of_protection() -> None:
    bare = Message.request()
    sha1 = bare.with_message_integrity(b"key")
    sha256 = bare.with_message_integrity_sha256(b"key")
    with pytest.raises(StunError, match="MESSAGE-INTEGRITY already"):
        sha1.with_message_integrity(b"key")
    with pytest.raises(StunError, match="MESSAGE-INTEGRITY-SHA256 already"):
        sha256.with_message_integrity_sha256(b"key")
    with pytest.raises(StunError, match="MESSAGE-INTEGRITY-SHA256 already"):
        sha256.with_message_integrity(b"key")
    for made in (bare, sha1):
        with pytest.raises(StunError, match="FINGERPRINT already"):
            made.with_fingerprint().with_message_integrity_sha256(b"key")
    with pytest.raises(StunError, match="FINGERPRINT already"):
        bare.with_fingerprint().with_message_integrity(b"key")


def test_the_integrity_needs_room() -> None:
    for size, room in ((65504, 24), (65492, 36)):
        fits = Message.request(Padding(bytes(size)))
        full = Message.request(Padding(bytes(size + 4)))
        sign = (
            Message.with_message_integrity if room == 24 else Message.with_message_integrity_sha256
        )
        assert len(sign(fits, b"key").encode()) == 20 + 65532
        with pytest.raises(StunError, match="65536 bytes of attributes"):
            sign(full, b"key")


def test_a_message_that_does_not_decode_has_no_integrity() -> None:
    decoded = Message.decode(message(attribute(0x0008, bytes(20))))
    assert not decoded.check_message_integrity(b"key")
