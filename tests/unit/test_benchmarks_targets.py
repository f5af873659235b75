"""The page: targets held against figures, results that come back from JSON, and the tables of all benchmarks."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from benchmarks import client, document, published, report, targets
from benchmarks.figures import Figures, SetAnswered, set_figures, summarize
from benchmarks.plan import VARIANTS


def run(
    contestant: str, p50_ms: float = 300.0, scenario: str = "steady", rate: float = 400.0, **more: float
) -> Figures:
    facts = {
        "contestant": contestant,
        "scenario": scenario,
        "offered_per_s": rate,
        "seconds": 30.0,
        "events": 100,
        "outputs": 100,
        "missing": 0,
        "failed": 0,
        "repeated": 0,
        "sustained_per_s": rate,
        "p50_ms": p50_ms,
        "p95_ms": 2 * p50_ms,
        "p99_ms": 3 * p50_ms,
        "max_ms": 4 * p50_ms,
        "requests_per_output": 1.0,
    }
    return msgspec.convert({**facts, **more}, Figures)


def found(*runs: Figures) -> dict[str, float]:
    return targets.stream_figures(report.summaries(runs))


@pytest.mark.parametrize("at", ["least", "most"])
def test_a_bound_itself_meets_its_target(at: str) -> None:
    """A target is met at its bound, and not on the wrong side of it; what is not a number never meets one."""
    target = msgspec.convert({"says": "", "program": "client", "figure": "x", "at": at, "bound": 1.0}, targets.Target)
    beyond = 0.9 if at == "least" else 1.1
    assert target.met(1.0)
    assert not target.met(beyond)
    assert not target.met(math.nan)


def test_every_target_names_a_program_and_every_figure_is_named_once() -> None:
    """Each target is printed by a known command, and no two are about the same figure."""
    assert {target.program for target in targets.TARGETS} <= set(targets.COMMANDS)
    named = [(target.program, target.figure) for target in targets.TARGETS]
    assert len(named) == len(set(named))


def test_added_latency_is_over_the_floor_at_400() -> None:
    """Added p50 and the ratios to the peers come from the runs at 400/s."""
    figures = found(
        run("floor", 200.0), run("ours", 250.0), run("pyflink_async", 2_200.0), run("runinference", sustained_per_s=8.0)
    )
    assert figures["added_p50_400_ms"] == 50.0
    assert figures["added_p99_400_ms"] == 150.0
    assert figures["pyflink_added_p50"] == 40.0
    assert figures["of_runinference_rate"] == 50.0
    more = found(run("ours"), run("ours", rate=800.0), run("runinference", sustained_per_s=8.0))
    assert more["of_runinference_rate"] == 100.0


def test_the_bar_is_compared_at_the_highest_rate_of_both() -> None:
    """Against Flink's own operator the highest rate counts at which both ran."""
    figures = found(
        run("ours", rate=400.0),
        run("java_async", rate=400.0),
        run("ours", 600.0, rate=800.0),
        run("java_async", rate=800.0),
    )
    assert figures["of_java_p50"] == 2.0
    assert found(run("ours", 600.0, rate=800.0), run("ours"), run("java_async"))["of_java_p50"] == 1.0


def test_faults_are_compared_with_what_they_should_be() -> None:
    """Stragglers with the steady run at the same rate, the quota with half of the load, the outage with one request an event."""
    figures = found(
        run("ours", rate=200.0),
        run("ours", 330.0, "stragglers", 200.0, sustained_per_s=190.0),
        run("ours", scenario="quota", rate=200.0, sustained_per_s=96.0),
        run("ours", scenario="outage", rate=200.0, requests_per_output=1.05, failed=1, missing=2),
    )
    assert figures["straggler_rate"] == 0.95
    assert figures["straggler_p95"] == pytest.approx(1.1)
    others = run("ours", 330.0, "stragglers", 200.0, others_p95_ms=630.0)
    assert found(run("ours", rate=200.0), others)["straggler_p95"] == pytest.approx(1.05), (
        "of the others, where it is known"
    )
    assert figures["quota_goodput"] == 0.96
    assert (figures["outage_requests"], figures["outage_lost"]) == (1.05, 3)


def test_the_table_says_met_not_met_and_not_measured() -> None:
    """A figure within its bound is met, one beyond is not, and one that nobody published is not measured."""
    shown = targets.table({"client": {"client_us": 120.0}, "streams": {"added_p50_400_ms": 160.0}}).splitlines()
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in shown}
    assert "| 120 µs | yes | `scripts/bench client` |" in lines["client ≤ 150 µs of CPU per request, 64 under way"]
    assert "| 160 ms | **no** |" in lines["400/s: added p50 ≤ 60 ms"]
    assert "not measured | – |" in lines["400/s: added p99 ≤ 60 ms"]


def test_what_has_no_target_is_reported() -> None:
    """The table ends with figures that are asked for without a bound."""
    shown = targets.table({"checkpoints": {"at_bound_p99_s": 21.1}}).splitlines()[-1]
    assert shown.endswith("| 21.1 s | no target | `scripts/bench checkpoints` |")


def test_a_bounded_set_has_a_rate_and_no_latency() -> None:
    """Its rate is over all of it, and its latencies are not shown as endless."""
    figures = set_figures("ray_data", "steady", 400.0, 2_000, SetAnswered(2_000, 1_990, 10.0, {}))
    assert (figures.sustained_per_s, figures.failed, figures.missing) == (199.0, 10, 0)
    row = report.tables([summarize([figures])]).splitlines()[-1]
    assert row.split(" | ")[2] == "–"


def test_runs_come_back_from_json_as_they_were(tmp_path: Path) -> None:
    """What grows is infinite again, and a bounded set has no latency again, though JSON knows neither."""
    grows = run("peer", math.inf)
    bounded = set_figures("ray_data", "steady", 400.0, 10, SetAnswered(10, 10, 1.0, {}))
    published.write("streams", published.result("scripts/bench", {}, runs=[grows, bounded]), tmp_path)
    first, second = (document.figures_of(one) for one in published.read("streams", tmp_path)["runs"])
    assert first == grows
    assert math.isnan(second.p50_ms)


def test_what_is_published_stays_until_it_is_done_again() -> None:
    """Runs of the same scenario, rate and contestant are replaced, others stay; so do failures, until tried again."""
    one, other = ({"contestant": name, "scenario": "steady", "offered_per_s": 400.0} for name in ("ours", "peer"))
    old = {
        "command": "a",
        "runs": [one, one, other],
        "failures": ["x, steady, 400/s: broke", "ours, steady, 50/s: at /s"],
    }
    new = {"command": "b", "runs": [{**one, "new": True}], "failures": ["x, steady, 400/s: broke again"]}
    found = document.merged(old, new)
    assert found["runs"] == [other, {**one, "new": True}]
    assert found["failures"] == ["ours, steady, 50/s: at /s", "x, steady, 400/s: broke again"]
    assert found["command"] == "a`, `b"
    assert document.merged({}, new)["runs"] == new["runs"]
    assert document.merged({**old, "runs": [one]}, new)["command"] == "b"


def test_the_page_is_made_of_what_is_published_alone() -> None:
    """Without results there is the table of targets, nothing measured; with a client's result its section is there."""
    empty = document.text({})
    assert empty.count("not measured") == len(targets.TARGETS) + len(targets.REPORTED)
    by_load = {"64": client.figures([100.0, 120.0], [150.0, 150.0])}
    whole = document.text(
        {"client": published.result("scripts/bench client", by_load["64"], by_load=by_load, rounds=2)}
    )
    assert "## The client beside plain aiohttp" in whole
    assert "| 64 | 110 (100–120) | 150 (150–150) | 1.38 (1.25–1.50) |" in whole


def test_a_variant_stands_under_the_steady_run_and_over_the_floor() -> None:
    """The table of variants begins with what the steady run has, and a larger record is held against its own floor."""
    larger = next(variant for variant in VARIANTS if variant.padding_bytes)
    runs = [
        run("floor", 200.0),
        run("ours", 240.0),
        run("floor", 210.0, larger.name),
        run("ours", 300.0, larger.name),
        run("ours", 280.0, "parallelism: 4"),
    ]
    rows = [line.split(" | ") for line in report.scaling_table(report.summaries(runs)).splitlines()[2:]]
    shown = [(row[0].removeprefix("| "), row[2], row[5]) for row in rows]
    assert shown == [
        ("parallelism", "2", "40"),
        ("parallelism", "4", "80"),
        ("text of an event", "77 bytes", "40"),
        ("text of an event", larger.value, "90"),
    ]
    assert "parallelism" not in report.tables(report.summaries(runs))
