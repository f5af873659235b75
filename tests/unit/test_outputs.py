"""What is read back of a job's outputs in Kafka while the schema registry is away."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline import outputs
from pipeline.outputs import KafkaWatch
from transforms.errors import Unavailable


class Message:
    """A record as the consumer gives it."""

    def __init__(self, topic: str, **facts: Any) -> None:
        self._topic = topic
        self._value = orjson.dumps(facts)

    def topic(self) -> str:
        return self._topic

    def value(self) -> bytes:
        return self._value

    def headers(self) -> None:
        return None

    def error(self) -> None:
        return None


class Consumer:
    """Gives each batch once."""

    def __init__(self, *batches: list[Message]) -> None:
        self.batches = list(batches)

    def assign(self, _partitions: Any) -> None:
        """Takes any."""

    def consume(self, _most: int, _timeout_s: float) -> list[Message]:
        return self.batches.pop(0) if self.batches else []


class Decode:
    """JSON as it is, where the registry answers."""

    def __init__(self) -> None:
        self.is_down = False

    def value(self, topic: str, value: bytes) -> bytes:
        if self.is_down and topic == "framed":
            raise Unavailable("The schema registry does not answer.")
        return value


def test_records_wait_for_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that does not answer ends nothing: what needs it waits and is said, is read when it is back, in order, once."""
    consumer = Consumer(
        [Message("plain", id="a"), Message("framed", id="b"), Message("plain", id="c")], [Message("plain", id="d")]
    )
    monkeypatch.setattr(outputs, "open_consumer", lambda *_: consumer)
    monkeypatch.setattr(outputs, "ends", lambda *_: [])
    decode: Any = Decode()
    watch = KafkaWatch("kafka:9092", ["plain", "framed"], "dead", {}, decode=decode)
    decode.is_down = True
    assert [one.identity for one in watch.poll()] == ["id a"]
    assert watch.unread == "The schema registry does not answer."
    assert watch.poll() == []
    assert len(consumer.batches) == 1, "no more is fetched meanwhile"
    decode.is_down = False
    assert [one.identity for one in watch.poll()] == ["id b", "id c"]
    assert watch.unread is None
    assert [one.identity for one in watch.poll()] == ["id d"]
    assert watch.poll() == []
