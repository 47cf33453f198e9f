"""NAT behaviour discovery (RFC 5780): from where is answered, to where, and what is said of it."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.stun import (
    AttributeType,
    ChangeRequest,
    Class,
    Drop,
    ErrorCode,
    MappedAddress,
    Message,
    NatDiscovery,
    OtherAddress,
    Padding,
    Reply,
    ResponderOptions,
    ResponseOrigin,
    ResponsePort,
    StunError,
    TransportAddress,
    UnknownAttributes,
    XorMappedAddress,
    respond,
)
from tests.strategies.datagrams import attribute, datagrams, fingerprinted, message

address = TransportAddress.parse

CLIENT = address("203.0.113.7:4000")
CLIENT6 = address("[2001:db8:c::7]:4000")
V4 = NatDiscovery((IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")), (3478, 3479))
V6 = NatDiscovery((IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")), (3478, 3479))
BEHIND_NAT = replace(V4, advertised=(IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2")))
FAMILIES = [(V4, CLIENT), (V6, CLIENT6), (BEHIND_NAT, CLIENT)]


def answered(
    request: bytes, server: TransportAddress, options: ResponderOptions, client: TransportAddress
) -> tuple[Reply, Message]:
    reply = respond(request, client, server, options)
    assert isinstance(reply, Reply)
    return reply, Message.decode(reply.datagram)


@pytest.mark.parametrize(("discovery", "client"), FAMILIES)
@pytest.mark.parametrize("change_ip", [False, True])
@pytest.mark.parametrize("change_port", [False, True])
@pytest.mark.parametrize("which", range(4))
def test_the_reply_leaves_from_where_it_was_asked_for(
    discovery: NatDiscovery,
    client: TransportAddress,
    change_ip: bool,  # noqa: FBT001 - parametrized
    change_port: bool,  # noqa: FBT001 - parametrized
    which: int,
) -> None:
    ip, port = which >> 1, which & 1
    server = TransportAddress(discovery.ips[ip], discovery.ports[port])
    request = Message.request(ChangeRequest(change_ip, change_port)).encode()
    reply, said = answered(request, server, ResponderOptions(discovery=(discovery,)), client)
    told = discovery.advertised or discovery.ips
    origin_ip, origin_port = ip ^ change_ip, port ^ change_port
    assert reply.source == (discovery.ips[origin_ip], discovery.ports[origin_port])
    assert reply.destination == client
    assert said.attributes == (
        XorMappedAddress(client),
        MappedAddress(client),
        ResponseOrigin(TransportAddress(told[origin_ip], discovery.ports[origin_port])),
        OtherAddress(TransportAddress(told[1 - ip], discovery.ports[1 - port])),
    )


def test_a_mapped_destination_is_the_ipv4_one() -> None:
    server = TransportAddress(IPv6Address("::ffff:192.0.2.1"), 3478)
    client = TransportAddress(IPv6Address("::ffff:203.0.113.7"), 4000)
    options = ResponderOptions(discovery=(V4,))
    reply, said = answered(Message.request().encode(), server, options, client)
    assert reply.source == server
    assert said.get(ResponseOrigin) == ResponseOrigin(address("192.0.2.1:3478"))
    assert said.get(MappedAddress) == MappedAddress(CLIENT)


def test_elsewhere_nothing_is_different() -> None:
    """On the loopback interface, say, or in the family that has one address only."""
    plain, options = ResponderOptions(), ResponderOptions(discovery=(V4,))
    for request in (
        Message.request(),
        Message.request(ChangeRequest(change_ip=True)),
        Message.request(ResponsePort(9)),
        Message.request(Padding(bytes(100))),
    ):
        for client, server in (
            (CLIENT, address("192.0.2.1:3480")),
            (CLIENT, address("192.0.2.3:3478")),
            (CLIENT6, address("[2001:db8::1]:3478")),
        ):
            data = request.encode()
            assert respond(data, client, server, options) == respond(data, client, server, plain)


@pytest.mark.parametrize("length", [2, 4])
def test_the_response_port(length: int) -> None:
    request = message(attribute(0x0027, struct.pack("!HH", 9, 0)[:length]))
    options = ResponderOptions(discovery=(V4,))
    reply, said = answered(request, V4.endpoints[0], options, CLIENT)
    assert reply.destination == (CLIENT.ip, 9)
    assert reply.source == V4.endpoints[0]
    assert said.get(XorMappedAddress) == XorMappedAddress(CLIENT)


def test_a_response_port_never_leads_back_to_the_server() -> None:
    options = ResponderOptions(
        discovery=(V4,), endpoints=frozenset(V4.endpoints), allow_loopback=True
    )
    client = TransportAddress(V4.ips[1], 4000)
    for port, expected in ((3478, Drop.OWN_SOURCE), (3479, Drop.OWN_SOURCE), (3480, None)):
        request = Message.request(ResponsePort(port)).encode()
        result = respond(request, client, V4.endpoints[0], options)
        assert result is expected or (expected is None and isinstance(result, Reply))


SENSELESS = [
    attribute(0x0003, b""),
    attribute(0x0003, bytes(3)),
    attribute(0x0003, bytes(8)),
    attribute(0x0027, b""),
    attribute(0x0027, bytes(1)),
    attribute(0x0027, bytes(8)),
    attribute(0x0027, bytes(4)),  # port 0
    attribute(0x0027, bytes([0, 9, 0, 0])) + attribute(0x0026, bytes(100)),
]


@pytest.mark.parametrize("attributes", SENSELESS)
def test_what_makes_no_sense_gets_400(attributes: bytes) -> None:
    options = ResponderOptions(discovery=(V4,))
    reply, said = answered(message(attributes), V4.endpoints[0], options, CLIENT)
    assert said.message_class is Class.ERROR
    assert said.attributes == (ErrorCode(400),)
    assert (reply.source, reply.destination) == (V4.endpoints[0], CLIENT)
    # What is unknown comes before.
    _, said = answered(message(attributes, attribute(0x7777)), V4.endpoints[0], options, CLIENT)
    assert said.get(UnknownAttributes) == UnknownAttributes((AttributeType(0x7777),))


@given(
    size=st.integers(0, 1500),
    fingerprint=st.booleans(),
    software=st.none() | st.just("pktstun"),
)
def test_padding_fills_up_to_the_size_of_the_request(
    size: int,
    fingerprint: bool,  # noqa: FBT001 - drawn
    software: str | None,
) -> None:
    options = ResponderOptions(discovery=(V4,), software=software)
    request = message(attribute(0x0026, bytes(size)))
    plain = message()
    if fingerprint:
        request, plain = fingerprinted(request), fingerprinted(plain)
    reply, said = answered(request, V4.endpoints[0], options, CLIENT)
    shortest = len(answered(plain, V4.endpoints[0], options, CLIENT)[0].datagram)
    if len(request) >= shortest + 4:
        assert len(reply.datagram) == len(request)
        assert said.get(Padding) is not None
    else:
        assert len(reply.datagram) == shortest
        assert said.get(Padding) is None
    assert said.has_fingerprint == fingerprint


@given(datagram=datagrams(), family=st.sampled_from(FAMILIES), which=st.integers(0, 3))
def test_the_bound_of_amplification(
    datagram: bytes, family: tuple[NatDiscovery, TransportAddress], which: int
) -> None:
    discovery, client = family
    options = ResponderOptions(discovery=(discovery,))
    reply = respond(datagram, client, discovery.endpoints[which], options)
    if isinstance(reply, Reply):
        assert len(reply.datagram) <= len(datagram) + (48 if client.ip.version == 4 else 96)
        assert reply.source in discovery.endpoints
        assert reply.destination.ip == client.ip


@pytest.mark.parametrize(
    ("ips", "ports", "advertised"),
    [
        (("192.0.2.1", "192.0.2.1"), (1, 2), None),
        (("192.0.2.1", "192.0.2.2"), (1, 1), None),
        (("192.0.2.1", "192.0.2.2"), (0, 1), None),
        (("192.0.2.1", "192.0.2.2"), (1, 65536), None),
        (("192.0.2.1", "2001:db8::1"), (1, 2), None),
        (("192.0.2.1", "192.0.2.2"), (1, 2), ("198.51.100.1", "198.51.100.1")),
        (("192.0.2.1", "192.0.2.2"), (1, 2), ("198.51.100.1", "2001:db8::1")),
    ],
)
def test_what_is_no_set_of_four(
    ips: tuple[str, str], ports: tuple[int, int], advertised: tuple[str, str] | None
) -> None:
    told = advertised and (ip_address(advertised[0]), ip_address(advertised[1]))
    with pytest.raises(StunError, match="NAT discovery takes"):
        NatDiscovery((ip_address(ips[0]), ip_address(ips[1])), ports, told)


def test_there_is_one_for_each_family() -> None:
    ResponderOptions(discovery=(V4, V6))
    with pytest.raises(StunError, match="one of each address family"):
        ResponderOptions(discovery=(V4, BEHIND_NAT))
