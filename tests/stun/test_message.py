"""Messages as values: encode and decode are inverse, and decode is total."""

from __future__ import annotations

import array
import copy
import pickle
import struct
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pktstun.stun import (
    ATTRIBUTES,
    AlternateServer,
    Attribute,
    AttributeType,
    Class,
    ErrorCode,
    Fingerprint,
    MappedAddress,
    Message,
    MessageIntegrity,
    MessageIntegritySha256,
    Method,
    PasswordAlgorithm,
    RawAttribute,
    Software,
    StunError,
    TransportAddress,
    UnknownAttributes,
    XorMappedAddress,
    join_type,
    new_transaction_id,
    split_type,
)
from tests.strategies.datagrams import attribute, datagrams, fingerprinted, message, with_length
from tests.strategies.stun import INTERPRETED, attributes, messages, unprotected_messages

if TYPE_CHECKING:
    from typing_extensions import Buffer

ID = bytes(range(12))
UNKNOWN = AttributeType(0x7777)

# Requests, which may be broken; and responses, whose attributes have a meaning.
encodings = datagrams() | messages().map(Message.encode)


def outcome(data: Buffer) -> Message | tuple[str, int]:
    """Return the message, or what the one error that is allowed says about the bytes."""
    try:
        return Message.decode(data)
    except StunError as error:
        problem = error
    assert type(problem) is StunError
    assert problem.offset is not None
    assert 0 <= problem.offset <= memoryview(data).nbytes
    assert str(problem).endswith(f"(at byte {problem.offset})")
    return str(problem), problem.offset


# --- There and back ---


@given(messages())
def test_a_message_is_decoded_as_it_was_encoded(drawn: Message) -> None:
    decoded = Message.decode(drawn.encode())
    assert decoded == drawn
    assert hash(decoded) == hash(drawn)
    assert repr(decoded) == repr(drawn)
    assert decoded.encode() == drawn.encode()


@given(encodings)
def test_bytes_are_encoded_as_they_were(data: bytes) -> None:
    decoded = outcome(data)
    if isinstance(decoded, Message):
        assert decoded.encode() == data
        assert bytes(decoded) == data


@given(messages())
def test_a_message_that_is_built_of_the_parts_is_the_same(drawn: Message) -> None:
    """Canonical bytes do not come from the wire image: values alone make them again."""
    decoded = Message.decode(drawn.encode())
    assert is_canonical(drawn.encode())
    built = Message(
        decoded.message_class, decoded.method, decoded.transaction_id, decoded.attributes
    )
    assert built == drawn
    assert built.encode() == drawn.encode()
    again = copy.copy(decoded)
    assert again.encode() == drawn.encode()


@given(datagrams())
def test_what_is_decoded_can_be_built_or_must_not_be_sent(data: bytes) -> None:
    decoded = outcome(data)
    if not isinstance(decoded, Message):
        return
    parts = (decoded.message_class, decoded.method, decoded.transaction_id, decoded.attributes)
    try:
        built = Message(*parts)
    except StunError:
        return
    # Padding and reserved bits become zero, and what the message means stays.
    assert built == decoded
    assert Message.decode(built.encode()) == decoded


def is_canonical(data: bytes) -> bool:
    """Whether the bytes are what a message that is built of the same parts encodes to."""
    decoded = Message.decode(data)
    try:
        built = Message(
            decoded.message_class, decoded.method, decoded.transaction_id, decoded.attributes
        )
    except StunError:
        return False
    return built.encode() == data


@given(messages())
def test_the_shape_of_a_message(drawn: Message) -> None:
    data = drawn.encode()
    assert len(data) % 4 == 0
    assert int.from_bytes(data[2:4], "big") == len(data) - 20
    assert data[0] & 0xC0 == 0
    assert data[4:8] == b"\x21\x12\xa4\x42"
    assert data[8:20] == drawn.transaction_id
    field = int.from_bytes(data[:2], "big")
    assert split_type(field) == (drawn.method, drawn.message_class)


@given(messages())
def test_attributes_are_sent_in_order(drawn: Message) -> None:
    expected = [
        attribute(attr.type, attr.encode(drawn.transaction_id)) for attr in drawn.attributes
    ]
    assert drawn.encode()[20:] == b"".join(expected)


def test_duplicates_are_kept() -> None:
    same = (Software("a"), Software("a"), RawAttribute(UNKNOWN), Software("b"))
    decoded = Message.decode(Message.request(*same).encode())
    assert decoded.attributes == same


@given(st.integers(1, 11).filter(lambda size: size % 4), st.binary(min_size=3, max_size=3))
def test_padding_is_ignored(size: int, padding: bytes) -> None:
    kinds = [UNKNOWN, AttributeType(0xF777)]
    sent = message(*(attribute(kind, bytes(size), padding) for kind in kinds))
    decoded = Message.decode(sent)
    assert decoded.attributes == tuple(RawAttribute(kind, bytes(size)) for kind in kinds)
    # FINGERPRINT covers it as it was sent.
    assert Message.decode(fingerprinted(sent)).has_fingerprint


# --- Any bytes ---


@given(encodings | st.binary(max_size=64))
@example(b"")
@example(bytes(20))
@example(message(attribute(0x8022, b"\xff")))
@example(message(attribute(0x8028)))
def test_any_bytes_are_a_message_or_a_stun_error(data: bytes) -> None:
    expected = outcome(data)
    buffer = bytearray(data)
    assert outcome(buffer) == expected
    assert buffer == data
    assert outcome(memoryview(data)) == expected
    assert outcome(memoryview(b"-" + data + b"-")[1:-1]) == expected
    assert outcome(memoryview(data).cast("c")) == expected
    for code, size in ("H", 2), ("I", 4):
        if len(data) % size == 0:
            assert outcome(array.array(code, data)) == expected
            if data:
                assert outcome(memoryview(data).cast("B", (len(data) // size, size))) == expected


@given(encodings)
@example(message())
def test_a_buffer_may_have_gaps(data: bytes) -> None:
    spread = memoryview(bytes(byte for pair in zip(data, data, strict=True) for byte in pair))
    backwards = memoryview(data[::-1])
    for view in (spread[::2], backwards[::-1]):
        assert view.tobytes() == data
        assert outcome(view) == outcome(data)


@given(messages())
def test_a_decoded_message_does_not_change_with_the_buffer(drawn: Message) -> None:
    buffer = bytearray(drawn.encode())
    decoded = Message.decode(buffer)
    # Nor does it hold on to the buffer, which may then be resized.
    buffer.clear()
    assert decoded == drawn


def test_what_is_no_buffer_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        Message.decode("text")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "blame", "offset"),
    [
        (b"", "a header has 20 bytes", 0),
        (message()[:-1], "a header has 20 bytes", 19),
        (message(field=0x4001), "first two bits", 0),
        (with_length(message(), 1), "multiple of 4", 2),
        (with_length(message(), 4), "does not fit", 2),
        (message(cookie=0), "magic cookie", 4),
        (message(attribute(0x8777), b"\x80\x00\x00\x01"), "reaches beyond", 24),
        # Values are blamed by name, where they begin.
        (message(attribute(0x8777), attribute(0x0001, b"abc")), "MAPPED-ADDRESS .*3 bytes", 28),
        (message(attribute(0x0001, bytes(8))), "MAPPED-ADDRESS .*family 0x00", 25),
        (message(attribute(0x0020, bytes(24))), "XOR-MAPPED-ADDRESS .*24 bytes", 24),
        (message(attribute(0x0009)), "ERROR-CODE .*0 bytes", 24),
        (message(attribute(0x0009, b"\0\0\2\0")), "class 2 of ERROR-CODE", 26),
        (message(attribute(0x0009, b"\0\0\7\0")), "class 7 of ERROR-CODE", 26),
        (message(attribute(0x0009, b"\0\0\4\x64")), "number 100 of ERROR-CODE", 27),
        (message(attribute(0x0009, b"\0\0\4\0abc\xff")), "ERROR-CODE is not UTF-8", 31),
        (message(attribute(0x8022, 60 * b"a" + b"\xff")), "SOFTWARE is not UTF-8", 84),
        (message(attribute(0x8002, b"\0\1\0\0\0\2\0\1")), "less than 1 bytes", 28),
        (message(attribute(0x000A, bytes(3))), "UNKNOWN-ATTRIBUTES .*3 bytes", 24),
        (message(attribute(0x8022, b"\xff")), "SOFTWARE .*UTF-8", 24),
        (message(attribute(0x8028)), "FINGERPRINT .*0 bytes", 24),
        (message(attribute(0x8028, bytes(4))), "FINGERPRINT does not match", 24),
        (message(attribute(0x8028, bytes(4)), attribute(0x8777)), "not the last", 24),
        # The first fault of several.
        (message(attribute(0x8022, b"\xff"), attribute(0x0009)), "SOFTWARE", 24),
        (message(attribute(0x8022, b"\xff"), b"\x80\x00\x00\x01"), "SOFTWARE", 24),
    ],
)
def test_what_is_wrong_with_bytes_and_where(data: bytes, blame: str, offset: int) -> None:
    with pytest.raises(StunError, match=blame) as caught:
        Message.decode(data)
    assert caught.value.offset == offset


@given(messages())
def test_a_message_is_not_part_of_a_longer_one(drawn: Message) -> None:
    data = drawn.encode()
    for other in (data[:-1], data + b"\0", data + bytes(4)):
        with pytest.raises(StunError):
            Message.decode(other)


@given(st.integers(0, 0xFFFF).filter(lambda kind: kind not in INTERPRETED), st.binary(max_size=8))
def test_unknown_attributes_survive(kind: int, value: bytes) -> None:
    decoded = Message.decode(message(attribute(kind, value), field=0x0101))
    assert decoded.attributes == (RawAttribute(AttributeType(kind), value),)
    assert decoded.encode() == message(attribute(kind, value), field=0x0101)


# --- Making messages ---


def test_a_request_is_a_binding_request() -> None:
    request = Message.request(Software("a"), transaction_id=ID)
    assert request == Message(Class.REQUEST, Method.BINDING, ID, (Software("a"),))
    assert request.encode() == message(attribute(0x8022, b"a"))
    assert Message.request(transaction_id=ID).encode() == message()
    allocate = Message.request(Software("a"), method=Method.ALLOCATE, transaction_id=ID)
    assert allocate == Message(Class.REQUEST, Method.ALLOCATE, ID, (Software("a"),))


def test_a_transaction_id_is_random_unless_given() -> None:
    ids = {Message.request().transaction_id for _ in range(100)}
    ids |= {Message(Class.REQUEST).transaction_id for _ in range(100)}
    ids |= {new_transaction_id() for _ in range(100)}
    assert len(ids) == 300
    assert {len(transaction_id) for transaction_id in ids} == {12}
    # An id that is given is taken, even one that is false in itself.
    with pytest.raises(StunError, match="12 bytes, not 0"):
        Message.request(transaction_id=b"")


def test_plain_numbers_and_lists_are_taken() -> None:
    made = Message(0b10, 0x123, bytearray(ID), [Software("a")])  # type: ignore[arg-type]
    assert made == Message(Class.SUCCESS, Method(0x123), ID, (Software("a"),))
    assert isinstance(made.message_class, Class)
    assert isinstance(made.method, Method)
    assert hash(made)


def test_parts_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(StunError, match="4 is not a valid Class"):
        Message(4)  # type: ignore[arg-type]
    with pytest.raises(StunError, match="4096 is not a valid Method"):
        Message(Class.REQUEST, 0x1000)  # type: ignore[arg-type]
    with pytest.raises(StunError, match="12 bytes, not 16"):
        Message(Class.REQUEST, transaction_id=bytes(16))
    # A number is no buffer, and not as many zeros.
    with pytest.raises(TypeError):
        Message(Class.REQUEST, transaction_id=12)  # type: ignore[arg-type]


def test_attributes_that_do_not_fit_are_refused() -> None:
    # The length is a multiple of 4 and has 16 bits: at most 65532.
    half = RawAttribute(UNKNOWN, bytes(0x7FF8))
    rest = Software("")
    assert len(Message.request(half, half, rest).encode()) == 20 + 65532
    with pytest.raises(StunError, match="65536 bytes of attributes"):
        Message.request(half, half, rest, rest)


def test_there_may_be_many_attributes() -> None:
    many = Message.request(*(300 * [Software("a")]), MAC)
    assert len(many.attributes) == 301
    assert Message.decode(many.encode()) == many
    assert len(many.with_fingerprint().processed) == 302


def test_a_message_is_a_value() -> None:
    made = Message.request(Software("a"), RawAttribute(AttributeType(0x7777))).with_fingerprint()
    assert copy.deepcopy(made) == made
    assert pickle.loads(pickle.dumps(made)) == made
    assert made != made.encode()
    for name in ("message_class", "method", "transaction_id", "attributes", "other"):
        with pytest.raises(AttributeError):
            setattr(made, name, ())
    match made:
        case Message(Class.REQUEST, Method.BINDING, _, (Software(text), *_)):
            assert text == "a"
        case _:
            pytest.fail("it matches")


@pytest.mark.parametrize(
    "other",
    [
        Message(Class.SUCCESS, Method.BINDING, ID, (Software("a"),)),
        Message(Class.REQUEST, Method.ALLOCATE, ID, (Software("a"),)),
        Message(Class.REQUEST, Method.BINDING, bytes(12), (Software("a"),)),
        Message(Class.REQUEST, Method.BINDING, ID, (Software("b"),)),
        Message(Class.REQUEST, Method.BINDING, ID, ()),
    ],
)
def test_messages_differ_in_each_part(other: Message) -> None:
    made = Message.request(Software("a"), transaction_id=ID)
    assert made != other
    assert other != made
    assert hash(made) != hash(other)


def test_padding_is_no_part_of_the_value() -> None:
    spaces = message(attribute(0x8022, b"a", b"   "))
    zeros = message(attribute(0x8022, b"a"))
    assert Message.decode(spaces) == Message.decode(zeros)
    assert hash(Message.decode(spaces)) == hash(Message.decode(zeros))
    assert Message.decode(spaces).encode() == spaces


# --- What must not be sent ---


SOMEWHERE = TransportAddress(IPv4Address("192.0.2.1"), 1)
MAC = MessageIntegrity(bytes(20))
MAC256 = MessageIntegritySha256(bytes(32))
UNKNOWNS = UnknownAttributes((UNKNOWN,))


@pytest.mark.parametrize(
    ("message_class", "attributes", "blame"),
    [
        (Class.REQUEST, [MAC, Software("a")], "SOFTWARE would be ignored"),
        (Class.REQUEST, [MAC, MAC], "MESSAGE-INTEGRITY would be ignored"),
        (Class.REQUEST, [MAC, RawAttribute(UNKNOWN)], "0x7777 would be ignored"),
        (Class.REQUEST, [MAC256, MAC], "MESSAGE-INTEGRITY would be ignored"),
        (Class.REQUEST, [MAC, MAC256, Software("a")], "SOFTWARE would be ignored"),
        (Class.INDICATION, [MAC256, MAC256], "MESSAGE-INTEGRITY-SHA256 would be ignored"),
        (Class.REQUEST, [Fingerprint(0), Software("a")], "not the last"),
        (Class.REQUEST, [Fingerprint(0)], "does not match"),
        (Class.ERROR, [], "needs an ErrorCode"),
        (Class.ERROR, [Software("a")], "needs an ErrorCode"),
        (Class.ERROR, [ErrorCode(420)], "420 need each other"),
        (Class.ERROR, [ErrorCode(400), UNKNOWNS], "420 need each other"),
        (Class.ERROR, [ErrorCode(400), ErrorCode(420), UNKNOWNS], "420 need each other"),
        (Class.SUCCESS, [UNKNOWNS], "420 need each other"),
        (Class.SUCCESS, [ErrorCode(420), UNKNOWNS], "for error responses only"),
        (Class.REQUEST, [ErrorCode(400)], "for error responses only"),
        (Class.ERROR, [ErrorCode(300)], "300 needs an AlternateServer"),
        (Class.ERROR, [ErrorCode(400), MAC, MAC256], "one of the two integrities"),
        (Class.SUCCESS, [MAC, MAC256], "one of the two integrities"),
        (Class.SUCCESS, [PasswordAlgorithm(1)], "PASSWORD-ALGORITHM is for requests"),  # type: ignore[arg-type]
        (Class.INDICATION, [PasswordAlgorithm(1)], "PASSWORD-ALGORITHM is for requests"),  # type: ignore[arg-type]
        (Class.ERROR, [ErrorCode(400), PasswordAlgorithm(1)], "is for requests"),  # type: ignore[arg-type]
    ],
)
def test_what_rfc_8489_forbids_to_send_is_not_made(
    message_class: Class, attributes: list[Attribute], blame: str
) -> None:
    with pytest.raises(StunError, match=blame):
        Message(message_class, Method.BINDING, ID, tuple(attributes))
    # Whoever receives it decodes it, unless FINGERPRINT is wrong, and passes it on as it is.
    field = join_type(Method.BINDING, message_class)
    sent = message(*(attribute(a.type, a.encode(ID)) for a in attributes), field=field)
    if not any(isinstance(a, Fingerprint) for a in attributes):
        decoded = Message.decode(sent)
        assert decoded.attributes == tuple(attributes)
        assert decoded.encode() == sent


@pytest.mark.parametrize(
    ("message_class", "attributes"),
    [
        (Class.REQUEST, [MAC]),
        (Class.REQUEST, [MAC256]),
        (Class.REQUEST, [Software("a"), MAC, MAC256]),
        (Class.ERROR, [ErrorCode(400)]),
        (Class.ERROR, [ErrorCode(420), UNKNOWNS]),
        (Class.ERROR, [UNKNOWNS, ErrorCode(420)]),
        (Class.ERROR, [ErrorCode(300), AlternateServer(SOMEWHERE)]),
        (Class.INDICATION, [MAC, MAC256]),
        (Class.SUCCESS, [MAC256]),
        (Class.REQUEST, [PasswordAlgorithm(1)]),  # type: ignore[arg-type]
        (Class.REQUEST, [Software("a"), Software("a")]),
    ],
)
def test_what_is_allowed_is_made(message_class: Class, attributes: list[Attribute]) -> None:
    made = Message(message_class, Method.BINDING, ID, tuple(attributes))
    assert Message.decode(made.encode()) == made


@given(unprotected_messages(), st.lists(attributes(), max_size=3))
def test_attributes_are_added_behind_the_others(drawn: Message, more: list[Attribute]) -> None:
    longer = drawn.with_attributes(*more)
    parts = (drawn.message_class, drawn.method, drawn.transaction_id)
    assert longer == Message(*parts, (*drawn.attributes, *more))
    with pytest.raises(StunError, match="FINGERPRINT already"):
        drawn.with_fingerprint().with_attributes(Software("a"))
    # Not even nothing: the padding that was signed would be lost.
    for signed in (drawn.with_message_integrity, drawn.with_message_integrity_sha256):
        with pytest.raises(StunError, match=r"MESSAGE-INTEGRITY.* already"):
            signed(b"key").with_attributes()


@given(unprotected_messages())
def test_responses_answer_their_request(drawn: Message) -> None:
    address = XorMappedAddress(SOMEWHERE)
    if drawn.message_class is not Class.REQUEST:
        with pytest.raises(StunError, match="messages are not answered"):
            drawn.success()
        with pytest.raises(StunError, match="messages are not answered"):
            drawn.failure(ErrorCode(400))
        return
    success = drawn.success(address)
    failure = drawn.failure(ErrorCode.of(400), Software("a"))
    assert success.message_class is Class.SUCCESS
    assert success.attributes == (address,)
    assert failure.message_class is Class.ERROR
    assert failure.attributes == (ErrorCode(400, "Bad Request"), Software("a"))
    for response in (success, failure):
        assert response.method == drawn.method
        assert response.transaction_id == drawn.transaction_id


# --- Asking messages ---


@given(st.lists(attributes(), max_size=6).map(tuple))
def test_the_first_of_duplicates_counts(drawn: tuple[Attribute, ...]) -> None:
    made = Message.request(*drawn, *drawn)
    decoded = Message.decode(made.encode())
    assert decoded.attributes == drawn + drawn
    for cls in (*ATTRIBUTES.values(), RawAttribute):
        kind: Any = cls
        same = tuple(attr for attr in drawn if type(attr) is kind)
        assert decoded.get(kind) == (same[0] if same else None)
        assert decoded.get_all(kind) == same + same
    assert made.error is None


def test_the_error_is_that_of_the_response() -> None:
    made = Message.request().failure(ErrorCode(400), ErrorCode(500))
    assert made.error == ErrorCode(400)
    assert Message.decode(made.encode()).error == ErrorCode(400)


@pytest.mark.parametrize(
    ("kinds", "processed"),
    [
        ([0x8022, 0x7777, 0x8022], [0, 1, 2]),
        ([0x8022, 0x0008, 0x7777, 0x8022], [0, 1]),
        ([0x0008, 0x8022, 0x001C, 0x7777, 0x0008], [0, 2]),
        ([0x001C, 0x0008, 0x8022, 0x001C], [0]),
        ([0x0008, 0x0008, 0x001C, 0x001C], [0, 2]),
        ([0x7777, 0x001C, 0x7777], [0, 1]),
    ],
)
@pytest.mark.parametrize("fingerprint", [False, True])
def test_what_follows_the_integrity_is_ignored(
    kinds: list[int], processed: list[int], *, fingerprint: bool
) -> None:
    """RFC 8489 section 9; all of it is kept, though."""
    values = {0x0008: bytes(20), 0x001C: bytes(32)}
    data = message(*(attribute(kind, values.get(kind, b"")) for kind in kinds))
    expected = [kinds[i] for i in processed]
    if fingerprint:
        data, kinds, expected = fingerprinted(data), [*kinds, 0x8028], [*expected, 0x8028]
    decoded = Message.decode(data)
    assert [attr.type for attr in decoded.attributes] == kinds
    assert [attr.type for attr in decoded.processed] == expected
    assert decoded.has_fingerprint == fingerprint
    assert decoded.unknown_required == ((UNKNOWN,) if 0x7777 in expected else ())
    assert bool(decoded.get(Software)) == (0x8022 in expected)
    assert len(decoded.get_all(Software)) == expected.count(0x8022)


@pytest.mark.parametrize(
    "malformed",
    [
        attribute(0x8022, b"\xff"),
        attribute(0x0024, b"abc"),
        attribute(0x0001),
        attribute(0x8001, bytes(4)),
        attribute(0x0008, bytes(3)),
    ],
)
def test_what_is_ignored_may_be_malformed(malformed: bytes) -> None:
    """RFC 8489 section 9: nobody vouches for it, and nobody shall be able to break a message."""
    sha1, sha256 = attribute(0x0008, bytes(20)), attribute(0x001C, bytes(32))
    for in_front in (sha1, sha256, sha1 + sha256, sha256 + sha1):
        data = message(in_front, malformed, attribute(0x8022, b"good"))
        for whole in (data, fingerprinted(data)):
            decoded = Message.decode(whole)
            index = 2 if len(in_front) > 40 else 1
            ignored = decoded.attributes[index]
            assert isinstance(ignored, RawAttribute)
            assert attribute(ignored.type, ignored.value) == malformed
            assert decoded.attributes[index + 1] == Software("good")
            assert ignored not in decoded.processed
            assert decoded.encode() == whole
            assert Message.decode(whole) == decoded
    # The integrity itself and FINGERPRINT are looked at.
    for seen in (attribute(0x001C, bytes(3)), attribute(0x8028, bytes(3))):
        with pytest.raises(StunError, match="3 bytes instead"):
            Message.decode(message(sha1, attribute(0x8022, b"\xff"), seen))
    with pytest.raises(StunError, match="3 bytes instead"):
        Message.decode(message(sha256, attribute(0x8028, bytes(3))))


def test_unknown_required_attributes_are_named_once_in_order() -> None:
    first, second = RawAttribute(AttributeType(0x7FFF)), RawAttribute(AttributeType(0x0002))
    optional = RawAttribute(AttributeType(0x8777))
    made = Message.request(first, optional, second, first, Software("a"), optional)
    assert made.unknown_required == (0x7FFF, 0x0002)
    assert Message.decode(made.encode()).unknown_required == (0x7FFF, 0x0002)


@given(messages())
def test_offsets_say_where_the_attributes_are(drawn: Message) -> None:
    data = drawn.encode()
    for made in (drawn, Message.decode(data)):
        assert len(made.offsets) == len(made.attributes)
        for offset, attr in zip(made.offsets, made.attributes, strict=True):
            header = struct.pack("!HH", attr.type, len(attr.encode(drawn.transaction_id)))
            assert data[offset : offset + 4] == header


def test_mapped_address_prefers_the_masked_one() -> None:
    masked = XorMappedAddress(TransportAddress(IPv4Address("192.0.2.1"), 1))
    clear = MappedAddress(TransportAddress(IPv4Address("192.0.2.2"), 2))
    assert Message.request(clear, masked).mapped_address == masked.address
    assert Message.request(masked, clear).mapped_address == masked.address
    assert Message.request(clear).mapped_address == clear.address
    assert Message.request(Software("")).mapped_address is None
