"""Support events: what the JSON that comes in must look like, and what it becomes.

The value is I-JSON (RFC 7493): UTF-8, no name twice in an object, no lone surrogates, no number that a double or
a 64-bit integer cannot hold. What does not follow the rules is rejected with its reason and never put right on the
quiet: the record becomes a dead letter, where a person can see it. The rules are listed in
docs/reference/support-events.md.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from datetime import date
from typing import Any, Final, Literal, NoReturn, TypeGuard, get_args

import msgspec

from pipeline.cases.support.mail import Attachment, read_mail
from pipeline.cases.support.transcript import Turn, as_text, read_segments, read_transcript
from pipeline.cases.support.wording import excerpt, is_blank
from transforms.errors import BadEvent
from transforms.records import SourceRecord

__all__ = ["KINDS", "MAX_EVENT_BYTES", "Attachment", "Channel", "SupportEvent", "Turn", "parse_event", "read_id"]

MAX_EVENT_BYTES: Final = 1024 * 1024
"""The largest value of a record that is read, in bytes."""

MAX_ID_CHARS: Final = 256
"""The longest `id` and `customer_id`, in characters."""

MAX_DEPTH: Final = 64
"""How deep objects and arrays may nest in an event."""

Channel = Literal["chat", "email", "call"]
"""How the customer reached the shop."""

KINDS: Final = frozenset(
    {
        "tombstone",
        "too-large",
        "not-utf8",
        "not-json",
        "duplicate-key",
        "bad-number",
        "lone-surrogate",
        "too-deep",
        "not-an-object",
        "missing-id",
        "bad-id",
        "unknown-channel",
        "missing-field",
        "bad-field",
        "bad-time",
        "bad-email",
        "bad-vtt",
        "bad-segments",
        "no-text",
    }
)
"""Every `kind` of the `BadEvent` that `parse_event` raises."""

_CHANNELS: Final[tuple[str, ...]] = get_args(Channel)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_RFC_3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


class SupportEvent(msgspec.Struct, frozen=True, array_like=True):
    """A customer's message, ready for the steps that follow.

    `text` is what the customer said, as it goes to the model; of a call, what both sides said, a line per turn. `at_ms`
    is the event's own time in Unix milliseconds. `subject` and `attachments` come with e-mails, `turns` with calls.
    `source` is the record as it came in. `message_id`, `references`, `sender` and `sender_name` are an e-mail's, as `mail.Mail`
    has them.
    """

    id: str
    channel: Channel
    customer_id: str
    at_ms: int
    text: str
    source: SourceRecord
    subject: str | None = None
    turns: tuple[Turn, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    message_id: str | None = None
    references: tuple[str, ...] = ()
    sender: str | None = None
    sender_name: str | None = None


def parse_event(record: SourceRecord) -> SupportEvent:
    """Read a record's value as a support event.

    Raises `BadEvent`, with one of `KINDS`, where the value does not follow the rules; nothing else, whatever the bytes.
    """
    fields = _object(record.value)
    event_id = _id(fields)
    channel = _channel(fields)
    customer_id = _customer_id(fields)
    at_ms = _at_ms(fields)
    if channel == "chat":
        text = _readable(_string(fields, "text"), "`text` is blank")
        return SupportEvent(event_id, channel, customer_id, at_ms, text, record)
    if channel == "email":
        mail = read_mail(_string(fields, "raw"))
        text = _readable(mail.text, "the e-mail in `raw` has no text of its own, in no part and no subject")
        return SupportEvent(
            event_id,
            channel,
            customer_id,
            at_ms,
            text,
            record,
            subject=mail.subject,
            attachments=mail.attachments,
            message_id=mail.message_id,
            references=mail.references,
            sender=mail.sender,
            sender_name=mail.sender_name,
        )
    turns, text = _call(fields)
    return SupportEvent(event_id, channel, customer_id, at_ms, text, record, turns=turns)


def _call(fields: dict[str, Any]) -> tuple[tuple[Turn, ...], str]:
    """The turns of a call and its text, from the one form of transcript that it has."""
    if "segments" not in fields:
        turns = read_transcript(_string(fields, "vtt"))
        return turns, _readable(as_text(turns), "no cue of the transcript in `vtt` holds a word")
    if "vtt" in fields:
        raise BadEvent("bad-segments", "The event has both `vtt` and `segments`; send one form of its transcript.")
    turns = read_segments(fields["segments"])
    return turns, _readable(as_text(turns), "no segment of the transcript in `segments` holds a word")


def read_id(record: SourceRecord) -> str | None:
    """Read the `id` out of a record, also one that `parse_event` rejects, for its dead letter.

    None where there is none, it breaks the rules of an id, or it cannot be told for sure: bytes that are no JSON, an
    `id` that stands there twice.
    """
    try:
        pairs = _FORGIVING.decode((record.value or b"").decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    ids = [value for name, value in pairs.pairs if name == "id"] if isinstance(pairs, _Pairs) else []
    return ids[0] if len(ids) == 1 and _is_identifier(ids[0]) and "\ufffd" not in ids[0] else None


def _object(value: bytes | None) -> dict[str, Any]:
    """Read a value as an I-JSON object."""
    if value is None:
        raise BadEvent("tombstone", "The record has no value (a tombstone of Kafka); there is nothing to answer.")
    if len(value) > MAX_EVENT_BYTES:
        size = f"The event has {len(value):,} bytes, more than {MAX_EVENT_BYTES:,}"
        raise BadEvent("too-large", f"{size}; send large files elsewhere and a link here.")
    fields = _json(_utf8(value))
    if not isinstance(fields, dict):
        raise BadEvent("not-an-object", f"The event is JSON, but {_type(fields)} and not an object.")
    _check_nesting(fields)
    return fields


def _utf8(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} is {value[error.start]:#04x}"
        raise BadEvent("not-utf8", f"The event is not UTF-8: {wrong}.") from None


def _json(text: str) -> Any:
    try:
        return _STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise BadEvent("not-json", f"The event is not JSON: {error.msg}, at character {error.pos}.") from None
    except RecursionError:
        raise _too_deep() from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise BadEvent("duplicate-key", f"The name {excerpt(twice)} stands twice in one object of the event.")
    return fields


def _integer(digits: str) -> int:
    number = int(digits) if len(digits) <= 20 else None
    if number is None or not -(2**63) <= number < 2**64:
        raise BadEvent("bad-number", f"The integer {excerpt(digits)} does not fit into 64 bits; send it as a string.")
    return number


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise BadEvent("bad-number", f"The number {excerpt(digits)} is beyond what a double holds.")
    return number


def _no_constant(word: str) -> NoReturn:
    raise BadEvent("not-json", f"The event is not JSON: {word} is no JSON value (RFC 8259, section 6).")


_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_no_constant
)


class _Pairs:
    """The members of an object, with those that stand there twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


_FORGIVING = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=len, parse_float=len, strict=False)


def _check_nesting(fields: dict[str, Any]) -> None:
    """Refuse what nests deeper than `MAX_DEPTH`, and strings that cannot be written as UTF-8."""
    level: list[Any] = [fields]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_surrogates(value)
            elif isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
        level = below
        if not level:
            return
    if any(isinstance(value, dict | list) for value in level):
        raise _too_deep()
    for value in level:
        if isinstance(value, str):
            _check_surrogates(value)


def _check_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        escape = f"\\u{ord(text[error.start]):04x}"
        message = f"A string of the event holds half a character: the lone surrogate {escape} at {error.start}."
        raise BadEvent("lone-surrogate", message) from None


def _too_deep() -> BadEvent:
    return BadEvent("too-deep", f"Objects and arrays of the event nest deeper than {MAX_DEPTH} levels.")


def _id(fields: dict[str, Any]) -> str:
    if "id" not in fields:
        raise BadEvent("missing-id", "The event has no `id`; without one its answer cannot be matched to it.")
    if not _is_identifier(fields["id"]):
        raise BadEvent("bad-id", f"The event's `id` must be {_IDENTIFIER}, not {_shown(fields['id'])}.")
    return fields["id"]


def _customer_id(fields: dict[str, Any]) -> str:
    customer_id = _string(fields, "customer_id")
    if not _is_identifier(customer_id):
        raise BadEvent("bad-field", f"The event's `customer_id` must be {_IDENTIFIER}, not {_shown(customer_id)}.")
    return customer_id


_IDENTIFIER = f"a string of 1 to {MAX_ID_CHARS} printable characters, not only spaces"


def _is_identifier(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= MAX_ID_CHARS and value.isprintable() and not is_blank(value)


def _channel(fields: dict[str, Any]) -> Channel:
    channel = _present(fields, "channel")
    if not (isinstance(channel, str) and channel in _CHANNELS):
        known = ", ".join(_CHANNELS)
        raise BadEvent("unknown-channel", f"The event's `channel` is {_shown(channel)}; those known are {known}.")
    return channel  # type: ignore[return-value]  # one of the literals, as just checked


def _present(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise BadEvent("missing-field", f"The event has no `{name}`, which every event of its channel must have.")
    return fields[name]


def _string(fields: dict[str, Any], name: str) -> str:
    value = _present(fields, name)
    if not isinstance(value, str):
        raise BadEvent("bad-field", f"The event's `{name}` must be a string, but is {_type(value)}.")
    return value


def _readable(text: str, otherwise: str) -> str:
    if is_blank(text):
        raise BadEvent("no-text", f"There is nothing to answer: {otherwise}.")
    return text


def _at_ms(fields: dict[str, Any]) -> int:
    """Read `at` as RFC 3339, parts of a millisecond cut off."""
    at = _string(fields, "at")
    match = _RFC_3339.fullmatch(at)
    milliseconds = _milliseconds(match) if match else None
    if milliseconds is None:
        example = "2026-03-02T09:15:00+01:00"
        raise BadEvent("bad-time", f"The event's `at` must be RFC 3339 with an offset ({example}), not {excerpt(at)}.")
    return milliseconds


def _milliseconds(match: re.Match[str]) -> int | None:
    """Give Unix milliseconds, None for a time that no clock shows. A leap second is the second that follows it."""
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    offset_hours, offset_minutes = int(match[9] or 0), int(match[10] or 0)
    if hour > 23 or minute > 59 or second > 60 or offset_hours > 23 or offset_minutes > 59:
        return None
    try:
        days = date(year, month, day).toordinal() - _EPOCH_DAY
    except ValueError:
        return None
    offset = (offset_hours * 60 + offset_minutes) * (-60 if match[8] == "-" else 60)
    seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - offset
    if second == 60 and seconds % 86_400:
        return None
    return seconds * 1_000 + int((match[7] or "")[:3].ljust(3, "0"))


def _shown(value: Any) -> str:
    return excerpt(value) if isinstance(value, str) else _type(value)


def _type(value: Any) -> str:
    """Name the JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"
