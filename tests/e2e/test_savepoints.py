"""A job stopped with a savepoint and resumed, at other parallelisms: what was under way is in it, and is called again."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Producer

from runners.local.stack import Stack
from tests.e2e.engine import Command, Topics, chat, rest, until, write_models
from transforms.remote.model_double import Fault, ModelDouble

pytestmark = pytest.mark.e2e

KEYS = 7
BATCH = 40


def produce(topics: Topics, first: int) -> None:
    """A batch of events of a few keys, numbered on."""
    producer = Producer({"bootstrap.servers": topics.kafka})
    for number in range(first, first + BATCH):
        producer.produce(topics.input, value=chat(number), key=b"k%d" % (number % KEYS), timestamp=1_000_000 + number)
    assert producer.flush(20.0) == 0


@contextmanager
def running(engine: Stack, topics: Topics, folder: Path, url: str, *more: str) -> Iterator[tuple[Command, str]]:
    """The job, with order by key."""
    # A server that hangs bears nothing, which is what a limit that is found out would find.
    limits = {"max_in_flight": 1_000, "concurrency": {"algorithm": "fixed", "initial": 1_000, "most": 1_000}}
    models = write_models(folder / "models.yaml", url, timeout_s=100, limits=limits)
    words = ("--runner=FlinkRunner", "--order=key", "--repeat_memory_s=0", f"--models={models}", *topics.flags(folder))
    with Command(engine, *words, *more) as command:
        yield command, command.flink_job()


def stop(engine: Stack, command: Command, job: str) -> str:
    """Stops the job with a savepoint, without a drain; returns where that lies."""
    rest(engine).stop_with_savepoint(job)
    assert command.wait() == 0, command.output
    found = command.wait_for(r"stopped with events under way; go on with --savepoint_path=(\S+)")
    assert rest(engine).savepoint(job) == found.group(1)
    return found.group(1)


def test_stopped_rescaled_and_resumed(engine: Stack, topics: Topics, tmp_path: Path) -> None:
    """From parallelism 1 to 4 and back by savepoints with calls under way: each event leaves once, in the order of its key.

    Calls under way are made again after each restore, with the attempts before counted, and their age counts from when the event
    was first taken.
    """
    with ModelDouble(0, latency_ms=100.0, sigma=1.0, faults=(Fault("hang"),)) as double:
        with running(engine, topics, tmp_path, double.base_url, "--parallelism=1") as (command, job):
            produce(topics, 0)
            double.wait_until(lambda stats: stats.requests >= BATCH, timeout_s=60.0)
            first = stop(engine, command, job)
        resume = f"--savepoint_path={first}"
        with running(engine, topics, tmp_path, double.base_url, "--parallelism=4", resume) as (command, job):
            double.wait_until(lambda stats: stats.requests >= 2 * BATCH, timeout_s=60.0)
            produce(topics, BATCH)
            double.wait_until(lambda stats: stats.requests >= 3 * BATCH, timeout_s=60.0)
            second = stop(engine, command, job)
        assert sum(map(len, topics.read().values())) == 0
        double.set_faults()
        resume = f"--savepoint_path={second}"
        with running(engine, topics, tmp_path, double.base_url, "--parallelism=1", resume) as (command, _):
            until("all are answered", lambda: len(topics.replies()) == 2 * BATCH, 60.0)
            command.interrupt()
            assert command.wait() == 0, command.output
            assert f"{2 * BATCH} outcomes are of events that were under way in the savepoint" in command.output
        attempts = double.stats().attempts
    found = topics.read()
    replies = [json.loads(message.value()) for message in found["support.chat.replies"]]
    assert sorted(reply["id"] for reply in replies) == sorted(f"e{number}" for number in range(2 * BATCH))
    assert not found["support.dead-letters"]
    assert attempts == {f"e{number}": 3 if number < BATCH else 2 for number in range(2 * BATCH)}
    assert {reply["id"]: reply["attempts"] for reply in replies} == attempts
    numbers = defaultdict(list)
    for message, reply in zip(found["support.chat.replies"], replies, strict=True):
        numbers[message.key()].append(int(reply["id"][1:]))
    assert len(numbers) == KEYS
    assert all(one == sorted(one) for one in numbers.values()), dict(numbers)
    ages_ms = {int(reply["id"][1:]): reply["latency_ms"] for reply in replies}
    assert min(ages_ms[number] for number in range(BATCH)) > max(ages_ms[number] for number in range(BATCH, 2 * BATCH))
