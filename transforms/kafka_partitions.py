"""Partitions of Kafka, read ahead: a consumer of librdkafka for each shard of a source, with a thread that waits for it. No Beam.

Which offsets come next is told from outside at each turn (`Partitions.follow`): the runner's state is the truth, what lies here a
cache. A consumer of confluent-kafka serves one thread at a time, so that each belongs to its thread alone, and what else must be
asked of Kafka (partitions, committed offsets) goes through consumers of its own.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import threading
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from transforms.errors import FarcallError
from transforms.remote.clock import Clock, SystemClock

_LOG = logging.getLogger(__name__)

Partition = tuple[str, int]
"""A topic and a number."""

AHEAD = 2_000
"""How many records of one shard are held before they are asked for. Then its consumer waits."""

IDLE_LAG_S = 1.0
"""The time of a partition that has been read to its end follows the clock, so far behind."""

MOVED_S = 5.0
"""A shard that nobody has listened to for so long is handled in another process now."""

LOOK_S = 30.0
"""How often it is looked for new partitions."""

CONFIRM_S = 30.0
"""After so long without an answer the runner is asked again to say when a checkpoint is complete."""

REACH_S = 60.0
"""How long a source that begins waits for Kafka's answer before its bundle fails and is done again."""

BEFORE_ALL_US = -(2**62)
"""The time of a partition whose first record is still to come."""

_BATCH = 500
_POLL_S = 0.1

_PASSING = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001 - that is how the library spells its codes
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError._RESOLVE,  # noqa: SLF001
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
)
"""What librdkafka overcomes by itself, by trying again."""


class Client(Protocol):
    """What is used of confluent-kafka's `Consumer`."""

    def assign(self, partitions: list[TopicPartition]) -> None:
        """Reads these partitions from these offsets on."""

    def poll(self, timeout: float) -> Message | None:
        """The next record or event, or None."""

    def consume(self, num_messages: int, timeout: float) -> list[Message]:
        """What has come already."""

    def close(self) -> None:
        """Ends it."""


class _Course:
    """How far one partition has been handed out."""

    __slots__ = ("at", "end", "latest_us")

    def __init__(self, at: int) -> None:
        self.at = at
        self.end = -1
        self.latest_us = BEFORE_ALL_US


class SupersededError(FarcallError):
    """Another bundle reads these partitions now: this one is of a job that was restarted, and what it does is lost."""


class Partitions:
    """The partitions of one shard. Each turn of a bundle begins with `follow`; a turn that came later ends those before it.

    `arrived` is notified when records have come, and when there is room for more; its lock guards what the two threads share.
    """

    def __init__(self, make: Callable[[], Client], arrived: threading.Condition) -> None:
        self._make = make
        self._arrived = arrived
        self._courses: dict[Partition, _Course] = {}
        self._ahead: collections.deque[Message] = collections.deque()
        self._assignment: list[TopicPartition] | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._turn_number = 0
        self._thread: threading.Thread | None = None
        self.listened_to = False
        """Whether somebody waits for these partitions now."""
        self.left_s = float("-inf")
        """When somebody last did, of the clock's monotonic seconds."""
        self.reader: object = None
        """Who last did, and is still there."""

    def follow(self, positions: Mapping[Partition, int]) -> int:
        """Reads on at these offsets, the next of each partition: at once where they are the present ones, else from there anew.

        Returns the number of the turn, which `take` wants: a process may outlive a restart of the job, with a bundle in it that nobody
        waits for any more. What that took would be missing, if it could.
        """
        with self._arrived:
            self._turn_number += 1
            if self.positions != positions:
                self._assign(positions)
            return self._turn_number

    def _assign(self, positions: Mapping[Partition, int]) -> None:
        with self._arrived:
            known = self._courses
            self._courses = {
                partition: known[partition] if partition in known and known[partition].at == at else _Course(at)
                for partition, at in positions.items()
            }
            self._ahead.clear()
            self._assignment = [TopicPartition(topic, number, at) for (topic, number), at in positions.items()]
            self._arrived.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="kafka-partitions", daemon=True)
            self._thread.start()

    @property
    def positions(self) -> dict[Partition, int]:
        """The next offset of each partition."""
        return {partition: course.at for partition, course in self._courses.items()}

    @property
    def has_records(self) -> bool:
        """Whether `take` gives a record now, or raises."""
        return bool(self._ahead) or self._error is not None

    def take(self, turn: int) -> Message | None:
        """The next record, which counts as handed out; None where none has come.

        Raises what the consumer failed with, once: the next turn begins with a new one. And SupersededError where `turn` is not the
        latest.
        """
        with self._arrived:
            if turn != self._turn_number:
                raise SupersededError(
                    "Another bundle reads these partitions of Kafka now; this one is of a job that was restarted."
                )
            if self._error is not None:
                error, self._error, self._thread, self._courses = self._error, None, None, {}
                raise error
            if not self._ahead:
                return None
            message = self._ahead.popleft()
            if len(self._ahead) == AHEAD - 1:
                self._arrived.notify_all()
            course = self._courses[_partition_of(message)]
            course.at = _offset_of(message) + 1
            course.latest_us = max(course.latest_us, time_ms_of(message) * 1_000)
            return message

    def watermark_us(self, now_us: int) -> int | None:
        """Before which time no further record is expected, in Unix microseconds; None where there are no partitions.

        That is the latest time seen in the partition that is furthest behind. One that has been read to its end is `IDLE_LAG_S`
        behind the clock at most, whether it ever had a record or not.
        """
        idle_us = now_us - round(IDLE_LAG_S * 1e6)
        return min((self._time_us(course, now_us, idle_us) for course in self._courses.values()), default=None)

    @staticmethod
    def _time_us(course: _Course, now_us: int, idle_us: int) -> int:
        # A producer whose clock runs ahead must not take the stream's time with it.
        latest_us = min(course.latest_us, now_us)
        return max(latest_us, idle_us) if 0 <= course.end <= course.at else latest_us

    def close(self) -> None:
        """Ends the thread and its consumer."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
        if self._thread is not None:
            self._thread.join(10.0)

    def _read(self) -> None:
        client: Client | None = None
        try:
            client = self._make()
            while self._turn(client):
                pass
        except BaseException as error:  # noqa: BLE001 - it is raised where records are taken, and fails the bundle there
            with self._arrived:
                self._error = error
                self._arrived.notify_all()
        finally:
            if client is not None:
                client.close()

    def _turn(self, client: Client) -> bool:
        """Waits for the next records; returns whether to go on."""
        with self._arrived:
            while len(self._ahead) >= AHEAD and self._assignment is None and not self._closed:
                self._arrived.wait()
            if self._closed:
                return False
            assignment, self._assignment = self._assignment, None
        if assignment is not None:
            client.assign(assignment)
        first = client.poll(_POLL_S)
        if first is None:
            return True
        batch = [first, *client.consume(_BATCH, 0)]
        with self._arrived:
            # With a new assignment these are of the old one; the new one gives what is still wanted of them again.
            if self._assignment is None:
                self._keep(batch)
            self._arrived.notify_all()
        return True

    def _keep(self, batch: Sequence[Message]) -> None:
        for message in batch:
            error = message.error()
            if error is None:
                if _partition_of(message) in self._courses:
                    self._ahead.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                course = self._courses.get(_partition_of(message))
                if course is not None:
                    course.end = _offset_of(message)
            elif error.code() not in _PASSING and not error.retriable():
                raise KafkaException(error)


def _partition_of(message: Message) -> Partition:
    topic, number = message.topic(), message.partition()
    assert topic is not None and number is not None  # noqa: S101, PT018 - a record has both
    return topic, number


def _offset_of(message: Message) -> int:
    offset: int | None = message.offset()
    assert offset is not None  # noqa: S101 - a record has one
    return offset


def time_ms_of(message: Message) -> int:
    """The record's timestamp in Unix milliseconds, the producer's or the broker's, as the topic is set; 0 where it has none."""
    time_ms: int = message.timestamp()[1]
    return max(0, time_ms)


def shard_index(partition: Partition, shards: int, readers: int = 0) -> int:
    """Which of `shards` shards reads a partition: the same in every process, however many partitions there are.

    Partitions one after the other go to shards far apart, since a runner gives neighbouring shards to one subtask: van der Corput's
    sequence, begun at a place that depends on the topic. With `readers`, where they are fewer than the shards, only so many shards
    read: each in the middle of an equal share of all, so that as many subtasks have one each.
    """
    topic, number = partition
    count = min(readers, shards) or shards
    place = _spread(count)[(zlib.crc32(topic.encode()) + number) % count]
    return (2 * place + 1) * shards // (2 * count)


@functools.cache
def _spread(shards: int) -> tuple[int, ...]:
    """All shards in an order in which any that follow each other lie far apart."""
    bits = max(1, (shards - 1).bit_length())
    order = (int(format(number, f"0{bits}b")[::-1], 2) for number in range(1 << bits))
    return tuple(shard for shard in order if shard < shards)


class Source:
    """What the shards of one source share in a process: their partitions by key, and what is asked of Kafka for all."""

    def __init__(self, config: Mapping[str, Any], topics: Sequence[str], clock: Clock | None = None) -> None:
        self._config = {
            # A shard holds records itself; the library's default of 64 MiB for each consumer would be on top.
            "queued.max.messages.kbytes": "16384",
            **config,
            "enable.auto.commit": "false",
        }
        self._topics = tuple(topics)
        self.clock = clock or SystemClock()
        self.arrived = threading.Condition(threading.RLock())
        self._by_key: dict[bytes, Partitions] = {}
        self._known: tuple[Partition, ...] = ()
        self._look_s = float("-inf")
        self._asking = threading.Lock()
        self._asks: Consumer | None = None

    def partitions_of(self, key: bytes) -> Partitions:
        """The partitions of a shard, made on first use."""
        with self.arrived:
            if key not in self._by_key:
                self._by_key[key] = Partitions(self._client, self.arrived)
            return self._by_key[key]

    def _client(self) -> Client:
        client: Client = Consumer({**self._config, "enable.partition.eof": "true"})
        return client

    @property
    def shards(self) -> int:
        """How many shards have partitions here, at least 1."""
        return max(1, sum(1 for one in self._by_key.values() if one.positions))

    def wait(self, partitions: Partitions, timeout_s: float, spent: Collection[bytes] = ()) -> bool:
        """Waits for a record of these partitions, at most so long; returns whether there is one.

        Gives up earlier where a shard that is not `spent` has records, and may be waiting for this thread (`is_wanted`).
        """
        end_s = self.clock.monotonic_s() + timeout_s
        with self.arrived:
            while not partitions.has_records:
                rest_s = end_s - self.clock.monotonic_s()
                if rest_s <= 0 or self.is_wanted(partitions.reader, spent):
                    return False
                self.arrived.wait(rest_s)
            return True

    def is_wanted(self, reader: object, spent: Collection[bytes] = ()) -> bool:
        """Whether a shard that is not `spent` has records, nobody listens to it at the moment, and `reader` may have to.

        One that nobody comes back to has moved away, and one that another reader listened to last is that reader's.
        """
        since_s = self.clock.monotonic_s() - MOVED_S
        return any(
            one.has_records and not one.listened_to and one.left_s >= since_s and one.reader in (None, reader)
            for key, one in self._by_key.items()
            if key not in spent
        )

    def leave(self, reader: object) -> None:
        """A reader listens no more: its shards are anybody's."""
        with self.arrived:
            for one in self._by_key.values():
                if one.reader is reader:
                    one.reader = None

    @contextlib.contextmanager
    def listening(self, partitions: Partitions, reader: object) -> Iterator[None]:
        """A reader listens to these partitions meanwhile."""
        partitions.listened_to = True
        partitions.reader = reader
        try:
            yield
        finally:
            partitions.listened_to = False
            partitions.left_s = self.clock.monotonic_s()

    def known(self) -> tuple[Partition, ...]:
        """All partitions of the topics. Looked up every `LOOK_S`; raises KafkaException where that never worked."""
        with self._asking:
            now_s = self.clock.monotonic_s()
            if now_s < self._look_s:
                return self._known
            found: list[Partition] = []
            if not self._known:
                found = self._until_answered(lambda: self._look(10.0))
            else:
                try:
                    found = self._look(2.0)
                except KafkaException as error:
                    _LOG.warning("Kafka did not tell the partitions of %s: %s", ", ".join(self._topics), error)
            # One that was known stays: Kafka has no way to take partitions away but with their topic.
            self._known = tuple(sorted({*self._known, *found}))
            self._look_s = now_s + LOOK_S
            return self._known

    def _look(self, timeout_s: float) -> list[Partition]:
        found: list[Partition] = []
        for name in self._topics:
            topic = self._asker().list_topics(name, timeout=timeout_s).topics[name]
            if topic.error is not None:
                raise KafkaException(topic.error)
            found += [(name, number) for number in topic.partitions]
        return found

    def starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Where a source without state begins: behind what the group committed, else by ``auto.offset.reset``.

        Raises KafkaException where Kafka does not answer within `REACH_S`.
        """
        if not partitions:
            return {}
        asked = [TopicPartition(topic, number) for topic, number in partitions]
        with self._asking:
            committed = self._until_answered(lambda: self._asker().committed(asked, timeout=10.0))
            return {(one.topic, one.partition): self._start(one) for one in committed}

    def _start(self, committed: TopicPartition) -> int:
        offset: int = committed.offset
        if offset >= 0:
            return offset
        low: int
        high: int
        low, high = self._until_answered(
            lambda: self._asker().get_watermark_offsets(
                TopicPartition(committed.topic, committed.partition), timeout=10.0
            )
        )
        return high if self._config.get("auto.offset.reset") in {"latest", "largest", "end"} else low

    def _until_answered(self, ask: Callable[[], Any]) -> Any:
        """Asks again while Kafka is busy finding itself: for a group's first coordinator, a new topic's leader."""
        end_s = self.clock.monotonic_s() + REACH_S
        pause = threading.Event()
        while True:
            try:
                return ask()
            except KafkaException as error:
                cause = error.args[0]
                if self.clock.monotonic_s() > end_s or not (cause.retriable() or cause.code() in _PASSING):
                    raise
                pause.wait(0.2)

    def commit(self, positions: Mapping[Partition, int]) -> bool:
        """Tells Kafka what the group has read; returns whether it took it. A refusal is logged: the runner's state is the truth."""
        offsets = [TopicPartition(topic, number, at) for (topic, number), at in positions.items()]
        with self._asking:
            try:
                self._asker().commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                _LOG.warning("Offsets of %s were not committed: %s", ", ".join(self._topics), error)
                return False
        return True

    def _asker(self) -> Consumer:
        if self._asks is None:
            self._asks = Consumer(self._config)
        return self._asks

    def close(self) -> None:
        """Ends all consumers."""
        with self.arrived:
            shards, self._by_key = list(self._by_key.values()), {}
        for partitions in shards:
            partitions.close()
        with self._asking:
            if self._asks is not None:
                self._asks.close()
                self._asks = None


class Told:
    """Offsets on their way to Kafka: committed once a checkpoint that surely has them is complete.

    The runner says when a checkpoint is complete, but not which offsets it has: those of its last bundles may be newer. So each
    shard's offsets wait for a second one. What is final, of a source that has ended, does not wait.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._fresh: dict[bytes, dict[Partition, int]] = {}
        self._due: dict[bytes, dict[Partition, int]] = {}
        self._asked_s: dict[bytes, float] = {}
        self._committed: dict[bytes, dict[Partition, int]] = {}

    def tell(self, key: bytes, positions: Mapping[Partition, int], *, final: bool = False) -> bool:
        """The offsets of a shard as they are now. Returns whether the runner must be asked to say when a checkpoint is complete.

        It need not where it was, for this shard, and has not answered: two answers for one checkpoint would count as two. After
        `CONFIRM_S` it is asked again; a bundle that failed takes the question with it.
        """
        with self._lock:
            if final:
                self._fresh.pop(key, None)
                self._due[key] = dict(positions)
            else:
                self._fresh[key] = dict(positions)
            now_s = self._clock.monotonic_s()
            if not final and now_s < self._asked_s.get(key, float("-inf")) + CONFIRM_S:
                return False
            self._asked_s[key] = now_s
            return True

    def confirm(self, key: bytes) -> dict[Partition, int]:
        """A checkpoint is complete: returns what may be committed of a shard."""
        with self._lock:
            self._asked_s.pop(key, None)
            due = self._due.pop(key, {})
            fresh = self._fresh.pop(key, None)
            if fresh is not None:
                self._due[key] = fresh
            return due

    def committed(self, key: bytes, positions: Mapping[Partition, int]) -> None:
        """Kafka has taken these offsets of a shard."""
        with self._lock:
            self._committed[key] = dict(positions)

    def is_committed(self, key: bytes, positions: Mapping[Partition, int]) -> bool:
        """Whether Kafka has these offsets of a shard. Until then they must be told again, since it takes two checkpoints."""
        with self._lock:
            return self._committed.get(key) == positions
