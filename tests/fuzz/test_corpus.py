"""The fuzzer's corpus, replayed: what it has once reached stays right, also without Atheris.

Its checks see hypothesis's inputs as well, and are themselves checked: a codec that is broken
on purpose has to be found out.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.stun import (
    ATTRIBUTES,
    AttributeType,
    Class,
    Drop,
    Message,
    Padding,
    Reply,
    ResponderOptions,
    respond,
)
from tests.fuzz import checks
from tests.fuzz.checks import BrokenError, check, check_respond, delivery
from tests.fuzz.mutator import Parts, mutate
from tests.strategies.datagrams import Delivery, attribute, datagrams, deliveries, message
from tests.strategies.stun import messages

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
CORPUS = {path.name: path.read_bytes() for path in sorted((HERE / "corpus").iterdir())}

encodings = datagrams() | messages().map(Message.encode)


# --- The claims hold ---


@pytest.mark.parametrize("name", CORPUS)
def test_the_claims_hold_for_the_corpus(name: str) -> None:
    check(CORPUS[name])


@given(encodings | st.binary(max_size=64))
def test_the_claims_hold_for_any_bytes(data: bytes) -> None:
    check(data)


@pytest.mark.parametrize("free", range(0, 68, 4))
def test_the_claims_hold_where_there_is_hardly_room(free: int) -> None:
    """The fuzzer's inputs are never so large: the length field has 16 bits."""
    value = bytes(0xFFFC - free - 4)
    assert check(message(attribute(AttributeType.PADDING, value))) == Message.request(
        Padding(value), transaction_id=bytes(range(12))
    )


@given(deliveries())
def test_the_claims_hold_for_any_delivery(one: Delivery) -> None:
    check_respond(*one)


# --- The corpus is worth replaying ---


def test_the_corpus_is_small() -> None:
    assert sum(map(len, CORPUS.values())) < 100 * 1024
    assert len(set(CORPUS.values())) == len(CORPUS)


def test_the_corpus_has_every_attribute_and_class() -> None:
    """A new attribute needs a file: a message with one of it."""
    decoded = list(filter(None, map(check, CORPUS.values())))
    kinds = {attribute.type for message in decoded for attribute in message.attributes}
    assert ATTRIBUTES.keys() - kinds == set()
    assert {message.message_class for message in decoded} == set(Class)


def test_the_corpus_has_every_answer() -> None:
    results = [respond(data, *delivery(data)) for data in CORPUS.values()]
    assert {result for result in results if isinstance(result, Drop)} == set(Drop)
    replies = [Message.decode(one.datagram) for one in results if isinstance(one, Reply)]
    answers = {(reply.message_class, reply.has_fingerprint) for reply in replies}
    assert answers >= {(Class.SUCCESS, True), (Class.SUCCESS, False), (Class.ERROR, False)}


def test_the_dictionary_has_every_attribute() -> None:
    entry = re.compile(r'[a-z0-9_]+=("(?:[^"\\]|\\["\\]|\\x[0-9a-f]{2})+")')
    lines = (HERE / "stun.dict").read_text().splitlines()
    matches = [entry.fullmatch(line) for line in lines if line and not line.startswith("#")]
    words = [ast.literal_eval("b" + match[1]) for match in matches if match]
    assert len(words) == len(matches)
    types = {int.from_bytes(word[:2], "big") for word in words if len(word) == 4}
    assert ATTRIBUTES.keys() - types == set()


# --- The mutations are what they say ---


@given(encodings | st.binary(max_size=64), st.integers(0, 2**32 - 1), st.integers(0, 300))
def test_mutations_fit(data: bytes, seed: int, max_size: int) -> None:
    rng = Random(seed)

    def mutate_bytes(value: bytes, size: int) -> bytes:
        changed = bytearray(value + rng.randbytes(rng.randrange(8)))
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed[:size])

    assert len(mutate(data, max_size, rng, mutate_bytes)) <= max_size


@given(messages())
def test_parts_make_the_message_that_they_are_of(drawn: Message) -> None:
    assert Parts(drawn.encode()).encode() == drawn.encode()


@given(encodings | st.binary(max_size=64))
def test_parts_of_anything_make_a_message(data: bytes) -> None:
    encoded = Parts(data).encode()
    assert Parts(encoded).encode() == encoded
    assert int.from_bytes(encoded[2:4], "big") == len(encoded) - 20


# --- The claims can fail ---


def decode_gives_up(original: Callable[[bytes], Message]) -> Callable[[bytes], Message]:
    def decode(data: bytes) -> Message:
        if len(data) == 19:
            raise IndexError("19 bytes")
        return original(data)

    return decode


def replaced(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def check_the_corpus() -> None:
    for data in CORPUS.values():
        check(data)


FAULTS: list[tuple[Any, str, Callable[[Any], Any], str]] = [
    (Message, "decode", decode_gives_up, "19 bytes"),
    (Message, "encode", replaced(lambda self: bytes(self)[:-4]), "encode undoes decode"),
    (Message, "processed", replaced(property(lambda self: self.attributes)), "processed follows"),
    (Message, "__hash__", replaced(object.__hash__), "equal hashes"),
    (Message, "has_fingerprint", lambda _: False, "FINGERPRINT"),
    (Message, "with_fingerprint", replaced(lambda self: self), "leaves a FINGERPRINT"),
    (Message, "unknown_required", replaced(()), "unknown_required"),
    (
        Message,
        "check_message_integrity",
        replaced(lambda *_, **__: True),
        "nothing is no integrity",
    ),
    (checks, "respond", replaced(lambda *_: None), "dropped"),
    (
        checks,
        "respond",
        replaced(lambda _data, source, to, *_: Reply(b"", to, source)),
        "a reply can be decoded",
    ),
    (
        checks,
        "respond",
        lambda original: lambda *given: original(*given[:3], ResponderOptions(software="x")),
        "SOFTWARE",
    ),
]


@pytest.mark.parametrize(("where", "name", "fault", "claim"), FAULTS)
def test_a_broken_codec_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    fault: Callable[[Any], Any],
    claim: str,
) -> None:
    monkeypatch.setattr(where, name, fault(getattr(where, name)))
    with pytest.raises((BrokenError, IndexError), match=claim):
        check_the_corpus()
