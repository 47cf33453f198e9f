"""STUN messages for people to read: from hex, base64, bytes or a capture to text or JSON.

Theory of operation
===================

Three steps. `read_text` and `read_content` find out what somebody has given us and make
bytes of it. `dissect` makes a `DissectedMessage` of the bytes of one message, and
`dissect_capture` does so with all of a capture file. `as_text` and `as_json` show one.

Dissecting never fails. `Message.decode` alone says whether a message is well-formed, and why
not. If it is not, whatever can be read is still shown: the header fields that are there, and
each attribute with its value if that can be understood alone, else with its bytes.

Nothing here knows any attribute by its class: what a value consists of is what the fields of
its dataclass are. An attribute that is added to the codec's table is shown as well.

What comes from the network is printed to terminals, which obey control characters. So lines
of text contain none: they are escaped as in Python's literals. JSON escapes them by itself.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from pktstun.capture import CapturedDatagram, datagram_of, is_capture, read_capture
from pktstun.errors import PacketError, StunError, UsageError
from pktstun.stun import (
    ATTRIBUTES,
    HEADER_SIZE,
    MAGIC_COOKIE,
    Attribute,
    AttributeType,
    Class,
    Message,
    Method,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
    RawAttribute,
    Realm,
    TransportAddress,
    Username,
    long_term_key,
    opaque_string,
    short_term_key,
    split_type,
)
from pktstun.stun._attributes import build_if_valid
from pktstun.stun._wire import processed_indices

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "NOT_STUN",
    "CapturedMessage",
    "Credentials",
    "DissectedAttribute",
    "DissectedMessage",
    "as_json",
    "as_text",
    "dissect",
    "dissect_capture",
    "looks_like_stun",
    "read_content",
    "read_text",
]

NOT_STUN = "not_stun"
"""Why `dissect_capture` skips a UDP datagram that it could read."""

_COOKIE = MAGIC_COOKIE.to_bytes(4)
_INTEGRITIES = (AttributeType.MESSAGE_INTEGRITY_SHA256, AttributeType.MESSAGE_INTEGRITY)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_SEPARATORS = re.compile(r"[\s:,]+")
_HEX = re.compile(r"[0-9A-Fa-f]+")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


# --- What was given ---


def looks_like_stun(data: bytes) -> bool:
    """Tell whether bytes begin as a STUN message does, well-formed or not.

    That takes two zero bits and the magic cookie. The messages of RFC 3489, whose two methods
    had no cookie, are known by their method and a length that fits.
    """
    if len(data) < 8 or data[0] & 0xC0:
        return False
    if data[4:8] == _COOKIE:
        return True
    method, _ = split_type(int.from_bytes(data[:2]))
    is_whole = len(data) == HEADER_SIZE + int.from_bytes(data[2:4])
    return is_whole and method in (Method.BINDING, Method.SHARED_SECRET)


def read_content(content: bytes) -> bytes:
    """Return the message or the capture that a file contains, as it is, in hex or in base64.

    Raises UsageError if it contains none of them.
    """
    if is_capture(content) or looks_like_stun(content):
        return content
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        raise UsageError(
            "neither a pcap or pcapng capture nor a STUN message, nor one in hex or base64"
        ) from None
    return read_text(text)


def read_text(text: str) -> bytes:
    """Return the bytes that hex or base64 stands for.

    Spaces, line ends, colons and commas may be anywhere in hex, and `0x` in front of it or of
    every byte. Base64, in either alphabet and with or without padding, has to be of a STUN
    message or a capture: words and file names are base64 too. What could be both is hex.

    Raises UsageError if it is neither.
    """
    digits = "".join(map(_bare_digits, _SEPARATORS.split(text)))
    if not digits:
        raise UsageError("nothing in it: a STUN message in hex or base64 is expected")
    is_hex = _HEX.fullmatch(digits) is not None
    if is_hex and len(digits) % 2 == 0:
        return bytes.fromhex(digits)
    data = _read_base64(text)
    if data is not None and (looks_like_stun(data) or is_capture(data)):
        return data
    if is_hex:
        raise UsageError(f"an odd number of hex digits: {len(digits)}")
    raise UsageError("neither hex nor base64 of a STUN message")


def _bare_digits(group: str) -> str:
    """Return a group of hex digits without `0x`, where `0x0` is a whole byte as well."""
    if group[:2] not in ("0x", "0X"):
        return group
    return "0" * (len(group) % 2) + group[2:]


def _read_base64(text: str) -> bytes | None:
    """Return the bytes that base64 stands for (RFC 4648 sections 4 and 5), or None."""
    letters = "".join(text.split()).replace("-", "+").replace("_", "/")
    if not _BASE64.fullmatch(letters):
        return None
    letters = letters.rstrip("=")
    if len(letters) % 4 == 1:
        return None
    return base64.b64decode(letters + "=" * (-len(letters) % 4))


# --- Integrity ---


@dataclass(frozen=True, slots=True)
class Credentials:
    """What to check the integrity of messages with.

    With a username or a realm, and for messages that name a realm, the credentials are
    long-term ones; what is None is taken from the message. Else they are short-term ones.

    Raises UsageError if one of them cannot be prepared (see `stun.opaque_string`).
    """

    password: str
    username: str | None = None
    realm: str | None = None

    def __post_init__(self) -> None:
        for text in (self.password, self.username, self.realm):
            try:
                if text is not None:
                    opaque_string(text)
            except StunError as error:
                raise UsageError(f"no credentials: {error}") from error

    def keys(self, message: Message) -> list[bytes]:
        """Return the keys that may have protected a message, one or two.

        Raises StunError if they cannot be made; the text says why.
        """
        own_username, own_realm = message.get(Username), message.get(Realm)
        realm = own_realm.text if self.realm is None and own_realm else self.realm
        username = own_username.text if self.username is None and own_username else self.username
        if realm is None and self.username is None:
            return [short_term_key(self.password)]
        if realm is None:
            raise StunError("the realm is not known")
        if username is None:
            raise StunError("the username is not known")
        chosen = message.get(PasswordAlgorithm)
        if chosen is not None:
            algorithms = [chosen.algorithm]
        elif message.message_class is Class.REQUEST:
            algorithms = [PasswordAlgorithmNumber.MD5]
        else:
            # Only requests say it: a response goes by its request, which is not at hand.
            algorithms = [PasswordAlgorithmNumber.MD5, PasswordAlgorithmNumber.SHA_256]
        return [long_term_key(username, realm, self.password, number) for number in algorithms]


# --- Dissecting ---


@dataclass(frozen=True, slots=True)
class DissectedAttribute:
    """An attribute of a message that need not be well-formed.

    `offset` is that of its header, in bytes from the start of the message; `length` what the
    header says; `value` the bytes that are there if they are no value of such an attribute;
    `notes` what else is to be said about it.
    """

    offset: int
    type: AttributeType
    length: int
    value: Attribute | bytes
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DissectedMessage:
    """What can be read of a message that need not be well-formed.

    Header fields are None where they are not there; `length` is what the header says.
    `integrity` is whether it is right, None if it was not checked or there is none. `error`
    is why the message is malformed, None if it is not.
    """

    data: bytes
    message_class: Class | None
    method: Method | None
    transaction_id: bytes | None
    length: int | None
    attributes: tuple[DissectedAttribute, ...]
    integrity: bool | None = None
    error: StunError | None = None

    @property
    def is_faulty(self) -> bool:
        """Whether the message is malformed, or its integrity wrong."""
        return self.error is not None or self.integrity is False


@dataclass(frozen=True, slots=True)
class CapturedMessage:
    """A message of a capture: the number of its packet, counted from 1, and when it was there.

    `timestamp` is in nanoseconds since 1970-01-01 00:00:00 UTC, None if it is not known.
    """

    number: int
    timestamp: int | None
    datagram: CapturedDatagram
    message: DissectedMessage


def dissect_capture(
    file: bytes, credentials: Credentials | None = None
) -> Iterator[CapturedMessage | str]:
    """Yield for each packet of a capture the message in it, or the reason why there is none.

    The reasons are those of `capture.datagram_of`, and NOT_STUN.

    Raises CaptureError, while iterating and after all the packets before it, where the file
    stops to make sense.
    """
    for number, packet in enumerate(read_capture(file), start=1):
        try:
            datagram = datagram_of(packet)
        except PacketError as error:
            yield error.reason
            continue
        if looks_like_stun(datagram.payload):
            message = dissect(datagram.payload, credentials)
            yield CapturedMessage(number, packet.timestamp, datagram, message)
        else:
            yield NOT_STUN


def dissect(data: bytes, credentials: Credentials | None = None) -> DissectedMessage:
    """Take a message apart, whatever the bytes are; with credentials, check its integrity."""
    integrity: bool | None = None
    verdict = ""
    problem = None
    try:
        message = Message.decode(data)
    except StunError as error:
        problem = error
    else:
        if credentials is not None:
            integrity, verdict = _check_integrity(message, credentials)
    message_class = method = length = transaction_id = None
    if len(data) >= 2 and not data[0] & 0xC0:
        numbers = split_type(int.from_bytes(data[:2]))
        method, message_class = Method(numbers[0]), Class(numbers[1])
    if len(data) >= 4:
        length = int.from_bytes(data[2:4])
    if len(data) >= HEADER_SIZE:
        transaction_id = data[8:HEADER_SIZE]
    return DissectedMessage(
        data,
        message_class,
        method,
        transaction_id,
        length,
        _dissect_attributes(data, verdict, is_valid=problem is None),
        integrity,
        problem,
    )


def _check_integrity(message: Message, credentials: Credentials) -> tuple[bool | None, str]:
    """Return whether the integrity is right, and a note that says it."""
    if not any(attribute.type in _INTEGRITIES for attribute in message.attributes):
        return None, ""
    try:
        keys = credentials.keys(message)
    except StunError as error:
        return None, f"not checked: {error}"
    # How far it may be cut short is for the usage of STUN to say, and not known here.
    is_right = any(message.check_message_integrity(key, minimum_length=16) for key in keys)
    return is_right, "correct" if is_right else "wrong"


def _dissect_attributes(
    data: bytes, verdict: str, *, is_valid: bool
) -> tuple[DissectedAttribute, ...]:
    """Return the attributes; `verdict` is the note for the integrity that was checked."""
    spans = list(_spans(data))
    kinds = [kind for _, kind, _ in spans]
    counted = set(processed_indices(kinds))
    checked = next((kinds.index(kind) for kind in _INTEGRITIES if kind in kinds), None)
    found: list[DissectedAttribute] = []
    seen: set[AttributeType] = set()
    protection = ""
    for i, (offset, kind, length) in enumerate(spans):
        raw = data[offset + 4 : offset + 4 + length]
        value: Attribute | bytes = raw
        notes = []
        if len(raw) < length:
            notes.append(f"cut short: {len(raw)} bytes are there")
        else:
            value = _read_value(kind, raw, data[8:HEADER_SIZE])
            if isinstance(value, bytes):
                notes.append("malformed")
        if i not in counted:
            notes.append(f"ignored: behind {protection}")
        else:
            if kind in seen:
                notes.append("duplicate")
            if kind not in ATTRIBUTES and kind.comprehension_required:
                notes.append("comprehension required, unknown")
            if kind in _INTEGRITIES:
                protection = kind.label
            seen.add(kind)
        if i == checked and verdict:
            notes.append(verdict)
        if kind == AttributeType.FINGERPRINT and is_valid:
            notes.append("correct")
        found.append(DissectedAttribute(offset, kind, length, value, tuple(notes)))
    return tuple(found)


def _spans(data: bytes) -> Iterator[tuple[int, AttributeType, int]]:
    """Yield offset, type and length of each attribute whose header is there.

    That of the last one may be more than there is.
    """
    if not looks_like_stun(data):
        return
    end = min(len(data), HEADER_SIZE + int.from_bytes(data[2:4]))
    offset = HEADER_SIZE
    while offset + 4 <= end:
        length = int.from_bytes(data[offset + 2 : offset + 4])
        yield offset, AttributeType(int.from_bytes(data[offset : offset + 2])), length
        offset += 4 + length + -length % 4


def _read_value(kind: AttributeType, value: bytes, transaction_id: bytes) -> Attribute | bytes:
    """Return an attribute, or its value as it is where that cannot be understood."""
    attribute = build_if_valid(kind, value, transaction_id)
    malformed = kind in ATTRIBUTES and isinstance(attribute, RawAttribute)
    return value if malformed else attribute


# --- Text ---


def as_text(message: DissectedMessage, captured: CapturedMessage | None = None) -> list[str]:
    """Return lines of text without line ends; all of their characters are printable.

    `captured` is what the message was found in, if it was in a capture.
    """
    lines = [_packet_line(captured)] if captured else []
    lines.append(_header_line(message))
    offset_width = max((len(str(a.offset)) for a in message.attributes), default=0)
    label_width = max((len(a.type.label) for a in message.attributes), default=0)
    length_width = max((len(str(a.length)) for a in message.attributes), default=0)
    for attribute in message.attributes:
        columns = [
            f"  {attribute.offset:{offset_width}}",
            f"{attribute.type:#06x}",
            f"{attribute.type.label:{label_width}}",
            f"{attribute.length:{length_width}}",
            _describe(attribute.value) if attribute.length else "",
            f"({'; '.join(attribute.notes)})" if attribute.notes else "",
        ]
        lines.append("  ".join(filter(None, columns)))
    if message.error is not None:
        lines.append(f"  malformed: {message.error}")
        if message.error.offset is not None and message.data:
            lines.append(f"  {_surroundings(message.data, message.error.offset)}")
    return [_printable(line) for line in lines]


def _packet_line(captured: CapturedMessage) -> str:
    source, destination = _endpoints(captured.datagram)
    time = _time(captured.timestamp) or "at an unknown time"
    return (
        f"packet {captured.number}, {time}, {source} -> {destination}, "
        f"payload at byte {captured.datagram.offset}"
    )


def _endpoints(datagram: CapturedDatagram) -> tuple[TransportAddress, TransportAddress]:
    return (
        TransportAddress(datagram.source_ip, datagram.source_port),
        TransportAddress(datagram.destination_ip, datagram.destination_port),
    )


def _time(timestamp: int | None) -> str | None:
    """Return nanoseconds since the epoch as ISO 8601 has it, in UTC."""
    if timestamp is None:
        return None
    seconds, nanoseconds = divmod(timestamp, 1_000_000_000)
    # Captures are in microseconds, or finer.
    fraction = f"{nanoseconds:09}" if nanoseconds % 1000 else f"{nanoseconds // 1000:06}"
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        # No year of four digits: the file is wrong, and this is what it says.
        return f"{seconds}.{fraction} s after 1970-01-01T00:00:00Z"
    return f"{moment.isoformat()[:19]}.{fraction}Z"


def _header_line(message: DissectedMessage) -> str:
    parts = []
    if message.message_class is not None and message.method is not None:
        parts.append(f"{message.message_class.name.lower()} {message.method.label}")
    else:
        parts.append("no STUN message")
    if message.transaction_id is not None:
        parts.append(f"transaction {message.transaction_id.hex()}")
    if message.length is not None:
        parts.append(f"length {message.length}")
    return ", ".join(parts)


def _describe(value: Any) -> str:
    match value:
        case TransportAddress():
            return str(value)
        case bytes():
            return value.hex() or "(empty)"
        case str():
            return repr(value)
        case IntEnum():
            return _label(value)
        case tuple():
            return ", ".join(map(_describe, value)) or "(none)"
        case _ if dataclasses.is_dataclass(value):
            return _describe_fields(_fields(value))
        case _:
            return str(value)


def _describe_fields(fields: dict[str, Any]) -> str:
    """Return a single field by its value, several by their names too, and flags by name alone."""
    parts = []
    for name, value in fields.items():
        if isinstance(value, bool):
            if value:
                parts.append(name)
        elif len(fields) == 1:
            parts.append(_describe(value))
        else:
            parts.append(f"{name}={_describe(value)}")
    return " ".join(parts) or "(none)"


def _label(value: IntEnum) -> str:
    return value.name.replace("_", "-")


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass; the type of an attribute stands beside them anyway."""
    names = (field.name for field in dataclasses.fields(value))
    return {name: getattr(value, name) for name in names if name != "type"}


def _surroundings(data: bytes, offset: int) -> str:
    """Return the bytes around one, which is in brackets; behind the last one there is none."""
    start = max(0, offset - 8)
    stop = min(len(data), offset + 9)
    parts = [data[start:offset].hex(" ")]
    parts.append(f"[{data[offset : offset + 1].hex()}]")
    parts.append(data[offset + 1 : stop].hex(" "))
    return f"bytes {start} to {stop - 1}: {' '.join(filter(None, parts))}"


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


# --- JSON ---


def as_json(message: DissectedMessage, captured: CapturedMessage | None = None) -> dict[str, Any]:
    """Return what `json.dumps` takes; the keys are always the same and in the same order.

    `captured` is what the message was found in, if it was in a capture: there is a key
    `packet` then, and `offset` is that of the message in the file.
    """
    integrity = {None: None, True: "correct", False: "wrong"}[message.integrity]
    error = message.error
    shown: dict[str, Any] = {
        "offset": captured.datagram.offset if captured else 0,
        "class": None if message.message_class is None else message.message_class.name.lower(),
        "method": None if message.method is None else message.method.label,
        "transaction_id": None if message.transaction_id is None else message.transaction_id.hex(),
        "length": message.length,
        "attributes": [_attribute_as_json(attribute) for attribute in message.attributes],
        "integrity": integrity,
        "error": None if error is None else {"message": str(error), "offset": error.offset},
    }
    if captured:
        source, destination = _endpoints(captured.datagram)
        shown["packet"] = {
            "number": captured.number,
            "time": _time(captured.timestamp),
            "source": _as_json(source),
            "destination": _as_json(destination),
        }
    return shown


def _attribute_as_json(attribute: DissectedAttribute) -> dict[str, Any]:
    raw = isinstance(attribute.value, bytes)
    value = {"value": attribute.value} if raw else _fields(attribute.value)
    return {
        "offset": attribute.offset,
        "type": int(attribute.type),
        "name": attribute.type.label,
        "length": attribute.length,
        "value": {name: _as_json(part) for name, part in value.items()},
        "notes": list(attribute.notes),
    }


def _as_json(value: Any) -> Any:
    match value:
        case TransportAddress():
            return {"ip": str(value.ip), "port": value.port}
        case bytes():
            return value.hex()
        case IntEnum():
            return {"name": _label(value), "number": int(value)}
        case None | bool() | int() | str():
            return value
        case tuple():
            return [_as_json(part) for part in value]
        case _ if dataclasses.is_dataclass(value):
            return {name: _as_json(part) for name, part in _fields(value).items()}
        case _:
            return str(value)
