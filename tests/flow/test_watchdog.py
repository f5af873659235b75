"""A tick that is lost: the watchdog stands in for it. The step is driven by hand, as a runner that loses a timer would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.utils.timestamp import Timestamp

from tests.flow import doubles
from tests.flow.doubles import Item, model
from transforms.ask import step
from transforms.ask.calls import make_client
from transforms.coders import coder_of
from transforms.remote.model_double import ModelDouble


class Cell:
    value: bytes | None = None

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value


class Bag:
    def __init__(self) -> None:
        self.items: list[bytes] = []

    def read(self) -> list[bytes]:
        return list(self.items)

    def add(self, value: bytes) -> None:
        self.items.append(value)

    def clear(self) -> None:
        self.items.clear()


class Timer:
    """Keeps when it fires; `_input_timestamp` as Beam's own has it."""

    def __init__(self) -> None:
        self._input_timestamp = Timestamp(0)
        self.fires: Timestamp | None = None
        self.times_set = 0

    def set(self, at: Timestamp) -> None:
        self.fires, self.times_set = at, self.times_set + 1

    def clear(self) -> None:
        self.fires = None


class Runner:
    """State and timers of one shard, and one instance of the step at a time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.cell, self.bag = Cell(), Bag()
        self.tick, self.watchdog, self.end = Timer(), Timer(), Timer()
        self.begin("first")

    def begin(self, process: str) -> None:
        """A new instance, in another process where `process` is another."""
        self.step = step._Ask(
            step=f"{process} process of {self._url}",
            model=model(self._url),
            ask=doubles.ask,
            id_of=doubles.id_of,
            order_key_of=None,
            coder=coder_of(Item),
            tick_ms=20,
            listen_ms=0,
            max_pending=10,
            end_slice_s=None,
            make_caller=make_client,
        )
        self.step.setup()

    def take(self, name: str, at_s: float) -> list[Any]:
        """A bundle with one record."""
        self.step.start_bundle()
        timers = (self.tick, self.watchdog, self.end)
        return list(self.step.process((b"s", Item(name)), Timestamp(at_s), self.cell, self.bag, *timers))

    def fire(self, name: str) -> list[Any]:
        """A bundle with one timer."""
        self.step.start_bundle()
        return list(getattr(self.step, f"on_{name}")(b"s", self.cell, self.bag, self.tick, self.watchdog))

    def finish(self) -> list[Any]:
        """A bundle with the timer of the end."""
        self.step.start_bundle()
        return list(self.step.on_end(b"s", self.cell, self.bag, self.tick, self.watchdog, self.end))


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
