"""Turns of a step that is driven by hand: what leaves when, and whose bundle waits for whom."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runners import flink
from tests.flow import doubles
from tests.flow.by_hand import Runner
from tests.flow.doubles import Item
from transforms.ask.holds import AT_ONCE
from transforms.ask.turns import PATIENCE_S
from transforms.remote.client import Call
from transforms.remote.model_double import ModelDouble


@pytest.fixture
def runner(double: ModelDouble) -> Iterator[Runner]:
    made = Runner(double.base_url)
    yield made
    made.step.teardown()


def test_an_outcome_ahead_of_its_record_leaves_with_it(runner: Runner, double: ModelDouble) -> None:
    """A record whose early call has its outcome already goes on in the bundle that takes it: no timer is waited for."""
    runner.take("e1", 5.0)
    calls = runner.step._calls
    calls.start_early(b"s", "e2", Call(id="e2", question=doubles.ask(Item("e2")), deadline_ms=10**15))
    while calls.completed < 2:
        calls.wait_for_completion(calls.completed, timeout_s=1.0)
    out = runner.take("e2", 6.0)
    assert sorted(pair.value[0].id for pair in out) == ["e1", "e2"]
    assert double.stats().requests == 2


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
