"""The client's numbers as Beam metrics of a run."""

from __future__ import annotations

from functools import partial
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.metrics.execution import MetricsEnvironment

from runners import prism
from tests.flow import reporting
from tests.flow.doubles import PRISM, Item, ask, beam_options, id_of, model, to_item
from transforms import metrics
from transforms.ask import AskModel, calls, step
from transforms.remote.model_double import Fault, ModelDouble

# Beam's BundleBasedDirectRunner shows no counter of a bundle that a timer began, and its FnApiRunner fails a job whose timer in
# processing time is still set at the end, so these runs are on Prism.
pytestmark = pytest.mark.prism


@pytest.fixture
def runner(prism: str) -> dict[str, Any]:
    """The runner of a laptop that shows metrics, by name, and where it lies."""
    return {"runner": PRISM, "prism": prism}


def run(runner: dict[str, Any], double: ModelDouble, count: int, make_caller: Any) -> dict[str, int]:
    """Our Beam metrics of a run over so many records, counters and gauges, by name."""
    pipeline = beam.Pipeline(options=beam_options(**runner))
    ids = [f"e{number}" for number in range(count)]
    items = pipeline | beam.Create(ids) | beam.Map(to_item).with_output_types(Item)
    items | AskModel(model(double.base_url), ask, id_of, make_caller=make_caller)
    with prism.Failures() as failures:
        result = pipeline.run()
        failures.wait(result)
    found = result.metrics().query(MetricsFilter().with_namespace(metrics.NAMESPACE))
    counters = {one.key.metric.name: one.result for one in found["counters"]}
    return counters | {one.key.metric.name: one.result.value for one in found["gauges"]}


def test_every_call_is_counted_once(runner: dict[str, Any], double: ModelDouble) -> None:
    """The counts of a run are exact: each call, its outcome, its duration, its tokens; though many instances hand them over."""
    double.set_faults(*[Fault("status", status=400, id=f"e{number}") for number in range(7)])
    found = run(runner, double, 60, reporting.make)
    assert found["answers"] == 53
    assert found["inference_outcomes_ok"] == 53
    assert found["inference_outcomes_refused"] == 7
    assert found["gen_ai_client_operation_duration_count"] == 53
    assert found["gen_ai_client_operation_duration_refused_count"] == 7
    assert found["gen_ai_client_token_usage_output_count"] == 53
    assert found["gen_ai_client_token_usage_output_sum"] > 53


def test_quantiles_are_gauges_of_a_run(
    runner: dict[str, Any], double: ModelDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gauges of a run tell how long calls took, in the order of the quantiles."""
    monkeypatch.setattr(step, "BeamBridge", partial(metrics.BeamBridge, every_s=0.0))
    found = run(runner, double, 60, reporting.make)
    durations = [found[f"gen_ai_client_operation_duration_{name}_ms"] for name in ("p50", "p95", "p99")]
    assert durations == sorted(durations)
    assert durations[0] >= 1
    assert found["inference_calls_in_flight"] >= 0


def test_a_caller_without_telemetry_reports_nothing_more(runner: dict[str, Any], double: ModelDouble) -> None:
    """A double that reports nothing leaves the step's own counters as they are."""

    class Silent:
        def __init__(self, *arguments: Any) -> None:
            caller = reporting.make(*arguments)
            self.call, self.close = caller.call, caller.close

    assert set(run(runner, double, 5, Silent)) == {"requests", "answers"}


def test_a_bundle_carries_only_what_it_reports(
    runner: dict[str, Any], double: ModelDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beam sends what a step ever touched with each of its bundles; ours are taken out again before the next."""
    held: list[tuple[int, int]] = []
    start = metrics.BeamBridge.start_bundle

    def noting(self: metrics.BeamBridge) -> None:
        def ours() -> int:
            names = [key.metric_name.name for key in MetricsEnvironment.current_container().metrics]
            return sum(name.startswith(("inference", "gen_ai")) for name in names)

        before = ours()
        start(self)
        held.append((before, ours()))

    monkeypatch.setattr(metrics.BeamBridge, "start_bundle", noting)
    found = run(runner, double, 60, reporting.make)
    assert found["inference_outcomes_ok"] == 60
    assert {after for _, after in held} == {0}


def test_what_bundles_carry_is_forgotten_only_once_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sibling, on one instance: what was reported is in the container until the next bundle starts."""
    from apache_beam.metrics.execution import MetricsContainer

    from transforms.remote import names
    from transforms.remote.fakes import VirtualClock
    from transforms.remote.telemetry import Telemetry

    container = MetricsContainer("step")
    monkeypatch.setattr(MetricsEnvironment, "current_container", lambda: container)
    telemetry = Telemetry("answer")
    bridge = metrics.BeamBridge(telemetry, VirtualClock())
    telemetry.count(names.OUTCOMES, kind="ok")
    bridge.finish_bundle(idle=False)
    assert bridge._reported
    container.get_counter(bridge._metrics["counter", "inference_outcomes_ok"].metric_name).inc(1)
    container.get_counter(beam.metrics.metric.Metrics.counter("farcall", "answers").metric_name).inc(1)
    assert len(container.metrics) == 2
    bridge.start_bundle()
    assert [key.metric_name.name for key in container.metrics] == ["answers"]


@pytest.fixture(autouse=True)
def forget_clients() -> Any:
    """Each test has callers of its own."""
    before = set(calls._shared)
    yield
    assert not [step for step, shared in calls._shared.items() if step not in before and shared.users > 0]
