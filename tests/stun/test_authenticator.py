"""Whom a server answers: every check of RFC 8489 section 9, their order, and what is sent then."""

from __future__ import annotations

import dataclasses
import string
from typing import Any

import pytest
from aioice import stun as aioice
from aioice.turn import make_integrity_key
from hypothesis import given
from hypothesis import strategies as st

from pktstun.stun import (
    Admission,
    Attribute,
    AttributeType,
    Authenticator,
    ChangeRequest,
    Class,
    ErrorCode,
    LongTerm,
    Message,
    MessageIntegrity,
    MessageIntegritySha256,
    NatDiscovery,
    Nonce,
    Padding,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
    PasswordAlgorithms,
    Priority,
    RawAttribute,
    Realm,
    Refusal,
    Reply,
    ResponderOptions,
    SecurityFeature,
    ShortTerm,
    StunError,
    TransportAddress,
    UnknownAttributes,
    UserHash,
    Username,
    long_term_key,
    nonce_cookie,
    respond,
    short_term_key,
)
from tests.strategies.datagrams import attribute, message
from tests.strategies.stun import addresses
from tests.vectors import LONG_TERM_REQUEST, REQUEST, SHA256_REQUEST

MD5, SHA_256 = PasswordAlgorithmNumber.MD5, PasswordAlgorithmNumber.SHA_256
BOTH = PasswordAlgorithms((PasswordAlgorithm(SHA_256), PasswordAlgorithm(MD5)))
CLIENT = TransportAddress.parse("192.0.2.1:4000")
SERVER = TransportAddress.parse("198.51.100.1:3478")
REALM = "example.org"
NONCE_KEY = bytes(range(32))
NOW = 1000.0
NAME, PASSWORD = "ada", "countess of lovelace"
ICE_NAME, ICE_PASSWORD = "evtj:h6vY", "VOkJxbRl1RmTxUk/WvJxBt"
SHORT = ShortTerm({ICE_NAME: ICE_PASSWORD, NAME: PASSWORD})
LONG = LongTerm({NAME: PASSWORD, "bob": "builder"}, REALM, NONCE_KEY)
ELSEWHERE = LongTerm({NAME: PASSWORD, "bob": "builder"}, REALM, NONCE_KEY[::-1])
"""Another of the servers that clients know by one address."""

# Quotes around a name are not part of a key (RFC 8489 section 9.2.2).
ascii_texts = st.text(string.printable[:95].replace('"', ""), min_size=1, max_size=40)
clients = st.builds(
    TransportAddress,
    st.ip_addresses(network="198.18.0.0/15") | st.ip_addresses(network="2001:db8::/32"),
    st.integers(1, 0xFFFF),
)


def answer(
    request: Message | bytes,
    users: Authenticator,
    *,
    client: TransportAddress = CLIENT,
    now: float = NOW,
) -> Message:
    """Return the response of a server that has these users."""
    data = request if isinstance(request, bytes) else request.encode()
    reply = respond(data, client, SERVER, ResponderOptions(authenticator=users), now=now)
    assert isinstance(reply, Reply), reply
    assert (reply.source, reply.destination) == (SERVER, client)
    return Message.decode(reply.datagram)


def code(response: Message) -> int:
    """Return the error of a response, 0 of a success."""
    return response.error.code if response.error else 0


def is_bare(response: Message) -> bool:
    """Whether an error response says nothing but its code."""
    return [type(each) for each in response.attributes] == [ErrorCode]


def is_unprotected(response: Message) -> bool:
    return protection(response) == []


def is_challenge(response: Message, expected: int, algorithms: PasswordAlgorithms = BOTH) -> bool:
    """Whether an error response says with what to ask again, and nothing else."""
    nonce = response.get(Nonce)
    assert nonce is not None
    assert nonce.security_features == 3
    return response.attributes == (ErrorCode(expected), Realm(REALM), nonce, algorithms)


def protection(response: Message) -> list[type]:
    """Return the integrity attributes of a response."""
    kinds = (MessageIntegrity, MessageIntegritySha256)
    return [kind for kind in kinds if response.get_all(kind)]


def nonce_for(
    client: TransportAddress = CLIENT, *, users: Authenticator = LONG, now: float = NOW
) -> Nonce:
    nonce = answer(Message.request(), users, client=client, now=now).get(Nonce)
    assert nonce is not None
    return nonce


@dataclasses.dataclass(frozen=True)
class Asking:
    """What a client of long-term credentials sends; None leaves an attribute out."""

    name: Attribute | None = dataclasses.field(default_factory=lambda: Username(NAME))
    realm: Realm | None = dataclasses.field(default_factory=lambda: Realm(REALM))
    nonce: Nonce | None = dataclasses.field(default_factory=nonce_for)
    offered: PasswordAlgorithms | None = BOTH
    chosen: PasswordAlgorithm | None = BOTH.algorithms[0]
    key: bytes = long_term_key(NAME, REALM, PASSWORD, SHA_256)
    sha256: bool = True

    def request(self, *more: Attribute) -> Message:
        parts = (self.name, self.realm, self.nonce, self.offered, self.chosen, *more)
        bare = Message.request(*(part for part in parts if part is not None))
        if self.sha256:
            return bare.with_message_integrity_sha256(self.key)
        return bare.with_message_integrity(self.key)


def with_md5(**changes: Any) -> Asking:
    """Return what a client asks that was written before RFC 8489."""
    old = Asking(offered=None, chosen=None, key=long_term_key(NAME, REALM, PASSWORD), sha256=False)
    return dataclasses.replace(old, **changes)


# --- Short-term credentials ---


def short_term(*, sha1: bool, sha256: bool, password: str = ICE_PASSWORD) -> Message:
    request, key = Message.request(Username(ICE_NAME)), short_term_key(password)
    if sha1:
        request = request.with_message_integrity(key)
    return request.with_message_integrity_sha256(key) if sha256 else request


@pytest.mark.parametrize(
    ("sha1", "sha256", "expected"),
    [
        (True, False, MessageIntegrity),
        (False, True, MessageIntegritySha256),
        (True, True, MessageIntegritySha256),
    ],
)
def test_a_response_has_the_integrity_of_its_request(
    sha1: bool,  # noqa: FBT001 - a column
    sha256: bool,  # noqa: FBT001 - a column
    expected: type,
) -> None:
    response = answer(short_term(sha1=sha1, sha256=sha256), SHORT)
    assert response.message_class is Class.SUCCESS
    assert response.mapped_address == CLIENT
    assert protection(response) == [expected]
    assert response.check_message_integrity(short_term_key(ICE_PASSWORD))
    assert response.get(Username) is None


KEY = short_term_key(PASSWORD)
SHORT_TERM_REFUSED = [
    ("nothing", Message.request(), 400),
    ("no integrity", Message.request(Username(NAME)), 400),
    ("no username", Message.request().with_message_integrity(KEY), 400),
    ("a hash", Message.request(UserHash(bytes(32))).with_message_integrity(KEY), 400),
    ("unknown", Message.request(Username("eve")).with_message_integrity(KEY), 401),
    ("no password", Message.request(Username("eve")).with_message_integrity(b""), 401),
    ("wrong password", Message.request(Username(NAME)).with_message_integrity(b"guess"), 401),
    ("another's", Message.request(Username(ICE_NAME)).with_message_integrity(KEY), 401),
    (
        "the stronger one counts",
        Message.request(Username(NAME))
        .with_message_integrity(KEY)
        .with_message_integrity_sha256(b"guess"),
        401,
    ),
    (
        "cut short",
        Message.request(Username(NAME)).with_message_integrity_sha256(KEY, length=16),
        401,
    ),
    (
        "too late",
        message(attribute(0x0008, bytes(20)), attribute(0x0006, NAME.encode()), attribute(0x8022)),
        400,
    ),
]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [case[1:] for case in SHORT_TERM_REFUSED],
    ids=[case[0] for case in SHORT_TERM_REFUSED],
)
def test_checks_of_short_term_credentials(request_: Message | bytes, expected: int) -> None:
    response = answer(request_, SHORT)
    assert code(response) == expected
    assert is_bare(response)
    assert len(response.encode()) == 28


@given(ascii_texts, ascii_texts, st.booleans(), clients)
def test_everybody_with_the_password_is_answered(
    name: str,
    password: str,
    sha256: bool,  # noqa: FBT001 - drawn
    client: TransportAddress,
) -> None:
    users, key = ShortTerm({name: password}), short_term_key(password)
    request = Message.request(Username(name))
    if sha256:
        signed = request.with_message_integrity_sha256(key)
    else:
        signed = request.with_message_integrity(key)
    response = answer(signed, users, client=client)
    assert response.mapped_address == client
    assert response.check_message_integrity(key)
    assert code(answer(signed, ShortTerm({name: password + "x"}), client=client)) == 401
    assert code(answer(signed, ShortTerm({name + "x": password}), client=client)) == 401


def test_strings_are_prepared() -> None:
    """RFC 8265: an accent of its own is the same letter."""
    users = ShortTerm({"Ame\u0301lie": "cafe\u0301"})
    request = Message.request(Username.of("Am\u00e9lie"))
    signed = request.with_message_integrity(short_term_key("caf\u00e9"))
    assert answer(signed, users).mapped_address == CLIENT


def test_aioice_authenticates() -> None:
    request = aioice.Message(aioice.Method.BINDING, aioice.Class.REQUEST)
    request.attributes["USERNAME"] = ICE_NAME
    request.add_message_integrity(ICE_PASSWORD.encode())
    response = aioice.parse_message(answer(bytes(request), SHORT).encode())
    assert response.message_class == aioice.Class.RESPONSE
    assert response.attributes["XOR-MAPPED-ADDRESS"] == (str(CLIENT.ip), CLIENT.port)
    assert response.check_message_integrity(ICE_PASSWORD.encode())
    assert "FINGERPRINT" in response.attributes


def test_the_request_of_rfc_5769() -> None:
    response = answer(REQUEST, SHORT)
    assert response.check_message_integrity(ICE_PASSWORD.encode())
    assert response.has_fingerprint


# --- Long-term credentials ---


def test_the_first_request_is_told_with_what_to_ask() -> None:
    response = answer(Message.request(), LONG)
    assert is_challenge(response, 401)
    # RFC 8489 section 9.2: the cookie and the bits of both features, 22 and 23 from the left.
    nonce = response.get(Nonce)
    assert nonce is not None
    assert nonce.text.startswith("obMatJos2AAAD")


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("algorithm", [None, MD5, SHA_256])
@pytest.mark.parametrize("sha256", [False, True])
def test_everybody_with_credentials_is_answered(
    algorithm: PasswordAlgorithmNumber | None,
    hashed: bool,  # noqa: FBT001 - a parameter
    sha256: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Section 9.2.4: what the response has depends on the algorithm, not on the request's own."""
    key = long_term_key(NAME, REALM, PASSWORD, algorithm or MD5)
    asking = Asking(
        name=UserHash.of(NAME, REALM) if hashed else Username(NAME),
        offered=BOTH if algorithm else None,
        chosen=PasswordAlgorithm(algorithm) if algorithm else None,
        key=key,
        sha256=sha256,
    )
    response = answer(asking.request(), LONG)
    assert response.mapped_address == CLIENT
    assert protection(response) == [MessageIntegritySha256 if algorithm else MessageIntegrity]
    assert response.check_message_integrity(key)
    kinds = (Username, UserHash, Realm, Nonce, PasswordAlgorithms)
    assert not any(response.get_all(kind) for kind in kinds)


@given(ascii_texts, ascii_texts, clients, st.integers(0))
def test_any_user_from_anywhere_at_any_time(
    name: str, password: str, client: TransportAddress, now: int
) -> None:
    users = LongTerm({name: password}, REALM, NONCE_KEY)
    asking = Asking(
        name=UserHash.of(name, REALM),
        nonce=nonce_for(client, users=users, now=now),
        key=long_term_key(name, REALM, password, SHA_256),
    )
    for later in (now, now + 600):
        response = answer(asking.request(), users, client=client, now=later)
        assert response.check_message_integrity(asking.key)
    assert is_challenge(answer(asking.request(), users, client=client, now=now + 601), 438)


ANOTHER = TransportAddress.parse("192.0.2.1:4001")
SHORTENED = PasswordAlgorithms((PasswordAlgorithm(MD5),))
MD5_KEY = long_term_key(NAME, REALM, PASSWORD)
LONG_TERM_REFUSED = [
    ("no username", Asking(name=None), 400),
    ("no realm", Asking(realm=None), 400),
    ("no nonce", Asking(nonce=None), 400),
    ("no nonce and no user", Asking(nonce=None, name=Username("eve")), 400),
    ("no list of algorithms", Asking(offered=None), 400),
    ("no algorithm", Asking(chosen=None), 400),
    ("not in the list", Asking(chosen=PasswordAlgorithm(PasswordAlgorithmNumber(7))), 400),
    ("with parameters", Asking(chosen=PasswordAlgorithm(SHA_256, b"x")), 400),
    (
        "a shorter list",
        Asking(offered=SHORTENED, chosen=SHORTENED.algorithms[0], key=MD5_KEY),
        400,
    ),
    (
        "the other way round",
        Asking(offered=PasswordAlgorithms(BOTH.algorithms[::-1])),
        400,
    ),
    ("a shorter list of nobody", Asking(offered=None, name=Username("eve")), 400),
    ("unknown", Asking(name=Username("eve")), 401),
    ("unknown hash", Asking(name=UserHash(bytes(32))), 401),
    ("unknown, without a password", Asking(name=Username("eve"), key=b""), 401),
    ("another realm", Asking(realm=Realm("example.com")), 401),
    (
        "another realm's key",
        Asking(
            realm=Realm("example.com"), key=long_term_key(NAME, "example.com", PASSWORD, SHA_256)
        ),
        401,
    ),
    ("wrong password", Asking(key=long_term_key(NAME, REALM, "guess", SHA_256)), 401),
    ("another's name", Asking(name=Username("bob")), 401),
    ("the other algorithm's key", Asking(key=MD5_KEY), 401),
    ("wrong password and stale", Asking(key=b"guess", nonce=nonce_for(ANOTHER)), 401),
    ("wrong password, MD5", with_md5(key=b"guess"), 401),
    ("another's nonce", Asking(nonce=nonce_for(ANOTHER)), 438),
    ("another's nonce, MD5", with_md5(nonce=nonce_for(ANOTHER)), 438),
    ("another host's nonce", Asking(nonce=nonce_for(CLIENT._replace(ip=SERVER.ip))), 438),
    ("another server's nonce", Asking(nonce=nonce_for(users=ELSEWHERE)), 438),
    ("too old", Asking(nonce=nonce_for(now=NOW - 601)), 438),
    ("from the future", Asking(nonce=nonce_for(now=NOW + 1)), 438),
    ("none of ours", Asking(nonce=Nonce("abc")), 438),
    ("empty", Asking(nonce=Nonce("")), 438),
    ("a cookie alone", Asking(nonce=Nonce(nonce_cookie(SecurityFeature(3)))), 438),
    ("not base64", Asking(nonce=Nonce(nonce_cookie(SecurityFeature(3)) + "\u00e9" * 19)), 438),
]


@pytest.mark.parametrize(
    ("asking", "expected"),
    [case[1:] for case in LONG_TERM_REFUSED],
    ids=[case[0] for case in LONG_TERM_REFUSED],
)
def test_checks_of_long_term_credentials(asking: Asking, expected: int) -> None:
    response = answer(asking.request(), LONG)
    assert code(response) == expected
    assert is_unprotected(response)
    assert is_bare(response) if expected == 400 else is_challenge(response, expected)


@pytest.mark.parametrize("expected", [401, 438])
def test_what_a_refusal_says_is_good_to_ask_again(expected: int) -> None:
    stale = Asking(nonce=Nonce("abc"), key=b"guess" if expected == 401 else Asking().key)
    response = answer(stale.request(), LONG)
    assert code(response) == expected
    again = Asking(
        realm=response.get(Realm),
        nonce=response.get(Nonce),
        offered=response.get(PasswordAlgorithms),
    )
    assert answer(again.request(), LONG).mapped_address == CLIENT


def test_a_truncated_integrity_is_none() -> None:
    asking = Asking()
    parts = (asking.name, asking.realm, asking.nonce, BOTH, BOTH.algorithms[0])
    bare = Message.request(*(part for part in parts if part is not None))
    assert code(answer(bare.with_message_integrity_sha256(asking.key, length=28), LONG)) == 401


@pytest.mark.parametrize("features", [0, 1, 2])
def test_a_server_that_was_made_look_weaker_is_found_out(features: int) -> None:
    """Section 9.2.1: somebody in between has taken bits out of the cookie, and the list with it."""
    true = nonce_for().text
    nonce = Nonce(nonce_cookie(SecurityFeature(features)) + true[13:])
    assert is_challenge(answer(with_md5(nonce=nonce).request(), LONG), 438)
    # Without the bit, what a client says about algorithms is not checked; it is used.
    for asking in (
        Asking(nonce=nonce),
        Asking(nonce=nonce, offered=None),
        Asking(nonce=nonce, chosen=None, key=MD5_KEY),
    ):
        checked = features & 1 and (asking.offered is None or asking.chosen is None)
        assert code(answer(asking.request(), LONG)) == (400 if checked else 438)


def test_requests_of_the_rfcs_have_stale_nonces() -> None:
    """Their integrity is right: else they would get 401."""
    users = {"\u30de\u30c8\u30ea\u30c3\u30af\u30b9": "TheMatrIX"}
    for request in (LONG_TERM_REQUEST, SHA256_REQUEST):
        assert code(answer(request, LongTerm(users, REALM, NONCE_KEY))) == 438
        guess = dict.fromkeys(users, "guess")
        assert code(answer(request, LongTerm(guess, REALM, NONCE_KEY))) == 401


def test_aioice_answers_the_challenge() -> None:
    request = aioice.Message(aioice.Method.BINDING, aioice.Class.REQUEST)
    refused = aioice.parse_message(answer(bytes(request), LONG).encode())
    assert refused.error_code == 401
    key = make_integrity_key(NAME, refused.attributes["REALM"], PASSWORD)
    again = aioice.Message(aioice.Method.BINDING, aioice.Class.REQUEST)
    again.attributes |= {
        "USERNAME": NAME,
        "REALM": refused.attributes["REALM"],
        "NONCE": refused.attributes["NONCE"],
    }
    again.add_message_integrity(key)
    response = aioice.parse_message(answer(bytes(again), LONG).encode())
    assert response.attributes["XOR-MAPPED-ADDRESS"] == (str(CLIENT.ip), CLIENT.port)
    assert response.check_message_integrity(key)


# --- Nonces ---


@given(addresses(), addresses(), st.integers(0, 2**40))
def test_no_two_clients_have_the_same_nonce(
    one: TransportAddress, other: TransportAddress, now: int
) -> None:
    def nonce(client: TransportAddress, users: LongTerm = LONG) -> Attribute:
        refusal = users.check(Message.request(), client, now)
        assert isinstance(refusal, Refusal)
        return refusal.attributes[1]

    assert (nonce(one) == nonce(other)) == (one == other)
    # Another process with the same key makes the same one, and another key another.
    users = {"another": "user"}
    assert nonce(one) == nonce(one, LongTerm(users, "another.example", NONCE_KEY))
    assert nonce(one) != nonce(one, LongTerm(users, REALM, bytes(32)))


def test_a_nonce_is_good_in_every_process_that_has_the_key() -> None:
    request = Asking().request()
    assert code(answer(request, LongTerm({NAME: PASSWORD}, REALM, NONCE_KEY))) == 0
    assert code(answer(request, LongTerm({NAME: PASSWORD}, REALM, bytes(32)))) == 438


def test_a_clock_that_is_set_back_unlocks_nothing() -> None:
    asking = Asking(nonce=nonce_for(now=NOW))
    assert code(answer(asking.request(), LONG, now=NOW)) == 0
    for now in (NOW - 1, NOW - 600, 0.0, NOW + 601):
        assert code(answer(asking.request(), LONG, now=now)) == 438


def test_the_lifetime_of_a_nonce() -> None:
    users = LongTerm({NAME: PASSWORD}, REALM, NONCE_KEY, nonce_lifetime=5)
    asking = Asking(nonce=nonce_for(users=users))
    assert [code(answer(asking.request(), users, now=NOW + n)) for n in (0, 5, 6)] == [0, 0, 438]


@given(st.integers(0, 32 * 8 - 1))
def test_no_other_nonce_is_good(bit: int) -> None:
    data = bytearray(nonce_for().text.encode())
    data[bit // 8] ^= 1 << bit % 8
    try:
        nonce = Nonce(data.decode())
    except ValueError:
        return
    assert code(answer(Asking(nonce=nonce).request(), LONG)) == 438


# --- Nothing that was changed on the way is answered ---

WHOLE: list[tuple[Authenticator, Message]] = [
    (SHORT, short_term(sha1=True, sha256=False)),
    (SHORT, short_term(sha1=False, sha256=True)),
    (LONG, Asking().request()),
    (LONG, Asking(name=UserHash.of(NAME, REALM)).request()),
    (LONG, with_md5().request()),
]


@pytest.mark.parametrize("number", range(len(WHOLE)))
def test_no_bit_can_be_changed(number: int) -> None:
    users, request = WHOLE[number]
    data = request.encode()
    assert code(answer(data, users)) == 0
    options = ResponderOptions(authenticator=users)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        reply = respond(changed, CLIENT, SERVER, options, now=NOW)
        if isinstance(reply, Reply):
            assert code(Message.decode(reply.datagram)) in {400, 401, 438}, bit


@given(st.sampled_from(WHOLE), st.data())
def test_nothing_can_be_left_out_or_put_in(
    whole: tuple[Authenticator, Message], data: st.DataObject
) -> None:
    users, request = whole
    attributes = list(request.attributes)
    where = data.draw(st.integers(0, len(attributes) - 1))
    if data.draw(st.booleans()):
        attributes.insert(where, Priority(1))
    else:
        del attributes[where]
    changed = Message.request(*attributes, transaction_id=request.transaction_id)
    assert code(answer(changed, users)) in {400, 401}


# --- Where it stands among the other checks ---

UNKNOWN = RawAttribute(AttributeType(0x7F00))


@pytest.mark.parametrize(
    ("users", "request_", "key"),
    [
        (
            SHORT,
            Message.request(UNKNOWN, Username(NAME)).with_message_integrity(KEY),
            KEY,
        ),
        (LONG, Asking().request(UNKNOWN), Asking().key),
        (LONG, with_md5().request(UNKNOWN), MD5_KEY),
    ],
)
def test_420_is_for_those_who_may_ask(users: Authenticator, request_: Message, key: bytes) -> None:
    """Section 6.3: first come the checks of authentication. Every response is protected then."""
    response = answer(request_, users)
    assert code(response) == 420
    assert response.get(UnknownAttributes) == UnknownAttributes((UNKNOWN.type,))
    assert response.check_message_integrity(key)
    assert code(answer(Message.request(UNKNOWN), users)) in {400, 401}


def test_a_redirect_is_for_those_who_may_ask() -> None:
    options = ResponderOptions(authenticator=LONG, alternate_servers=(ANOTHER,))
    for request, expected in ((Message.request(), 401), (Asking().request(), 300)):
        reply = respond(request.encode(), CLIENT, SERVER, options, now=NOW)
        assert isinstance(reply, Reply)
        response = Message.decode(reply.datagram)
        assert code(response) == expected
        assert response.check_message_integrity(Asking().key) is (expected == 300)


def test_nat_discovery_is_for_those_who_may_ask() -> None:
    """Its reply is protected wherever it leaves from; PADDING leaves room for that."""
    ips, ports = (SERVER.ip, SERVER.ip + 1), (SERVER.port, SERVER.port + 1)
    discovery = NatDiscovery(ips, ports)
    options = ResponderOptions(authenticator=LONG, discovery=(discovery,))
    wishes = (ChangeRequest(change_ip=True), Padding(bytes(100)))
    refused = respond(Message.request(*wishes).encode(), CLIENT, SERVER, options, now=NOW)
    assert isinstance(refused, Reply)
    assert (refused.source, code(Message.decode(refused.datagram))) == (SERVER, 401)
    request = Asking().request(*wishes).encode()
    reply = respond(request, CLIENT, SERVER, options, now=NOW)
    assert isinstance(reply, Reply)
    assert reply.source == SERVER._replace(ip=ips[1])
    response = Message.decode(reply.datagram)
    assert response.check_message_integrity(Asking().key)
    assert response.get(Padding) is not None
    assert len(reply.datagram) <= len(request)


def test_classic_clients_have_no_credentials() -> None:
    with pytest.raises(StunError, match="RFC 3489"):
        ResponderOptions(authenticator=SHORT, classic=True)


def test_a_request_that_cannot_be_read_gets_400() -> None:
    for broken in (
        attribute(0x0006, b"\xff"),
        attribute(0x0008, bytes(19)),
        attribute(0x001C, bytes(33)),
        attribute(0x001D, bytes(3)),
    ):
        for users in (SHORT, LONG):
            assert is_bare(answer(message(broken), users))
            assert code(answer(message(broken), users)) == 400


def test_software_and_fingerprint_are_behind() -> None:
    options = ResponderOptions(authenticator=LONG, software="x")
    kinds = {
        "401": ["ERROR-CODE", "REALM", "NONCE", "PASSWORD-ALGORITHMS", "SOFTWARE", "FINGERPRINT"],
        "ok": ["XOR-MAPPED-ADDRESS", "SOFTWARE", "MESSAGE-INTEGRITY-SHA256", "FINGERPRINT"],
    }
    for name, request in (("401", Message.request()), ("ok", Asking().request())):
        reply = respond(request.with_fingerprint().encode(), CLIENT, SERVER, options, now=NOW)
        assert isinstance(reply, Reply)
        response = Message.decode(reply.datagram)
        assert [each.type.label for each in response.attributes] == kinds[name]


def test_without_a_time_there_is_no_answer() -> None:
    with pytest.raises(StunError, match="now"):
        respond(REQUEST, CLIENT, SERVER, ResponderOptions(authenticator=SHORT))


@given(st.binary(max_size=200).map(lambda data: data[: len(data) // 4 * 4]), st.booleans())
def test_any_request_gets_an_answer(body: bytes, short: bool) -> None:  # noqa: FBT001 - drawn
    data = b"\x00\x01" + len(body).to_bytes(2) + b"\x21\x12\xa4\x42" + bytes(12) + body
    options = ResponderOptions(authenticator=SHORT if short else LONG)
    reply = respond(data, CLIENT, SERVER, options, now=NOW)
    if isinstance(reply, Reply):
        assert code(Message.decode(reply.datagram)) in {400, 401}


# --- Amplification ---


@pytest.mark.parametrize(("realm", "size"), [("a", 84), (REALM, 92), ("\U0001f600" * 127, 588)])
def test_the_size_of_a_challenge(realm: str, size: int) -> None:
    """80 bytes and the realm, padded."""
    users = LongTerm({NAME: PASSWORD}, realm, NONCE_KEY)
    assert len(answer(Message.request(), users).encode()) == size


@given(st.sampled_from(WHOLE))
def test_who_may_ask_gets_no_more_than_without_credentials(
    whole: tuple[Authenticator, Message],
) -> None:
    """A reply has at most 12 bytes more than its request, as ever over IPv4."""
    users, request = whole
    assert len(answer(request, users).encode()) <= len(request.encode()) + 12


# --- Users ---

MD5_ONLY: dict[int, bytes] = {MD5: MD5_KEY}
SHA_256_ONLY: dict[int, bytes] = {SHA_256: long_term_key(NAME, REALM, PASSWORD, SHA_256)}


def test_keys_do_in_place_of_a_password() -> None:
    users = LongTerm({NAME: MD5_ONLY | SHA_256_ONLY}, REALM, NONCE_KEY)
    for asking in (Asking(), with_md5()):
        assert code(answer(asking.request(), users)) == 0


@pytest.mark.parametrize(
    ("keys", "number", "old"), [(MD5_ONLY, MD5, 0), (SHA_256_ONLY, SHA_256, 401)]
)
def test_what_is_offered_is_what_everybody_has_a_key_for(
    keys: dict[int, bytes], number: PasswordAlgorithmNumber, old: int
) -> None:
    users = LongTerm({NAME: keys, "bob": "builder"}, REALM, NONCE_KEY)
    only = PasswordAlgorithms((PasswordAlgorithm(number),))
    assert is_challenge(answer(Message.request(), users), 401, only)
    nonce = nonce_for(users=users)
    asking = Asking(nonce=nonce, offered=only, chosen=only.algorithms[0], key=keys[number])
    response = answer(asking.request(), users)
    assert response.check_message_integrity(keys[number])
    assert protection(response) == [MessageIntegritySha256]
    assert code(answer(with_md5(nonce=nonce).request(), users)) == old
    # Who was offered more before, with a nonce that is good otherwise, asks anew.
    assert code(answer(Asking(key=keys[number], chosen=only.algorithms[0]).request(), users)) == 438


def test_where_nobody_is_known_everybody_is_refused() -> None:
    assert is_challenge(answer(Message.request(), LongTerm({}, REALM, NONCE_KEY)), 401)
    assert code(answer(Asking().request(), LongTerm({}, REALM, NONCE_KEY))) == 401


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: ShortTerm({"e\u0301": "x", "\u00e9": "x"}), "two users"),
        (lambda: ShortTerm({"": "x"}), "OpaqueString"),
        (lambda: ShortTerm({"a": ""}), "OpaqueString"),
        (lambda: ShortTerm({"a" * 509: "x"}), "fewer than 509"),
        (lambda: LongTerm({"e\u0301": "x", "\u00e9": "x"}, REALM, NONCE_KEY), "two users"),
        (lambda: LongTerm({"a": "\t"}, REALM, NONCE_KEY), "OpaqueString"),
        (lambda: LongTerm({"a": "x"}, "", NONCE_KEY), "OpaqueString"),
        (lambda: LongTerm({"a": "x"}, 'a"b', NONCE_KEY), "backslash"),
        (lambda: LongTerm({"a": "x"}, REALM, bytes(15)), "16 to 32 bytes, not 15"),
        (lambda: LongTerm({"a": "x"}, REALM, bytes(33)), "16 to 32 bytes, not 33"),
        (lambda: LongTerm({"a": "x"}, REALM, NONCE_KEY, 0), "a second at least, not 0"),
        (lambda: LongTerm({"a": {MD5: bytes(32)}}, REALM, NONCE_KEY), "32 bytes are no key"),
        (lambda: LongTerm({"a": {7: bytes(16)}}, REALM, NONCE_KEY), "password algorithm 7"),
        (
            lambda: LongTerm({"a": MD5_ONLY, "b": SHA_256_ONLY}, REALM, NONCE_KEY),
            "no password algorithm for which every user has a key: give",
        ),
    ],
)
def test_what_is_no_set_of_users(make: Any, complaint: str) -> None:
    with pytest.raises(StunError, match=complaint):
        make()


def test_nobody_tells_a_secret() -> None:
    admission = LONG.check(Asking().request(), CLIENT, NOW)
    assert isinstance(admission, Admission)
    options = ResponderOptions(authenticator=LONG)
    for value in (SHORT, LONG, admission, options):
        text = repr(value)
        assert PASSWORD not in text
        assert repr(admission.key) not in text
        assert repr(NONCE_KEY) not in text
    assert repr(LONG) == "<LongTerm: 2 users of 'example.org'>"
    assert repr(SHORT) == "<ShortTerm: 2 users>"
