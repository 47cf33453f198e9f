"""Hypothesis strategies for the codec's values: addresses, attributes, messages.

What is drawn here may be sent; `tests.strategies.datagrams` has the bytes that cannot be
decoded, and the ones that no value of the codec encodes to. `BY_CLASS` has a strategy for
every class of the codec's table, and a test says so.
"""

from __future__ import annotations

import string
from typing import Any

from hypothesis import strategies as st

from pktstun import stun
from pktstun.stun import (
    Attribute,
    AttributeType,
    Class,
    ErrorCode,
    Message,
    Method,
    PasswordAlgorithm,
    RawAttribute,
    TransportAddress,
    UnknownAttributes,
)
from tests.strategies.frames import ip_addresses, ports

# The types that have a class, by the RFCs and not by the codec's own table.
STUN_TYPES = frozenset(
    {0x0001, 0x0006, 0x0008, 0x0009, 0x000A, 0x0014, 0x0015, 0x001C, 0x001D, 0x001E, 0x0020}
    | {0x8002, 0x8003, 0x8022, 0x8023, 0x8028}
)
DISCOVERY_TYPES = frozenset({0x0003, 0x0026, 0x0027, 0x802B, 0x802C})
ICE_TYPES = frozenset({0x0024, 0x0025, 0x8029, 0x802A})
TURN_TYPES = frozenset(
    {0x000C, 0x000D, 0x0012, 0x0013, 0x0016, 0x0017, 0x0018, 0x0019, 0x001A, 0x0022}
    | {0x8000, 0x8001, 0x8004}
)
INTERPRETED = STUN_TYPES | DISCOVERY_TYPES | ICE_TYPES | TURN_TYPES

transaction_ids: st.SearchStrategy[bytes] = st.binary(min_size=12, max_size=12)

attribute_types: st.SearchStrategy[AttributeType] = st.one_of(
    st.sampled_from(AttributeType),
    st.sampled_from([0x0000, 0x7FFF, 0x8000, 0xFFFF]).map(AttributeType),
    st.integers(0, 0xFFFF).map(AttributeType),
)

raw_types: st.SearchStrategy[AttributeType] = attribute_types.filter(
    lambda kind: kind not in INTERPRETED
)

# Fewer than 128 characters (RFC 8489 section 14.14), of one to four bytes each.
texts: st.SearchStrategy[str] = st.one_of(
    st.text(max_size=12),
    st.text(max_size=127),
    st.sampled_from("a\u00e9\u20ac\U0001f600").map(lambda character: 127 * character),
)

# RFC 3261 section 25.1: text between quotes, where quotes and backslashes have backslashes.
quoted_texts: st.SearchStrategy[str] = st.lists(
    st.one_of(
        st.characters(exclude_characters='"\\\x7f', exclude_categories=("Cs", "Cc")),
        st.sampled_from(["\t", '\\"', "\\\\", "\\\x01"]),
    ),
    max_size=60,
).map("".join)

_prepared = st.characters(exclude_categories=("Cs", "Cc"))

# Fewer than 509 bytes (RFC 8489 section 14.3).
usernames: st.SearchStrategy[str] = st.one_of(
    st.text(_prepared, min_size=1, max_size=127),
    st.sampled_from(["evtj:h6vY", "a" * 508, "\U0001f600" * 127]),
)

realms: st.SearchStrategy[str] = st.lists(
    st.characters(exclude_characters='"\\', exclude_categories=("Cs", "Cc"))
    | st.sampled_from(['\\"', "\\\\"]),
    min_size=1,
    max_size=60,
).map("".join)

_labels = st.text(string.ascii_letters + string.digits, min_size=1, max_size=63)
domains: st.SearchStrategy[str] = st.one_of(
    st.lists(_labels, min_size=1, max_size=3).map(".".join),
    st.sampled_from(
        ["example.org", "xn--bcher-kva.example.", "a-b", ".".join(["a" * 63] * 4)[:255]]
    ),
)


def addresses() -> st.SearchStrategy[TransportAddress]:
    """Any transport address: both families, mapped ones, and those that nobody may have."""
    return st.builds(TransportAddress, ip_addresses, ports)


def numbers(bits: int) -> st.SearchStrategy[int]:
    """Any unsigned number of so many bits, often one at an edge."""
    return st.sampled_from([0, 1, (1 << bits) - 1]) | st.integers(0, (1 << bits) - 1)


def octets(*sizes: int) -> st.SearchStrategy[bytes]:
    """Bytes of one of these sizes."""
    return st.sampled_from(sizes).flatmap(lambda size: st.binary(min_size=size, max_size=size))


error_codes: st.SearchStrategy[int] = st.sampled_from([300, 420, 699]) | st.integers(300, 699)
families = st.sampled_from(stun.AddressFamily)
algorithms: st.SearchStrategy[PasswordAlgorithm] = st.builds(
    PasswordAlgorithm,
    st.sampled_from([1, 2, 0xFFFF]) | numbers(16),
    st.just(b"") | st.binary(max_size=9),
)

BY_CLASS: dict[Any, st.SearchStrategy[Attribute]] = {
    stun.MappedAddress: st.builds(stun.MappedAddress, addresses()),
    stun.XorMappedAddress: st.builds(stun.XorMappedAddress, addresses()),
    stun.Username: st.builds(stun.Username, usernames),
    stun.UserHash: st.builds(stun.UserHash, octets(32)),
    stun.MessageIntegrity: st.builds(stun.MessageIntegrity, octets(20)),
    stun.MessageIntegritySha256: st.builds(stun.MessageIntegritySha256, octets(16, 20, 24, 28, 32)),
    stun.Fingerprint: st.builds(stun.Fingerprint, numbers(32)),
    stun.ErrorCode: st.builds(stun.ErrorCode, error_codes, texts),
    stun.Realm: st.builds(stun.Realm, realms),
    stun.Nonce: st.builds(stun.Nonce, quoted_texts),
    stun.PasswordAlgorithms: st.builds(
        stun.PasswordAlgorithms, st.lists(algorithms, min_size=1, max_size=4).map(tuple)
    ),
    stun.PasswordAlgorithm: algorithms,
    stun.UnknownAttributes: st.builds(
        stun.UnknownAttributes, st.lists(attribute_types, min_size=1, max_size=8).map(tuple)
    ),
    stun.Software: st.builds(stun.Software, texts),
    stun.AlternateServer: st.builds(stun.AlternateServer, addresses()),
    stun.AlternateDomain: st.builds(stun.AlternateDomain, domains),
    stun.ChangeRequest: st.builds(stun.ChangeRequest, st.booleans(), st.booleans()),
    stun.ResponseOrigin: st.builds(stun.ResponseOrigin, addresses()),
    stun.OtherAddress: st.builds(stun.OtherAddress, addresses()),
    stun.ResponsePort: st.builds(stun.ResponsePort, numbers(16)),
    stun.Padding: st.builds(stun.Padding, st.binary(max_size=64)),
    stun.Priority: st.builds(stun.Priority, st.integers(1, 2**31 - 1)),
    stun.UseCandidate: st.builds(stun.UseCandidate),
    stun.IceControlled: st.builds(stun.IceControlled, numbers(64)),
    stun.IceControlling: st.builds(stun.IceControlling, numbers(64)),
    stun.ChannelNumber: st.builds(stun.ChannelNumber, st.integers(0x4000, 0x4FFF)),
    stun.Lifetime: st.builds(stun.Lifetime, numbers(32)),
    stun.XorPeerAddress: st.builds(stun.XorPeerAddress, addresses()),
    stun.Data: st.builds(stun.Data, st.binary(max_size=64)),
    stun.XorRelayedAddress: st.builds(stun.XorRelayedAddress, addresses()),
    stun.RequestedAddressFamily: st.builds(stun.RequestedAddressFamily, families),
    stun.EvenPort: st.builds(stun.EvenPort, st.booleans()),
    stun.RequestedTransport: st.builds(stun.RequestedTransport, numbers(8)),
    stun.DontFragment: st.builds(stun.DontFragment),
    stun.ReservationToken: st.builds(stun.ReservationToken, octets(8)),
    stun.AdditionalAddressFamily: st.builds(
        stun.AdditionalAddressFamily, st.just(stun.AddressFamily.IPV6)
    ),
    stun.AddressErrorCode: st.builds(stun.AddressErrorCode, families, error_codes, texts),
    stun.Icmp: st.builds(stun.Icmp, numbers(7), numbers(9), numbers(32)),
}

raw_attributes: st.SearchStrategy[RawAttribute] = st.builds(
    RawAttribute, raw_types, st.binary(max_size=64)
)

# What stands at a certain place, or in certain messages only; `messages` puts it there.
BOUND = frozenset(
    {
        stun.MessageIntegrity,
        stun.MessageIntegritySha256,
        stun.Fingerprint,
        stun.UnknownAttributes,
        stun.PasswordAlgorithm,
        stun.ErrorCode,
    }
)


def any_attributes() -> st.SearchStrategy[Attribute]:
    """Any attribute at all, whether or not it may stand alone."""
    return st.one_of(*BY_CLASS.values(), raw_attributes)


def attributes() -> st.SearchStrategy[Attribute]:
    """Any attribute that may stand anywhere in any message."""
    free = [strategy for cls, strategy in BY_CLASS.items() if cls not in BOUND]
    return st.one_of(*free, raw_attributes)


keys: st.SearchStrategy[bytes] = st.binary(max_size=80)


@st.composite
def unprotected_messages(draw: st.DrawFn) -> Message:
    """Any message without integrity and FINGERPRINT, some with duplicates."""
    message_class = draw(st.sampled_from(Class))
    drawn = draw(st.lists(attributes(), max_size=6))
    if message_class is Class.REQUEST and draw(st.booleans()):
        drawn.append(draw(algorithms))
    if message_class is Class.ERROR:
        error = draw(BY_CLASS[ErrorCode])
        drawn.insert(draw(st.integers(0, len(drawn))), error)
        assert isinstance(error, ErrorCode)
        if error.code == 300:
            drawn.append(draw(BY_CLASS[stun.AlternateServer]))
        if error.code == 420:
            drawn.append(draw(BY_CLASS[UnknownAttributes]))
    elif draw(st.booleans()) and drawn:
        drawn.insert(draw(st.integers(0, len(drawn))), draw(st.sampled_from(drawn)))
    return Message(
        message_class,
        Method(draw(st.sampled_from([0x000, 0x001, 0xFFF]) | numbers(12))),
        draw(transaction_ids),
        tuple(drawn),
    )


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any message: with either integrity, both or none, half of them with FINGERPRINT."""
    message = draw(unprotected_messages())
    first, second = draw(st.booleans()), draw(st.booleans())
    if first:
        message = message.with_message_integrity(draw(keys))
    # A response has one of the two (RFC 8489 section 9.1.3).
    if second and not (first and message.message_class in {Class.SUCCESS, Class.ERROR}):
        size = draw(st.sampled_from([16, 20, 24, 28, 32]))
        message = message.with_message_integrity_sha256(draw(keys), size)
    return message.with_fingerprint() if draw(st.booleans()) else message
