"""One question to one server: a Binding transaction, and what may have to come before it.

Theory of operation: a datagram that is no response to this request (another transaction id, no
STUN, a FINGERPRINT that does not match) is ignored, as RFC 8489 section 6.3 says, and the wait
goes on; so it does over UDP for a response that does not prove its sender. A challenge (401, 438)
is answered by a new transaction on the same channel, a redirection (300) by a new one with the
other server, unless that has been asked already (section 10).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from pktstun.stun import (
    Action,
    AlternateDomain,
    AlternateServer,
    Attribute,
    Class,
    Message,
    Software,
    Transaction,
    TransportAddress,
)

from ._credentials import Credentials, Login
from ._servers import QueryError, Transport
from ._transport import Channel, Tls, open_channel

if TYPE_CHECKING:
    from collections.abc import Sequence

# Servers that are asked in vain before an end is made; a chain of two is long.
_MOST_REDIRECTS = 8
_RELIABLE_TIMEOUT = 39.5  # RFC 8489 section 6.2.2: Ti


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
    transport: Transport = Transport.UDP
    tls: str | None = None
    """The version of TLS."""
    integrity: str | None = None
    """The attribute that proves who answered, which has been checked; None without credentials,
    and where the server did not ask for them."""
    realm: str | None = None
    """Of long-term credentials."""
    redirected_by: tuple[TransportAddress, ...] = ()
    """The servers that named another to ask, in order."""


class _Answer(NamedTuple):
    message: Message
    round_trip: float
    requests: int


def query_any(  # noqa: PLR0913 - what a question has
    servers: Sequence[TransportAddress],
    *,
    timeout: float | None = None,
    rto: float = 0.5,
    transport: Transport = Transport.UDP,
    credentials: Credentials | None = None,
    tls: Tls | None = None,
) -> QueryResult:
    """Ask servers in turn until one answers; `query` has the arguments.

    Args:
        servers: at least one. What the time is limited to holds for each.

    Raises:
        QueryError: none has a correct answer; what the last one said, if there are several.
    """
    problems: list[QueryError] = []
    for server in servers:
        try:
            return query(
                server,
                timeout=timeout,
                rto=rto,
                transport=transport,
                credentials=credentials,
                tls=tls,
            )
        except QueryError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    raise QueryError("; ".join(map(str, problems)))


def query(  # noqa: PLR0913 - what a question has
    server: TransportAddress,
    *,
    timeout: float | None = None,
    rto: float = 0.5,
    attributes: Sequence[Attribute] = (),
    fingerprint: bool = True,
    transport: Transport = Transport.UDP,
    credentials: Credentials | None = None,
    tls: Tls | None = None,
) -> QueryResult:
    """Ask a server for this host's address as it sees it.

    Args:
        server: where to send the request.
        timeout: seconds after which to give up; None for RFC 8489's 39.5 s at an rto of 0.5.
        rto: seconds until the first retransmission, over UDP.
        attributes: of the request, in front of FINGERPRINT.
        fingerprint: put FINGERPRINT into the request.
        transport: what carries it.
        credentials: who asks, if the server wants to know.
        tls: how the server proves who it is, over TLS; None wants a certificate for its address.

    Raises:
        QueryError: no answer, an error response, or one without an address.
        StunError: the credentials cannot be sent.
        UsageError: see `Tls.context`.
    """
    begin = time.monotonic()
    end = math.inf if timeout is None else begin + timeout
    redirected_by: list[TransportAddress] = []
    while True:
        login = Login(credentials)
        patience = min(end, time.monotonic() + _RELIABLE_TIMEOUT)
        try:
            with open_channel(server, transport, tls, patience) as channel:
                talk = _Conversation(channel, server, login, end, rto)
                answer = talk.ask(attributes, fingerprint=fingerprint)
        except OSError as error:
            raise QueryError(f"no answer from {server}: {_reason(error, server)}") from error
        alternate = _alternate(answer.message, server)
        if alternate is None:
            break
        redirected_by.append(server)
        if alternate in redirected_by:
            raise QueryError(f"{server} says to ask {alternate}, which has been asked already")
        if len(redirected_by) > _MOST_REDIRECTS:
            raise QueryError(f"{redirected_by[0]}: more than {_MOST_REDIRECTS} redirections")
        domain = answer.message.get(AlternateDomain)
        if domain:
            # Section 10: the name that the other server's certificate has to have.
            tls = replace(tls or Tls(), name=domain.text)
        elif tls is None:
            tls = Tls(name=str(server.ip))
        server = alternate
    software = answer.message.get(Software)
    refusal = answer.message.error
    if refusal and refusal.code == 401 and credentials is None:
        raise QueryError(f"{server} wants credentials (--username): 401 {refusal.reason}".strip())
    return QueryResult(
        server=server,
        local=channel.local,
        mapped=_check_response(answer.message, server),
        round_trip=answer.round_trip,
        requests=answer.requests,
        software=software.text if software else None,
        fingerprint=answer.message.has_fingerprint,
        transport=transport,
        tls=channel.tls,
        integrity=login.integrity_of(answer.message),
        realm=login.realm,
        redirected_by=tuple(redirected_by),
    )


@dataclass(frozen=True, slots=True)
class _Conversation:
    """With one server, over one channel, until a time of the monotonic clock."""

    channel: Channel
    server: TransportAddress
    login: Login
    end: float
    rto: float

    def ask(self, attributes: Sequence[Attribute], *, fingerprint: bool) -> _Answer:
        """Ask until the answer is no challenge."""
        while True:
            request = self.login.sign(Message.request(*attributes))
            if fingerprint:
                request = request.with_fingerprint()
            answer = self._transact(request)
            if not self.login.take_up(answer.message):
                return answer

    def _transact(self, request: Message) -> _Answer:
        data = request.encode()
        begin = sent_at = time.monotonic()
        if self.channel.reliable:
            transaction = Transaction.reliable(request, begin, timeout=_RELIABLE_TIMEOUT)
        else:
            transaction = Transaction(request, begin, rto=self.rto)
        objection: str | None = None
        while True:
            now = time.monotonic()
            action = transaction.poll(now)
            if action is Action.FAIL or now >= self.end:
                if objection:
                    raise QueryError(_violated(self.server, objection))
                refused = f"; ignored: {transaction.refused}" if transaction.refused else ""
                raise QueryError(
                    f"no answer from {self.server} to {transaction.sent} requests "
                    f"in {now - begin:.1f} s{refused}"
                )
            if action is Action.SEND:
                self.channel.send(data)
                sent_at = now
            try:
                received = self.channel.receive(min(transaction.deadline, self.end))
            except TimeoutError:
                continue
            response = transaction.receive(received)
            if response is None:
                continue
            objection = self.login.objection(response)
            if objection is None:
                return _Answer(response, time.monotonic() - sent_at, transaction.sent)
            if self.channel.reliable:
                raise QueryError(_violated(self.server, objection))


def _violated(server: TransportAddress, objection: str) -> str:
    return f"integrity protection was violated: the answer of {server} does not count, {objection}"


def _reason(error: OSError, server: TransportAddress) -> str:
    reason = error.strerror or str(error)
    if server.ip.version == 6 and server.ip.is_link_local and "%" not in str(server.ip):
        reason += f"; say on which interface, as {server.ip}%eth0"
    return reason


def _alternate(response: Message, server: TransportAddress) -> TransportAddress | None:
    """Return the server to ask instead, or None where the response is no redirection."""
    if response.error is None or response.error.code != 300:
        return None
    for each in response.get_all(AlternateServer):
        # RFC 8489 section 14.15: the family is that of the request.
        if each.address.ip.version == server.ip.version:
            return each.address
    raise QueryError(f"{server} says to ask another server and not which")


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
