"""Dead letters as records: the untouched record with Kafka Connect's headers, or one JSON object."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from transforms.dead_letters import connect_headers, to_json, to_kafka
from transforms.records import DeadLetter, SourceRecord

SOURCE = SourceRecord(
    value=b'{"id": "a"',
    key=b"\x00k",
    headers=(("own", b"1"), ("own", b"2"), ("empty", None), ("bytes", b"\xff")),
    topic="support.events",
    partition=3,
    offset=42,
    event_time_ms=1_700_000_000_123,
)
LETTER = DeadLetter(SOURCE, stage="ask", error_type="timeout", message="Zu spät.", attempts=5, id="a")

CONNECT = (
    ("__connect.errors.topic", b"support.events"),
    ("__connect.errors.partition", b"3"),
    ("__connect.errors.offset", b"42"),
    ("__connect.errors.connector.name", b"farcall"),
    ("__connect.errors.task.id", b"0"),
    ("__connect.errors.stage", b"ask"),
    ("__connect.errors.class.name", b"ask"),
    ("__connect.errors.exception.class.name", b"timeout"),
    ("__connect.errors.exception.message", "Zu spät.".encode()),
    ("__connect.errors.attempts", b"5"),
)


def test_the_headers_are_those_of_connect() -> None:
    """The headers are Kafka Connect's by name and order, all strings, and ours for attempts and id."""
    assert connect_headers(LETTER) == (*CONNECT, ("__connect.errors.id", b"a"))


def test_a_record_without_an_id_has_no_header_for_it() -> None:
    """Where no id could be read there is no header, rather than an empty one."""
    assert connect_headers(msgspec.structs.replace(LETTER, id=None)) == CONNECT


def test_the_record_in_kafka_is_untouched() -> None:
    """Key, value, event time and own headers are as they came, Connect's headers behind them."""
    record = to_kafka(LETTER, "dead")
    assert (record.key, record.value, record.event_time_ms) == (SOURCE.key, SOURCE.value, SOURCE.event_time_ms)
    assert record.headers[: len(SOURCE.headers)] == SOURCE.headers
    assert record.headers[len(SOURCE.headers) :] == connect_headers(LETTER)
    assert (record.topic, record.id) == ("dead", "a")


def test_a_tombstone_stays_one() -> None:
    """A record without value and key is a dead letter without value and key."""
    record = to_kafka(msgspec.structs.replace(LETTER, source=SourceRecord(value=None)), "dead")
    assert record.value is None
    assert record.key is None


def as_json(letter: DeadLetter) -> dict[str, Any]:
    record = to_json(letter, "dead")
    assert (record.topic, record.id, record.event_time_ms) == ("dead", letter.id, letter.source.event_time_ms)
    return json.loads(record.value or b"")


def test_the_json_form_holds_every_fact() -> None:
    """The JSON object has the reason and the position, and key, value and headers in order."""
    facts = as_json(LETTER)
    assert facts == {
        "id": "a",
        "stage": "ask",
        "error_type": "timeout",
        "message": "Zu spät.",
        "attempts": 5,
        "topic": "support.events",
        "partition": 3,
        "offset": 42,
        "event_time_ms": 1_700_000_000_123,
        "key": "\x00k",
        "value": '{"id": "a"',
        "headers": [
            {"name": "own", "value": "1"},
            {"name": "own", "value": "2"},
            {"name": "empty", "value": None},
            {"name": "bytes", "value_base64": "/w=="},
        ],
    }


@pytest.mark.parametrize("value", [b"\xff\xfe", b"ok \xc3", b"\xed\xa0\x80", bytes(range(256))])
def test_bytes_that_are_not_utf8_are_base64(value: bytes) -> None:
    """What is not UTF-8 stands under value_base64, key_base64, and gives the same bytes back."""
    facts = as_json(msgspec.structs.replace(LETTER, source=SourceRecord(value=value, key=value)))
    assert "value" not in facts
    assert "key" not in facts
    assert base64.b64decode(facts["value_base64"]) == base64.b64decode(facts["key_base64"]) == value


@pytest.mark.parametrize("value", [b"", b"\n", b'{"a":\r\n1}', b'"\\ud800"', "é\u2028".encode(), b"\x00\x1b"])
def test_bytes_that_are_utf8_are_text(value: bytes) -> None:
    """What is UTF-8 stands as text that gives the same bytes back, on one line whatever it holds."""
    record = to_json(msgspec.structs.replace(LETTER, source=SourceRecord(value=value)), "dead")
    assert json.loads(record.value or b"")["value"].encode() == value
    assert b"\n" not in (record.value or b"")


def test_a_record_without_a_value_is_null() -> None:
    """A tombstone is null in JSON, and an empty value an empty string."""
    assert as_json(msgspec.structs.replace(LETTER, source=SourceRecord(value=None)))["value"] is None
    assert as_json(msgspec.structs.replace(LETTER, source=SourceRecord(value=b"")))["value"] == ""
