"""The codec and aioice's, which share nothing: each reads what the other writes.

Two properties hold both ways for whatever aioice can express. A third takes messages that are
broken in many ways: where the two then disagree, a rule in `DIFFERENCES` says why, and each of
those rules has its example, bytes with what aioice and the codec make of them.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aioice import stun as aioice
from hypothesis import given, settings
from hypothesis import strategies as st

from pktstun import stun
from pktstun.stun import AttributeType, Class, Message, RawAttribute, StunError, TransportAddress
from tests.strategies.datagrams import (
    FINGERPRINT,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    SOFTWARE,
    attribute,
    fingerprinted,
    message,
    with_length,
)
from tests.strategies.stun import (
    BY_CLASS,
    addresses,
    error_codes,
    keys,
    numbers,
    texts,
    transaction_ids,
)

if TYPE_CHECKING:
    from collections.abc import Callable

THOUSAND = settings(max_examples=max(1000, settings().max_examples))

CLASSES = {
    Class.REQUEST: aioice.Class.REQUEST,
    Class.INDICATION: aioice.Class.INDICATION,
    Class.SUCCESS: aioice.Class.RESPONSE,
    Class.ERROR: aioice.Class.ERROR,
}


# --- The same values, as both have them ---


class Translation(NamedTuple):
    """How a value of an attribute gets from one to the other; `type` finds it on the wire."""

    type: AttributeType
    drawn: st.SearchStrategy[Any]
    theirs: Callable[[Any], Any]
    ours: Callable[[Any], Any]


def _address(cls: Any) -> Translation:
    return Translation(
        cls.type,
        BY_CLASS[cls],
        lambda a: (str(a.address.ip), a.address.port),
        lambda v: cls(TransportAddress(ip_address(v[0]), v[1])),
    )


def _unpacked(value: bytes) -> Any:
    try:
        return aioice.unpack_address(value)
    except ValueError:
        return value


def _old_address(kind: AttributeType) -> Translation:
    """An address of RFC 3489, which RFC 8489 has no more: the codec keeps the bytes."""
    return Translation(
        kind,
        addresses().map(lambda a: RawAttribute(kind, stun.MappedAddress(a).encode(bytes(12)))),
        lambda a: _unpacked(a.value),
        lambda v: RawAttribute(kind, aioice.pack_address(v)),
    )


def _text(cls: Any) -> Translation:
    return Translation(cls.type, BY_CLASS[cls], lambda a: a.text, cls)


def _value(cls: Any) -> Translation:
    return Translation(cls.type, BY_CLASS[cls], lambda a: a.value, cls)


TRANSLATIONS = {
    "MAPPED-ADDRESS": _address(stun.MappedAddress),
    "CHANGE-REQUEST": Translation(
        AttributeType.CHANGE_REQUEST,
        BY_CLASS[stun.ChangeRequest],
        lambda a: a.change_ip << 2 | a.change_port << 1,
        lambda v: stun.ChangeRequest(bool(v & 4), bool(v & 2)),
    ),
    "SOURCE-ADDRESS": _old_address(AttributeType.SOURCE_ADDRESS),
    "CHANGED-ADDRESS": _old_address(AttributeType.CHANGED_ADDRESS),
    "USERNAME": _text(stun.Username),
    "ERROR-CODE": Translation(
        AttributeType.ERROR_CODE,
        # 300 needs ALTERNATE-SERVER and 420 UNKNOWN-ATTRIBUTES, which aioice does not know.
        st.builds(stun.ErrorCode, error_codes.filter(lambda code: code not in {300, 420}), texts),
        lambda a: (a.code, a.reason),
        lambda v: stun.ErrorCode(*v),
    ),
    "CHANNEL-NUMBER": Translation(
        AttributeType.CHANNEL_NUMBER,
        BY_CLASS[stun.ChannelNumber],
        lambda a: a.number,
        stun.ChannelNumber,
    ),
    "LIFETIME": _value(stun.Lifetime),
    "XOR-PEER-ADDRESS": _address(stun.XorPeerAddress),
    "DATA": _value(stun.Data),
    "REALM": _text(stun.Realm),
    # Bytes there, text here, as RFC 8489 section 14.10 has it.
    "NONCE": Translation(
        AttributeType.NONCE,
        BY_CLASS[stun.Nonce],
        lambda a: a.text.encode(),
        lambda v: stun.Nonce(v.decode()),
    ),
    "XOR-RELAYED-ADDRESS": _address(stun.XorRelayedAddress),
    # Reserved bits and all there: UDP is 0x11000000.
    "REQUESTED-TRANSPORT": Translation(
        AttributeType.REQUESTED_TRANSPORT,
        BY_CLASS[stun.RequestedTransport],
        lambda a: a.protocol << 24,
        lambda v: stun.RequestedTransport(v >> 24),
    ),
    "XOR-MAPPED-ADDRESS": _address(stun.XorMappedAddress),
    "PRIORITY": _value(stun.Priority),
    "USE-CANDIDATE": Translation(
        AttributeType.USE_CANDIDATE,
        BY_CLASS[stun.UseCandidate],
        lambda _: None,
        lambda _: stun.UseCandidate(),
    ),
    "SOFTWARE": _text(stun.Software),
    "ICE-CONTROLLED": _value(stun.IceControlled),
    "ICE-CONTROLLING": _value(stun.IceControlling),
    "RESPONSE-ORIGIN": _address(stun.ResponseOrigin),
    "OTHER-ADDRESS": _address(stun.OtherAddress),
}
PROTECTION = {
    "MESSAGE-INTEGRITY": _value(stun.MessageIntegrity),
    "FINGERPRINT": _value(stun.Fingerprint),
}
BY_TYPE = {t.type: (name, t) for name, t in (TRANSLATIONS | PROTECTION).items()}


def translated(decoded: Message) -> dict[str, Any]:
    """Return the attributes that count as aioice has them, without those that it has not."""
    found: dict[str, Any] = {}
    for a in decoded.processed:
        if a.type in BY_TYPE:
            name, translation = BY_TYPE[a.type]
            found.setdefault(name, translation.theirs(a))
    return found


@st.composite
def expressible(draw: st.DrawFn) -> Message:
    """Any message that aioice can express: of each type one at most, since it has a dict."""
    message_class = draw(st.sampled_from(Class))
    names = draw(st.lists(st.sampled_from(sorted(TRANSLATIONS)), unique=True, max_size=8))
    # It is in error responses, and nowhere else.
    if message_class is not Class.ERROR:
        names = [name for name in names if name != "ERROR-CODE"]
    elif "ERROR-CODE" not in names:
        names.append("ERROR-CODE")
    drawn = tuple(draw(TRANSLATIONS[name].drawn) for name in names)
    method = stun.Method(draw(st.sampled_from(aioice.Method)))
    return Message(message_class, method, draw(transaction_ids), drawn)


def test_every_attribute_of_aioice_is_translated() -> None:
    types = {kind: name for kind, name, _, _ in aioice.ATTRIBUTES}
    assert {t.type: name for name, t in (TRANSLATIONS | PROTECTION).items()} == types
    assert {int(cls) for cls in CLASSES.values()} == {int(cls) for cls in aioice.Class}


# --- Both ways ---


@THOUSAND
@given(ours=expressible(), key=st.none() | keys, fingerprint=st.booleans())
def test_aioice_reads_what_the_codec_writes(
    ours: Message, key: bytes | None, *, fingerprint: bool
) -> None:
    if key is not None:
        ours = ours.with_message_integrity(key)
    if fingerprint:
        ours = ours.with_fingerprint()
    theirs = aioice.parse_message(ours.encode())
    assert theirs.message_class == CLASSES[ours.message_class]
    assert theirs.message_method == aioice.Method(ours.method)
    assert theirs.transaction_id == ours.transaction_id
    assert list(theirs.attributes.items()) == list(translated(ours).items())
    assert theirs.check_message_integrity(key or b"") is (key is not None)
    assert not theirs.check_message_integrity(b"another" + (key or b""))
    assert bytes(theirs) == ours.encode()


@THOUSAND
@given(values=expressible(), key=st.none() | keys, fingerprint=st.booleans())
def test_the_codec_reads_and_writes_what_aioice_writes(
    values: Message, key: bytes | None, *, fingerprint: bool
) -> None:
    theirs = aioice.Message(
        aioice.Method(values.method),
        CLASSES[values.message_class],
        values.transaction_id,
        {BY_TYPE[a.type][0]: BY_TYPE[a.type][1].theirs(a) for a in values.attributes},
    )
    same = Message(
        values.message_class,
        values.method,
        theirs.transaction_id,
        tuple(TRANSLATIONS[name].ours(value) for name, value in theirs.attributes.items()),
    )
    if key is not None:
        theirs.add_message_integrity(key)  # and FINGERPRINT
        same = same.with_message_integrity(key).with_fingerprint()
    elif fingerprint:
        theirs.add_fingerprint()
        same = same.with_fingerprint()
    assert same.encode() == bytes(theirs)
    decoded = Message.decode(bytes(theirs))
    assert decoded == same
    assert decoded.attributes[: len(values.attributes)] == values.attributes
    assert decoded.check_message_integrity(key or b"") is (key is not None)
    assert not decoded.check_message_integrity(b"another" + (key or b""))


# --- What they make of any bytes ---

REFUSED = "refused"
Outcome = str | tuple[int, int, bytes, dict[str, Any]]


def of_aioice(data: bytes) -> Outcome:
    try:
        theirs = aioice.parse_message(data)
    except ValueError:
        return REFUSED
    except struct.error:
        return "struct.error"
    return theirs.message_class, theirs.message_method, theirs.transaction_id, theirs.attributes


def of_codec(data: bytes) -> Outcome:
    try:
        decoded = Message.decode(data)
    except StunError:
        return REFUSED
    theirs = CLASSES[decoded.message_class]
    return theirs, decoded.method, decoded.transaction_id, translated(decoded)


class Span(NamedTuple):
    """An attribute as it lies in a message; `value` is shorter than `length` beyond the end."""

    type: int
    length: int
    value: bytes
    end: int


def spans(data: bytes) -> list[Span]:
    """Return where attributes lie, whatever is wrong with them."""
    found = []
    start = 20
    while start + 4 <= len(data):
        kind, length = struct.unpack_from("!HH", data, start)
        end = start + 4 + length
        found.append(Span(kind, length, data[start + 4 : end], end))
        start = end + -length % 4
    return found


def signed(data: bytes) -> list[Span]:
    """Return the attributes up to MESSAGE-INTEGRITY, and FINGERPRINT behind it."""
    found: list[Span] = []
    for span in spans(data):
        if not any(before.type == 0x0008 for before in found) or span.type == 0x8028:
            found.append(span)
    return found


def some(found: list[Span], wrong: Callable[[bytes], Any], *kinds: int) -> bool:
    """Whether a value of one of these types is wrong."""
    return any(span.type in kinds and wrong(span.value) for span in found)


def is_refused(span: Span) -> bool:
    """Whether the codec refuses the value."""
    known = stun.ATTRIBUTES.get(span.type)
    if known is None:
        return False
    if len(span.value) not in known.SIZES:
        return True
    try:
        known.check(span.value)
    except StunError:
        return True
    return False


def behind(data: bytes, kind: int) -> list[Span]:
    """Return the attributes behind the first of a type, except FINGERPRINT."""
    types = [span.type for span in spans(data)]
    rest = spans(data)[types.index(kind) + 1 :] if kind in types else []
    return [span for span in rest if span.type != FINGERPRINT]


def is_repeated(found: list[Span]) -> bool:
    """Whether a type that aioice knows is there twice, with different values."""
    values: dict[int, bytes] = {}
    return any(
        span.type in BY_TYPE and values.setdefault(span.type, span.value) != span.value
        for span in found
    )


def is_utf_8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_code(value: bytes) -> bool:
    """Whether it begins like ERROR-CODE; reserved bits do not matter."""
    return len(value) >= 4 and 3 <= value[2] & 0b111 <= 6 and value[3] <= 99


# Types of which aioice unpacks a number, by the size of the number.
NUMBERS_4 = (0x0003, 0x000D, 0x0019, 0x0024, FINGERPRINT)
NUMBERS_8 = (0x8029, 0x802A)
TEXTS = (0x0006, 0x0014, 0x0015, SOFTWARE)


class Difference(NamedTuple):
    """A rule that aioice does not apply, or otherwise.

    `applies` says of which messages that is true. `data` is one of them, with what the two make
    of it: the attributes, unless they refuse it.
    """

    why: str
    applies: Callable[[bytes], Any]
    data: bytes
    theirs: Any
    ours: Any


SAMPLE = attribute(SOFTWARE, b"x")
READ = {"SOFTWARE": "x"}

DIFFERENCES = {
    "first bits": Difference(
        "Section 5: the first two bits are zero. aioice masks them away.",
        lambda data: data[0] & 0xC0,
        message(SAMPLE, field=0xC001),
        READ,
        REFUSED,
    ),
    "cookie": Difference(
        "Section 5: the magic cookie. aioice reads it and does not look at it.",
        lambda data: data[4:8] != bytes.fromhex("2112a442"),
        message(SAMPLE, cookie=0x2112A443),
        READ,
        REFUSED,
    ),
    "length": Difference(
        "Section 5: the length is a multiple of 4. aioice takes any that is true.",
        lambda data: len(data) % 4,
        with_length(message(SAMPLE) + b"\0", 9),
        READ,
        REFUSED,
    ),
    "method": Difference(
        "Section 5: a method has 12 bits. aioice refuses those that it has no name for.",
        lambda data: int.from_bytes(data[:2]) & 0x3EEF not in {*aioice.Method},
        message(SAMPLE, field=0x000A),
        REFUSED,
        READ,
    ),
    "beyond the end": Difference(
        "Section 14: a value lies in the message. aioice takes what there is of it.",
        lambda data: any(span.length > len(span.value) for span in spans(data)),
        message(SAMPLE[:2] + b"\0\x09" + b"abcd"),
        {"SOFTWARE": "abcd"},
        REFUSED,
    ),
    "size of a number": Difference(
        "A wrong size is a ValueError of aioice for an address, and no ValueError for a number: "
        "struct.error escapes from parse_message.",
        lambda data: (
            some(signed(data), lambda v: len(v) != 4, *NUMBERS_4)
            or some(signed(data), lambda v: len(v) != 8, *NUMBERS_8)
            or some(signed(data), lambda v: len(v) < 2, 0x000C)
        ),
        message(attribute(0x0024, b"abc")),
        "struct.error",
        REFUSED,
    ),
    "size of CHANNEL-NUMBER": Difference(
        "RFC 8656 section 18.1: 4 bytes. aioice takes 2 and more.",
        lambda data: some(signed(data), lambda v: len(v) != 4, 0x000C),
        message(attribute(0x000C, b"\x40\0")),
        {"CHANNEL-NUMBER": 0x4000},
        REFUSED,
    ),
    "size of USE-CANDIDATE": Difference(
        "RFC 8445 section 16.1: no value. aioice does not look at it.",
        lambda data: some(signed(data), len, 0x0025),
        message(attribute(0x0025, b"abcd")),
        {"USE-CANDIDATE": None},
        REFUSED,
    ),
    "size of MESSAGE-INTEGRITY": Difference(
        "Section 14.5: 20 bytes. aioice takes any number, and the check fails later.",
        lambda data: some(signed(data), lambda v: len(v) != 20, MESSAGE_INTEGRITY),
        message(attribute(MESSAGE_INTEGRITY, bytes(19))),
        {"MESSAGE-INTEGRITY": bytes(19)},
        REFUSED,
    ),
    "range of ERROR-CODE": Difference(
        "Section 14.8: class 3 to 6, number 0 to 99. aioice takes 0 to 255 of each.",
        lambda data: some(signed(data), lambda v: not is_code(v[:4]), 0x0009),
        message(attribute(0x0009, b"\0\0\x02\xff")),
        {"ERROR-CODE": (455, "")},
        REFUSED,
    ),
    "reserved bits of ERROR-CODE": Difference(
        "Section 14.8: the class has 3 bits, those in front are reserved. aioice reads 8.",
        lambda data: some(signed(data), lambda v: v[2:3] > b"\7", 0x0009),
        message(attribute(0x0009, b"\0\0\x0c\x01")),
        {"ERROR-CODE": (1201, "")},
        {"ERROR-CODE": (401, "")},
    ),
    "reserved bits of CHANGE-REQUEST": Difference(
        "RFC 5780 section 7.2: two flags. aioice has all 32 bits as a number.",
        lambda data: some(signed(data), lambda v: int.from_bytes(v) & ~6, 0x0003),
        message(attribute(0x0003, b"\x80\0\0\x06")),
        {"CHANGE-REQUEST": 0x80000006},
        {"CHANGE-REQUEST": 0x00000006},
    ),
    "reserved bits of REQUESTED-TRANSPORT": Difference(
        "RFC 8656 section 18.8: a protocol and 24 reserved bits. aioice has all as a number.",
        lambda data: some(signed(data), lambda v: any(v[1:]), 0x0019),
        message(attribute(0x0019, b"\x11\0\0\x01")),
        {"REQUESTED-TRANSPORT": 0x11000001},
        {"REQUESTED-TRANSPORT": 0x11000000},
    ),
    "long text": Difference(
        "Sections 14.3, 14.8 to 14.10 and 14.14: 763 bytes at most. aioice takes any number.",
        lambda data: (
            some(signed(data), lambda v: len(v) > 763, *TEXTS)
            or some(signed(data), lambda v: len(v) > 767, 0x0009)
        ),
        message(attribute(SOFTWARE, b"a" * 764)),
        {"SOFTWARE": "a" * 764},
        REFUSED,
    ),
    "text of NONCE": Difference(
        "Section 14.10: text in UTF-8. aioice has it as bytes.",
        lambda data: some(signed(data), lambda v: not is_utf_8(v), 0x0015),
        message(attribute(0x0015, b"\xff")),
        {"NONCE": b"\xff"},
        REFUSED,
    ),
    "FINGERPRINT is not last": Difference(
        "Section 14.7: FINGERPRINT is last. aioice checks it wherever it stands, under a header "
        "of its own making, and believes what is behind it.",
        lambda data: some(spans(data)[:-1], lambda _: True, FINGERPRINT),
        with_length(fingerprinted(message()) + SAMPLE, 16),
        {"FINGERPRINT": 0x5B0FF6FC} | READ,
        REFUSED,
    ),
    "duplicates": Difference(
        "Section 14: of attributes that may be there once, the first counts. In aioice the last.",
        lambda data: is_repeated(signed(data)),
        message(SAMPLE, attribute(SOFTWARE, b"y")),
        {"SOFTWARE": "y"},
        {"SOFTWARE": "x"},
    ),
    "addresses of RFC 3489": Difference(
        "aioice reads SOURCE-ADDRESS and CHANGED-ADDRESS, which RFC 8489 section 18.3 reserves. "
        "To the codec they are any unknown types, of which it keeps the bytes.",
        lambda data: some(signed(data), lambda v: _unpacked(v) == v, 0x0004, 0x0005),
        message(attribute(0x0004, b"abcd")),
        REFUSED,
        {"SOURCE-ADDRESS": b"abcd"},
    ),
    "values of types that aioice does not know": Difference(
        "aioice skips them, whatever they contain.",
        lambda data: any(s.type not in BY_TYPE and is_refused(s) for s in spans(data)),
        message(attribute(0x0027, b"abc"), SAMPLE),
        READ,
        REFUSED,
    ),
    "behind MESSAGE-INTEGRITY-SHA256": Difference(
        "Section 14.6: it ends what is looked at. aioice does not know it.",
        lambda data: behind(data, MESSAGE_INTEGRITY_SHA256),
        message(attribute(MESSAGE_INTEGRITY_SHA256, bytes(32)), SAMPLE),
        READ,
        {},
    ),
}


def explanations(data: bytes) -> list[str]:
    """Return the rules that the two may disagree about in a message with a whole header."""
    return [name for name, rule in DIFFERENCES.items() if rule.applies(data)]


@pytest.mark.parametrize("rule", DIFFERENCES.values(), ids=DIFFERENCES)
def test_a_known_difference(rule: Difference) -> None:
    theirs, ours = of_aioice(rule.data), of_codec(rule.data)
    assert rule.theirs == (theirs if isinstance(theirs, str) else theirs[3])
    assert rule.ours == (ours if isinstance(ours, str) else ours[3])
    assert rule.applies(rule.data)


SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 19, 20, 24, 32])
TYPES = st.one_of(
    st.sampled_from(sorted(BY_TYPE)),
    st.sampled_from(sorted(stun.ATTRIBUTES)),
    st.sampled_from([0x0000, 0x7FFF, 0xFFFF]),
)
CONTENTS = st.one_of(
    st.just(bytes(800)),
    st.sampled_from([b"\0\1", b"\0\2", b"\0\0\4\1"]).flatmap(
        lambda start: SIZES.map(lambda size: (start + bytes(size))[:size])
    ),
    SIZES.flatmap(lambda size: st.binary(min_size=size, max_size=size)),
)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A message that both can read, and then up to three things that may be wrong with it."""
    whole = draw(expressible())
    first, second = draw(st.booleans()), draw(st.booleans())
    if first:
        whole = whole.with_message_integrity(b"key")
    # A response has one of the two.
    if second and not (first and whole.message_class in {Class.SUCCESS, Class.ERROR}):
        whole = whole.with_message_integrity_sha256(b"key")
    if draw(st.booleans()):
        whole = whole.with_fingerprint()
    data = whole.encode()
    for fault in draw(st.lists(st.sampled_from(FAULTS), min_size=1, max_size=3)):
        data = draw(fault(data))
    return data


def flipped(data: bytes) -> st.SearchStrategy[bytes]:
    """One bit is another."""
    size = len(data)
    bits = numbers(3).flatmap(lambda bit: st.integers(0, size - 1).map(lambda i: (i, 1 << bit)))
    return bits.map(lambda at: data[: at[0]] + bytes([data[at[0]] ^ at[1]]) + data[at[0] + 1 :])


def inserted(data: bytes) -> st.SearchStrategy[bytes]:
    """One attribute more, anywhere."""
    ends = [20, *(20 + len(data[20 : s.end]) + -s.end % 4 for s in spans(data))]
    made = st.builds(attribute, TYPES, CONTENTS)
    return st.builds(
        lambda at, more: lengthened(data[:at] + more + data[at:]), st.sampled_from(ends), made
    )


def resized(data: bytes) -> st.SearchStrategy[bytes]:
    """One attribute says that it has another length."""
    starts = [s.end - s.length - 4 for s in spans(data)]
    if not starts:
        return st.just(data)
    return st.builds(
        lambda at, n: data[: at + 2] + struct.pack("!H", n) + data[at + 4 :],
        st.sampled_from(starts),
        st.integers(0, 40) | numbers(16),
    )


def cut(data: bytes) -> st.SearchStrategy[bytes]:
    """The end is missing, and the length is true."""
    return st.integers(20, len(data)).map(lambda size: lengthened(data[:size]))


def refingerprinted(data: bytes) -> st.SearchStrategy[bytes]:
    """A FINGERPRINT that is right, perhaps not the first."""
    return st.just(fingerprinted(data))


def lengthened(data: bytes) -> bytes:
    return with_length(data, len(data) - 20)


FAULTS = [flipped, inserted, inserted, resized, cut, refingerprinted]


@given(broken())
def test_a_difference_over_any_bytes_is_a_known_one(data: bytes) -> None:
    if of_aioice(data) != of_codec(data):
        assert explanations(data)


@given(expressible())
def test_a_message_that_is_right_needs_no_explanation(ours: Message) -> None:
    """The rules excuse nothing where nothing is wrong."""
    assert not explanations(ours.with_message_integrity(b"key").with_fingerprint().encode())


# --- What bytes do not show ---


def test_aioice_forgets_what_it_does_not_know() -> None:
    """Section 6.3.1: a type that must be understood and is not has a 420 for an answer."""
    data = message(attribute(0x7FFF, b"x"), SAMPLE)
    assert aioice.parse_message(data).attributes == READ
    assert bytes(aioice.parse_message(data)) != data
    assert Message.decode(data).unknown_required == (0x7FFF,)
    assert Message.decode(data).encode() == data


def test_aioice_checks_the_weaker_of_two_integrities() -> None:
    """Section 9.1.3: where MESSAGE-INTEGRITY-SHA256 is, it is the one that is checked."""
    signed_by = Message.request().with_message_integrity(b"key")
    for key in (b"key", b"another"):
        data = signed_by.with_message_integrity_sha256(key).encode()
        assert aioice.parse_message(data).check_message_integrity(b"key")
        assert Message.decode(data).check_message_integrity(b"key") is (key == b"key")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SOFTWARE", 128 * "a"),
        ("USERNAME", 509 * "a"),
        ("REALM", 'a "quote"'),
        ("NONCE", b'a "quote"'),
        ("ERROR-CODE", (700, "")),
        ("PRIORITY", 0),
        ("CHANNEL-NUMBER", 0x3FFF),
    ],
)
def test_aioice_writes_what_may_not_be_sent(name: str, value: Any) -> None:
    """The codec refuses to make it. It reads most of it: see `pktstun.stun.Message.decode`."""
    theirs = aioice.Message(aioice.Method.BINDING, aioice.Class.REQUEST, bytes(12), {name: value})
    assert aioice.parse_message(bytes(theirs)).attributes == {name: value}
    with pytest.raises(StunError):
        TRANSLATIONS[name].ours(value)
