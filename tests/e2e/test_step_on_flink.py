"""The asynchronous step alone on Flink: failures after results were taken, and what each mechanism is for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from runners import flink
from runners.local.stack import Stack
from tests.e2e import broken
from tests.flow import doubles, held
from transforms.ask import step
from transforms.remote.model_double import ModelDouble

pytestmark = pytest.mark.e2e

IDS = [f"s{number}" for number in range(200)]


def options(engine: Stack, *more: str) -> PipelineOptions:
    at = engine.endpoints
    endpoints = flink.FlinkEndpoints(at.job_server, at.workers)
    return PipelineOptions(flink.pinned_options(flink.bounded_options(list(more)), endpoints))


def lay(fuses: Path) -> None:
    list(doubles.light(fuses, ["s5", "s77", "s140"]))


def clear(fuses: Path) -> int:
    """Removes what did not burn; returns how many those were."""
    left = list(fuses.iterdir())
    for fuse in left:
        fuse.unlink()
    return len(left)


@pytest.mark.parametrize("process_lives_ms", [0, 60_000])
def test_an_exception_after_results_were_taken(
    engine: Stack, double: ModelDouble, fuses: Path, tmp_path: Path, process_lives_ms: int
) -> None:
    """Flink restarts the job after the exception, also with the worker process alive, and every record comes out answered."""
    lay(fuses)
    settings = options(engine, f"--environment_cache_millis={process_lives_ms}")
    out = doubles.run_ask(settings, tmp_path / "out", IDS, doubles.model(double.base_url))
    assert clear(fuses) == 0
    assert set(doubles.ids_of(out)) == set(IDS)
    assert Counter(record["road"] for record in out) == {"answered": len(out)}


def test_memory_that_is_believed_loses_events(
    engine: Stack, double: ModelDouble, fuses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sibling: memory of the process that is never compared with state loses what the undone bundle took, and the job succeeds."""
    monkeypatch.setattr(step, "_Ask", broken.BelievesMemory)
    lay(fuses)
    settings = options(engine, "--environment_cache_millis=60000")
    out = doubles.run_ask(settings, tmp_path / "out", IDS, doubles.model(double.base_url))
    clear(fuses)
    assert set(doubles.ids_of(out)) != set(IDS)


def test_a_window_waits_for_an_event_under_way(engine: Stack, tmp_path: Path) -> None:
    """On Flink an event whose call takes longer than its window lasts is in its window's group."""
    with ModelDouble(0, latency_ms=10.0, faults=(held.SLOWLY,)) as slow:
        groups = held.run(options(engine), slow.base_url, tmp_path / "out", lead_s=8.0)
    assert held.ids(groups) == held.ALL
    (window,) = {group["window"] for group in groups if held.SLOW in group["ids"]}
    assert [len(group["ids"]) > 1 for group in groups if group["window"] == window] == [True]


def test_without_the_hold_a_late_outcome_is_lost(
    engine: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sibling: with the hold that Beam gives a timer set in its own callback, the outcome is dropped as late."""
    monkeypatch.setattr(step, "_Ask", broken.HoldsAsBeamDoes)
    with ModelDouble(0, latency_ms=10.0, faults=(held.SLOWLY,)) as slow:
        groups = held.run(options(engine), slow.base_url, tmp_path / "out", lead_s=8.0)
    # Others may be late with it: those that were under way when their window ended.
    assert held.SLOW not in held.ids(groups)
    assert set(held.ids(groups)) < set(held.ALL)
