"""Puts sample events into a Kafka topic, as a producer of the real thing would."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import orjson
from confluent_kafka import KafkaError, Message, Producer

from runners.local.part import StackError
from transforms.errors import BadReply
from transforms.formats.codec import Encode

HEADER = "farcall-sample"
"""A header with the sample's line number: shows that headers survive."""


@dataclass(frozen=True)
class Fed:
    """What was sent: how many records, and how many different ones."""

    records: int
    distinct: int


def feed(path: Path, servers: str, topic: str, encode: Encode, key_field: str = "customer_id") -> Fed:
    """Sends each line of `path` as one record, keyed by its field `key_field` where it has one.

    In the format of its topic; what does not fit that, such as a sample that is malformed on purpose, is sent as it is.
    Raises StackError where one was not acknowledged.
    """
    producer = Producer(
        {"bootstrap.servers": servers, "acks": "all", "message.max.bytes": "16777216", "linger.ms": "5"}
    )
    errors: list[KafkaError] = []

    def report(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            errors.append(error)

    count = 0
    values: set[bytes] = set()
    with path.open("rb") as lines:
        for count, line in enumerate(lines, start=1):
            value = line.rstrip(b"\r\n")
            values.add(value)
            producer.produce(
                topic,
                value=_encoded(value, topic, encode),
                key=key_of(value, key_field),
                headers=[(HEADER, str(count - 1).encode())],
                timestamp=time.time_ns() // 1_000_000,
                on_delivery=report,
            )
            producer.poll(0)
    left = producer.flush(30.0)
    if left or errors:
        why = errors[0].str() if errors else "no answer within 30 s"
        raise StackError(f"Kafka at {servers} did not take {left + len(errors)} of {count} events for {topic}: {why}.")
    return Fed(count, len(values))


def _encoded(value: bytes, topic: str, encode: Encode) -> bytes:
    try:
        return encode.value(topic, value)
    except BadReply:
        return value


def key_of(value: bytes, key_field: str = "customer_id") -> bytes | None:
    """The field of an event that keys it, as bytes; None for one that cannot be read."""
    try:
        event = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    key = event.get(key_field) if isinstance(event, dict) else None
    return key.encode() if isinstance(key, str) else None
