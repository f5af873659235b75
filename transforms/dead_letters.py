"""Dead letters as records to write: for Kafka the untouched record with Kafka Connect's headers, for files one JSON object.

The headers are those of Kafka Connect's dead letter queue (KIP-298, `DeadLetterQueueReporter`), so that tools that read such queues
read these; ``__connect.errors.attempts`` and ``.id`` are additions. Connect writes every value as a string, and so is it here.
"""

from __future__ import annotations

import orjson

from transforms.files import text_or_base64
from transforms.records import DeadLetter, Headers, OutputRecord

PREFIX = "__connect.errors."


def connect_headers(letter: DeadLetter) -> Headers:
    """The headers that are added to the record's own."""
    source = letter.source
    facts = {
        "topic": source.topic,
        "partition": str(source.partition),
        "offset": str(source.offset),
        "connector.name": "farcall",
        "task.id": "0",
        "stage": letter.stage,
        "class.name": letter.stage,
        "exception.class.name": letter.error_type,
        "exception.message": letter.message,
        "attempts": str(letter.attempts),
    }
    if letter.id is not None:
        facts["id"] = letter.id
    return tuple((PREFIX + name, value.encode()) for name, value in facts.items())


def to_kafka(letter: DeadLetter, topic: str) -> OutputRecord:
    """The record as it came in, key, value, headers and event time, with Connect's headers behind its own."""
    source = letter.source
    return OutputRecord(
        topic=topic,
        value=source.value,
        key=source.key,
        headers=source.headers + connect_headers(letter),
        event_time_ms=source.event_time_ms,
        id=letter.id,
    )


def to_json(letter: DeadLetter, topic: str) -> OutputRecord:
    """The same facts as one JSON object; bytes that are not UTF-8 are base64."""
    source = letter.source
    facts = {
        "id": letter.id,
        "stage": letter.stage,
        "error_type": letter.error_type,
        "message": letter.message,
        "attempts": letter.attempts,
        "topic": source.topic,
        "partition": source.partition,
        "offset": source.offset,
        "event_time_ms": source.event_time_ms,
        **text_or_base64("key", source.key),
        **text_or_base64("value", source.value),
        "headers": [{"name": name, **text_or_base64("value", value)} for name, value in source.headers],
    }
    return OutputRecord(
        topic=topic, value=orjson.dumps(facts), key=source.key, event_time_ms=source.event_time_ms, id=letter.id
    )
