"""Credentials: a server that wants them gets them, and nobody in between can weaken them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pktstun.client import Credentials, QueryError, Transport, query
from pktstun.client._credentials import Login
from pktstun.stun import (
    AlternateServer,
    ErrorCode,
    Message,
    MessageIntegrity,
    MessageIntegritySha256,
    Nonce,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
    PasswordAlgorithms,
    Realm,
    SecurityFeature,
    TransportAddress,
    UserHash,
    Username,
    XorMappedAddress,
    short_term_key,
)
from tests.client.servers import (
    ELSEWHERE,
    Handler,
    LongTerm,
    ShortTerm,
    elsewhere,
    server,
    stream_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ME = Credentials("user", "secret of 128 bits")
SHORT = Credentials("evtj:h6vY", "VOkJxbRl1RmTxUk/WvJxBt", short_term=True)
MD5, SHA256 = int(PasswordAlgorithmNumber.MD5), int(PasswordAlgorithmNumber.SHA_256)

SERVERS: dict[str, Callable[[], LongTerm]] = {
    "RFC 5389": lambda: LongTerm(ME.username, ME.password),
    "SHA-256": lambda: LongTerm(ME.username, ME.password, algorithms=(SHA256, MD5)),
    "MD5 first": lambda: LongTerm(ME.username, ME.password, algorithms=(MD5, SHA256)),
    "unknown first": lambda: LongTerm(ME.username, ME.password, algorithms=(77, SHA256)),
    "userhash": lambda: LongTerm(ME.username, ME.password, anonymous=True),
    "both": lambda: LongTerm(ME.username, ME.password, algorithms=(SHA256,), anonymous=True),
}


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_long_term_credentials_are_sent_when_asked_for(name: str, transport: Transport) -> None:
    handler = SERVERS[name]()
    serve = server if transport is Transport.UDP else stream_server
    with serve(handler) as at:
        result = query(at, timeout=5, transport=transport, credentials=ME)
    assert result.mapped == ELSEWHERE
    assert result.realm == "example.org"
    sha256 = bool(handler.algorithms)
    assert result.integrity == ("MESSAGE-INTEGRITY-SHA256" if sha256 else "MESSAGE-INTEGRITY")
    first, second = handler.seen
    # Section 9.2.3.1: the first request is as if there were no credentials.
    assert [kind.type.label for kind in first.attributes] == ["FINGERPRINT"]
    assert (second.get(Username) is None) == handler.anonymous
    assert (second.get(UserHash) is not None) == handler.anonymous
    assert first.transaction_id != second.transaction_id


@pytest.mark.parametrize("stale", [1, 2])
def test_a_stale_nonce_is_replaced(stale: int) -> None:
    handler = LongTerm(ME.username, ME.password, algorithms=(SHA256,), stale=stale)
    with server(handler) as at:
        assert query(at, timeout=5, credentials=ME).mapped == ELSEWHERE
    assert len(handler.seen) == 2 + stale


def test_a_server_that_never_takes_a_nonce_is_given_up() -> None:
    handler = LongTerm(ME.username, ME.password, stale=1000)
    with server(handler) as at, pytest.raises(QueryError, match="438 Stale Nonce again and again"):
        query(at, timeout=5, credentials=ME)
    assert len(handler.seen) < 10


@pytest.mark.parametrize("anonymous", [False, True])
def test_wrong_credentials_are_tried_once(anonymous: bool) -> None:  # noqa: FBT001 - a parameter
    handler = LongTerm(ME.username, "another", algorithms=(SHA256,), anonymous=anonymous)
    with server(handler) as at, pytest.raises(QueryError, match=r"refuses.*'example\.org'.*401"):
        query(at, timeout=5, credentials=ME)
    assert len(handler.seen) == 2


def test_a_server_that_wants_none_gets_none() -> None:
    with server(elsewhere) as at:
        result = query(at, credentials=ME)
    assert (result.integrity, result.realm) == (None, None)


def test_without_credentials_a_challenge_is_an_error() -> None:
    with (
        server(LongTerm("a", "b")) as at,
        pytest.raises(QueryError, match=r"wants credentials \(--username\): 401 Una"),
    ):
        query(at, timeout=5)


# --- Short-term ---


@pytest.mark.parametrize("sha256", [False, True])
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_short_term_credentials_are_sent_at_once(
    sha256: bool,  # noqa: FBT001 - a parameter
    transport: Transport,
) -> None:
    handler = ShortTerm(SHORT.username, SHORT.password, sha256=sha256)
    serve = server if transport is Transport.UDP else stream_server
    with serve(handler) as at:
        result = query(at, timeout=5, transport=transport, credentials=SHORT)
    (request,) = handler.seen
    # Section 9.1.2: both, since it is not known which the server has.
    assert request.get(MessageIntegrity)
    assert request.get(MessageIntegritySha256)
    assert result.integrity == f"MESSAGE-INTEGRITY{'-SHA256' if sha256 else ''}"
    assert result.realm is None


def test_a_server_that_wants_short_term_credentials_is_recognised() -> None:
    with (
        server(ShortTerm(ME.username, ME.password)) as at,
        pytest.raises(QueryError, match=r"400 Bad Request.*--short-term"),
    ):
        query(at, timeout=5, credentials=ME)


def test_refusals_without_integrity_are_not_believed() -> None:
    """Sections 9.1.4 and 9.2.5: over UDP the wait goes on, over TCP it ends."""
    wrong = Credentials(SHORT.username, "wrong", short_term=True)
    said = r"integrity protection was violated.*no integrity, says 401 Unauthenticated"
    handler = ShortTerm(SHORT.username, SHORT.password)
    with server(handler) as at, pytest.raises(QueryError, match=said):
        query(at, timeout=0.3, rto=0.1, credentials=wrong)
    handler = ShortTerm(SHORT.username, SHORT.password)
    with stream_server(handler) as at, pytest.raises(QueryError, match=said):
        query(at, credentials=wrong, transport=Transport.TCP)
    assert len(handler.seen) == 1


def test_a_forged_answer_does_not_keep_the_true_one_out() -> None:
    true = ShortTerm(SHORT.username, SHORT.password)
    lie = XorMappedAddress(TransportAddress.parse("192.0.2.66:66"))

    def handler(request: Message, number: int) -> list[bytes]:
        forged = [
            request.success(lie).encode(),
            request.success(lie).with_message_integrity(b"guess").encode(),
            request.failure(ErrorCode.of(400)).encode(),
        ]
        return [*forged, *true(request, number)]

    with server(handler) as at:
        assert query(at, timeout=5, credentials=SHORT).mapped == ELSEWHERE


# --- Whoever sits in between ---


def changed(true: LongTerm, change: Callable[[Message], Message]) -> Handler:
    """Have the challenges of a server changed on the way."""

    def handler(request: Message, number: int) -> list[bytes]:
        (reply,) = map(Message.decode, true(request, number))
        return [(change(reply) if reply.error else reply).encode()]

    return handler


def without(*kinds: type) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        kept = tuple(each for each in reply.attributes if not isinstance(each, kinds))
        return Message(reply.message_class, reply.method, reply.transaction_id, kept)

    return change


def test_algorithms_that_the_nonce_speaks_of_must_be_there() -> None:
    """Section 9.2.1: the bid-down attack."""
    true = LongTerm(ME.username, ME.password, algorithms=(SHA256,))
    handler = changed(true, without(PasswordAlgorithms))
    with server(handler) as at, pytest.raises(QueryError, match="somebody in between"):
        query(at, timeout=5, credentials=ME)
    assert len(true.seen) == 1


def test_a_weaker_list_is_found_out_by_the_server() -> None:
    """It sees what it has offered, in PASSWORD-ALGORITHMS of the request."""
    true = LongTerm(ME.username, ME.password, algorithms=(SHA256, MD5))

    def weaken(reply: Message) -> Message:
        md5 = PasswordAlgorithms((PasswordAlgorithm(PasswordAlgorithmNumber.MD5),))
        kept = without(PasswordAlgorithms)(reply).attributes
        return Message(reply.message_class, reply.method, reply.transaction_id, (*kept, md5))

    def handler(request: Message, number: int) -> list[bytes]:
        (reply,) = map(Message.decode, true(request, number))
        is_challenge = reply.error is not None and reply.error.code == 401
        return [(weaken(reply) if is_challenge else reply).encode()]

    with server(handler) as at, pytest.raises(QueryError, match="says 400 Bad Request"):
        query(at, timeout=0.3, rto=0.1, credentials=ME)


def test_a_server_does_not_lose_what_it_had() -> None:
    login = Login(ME)
    request = Message.request()
    strong = Nonce.with_cookie(
        "a", SecurityFeature.PASSWORD_ALGORITHMS | SecurityFeature.USERNAME_ANONYMITY
    )
    offer = PasswordAlgorithms((PasswordAlgorithm(PasswordAlgorithmNumber.SHA_256),))
    assert login.take_up(request.failure(ErrorCode.of(401), Realm("r"), strong, offer))
    for nonce, *more in (
        (Nonce("plain"),),
        (Nonce.with_cookie("b", SecurityFeature.PASSWORD_ALGORITHMS), offer),
        (Nonce.with_cookie("b", SecurityFeature.USERNAME_ANONYMITY),),
    ):
        weaker = request.failure(ErrorCode.of(438), Realm("r"), nonce, *more)
        with pytest.raises(QueryError, match="before and now has not"):
            login.take_up(weaker)
    assert login.sign(request).get(Nonce) == strong


def test_nor_does_a_server_without_the_cookie() -> None:
    login = Login(ME)
    request = Message.request()
    offer = PasswordAlgorithms((PasswordAlgorithm(PasswordAlgorithmNumber.SHA_256),))
    assert login.take_up(request.failure(ErrorCode.of(401), Realm("r"), Nonce("a"), offer))
    with pytest.raises(QueryError, match="before and now has not"):
        login.take_up(request.failure(ErrorCode.of(438), Realm("r"), Nonce("b")))


def test_a_response_that_hides_algorithms_is_ignored() -> None:
    """Section 9.2.5, for all responses that are no challenge."""
    nonce = Nonce.with_cookie("a", SecurityFeature.PASSWORD_ALGORITHMS)
    assert Login(ME).objection(Message.request().success(nonce)) is not None
    offer = PasswordAlgorithms((PasswordAlgorithm(PasswordAlgorithmNumber.SHA_256),))
    assert Login(ME).objection(Message.request().success(nonce, offer)) is None


def test_an_answer_with_the_other_integrity_is_not_heard() -> None:
    true = LongTerm(ME.username, ME.password, algorithms=(SHA256,))
    login = Login(ME)
    request = Message.request()
    assert login.take_up(Message.decode(true(request, 1)[0]))
    signed = login.sign(request)
    assert login.objection(Message.decode(true(signed, 2)[0])) is None
    key = login._key
    assert key is not None
    sha1 = signed.success(XorMappedAddress(ELSEWHERE)).with_message_integrity(key)
    assert "another kind" in (login.objection(sha1) or "")


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ((), "no realm and nonce"),
        ((Realm("r"),), "no realm and nonce"),
        (
            (
                Realm("r"),
                Nonce("n"),
                PasswordAlgorithms((PasswordAlgorithm(PasswordAlgorithmNumber(77)),)),
            ),
            "0x004d",
        ),
    ],
)
def test_a_challenge_that_cannot_be_answered(attributes: tuple[object, ...], reason: str) -> None:
    challenge = Message.request().failure(ErrorCode.of(401), *attributes)  # type: ignore[arg-type]
    with pytest.raises(QueryError, match=reason):
        Login(ME).take_up(challenge)


def test_a_redirection_needs_no_integrity_but_a_wrong_one_is_wrong() -> None:
    login = Login(SHORT)
    redirection = Message.request().failure(ErrorCode.of(300), AlternateServer(ELSEWHERE))
    assert login.objection(redirection) is None
    assert login.objection(redirection.with_message_integrity(b"guess")) is not None
    key = short_term_key(SHORT.password)
    assert login.objection(redirection.with_message_integrity(key)) is None


def test_the_password_is_not_shown() -> None:
    assert ME.password not in repr(ME)
