"""A listening TCP socket: who may share its port, what it takes in, and who goes on with it."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address

import pytest

from pktstun.kernel import ListeningSocket
from pktstun.kernel.tcp_socket import BUFFER
from pktstun.stun import TransportAddress


def at(host: str, port: int = 0) -> TransportAddress:
    return TransportAddress(ip_address(host), port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_connection_is_taken_in(host: str) -> None:
    with ListeningSocket(at(host)) as listener:
        with pytest.raises(BlockingIOError):
            listener.accept()
        with socket.create_connection((host, listener.address.port)) as client:
            connection, peer = listener.accept()
            with connection:
                assert peer == TransportAddress.from_sockaddr(client.getsockname())
                assert not connection.getblocking()
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                # The kernel counts its own overhead in.
                for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                    assert connection.getsockopt(socket.SOL_SOCKET, option) <= 2 * BUFFER


def test_a_port_is_shared_only_where_both_say_so() -> None:
    with ListeningSocket(at("127.0.0.1")) as listener:
        address = listener.address
        with pytest.raises(OSError, match="in use"):
            ListeningSocket(address, share=False)
        with (
            ListeningSocket(at("0.0.0.0", address.port)) as every,
            socket.create_connection(("127.0.0.1", address.port)),
        ):
            # The one for the address comes before the one for all.
            listener.accept()[0].close()
            with pytest.raises(BlockingIOError):
                every.accept()
    with ListeningSocket(address, share=False):
        pass


def test_ipv4_is_not_taken_by_ipv6() -> None:
    with ListeningSocket(at("::")) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.address.port))


def test_who_has_the_descriptor_has_the_connections_that_wait() -> None:
    with ListeningSocket(at("127.0.0.1")) as listener:
        with (
            socket.create_connection(("127.0.0.1", listener.address.port)),
            ListeningSocket.adopt(os.dup(listener.fileno())) as adopted,
        ):
            assert (adopted.address, adopted.scope) == (listener.address, 0)
            adopted.accept()[0].close()
        assert listener.fileno() != -1
    assert listener.fileno() == -1


def test_silence_is_for_all_who_have_it() -> None:
    with (
        ListeningSocket(at("127.0.0.1")) as listener,
        ListeningSocket.adopt(os.dup(listener.fileno())) as other,
    ):
        listener.silence()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", listener.address.port))
        with pytest.raises(OSError, match="Invalid argument"):
            other.accept()
        # And the port can be had again, though one of the two is still open.
        with ListeningSocket(listener.address, share=False) as again:
            assert again.address == listener.address
