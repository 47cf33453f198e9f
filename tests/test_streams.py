"""STUN over TCP and TLS: the messages in a stream, and what a client may do.

The engine runs in a thread, on loopback sockets.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from pktstun.errors import ConfigError, EngineError
from pktstun.kernel import ListeningSocket
from pktstun.packet import MAX_DATAGRAM
from pktstun.stats import SharedPage
from pktstun.streams import (
    ALPN,
    BrokenStreamError,
    CertificateFiles,
    Framer,
    StreamEngine,
    StreamLimits,
    _engine,
    check_certificate,
    server_context,
)
from pktstun.streams._engine import COUNTS_ON
from pktstun.stun import (
    AttributeType,
    Class,
    Drop,
    Message,
    Method,
    RawAttribute,
    ResponderOptions,
    Software,
    TransportAddress,
)
from tests.lab import wait_until
from tests.stream_client import (
    NAME,
    Authority,
    StreamClient,
    certificate_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pktstun.stats import WorkerStats

# The examiner of certificates is a fork; the service has one thread, these tests have several.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

OPTIONAL, REQUIRED = AttributeType(0x8FFF), AttributeType(0x7FFF)
"""Types that nobody knows."""
LOOPBACK = ResponderOptions(allow_loopback=True)


# --- The messages in a stream ---


def requests(longest: int = 40) -> st.SearchStrategy[bytes]:
    """Whole messages: some that are answered, some with 420, some that are discarded."""
    ids = st.binary(min_size=12, max_size=12)
    fillings = st.binary(max_size=longest)
    attributes = st.one_of(
        st.just(()),
        fillings.map(lambda data: (RawAttribute(OPTIONAL, data),)),
        fillings.map(lambda data: (RawAttribute(REQUIRED, data),)),
    )
    classes = st.sampled_from([Class.REQUEST, Class.REQUEST, Class.REQUEST, Class.INDICATION])
    return st.builds(
        lambda kind, name, parts: Message(kind, Method.BINDING, name, parts).encode(),
        classes,
        ids,
        attributes,
    )


@st.composite
def splits(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The same bytes in segments."""
    places = draw(st.lists(st.integers(0, len(data)), max_size=12)) if data else []
    cuts = [0, *sorted(places), len(data)]
    return [data[begin:end] for begin, end in pairwise(cuts)]


def take(segments: Sequence[bytes]) -> tuple[list[bytes], str | None]:
    """Return the messages in a stream, and why there is no more of them."""
    framer, messages = Framer(), []
    for segment in segments:
        framer.feed(segment)
        try:
            while (message := framer.next()) is not None:
                messages.append(message)
        except BrokenStreamError as error:
            return messages, error.reason
    return messages, None


@given(st.data())
def test_a_split_changes_nothing(data: st.DataObject) -> None:
    sent = data.draw(st.lists(requests()))
    tail = data.draw(st.binary(max_size=40))
    whole = b"".join(sent) + tail
    messages, reason = take([whole])
    assert messages[: len(sent)] == sent
    assert take(data.draw(splits(whole))) == (messages, reason)
    assert take([whole[at : at + 1] for at in range(len(whole))]) == (messages, reason)


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not_stun"),
        (b"\x16\x03\x01\x02\x00", "bad_length"),  # TLS
        (b"\x00\x01\x00\x02", "bad_length"),
        (b"\x00\x01\x10\x00", "too_long"),
        (b"\x00\x01\x00\x00\x22", "no_cookie"),
        (b"\x00\x01\x00\x00\x21\x12\xa4\x41", "no_cookie"),
        (b"\x80", "not_stun"),
    ],
)
def test_what_is_no_message_is_known_by_its_first_wrong_byte(begin: bytes, reason: str) -> None:
    assert take([begin]) == ([], reason)
    assert take([Message.request().encode(), begin])[1] == reason


def test_a_message_is_as_long_as_a_datagram_at_most() -> None:
    def filled(size: int) -> bytes:
        return Message.request(RawAttribute(OPTIONAL, bytes(size - 24))).encode()

    longest = filled(MAX_DATAGRAM)
    assert take([longest]) == ([longest], None)
    assert take([filled(MAX_DATAGRAM + 4)]) == ([], "too_long")


# --- The engine ---


class Running:
    """An engine at work, and where to find it."""

    def __init__(self, engine: StreamEngine, page: SharedPage) -> None:
        self.engine = engine
        self._page = page
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.tcp = self.tls = ("", 0)

    @property
    def stats(self) -> WorkerStats:
        return self._page.slots[0].read()

    def connect(self, tls: ssl.SSLContext | None = None) -> StreamClient:
        return StreamClient.connect(self.tls if tls else self.tcp, tls=tls)

    def wait_for(self, counter: str, count: int) -> None:
        wait_until(lambda: getattr(self.stats, counter) >= count, f"{counter} {count}")

    def start(self) -> None:
        self._thread.start()

    def halt(self) -> None:
        """Have the engine rest."""
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stopping.is_set():
            self.engine.run(0.01)


@contextmanager
def serving(
    limits: StreamLimits | None = None,
    *,
    options: ResponderOptions = LOOPBACK,
    authority: Authority | None = None,
    host: str = "127.0.0.1",
) -> Iterator[Running]:
    address = TransportAddress(ip_address(host), 0)
    with SharedPage(1) as page, ListeningSocket(address) as tcp, ListeningSocket(address) as tls:
        engine = StreamEngine(
            page.slots[0],
            tcp=[tcp],
            tls=[tls] if authority else [],
            tcp_options=options,
            tls_options=options,
            limits=limits or StreamLimits(),
            certificate=CertificateFiles(str(authority.chain), str(authority.key))
            if authority
            else None,
        )
        running = Running(engine, page)
        running.tcp = (host, tcp.address.port)
        running.tls = (host, tls.address.port)
        with engine:
            engine.open()
            running.start()
            try:
                yield running
            finally:
                running.halt()
        assert running.stats.sent == running.stats.answered
        received = sum(running.stats.received.values())
        verdicts = sum(sum(each.values()) for each in running.stats.verdicts.values())
        assert received == verdicts


def test_requests_are_answered_one_after_the_other() -> None:
    with serving() as running, running.connect() as client:
        for _ in range(3):
            client.ask()
        client.ask(*(Message.request() for _ in range(20)))
        assert running.stats.received == {"none": 0, "ipv4": 23, "ipv6": 0}
        assert running.stats.connections == 1


def test_ipv6() -> None:
    with serving(host="::1") as running, running.connect() as client:
        client.ask()
        assert running.stats.received["ipv6"] == 1


def test_any_segments_are_answered_the_same() -> None:
    with serving(StreamLimits(requests=1_000_000)) as running:

        @settings(max_examples=25)
        @given(st.data())
        def check(data: st.DataObject) -> None:
            sent = data.draw(st.lists(requests(), min_size=1, max_size=6))
            with running.connect() as client:
                for segment in data.draw(splits(b"".join(sent))):
                    client.sock.sendall(segment)
                for each in map(Message.decode, sent):
                    if each.message_class is Class.INDICATION:
                        continue
                    answer = client.receive()
                    assert answer is not None
                    decoded = Message.decode(answer)
                    assert decoded.transaction_id == each.transaction_id
                    if decoded.message_class == Class.SUCCESS:
                        assert decoded.mapped_address == client.local
                    else:
                        assert decoded.error is not None
                        assert decoded.error.code == 420
                client.ask()

        check()


def test_the_options_count() -> None:
    with serving(options=replace(LOOPBACK, software="x")) as running, running.connect() as client:
        client.send(Message.request())
        reply = Message.decode(client.receive() or b"")
        assert reply.get(Software) == Software("x")


def test_what_is_wrong_within_a_message_is_discarded_and_the_next_is_answered() -> None:
    beyond = Message.request(RawAttribute(OPTIONAL, b"abcd")).encode()[:-6] + b"\x00\x44abcd"
    wrong = Message.request().with_fingerprint().encode()[:-1] + b"\0"
    with serving() as running, running.connect() as client:
        for message, drop in (
            (Message(Class.INDICATION, Method.BINDING, bytes(12)).encode(), Drop.NOT_REQUEST),
            (Message(Class.SUCCESS, Method.BINDING, bytes(12)).encode(), Drop.NOT_REQUEST),
            (Message(Class.REQUEST, Method.ALLOCATE, bytes(12)).encode(), Drop.UNKNOWN_METHOD),
            (beyond, Drop.MALFORMED),
            (wrong, Drop.BAD_FINGERPRINT),
        ):
            before = running.stats.dropped.get(drop, 0)
            client.sock.sendall(message)
            client.ask()
            assert running.stats.dropped[drop] == before + 1


def test_what_is_no_message_ends_the_connection_behind_the_last_reply() -> None:
    with serving() as running, running.connect() as client:
        request = Message.request()
        client.sock.sendall(request.encode() + b"GET / HTTP/1.1\r\n\r\n")
        answer = client.receive()
        assert answer is not None
        assert Message.decode(answer).transaction_id == request.transaction_id
        assert client.is_closed()
        assert running.stats.dropped == {"not_stun": 1}


def test_who_is_never_answered_is_not_kept() -> None:
    with serving(options=ResponderOptions()) as running, running.connect() as client:
        client.send(Message.request())
        assert client.is_closed()
        assert running.stats.dropped == {"bad_source": 1}


def test_where_nothing_is_served_no_connection_is() -> None:
    options = ResponderOptions(allow_loopback=True, check_destination=True)
    with serving(options=options) as running, running.connect() as client:
        assert client.is_closed()
        assert running.stats.connections_refused == 1


def test_a_client_may_end_its_side_first() -> None:
    with serving(StreamLimits(requests=20)) as running, running.connect() as client:
        sent = [Message.request() for _ in range(25)]
        client.send(*sent)
        client.sock.shutdown(socket.SHUT_WR)
        for each in sent:
            answer = client.receive()
            assert answer is not None
            assert Message.decode(answer).transaction_id == each.transaction_id
        assert client.receive() is None


def test_a_bug_costs_one_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with serving() as running, running.connect() as client:
        with monkeypatch.context() as patched:
            patched.setattr("pktstun.streams._engine.respond", fail)
            client.send(Message.request(), Message.request())
            wait_until(lambda: running.stats.dropped == {"internal_error": 2}, "both")
        client.ask()
    assert caplog.text.count("Traceback") == 1


# --- Limits ---


def test_more_connections_than_allowed_are_closed_and_room_is_made_again() -> None:
    with serving(StreamLimits(connections=2)) as running:
        with running.connect() as first, running.connect() as second:
            first.ask()
            second.ask()
            with running.connect() as third:
                assert third.is_closed()
            first.ask()
            assert running.stats.connections_refused == 1
            assert running.stats.connections_open == 2
        wait_until(lambda: running.stats.connections_open == 0, "both are gone")
        with running.connect() as client:
            client.ask()
        wait_until(lambda: not running.engine._sources, "nothing is remembered")


def test_a_source_has_its_share_and_no_more() -> None:
    with serving(StreamLimits(per_source=1)) as running, running.connect() as first:
        first.ask()
        with running.connect() as second:
            assert second.is_closed()
        with StreamClient.connect(running.tcp, source="127.0.0.2") as other:
            other.ask()


def test_a_source_begins_no_more_connections_in_a_second_than_it_may_have() -> None:
    with serving(StreamLimits(per_source=5)) as running:
        began, asked = time.monotonic(), 0
        while asked < 6:
            with running.connect() as client, suppress(ConnectionError, AssertionError):
                client.ask()
                asked += 1
        # Five at once, and the next one when the first does not count any more.
        assert time.monotonic() - began > COUNTS_ON
        assert running.stats.connections_refused > 0


@pytest.mark.parametrize("begin", [b"", b"\0", b"\0\1\0\0\x21\x12\xa4\x42"])
def test_who_begins_no_message_or_does_not_end_it_is_closed(begin: bytes) -> None:
    with serving(StreamLimits(message=0.2)) as running, running.connect() as client:
        client.sock.sendall(begin)
        assert client.is_closed()
        assert running.stats.connections_timed_out == 1


def test_single_bytes_put_nothing_off() -> None:
    with serving(StreamLimits(message=0.3, idle=60)) as running, running.connect() as client:
        client.ask()
        sent = 0
        with suppress(ConnectionError):
            for byte in Message.request(RawAttribute(OPTIONAL, bytes(1000))).encode():
                client.sock.sendall(bytes([byte]))
                sent += 1
                time.sleep(0.02)
        assert sent < 1000
        assert running.stats.connections_timed_out == 1


def test_bytes_of_which_no_message_comes_put_nothing_off(authority: Authority) -> None:
    """Such as those of a TLS record that does not come to its end."""
    limits = StreamLimits(idle=0.5, message=60)
    with serving(limits, authority=authority) as running:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = authority.context().wrap_bio(incoming, outgoing, server_hostname=NAME)
        with socket.create_connection(running.tls, 10) as sock:
            while True:
                with suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    break
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
            tls.write(Message.request().encode())
            sock.sendall(outgoing.read())
            running.wait_for("sent", 1)
            tls.write(bytes(1000))
            sent = 0
            with suppress(ConnectionError):
                for byte in outgoing.read():
                    sock.sendall(bytes([byte]))
                    sent += 1
                    time.sleep(0.02)
        assert sent < 1000
        assert running.stats.connections_timed_out == 1


def test_who_is_idle_is_closed_and_who_asks_is_not() -> None:
    limits = StreamLimits(idle=1.0, message=60)
    with serving(limits) as running, running.connect() as idle, running.connect() as busy:
        idle.ask()
        while running.stats.connections_timed_out == 0:
            busy.ask()
            time.sleep(0.02)
        assert idle.is_closed()
        busy.ask()
        assert busy.is_closed()
        assert running.stats.connections_timed_out == 2


def test_who_asks_too_fast_is_read_no_faster_and_loses_nothing() -> None:
    with serving(StreamLimits(requests=40)) as running, running.connect() as client:
        began = time.monotonic()
        client.ask(*(Message.request() for _ in range(60)))
        # A second's worth at once, and 20 in half a second.
        assert time.monotonic() - began > 0.4


def test_who_does_not_read_is_not_read_and_closed_in_the_end() -> None:
    with serving(StreamLimits(message=0.4, requests=1_000_000)) as running:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(running.tcp)
        with client:
            client.settimeout(10)
            requests = b"".join(Message.request().encode() for _ in range(100))
            with suppress(ConnectionError):
                for _ in range(10_000):
                    client.sendall(requests)
            assert running.stats.connections_timed_out == 1
            assert running.stats.answered < 50_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("connections", 0),
        ("per_source", 0),
        ("requests", 0),
        ("idle", 0.0),
        ("message", -1.0),
        ("handshake", float("nan")),
        ("idle", 1e6),
    ],
)
def test_limits_have_ranges(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="is not in"):
        StreamLimits(**{name: value})


# --- To be replaced, to be stopped ---


def test_who_is_replaced_serves_its_connections_to_their_end() -> None:
    with serving() as running, running.connect() as client:
        client.ask()
        running.halt()
        beat = running._page.slots[0].beat
        assert running.engine.retire() == 1
        lingering = threading.Thread(target=running.engine.linger, args=(10,))
        lingering.start()
        client.ask()
        with running.connect() as other:  # it waits for the successor
            client.ask()
            client.sock.close()
            lingering.join(5)
            assert not lingering.is_alive()
            assert running.stats.connections == 1
            assert running.stats.connections_open == 1  # the successor's business
            other.sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                other.receive()
        assert running._page.slots[0].beat == beat


def test_what_lingers_too_long_is_closed_in_order(authority: Authority) -> None:
    with serving(authority=authority) as running:
        client = running.connect(authority.context())
        with client:
            client.ask()
            running.halt()
            assert running.engine.retire() == 1
            running.engine.linger(0.05)
            assert client.sock.recv(1) == b""  # the end of TLS, and no error


def test_who_is_stopped_answers_what_has_arrived() -> None:
    with serving() as running, running.connect() as client, running.connect() as idle:
        idle.ask()
        running.halt()
        sent = [Message.request() for _ in range(10)]
        client.send(*sent)
        running.engine.drain(5)
        for each in sent:
            answer = client.receive()
            assert answer is not None
            assert Message.decode(answer).transaction_id == each.transaction_id
        assert client.is_closed()
        assert idle.is_closed()


# --- TLS ---


def test_tls(authority: Authority) -> None:
    with serving(authority=authority) as running:
        with running.connect(authority.context()) as client, running.connect() as plain:
            client.ask()
            client.ask(*(Message.request() for _ in range(30)))
            plain.ask()
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.sock.selected_alpn_protocol() == ALPN == "stun.nat-discovery"
            assert client.sock.version() == "TLSv1.3"
        wait_until(lambda: not running.engine._connections, "both are gone")


def test_tls_in_any_segments(authority: Authority) -> None:
    """Records that come byte by byte, and several in one segment."""
    context = authority.context()
    with serving(authority=authority) as running, socket.create_connection(running.tls) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    sock.sendall(bytes([byte]))
                incoming.write(sock.recv(4096))
        sent = [Message.request() for _ in range(5)]
        for each in sent:
            session.write(each.encode())
        sock.sendall(outgoing.read())
        got = b""
        while len(got) < 32 * len(sent):
            incoming.write(sock.recv(4096))
            with suppress(ssl.SSLWantReadError):
                while True:
                    got += session.read(4096)
        replies = [got[at : at + 32] for at in range(0, len(got), 32)]
        assert [each[8:20] for each in replies] == [each.transaction_id for each in sent]


def test_tls_1_2_is_the_oldest_and_its_keys_are_ephemeral(authority: Authority) -> None:
    with serving(authority=authority) as running:
        context = authority.context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with running.connect(context) as client:
            client.ask()
            assert isinstance(client.sock, ssl.SSLSocket)
            cipher = client.sock.cipher()
            assert cipher is not None
            assert cipher[0].startswith("ECDHE")
            assert client.sock.session is None or not client.sock.session.has_ticket
        context = authority.context()
        context.set_ciphers("AES128-GCM-SHA256:@SECLEVEL=0")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            running.connect(context)
        running.wait_for("handshakes_failed", 1)


def test_what_is_no_tls_ends_the_connection(authority: Authority) -> None:
    with serving(authority=authority) as running:
        with StreamClient.connect(running.tls) as client:
            client.send(Message.request())
            with suppress(ConnectionError):
                while client.sock.recv(4096):
                    pass  # an alert, perhaps
        running.wait_for("handshakes_failed", 1)
        assert running.stats.sent == 0


def test_only_so_many_handshakes_are_unfinished_at_once(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds more than an established connection does."""
    monkeypatch.setattr(_engine, "HANDSHAKES", 2)
    with serving(authority=authority) as running, ExitStack() as stack:
        context = authority.context()
        for _ in range(3):  # those that are established do not count
            stack.enter_context(running.connect(context)).ask()
        idle = [stack.enter_context(StreamClient.connect(running.tls)) for _ in range(2)]
        running.wait_for("connections", 5)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            running.connect(context)
        running.wait_for("connections_refused", 1)
        with running.connect() as client:
            client.ask()
        idle[0].sock.close()
        running.wait_for("handshakes_failed", 1)
        stack.enter_context(running.connect(context)).ask()


def test_a_handshake_has_one_time_for_all(authority: Authority) -> None:
    with serving(StreamLimits(handshake=0.2), authority=authority) as running:
        with StreamClient.connect(running.tls) as client:
            client.sock.sendall(b"\x16\x03\x01\x01\x00")
            assert client.is_closed()
        running.wait_for("connections_timed_out", 1)


def test_tls_ends_with_a_word(authority: Authority) -> None:
    """The client can tell the end from an attacker's."""
    with (
        serving(StreamLimits(idle=0.2), authority=authority) as running,
        running.connect(authority.context()) as client,
    ):
        client.ask()
        assert client.receive() is None  # and no SSLEOFError


# --- Certificates ---


def files(authority: Authority) -> CertificateFiles:
    return CertificateFiles(str(authority.chain), str(authority.key))


def test_a_good_certificate(authority: Authority) -> None:
    assert check_certificate(files(authority), None) == []
    both = authority.directory / "both.pem"
    both.write_bytes(authority.chain.read_bytes() + authority.key.read_bytes())
    assert check_certificate(CertificateFiles(str(both), str(both)), None) == []
    assert server_context(CertificateFiles(str(both), str(both))).num_tickets == 0


def test_what_an_operator_should_know(authority: Authority) -> None:
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    for begin, end, said in (
        (-10, -1, "has expired, on"),
        (5, 50, "is not valid before"),
        (-10, 2, "expires on"),
    ):
        authority.issue(not_before=now + begin * day, not_after=now + end * day)
        (warning,) = check_certificate(files(authority), None)
        assert said in warning
        assert str(authority.chain) in warning
        assert str((now + (begin if begin > 0 else end) * day).year) in warning


def test_a_certificate_that_is_no_servers(tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "client.pem"
    file.write_bytes(
        certificate.public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (warning,) = check_certificate(CertificateFiles(str(file), str(file)), None)
    assert f"clients will refuse the certificate {file}: " in warning


def test_what_is_of_no_use_is_refused_with_the_fix(authority: Authority, tmp_path: Path) -> None:
    good = files(authority)
    other = tmp_path / "other.pem"
    authority.ca.issue_cert(NAME).private_key_pem.write_to_path(other)
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    locked = tmp_path / "locked.pem"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for bad, complaint in (
        (good._replace(chain="/nowhere/x"), "--tls-certificate: cannot read /nowhere/x: No such"),
        (good._replace(key=str(tmp_path)), "--tls-key: cannot read .*: Is a directory"),
        (good._replace(chain=str(empty)), "no certificate in it"),
        (good._replace(key=str(empty)), "no private key in it"),
        (good._replace(key=str(other)), "does not belong to the certificate"),
        (good._replace(key=str(locked)), "has a password"),
        (good._replace(chain=str(broken)), "of no use"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            check_certificate(bad, None)


def test_what_the_user_cannot_read_is_refused(authority: Authority) -> None:
    import pwd  # noqa: PLC0415 - only here

    if os.geteuid() != 0:
        pytest.skip("to become another user takes root")
    nobody = pwd.getpwnam("nobody")
    with pytest.raises(ConfigError, match="nobody must be able to read it, also for a reload"):
        check_certificate(files(authority), nobody)
    assert os.geteuid() == 0


def test_a_certificate_that_has_gone_is_no_traceback(authority: Authority) -> None:
    with SharedPage(1) as page:
        engine = StreamEngine(
            page.slots[0],
            limits=StreamLimits(),
            certificate=CertificateFiles("/nowhere/x", str(authority.key)),
        )
        with pytest.raises(EngineError, match="cannot be used any more"):
            engine.open()


def test_without_its_certificate_tcp_is_served_all_the_same(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """As when it is renewed with rights that keep the service's user out."""
    address = TransportAddress(ip_address("127.0.0.1"), 0)
    with SharedPage(1) as page, ListeningSocket(address) as tcp, ListeningSocket(address) as tls:
        engine = StreamEngine(
            page.slots[0],
            tcp=[tcp],
            tls=[tls],
            tcp_options=LOOPBACK,
            limits=StreamLimits(),
            certificate=CertificateFiles("/nowhere/x", str(authority.key)),
        )
        engine.open()
        running = Running(engine, page)
        running.tcp = ("127.0.0.1", tcp.address.port)
        running.start()
        try:
            with running.connect() as client:
                client.ask()
        finally:
            running.halt()
            engine.close()
    assert "TLS is not served until it is mended and SIGHUP sent" in caplog.text


def test_another_certificate_is_served_by_another_engine(authority: Authority) -> None:
    for _ in range(2):
        issued = authority.issue()
        with (
            serving(authority=authority) as running,
            running.connect(authority.context()) as client,
        ):
            assert certificate_of(client) == issued
