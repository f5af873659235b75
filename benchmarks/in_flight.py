"""Ten thousand calls in flight in one worker process: what it takes of threads and memory.

    scripts/bench in_flight [--calls 10000] [--latency_s 10] [--publish]

A process with what a worker has loaded (Beam, the step) takes that many events into shards of the step, whose state is kept in
memory, and calls the benchmark's model server, a process of its own. Looked at when all are in flight at the server: the process's
threads and its resident memory (VmHWM, the most it ever was). Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import published, records
from benchmarks.profile import Profile
from benchmarks.rig import stats
from runners.local.artifacts import ROOT
from transforms.ask import calls, step
from transforms.ask.shard import Entry, Shard
from transforms.ask.shards import shard_keys, shard_of
from transforms.remote.client import Call
from transforms.remote.concurrency import ConcurrencySettings
from transforms.remote.questions import Chat, Message
from transforms.remote.settings import Endpoint, ModelSettings

COMMAND = "scripts/bench in_flight"
MOST_THREADS = 20
MOST_MB = 300.0
BUNDLE = 500
_DEADLINE_S = 120.0
_WITHIN_S = 60.0


class _Cell:
    """A cell of state in memory."""

    def __init__(self) -> None:
        self._value: bytes | None = None

    def read(self) -> bytes | None:
        return self._value

    def write(self, value: bytes) -> None:
        self._value = value


class _Bag:
    """A bag of state in memory."""

    def __init__(self) -> None:
        self._items: list[bytes] = []

    def read(self) -> Iterable[bytes]:
        return list(self._items)

    def add(self, value: bytes) -> None:
        self._items.append(value)

    def clear(self) -> None:
        self._items.clear()


def _call(entry: Entry) -> Call:
    text = records.read_event(entry.payload).text
    return Call(
        id=entry.id, question=Chat((Message("user", text),)), deadline_ms=entry.deadline_ms, attempts=entry.attempts
    )


class _Step:
    """The shards of one step, driven in bundles as a runner does."""

    def __init__(self, running: calls.Calls) -> None:
        self._calls = running
        instance = running.new_instance()
        self._shards = {
            key: (Shard(key, running, _call, instance), _Cell(), _Bag()) for key in shard_keys(step.DEFAULT_SHARDS)
        }

    def take(self, first: int, count: int) -> None:
        """A bundle of events."""
        for shard, cell, bag in self._shards.values():
            shard.touch(cell, bag)
        now_ms = self._calls.clock.now_ms()
        for number in range(first, first + count):
            identity = records.id_of(number)
            shard, cell, bag = self._shards[shard_of(identity, step.DEFAULT_SHARDS)]
            encode = partial(records.event, identity, now_ms * 1_000)
            deadline_ms = now_ms + round(_DEADLINE_S * 1e3)
            shard.take(cell, bag, identity, 0, deadline_ms, encode, _call, asked=lambda: None)

    def hand_out(self) -> int:
        """A bundle that gives what is done; returns how many were answered."""
        good = 0
        for shard, cell, bag in self._shards.values():
            shard.touch(cell, bag)
            good += sum(leaving.outcome.reply is not None for leaving in shard.hand_out(cell, bag))
        return good


def facts() -> dict[str, float]:
    """This process's threads, and its resident memory, now and at most, in megabytes of 10^6 bytes."""
    found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kib = {name: int(found[name].split()[0]) for name in ("VmRSS", "VmHWM")}
    return {
        "threads": int(found["Threads"]),
        "rss_mb": kib["VmRSS"] * 1024 / 1e6,
        "most_mb": kib["VmHWM"] * 1024 / 1e6,
    }


def work(url: str, count: int) -> dict[str, Any]:
    """What the worker process does; returns what it saw."""
    settings = ModelSettings(
        role="answer",
        endpoints=(Endpoint(url),),
        model="bench",
        max_in_flight=count,
        concurrency=ConcurrencySettings(algorithm="fixed", initial=count, most=count),
        deadline_s=_DEADLINE_S,
    )
    before, running = facts(), calls.acquire("in-flight", settings)
    asking = _Step(running)
    began_s = time.monotonic()
    for first in range(0, count, BUNDLE):
        asking.take(first, min(BUNDLE, count - first))
    most = 0
    while most < count and time.monotonic() - began_s < _WITHIN_S and not running.completed:
        most = max(most, stats(url)["in_flight"])
        time.sleep(0.05)
    at_most, took_s, answered = facts(), time.monotonic() - began_s, 0
    while answered < count and time.monotonic() - began_s < _WITHIN_S + _DEADLINE_S:
        seen = running.completed
        answered += asking.hand_out()
        running.wait_for_completion(seen, timeout_s=0.2)
    return {
        "before": before,
        "in_flight": most,
        "took_s": took_s,
        "full": at_most,
        "answered": answered,
        "end": facts(),
    }


@contextlib.contextmanager
def _server(latency_s: float) -> Iterator[str]:
    """The benchmark's model server as a process; gives its base URL."""
    profile = msgspec.json.encode(Profile(median_s=latency_s, sigma=0.0)).decode()
    words = [sys.executable, "-u", "-m", "benchmarks.server", "--profile", profile]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(10.0)


def _report(seen: dict[str, Any], wanted: int) -> bool:
    full = seen["full"]
    rows = [
        ("calls in flight", seen["in_flight"], wanted, seen["in_flight"] >= wanted),
        ("answered", seen["answered"], wanted, seen["answered"] == wanted),
        ("threads", full["threads"], f"≤ {MOST_THREADS}", full["threads"] <= MOST_THREADS),
        ("memory, MB", f"{full['most_mb']:.0f}", f"≤ {MOST_MB:.0f}", full["most_mb"] <= MOST_MB),
    ]
    for name, value, target, met in rows:
        print(f"{name:16} {value!s:>8}   target {target!s:>7}   {'met' if met else 'NOT met'}")
    print(
        f"before the first call {seen['before']['threads']:.0f} threads and {seen['before']['rss_mb']:.0f} MB (Beam and the step"
        f" loaded); all in flight after {seen['took_s']:.1f} s; at the end {seen['end']['rss_mb']:.0f} MB"
    )
    return all(met for *_, met in rows)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and return 0 where all targets are met, else 1."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.in_flight", description="Many calls in flight in one worker process."
    )
    parser.add_argument("--calls", type=int, default=10_000, help="how many at once")
    parser.add_argument("--latency_s", type=float, default=10.0, help="how long each takes")
    parser.add_argument("--publish", action="store_true", help="write benchmarks/results/in_flight.json")
    parser.add_argument("--work", metavar="URL", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.work:
        print(json.dumps(work(given.work, given.calls)))
        return 0
    with _server(given.latency_s) as url:
        words = [sys.executable, "-m", "benchmarks.in_flight", "--work", url, "--calls", str(given.calls)]
        done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    met = _report(seen, given.calls)
    if given.publish:
        shown = {"threads": seen["full"]["threads"], "rss_mb": seen["full"]["most_mb"], "in_flight": seen["in_flight"]}
        published.write("in_flight", published.result(COMMAND, shown, seen=seen))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
