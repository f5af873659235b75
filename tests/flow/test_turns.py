"""Turns of a step that is driven by hand: what leaves when, and whose bundle waits for whom."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from apache_beam.utils.timestamp import Timestamp

from runners import flink
from tests.flow import doubles
from tests.flow.by_hand import Runner
from tests.flow.doubles import Item
from transforms.ask.calls import Early
from transforms.ask.holds import AT_ONCE
from transforms.ask.turns import PATIENCE_S
from transforms.remote.client import Call
from transforms.remote.model_double import ModelDouble


@pytest.fixture
def runner(double: ModelDouble) -> Iterator[Runner]:
    made = Runner(double.base_url)
    yield made
    made.step.teardown()


def start_early(runner: Runner, name: str, early: Early | None) -> int:
    """Starts a call for a record on its way; returns its ticket, once there is an outcome."""
    calls = runner.step._calls
    done = calls.completed
    ticket = calls.start_early(b"s", name, Call(id=name, question=doubles.ask(Item(name)), deadline_ms=10**15), early)
    while calls.completed < done + 1:
        calls.wait_for_completion(calls.completed, timeout_s=1.0)
    return ticket


def wait_for(runner: Runner) -> None:
    """Waits for an outcome that can leave."""
    assert runner.step._calls.wait_for_ready(b"s", (), timeout_s=60.0)


def test_an_outcome_ahead_of_its_record_leaves_with_it(runner: Runner, double: ModelDouble) -> None:
    """Where it may not leave ahead, an outcome goes on in the bundle that takes its record: no timer is waited for."""
    runner.take("e1", 5.0)
    wait_for(runner)
    ticket = start_early(runner, "e2", None)
    out = runner.take("e2", 6.0, ticket)
    assert sorted(pair.value[0].id for pair in out) == ["e1", "e2"]
    assert double.stats().requests == 2


def test_an_outcome_leaves_in_a_turn_before_its_record_arrives(runner: Runner, double: ModelDouble) -> None:
    """What a turn hands out ahead has its record, time and outcome; the record adds nothing when it comes, nor does the end wait."""
    runner.take("e1", 5.0)
    wait_for(runner)
    runner.fire("tick")
    ticket = start_early(runner, "e2", Early(Item("e2"), 6_000_000, 0))
    wait_for(runner)
    (out,) = runner.fire("tick")
    assert (out.value[0], out.timestamp) == (Item("e2"), Timestamp(6.0))
    assert runner.tick.fires is not None, "the record is still on its way"
    assert runner.take("e2", 6.0, ticket) == []
    assert runner.fire("tick") == []
    assert runner.finish() == []
    assert (runner.tick.fires, double.stats().requests) == (None, 2)


def test_an_outcome_that_is_there_leaves_ahead_when_its_record_comes(runner: Runner) -> None:
    """A record that finds its outcome leaves at once, and is not written into state."""
    runner.take("e1", 5.0)
    wait_for(runner)
    assert [pair.value[0].id for pair in runner.fire("tick")] == ["e1"]
    ticket = start_early(runner, "e2", Early(Item("e2"), 6_000_000, 0))
    wait_for(runner)
    assert [pair.value[0].id for pair in runner.take("e2", 6.0, ticket)] == ["e2"]
    assert list(runner.bag.read()) == []


def test_no_timer_is_set_after_the_end_for_what_is_on_its_way(runner: Runner) -> None:
    """Once the timer of the end has fired, a late turn sets no other: nobody would clear it, and Flink would wait for it for ever."""
    runner.take("e1", 5.0)
    assert [pair.value[0].id for pair in runner.finish()] == ["e1"]
    start_early(runner, "lost", Early(Item("lost"), 6_000_000, 0))
    wait_for(runner)
    assert [pair.value[0].id for pair in runner.fire("tick")] == ["lost"]
    assert runner.tick.fires is None


def test_a_timer_that_listens_is_longer_than_the_buffer_on_flink(runner: Runner) -> None:
    """The timer of a turn goes to the worker at once, and is cleared by the name it has; the watchdog's may wait."""
    assert len(AT_ONCE) > flink.DATA_BUFFER_SIZE_LIMIT_BYTES
    runner.take("e1", 5.0)
    assert (runner.tick.tag, runner.watchdog.tag) == (AT_ONCE, "")
    runner.finish()
    assert runner.tick.fires is None


def test_patience_lasts_as_long_as_a_bundle_on_flink() -> None:
    """A shard that had its turn is given way to when Flink ends the bundle, and not before."""
    assert PATIENCE_S * 1_000 == flink.MAX_BUNDLE_TIME_MS
