"""The client's numbers where a person looks for them: Flink's REST interface, its Prometheus reporter, the worker's own page."""

from __future__ import annotations

from functools import partial
from typing import Any

import apache_beam as beam
import pytest
import requests
from apache_beam.options.pipeline_options import PipelineOptions
from prometheus_client.parser import text_string_to_metric_families

from runners import flink
from runners.local.ports import Ports
from runners.local.stack import Stack
from tests.e2e import engine as shared
from tests.flow import doubles, reporting
from transforms.ask import AskModel
from transforms.remote.model_double import Fault, ModelDouble
from transforms.remote.prometheus import PORTS, WithPage

pytestmark = pytest.mark.e2e

COUNT = 40
HUNG = "s7"


def on_flink(stack: Stack, job: str) -> dict[str, float]:
    """Our metrics of a job on Flink's page, by name without the operator's; counters of subtasks are added up."""
    found: dict[str, float] = {}
    for vertex in requests.get(f"http://{stack.endpoints.flink}/jobs/{job}", timeout=10).json()["vertices"]:
        url = f"http://{stack.endpoints.flink}/jobs/{job}/vertices/{vertex['id']}/subtasks/metrics"
        ours = [one["id"] for one in requests.get(url, timeout=10).json() if ".farcall." in f".{one['id']}"]
        if not ours:
            continue
        values = requests.get(url, params={"get": ",".join(ours), "agg": "sum"}, timeout=10).json()
        for one in values:
            name = one["id"].rpartition("farcall.")[2]
            found[name] = found.get(name, 0) + one["sum"]
    return found


def page(port: int) -> dict[str, float]:
    """The samples of a page, by name and the label that tells them apart here; those that differ otherwise are added up."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text):
        for sample in family.samples:
            name = f"{sample.name} {sample.labels.get('kind', '')}".strip()
            found[name] = found.get(name, 0) + sample.value
    return found


def pages(first: int) -> list[dict[str, float]]:
    """The pages of the workers that have one."""
    found = []
    for port in range(first, first + PORTS):
        try:
            found.append(page(port))
        except requests.ConnectionError:
            continue
    return found


def test_a_running_job_shows_its_metrics_everywhere(engine: Stack, double: ModelDouble) -> None:
    """While a job runs, its counts are on Flink's page, in Flink's Prometheus reporter and on the worker's page, and agree."""
    double.set_faults(Fault("hang", id=HUNG))
    first = Ports.free().llm
    at = engine.endpoints
    # Without what lets a job over files end, its sources stay open after the last record.
    flags = flink.pinned_options(["--parallelism=1"], flink.FlinkEndpoints(at.job_server, at.workers))
    pipeline = beam.Pipeline(options=PipelineOptions(flags))
    items = (
        pipeline
        | beam.Create([f"s{number}" for number in range(COUNT)])
        | beam.Map(doubles.to_item).with_output_types(doubles.Item)
    )
    items | AskModel(
        doubles.model(double.base_url, timeout_s=60.0, deadline_s=60.0),
        doubles.ask,
        doubles.id_of,
        make_caller=WithPage(reporting.make, str(first)),
    )
    result = pipeline.run()
    try:
        job = shared.until("a running job", partial(running, engine))
        done = COUNT - 1
        shown = shared.until("Flink's page", partial(reached, on_flink, engine, job, "inference_outcomes_ok", done))
        assert shown["gen_ai_client_operation_duration_count"] == done
        assert shown["gen_ai_client_operation_duration_p50_ms"] > 10
        assert shown["answers"] == done

        ports = engine.place.ports
        name = "flink_taskmanager_job_task_operator_farcall_inference_outcomes_ok"
        reporter = shared.until("Flink's reporter", partial(reached, page, ports.metrics_taskmanager, name, done))
        assert reporter["flink_taskmanager_job_task_operator_farcall_gen_ai_client_operation_duration_p99_ms"] > 10

        (worker,) = pages(first)
        assert worker["inference_outcomes_total ok"] == done
        assert worker["inference_calls_in_flight"] == 1
        assert worker["gen_ai_client_operation_duration_seconds_count"] == done
    finally:
        double.set_faults()
        result.cancel()


def running(stack: Stack) -> str | None:
    """The id of the one job that runs, if one does."""
    jobs = requests.get(f"http://{stack.endpoints.flink}/jobs", timeout=10).json()["jobs"]
    return next((job["id"] for job in jobs if job["status"] == "RUNNING"), None)


def reached(read: Any, *arguments: Any) -> dict[str, float] | None:
    """What `read` gives once the metric that is named before last has the last value."""
    *where, name, value = arguments
    found: dict[str, float] = read(*where)
    return found if found.get(name) == value else None
