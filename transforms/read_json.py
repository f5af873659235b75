"""The value of a record as a typed value, or the reason why it is none: a door for cases whose events are plain JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec

from transforms.errors import BadEvent
from transforms.records import SourceRecord

MAX_VALUE_BYTES = 1024 * 1024
"""The largest value that is read, unless a case says otherwise."""

EventId = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
"""An id as a field of an event."""

Instant = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time as a field of an event: RFC 3339 with an offset."""

KINDS = ("tombstone", "too-large", "not-utf8", "not-json", "bad-field")
"""Every `kind` of the `BadEvent` that `read_json` raises."""

T = TypeVar("T")


def read_json(record: SourceRecord, decoder: msgspec.json.Decoder[T], limit_bytes: int = MAX_VALUE_BYTES) -> T:
    """What `decoder` makes of the record's value; nothing is coerced. Raises BadEvent, of one of `KINDS`.

    Of a name that stands twice in an object the last counts; names that the type does not have are passed over.
    """
    value = record.value
    if value is None:
        raise BadEvent("tombstone", "The record has no value.")
    if len(value) > limit_bytes:
        raise BadEvent("too-large", f"The value has {len(value)} bytes; at most {limit_bytes} are read.")
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise BadEvent("not-utf8", f"The value is not UTF-8: byte {error.start} cannot stand there.") from None
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        raise BadEvent("bad-field", f"{error}.") from None
    except msgspec.DecodeError as error:
        raise BadEvent("not-json", f"The value is not JSON: {error}.") from None


class _Named(msgspec.Struct):
    id: EventId


_named: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Named)


def read_id(record: SourceRecord) -> str | None:
    """The field ``id`` of a record that may be broken otherwise; None where it cannot be read."""
    try:
        found: str = read_json(record, _named).id
    except BadEvent:
        return None
    return found


def unix_ms(at: datetime) -> int:
    """A time in Unix milliseconds, cut off below them."""
    return int(at.timestamp() * 1_000_000) // 1_000
