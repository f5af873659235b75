"""Bundles without the thread that samples execution times."""

from __future__ import annotations

import importlib.util
import threading
from types import ModuleType

import pytest
from apache_beam.utils.counters import CounterFactory

from transforms import execution_times
from transforms.execution_times import end_without_sampling


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Beam's module, loaded anew, as it is before a step was set up in this process."""
    spec = importlib.util.find_spec("apache_beam.runners.worker.statesampler")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(execution_times, "statesampler", module)
    return module


def test_a_bundle_starts_no_thread(sampling: ModuleType) -> None:
    """Once it is in place bundles begin and end without a thread, and metrics are counted for the step that runs, as before."""
    end_without_sampling()
    end_without_sampling()
    sampler = sampling.StateSampler("bundle", CounterFactory())
    before = threading.active_count()
    for _ in range(2):
        sampler.start()
        assert threading.active_count() == before
        assert sampling.get_current_tracker() is sampler
        assert (sampler.started, sampler.finished) == (True, False)
        sampler.stop_if_still_running()
        assert sampling.get_current_tracker() is None
        assert sampler.finished
        sampler.reset()


def test_a_thread_that_runs_already_is_ended(sampling: ModuleType) -> None:
    """A bundle that began before it was in place ends with its thread; the next one of the same kind has none."""
    sampler = sampling.StateSampler("bundle", CounterFactory())
    before = threading.active_count()
    sampler.start()
    assert threading.active_count() == before + 1
    end_without_sampling()
    sampler.stop_if_still_running()
    assert threading.active_count() == before
    sampler.reset()
    sampler.start()
    assert threading.active_count() == before
    sampler.stop_if_still_running()
