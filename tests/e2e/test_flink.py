"""The support job on the real engine: Kafka, Flink, Python workers, and a model on a socket."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from pipeline.outputs import FileWatch
from pipeline.registry import CASES
from runners.local.stack import Stack
from tests.e2e.engine import (
    Command,
    Topics,
    chat,
    checkpoints,
    part_pid,
    rest,
    restarts,
    until,
    worker_pids,
    write_models,
)
from transforms.remote.model_double import ModelDouble

pytestmark = pytest.mark.e2e

SUPPORT = CASES["support"]
EXPECTED = json.loads((SUPPORT.samples.parent / "expected.json").read_text())
FLINK = "--runner=FlinkRunner"


def outcomes_of_files(folder: Path) -> set[tuple[str, str]]:
    """(identity, topic) of everything in the files of a run."""
    return {
        (one.identity, one.topic)
        for one in FileWatch(str(folder), SUPPORT.output_topics, SUPPORT.dead_letter_topic).poll()
    }


def test_the_main_line(engine: Stack) -> None:
    """`python -m pipeline --runner=FlinkRunner` starts what is missing, feeds the samples, shows replies, drains, prints the table."""
    with Command(engine, FLINK) as command:
        assert command.wait(420.0) == 0, command.output
    assert "samples fed into support.events" in command.output
    assert command.output.index("first reply") < command.output.index("draining")
    topics = Topics(engine, "unused")
    topics.renamed = {name: name for name in topics.renamed}
    found = topics.read()
    messages = [message for topic in SUPPORT.output_topics for message in found[topic]]
    assert all(dict(message.headers())["farcall-sample"].isdigit() for message in messages)
    ids = {json.loads(message.value())["id"] for message in messages}
    assert Counter(event_id.split("-")[0] for event_id in ids) == EXPECTED["good"]
    assert len(found["support.dead-letters"]) == sum(EXPECTED["bad"].values())
    lines = SUPPORT.samples.read_bytes().splitlines()
    for message in found["support.dead-letters"]:
        headers = dict(message.headers())
        assert message.value() == lines[int(headers["farcall-sample"])]
        assert headers["__connect.errors.topic"] == b"support.events"


def test_files_give_the_same_on_flink_as_on_direct(engine: Stack, double: ModelDouble, tmp_path: Path) -> None:
    """The samples give the same set of (id, topic) on FlinkRunner and DirectRunner, and in = outcomes + repeats on both."""
    models = write_models(tmp_path / "models.yaml", double.base_url)
    found = {}
    for runner in ("FlinkRunner", "DirectRunner"):
        out = tmp_path / runner
        words = (f"--runner={runner}", f"--input={SUPPORT.samples}", f"--output={out}", f"--models={models}")
        with Command(engine, *words) as command:
            assert command.wait() == 0, command.output
        # Positions name the file, ids the event: both are the same on every runner.
        found[runner] = outcomes_of_files(out)
    assert found["FlinkRunner"] == found["DirectRunner"]
    assert len(found["FlinkRunner"]) == EXPECTED["events"] - EXPECTED["repeats"]


def test_an_empty_input(engine: Stack, double: ModelDouble, tmp_path: Path) -> None:
    """An empty file ends the job well, with nothing out."""
    (tmp_path / "empty.jsonl").touch()
    models = write_models(tmp_path / "models.yaml", double.base_url)
    words = (FLINK, f"--input={tmp_path / 'empty.jsonl'}", f"--output={tmp_path / 'out'}", f"--models={models}")
    with Command(engine, *words) as command:
        assert command.wait() == 0, command.output
    assert outcomes_of_files(tmp_path / "out") == set()


def test_keys_headers_and_event_times_survive(
    engine: Stack, double: ModelDouble, topics: Topics, tmp_path: Path
) -> None:
    """A reply and a dead letter in Kafka have the key, headers and event time of the record they belong to."""
    models = write_models(tmp_path / "models.yaml", double.base_url)
    with Command(engine, FLINK, f"--models={models}", *topics.flags(tmp_path)) as command:
        command.flink_job()
        topics.produce([chat(1), b"\xff broken"], headers=[("trace", b"\x00\xff"), ("empty", None), ("trace", b"2")])
        until("both outcomes", lambda: sum(map(len, topics.read().values())) == 2)
        command.interrupt()
        assert command.wait() == 0, command.output
    found = topics.read()
    (reply,), (dead,) = found["support.chat.replies"], found["support.dead-letters"]
    sent = [("trace", b"\x00\xff"), ("empty", None), ("trace", b"2")]
    assert (reply.key(), reply.headers(), reply.timestamp()[1]) == (b"k1", sent, 1_000_001)
    assert (dead.key(), dead.value(), dead.headers()[:3], dead.timestamp()[1]) == (
        b"k2",
        b"\xff broken",
        sent,
        1_000_002,
    )
    added = {name.removeprefix("__connect.errors."): value for name, value in dead.headers()[3:]}
    assert added["stage"] == b"parse"
    assert added["exception.class.name"] == b"not-utf8"
    assert added["topic"] == topics.input.encode()
    assert {"partition", "offset", "exception.message", "attempts"} <= set(added)


LONG_BUNDLES = "--max_bundle_time_mills=600000"


def test_a_lone_event_is_answered(engine: Stack, double: ModelDouble, topics: Topics, tmp_path: Path) -> None:
    """One event, and silence after it: a checkpoint in the middle of its bundle does not keep it back."""
    models = write_models(tmp_path / "models.yaml", double.base_url)
    with Command(engine, FLINK, LONG_BUNDLES, f"--models={models}", *topics.flags(tmp_path)) as command:
        command.flink_job()
        topics.produce([chat(1)])
        until("it is answered", topics.replies, 60.0)
        command.interrupt()
        assert command.wait() == 0, command.output


def test_without_finishing_bundles_a_lone_event_is_kept_back(
    engine: Stack, double: ModelDouble, topics: Topics, tmp_path: Path
) -> None:
    """The sibling: with Beam's default a bundle goes on over checkpoint after checkpoint, and its event with it. Nothing is lost."""
    models = write_models(tmp_path / "models.yaml", double.base_url)
    flags = (FLINK, f"--models={models}", *topics.flags(tmp_path))
    with Command(engine, *flags, LONG_BUNDLES, module="tests.e2e.unflushed_main") as command:
        job = command.flink_job()
        topics.produce([chat(1)])
        seen = checkpoints(engine, job)
        until("six checkpoints more", lambda: checkpoints(engine, job) >= seen + 6, 60.0)
        assert not topics.replies()
        command.interrupt()
        assert command.wait() == 0, command.output
    with Command(engine, *flags) as command:
        command.flink_job()
        until("it is answered", topics.replies, 60.0)
        command.interrupt()
        assert command.wait() == 0, command.output
    assert topics.replies() == Counter({"e1": 1})


def test_drained_with_calls_in_flight(engine: Stack, topics: Topics, tmp_path: Path) -> None:
    """Ctrl-C once: nothing more is read, every call under way is waited for, and in = outcomes + repeats."""
    with ModelDouble(0, latency_ms=4_000.0) as slow:
        models = write_models(tmp_path / "models.yaml", slow.base_url)
        with Command(engine, FLINK, f"--models={models}", *topics.flags(tmp_path)) as command:
            command.flink_job()
            topics.produce(chat(number) for number in range(60))
            slow.wait_until(lambda stats: stats.in_flight >= 40, timeout_s=60.0)
            command.interrupt()
            command.wait_for("draining")
            assert command.wait() == 0, command.output
        replied = topics.replies()
    assert len(replied) >= 40
    assert set(replied.values()) == {1}


def test_ctrl_c_twice_ends(engine: Stack, topics: Topics, tmp_path: Path) -> None:
    """Ctrl-C twice: the command ends with status 130, and the job with it."""
    with ModelDouble(0, latency_ms=60_000.0) as slow:
        models = write_models(tmp_path / "models.yaml", slow.base_url, timeout_s=100)
        with Command(engine, FLINK, f"--models={models}", *topics.flags(tmp_path)) as command:
            job = command.flink_job()
            topics.produce([chat(1)])
            slow.wait_until(lambda stats: stats.in_flight >= 1, timeout_s=60.0)
            command.interrupt()
            command.wait_for("draining")
            command.interrupt()
            assert command.wait(30.0) == 130, command.output
            until("the job is cancelled", lambda: rest(engine).state(job) == "CANCELED", 60.0)


def test_killed_worker_and_taskmanager_lose_nothing(
    engine: Stack, double: ModelDouble, topics: Topics, tmp_path: Path
) -> None:
    """`kill -9` of a Python worker and of the TaskManager under load: all good events end as replies, repeats have the same id."""
    models = write_models(tmp_path / "models.yaml", double.base_url)
    total, sent = 1_500, threading.Event()
    with Command(engine, FLINK, f"--models={models}", *topics.flags(tmp_path)) as command:
        job = command.flink_job()

        def feed() -> None:
            topics.produce((chat(number) for number in range(total)), per_s=40.0)
            sent.set()

        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        double.wait_until(lambda stats: stats.answered >= 100, timeout_s=60.0)
        os.kill(worker_pids(engine)[-1], signal.SIGKILL)
        answered = double.stats().answered
        until("the job restarts", lambda: restarts(engine, job) >= 1, 60.0)
        double.wait_until(lambda stats: stats.answered >= answered + 150, timeout_s=90.0)
        os.kill(part_pid(engine, "taskmanager"), signal.SIGKILL)
        until("all are answered", lambda: sent.is_set() and len(topics.replies()) == total, 150.0)
        feeder.join()
        command.interrupt()
        assert command.wait() == 0, command.output
    replied = topics.replies()
    assert set(replied) == {f"e{number}" for number in range(total)}
    assert topics.read()["support.dead-letters"] == []


def test_a_step_that_forgets_is_found_out(engine: Stack, topics: Topics, tmp_path: Path) -> None:
    """The sibling: a step that trusts memory loses the calls of a killed worker, and the run says so with status 1."""
    with ModelDouble(0, latency_ms=10_000.0) as slow:
        models = write_models(tmp_path / "models.yaml", slow.base_url)
        flags = (FLINK, f"--models={models}", *topics.flags(tmp_path))
        with Command(engine, *flags, module="tests.e2e.forgetful_main") as command:
            job = command.flink_job()
            count = topics.produce(chat(number) for number in range(40))
            slow.wait_until(lambda stats: stats.in_flight >= count, timeout_s=60.0)
            until("a checkpoint holds them", lambda: topics.committed() == count, 60.0)
            os.kill(worker_pids(engine)[-1], signal.SIGKILL)
            until("the job restarts", lambda: restarts(engine, job) >= 1 and rest(engine).is_running(job), 90.0)
            command.interrupt()
            assert command.wait() == 1, command.output
    assert "not accounted for" in command.output
    assert len(topics.replies()) < count


def test_the_model_is_down_at_the_start(engine: Stack, double: ModelDouble, topics: Topics, tmp_path: Path) -> None:
    """Events wait for a model server that comes up after 20 s; all are answered and the job was never restarted."""
    models = write_models(tmp_path / "models.yaml", double.base_url)
    double.set_down(True)
    with Command(engine, FLINK, f"--models={models}", *topics.flags(tmp_path)) as command:
        job = command.flink_job()
        topics.produce(chat(number) for number in range(30))
        up = threading.Timer(20.0, double.set_down, [False])
        up.start()
        until("all are answered", lambda: len(topics.replies()) == 30, 90.0)
        up.join()
        assert restarts(engine, job) == 0
        command.interrupt()
        assert command.wait() == 0, command.output


def test_events_dead_letter_by_their_deadline(
    engine: Stack, double: ModelDouble, topics: Topics, tmp_path: Path
) -> None:
    """With a short deadline, events become dead letters while the server is down, and the job goes on to answer later ones.

    When the server is up again its breaker may be open for longer than the deadline: events that come then are dead letters too.
    """
    models = write_models(tmp_path / "models.yaml", double.base_url, deadline_s=3, timeout_s=3)
    double.set_down(True)
    with Command(engine, FLINK, f"--models={models}", *topics.flags(tmp_path)) as command:
        job = command.flink_job()
        topics.produce(chat(number) for number in range(10))
        until("all are dead letters", lambda: len(topics.read()["support.dead-letters"]) == 10, 60.0)
        double.set_down(False)
        tried = itertools.count()
        until("one is answered", lambda: topics.produce([chat(next(tried), "try")]) and topics.replies(), 60.0)
        topics.produce(chat(number, "later") for number in range(10))
        wanted = {f"later{number}" for number in range(10)}
        until("the later ones are answered", lambda: wanted <= set(topics.replies()), 60.0)
        assert restarts(engine, job) == 0
        command.interrupt()
        assert command.wait() == 0, command.output
    found = topics.read()["support.dead-letters"]
    assert {dict(one.headers())["__connect.errors.exception.class.name"] for one in found} == {b"deadline"}
    assert {f"e{number}" for number in range(10)} <= {json.loads(one.value())["id"] for one in found}
    assert not wanted & {json.loads(one.value())["id"] for one in found}


def test_a_cluster_that_is_there_already(engine: Stack, double: ModelDouble, topics: Topics, tmp_path: Path) -> None:
    """With --flink_master the job runs on a cluster that someone already has, and what submitted it is gone afterwards."""
    models = write_models(tmp_path / "models.yaml", double.base_url)
    master = f"--flink_master={engine.endpoints.flink}"
    flags = (FLINK, master, "--files_to_stage=", f"--models={models}", *topics.flags(tmp_path))
    with Command(engine, *flags) as command:
        command.flink_job()
        topics.produce([*(chat(number) for number in range(20)), chat(3)])
        until("all are answered", lambda: len(topics.replies()) == 20)
        command.interrupt()
        assert command.wait() == 0, command.output
    assert "repeats, not answered again" in command.output
    assert topics.replies() == Counter({f"e{number}": 1 for number in range(20)})
