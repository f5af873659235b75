"""The figures of a run: missing events count, pile-ups do not flatter, the sender's delay is not hidden."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from benchmarks import load, records, report
from benchmarks.figures import Figures, Sample, Window, figures, percentile, summarize
from benchmarks.load import Schedule

WINDOW = Window(first=10, end=110, began_us=1_000_000, ended_us=2_000_000)


def samples(latency_ms: float = 200.0, numbers: range = range(110)) -> list[Sample]:
    """Outputs of events that were due every 10 ms from 0.9 s on."""
    due = {number: 900_000 + number * 10_000 for number in numbers}
    return [Sample(number, at, round(at + latency_ms * 1_000), 1) for number, at in due.items()]


def made(found: list[Sample], contestant: str = "ours", rate: float = 100.0) -> Figures:
    return figures(contestant, "steady", rate, found, WINDOW)


@pytest.mark.parametrize("seed", range(50))
def test_a_percentile_is_not_exceeded_by_its_share(seed: int) -> None:
    """At least the share of all events lies at or below the percentile, and fewer would with the next smaller one."""
    chance = random.Random(seed)
    ordered = sorted(chance.random() for _ in range(chance.randint(1, 300)))
    for share in (0.5, 0.95, 0.99, 1.0):
        value = percentile(ordered, share, len(ordered))
        assert sum(each <= value for each in ordered) >= share * len(ordered)
        assert sum(each < value for each in ordered) < share * len(ordered)


def test_missing_events_are_infinitely_late() -> None:
    """With 2 % of the outputs missing the median stands, and the 99th percentile has no end."""
    run = made(samples(numbers=range(108)))
    assert (run.missing, run.outputs) == (2, 98)
    assert run.p50_ms == 200.0
    assert math.isinf(run.p99_ms)


def test_percentiles_of_what_arrived_alone_would_hide_the_loss() -> None:
    """The sibling: over the outputs that came, the same run looks perfect."""
    known = [200.0] * 98
    assert percentile(known, 0.99, len(known)) == 200.0


def test_second_outputs_are_counted_and_change_no_latency() -> None:
    """An output that comes twice is repeated once, and its first time counts."""
    again = [Sample(number, due, seen + 5_000_000, good) for number, due, seen, good in samples()]
    run = made(samples() + again)
    assert run.repeated == 110
    assert run.max_ms == 200.0


def test_events_of_the_warm_up_have_no_latency_that_counts() -> None:
    """Outputs of events before the window may be as late as they like."""
    late = [Sample(number, due, due + 9_000_000 if number < 10 else seen, 1) for number, due, seen, _ in samples()]
    assert made(late).max_ms == 200.0


def test_the_sustained_rate_is_that_of_the_second_half() -> None:
    """What piled up before and leaves at the window's begin does not count as throughput."""
    pile = [Sample(1_000 + number, 0, 1_100_000, 1) for number in range(5_000)]
    assert made(samples() + pile).sustained_per_s == pytest.approx(100.0)


def test_outputs_without_a_reply_are_failures() -> None:
    """An output that carries an error is an outcome and a failure."""
    failed = [Sample(number, due, seen, int(number % 2)) for number, due, seen, _ in samples()]
    assert (made(failed).failed, made(failed).missing) == (50, 0)


def test_refusals_are_neither_fast_replies_nor_throughput() -> None:
    """A contestant that refuses three quarters at once has no median, and a quarter of the rate."""
    refused = [
        Sample(number, due, seen if number % 4 == 0 else due + 1_000, int(number % 4 == 0))
        for number, due, seen, _ in samples()
    ]
    run = made(refused)
    assert math.isinf(run.p50_ms)
    assert run.sustained_per_s == pytest.approx(25.0, abs=2.0)


def test_with_refusals_taken_for_replies_the_same_run_looks_fast() -> None:
    """The sibling: where every output counts as a reply, the median is a millisecond."""
    taken = [Sample(number, due, seen if number % 4 == 0 else due + 1_000, 1) for number, due, seen, _ in samples()]
    assert made(taken).p50_ms == 1.0


def test_the_summary_is_the_median_and_tells_the_spread() -> None:
    """Three runs give their median and their extremes."""
    summary = summarize([made(samples(latency)) for latency in (300.0, 100.0, 200.0)])
    assert summary.middle["p50_ms"] == 200.0
    assert summary.spread["p50_ms"] == (100.0, 300.0)


def test_no_runs_have_no_summary() -> None:
    """A summary of nothing is refused."""
    with pytest.raises(ValueError, match="no runs"):
        summarize([])


@pytest.mark.parametrize("seed", range(20))
def test_a_poisson_load_has_its_rate_and_is_the_same_for_all(seed: int) -> None:
    """The gaps of a seed are always the same, and their mean is that of the rate."""
    schedule = Schedule(rate=200.0, warm_s=5.0, seconds=20.0, poisson=True, seed=seed)
    at_s = list(schedule.due_s())
    assert at_s == list(schedule.due_s()) == sorted(at_s)
    assert len(at_s) == schedule.count == 5_000
    assert at_s[-1] == pytest.approx(25.0, rel=0.06)


def test_an_equal_load_is_due_at_equal_distances() -> None:
    """Event n is due n gaps after the first, whatever the rate."""
    assert list(load.due_s(4.0, 4, poisson=False, seed=0)) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("padding", [0, 100, 5_000])
def test_events_and_outputs_come_back_as_they_were(padding: int) -> None:
    """Id, time and question survive, and the question begins with the id and is as long as asked."""
    event = records.read_event(records.event("q17", 123, padding))
    assert (event.id, event.due_us, event.text.split()[0]) == ("q17", 123, "q17")
    assert len(event.text) >= padding
    assert records.read_output(records.output("q17", 123, reply="yes")) == ("q17", 123, 1)
    assert records.read_output(records.output("q17", 123, error="deadline")) == ("q17", 123, 0)
    assert records.number_of(records.id_of(17)) == 17


def test_samples_come_back_from_their_file(tmp_path: Path) -> None:
    """What the reader wrote is what the rig reads."""
    load.write_samples(tmp_path / "one", samples())
    assert load.read_samples(tmp_path / "one") == samples()


def test_the_tables_show_what_is_added_over_the_floor() -> None:
    """Added latency is the difference of the medians; what has no end is said to grow."""
    runs = [made(samples(), "floor"), made(samples(240.0)), made([], "peer")]
    shown = report.tables(report.summaries(runs)).splitlines()
    ours, peer = (next(line for line in shown if line.startswith(f"| {name} ")) for name in ("ours", "peer"))
    assert ours.split(" | ")[5] == "40"
    assert peer.split(" | ")[2] == "grows"
    assert "peer" in report.ratios(report.summaries(runs))


def test_the_plot_has_a_line_for_each_contestant() -> None:
    """Each contestant with finite figures is drawn, one without any is not."""
    latencies = (("floor", 200.0), ("ours", 240.0))
    runs = [made(samples(ms), name, rate) for name, ms in latencies for rate in (100.0, 400.0)]
    drawn = report.plot(report.summaries([*runs, made([], "peer")]), "p50_ms")
    assert drawn.count("<polyline") == 2
    assert "peer" not in drawn


def test_the_others_of_stragglers_have_a_percentile_of_their_own() -> None:
    """What the server makes slow on purpose is not in the percentile of the others, where a missing event still counts."""
    slow = {20, 21, 22, 23, 24, 25}
    found = [Sample(number, due, due + 9_000_000 if number in slow else seen, 1) for number, due, seen, _ in samples()]
    known = figures("ours", "stragglers", 100.0, found, WINDOW, slow)
    assert (known.p95_ms, known.others_p95_ms) == (9_000.0, 200.0)
    lost = [sample for sample in found if sample.number in slow or sample.number > 40]
    assert figures("ours", "stragglers", 100.0, lost, WINDOW, slow).others_p95_ms == math.inf
    assert made(samples()).others_p95_ms == 0.0
