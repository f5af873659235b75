"""The plan of the runs: who runs where, for how long, and that the quick one keeps its promise."""

from __future__ import annotations

import re

import pytest

from benchmarks import contestants, plan
from benchmarks.__main__ import _parser, _planned
from transforms.errors import SettingsError


def asked(*words: str) -> tuple[list[plan.Run], int]:
    return _planned(_parser().parse_args(list(words)))


def test_the_quick_run_takes_under_ten_minutes_and_measures_thirty_seconds() -> None:
    """--quick has the floor, ours and every peer at 400/s once, 30 s each, in less than 570 s with what lies around."""
    runs, rounds = asked("--quick")
    assert rounds == 1
    assert {run.contestant for run in runs} == {plan.FLOOR, *contestants.NAMES} - plan.QUICK_LEAVES_OUT
    assert {(run.scenario.name, run.scenario.schedule.rate) for run in runs} == {("steady", 400.0)}
    assert all(run.scenario.schedule.seconds >= 30.0 for run in runs)
    assert plan.about_s(runs) < 570.0


def test_the_full_run_has_every_scenario_three_times() -> None:
    """Without a word all rates, faults and variants are in, and every contestant is measured somewhere."""
    runs, rounds = asked()
    assert rounds == 3
    names = {run.scenario.name for run in runs}
    assert names == {"steady", "stragglers", "quota", "outage", *(variant.name for variant in plan.VARIANTS)}
    assert {run.contestant for run in runs} == {plan.FLOOR, *contestants.NAMES}
    assert {run.scenario.schedule.rate for run in runs if run.scenario.name == "steady"} == set(plan.FULL_RATES)


def test_what_has_a_jvm_is_warmed_for_25_seconds() -> None:
    """Ours and Flink's operator get the long warm-up, the floor the short one, and a given one goes for all."""
    runs, _ = asked("--quick")
    warm_s = {run.contestant: run.scenario.schedule.warm_s for run in runs}
    assert warm_s["ours"] == warm_s["java_async"] == warm_s["pyflink_async"] == 25.0
    assert warm_s[plan.FLOOR] == plan.SHORT_WARM_S
    runs, _ = asked("--quick", "--warm_s=3")
    assert {run.scenario.schedule.warm_s for run in runs} == {3.0}


@pytest.mark.parametrize(("rates", "alone"), [("100,400,800", 400.0), ("50,100", 50.0)])
def test_those_far_below_every_rate_run_at_one(rates: str, alone: float) -> None:
    """The slow ones run at 400/s where that is asked for, else at the first rate, and nowhere else."""
    runs, _ = asked(f"--rate={rates}", "--scenarios=steady")
    for name in plan.FALL_BEHIND | plan.BOUNDED:
        assert [run.scenario.schedule.rate for run in runs if run.contestant == name] == [alone]


def test_faults_are_for_the_floor_ours_and_the_bar_alone() -> None:
    """Without --only the peers do not run under faults; with it they do."""
    runs, _ = asked("--scenarios=quota", "--rate=400")
    assert [run.contestant for run in runs] == [plan.FLOOR, "ours", "java_async"]
    runs, _ = asked("--scenarios=quota", "--rate=400", "--only=pyflink_async")
    assert [run.contestant for run in runs] == [plan.FLOOR, "pyflink_async"]


def test_the_quota_is_half_of_the_load_and_the_outage_lies_in_it() -> None:
    """The storm's limit is half of what is offered; the outage begins after the warm-up and ends before the load does."""
    runs, _ = asked("--scenarios=quota,outage", "--rate=200", "--only=ours")
    for run in runs:
        scenario, schedule = run.scenario, run.scenario.schedule
        if scenario.name == "quota":
            assert scenario.profile.quota_per_s == 100.0
        else:
            begin_s, end_s = scenario.profile.outage_at_s, scenario.profile.outage_at_s + scenario.profile.outage_for_s
            assert schedule.warm_s < begin_s < end_s < schedule.warm_s + schedule.seconds


def test_a_variant_changes_its_own_contestants_alone() -> None:
    """Settings and flags of a variant reach the contestant they are for, and an unnamed one does not run in it."""
    runs, _ = asked("--scenarios=scaling", "--rate=400")
    by_place = {(run.scenario.name, run.contestant): run for run in runs}
    assert by_place["parallelism: 4", "ours"].beam == ("--parallelism=4",)
    assert by_place["parallelism: 4", "java_async"].settings == {"parallelism": 4}
    assert by_place["text of an event: 10000 bytes", plan.FLOOR].scenario.padding_bytes == 10_000
    assert ("worker processes: 2", "java_async") not in by_place


@pytest.mark.parametrize("wrong", ["nothing", "steady,nothing"])
def test_an_unknown_scenario_is_refused_with_those_there_are(wrong: str) -> None:
    """A scenario that there is not is named beside all that there are."""
    with pytest.raises(SettingsError, match=re.escape(", ".join(plan.SCENARIOS))):
        asked(f"--scenarios={wrong}")
