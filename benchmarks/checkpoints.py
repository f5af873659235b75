"""How long checkpoints take while calls of a minute are in flight: below the bound on them, and at it.

    scripts/bench checkpoints [--seconds 40] [--publish]

One job on a stack of its own: Kafka → `AskModel` → Kafka, checkpoints every 2 s, a model that takes 60 s for each reply, and a bound
of 1 000 calls. Below the bound: 800 events at once, and two a second after them. At the bound: 60 events a second, of which the step
can take 17. The durations are Flink's own, from its REST interface (``/jobs/<id>/checkpoints``), end to end.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import msgspec
import requests

from benchmarks import published, rig
from benchmarks.contestants import beam_job
from benchmarks.contestants.ours import ToOutput, ask, id_of
from benchmarks.load import PARTITIONS
from benchmarks.profile import Profile
from benchmarks.rig import Place
from runners.flink_rest import FlinkRest
from runners.local import topics
from runners.local.artifacts import ROOT
from runners.local.ports import Ports
from runners.local.stack import Stack
from transforms.ask import AskModel
from transforms.records import OutputRecord
from transforms.remote.settings import Endpoint, ModelSettings

COMMAND = "scripts/bench checkpoints"
LATENCY_S = 60.0
BOUND = 1_000
BELOW = 800
MOST_MS = 2_000.0
_SETTLE_S = 5.0


def steps(source: beam.PCollection, place: Place) -> beam.PCollection:
    """`AskModel` with time enough, and both its roads to the output topic."""
    model = ModelSettings(
        role="answer",
        endpoints=(Endpoint(place.url),),
        model="bench",
        max_in_flight=BOUND,
        timeout_s=2 * LATENCY_S,
        deadline_s=4 * LATENCY_S,
    )
    asked = source | "Ask" >> AskModel(model, ask, id_of, max_pending=BOUND)
    answered = asked.answered | "Answers" >> beam.ParDo(ToOutput(place.topic_out)).with_output_types(OutputRecord)
    failed = asked.failed | "Failures" >> beam.ParDo(ToOutput(place.topic_out)).with_output_types(OutputRecord)
    return (answered, failed) | "Both" >> beam.Flatten()


@contextlib.contextmanager
def _program(module: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A program of the rig, ended with the body."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", module, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10.0)


def _send(place: Place, rate: float, seconds: float) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    words = ["--servers", place.servers, "--topic", place.topic_in, "--rate", f"{rate}", "--warm_s", "0"]
    return _program("benchmarks.load", "send", *words, "--seconds", f"{seconds}")


class Checkpoint(msgspec.Struct, frozen=True):
    """One checkpoint of Flink's: `begun_ms` in Unix milliseconds, `duration_ms` None while it is under way."""

    id: int
    begun_ms: int
    duration_ms: int | None
    state_bytes: int
    status: str


class Watch:
    """The checkpoints of a job, gathered from Flink's history, which keeps ten."""

    def __init__(self, flink: str, job: str) -> None:
        self._url = f"http://{flink}/jobs/{job}/checkpoints"
        self._seen: dict[int, Checkpoint] = {}

    def look(self) -> None:
        """Fetch what is new."""
        for one in requests.get(self._url, timeout=10.0).json()["history"]:
            if not one["is_savepoint"]:
                ended = None if one["status"] == "IN_PROGRESS" else int(one["end_to_end_duration"])
                found = Checkpoint(one["id"], one["trigger_timestamp"], ended, int(one["state_size"]), one["status"])
                self._seen[found.id] = found

    def follow(self, seconds: float) -> list[Checkpoint]:
        """The checkpoints begun within the next `seconds`; one that has not ended then is given as it stands."""
        began_ms, end_s = time.time() * 1e3, time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.look()
            time.sleep(1.0)
        return [one for one in self._seen.values() if one.begun_ms >= began_ms]


def durations_ms(found: list[Checkpoint], now_ms: float) -> list[float]:
    """How long each took, in order of length; one under way has taken its age so far."""
    return sorted(now_ms - one.begun_ms if one.duration_ms is None else one.duration_ms for one in found)


def longest_ms(found: list[Checkpoint], now_ms: float) -> float:
    """The p99 of the durations: the longest of fewer than a hundred; infinite where none was begun."""
    took_ms = durations_ms(found, now_ms)
    return took_ms[min(len(took_ms) - 1, int(len(took_ms) * 0.99))] if took_ms else float("inf")


def _line(name: str, found: list[Checkpoint], in_flight: int) -> float:
    """Print what a phase gave; return its p99 in milliseconds."""
    now_ms = time.time() * 1e3
    took_ms, p99_ms = durations_ms(found, now_ms), longest_ms(found, now_ms)
    if not took_ms:
        print(f"{name:10} {in_flight:5} in flight   no checkpoint was begun")
        return p99_ms
    open_or_failed = sum(one.status != "COMPLETED" for one in found)
    print(
        f"{name:10} {in_flight:5} in flight   {len(took_ms):3} checkpoints   p50 {statistics.median(took_ms):6.0f} ms"
        f"   p99 {p99_ms:6.0f} ms   state {max(one.state_bytes for one in found) / 1e3:.0f} kB   not completed {open_or_failed}"
    )
    return p99_ms


def measure(stack: Stack, folder: Path, url: str, seconds: float) -> dict[str, float]:
    """Run both phases; return the greatest durations (p99) below the bound and at it, in seconds."""
    place = Place(stack, "checkpoints", "checkpoints.in", "checkpoints.out", url, folder)
    topics.create_topics(place.servers, [place.topic_in, place.topic_out], PARTITIONS)
    with beam_job.running(place, steps):
        job = FlinkRest(stack.endpoints.flink).job_named(place.name)
        watch = Watch(stack.endpoints.flink, str(job))
        with _send(place, BELOW / 8.0, 8.0):
            time.sleep(8.0 + _SETTLE_S)
            with _send(place, 2.0, seconds):
                below = watch.follow(min(seconds, LATENCY_S - 10.0))
                in_flight = rig.stats(url)["in_flight"]
        p99_ms, below_in_flight = _line("below", below, in_flight), in_flight
        with _send(place, 60.0, seconds + 20.0):
            time.sleep(20.0)
            at_bound = watch.follow(seconds)
            in_flight = rig.stats(url)["in_flight"]
        at_bound_ms = _line("at bound", at_bound, in_flight)
    return {
        "p99_s": p99_ms / 1e3,
        "in_flight": below_in_flight,
        "at_bound_p99_s": at_bound_ms / 1e3,
        "at_bound_in_flight": in_flight,
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and return 0 where the target is met, else 1."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.checkpoints", description="Checkpoints with calls of a minute in flight."
    )
    parser.add_argument("--seconds", type=float, default=40.0, help="how long checkpoints are watched in each phase")
    parser.add_argument("--publish", action="store_true", help="write benchmarks/results/checkpoints.json")
    given = parser.parse_args(argv)
    profile = msgspec.json.encode(Profile(median_s=LATENCY_S, sigma=0.0)).decode()
    with tempfile.TemporaryDirectory(prefix="farcall-checkpoints-") as folder:
        stack = Stack(Path(folder) / "stack", Ports.free())
        try:
            stack.up(rig.PARTS)
            with _program("benchmarks.server", "--profile", profile) as server:
                assert server.stdout is not None  # noqa: S101 - a pipe was asked for
                found = measure(stack, Path(folder), server.stdout.readline().split()[-1], given.seconds)
        finally:
            stack.down()
    met = found["p99_s"] * 1e3 < MOST_MS
    print(f"target: below the bound p99 under {MOST_MS:.0f} ms: {'met' if met else 'NOT met'}")
    if given.publish:
        published.write("checkpoints", published.result(COMMAND, found, seconds=given.seconds))
    return 0 if met else 1


if __name__ == "__main__":
    # Under its real name: workers import the steps.
    from benchmarks import checkpoints  # noqa: PLW0406

    sys.exit(checkpoints.main())
