"""The load and the reader, each a process of its own, and the floor: the same load straight to the model server.

    python -m benchmarks.load send  --servers H:P --topic T --rate 400 --warm_s 10 --seconds 30
    python -m benchmarks.load read  --servers H:P --topic T --events N --samples FILE --within_s 60
    python -m benchmarks.load floor --url http://H:P/v1 --rate 400 --warm_s 10 --seconds 30 --samples FILE

The load is open: event n is due at a time that was fixed before, whatever became of the others, and carries it. With ``--poisson``
the gaps are exponential, else equal. An event is ``{"id": "q17", "due_us": …, "text": "q17 Where is …"}``, its output
``{"id", "due_us", "reply"}``, or ``"error"`` instead of the reply; `records.py` reads and writes both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import signal
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from benchmarks import records
from benchmarks.figures import Sample
from transforms.remote.loop import new_event_loop
from transforms.remote.openai_chat import Message, parse_reply, request_body

PARTITIONS = 4
LEAD_S = 0.5
"""How long after its start the load begins."""


def due_s(rate: float, count: int, poisson: bool, seed: int) -> Iterator[float]:
    """When each of `count` events is due, in seconds after the first moment."""
    if not poisson:
        yield from (number / rate for number in range(count))
        return
    # Of its own seed, so that every contestant gets the same gaps.
    gaps = random.Random(seed)  # noqa: S311 - a load, no secret
    at_s = 0.0
    for _ in range(count):
        at_s += -math.log(1.0 - gaps.random()) / rate
        yield at_s


class Schedule(msgspec.Struct, frozen=True):
    """A load of `rate` events a second: `warm_s` that are not measured, then `seconds` that are."""

    rate: float
    warm_s: float
    seconds: float
    poisson: bool = False
    seed: int = 0

    @property
    def first(self) -> int:
        """The number of the first measured event."""
        return round(self.rate * self.warm_s)

    @property
    def count(self) -> int:
        """The number of all events."""
        return round(self.rate * (self.warm_s + self.seconds))

    def due_s(self) -> Iterator[float]:
        """When each event is due, in seconds after the first moment."""
        return due_s(self.rate, self.count, self.poisson, self.seed)


def _say(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


def send(servers: str, topic: str, schedule: Schedule, padding_bytes: int = 0) -> None:
    """Put the load into a topic. Prints when it begins, and how late it was when it has ended."""
    producer = Producer({"bootstrap.servers": servers, "linger.ms": "1", "acks": "1"})
    producer.list_topics(topic, timeout=10.0)
    began_s, began_us = time.monotonic() + LEAD_S, round((time.time() + LEAD_S) * 1e6)
    _say({"began_us": began_us})
    late_s = []
    for number, at_s in enumerate(schedule.due_s()):
        wait_s = began_s + at_s - time.monotonic()
        if wait_s > 0:
            producer.poll(0)
            time.sleep(wait_s)
        due_us = began_us + round(at_s * 1e6)
        identity = records.id_of(number)
        value = records.event(identity, due_us, padding_bytes)
        producer.produce(topic, value=value, key=identity.encode(), partition=number % PARTITIONS)
        late_s.append(time.monotonic() - began_s - at_s)
    left = producer.flush(10.0)
    late_s.sort()
    _say({"sent": len(late_s) - left, "late_p99_ms": late_s[int(len(late_s) * 0.99)] * 1e3})


def read(servers: str, topic: str, events: int, within_s: float) -> list[Sample]:
    """The outputs of a topic as they come, until every event has one, `within_s` have passed or SIGTERM asks to stop."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"read-{topic}",
            "enable.auto.commit": "false",
            "fetch.wait.max.ms": "100",
        }
    )
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
    consumer.consume(1, 0.2)
    _say({"reads": topic})
    samples: list[Sample] = []
    seen: set[int] = set()
    end_s = time.monotonic() + within_s
    try:
        while len(seen) < events and time.monotonic() < end_s and not stopped:
            # One by one: a batch would be stamped with the time of its last.
            message = consumer.poll(0.2)
            if message is None or message.error() is not None:
                continue
            identity, due_us, good = records.read_output(message.value())
            samples.append(Sample(records.number_of(identity), due_us, time.time_ns() // 1_000, good))
            seen.add(samples[-1].number)
    finally:
        consumer.close()
    return samples


async def floor(url: str, schedule: Schedule, within_s: float, padding_bytes: int = 0) -> list[Sample]:
    """The load straight to the model server, by one aiohttp session with as many connections as it takes."""
    samples: list[Sample] = []
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(number: int, due_us: int) -> None:
            identity = records.id_of(number)
            body = request_body("bench", (Message("user", records.text_of(identity, padding_bytes)),), {})
            headers = {"Content-Type": "application/json", "Idempotency-Key": identity}
            async with session.post(f"{url}/chat/completions", data=body, headers=headers) as answer:
                whole = await answer.read()
            good = int(answer.status == 200 and bool(parse_reply(whole).text))
            samples.append(Sample(number, due_us, time.time_ns() // 1_000, good))

        began_s, began_us = loop.time() + LEAD_S, round((time.time() + LEAD_S) * 1e6)
        _say({"began_us": began_us})
        tasks = set()
        late_s = []
        for number, at_s in enumerate(schedule.due_s()):
            wait_s = began_s + at_s - loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            late_s.append(loop.time() - began_s - at_s)
            tasks.add(loop.create_task(ask(number, began_us + round(at_s * 1e6))))
        late_s.sort()
        _say({"sent": len(tasks), "late_p99_ms": late_s[int(len(late_s) * 0.99)] * 1e3})
        _, pending = await asyncio.wait(tasks, timeout=within_s)
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return samples


def write_samples(path: Path, samples: list[Sample]) -> None:
    """Write samples for `read_samples`, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(array("q", (value for sample in samples for value in sample)).tobytes())
    partial.rename(path)


def read_samples(path: Path) -> list[Sample]:
    """The samples that `write_samples` wrote."""
    values = array("q")
    values.frombytes(path.read_bytes())
    return [Sample(*values[at : at + 4]) for at in range(0, len(values), 4)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.load", description="The load, its reader, and the floor.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("send", "floor"):
        known = verbs.add_parser(verb)
        known.add_argument("--rate", type=float, required=True, help="events a second")
        known.add_argument("--warm_s", type=float, default=10.0, help="seconds before those that count")
        known.add_argument("--seconds", type=float, default=30.0, help="seconds that count")
        known.add_argument("--poisson", action="store_true", help="exponential gaps instead of equal ones")
        known.add_argument("--seed", type=int, default=0, help="seed of the gaps")
        known.add_argument("--padding_bytes", type=int, default=0, help="how much longer each event's text is")
    reader = verbs.add_parser("read")
    reader.add_argument("--events", type=int, required=True, help="how many events will have outputs")
    for verb in ("send", "read"):
        verbs.choices[verb].add_argument("--servers", required=True, help="Kafka, HOST:PORT")
        verbs.choices[verb].add_argument("--topic", required=True)
    for verb in ("read", "floor"):
        verbs.choices[verb].add_argument("--samples", type=Path, required=True, help="the file to write")
        verbs.choices[verb].add_argument("--within_s", type=float, default=60.0, help="how long to wait for outputs")
    verbs.choices["floor"].add_argument("--url", required=True, help="base URL of the model server")
    return parser


def _run_floor(given: argparse.Namespace, schedule: Schedule) -> list[Sample]:
    asked = floor(given.url, schedule, given.within_s, given.padding_bytes)
    return new_event_loop().run_until_complete(asked)


def main(argv: list[str] | None = None) -> None:
    """Run one of the three."""
    given = _parser().parse_args(argv)
    if given.verb == "read":
        write_samples(given.samples, read(given.servers, given.topic, given.events, given.within_s))
        return
    schedule = Schedule(given.rate, given.warm_s, given.seconds, given.poisson, given.seed)
    if given.verb == "send":
        send(given.servers, given.topic, schedule, given.padding_bytes)
    else:
        write_samples(given.samples, _run_floor(given, schedule))


if __name__ == "__main__":
    main()
