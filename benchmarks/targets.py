"""The targets, and whether the published figures meet them: pure functions from results to a Markdown table.

A target names the figure it is about, the program whose result holds it, and the bound. The figures of the streams' run are made
here from its summaries; every other program publishes its own under these names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from benchmarks.figures import Summary
from benchmarks.plan import FLOOR

COMMANDS = {
    "streams": "scripts/bench",
    "client": "scripts/bench client",
    "wire": "scripts/bench wire",
    "policies": "scripts/bench policies",
    "checkpoints": "scripts/bench checkpoints",
    "in_flight": "scripts/bench in_flight",
}


class Target(msgspec.Struct, frozen=True):
    """`figure` of `program` must be `at` least or most `bound`. `says` is the target in words, `unit` the figure's."""

    says: str
    program: str
    figure: str
    at: Literal["least", "most"]
    bound: float
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether a figure meets it; one that is not a number does not."""
        return value >= self.bound if self.at == "least" else value <= self.bound


TARGETS = (
    Target("400/s: added p50 ≤ 60 ms", "streams", "added_p50_400_ms", "most", 60.0, "ms"),
    Target("400/s: added p99 ≤ 60 ms", "streams", "added_p99_400_ms", "most", 60.0, "ms"),
    Target(
        "sustained rate ≥ 0.8 of Flink's own operator's, highest rate", "streams", "of_java_rate", "least", 0.8, "×"
    ),
    Target("p50 level with it at the highest rate (≤ 1.1 times)", "streams", "of_java_p50", "most", 1.1, "×"),
    Target("p99 level with it at the highest rate (≤ 1.1 times)", "streams", "of_java_p99", "most", 1.1, "×"),
    Target("≥ 40 times less added p50 than PyFlink, 400/s", "streams", "pyflink_added_p50", "least", 40.0, "×"),
    Target(
        "≥ 100 times the rate of stock RunInference, each at its best",
        "streams",
        "of_runinference_rate",
        "least",
        100.0,
        "×",
    ),
    Target("1 % of calls at 10 s: rate down ≤ 3 %", "streams", "straggler_rate", "least", 0.97, "×"),
    Target(
        "1 % of calls at 10 s: p95 of the others unaffected (≤ 1.05 times)",
        "streams",
        "straggler_p95",
        "most",
        1.05,
        "×",
    ),
    Target("quota at half the load: ≥ 95 % of it used", "streams", "quota_goodput", "least", 0.95, "×"),
    Target("outage: ≤ 1.1 requests per event", "streams", "outage_requests", "most", 1.1, ""),
    Target("outage: no event without a reply", "streams", "outage_lost", "most", 0.0, "events"),
    Target("client ≤ 150 µs of CPU per request, 64 under way", "client", "client_us", "most", 150.0, "µs"),
    Target(
        "client ≤ 1.13 times aiohttp alone (150 µs where that takes 133), 64 under way",
        "client",
        "ratio",
        "most",
        1.13,
        "×",
    ),
    Target("10 000 calls in flight in one process: ≤ 20 threads", "in_flight", "threads", "most", 20.0, ""),
    Target("10 000 calls in flight in one process: ≤ 300 MB", "in_flight", "rss_mb", "most", 300.0, "MB"),
    Target("checkpoints, 60 s calls below the bound: p99 < 2 s", "checkpoints", "p99_s", "most", 2.0, "s"),
    Target("own limit ≥ 95 % of the best fixed one, healthy server", "policies", "healthy_share", "least", 0.95, "×"),
    Target("own limit ≥ 90 % of the best fixed one, limited server", "policies", "limited_share", "least", 0.90, "×"),
    Target("goodput ≥ 95 % of the quota, two worker processes", "policies", "quota_goodput", "least", 0.95, "×"),
    Target("≤ 0.5 % of answers are 429, two worker processes", "policies", "quota_429_share", "most", 0.005, ""),
    Target("hedging: p99 cut by ≥ 60 %, 5 % of calls 20 times slower", "policies", "hedge_p99_cut", "least", 0.60, ""),
    Target("hedging: ≤ 5 % extra requests", "policies", "hedge_extra", "most", 0.05, ""),
    Target("bad endpoint: ≥ 95 % of the traffic off it within 2 s", "policies", "ejected_share", "least", 0.95, ""),
    Target("nothing is sent into a Retry-After window", "policies", "inside_retry_after", "most", 0.0, ""),
    Target("outage in virtual time: ≤ 1.1 requests per event", "policies", "outage_requests", "most", 1.1, ""),
    Target("outage in virtual time: no event without a reply", "policies", "outage_lost", "most", 0.0, "events"),
    Target("a deadline closes every socket", "policies", "deadline_left_open", "most", 0.0, ""),
    Target("a deadline holds within 100 ms", "policies", "deadline_over_ms", "most", 100.0, "ms"),
    Target("one poison record in a batch of 64: ≤ 13 extra calls", "policies", "poison_extra_calls", "most", 13.0, ""),
    Target("one poison record in a batch of 64: 63 good results", "policies", "poison_good", "least", 63.0, ""),
)


def stream_figures(results: Sequence[Summary]) -> dict[str, float]:
    """What the targets ask of the streams' run; what did not run is left out."""
    by_place = {(row.scenario, row.offered_per_s, row.contestant): row.middle for row in results}
    found: dict[str, float] = {}
    steady = {rate for scenario, rate, _ in by_place if scenario == "steady"}
    _at_400(
        found, {name: row for (scenario, rate, name), row in by_place.items() if (scenario, rate) == ("steady", 400.0)}
    )
    both = [
        rate for rate in steady if ("steady", rate, "ours") in by_place and ("steady", rate, "java_async") in by_place
    ]
    if both:
        ours, java = (by_place["steady", max(both), name] for name in ("ours", "java_async"))
        found["of_java_rate"] = _ratio(ours["sustained_per_s"], java["sustained_per_s"])
        found["of_java_p50"] = _ratio(ours["p50_ms"], java["p50_ms"])
        found["of_java_p99"] = _ratio(ours["p99_ms"], java["p99_ms"])
    rates = {
        name: max(
            row["sustained_per_s"]
            for (scenario, _, named), row in by_place.items()
            if (scenario, named) == ("steady", name)
        )
        for scenario, _, name in by_place
        if scenario == "steady"
    }
    # Ours is bounded by the load, the other is not: the greatest of each counts.
    if {"ours", "runinference"} <= rates.keys():
        found["of_runinference_rate"] = _ratio(rates["ours"], rates["runinference"])
    for (scenario, rate, name), row in by_place.items():
        if name == "ours" and scenario in _FAULTS:
            found.update(_FAULTS[scenario](row, rate, by_place.get(("steady", rate, "ours"))))
    return found


def _at_400(found: dict[str, float], rows: Mapping[str, Mapping[str, float]]) -> None:
    if "ours" not in rows or FLOOR not in rows:
        return
    ours, floor = rows["ours"], rows[FLOOR]
    for name in ("p50", "p99"):
        found[f"added_{name}_400_ms"] = ours[f"{name}_ms"] - floor[f"{name}_ms"]
    if "pyflink_async" in rows:
        its = rows["pyflink_async"]["p50_ms"] - floor["p50_ms"]
        found["pyflink_added_p50"] = _ratio(its, found["added_p50_400_ms"])


Row = Mapping[str, float]


def _stragglers(row: Row, _: float, well: Row | None) -> dict[str, float]:
    if well is None:
        return {}
    return {
        "straggler_rate": _ratio(row["sustained_per_s"], well["sustained_per_s"]),
        "straggler_p95": _ratio(row["others_p95_ms"] or row["p95_ms"], well["p95_ms"]),
    }


def _quota(row: Row, rate: float, _: Row | None) -> dict[str, float]:
    return {"quota_goodput": _ratio(row["sustained_per_s"], rate / 2.0)}


def _outage(row: Row, _: float, __: Row | None) -> dict[str, float]:
    return {"outage_requests": row["requests_per_output"], "outage_lost": row["missing"] + row["failed"]}


_FAULTS = {"stragglers": _stragglers, "quota": _quota, "outage": _outage}


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 and math.isfinite(below) else math.nan


REPORTED = (
    ("checkpoints at the bound of 60 s calls, which hold the step back: p99", "checkpoints", "at_bound_p99_s", "s"),
)
"""Figures that have no target: what they say, their program, their name there, their unit."""


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown table of all targets, and of what is reported without one. `figures` are those of each program, by its name."""
    lines = ["| target | figure | met | printed by |", "|---|---:|---|---|"]
    for target in TARGETS:
        value = figures.get(target.program, {}).get(target.figure)
        shown, met = ("not measured", "–") if value is None else (_shown(value, target.unit), _word(target.met(value)))
        lines.append(f"| {target.says} | {shown} | {met} | `{COMMANDS[target.program]}` |")
    for says, program, figure, unit in REPORTED:
        value = figures.get(program, {}).get(figure)
        shown = "not measured" if value is None else _shown(value, unit)
        lines.append(f"| {says} | {shown} | no target | `{COMMANDS[program]}` |")
    return "\n".join(lines) + "\n"


def _word(met: bool) -> str:
    return "yes" if met else "**no**"


def _shown(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return "none" if math.isnan(value) else "grows"
    text = f"{value:,.0f}".replace(",", " ") if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()
