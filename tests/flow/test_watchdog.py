"""A tick that is lost: the watchdog stands in for it. The step is driven by hand, as a runner that loses a timer would."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import pytest
from apache_beam.utils.timestamp import Timestamp

from tests.flow.by_hand import Runner, Timer
from transforms.ask import step
from transforms.remote.model_double import ModelDouble


@pytest.fixture
def runner(double: ModelDouble) -> Iterator[Runner]:
    made = Runner(double.base_url)
    yield made
    made.step.teardown()


def test_the_watchdog_stays_ahead_of_the_ticks(runner: Runner) -> None:
    """It is set once for many ticks, seconds ahead of each, and holds no watermark; the end takes it away."""
    runner.take("e1", 5.0)
    for _ in range(10):
        runner.take("e2", 6.0)
        runner.fire("tick")
    assert runner.watchdog.times_set == 1
    assert runner.tick.fires is not None
    assert runner.watchdog.fires is not None
    assert runner.watchdog.fires - runner.tick.fires > step.WATCHDOG_US / 2e6
    assert runner.watchdog._input_timestamp == beam.transforms.window.GlobalWindow().max_timestamp()
    runner.finish()
    assert (runner.tick.fires, runner.watchdog.fires) == (None, None)


def test_a_lost_tick_is_made_up_for(runner: Runner, double: ModelDouble) -> None:
    """After a restore in another process without its tick, the watchdog calls again, sets a tick and hands out."""
    runner.take("e1", 5.0)
    double.wait_until(lambda stats: stats.requests == 1)
    runner.tick = Timer()
    runner.step.teardown()
    runner.begin("second")
    assert runner.fire("watchdog") == []
    assert runner.tick.fires is not None
    double.wait_until(lambda stats: stats.answered == 2)
    out = runner.finish()
    assert [(pair.value[0].id, pair.value[1].attempts) for pair in out] == [("e1", 2)]


def test_after_the_end_the_timer_of_the_end_is_set_again(runner: Runner) -> None:
    """A job that goes on after the end of its input, as one restored from a savepoint does, waits at its next end too."""
    runner.take("e1", 5.0)
    assert len(runner.finish()) == 1
    runner.end = Timer()
    runner.take("e2", 6.0)
    assert runner.end.times_set == 1


def test_the_tick_holds_the_earliest_event_time(runner: Runner) -> None:
    """The tick holds the watermark at the earliest event time under way, and a record that is earlier lowers it, in place."""
    runner.take("e1", 50.0)
    fires = runner.tick.fires
    runner.take("e2", 60.0)
    assert (runner.tick.times_set, runner.tick._input_timestamp) == (1, Timestamp(50))
    runner.take("e3", 40.0)
    assert (runner.tick.fires, runner.tick._input_timestamp) == (fires, Timestamp(40))


def test_an_end_that_came_early_is_set_again(runner: Runner, double: ModelDouble) -> None:
    """Where the end fires though records are still to come, the next one sets it again, and it waits for that one too."""
    runner.take("e1", 5.0)
    assert [pair.value[0].id for pair in runner.finish()] == ["e1"]
    runner.take("e2", 6.0)
    assert runner.end.times_set == 2
    assert [pair.value[0].id for pair in runner.finish()] == ["e2"]
