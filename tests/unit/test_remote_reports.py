"""What a client reports of its calls."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from typing import Any, get_args

from transforms.remote import batcher, names, reports
from transforms.remote.hedge import HedgePolicy, HedgeSettings
from transforms.remote.outliers import Kind
from transforms.remote.questions import Reply
from transforms.remote.telemetry import Telemetry

URL = "http://one:1/v1"


def shown(telemetry: Telemetry) -> dict[tuple[str, ...], float]:
    """Counters, gauges and the counts of histograms that are not 0, by name and own labels."""
    telemetry.refresh()
    snapshot = telemetry.snapshot()
    found = snapshot.counters | snapshot.gauges | {s: d.count for s, d in snapshot.histograms.items()}
    by_name = {instrument.name: instrument for instrument in names.INSTRUMENTS}
    return {
        (series.name, *series.values[len(by_name[series.name].constants) :]): value
        for series, value in found.items()
        if value
    }


def test_each_thing_that_happens_is_one_number() -> None:
    """A call's life from its beginning to its outcome, each step under its own name."""
    telemetry = Telemetry("answer", model="m")
    report = reports.Reports(telemetry, [URL])
    report.call_began()
    report.call_began()
    assert shown(telemetry) == {("inference_calls_in_flight",): 2}
    report.waited(0.1)
    report.sent(100)
    report.attempt_ended(URL, "throttled", 0.2)
    report.refused_by_quota(URL)
    report.repeats("throttled", 0.3)
    report.hedged("sent")
    report.hedged("won")
    report.received(1_000)
    report.replied([Reply("x", None, None, 12, 34, None, 50.0), Reply("y")])
    report.chunk_came(0.02)
    report.stalled()
    report.attempt_ended(URL, "ok", 0.2)
    report.asked_cache("miss")
    report.waited_for_quota(0.4)
    report.batched(8)
    report.fell_back("small", "deadline")
    report.call_ended(None, 1.0)
    report.call_ended("deadline", 120.0)
    assert shown(telemetry) == {
        ("inference_queue_wait",): 1,
        ("inference_request_size",): 1,
        ("inference_attempts", URL, "throttled"): 1,
        ("inference_attempts", URL, "ok"): 1,
        ("inference_attempt_duration", URL): 2,
        ("inference_quota_refusals", URL): 1,
        ("inference_retries", "throttled"): 1,
        ("inference_back_off",): 1,
        ("inference_hedges", "sent"): 1,
        ("inference_hedges", "won"): 1,
        ("inference_response_size",): 1,
        ("gen_ai.client.token.usage", "input"): 1,
        ("gen_ai.client.token.usage", "output"): 1,
        ("gen_ai.client.operation.time_to_first_chunk",): 1,
        ("gen_ai.client.operation.time_per_output_chunk",): 1,
        ("inference_stream_stalls",): 1,
        ("inference_cache_requests", "miss"): 1,
        ("inference_quota_wait",): 1,
        ("inference_batch_size",): 1,
        ("inference_fallbacks", "small", "deadline"): 1,
        ("inference_outcomes", "ok"): 1,
        ("inference_outcomes", "deadline"): 1,
        ("gen_ai.client.operation.duration", ""): 1,
        ("gen_ai.client.operation.duration", "deadline"): 1,
    }


def test_every_way_an_attempt_ends_has_its_counter() -> None:
    """No kind is without one, so no attempt is left uncounted."""
    telemetry = Telemetry("answer")
    report = reports.Reports(telemetry, [URL])
    for kind in get_args(Kind):
        report.attempt_ended(URL, kind, 0.1)
    found = {key[2]: value for key, value in shown(telemetry).items() if key[0] == "inference_attempts"}
    assert found == dict.fromkeys(get_args(Kind), 1)


def test_hedging_reports_its_budget_and_delay() -> None:
    """The budget is what may be sent now; the delay is 0 while there is none."""
    telemetry, hedge = Telemetry("answer"), HedgePolicy(HedgeSettings(least_samples=1))
    reports.observe_hedging(telemetry, hedge, lambda: 10.0)
    assert shown(telemetry) == {}
    for _ in range(40):
        hedge.on_start(10.0)
        hedge.on_latency(10.0, 0.2)
    found = shown(telemetry)
    assert found["inference_hedge_budget",] == 2.0
    assert 0.19 <= found["inference_hedge_delay",] <= 0.22


def test_batches_are_counted_by_what_closed_them() -> None:
    """Each reason that the batcher has is shown, with how full the batches were."""
    closing = re.findall(r'seal\("(\w+)"\)|return "(\w+)"', inspect.getsource(batcher.Batcher))
    assert {one or other for one, other in closing} <= set(reports.BATCH_REASONS)

    class Sent:
        settings = batcher.BatchSettings(max_items=8)
        items_sent = 28

        def __init__(self) -> None:
            self.sent = Counter({"items": 3, "age": 1})

    telemetry, sent = Telemetry("answer"), Sent()
    given: Any = sent
    reports.observe_batches(telemetry, given)
    assert shown(telemetry) == {
        ("inference_batches", "items"): 3,
        ("inference_batches", "age"): 1,
        ("inference_batch_fill",): 28 / 4 / 8,
    }
