"""The source over a real Kafka: where it begins, what it commits, which partitions it knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from runners.local.stack import Stack
from tests.e2e.engine import Command, Topics, chat, rest, until, write_models
from transforms.ask.shards import shard_keys
from transforms.kafka_partitions import LOOK_S, Partitions, Source
from transforms.remote.fakes import VirtualClock
from transforms.remote.model_double import Fault, ModelDouble

pytestmark = pytest.mark.e2e

HANG = (Fault("hang"),)


def source(
    topics: Topics, *, name: str | None = None, reset: str = "earliest", clock: VirtualClock | None = None
) -> Source:
    config = {"bootstrap.servers": topics.kafka, "group.id": topics.tag, "auto.offset.reset": reset}
    return Source(config, [name or topics.input], clock)


def read(partitions: Partitions, source_: Source, count: int) -> list[bytes]:
    """The next records' keys, waited for."""
    found: list[bytes] = []
    while len(found) < count:
        assert source_.wait(partitions, 20.0), f"{len(found)} of {count} came"
        while (message := partitions.take(partitions._turn_number)) is not None:
            key = message.key()
            assert isinstance(key, bytes)
            found.append(key)
    return found


def test_a_group_begins_where_it_should(topics: Topics) -> None:
    """Without offsets by auto.offset.reset; behind what the group committed once it has."""
    count = topics.produce(chat(number) for number in range(20))
    at = topics.input
    earliest, latest = source(topics), source(topics, reset="latest")
    try:
        known = earliest.known()
        assert known == tuple((at, number) for number in range(4))
        assert set(earliest.starts(known).values()) == {0}
        ends = latest.starts(known)
        assert sum(ends.values()) == count
        earliest.commit({(at, 0): 3})
        assert latest.starts(known) == {**ends, (at, 0): 3}
    finally:
        earliest.close()
        latest.close()


def test_records_are_read_and_read_again(topics: Topics) -> None:
    """Every record is handed out once; told older offsets, as after a bundle that failed, those behind them come again."""
    count = topics.produce(chat(number) for number in range(200))
    one = source(topics)
    try:
        partitions = one.partitions_of(shard_keys(1)[0])
        partitions.follow(one.starts(one.known()))
        first = read(partitions, one, 80)
        safe = partitions.positions
        lost = read(partitions, one, count - len(first))
        assert len({*first, *lost}) == count
        partitions.follow(safe)
        assert sorted(read(partitions, one, len(lost))) == sorted(lost)
    finally:
        one.close()


def test_a_partition_that_is_added_is_found(topics: Topics) -> None:
    """Partitions are looked up again after a while, and what goes into a new one is read."""
    clock = VirtualClock()
    one = source(topics, clock=clock)
    try:
        assert len(one.known()) == 4
        admin = AdminClient({"bootstrap.servers": topics.kafka})
        for done in admin.create_partitions([NewPartitions(topics.input, 6)]).values():
            done.result(20.0)
        assert len(one.known()) == 4
        clock.advance(LOOK_S + 1.0)
        until("the new ones are known", lambda: _look_again(one, clock) == 6, 20.0)
        producer = Producer({"bootstrap.servers": topics.kafka})
        producer.produce(topics.input, value=chat(1), key=b"new", partition=5)
        assert producer.flush(20.0) == 0
        partitions = one.partitions_of(shard_keys(1)[0])
        partitions.follow({(topics.input, number): 0 for number in range(6)})
        with partitions._arrived:
            assert partitions._arrived.wait_for(lambda: partitions.has_records, 20.0)
        assert read(partitions, one, 1) == [b"new"]
    finally:
        one.close()


def _look_again(one: Source, clock: VirtualClock) -> int:
    clock.advance(LOOK_S + 1.0)
    return len(one.known())


def test_a_topic_that_is_missing_is_an_error(topics: Topics) -> None:
    """A topic that does not exist is said, rather than read as an empty one."""
    one = source(topics, name=f"{topics.tag}.nowhere")
    try:
        with pytest.raises(KafkaException, match="UNKNOWN_TOPIC"):
            one.known()
    finally:
        one.close()


def _answered_and_drained(engine: Stack, topics: Topics, words: tuple[str, ...], first: int) -> None:
    with Command(engine, *words) as command:
        command.flink_job()
        topics.produce((chat(first + number) for number in range(30)), keys=[b"k%d" % number for number in range(30)])
        until("all are answered", lambda: len(topics.replies()) == first + 30, 60.0)
        command.interrupt()
        assert command.wait() == 0, command.output


def test_a_drained_job_is_gone_on_with(engine: Stack, topics: Topics, tmp_path: Path) -> None:
    """A drain commits all that was read: a job that starts without state goes on exactly behind it."""
    with ModelDouble(0, latency_ms=50.0) as double:
        models = write_models(tmp_path / "models.yaml", double.base_url)
        words = ("--runner=FlinkRunner", f"--models={models}", *topics.flags(tmp_path))
        for first in (0, 30):
            _answered_and_drained(engine, topics, words, first)
            assert topics.committed() == first + 30
    assert set(topics.replies().values()) == {1}


def test_a_plain_stop_keeps_what_is_under_way(engine: Stack, topics: Topics, tmp_path: Path) -> None:
    """Flink's own stop, without a drain, does not wait for calls: they are in its savepoint, and called again from it."""
    with ModelDouble(0, latency_ms=50.0) as double:
        models = write_models(tmp_path / "models.yaml", double.base_url, timeout_s=60)
        words = ("--runner=FlinkRunner", f"--models={models}", *topics.flags(tmp_path))
        with Command(engine, *words) as command:
            job = command.flink_job()
            double.set_faults(*HANG)
            topics.produce(chat(number) for number in range(20))
            double.wait_until(lambda stats: stats.requests >= 20, timeout_s=60.0)
            rest(engine)._post(f"/jobs/{job}/stop", {"drain": False})
            assert command.wait() == 0, command.output
            found = command.wait_for(r"stopped with events under way; go on with --savepoint_path=(\S+)").group(1)
        double.set_faults()
        with Command(engine, *words, f"--savepoint_path={found}") as command:
            command.flink_job()
            until("all are answered", lambda: len(topics.replies()) == 20, 60.0)
            command.interrupt()
            assert command.wait() == 0, command.output
    assert set(topics.replies().values()) == {1}
