"""A STUN client: one Binding transaction over UDP, with RFC 8489's retransmissions.

Theory of operation: the socket is connected, so that the kernel drops what other hosts send
and reports an ICMP error as ECONNREFUSED, which ends the transaction (section 6.2.1). A
datagram that is no response to this request (another transaction id, no STUN, a FINGERPRINT
that does not match) is ignored, as section 6.3 says, and the wait goes on.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pktstun.errors import PktstunError
from pktstun.stun import (
    Action,
    Attribute,
    Class,
    Message,
    Software,
    Transaction,
    TransportAddress,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["QueryError", "QueryResult", "query", "resolve"]

_BUFFER = 65535


class QueryError(PktstunError):
    """There is no correct answer; the text says why."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a server said.

    `local` is the socket's own address, so that `mapped != local` tells of a NAT.
    """

    server: TransportAddress
    local: TransportAddress
    mapped: TransportAddress
    round_trip: float
    """Seconds from the last sending to the answer."""
    requests: int
    """How often the request was sent."""
    software: str | None
    fingerprint: bool
    """Whether the answer had a FINGERPRINT; a wrong one is no answer."""


def resolve(host: str, port: int, family: int = socket.AF_UNSPEC) -> TransportAddress:
    """Return the first address of a host name or literal.

    Args:
        host: a name, an IPv4 or an IPv6 address, with a zone (`fe80::1%eth0`) if need be.
        port: goes into the result.
        family: AF_INET or AF_INET6 to have only those.

    Raises:
        QueryError: the name cannot be resolved.
    """
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise QueryError(f"cannot resolve {host!r}: {reason}") from error
    return TransportAddress.from_sockaddr(found[0][4])


def query(
    server: TransportAddress,
    *,
    timeout: float | None = None,
    rto: float = 0.5,
    attributes: Sequence[Attribute] = (),
    fingerprint: bool = True,
) -> QueryResult:
    """Ask a server for this host's address as it sees it.

    Args:
        server: where to send the request.
        timeout: seconds after which to give up; None for RFC 8489's 39.5 s at an rto of 0.5.
        rto: seconds until the first retransmission.
        attributes: of the request, in front of FINGERPRINT.
        fingerprint: put FINGERPRINT into the request.

    Raises:
        QueryError: no answer, an error response, or one without an address.
    """
    request = Message.request(*attributes)
    if fingerprint:
        request = request.with_fingerprint()
    family = socket.AF_INET6 if server.ip.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(server.ip), server.port))
            response, round_trip, requests = _transact(sock, request, timeout, rto)
            local = TransportAddress.from_sockaddr(sock.getsockname())
    except OSError as error:
        hint = ""
        if server.ip.version == 6 and server.ip.is_link_local and "%" not in str(server.ip):
            hint = f"; say on which interface, as {server.ip}%eth0"
        raise QueryError(f"no answer from {server}: {error.strerror}{hint}") from error
    mapped = _check_response(response, server)
    software = response.get(Software)
    return QueryResult(
        server=server,
        local=local,
        mapped=mapped,
        round_trip=round_trip,
        requests=requests,
        software=software.text if software else None,
        fingerprint=response.has_fingerprint,
    )


def _transact(
    sock: socket.socket, request: Message, timeout: float | None, rto: float
) -> tuple[Message, float, int]:
    data = request.encode()
    begin = sent_at = time.monotonic()
    transaction = Transaction(request, begin, rto=rto)
    end = None if timeout is None else begin + timeout
    while True:
        now = time.monotonic()
        action = transaction.poll(now)
        if action is Action.FAIL or (end is not None and now >= end):
            peer = TransportAddress.from_sockaddr(sock.getpeername())
            refused = f"; ignored: {transaction.refused}" if transaction.refused else ""
            raise QueryError(
                f"no answer from {peer} to {transaction.sent} requests "
                f"in {now - begin:.1f} s{refused}"
            )
        if action is Action.SEND:
            sock.send(data)
            sent_at = now
        wake = transaction.deadline if end is None else min(transaction.deadline, end)
        sock.settimeout(max(wake - time.monotonic(), 0.001))
        try:
            received = sock.recv(_BUFFER)
        except TimeoutError:
            continue
        response = transaction.receive(received)
        if response is not None:
            return response, time.monotonic() - sent_at, transaction.sent


def _check_response(response: Message, server: TransportAddress) -> TransportAddress:
    if response.message_class == Class.ERROR:
        error = response.error
        said = f"{error.code} {error.reason}".strip() if error else "without a code"
        raise QueryError(f"{server} answered with an error: {said}")
    # Section 6.3.3: an answer with something required that we do not know is a failure.
    if response.unknown_required:
        names = ", ".join(kind.label for kind in response.unknown_required)
        raise QueryError(f"{server} answered with unknown attributes: {names}")
    mapped = response.mapped_address
    if mapped is None:
        raise QueryError(f"{server} answered without an address")
    return mapped
