"""One run: a model server, topics of its own, a contestant between them, the load, the reader, and what came of it.

The order is: the model server, the contestant until it runs, the reader, the load. Processor time is taken at the beginning and at
the end of the measured part. Everything that a run starts ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from benchmarks import cpu, load, records
from benchmarks.figures import Figures, SetAnswered, Window, figures, set_figures
from benchmarks.load import Schedule
from benchmarks.profile import Profile
from runners.local import topics
from runners.local.artifacts import ROOT
from runners.local.stack import Stack

PARTS = ("kafka", "jobmanager", "taskmanager", "jobserver", "expansion", "workers")
_NOT_COUNTED = ("supervisor",)


class Place(msgspec.Struct, frozen=True):
    """Where one run of a contestant happens. `settings` are the contestant's own, `beam_arguments` further flags for Beam."""

    stack: Stack
    name: str
    topic_in: str
    topic_out: str
    url: str
    folder: Path
    settings: Mapping[str, Any] = {}
    beam_arguments: tuple[str, ...] = ()

    @property
    def servers(self) -> str:
        """Kafka, as HOST:PORT."""
        return self.stack.endpoints.kafka


class Contestant(Protocol):
    """One way to ask a model server about each event of a topic."""

    name: str

    def running(self, place: Place) -> contextlib.AbstractContextManager[None]:
        """Start the job; the body runs while it does, and it is ended afterwards."""


@runtime_checkable
class Bounded(Protocol):
    """A contestant that asks about a bounded set: it has no stream to stand in."""

    name: str

    def answer_set(self, place: Place, events: Path) -> SetAnswered:
        """Ask about every event of a file of JSON Lines."""


class Scenario(msgspec.Struct, frozen=True):
    """What happens in a run: a load, and how the model server behaves."""

    name: str
    schedule: Schedule
    profile: Profile = Profile()
    padding_bytes: int = 0
    drain_s: float = 15.0


BOUNDED_S = 5.0
"""A bounded set holds as many events as the load has in so many seconds."""


def run(
    stack: Stack, contestant: Contestant | Bounded | None, scenario: Scenario, folder: Path, **more: Any
) -> Figures:
    """Do one run; `None` is the floor. `more` are further fields of the contestant's `Place`."""
    with model_server(scenario.profile) as (url, server_pid):
        if contestant is None:
            return _floor(scenario, folder, url, server_pid)
        name = f"{contestant.name.replace('_', '-')}-{uuid.uuid4().hex[:6]}"
        place = Place(stack, name, f"{name}.in", f"{name}.out", url, folder, **more)
        if isinstance(contestant, Bounded):
            return _bounded(place, contestant, scenario, server_pid)
        topics.create_topics(place.servers, [place.topic_in, place.topic_out], load.PARTITIONS)
        with contestant.running(place):
            return _measured(place, contestant.name, scenario, server_pid)


def stats(url: str) -> Mapping[str, int]:
    """What the model server has seen."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=5.0) as answer:  # noqa: S310 - our own server
        found: Mapping[str, int] = json.load(answer)
    return found


def _measured(place: Place, name: str, scenario: Scenario, server_pid: int) -> Figures:
    samples, schedule = place.folder / f"{place.name}.samples", scenario.schedule
    all_s = load.LEAD_S + schedule.warm_s + schedule.seconds
    reader_words = [
        "--events",
        str(schedule.count),
        "--samples",
        str(samples),
        "--within_s",
        f"{all_s + 30.0 + scenario.drain_s}",
    ]
    with (
        program("benchmarks.load", "read", *_topic(place.servers, place.topic_out), *reader_words) as reader,
        program("benchmarks.load", "send", *_topic(place.servers, place.topic_in), *_load_words(scenario)) as sender,
    ):
        said(reader)
        began_us = said(sender)["began_us"]
        window = _window(schedule, began_us)
        home = place.stack.place.home
        _sleep_until(window.began_us)
        before, rig_before = cpu.by_part(home), cpu.of_pids([reader.pid, sender.pid, server_pid])
        _sleep_until(window.ended_us)
        spent, rig_spent = (
            cpu.since(before, cpu.by_part(home)),
            cpu.of_pids([reader.pid, sender.pid, server_pid]) - rig_before,
        )
        late_ms = said(sender)["late_p99_ms"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            reader.wait(scenario.drain_s)
        reader.terminate()
        reader.wait(10.0)
    found = load.read_samples(samples)
    outputs = len({sample.number for sample in found})
    in_window = sum(1 for sample in found if window.began_us <= sample.seen_us < window.ended_us)
    seen = stats(place.url)
    parts = {part: spent_s * 1e3 / max(1, in_window) for part, spent_s in spent.items() if part not in _NOT_COUNTED}
    return figures(
        name,
        scenario.name,
        schedule.rate,
        found,
        window,
        _slow(scenario, window),
        cpu_ms_per_output=sum(parts.values()),
        cpu_parts=parts,
        requests_per_output=seen["requests"] / max(1, outputs),
        most_in_flight=seen["most_in_flight"],
        send_late_p99_ms=late_ms,
        rig_cpu_share=rig_spent / schedule.seconds,
    )


def _bounded(place: Place, contestant: Bounded, scenario: Scenario, server_pid: int) -> Figures:
    schedule, count = scenario.schedule, round(scenario.schedule.rate * BOUNDED_S)
    path = place.folder / f"{place.name}.jsonl"
    lines = (records.event(records.id_of(number), 0, scenario.padding_bytes) for number in range(count))
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    before_s = cpu.spent_s(server_pid)
    found = contestant.answer_set(place, path)
    seen = stats(place.url)
    parts = {part: spent_s * 1e3 / max(1, found.outputs) for part, spent_s in found.cpu_s.items()}
    return set_figures(
        contestant.name,
        scenario.name,
        schedule.rate,
        count,
        found,
        cpu_ms_per_output=sum(parts.values()),
        cpu_parts=parts,
        requests_per_output=seen["requests"] / max(1, found.outputs),
        most_in_flight=seen["most_in_flight"],
        rig_cpu_share=(cpu.spent_s(server_pid) - before_s) / max(1e-9, found.seconds),
    )


def _floor(scenario: Scenario, folder: Path, url: str, server_pid: int) -> Figures:
    samples, schedule = folder / f"floor-{uuid.uuid4().hex[:6]}.samples", scenario.schedule
    words = ["--url", url, "--samples", str(samples), "--within_s", f"{scenario.drain_s}"]
    with program("benchmarks.load", "floor", *words, *_load_words(scenario)) as process:
        window = _window(schedule, said(process)["began_us"])
        _sleep_until(window.began_us)
        before, server_before = cpu.spent_s(process.pid), cpu.spent_s(server_pid)
        _sleep_until(window.ended_us)
        spent_s, server_s = cpu.spent_s(process.pid) - before, cpu.spent_s(server_pid) - server_before
        late_ms = said(process)["late_p99_ms"]
        process.wait(scenario.drain_s + 10.0)
    found = load.read_samples(samples)
    seen = stats(url)
    in_window = sum(1 for sample in found if window.began_us <= sample.seen_us < window.ended_us)
    return figures(
        "floor",
        scenario.name,
        schedule.rate,
        found,
        window,
        _slow(scenario, window),
        cpu_ms_per_output=spent_s * 1e3 / max(1, in_window),
        requests_per_output=seen["requests"] / max(1, len(found)),
        most_in_flight=seen["most_in_flight"],
        send_late_p99_ms=late_ms,
        rig_cpu_share=server_s / schedule.seconds,
    )


def _slow(scenario: Scenario, window: Window) -> frozenset[int]:
    """The window's events that the model server makes slow on purpose."""
    profile = scenario.profile
    if not profile.straggler_share:
        return frozenset()
    return frozenset(number for number in range(window.first, window.end) if profile.straggles(records.id_of(number)))


def _window(schedule: Schedule, began_us: int) -> Window:
    first_us = began_us + round(schedule.warm_s * 1e6)
    return Window(schedule.first, schedule.count, first_us, first_us + round(schedule.seconds * 1e6))


def _topic(servers: str, topic: str) -> list[str]:
    return ["--servers", servers, "--topic", topic]


def _load_words(scenario: Scenario) -> list[str]:
    schedule = scenario.schedule
    words = ["--rate", f"{schedule.rate}", "--warm_s", f"{schedule.warm_s}", "--seconds", f"{schedule.seconds}"]
    words += ["--seed", str(schedule.seed), "--padding_bytes", str(scenario.padding_bytes)]
    return [*words, "--poisson"] if schedule.poisson else words


@contextlib.contextmanager
def model_server(profile: Profile) -> Iterator[tuple[str, int]]:
    """A model server as a process of its own while the body runs; gives its base URL and its pid."""
    with program("benchmarks.server", "--profile", msgspec.json.encode(profile).decode()) as process:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        yield process.stdout.readline().split()[-1], process.pid


@contextlib.contextmanager
def program(module: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A module of this project as a process whose output is read, ended with the body."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", module, *words],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        process.stdout.close()


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line that a program of ours prints, as JSON. Raises RuntimeError where it ends without one."""
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    text = process.stdout.readline()
    if not text:
        raise RuntimeError(f"A process of the rig ended too soon, with status {process.wait()}: {process.args!r}.")
    found: dict[str, Any] = json.loads(text)
    return found


def _sleep_until(unix_us: int) -> None:
    time.sleep(max(0.0, unix_us / 1e6 - time.time()))
