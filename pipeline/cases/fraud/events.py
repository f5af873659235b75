"""Fraud events and labels: what the JSON that comes in must look like, and what it becomes.

The rules are listed in docs/reference/fraud-events.md. What breaks one is rejected with its reason, never put right on the quiet.
"""

from __future__ import annotations

import difflib
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from transforms.errors import BadEvent
from transforms.panes import Recent
from transforms.read_json import KINDS as JSON_KINDS
from transforms.read_json import EventId, Instant, read_json, unix_ms
from transforms.records import SourceRecord

FEATURES = (
    "empty_server_form_handler",
    "popup_window",
    "https",
    "request_from_other_domain",
    "anchor_from_other_domain",
    "is_popular",
    "long_url",
    "age_of_domain",
    "ip_in_url",
)
"""The features of a record, in the order in which the model has them; each lies between 0 and 1."""

KINDS = (*JSON_KINDS, "missing-feature", "unknown-feature", "bad-feature")
"""Every `kind` of the `BadEvent` that `parse_event` raises; `parse_label` raises those of JSON alone."""


class FraudEvent(msgspec.Struct, frozen=True, array_like=True):
    """A record to be scored. `features` are in the order of `FEATURES`; `at_ms` is the event's own time in Unix milliseconds.

    `entity` is whose record it is, such as a host or a merchant; empty where the event did not say. `recent` is what that entity's
    records came to, one for each window, once the step has found it out.
    """

    id: str
    at_ms: int
    entity: str
    features: tuple[float, ...]
    source: SourceRecord
    recent: tuple[Recent, ...] = ()


class Label(msgspec.Struct, frozen=True, array_like=True):
    """What an event turned out to be: `is_fraud`. `at_ms` is when that was known."""

    id: str
    at_ms: int
    is_fraud: bool
    source: SourceRecord


class _Event(msgspec.Struct):
    id: EventId
    at: Instant
    features: dict[str, float]
    entity: Annotated[str, msgspec.Meta(max_length=256)] = ""


class _Label(msgspec.Struct):
    id: EventId
    at: Instant
    label: bool


_events: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Event)
_labels: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Label)


def parse_event(record: SourceRecord) -> FraudEvent:
    """The event in a record. Raises BadEvent, of one of `KINDS`."""
    event = read_json(record, _events)
    features = event.features
    for name in features:
        if name not in FEATURES:
            near = difflib.get_close_matches(name, FEATURES, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise BadEvent("unknown-feature", f"features.{name[:40]}: the model has no such feature.{hint}")
    missing = [name for name in FEATURES if name not in features]
    if missing:
        raise BadEvent("missing-feature", f"features: {', '.join(missing)} missing.")
    for name, value in features.items():
        if not 0 <= value <= 1:
            raise BadEvent("bad-feature", f"features.{name}: must lie between 0 and 1, and is {value:g}.")
    values = tuple(features[name] for name in FEATURES)
    return FraudEvent(event.id, unix_ms(event.at), event.entity, values, record)


def parse_label(record: SourceRecord) -> Label:
    """The label in a record. Raises BadEvent, of one of the kinds of `read_json`."""
    label = read_json(record, _labels)
    return Label(label.id, unix_ms(label.at), label.label, record)


def event_id(record: Any) -> str:
    """The id of an event or label."""
    return str(record.id)


def source_of(record: Any) -> SourceRecord:
    """The record that an event or label came from."""
    source: SourceRecord = record.source
    return source


def rfc_3339(at_ms: int) -> str:
    """A time as JSON has it here: RFC 3339 in UTC, with milliseconds."""
    return datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
