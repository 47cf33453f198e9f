"""Hypothesis strategies for the codec's values: addresses, attributes, messages.

What is drawn here can be encoded; `tests.strategies.datagrams` has the bytes that cannot be
decoded, and the ones that no value of the codec encodes to.
"""

from __future__ import annotations

from hypothesis import strategies as st

from pktstun.stun import (
    Attribute,
    AttributeType,
    Class,
    ErrorCode,
    MappedAddress,
    Message,
    Method,
    RawAttribute,
    Software,
    TransportAddress,
    UnknownAttributes,
    XorMappedAddress,
)
from tests.strategies.frames import ip_addresses, ports

# The types that have a class, by RFC 8489 section 18.3 and not by the codec's own table.
INTERPRETED = frozenset({0x0001, 0x0009, 0x000A, 0x0020, 0x8022, 0x8028})

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


def addresses() -> st.SearchStrategy[TransportAddress]:
    """Any transport address: both families, mapped ones, and those that nobody may have."""
    return st.builds(TransportAddress, ip_addresses, ports)


def attributes() -> st.SearchStrategy[Attribute]:
    """Any attribute but FINGERPRINT, which depends on all the others."""
    return st.one_of(
        st.builds(MappedAddress, addresses()),
        st.builds(XorMappedAddress, addresses()),
        st.builds(Software, texts),
        st.builds(ErrorCode, st.sampled_from([300, 420, 699]) | st.integers(300, 699), texts),
        st.builds(UnknownAttributes, st.lists(attribute_types, max_size=8).map(tuple)),
        st.builds(RawAttribute, raw_types, st.binary(max_size=64)),
    )


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any message, some with duplicates, half of them with FINGERPRINT."""
    drawn = draw(st.lists(attributes(), max_size=6))
    if draw(st.booleans()) and drawn:
        drawn.insert(draw(st.integers(0, len(drawn))), draw(st.sampled_from(drawn)))
    message = Message(
        draw(st.sampled_from(Class)),
        Method(draw(st.sampled_from([0x000, 0x001, 0xFFF]) | st.integers(0, 0xFFF))),
        draw(transaction_ids),
        tuple(drawn),
    )
    return message.with_fingerprint() if draw(st.booleans()) else message
