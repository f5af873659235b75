"""Reads what a job writes while it writes it, for progress and for the table at the end."""

from __future__ import annotations

import collections
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline.summary import Written
from transforms.dead_letters import PREFIX
from transforms.errors import SettingsError, Unavailable
from transforms.formats.codec import Decode
from transforms.kafka import client_config
from transforms.remote.clock import SystemClock
from transforms.repeats import REPLAY_HEADER

_KAFKA_TIMEOUT_S = 8.0
_REACH_TIMEOUT_S = 4.0  # what is not there is refused within ten seconds, the start of Python included
_NO_LEADER_YET = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)


class Watch(Protocol):
    """Where outputs are read from. Each record comes once."""

    @property
    def unread(self) -> str | None:
        """Why records that are there cannot be read at present, in a sentence; None where they can."""

    def poll(self) -> list[Written]:
        """What was written since the last time. Does not wait."""

    def close(self) -> None:
        """Gives up what it holds."""


class NoWatch:
    """Follows nothing: outputs in an object store are not read back."""

    unread: str | None = None

    def poll(self) -> list[Written]:
        """Nothing."""
        return []

    def close(self) -> None:
        """Holds nothing."""


class FileWatch:
    """Follows ``<folder>/<topic>.jsonl``. `escalations` is the one of `topics` for a person, `side_topics` hold no outcomes."""

    unread: str | None = None

    def __init__(
        self,
        folder: str,
        topics: Sequence[str],
        dead_letter_topic: str,
        side_topics: Sequence[str] = (),
        escalations: str | None = None,
    ) -> None:
        every = (*topics, *side_topics, dead_letter_topic)
        self._paths = {topic: os.path.join(folder, f"{topic}.jsonl") for topic in every}
        self._dead = dead_letter_topic
        self._side = frozenset(side_topics)
        self._escalations = escalations
        self._offsets = dict.fromkeys(self._paths, 0)

    def clear(self) -> list[str]:
        """Removes what an earlier run left in these files; returns their paths."""
        removed = [path for path in self._paths.values() if os.path.exists(path)]
        for path in removed:
            os.remove(path)
        return removed

    def poll(self) -> list[Written]:
        """The lines that are complete."""
        return [record for topic in self._paths for record in self._new(topic)]

    def close(self) -> None:
        """Holds nothing."""

    def _new(self, topic: str) -> Iterator[Written]:
        try:
            file = open(self._paths[topic], "rb")  # noqa: SIM115 - closed below; a missing file is no error
        except FileNotFoundError:
            return
        with file:
            file.seek(self._offsets[topic])
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offsets[topic] += len(line)
                yield self._written(topic, line)

    def _written(self, topic: str, line: bytes) -> Written:
        facts = orjson.loads(line)
        if topic in self._side:
            return Written(topic=topic, identity="", side=True)
        if topic != self._dead:
            return _reply(topic, facts, escalated=topic == self._escalations)
        return _dead(topic, facts["stage"], facts["error_type"], int(facts["attempts"]), facts["id"], _position(facts))


class KafkaWatch:
    """Follows topics from where they end when it is made. Raises SettingsError where Kafka cannot be reached.

    While the schema registry does not answer, what it is needed for waits; no more is fetched meanwhile.
    """

    def __init__(
        self,
        servers: str,
        topics: Sequence[str],
        dead_letter_topic: str,
        config: Mapping[str, str],
        side_topics: Sequence[str] = (),
        escalations: str | None = None,
        decode: Decode | None = None,
    ) -> None:
        self._decode = decode or Decode({})
        self._dead = dead_letter_topic
        self._side = frozenset(side_topics)
        self._escalations = escalations
        self._fetched: collections.deque[Message] = collections.deque()
        self.unread: str | None = None
        every = (*topics, *side_topics, dead_letter_topic)
        self._consumer = open_consumer(servers, config, "farcall-watch")
        try:
            self._consumer.assign([p for topic in every for p in ends(self._consumer, servers, topic)])
        except BaseException:
            self._consumer.close()
            raise

    def poll(self) -> list[Written]:
        """What has come since."""
        if not self._fetched:
            messages = self._consumer.consume(500, 0.05)
            self._fetched.extend(message for message in messages if message.error() is None)
        found, self.unread = [], None
        while self._fetched:
            try:
                found.append(self._written(self._fetched[0]))
            except Unavailable as error:
                self.unread = str(error)
                break
            self._fetched.popleft()
        return found

    def close(self) -> None:
        """Closes the consumer."""
        self._consumer.close()

    def _written(self, message: Message) -> Written:
        topic = message.topic() or ""
        if topic in self._side:
            return Written(topic=topic, identity="", side=True)
        if topic != self._dead:
            value = self._decode.value(topic, message.value() or b"{}")
            return _reply(topic, orjson.loads(value), escalated=topic == self._escalations, again=_again(message))
        facts = {
            name.removeprefix(PREFIX): (value or b"").decode()
            for name, value in message.headers() or ()
            if name.startswith(PREFIX)
        }
        return _dead(
            topic,
            facts["stage"],
            facts["exception.class.name"],
            int(facts["attempts"]),
            facts.get("id"),
            _position(facts),
            again=_again(message),
        )


def _again(message: Message) -> str:
    """What tells the outcome of an event that was sent again from the dead letter that it had before; nothing for any other."""
    found = next((value for name, value in message.headers() or () if name == REPLAY_HEADER), None)
    return "" if found is None else f" again {found.decode('utf-8', 'replace')}"


def open_consumer(servers: str, producer_config: Mapping[str, str], group: str) -> Consumer:
    """A consumer of our own, beside the job's. Raises SettingsError where the settings are not librdkafka's."""
    config = client_config(servers, producer_config)
    try:
        return Consumer({**config, "group.id": group, "enable.auto.commit": "false"}, logger=_silent())
    except (KafkaException, ValueError) as error:
        raise SettingsError(f"--kafka_config: librdkafka refuses the producer's settings: {error}.") from None


def _silent() -> logging.Logger:
    # librdkafka's own log repeats what the sentence of the error says.
    logger = logging.getLogger("farcall.kafka")
    logger.setLevel(logging.CRITICAL)
    return logger


def ends(consumer: Consumer, servers: str, topic: str) -> list[TopicPartition]:
    """The end of each partition of a topic. Raises SettingsError where Kafka does not answer or has no such topic."""
    try:
        found = consumer.list_topics(topic, timeout=_REACH_TIMEOUT_S).topics[topic]
        if found.error is not None or not found.partitions:
            raise SettingsError(
                f"Kafka at {servers} has no topic {topic}; create it, or rename topics with --topics=FILE."
            )
        partitions = [TopicPartition(topic, number) for number in found.partitions]
        for partition in partitions:
            partition.offset = _end(consumer, partition)
    except KafkaException as error:
        raise SettingsError(
            f"Kafka at {servers} cannot be reached: {error.args[0].str()}. Is it running, and is the address right?"
        ) from None
    return partitions


def _end(consumer: Consumer, partition: TopicPartition) -> int:
    """The end of a partition. One that was made a moment ago has no leader yet: asks again for a few seconds."""
    clock = SystemClock()
    until_s = clock.monotonic_s() + _KAFKA_TIMEOUT_S
    while True:
        try:
            return int(consumer.get_watermark_offsets(partition, timeout=_KAFKA_TIMEOUT_S)[1])
        except KafkaException as error:
            if not error.args[0].retriable() and error.args[0].code() not in _NO_LEADER_YET:
                raise
            if clock.monotonic_s() > until_s:
                raise
            time.sleep(0.1)


def _reply(topic: str, facts: dict[str, Any], *, escalated: bool, again: str = "") -> Written:
    attempts = int(facts.get("attempts", 0))
    identity = f"id {facts['id']}{again}"
    return Written(topic=topic, identity=identity, reply=facts, attempts=attempts, escalated=escalated)


def _dead(
    topic: str, stage: str, error_type: str, attempts: int, event_id: str | None, position: str, again: str = ""
) -> Written:
    # An event refused at the door may carry the id of another; after that, ids are unique.
    identity = position if stage == "parse" or event_id is None else f"id {event_id}{again}"
    return Written(topic=topic, identity=identity, dead=(stage, error_type), attempts=attempts)


def _position(facts: dict[str, Any]) -> str:
    return f"position {facts['topic']} {facts['partition']} {facts['offset']}"
