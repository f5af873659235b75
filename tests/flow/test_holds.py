"""The watermark behind the step waits for what is under way: a window is not closed while an event that belongs to it is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import Timestamp

from runners.prism import Failures
from tests.flow import doubles
from tests.flow.doubles import Item, beam_options, model, read_lines
from transforms.ask import AskModel, holds, step
from transforms.remote.model_double import Fault, ModelDouble

EVENTS = 40
EVERY_S = 0.1
SLOW = "e3"


class Number(beam.DoFn):  # type: ignore[misc]
    """Names each event by the time it is due."""

    def __init__(self, began: Timestamp) -> None:
        self._began = began

    def process(self, _: Any, timestamp: Any = beam.DoFn.TimestampParam) -> Iterable[Item]:
        yield Item(f"e{round(float(timestamp - self._began) / EVERY_S)}")


class Windows(beam.DoFn):  # type: ignore[misc]
    """Writes each group with its window."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def process(self, group: Any, window: Any = beam.DoFn.WindowParam) -> Iterable[None]:
        with open(self._path, "a") as file:
            file.write(json.dumps({"window": str(window), "ids": sorted(group[1])}) + "\n")
        return ()


def to_pair(answered: Any) -> tuple[bytes, str]:
    return b"all", answered[0].id


def run(prism: str, double: ModelDouble, out: Path) -> list[dict[str, Any]]:
    """Events every 100 ms, all but one answered soon, grouped by the second of their event time."""
    began = Timestamp.now() + 1
    pipeline = beam.Pipeline(options=beam_options(doubles.PRISM, prism))
    items = (
        pipeline
        | PeriodicImpulse(began, began + EVENTS * EVERY_S, EVERY_S)
        | beam.ParDo(Number(began)).with_output_types(Item)
        | beam.WindowInto(FixedWindows(1))
    )
    asked = items | AskModel(model(double.base_url), doubles.ask, doubles.id_of)
    _ = (
        asked.answered
        | beam.Map(to_pair).with_output_types(tuple[bytes, str])
        | beam.GroupByKey()
        | beam.ParDo(Windows(out))
    )
    with Failures() as failures:
        failures.wait(pipeline.run())
    return read_lines(out)


@pytest.fixture
def slow() -> Iterable[ModelDouble]:
    # The first attempt takes 2.5 s and fails, the second is answered.
    with ModelDouble(0, latency_ms=10.0, faults=(Fault("status", 503, SLOW, (1,), after_ms=2_500.0),)) as server:
        yield server


@pytest.mark.prism
def test_a_window_waits_for_an_event_under_way(prism: str, slow: ModelDouble, tmp_path: Path) -> None:
    """An event whose call takes longer than its window lasts is in its window's group, with those that came with it."""
    groups = run(prism, slow, tmp_path / "out")
    assert sorted(one for group in groups for one in group["ids"]) == sorted(f"e{n}" for n in range(EVENTS))
    (window,) = {group["window"] for group in groups if SLOW in group["ids"]}
    assert [len(group["ids"]) > 1 for group in groups if group["window"] == window] == [True]


def now(timer: Any, fire_us: int, _hold_us: int) -> None:
    holds.set_timer(timer, fire_us, Timestamp.now().micros)


@pytest.mark.prism
def test_without_the_hold_a_late_outcome_is_lost(
    prism: str, slow: ModelDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sibling: with a timer that holds the watermark at the time it is set, the window closes and the outcome is dropped as late."""
    monkeypatch.setattr(step, "set_timer", now)
    groups = run(prism, slow, tmp_path / "out")
    assert sorted(one for group in groups for one in group["ids"]) == sorted(
        f"e{n}" for n in range(EVENTS) if f"e{n}" != SLOW
    )
