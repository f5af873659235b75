"""What the end-to-end tests share: jobs as a person starts them, and what they left in Kafka."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import requests
from confluent_kafka import Consumer, Producer, TopicPartition

from pipeline.cases.support.case import SUPPORT
from runners.flink_rest import FlinkRest
from runners.local import topics
from runners.local.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
OUT_TOPICS = (*SUPPORT.output_topics, SUPPORT.dead_letter_topic)
"""Where outcomes go."""


def until(what: str, seen: Callable[[], Any], timeout_s: float = 90.0) -> Any:
    """Polls until `seen` gives something true; fails with `what` after `timeout_s`."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        found = seen()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


def chat(number: int, prefix: str = "e") -> bytes:
    """A good chat event."""
    event = {
        "id": f"{prefix}{number}",
        "channel": "chat",
        "customer_id": f"c{number % 7}",
        "at": "2026-11-01T10:00:00Z",
        "text": f"Where is order {number}?",
    }
    return json.dumps(event).encode()


def write_models(path: Path, url: str, **settings: Any) -> Path:
    """A models.yaml for the double at `url`."""
    path.write_text(json.dumps({"models": {"answer": {"endpoints": [url], "model": "double", **settings}}}))
    return path


@dataclass
class Topics:
    """Topics of one test: an input, and the case's outputs under names of their own."""

    stack: Stack
    tag: str
    input: str = field(init=False)
    renamed: Mapping[str, str] = field(init=False)
    side: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.input = f"{self.tag}.events"
        self.renamed = {name: f"{self.tag}.{name}" for name in OUT_TOPICS}
        self.side = {name: f"{self.tag}.{name}" for name in SUPPORT.side_topics}
        topics.create_topics(self.kafka, [self.input, *self.renamed.values(), *self.side.values()], 4)

    @property
    def kafka(self) -> str:
        return self.stack.endpoints.kafka

    def flags(self, folder: Path) -> list[str]:
        """The flags that make a job read and write these topics."""
        file = folder / f"{self.tag}.topics.yaml"
        file.write_text(json.dumps({**self.renamed, **self.side}))
        config = folder / f"{self.tag}.kafka.yaml"
        config.write_text(json.dumps({"consumer": {"group.id": self.tag}}))
        return [
            f"--input=kafka://{self.kafka}/{self.input}",
            f"--output=kafka://{self.kafka}",
            f"--topics={file}",
            f"--kafka_config={config}",
        ]

    def produce(
        self,
        values: Iterable[bytes],
        headers: Any = None,
        per_s: float | None = None,
        keys: Sequence[bytes] | None = None,
        to: Sequence[str] | None = None,
        after_ms: int = 1_000_000,
    ) -> int:
        """Sends the values to the input, with their number as key, or with `keys`, each to its topic of `to`.

        Their event times are so many milliseconds after `after_ms` as their number. Returns how many.
        """
        producer = Producer({"bootstrap.servers": self.kafka, "linger.ms": "2"})
        count = 0
        for count, value in enumerate(values, start=1):
            key = b"k%d" % count if keys is None else keys[count - 1]
            topic = self.input if to is None else to[count - 1]
            producer.produce(topic, value=value, key=key, headers=headers, timestamp=after_ms + count)
            producer.poll(1.0 / per_s if per_s else 0)
        assert producer.flush(20.0) == 0
        return count

    def read(self, *, side: bool = False) -> dict[str, list[Any]]:
        """Every outcome in the output topics, and with `side` what is beside them, by the case's own topic names.

        Fails where Kafka does not give one that it had.
        """
        consumer = Consumer(
            {
                "bootstrap.servers": self.kafka,
                "group.id": f"{self.tag}-read",
                "enable.auto.commit": "false",
                # A record that is gone is a failure, not a reason to wait for the next.
                "auto.offset.reset": "error",
                # A fetch that waits for more holds up the questions about the next topic, which go over the same connection: seconds.
                "fetch.wait.max.ms": "10",
            }
        )
        end_s = time.monotonic() + 30.0
        found: dict[str, list[Any]] = defaultdict(list)
        try:
            for name, renamed in {**self.renamed, **(self.side if side else {})}.items():
                left = {}
                for partition in range(4):
                    at = TopicPartition(renamed, partition, 0)
                    end = consumer.get_watermark_offsets(at, timeout=10.0)[1]
                    if end:
                        left[partition] = end
                consumer.assign([TopicPartition(renamed, partition, 0) for partition in left])
                while left:
                    assert time.monotonic() < end_s, f"{renamed}: not read within 30 s: {left}"
                    # One by one: of more it would wait for all, or the second out, at every read of every topic.
                    for message in consumer.consume(1, 1.0):
                        assert message.error() is None, f"{renamed}: {message.error()}"
                        found[name].append(message)
                        if message.offset() + 1 >= left.get(message.partition(), 0):
                            left.pop(message.partition(), None)
        finally:
            consumer.close()
        return found

    def committed(self) -> int:
        """How many records the job has read for good: its consumer group's offsets, as of its last checkpoint."""
        consumer = Consumer({"bootstrap.servers": self.kafka, "group.id": self.tag, "enable.auto.commit": "false"})
        try:
            found = consumer.committed([TopicPartition(self.input, number) for number in range(4)], timeout=10.0)
            return sum(max(0, partition.offset) for partition in found)
        finally:
            consumer.close()

    def replies(self) -> Counter[str]:
        """How often each id was replied to."""
        return Counter(
            json.loads(message.value())["id"]
            for name, messages in self.read().items()
            if name != "support.dead-letters"
            for message in messages
        )


class Command:
    """``python -m pipeline …`` as a person types it, with its output kept."""

    def __init__(self, stack: Stack, *words: str, module: str = "pipeline") -> None:
        self._stack = stack
        self._before = jobs(stack)
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", module, *words],
            cwd=ROOT,
            env=environment(stack),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            end_jobs(self._stack, but=self._before)
        self._process.wait()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def interrupt(self) -> None:
        """Ctrl-C, once."""
        self._process.send_signal(signal.SIGINT)

    def wait(self, timeout_s: float = 120.0) -> int:
        """The exit status."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {timeout_s:g} s:\n{self.output}") from None
        self._reader.join(5.0)
        return status

    def wait_for(self, pattern: str, timeout_s: float = 90.0) -> re.Match[str]:
        """The first match of `pattern` in what it printed."""

        def seen() -> re.Match[str] | None:
            if self._process.poll() is not None and not re.search(pattern, self.output):
                raise AssertionError(f"ended with {self._process.returncode} before {pattern!r}:\n{self.output}")
            return re.search(pattern, self.output)

        try:
            return until(pattern, seen, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}") from None

    def flink_job(self) -> str:
        """Flink's id of the job, once it runs."""
        return self.wait_for(r"runs as Flink's (\w+)").group(1)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))


def environment(stack: Stack) -> dict[str, str]:
    """The environment that makes a command use this stack."""
    ports = ",".join(f"{name.replace('_', '-')}={port}" for name, port in stack.place.ports.as_dict().items())
    return {**os.environ, "FARCALL_HOME": str(stack.place.home), "FARCALL_PORTS": ports, "PYTHONUNBUFFERED": "1"}


def part_pid(stack: Stack, name: str) -> int:
    """The process of a part of the stack."""
    return next(row.pid for row in stack.status() if row.name == name and row.pid is not None)


def worker_pids(stack: Stack) -> list[int]:
    """The Python worker processes, the youngest last."""
    rows = next(row for row in stack.status() if row.name == "workers")
    return sorted((rows.workers or {}).values())


def restarts(stack: Stack, job: str) -> int:
    """How often Flink restarted a job."""
    metrics = requests.get(
        f"http://{stack.endpoints.flink}/jobs/{job}/metrics", params={"get": "numRestarts"}, timeout=5
    ).json()
    return int(float(metrics[0]["value"])) if metrics else 0


def checkpoints(stack: Stack, job: str) -> int:
    """How many checkpoints of a job were completed."""
    found = requests.get(f"http://{stack.endpoints.flink}/jobs/{job}/checkpoints", timeout=5).json()
    return int(found["counts"]["completed"])


def jobs(stack: Stack) -> frozenset[str]:
    """The ids of Flink's jobs that have not ended; none where Flink does not answer."""
    try:
        found = requests.get(f"http://{stack.endpoints.flink}/jobs", timeout=5).json()["jobs"]
    except requests.RequestException:
        return frozenset()
    return frozenset(job["id"] for job in found if job["status"] not in {"FINISHED", "CANCELED", "FAILED"})


def end_jobs(stack: Stack, but: frozenset[str]) -> None:
    """Cancels the jobs beside these, and waits for their end: one that is left has the slots that the next tests need."""
    for job in jobs(stack) - but:
        with contextlib.suppress(requests.RequestException):
            rest(stack).cancel(job)
    until("the jobs have ended", lambda: not jobs(stack) - but, 60.0)


def rest(stack: Stack) -> FlinkRest:
    """Flink's REST interface."""
    return FlinkRest(stack.endpoints.flink)


def paced(values: Iterable[bytes], start: Callable[[], None]) -> Iterator[bytes]:
    """The values; calls `start` at the first."""
    for number, value in enumerate(values):
        if number == 0:
            start()
        yield value
