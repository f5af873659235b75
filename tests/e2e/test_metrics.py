"""The client's numbers where a person looks for them: Flink's REST interface, its Prometheus reporter, the worker's own page."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import apache_beam as beam
import pytest
import requests
from apache_beam.io.flink.flink_streaming_impulse_source import FlinkStreamingImpulseSource
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
# Before it stands the operator's name; dots within a metric's own name are underscores there.
OURS = re.compile(r"^(?:.*\.)?farcall[._]")


def on_flink(stack: Stack, job: str) -> dict[str, float]:
    """Our metrics of a job on Flink's page, by name without the operator's; counters of subtasks are added up."""
    found: dict[str, float] = {}
    for vertex in requests.get(f"http://{stack.endpoints.flink}/jobs/{job}", timeout=10).json()["vertices"]:
        url = f"http://{stack.endpoints.flink}/jobs/{job}/vertices/{vertex['id']}/subtasks/metrics"
        ours = [one["id"] for one in requests.get(url, timeout=10).json() if OURS.search(one["id"])]
        if not ours:
            continue
        values = requests.get(url, params={"get": ",".join(ours), "agg": "sum"}, timeout=10).json()
        for one in values:
            name = OURS.sub("", one["id"])
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
    # A stream without an end: at the end of its input the step waits in one bundle, which shows nothing before it is over.
    flags = flink.pinned_options(["--parallelism=1", "--streaming"], flink.FlinkEndpoints(at.job_server, at.workers))
    pipeline = beam.Pipeline(options=PipelineOptions(flags))
    items = (
        pipeline
        | FlinkStreamingImpulseSource().set_interval_ms(20)
        | beam.ParDo(reporting.FirstItems(COUNT)).with_output_types(doubles.Item)
    )
    items | AskModel(
        doubles.model(double.base_url, timeout_s=300.0, deadline_s=300.0),
        doubles.ask,
        doubles.id_of,
        make_caller=WithPage(reporting.make, str(first)),
    )
    before = shared.jobs(engine)
    pipeline.run()
    try:
        job = shared.until("a running job", partial(running, engine))
        done = COUNT - 1
        reached(on_flink, engine, job, name="answers")
        shown = reached(on_flink, engine, job, name="inference_outcomes_ok")
        assert shown["gen_ai_client_operation_duration_count"] == done
        assert shown["gen_ai_client_operation_duration_p50_ms"] > 10

        prefix = "flink_taskmanager_job_task_operator_farcall"
        port = engine.place.ports.metrics_taskmanager
        reporter = reached(page, port, name=f"{prefix}_inference_outcomes_ok")
        assert reporter[f"{prefix}_gen_ai_client_operation_duration_p99_ms"] > 10

        (worker,) = pages(first)
        assert worker["inference_outcomes_total ok"] == done
        assert worker["inference_calls_in_flight"] == 1
        assert worker["gen_ai_client_operation_duration_seconds_count"] == done
    finally:
        double.set_faults()
        # Flink's own word for it: Beam's job server leaves the job running.
        shared.end_jobs(engine, but=before)


def running(stack: Stack) -> str | None:
    """The id of the one job that runs, if one does."""
    jobs = requests.get(f"http://{stack.endpoints.flink}/jobs", timeout=10).json()["jobs"]
    return next((job["id"] for job in jobs if job["status"] == "RUNNING"), None)


def reached(read: Callable[..., dict[str, float]], *where: Any, name: str) -> dict[str, float]:
    """What `read` gives once the metric of this name counts every call but the one that hangs."""
    found: dict[str, float] = {}

    def seen() -> bool:
        found.clear()
        found.update(read(*where))
        return found.get(name) == COUNT - 1

    try:
        shared.until(name, seen)
    except AssertionError as error:
        ours = {key: value for key, value in found.items() if "farcall" in key or "inference" in key} or found
        raise AssertionError(f"{error}; there is {ours}") from None
    return found
