"""What is made of a run: percentiles of latency, counts, rates. Pure functions.

Latency is from the moment an event *should* have been sent to the moment its output was read, so that neither a slow sender nor a
slow contestant hides its own delay (Gil Tene's "coordinated omission"). An event without a reply, be it
that no output came or one that carries an error, has a latency without end: it counts in every percentile. A refusal is no fast reply.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import msgspec


class Sample(NamedTuple):
    """One output: its event's number, when that was due, when it was read (Unix µs), and 1 if it is a reply."""

    number: int
    due_us: int
    seen_us: int
    good: int


class Figures(msgspec.Struct, frozen=True):
    """The figures of one run. Milliseconds; infinite where so many outputs are missing.

    `offered_per_s` is the load, `sustained_per_s` the replies read per second in the second half of it. `missing` events
    of the measured ones had no output, `failed` one without a reply; `repeated` outputs were second ones.
    A `bounded` set has no latencies. `others_p95_ms` is the p95 of the events that the model server does not make slow on purpose,
    0 where it does so to none.
    `cpu_ms_per_output` is the processor time of everything between the two topics, `cpu_parts` the same for each part.
    """

    contestant: str
    scenario: str
    offered_per_s: float
    seconds: float
    events: int
    outputs: int
    missing: int
    failed: int
    repeated: int
    sustained_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    others_p95_ms: float = 0.0
    cpu_ms_per_output: float = 0.0
    cpu_parts: Mapping[str, float] = {}
    requests_per_output: float = 0.0
    most_in_flight: int = 0
    send_late_p99_ms: float = 0.0
    rig_cpu_share: float = 0.0
    bounded: bool = False


def percentile(ordered: Sequence[float], share: float, count: int) -> float:
    """The smallest latency that `share` of `count` events do not exceed; `ordered` holds those that are known, sorted.

    Infinite where too few are known; not a number without events.
    """
    if count <= 0:
        return math.nan
    rank = max(0, math.ceil(share * count) - 1)
    return ordered[rank] if rank < len(ordered) else math.inf


def first_of_each(samples: Iterable[Sample]) -> tuple[dict[int, Sample], int]:
    """The first output of each event, and how many further ones there were."""
    first: dict[int, Sample] = {}
    repeated = 0
    for sample in samples:
        if sample.number in first:
            repeated += 1
            continue
        first[sample.number] = sample
    return first, repeated


class Window(NamedTuple):
    """The measured part of a run: the numbers of its events (the last excluded) and its times in Unix µs."""

    first: int
    end: int
    began_us: int
    ended_us: int


def latencies_ms(first: Mapping[int, Sample], numbers: Iterable[int]) -> list[float]:
    """The latencies of those of the events with these numbers that have a reply, sorted."""
    known = (first[number] for number in numbers if number in first and first[number].good)
    return sorted((sample.seen_us - sample.due_us) / 1_000.0 for sample in known)


def figures(
    contestant: str,
    scenario: str,
    offered_per_s: float,
    samples: Iterable[Sample],
    window: Window,
    slow: Collection[int] = (),
    **more: Any,
) -> Figures:
    """The figures of one run. Only events of the window have latencies; every reply read in its second half counts for the rate.

    `slow` are the numbers of the window's events that the model server makes slow on purpose.
    """
    first, repeated = first_of_each(samples)
    seconds = (window.ended_us - window.began_us) / 1e6
    events = window.end - window.first
    outputs = sum(1 for number in range(window.first, window.end) if number in first)
    known = latencies_ms(first, range(window.first, window.end))
    others = [number for number in range(window.first, window.end) if number not in slow] if slow else []
    # The second half: what piled up while the contestant was cold is worked off in the first.
    half_us = (window.began_us + window.ended_us) // 2
    in_half = sum(1 for sample in first.values() if sample.good and half_us <= sample.seen_us < window.ended_us)
    return Figures(
        contestant=contestant,
        scenario=scenario,
        offered_per_s=offered_per_s,
        seconds=seconds,
        events=events,
        outputs=outputs,
        missing=events - outputs,
        failed=outputs - len(known),
        repeated=repeated,
        sustained_per_s=in_half / (seconds / 2.0) if seconds > 0 else math.nan,
        p50_ms=percentile(known, 0.50, events),
        p95_ms=percentile(known, 0.95, events),
        p99_ms=percentile(known, 0.99, events),
        max_ms=percentile(known, 1.0, events),
        others_p95_ms=percentile(latencies_ms(first, others), 0.95, len(others)) if others else 0.0,
        **more,
    )


class SetAnswered(NamedTuple):
    """What came of a bounded set: outputs, those with a reply, how long it took, and the processor seconds of each part."""

    outputs: int
    replies: int
    seconds: float
    cpu_s: Mapping[str, float]


def set_figures(
    contestant: str, scenario: str, offered_per_s: float, events: int, found: SetAnswered, **more: Any
) -> Figures:
    """The figures of a bounded set, all of which is offered at once: its events have no latencies, its rate is over all of it."""
    return Figures(
        contestant=contestant,
        scenario=scenario,
        offered_per_s=offered_per_s,
        seconds=found.seconds,
        events=events,
        outputs=found.outputs,
        missing=max(0, events - found.outputs),
        failed=found.outputs - found.replies,
        repeated=max(0, found.outputs - events),
        sustained_per_s=found.replies / found.seconds if found.seconds > 0 else math.nan,
        p50_ms=math.nan,
        p95_ms=math.nan,
        p99_ms=math.nan,
        max_ms=math.nan,
        bounded=True,
        **more,
    )


class Summary(msgspec.Struct, frozen=True):
    """Several runs of the same: the median of each figure, and between which values it lay."""

    contestant: str
    scenario: str
    offered_per_s: float
    runs: int
    middle: Mapping[str, float]
    spread: Mapping[str, tuple[float, float]]


SUMMARIZED = (
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "max_ms",
    "others_p95_ms",
    "sustained_per_s",
    "cpu_ms_per_output",
    "requests_per_output",
    "missing",
    "failed",
    "repeated",
)


def summarize(runs: Sequence[Figures]) -> Summary:
    """The median and the spread of runs of the same contestant, scenario and rate. Raises ValueError without any."""
    if not runs:
        raise ValueError("There are no runs to summarize.")
    columns = {name: [float(getattr(run, name)) for run in runs] for name in SUMMARIZED}
    return Summary(
        runs[0].contestant,
        runs[0].scenario,
        runs[0].offered_per_s,
        len(runs),
        {name: median(values) for name, values in columns.items()},
        {name: (min(values), max(values)) for name, values in columns.items()},
    )
