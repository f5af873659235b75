"""Partitions that are read ahead: what is handed out follows the state that is told, and time follows the records."""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Iterable, Iterator

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from transforms.ask.shards import MAX_PARALLELISM, key_group, shard_keys
from transforms.kafka_partitions import (
    AHEAD,
    BEFORE_ALL_US,
    CONFIRM_S,
    IDLE_LAG_S,
    MOVED_S,
    Partitions,
    Source,
    SupersededError,
    Told,
    shard_index,
)
from transforms.remote.fakes import VirtualClock

NOW_US = 1_700_000_000_000_000
READER = object()


class Record:
    """A record, or an event of the library, as confluent-kafka gives it."""

    def __init__(self, offset: int, *, number: int = 0, time_ms: int = 0, error: KafkaError | None = None) -> None:
        self._offset, self._number, self._time_ms, self._error = offset, number, time_ms, error

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return "t"

    def partition(self) -> int:
        return self._number

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 1, self._time_ms


def end_at(offset: int, number: int = 0) -> Record:
    """The library's note that a partition has been read to its end."""
    return Record(offset, number=number, error=KafkaError(KafkaError._PARTITION_EOF))


class Log:
    """A consumer over records in memory: partition 0 and 1 of topic ``t``, each from where it is assigned."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._all = list(records)
        self._left: collections.deque[Record] = collections.deque()
        self.assigned: list[dict[int, int]] = []
        self.closed = False
        self._given = threading.Event()

    def assign(self, partitions: list[TopicPartition]) -> None:
        starts = {one.partition: one.offset for one in partitions}
        self.assigned.append(starts)
        self._left = collections.deque(
            one for one in self._all if one.partition() in starts and one.offset() >= starts[one.partition()]
        )

    def poll(self, timeout: float) -> Record | None:
        if self._left:
            return self._left.popleft()
        self._given.wait(timeout)
        return None

    def consume(self, num_messages: int, timeout: float) -> list[Record]:
        del timeout
        return [self._left.popleft() for _ in range(min(num_messages, len(self._left)))]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened() -> Iterator[list[Partitions]]:
    """Partitions that are closed when the test ends."""
    found: list[Partitions] = []
    yield found
    for one in found:
        one.close()


def partitions_over(log: Log, opened: list[Partitions]) -> Partitions:
    made = Partitions(lambda: log, threading.Condition())  # type: ignore[arg-type, return-value]
    opened.append(made)
    return made


def take(partitions: Partitions, count: int) -> list[int]:
    """The offsets of the next records, waited for."""
    found: list[int] = []
    with partitions._arrived:
        while len(found) < count:
            assert partitions._arrived.wait_for(lambda: partitions.has_records, 10.0)
            while len(found) < count and (message := partitions.take(partitions._turn_number)) is not None:
                found.append(message.offset())  # type: ignore[arg-type]
    return found


def settle(partitions: Partitions) -> None:
    """Waits until the end of each partition was found."""
    with partitions._arrived:
        assert partitions._arrived.wait_for(lambda: all(c.end >= 0 for c in partitions._courses.values()), 10.0)


def test_records_come_in_order_and_count_as_handed_out(opened: list[Partitions]) -> None:
    """Records are handed out from the offset that is told, and the next offsets tell how far."""
    partitions = partitions_over(Log(Record(at) for at in range(10)), opened)
    partitions.follow({("t", 0): 3})
    assert take(partitions, 7) == list(range(3, 10))
    assert partitions.positions == {("t", 0): 10}


def test_a_bundle_that_failed_is_read_again(opened: list[Partitions]) -> None:
    """Where state is behind what was handed out, reading begins there anew; where it is not, it goes on without."""
    log = Log(Record(at) for at in range(10))
    partitions = partitions_over(log, opened)
    partitions.follow({("t", 0): 0})
    assert take(partitions, 6) == list(range(6))
    partitions.follow({("t", 0): 6})
    assert take(partitions, 2) == [6, 7]
    partitions.follow({("t", 0): 2})
    assert take(partitions, 8) == list(range(2, 10))
    assert [one[0] for one in log.assigned] == [0, 2]


def test_a_bundle_that_nobody_waits_for_takes_nothing(opened: list[Partitions]) -> None:
    """A process may outlive a restart with a bundle in it: from the next turn on that one gets an error, and no record."""
    partitions = partitions_over(Log(Record(at) for at in range(10)), opened)
    old = partitions.follow({("t", 0): 0})
    assert take(partitions, 2) == [0, 1]
    partitions.follow({("t", 0): 0})
    with pytest.raises(SupersededError):
        partitions.take(old)
    assert take(partitions, 10) == list(range(10))


def test_a_partition_that_is_new_is_read_beside_the_others(opened: list[Partitions]) -> None:
    """A partition that comes later is read from the offset told, and what others had handed out stays."""
    partitions = partitions_over(Log([*(Record(at) for at in range(3)), Record(0, number=1)]), opened)
    partitions.follow({("t", 0): 0})
    assert take(partitions, 3) == [0, 1, 2]
    partitions.follow({("t", 0): 3, ("t", 1): 0})
    assert take(partitions, 1) == [0]
    assert partitions.positions == {("t", 0): 3, ("t", 1): 1}


def test_no_more_is_held_than_a_bound(opened: list[Partitions]) -> None:
    """A topic that is long is not read into memory: the consumer waits until records are taken."""
    count = 3 * AHEAD
    partitions = partitions_over(Log(Record(at) for at in range(count)), opened)
    partitions.follow({("t", 0): 0})
    found = []
    while len(found) < count:
        found += take(partitions, 1)
        assert len(partitions._ahead) < AHEAD + 501
    assert found == list(range(count))


def test_time_is_that_of_the_partition_furthest_behind(opened: list[Partitions]) -> None:
    """The watermark is the least of the latest times, and before all while a partition has given nothing."""
    records = [Record(0, time_ms=NOW_US // 1_000 - 9_000), Record(0, number=1, time_ms=NOW_US // 1_000 - 5_000)]
    partitions = partitions_over(Log(records), opened)
    partitions.follow({("t", 0): 0, ("t", 1): 0})
    assert partitions.watermark_us(NOW_US) == BEFORE_ALL_US
    take(partitions, 2)
    assert partitions.watermark_us(NOW_US) == NOW_US - 9_000_000


def test_an_empty_partition_holds_nothing(opened: list[Partitions]) -> None:
    """A partition that is at its end follows the clock, whether it ever had a record or not."""
    partitions = partitions_over(Log([end_at(0), Record(0, number=1, time_ms=1), end_at(1, number=1)]), opened)
    partitions.follow({("t", 0): 0, ("t", 1): 0})
    settle(partitions)
    assert partitions.watermark_us(NOW_US) == BEFORE_ALL_US, "a record is there that was not handed out"
    take(partitions, 1)
    assert partitions.watermark_us(NOW_US) == NOW_US - round(IDLE_LAG_S * 1e6)


def test_a_producers_clock_does_not_lead(opened: list[Partitions]) -> None:
    """A timestamp of tomorrow takes the watermark to the present at most."""
    partitions = partitions_over(Log([Record(0, time_ms=NOW_US // 1_000 + 86_400_000)]), opened)
    partitions.follow({("t", 0): 0})
    take(partitions, 1)
    assert partitions.watermark_us(NOW_US) == NOW_US


def test_an_error_of_the_consumer_is_raised_where_records_are_taken(opened: list[Partitions]) -> None:
    """What Kafka refuses for good fails the bundle; what passes is not mentioned."""
    passing = Record(0, error=KafkaError(KafkaError._ALL_BROKERS_DOWN))
    fatal = Record(0, error=KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    partitions = partitions_over(Log([passing, Record(0), fatal]), opened)
    partitions.follow({("t", 0): 0})
    with partitions._arrived:
        assert partitions._arrived.wait_for(lambda: partitions._error is not None, 10.0)
    with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
        partitions.take(partitions._turn_number)


def test_after_an_error_the_next_turn_begins_anew(opened: list[Partitions]) -> None:
    """A process that outlives the failure of its job reads on, with a new consumer from the offsets of the state."""
    refused = Record(0, error=KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    logs = iter([Log([refused]), Log(Record(at) for at in range(3))])
    partitions = Partitions(lambda: next(logs), threading.Condition())  # type: ignore[arg-type, return-value]
    opened.append(partitions)
    turn = partitions.follow({("t", 0): 0})
    with partitions._arrived:
        assert partitions._arrived.wait_for(lambda: partitions.has_records, 10.0)
    with pytest.raises(KafkaException):
        partitions.take(turn)
    partitions.follow({("t", 0): 1})
    assert take(partitions, 2) == [1, 2]


def test_closing_ends_the_consumer() -> None:
    """No thread and no consumer is left."""
    log = Log([])
    partitions = Partitions(lambda: log, threading.Condition())  # type: ignore[arg-type, return-value]
    partitions.follow({("t", 0): 0})
    partitions.close()
    assert log.closed


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 8, 128])
def test_every_partition_has_one_shard_and_neighbours_lie_apart(shards: int) -> None:
    """Any run of as many partitions as there are shards fills each once, and two in a row lie half of all apart or nearly."""
    found = [shard_index(("t", number), shards) for number in range(shards)]
    assert sorted(found) == list(range(shards))
    if shards >= 8:
        assert all(abs(one - two) >= shards // 4 for one, two in itertools.pairwise(found))


@pytest.mark.parametrize("parallelism", [1, 2, 4, 8])
def test_partitions_are_spread_evenly(parallelism: int) -> None:
    """As many partitions as there are subtasks give each subtask one, for any topic; the shard of a partition never changes."""
    for topic in ("a", "support.chat.inbound", "payments", "x" * 40):
        shards = [shard_index((topic, number), 8) for number in range(parallelism)]
        assert sorted(shard * parallelism // 8 for shard in shards) == list(range(parallelism))
    assert [shard_index(("a", number), 8) for number in range(4)] == [shard_index(("a", n), 8) for n in range(4)]


@pytest.mark.parametrize("readers", [1, 2, 3, 4, 5, 8, 16])
def test_no_more_shards_read_than_there_are_readers(readers: int) -> None:
    """With as many readers as subtasks, each subtask has one shard that reads, and those have as many partitions as each other."""
    for topic in ("a", "support.chat.inbound"):
        shards = collections.Counter(shard_index((topic, number), 8, readers) for number in range(3 * min(readers, 8)))
        assert sorted(shards.values()) == [3] * min(readers, 8)
        keys = shard_keys(8)
        subtasks = {key_group(keys[shard]) * readers // MAX_PARALLELISM for shard in shards}
        assert len(subtasks) == min(readers, 8)


def test_offsets_are_committed_behind_a_checkpoint_that_has_them() -> None:
    """What is told before one checkpoint is complete may be newer than it: it is committed with the next."""
    told, key = Told(VirtualClock()), b"k"
    assert told.tell(key, {("t", 0): 5})
    assert not told.tell(key, {("t", 0): 7}), "one question is enough"
    assert told.confirm(key) == {}
    assert told.tell(key, {("t", 0): 9})
    assert told.confirm(key) == {("t", 0): 7}
    assert told.confirm(key) == {("t", 0): 9}
    assert told.confirm(key) == {}


def test_offsets_are_told_until_kafka_has_them() -> None:
    """After the last record nothing is new: the offsets are told again until a second checkpoint has let them through."""
    told, key, last = Told(VirtualClock()), b"k", {("t", 0): 5}
    confirmed = 0
    while not told.is_committed(key, last):
        assert told.tell(key, last)
        if due := told.confirm(key):
            told.committed(key, due)
        confirmed += 1
    assert confirmed == 2
    assert not told.is_committed(key, {("t", 0): 6})


def test_final_offsets_do_not_wait() -> None:
    """A source that has ended commits with the first checkpoint, and nothing older comes behind."""
    told, key = Told(VirtualClock()), b"k"
    told.tell(key, {("t", 0): 5})
    assert told.tell(key, {("t", 0): 9}, final=True)
    assert told.confirm(key) == {("t", 0): 9}
    assert told.confirm(key) == {}


def test_a_question_that_was_lost_is_asked_again() -> None:
    """A bundle that failed takes its question with it: after a while another is asked."""
    clock = VirtualClock()
    told, key = Told(clock), b"k"
    assert told.tell(key, {("t", 0): 5})
    clock.advance(CONFIRM_S + 1.0)
    assert told.tell(key, {("t", 0): 6})


def test_who_waits_gives_way() -> None:
    """A shard without records does not keep the thread while another has some that nobody listens to."""
    source = Source({"bootstrap.servers": "127.0.0.1:1"}, ["t"])
    first, second = (source.partitions_of(key) for key in shard_keys(2))
    with source.listening(second, READER):
        second._ahead.append(Record(0))  # type: ignore[arg-type]
    with source.listening(first, READER):
        assert not source.wait(first, timeout_s=60.0)
    assert source.wait(second, timeout_s=60.0)
    source.close()


def test_who_waits_gives_way_to_nobody_elses_shard() -> None:
    """A shard that another reader listened to last is that reader's, until it is gone: nobody ends a turn for it."""
    source = Source({"bootstrap.servers": "127.0.0.1:1"}, ["t"], VirtualClock())
    partitions, other = source.partitions_of(shard_keys(1)[0]), object()
    with source.listening(partitions, other):
        partitions._ahead.append(Record(0))  # type: ignore[arg-type]
    assert source.is_wanted(other)
    assert not source.is_wanted(READER)
    source.leave(other)
    assert source.is_wanted(READER)


def test_who_waits_gives_way_to_no_shard_that_had_its_turn() -> None:
    """A shard whose turn is spent is not waited for: its timer comes with the next bundle."""
    source = Source({"bootstrap.servers": "127.0.0.1:1"}, ["t"], VirtualClock())
    key = shard_keys(1)[0]
    partitions = source.partitions_of(key)
    with source.listening(partitions, READER):
        partitions._ahead.append(Record(0))  # type: ignore[arg-type]
    assert source.is_wanted(READER)
    assert not source.is_wanted(READER, spent={key})


def test_a_shard_that_moved_away_is_not_waited_for() -> None:
    """What lies ahead of a shard that another process handles now does not make the others give way for ever."""
    clock = VirtualClock()
    source = Source({"bootstrap.servers": "127.0.0.1:1"}, ["t"], clock)
    partitions = source.partitions_of(shard_keys(1)[0])
    with source.listening(partitions, READER):
        partitions._ahead.append(Record(0))  # type: ignore[arg-type]
        assert not source.is_wanted(READER)
    assert source.is_wanted(READER)
    clock.advance(MOVED_S + 1.0)
    assert not source.is_wanted(READER)
