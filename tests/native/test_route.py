"""The return paths as the loop reads them: the longest prefix decides; torn tables never do."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.kernel import MAX_RETURN_PATHS, ReturnPath, lookup
from pktstun.kernel._ffi import CData, ffi, lib
from pktstun.stats import SharedPage

pytestmark = pytest.mark.native

IPAddress: TypeAlias = IPv4Address | IPv6Address

MACS = [bytes([2, 0, 0, 0, 0, number]) for number in range(3)]
# Few bits differ, so that prefixes and addresses meet.
IPV4 = st.integers(0, 255).map(lambda low: IPv4Address(0xC0000200 | low))
IPV6 = st.integers(0, 255).map(lambda low: IPv6Address(0x20010DB8 << 96 | low))


@st.composite
def networks(draw: st.DrawFn) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    ip = draw(IPV4 | IPV6)
    prefix = ip.max_prefixlen - draw(st.integers(0, 9) | st.integers(0, ip.max_prefixlen))
    return ip_network((ip, prefix), strict=False)


TABLES = st.lists(
    st.builds(
        ReturnPath,
        network=networks(),
        direct=st.booleans(),
        gateway=st.sampled_from([b"", *MACS]),
        reason=st.just(""),
    ),
    max_size=12,
    unique_by=lambda path: path.network,
).map(lambda paths: sorted(paths, key=lambda path: -path.network.prefixlen))


def native_address(ip: IPAddress) -> CData:
    address = ffi.new("struct pktstun_address *")
    address.family = ip.version
    ffi.memmove(address.ip, ip.packed, len(ip.packed))
    return address


def refreshed(page: SharedPage) -> CData:
    own = ffi.new("struct pktstun_routes *")
    lib.pktstun_routes_refresh(page.routes.pointer, own)
    return own


OWN_MAC = bytes([2, 0, 0, 0, 0, 0xFF])


def return_path(own: CData, ip: IPAddress, mac: bytes) -> int:
    return int(lib.pktstun_return_path(own, native_address(ip), OWN_MAC + mac))


@given(TABLES, st.lists(IPV4 | IPV6 | st.ip_addresses(), min_size=1), st.sampled_from(MACS))
def test_the_loop_agrees_with_the_reference(
    paths: list[ReturnPath], ips: list[IPAddress], mac: bytes
) -> None:
    with SharedPage(1) as page:
        page.routes.publish(paths)
        own = refreshed(page)
        for ip in ips:
            path = lookup(tuple(paths), ip)
            if path is None or not path.direct:
                expected = lib.PKTSTUN_RETURN_OTHER_WAY
            elif path.gateway not in {b"", mac}:
                expected = lib.PKTSTUN_RETURN_OTHER_NEIGHBOUR
            else:
                expected = lib.PKTSTUN_RETURN_DIRECT
            assert return_path(own, ip, mac) == expected


EVERYWHERE = ReturnPath(ip_network("0.0.0.0/0"), direct=True, gateway=b"", reason="")
CLIENT = IPv4Address("192.0.2.1")


@pytest.mark.parametrize(
    "mac", [bytes(6), b"\xff" * 6, bytes.fromhex("01005e000001"), OWN_MAC], ids=bytes.hex
)
def test_nobody_has_such_a_mac_address(mac: bytes) -> None:
    """A reply there would reach a group, nobody, or ourselves."""
    with SharedPage(1) as page:
        page.routes.publish([EVERYWHERE])
        own = refreshed(page)
        assert return_path(own, CLIENT, mac) == lib.PKTSTUN_RETURN_OTHER_NEIGHBOUR
        assert return_path(own, CLIENT, MACS[0]) == lib.PKTSTUN_RETURN_DIRECT


def test_the_table_has_room_for_all_paths() -> None:
    assert lib.PKTSTUN_MAX_ROUTES == MAX_RETURN_PATHS


def test_before_anything_is_published_nothing_is_direct() -> None:
    with SharedPage(1) as page:
        assert return_path(refreshed(page), CLIENT, MACS[0]) == lib.PKTSTUN_RETURN_OTHER_WAY


def test_what_is_published_replaces_what_was() -> None:
    with SharedPage(1) as page:
        own = refreshed(page)
        for paths, expected in (
            ([EVERYWHERE], lib.PKTSTUN_RETURN_DIRECT),
            ([], lib.PKTSTUN_RETURN_OTHER_WAY),
            ([EVERYWHERE], lib.PKTSTUN_RETURN_DIRECT),
            ([EVERYWHERE._replace(gateway=MACS[1])], lib.PKTSTUN_RETURN_OTHER_NEIGHBOUR),
        ):
            page.routes.publish(paths)
            lib.pktstun_routes_refresh(page.routes.pointer, own)
            assert return_path(own, CLIENT, MACS[0]) == expected


def test_a_table_that_is_being_written_is_no_table() -> None:
    with SharedPage(1) as page:
        page.routes.publish([EVERYWHERE])
        own = refreshed(page)
        shared = page.routes.pointer
        shared.version += 1
        lib.pktstun_routes_refresh(shared, own)
        assert return_path(own, CLIENT, MACS[0]) == lib.PKTSTUN_RETURN_OTHER_WAY
        shared.version += 1
        lib.pktstun_routes_refresh(shared, own)
        assert return_path(own, CLIENT, MACS[0]) == lib.PKTSTUN_RETURN_DIRECT


def test_nonsense_in_shared_memory_is_not_followed() -> None:
    with SharedPage(1) as page:
        page.routes.publish([EVERYWHERE])
        shared = page.routes.pointer
        shared.entries[0].prefix = 255
        shared.version += 2
        assert return_path(refreshed(page), CLIENT, MACS[0]) == lib.PKTSTUN_RETURN_OTHER_WAY
        shared.entries[0].prefix = 0
        shared.count = 1 << 40
        shared.version += 2
        assert return_path(refreshed(page), CLIENT, MACS[0]) == lib.PKTSTUN_RETURN_OTHER_WAY
