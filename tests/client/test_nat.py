"""NAT discovery where there is no NAT: what is made of servers that do not do their part.

The NATs themselves are in `tests/nat`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from pktstun.client import (
    Behaviour,
    NatReport,
    NatUnsupportedError,
    QueryError,
    discover,
    explain,
)
from pktstun.client._nat import _is_open_after, _Sockets
from pktstun.stun import (
    ErrorCode,
    MappedAddress,
    Message,
    OtherAddress,
    ResponsePort,
    TransportAddress,
    XorMappedAddress,
)
from tests.client.servers import ELSEWHERE, Handler, NatDiscovery, elsewhere, server, success

HERE = ("127.0.0.1", "127.0.0.2")
RTO = 0.05


@pytest.mark.parametrize("loss", [0, 2])
def test_nothing_is_in_the_way(loss: int) -> None:
    with NatDiscovery(HERE, loss=loss) as at:
        report = discover(at, rto=RTO)
    assert not report.is_nat
    assert report.mapping is report.filtering is Behaviour.ENDPOINT_INDEPENDENT
    assert (report.hairpinning, report.rewrites_addresses, report.notes) == (None, False, ())
    assert report.other.ip == TransportAddress.parse(HERE[1]).ip
    assert explain(report) == [
        "There is no NAT and no firewall on the way: peers reach this host directly."
    ]


def test_not_more_than_ten_transactions_are_begun_in_a_second() -> None:
    """RFC 5780 section 5."""
    discovery = NatDiscovery(HERE)
    with discovery as at:
        discover(at, rto=RTO)
    transactions = {request.transaction_id for request in discovery.asked}
    assert len(transactions) == 7
    begun = discovery.first_asked.values()
    # Three and then four, a tenth of a second apart; the machine may have stood still for a while.
    assert max(begun) - min(begun) > 0.3


@pytest.mark.parametrize("other", [None, "127.0.0.1:9", "127.0.0.2"])
def test_a_server_that_does_not_support_it(other: str | None) -> None:
    """It says nothing of another address, or of one with the same address or port."""

    def handler(request: Message, _number: int) -> list[bytes]:
        more = [OtherAddress(TransportAddress.parse(other, at.port))] if other else []
        return [success(request, XorMappedAddress(ELSEWHERE), *more)]

    with (
        server(handler) as at,
        pytest.raises(NatUnsupportedError, match=r"RFC 5780.*a NAT.*--nat-discovery") as caught,
    ):
        discover(at, rto=RTO)
    assert caught.value.mapped == ELSEWHERE
    assert caught.value.local.ip == at.ip


def test_a_server_that_ignores_change_request_says_nothing_about_filters() -> None:
    with NatDiscovery(HERE, changes=False) as at:
        report = discover(at, rto=RTO)
    assert report.filtering is None
    assert "answers from" in report.notes[0]


def test_a_server_that_refuses_change_request() -> None:
    with NatDiscovery(HERE, changes=None) as at:
        report = discover(at, rto=RTO)
    assert report.filtering is None
    assert "420 Unknown Attribute" in report.notes[0]


def test_a_server_whose_other_address_is_silent() -> None:
    """The filter is not blamed for what no filter would keep out."""

    def handler(request: Message, _number: int) -> list[bytes]:
        if len(request.attributes) > 1:
            return []
        other = OtherAddress(TransportAddress.parse("127.0.0.2:9"))
        return [success(request, XorMappedAddress(ELSEWHERE), other)]

    with server(handler) as at:
        report = discover(at, rto=RTO)
        assert report.is_nat
        assert report.mapping is report.filtering is None
        assert "127.0.0.2" in report.notes[0]


@pytest.mark.parametrize("silence", ["is_deaf", "is_alone"])
def test_answers_that_no_invitation_brings(silence: str) -> None:
    with NatDiscovery(HERE, **{silence: True}) as at:  # type: ignore[arg-type]
        report = discover(at, rto=RTO)
    assert report.filtering is None
    assert "even where that was asked before" in report.notes[0]


def test_an_error_or_silence_is_no_report() -> None:
    handlers: list[tuple[Handler, str]] = [
        (lambda request, _: [request.failure(ErrorCode.of(500)).encode()], "500 Server Error"),
        (lambda request, _: [request.success().encode()], "without an address"),
        (lambda _request, _: [], r"no answer.*to 4 requests.*firewall"),
        (elsewhere, "behind a NAT"),
    ]
    for handler, reason in handlers:
        with server(handler) as at, pytest.raises(QueryError, match=reason):
            discover(at, rto=0.01)


def test_addresses_rewritten_on_the_way_are_noticed() -> None:
    """RFC 5780 section 3.6."""

    def handler(request: Message, _number: int) -> list[bytes]:
        rewritten = MappedAddress(TransportAddress.parse("10.0.0.1:1"))
        masked = XorMappedAddress(TransportAddress.parse("192.0.2.1:1"))
        other = OtherAddress(TransportAddress.parse("127.0.0.2:9"))
        return [success(request, rewritten, masked, other)]

    with server(handler) as at:
        assert discover(at, rto=0.01).rewrites_addresses


def test_the_lifetime_is_not_measured_where_there_is_nothing_to_measure() -> None:
    said: list[str] = []
    with NatDiscovery(HERE) as at:
        report = discover(at, rto=RTO, lifetime=60, progress=said.append)
    assert report.lifetime is None
    assert "nothing is in the way" in said[0]


def test_the_lifetime_needs_response_port() -> None:
    for moves in (True, False):
        discovery = NatDiscovery(HERE, moves_answer=moves)
        with discovery as at, _Sockets(at) as sockets:
            assert _is_open_after(0, at, sockets, 0.02) == moves
        assert any(request.get(ResponsePort) for request in discovery.asked)


# --- In words ---

REPORT = NatReport(
    server=TransportAddress.parse("192.0.2.1:3478"),
    other=TransportAddress.parse("192.0.2.2:3479"),
    local=TransportAddress.parse("10.0.0.1:4000"),
    mapped=TransportAddress.parse("198.51.100.1:5000"),
)
ALL = (*Behaviour, None)


@pytest.mark.parametrize(("mapping", "filtering"), [*product(ALL, ALL)])
@pytest.mark.parametrize("is_nat", [True, False])
def test_every_report_can_be_explained(
    mapping: Behaviour | None,
    filtering: Behaviour | None,
    is_nat: bool,  # noqa: FBT001 - a parameter
) -> None:
    local = REPORT.local if is_nat else REPORT.mapped
    report = replace(REPORT, mapping=mapping, filtering=filtering, local=local)
    sentences = explain(report)
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)
    assert ("Your NAT" in sentences[0]) == (is_nat and mapping is not None)
    if mapping and filtering:
        assert any("peers" in each or "Peer-to-peer" in each for each in sentences)


def test_what_a_good_and_a_bad_nat_mean() -> None:
    good = replace(
        REPORT,
        mapping=Behaviour.ENDPOINT_INDEPENDENT,
        filtering=Behaviour.ADDRESS_AND_PORT_DEPENDENT,
        hairpinning=True,
    )
    mapping, filtering, prospects, hairpinning = explain(good)
    assert mapping == (
        "Your NAT keeps one public address and port for all peers (endpoint-independent mapping)."
    )
    assert filtering == (
        "It lets in the addresses and ports that this host has sent to "
        "(address and port-dependent filtering)."
    )
    assert prospects == (
        "Peer-to-peer works with hole punching (ICE), unless the peer's mapping depends on the "
        "address or port; then a relay (TURN) is needed."
    )
    assert hairpinning == "Two hosts behind it can reach each other at its public address."
    bad = replace(good, mapping=Behaviour.ADDRESS_AND_PORT_DEPENDENT, hairpinning=False)
    assert "relay (TURN) is needed" in explain(bad)[2]
    assert "cannot" in explain(bad)[3]


def test_lifetimes_in_words() -> None:
    assert (
        "30.0 to 35.0 s, where RFC 4787 wants 120 s"
        in explain(replace(REPORT, lifetime=(30, 35)))[-1]
    )
    assert "more than 300 s" in explain(replace(REPORT, lifetime=(300, None)))[-1]
