"""The watermark behind the step waits for what is under way: a window is not closed while an event that belongs to it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apache_beam.utils.timestamp import Timestamp

from tests.flow import held
from tests.flow.doubles import PRISM, beam_options
from transforms.ask import holds, step
from transforms.remote.model_double import ModelDouble


@pytest.fixture
def slow() -> Iterator[ModelDouble]:
    with ModelDouble(0, latency_ms=10.0, faults=(held.SLOWLY,)) as server:
        yield server


@pytest.mark.prism
def test_a_window_waits_for_an_event_under_way(prism: str, slow: ModelDouble, tmp_path: Path) -> None:
    """An event whose call takes longer than its window lasts is in its window's group, with those that came with it."""
    groups = held.run(beam_options(PRISM, prism), slow.base_url, tmp_path / "out")
    assert held.ids(groups) == held.ALL
    (window,) = {group["window"] for group in groups if held.SLOW in group["ids"]}
    assert [len(group["ids"]) > 1 for group in groups if group["window"] == window] == [True]


def now(timer: Any, fire_us: int, hold_us: int, tag: str = "") -> None:
    holds.set_timer(timer, fire_us, max(hold_us, Timestamp.now().micros), tag)


@pytest.mark.prism
def test_without_the_hold_a_late_outcome_is_lost(
    prism: str, slow: ModelDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sibling: with a timer that holds the time at which it is set, the window closes and the outcome is dropped as late."""
    monkeypatch.setattr(step, "set_timer", now)
    groups = held.run(beam_options(PRISM, prism), slow.base_url, tmp_path / "out")
    # Others may be late with it: those that were under way when their window ended.
    assert held.SLOW not in held.ids(groups)
    assert set(held.ids(groups)) < set(held.ALL)
