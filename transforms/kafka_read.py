"""Records from Kafka, read by librdkafka in the worker (docs/adr/0024).

A source of shards with keyed state and timers. Each partition belongs to one shard (`shard_index`), whose state has the next offset of
each: with a checkpoint, a savepoint and a rescaling they go where the shard goes. A timer in processing time listens for some
milliseconds and hands each record on as it comes, so that what is behind it in the same stage, up to the start of a model's call,
happens at once. The timer holds the watermark at the time of the partition that is furthest behind.

Offsets are committed to Kafka too, for those who look at the group's lag and for a job that starts without state: behind a
checkpoint that has them.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
from apache_beam import coders
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow, TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from confluent_kafka import Consumer, KafkaException, Message

from transforms.ask.holds import AT_ONCE, HOLDS_NOTHING_US, set_timer
from transforms.ask.shards import shard_keys
from transforms.ask.turns import Turns
from transforms.bundle_inputs import take_input_without_waiting
from transforms.errors import SettingsError
from transforms.execution_times import end_without_sampling
from transforms.kafka import DEFAULT_GROUP, resolve_secrets
from transforms.kafka_partitions import (
    BEFORE_ALL_US,
    LOOK_S,
    Partition,
    Partitions,
    Source,
    Told,
    shard_index,
    time_ms_of,
)
from transforms.records import SourceRecord
from transforms.remote.clock import SystemClock
from transforms.start_shards import StartShards
from transforms.state_cache import weigh_without_modules

DEFAULT_SHARDS = 8
DEFAULT_LISTEN_MS = 50

IDLE_LISTEN_S = 0.4
"""How long the shards of a process listen together while nothing comes. A checkpoint may have to wait for it."""

TELL_S = 1.0
"""How often a shard tells its offsets to be committed."""

WATCHDOG_US = 3_000_000
"""How long at least the watchdog waits for a turn, in microseconds; twice as long at most."""

_OFFSETS = "offsets"
_RECORDS = "records"


class ReadKafka(beam.PTransform):  # type: ignore[misc]
    """Reads topics as `SourceRecord`s. Event time is Kafka's record timestamp.

    `config` are consumer settings by librdkafka's names; a secret in them is ``${env:NAME}``, resolved on the worker. A group that
    committed offsets goes on behind them; else ``auto.offset.reset`` says where a job begins that has no state, by default at the
    ``earliest`` record. `shards` is fixed for the life of a job (it is in the keys of its state) and bounds how many subtasks
    read. A subtask listens to one shard at a time, so that partitions are laid onto no more of them than `readers`, best the
    job's parallelism; 0 stands for all. State keeps that number: a job that is resumed has the one it began with. New partitions are
    found within half a minute and read from their first record. What comes within `listen_ms` of a
    record goes into one bundle with it, and goes on at once through the steps of the same stage.

    The watermark is the time of the partition that is furthest behind; one that has been read to its end follows the clock, a
    second behind. At a drain reading ends, and the offsets are committed.
    """

    def __init__(
        self,
        servers: str,
        topics: Sequence[str],
        config: Mapping[str, str] | None = None,
        *,
        shards: int = DEFAULT_SHARDS,
        readers: int = 0,
        listen_ms: int = DEFAULT_LISTEN_MS,
    ) -> None:
        super().__init__()
        self._readers = readers
        self._step = uuid.uuid4().hex
        self._topics = tuple(topics)
        self._shards = shards
        self._listen_ms = listen_ms
        self._config = {
            "bootstrap.servers": servers,
            "group.id": DEFAULT_GROUP,
            "auto.offset.reset": "earliest",
            **(config or {}),
        }

    def expand(self, pipeline: Any) -> beam.PCollection:
        """The shards, their records, and beside them their offsets on the way to Kafka."""
        common = (self._step, self._config, self._topics)
        read = beam.ParDo(_Read(*common, self._shards, self._readers, self._listen_ms))
        found = (
            pipeline
            | "Shards" >> StartShards(self._shards)
            | "Partitions" >> read.with_outputs(_OFFSETS, main=_RECORDS)
        )
        records, offsets = found[_RECORDS], found[_OFFSETS]
        records.element_type = SourceRecord
        offsets.element_type = beam.typehints.Tuple[bytes, bytes]
        _ = offsets | "CommitOffsets" >> beam.ParDo(_CommitOffsets(*common)).with_output_types(type(None))
        return records


def check_config(config: Mapping[str, str]) -> None:
    """Raises SettingsError for consumer settings that librdkafka does not know or take, before a worker meets them."""
    try:
        Consumer({"group.id": DEFAULT_GROUP, "log_level": "0", **resolve_secrets(config)}).close()
    except KafkaException as error:
        reason = error.args[0].str().rstrip(".")
        raise SettingsError(f"Kafka's consumer settings, which have librdkafka's names: {reason}.") from None


class _Shared:
    """The source of one step in this process, its offsets to commit, and how many instances use them."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.told = Told(source.clock)
        self.users = 0


_shared: dict[str, _Shared] = {}
_shared_lock = threading.Lock()


def _acquire(step: str, config: Mapping[str, str], topics: Sequence[str]) -> _Shared:
    """What a step's instances share in this process. `_release` must follow."""
    with _shared_lock:
        if step not in _shared:
            _shared[step] = _Shared(Source(resolve_secrets(config), topics))
        shared = _shared[step]
        shared.users += 1
        return shared


def _release(step: str) -> None:
    with _shared_lock:
        shared = _shared[step]
        shared.users -= 1
        if shared.users:
            return
        del _shared[step]
    shared.source.close()


class Offsets(NamedTuple):
    """The next offset of each partition of a shard, whether they are its last, and how many shards of its source read (0: all)."""

    positions: dict[Partition, int]
    final: bool = False
    readers: int = 0


class _Encoded(msgspec.Struct, array_like=True):
    """`Offsets` as they lie in state. Those of before there were `readers` end with the second."""

    final: bool
    positions: list[tuple[str, int, int]]
    readers: int = 0


def encode(offsets: Offsets) -> bytes:
    """Offsets as they lie in state and travel to be committed."""
    positions = [(topic, number, at) for (topic, number), at in sorted(offsets.positions.items())]
    return msgspec.msgpack.encode(_Encoded(offsets.final, positions, offsets.readers))


def decode(data: bytes) -> Offsets:
    """What `encode` was given."""
    encoded = msgspec.msgpack.decode(data, type=_Encoded)
    return Offsets({(topic, number): at for topic, number, at in encoded.positions}, encoded.final, encoded.readers)


class _Read(beam.DoFn):  # type: ignore[misc]
    """Reads the partitions of shards; keyed by shard, in the global window."""

    OFFSETS = ReadModifyWriteStateSpec("offsets", coders.BytesCoder())
    TURN = TimerSpec("turn", TimeDomain.REAL_TIME)
    WATCHDOG = TimerSpec("watchdog", TimeDomain.REAL_TIME)
    END = TimerSpec("end", TimeDomain.WATERMARK)

    def __init__(
        self, step: str, config: Mapping[str, str], topics: Sequence[str], shards: int, readers: int, listen_ms: int
    ) -> None:
        self._step = step
        self._config = dict(config)
        self._topics = tuple(topics)
        self._shards = shards
        self._readers = readers
        self._listen_s = listen_ms / 1_000.0

    def setup(self) -> None:
        weigh_without_modules()
        end_without_sampling()
        take_input_without_waiting()
        self._shared = _acquire(self._step, self._config, self._topics)
        self._source = self._shared.source
        self._clock = SystemClock()
        self._turns = Turns(self._clock)
        self._told_s: dict[bytes, float] = {}
        self._watchdog_us: dict[bytes, int] = {}
        self._look_s: dict[bytes, float] = {}

    def teardown(self) -> None:
        self._source.leave(self)
        _release(self._step)

    def start_bundle(self) -> None:
        self._turns.start_bundle()

    def process(
        self,
        element: tuple[bytes, int],
        offsets: Any = beam.DoFn.StateParam(OFFSETS),
        turn: Any = beam.DoFn.TimerParam(TURN),
        watchdog: Any = beam.DoFn.TimerParam(WATCHDOG),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> None:
        """A shard begins."""
        key, number = element
        if offsets.read() is not None:
            return
        offsets.write(encode(Offsets(self._source.starts(self._own(number, self._readers)), readers=self._readers)))
        end.set(GlobalWindow().max_timestamp())
        self._set_turn(key, turn, watchdog, BEFORE_ALL_US, 0)

    @on_timer(TURN)  # type: ignore[untyped-decorator]
    def on_turn(
        self,
        key: Any = beam.DoFn.KeyParam,
        offsets: Any = beam.DoFn.StateParam(OFFSETS),
        turn: Any = beam.DoFn.TimerParam(TURN),
        watchdog: Any = beam.DoFn.TimerParam(WATCHDOG),
    ) -> Iterator[Any]:
        """Listens, and hands out each record as it comes; again at once."""
        yield from self._listen(key, offsets, turn, watchdog)

    @on_timer(WATCHDOG)  # type: ignore[untyped-decorator]
    def on_watchdog(
        self,
        key: Any = beam.DoFn.KeyParam,
        offsets: Any = beam.DoFn.StateParam(OFFSETS),
        turn: Any = beam.DoFn.TimerParam(TURN),
        watchdog: Any = beam.DoFn.TimerParam(WATCHDOG),
    ) -> Iterator[Any]:
        """No turn for so long: its timer was lost. Does what it would have done."""
        yield from self._listen(key, offsets, turn, watchdog)

    def _listen(self, key: bytes, offsets: Any, turn: Any, watchdog: Any) -> Iterator[Any]:
        self._turns.begin(key)
        before, _, readers = decode(offsets.read())
        partitions = self._source.partitions_of(key)
        turn_number = partitions.follow(before | self._new(key, before, readers))
        if partitions.positions:
            with self._source.listening(partitions, self):
                yield from self._records(partitions, turn_number)
        after = partitions.positions
        if after != before:
            offsets.write(encode(Offsets(after, readers=readers)))
        now_us = self._clock.now_ms() * 1_000
        if after:
            yield from self._tell(key, after, now_us)
        watermark_us = partitions.watermark_us(now_us)
        if watermark_us is None:
            # Nothing to read, and nothing to hold: it is looked for new partitions alone.
            self._set_turn(key, turn, watchdog, HOLDS_NOTHING_US, round(LOOK_S * 1e6))
        else:
            self._set_turn(key, turn, watchdog, watermark_us, 0)

    def _records(self, partitions: Partitions, turn_number: int) -> Iterator[TimestampedValue]:
        """What comes within `listen_s` of the first. What is done with a record counts too: a step behind may hold it back."""
        if not self._wait(partitions, max(self._listen_s, IDLE_LISTEN_S / self._source.shards)):
            return
        until_s = self._clock.monotonic_s() + self._listen_s
        while (rest_s := until_s - self._clock.monotonic_s()) > 0:
            message = partitions.take(turn_number)
            if message is not None:
                yield _record(message)
            elif not self._wait(partitions, rest_s):
                return

    def _wait(self, partitions: Partitions, timeout_s: float) -> bool:
        """Waits for a record; returns whether there is one, or it is over, or the shard gives way."""
        return self._turns.wait(timeout_s, lambda spent, rest_s: self._source.wait(partitions, rest_s, spent))

    @on_timer(END)  # type: ignore[untyped-decorator]
    def on_end(
        self,
        key: Any = beam.DoFn.KeyParam,
        offsets: Any = beam.DoFn.StateParam(OFFSETS),
        turn: Any = beam.DoFn.TimerParam(TURN),
        watchdog: Any = beam.DoFn.TimerParam(WATCHDOG),
    ) -> Iterator[Any]:
        """The job is drained: reading ends. A timer that is left would hold the watermark for ever."""
        turn.clear(dynamic_timer_tag=AT_ONCE)
        watchdog.clear()
        positions = decode(offsets.read()).positions
        if positions:
            yield self._offsets(key, positions, self._clock.now_ms() * 1_000, final=True)

    def _own(self, number: int, readers: int) -> list[Partition]:
        return [one for one in self._source.known() if shard_index(one, self._shards, readers) == number]

    def _new(self, key: bytes, known: Mapping[Partition, int], readers: int) -> dict[Partition, int]:
        """Partitions that came since the job began: read from their first record, whatever the settings say."""
        now_s = self._clock.monotonic_s()
        if now_s < self._look_s.get(key, float("-inf")):
            return {}
        self._look_s[key] = now_s + LOOK_S
        number = shard_keys(self._shards).index(key)
        return {one: 0 for one in self._own(number, readers) if one not in known}

    def _tell(self, key: bytes, positions: dict[Partition, int], now_us: int) -> Iterator[Any]:
        now_s = self._clock.monotonic_s()
        if now_s - self._told_s.get(key, float("-inf")) >= TELL_S and not self._shared.told.is_committed(
            key, positions
        ):
            self._told_s[key] = now_s
            yield self._offsets(key, positions, now_us)

    @staticmethod
    def _offsets(key: bytes, positions: Mapping[Partition, int], now_us: int, *, final: bool = False) -> Any:
        told = (key, encode(Offsets(dict(positions), final)))
        return beam.pvalue.TaggedOutput(_OFFSETS, TimestampedValue(told, Timestamp(micros=now_us)))

    def _set_turn(self, key: bytes, turn: Any, watchdog: Any, hold_us: int, delay_us: int) -> None:
        turn_us = self._clock.now_ms() * 1_000 + delay_us
        set_timer(turn, turn_us, max(hold_us, _EARLIEST_US), AT_ONCE)
        if self._watchdog_us.get(key, 0) < turn_us + WATCHDOG_US:
            # Always ahead of the turns, so that it fires only when they do not. It holds nothing.
            self._watchdog_us[key] = turn_us + 2 * WATCHDOG_US
            set_timer(watchdog, self._watchdog_us[key], HOLDS_NOTHING_US)


_EARLIEST_US = 0
"""Where the watermark is held before a record has come. Kafka's timestamps do not go back behind 1970."""


def _record(message: Message) -> TimestampedValue:
    time_ms = time_ms_of(message)
    record = SourceRecord(
        value=message.value(),
        key=message.key(),
        headers=tuple(message.headers() or ()),
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        event_time_ms=time_ms,
    )
    return TimestampedValue(record, Timestamp(micros=time_ms * 1_000))


class _CommitOffsets(beam.DoFn):  # type: ignore[misc]
    """Commits a shard's offsets when the runner says that a checkpoint is complete.

    A step with state, and so a stage of its own in the same subtask for a shard: the worker keeps the instances of a stage whose
    bundle waits to be finalized, and makes new ones for the next, which would be costly for the stage that reads.
    """

    LAST = ReadModifyWriteStateSpec("last", coders.BytesCoder())

    def __init__(self, step: str, config: Mapping[str, str], topics: Sequence[str]) -> None:
        self._step = step
        self._config = dict(config)
        self._topics = tuple(topics)

    def setup(self) -> None:
        self._shared = _acquire(self._step, self._config, self._topics)

    def teardown(self) -> None:
        _release(self._step)

    def process(
        self,
        element: tuple[bytes, bytes],
        last: Any = beam.DoFn.StateParam(LAST),
        finalizer: Any = beam.DoFn.BundleFinalizerParam,
    ) -> None:
        key, data = element
        positions, final, _ = decode(data)
        last.write(data)
        if self._shared.told.tell(key, positions, final=final):
            finalizer.register(lambda: self._confirmed(key))

    def _confirmed(self, key: bytes) -> None:
        due = self._shared.told.confirm(key)
        if due and self._shared.source.commit(due):
            self._shared.told.committed(key, due)
