"""How telemetry becomes Beam's metrics: names, whole numbers, endpoints added up. Without Beam."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections import Counter
from typing import Any

import pytest

from transforms import metrics
from transforms.remote import names
from transforms.remote.fakes import VirtualClock
from transforms.remote.telemetry import Recent, Snapshot, Telemetry

ONE, TWO = "http://one:1/v1", "http://two:1/v1"


def gauges(snapshot: Snapshot) -> dict[str, int]:
    return metrics.beam_gauges(snapshot, Recent().add(0.0, snapshot.histograms))


def test_endpoints_are_added_up_and_reasons_are_kept_apart() -> None:
    """Beam has no labels: a reason is in the name, endpoints are one sum; states count endpoints, latencies give the greatest."""
    telemetry = Telemetry("answer")
    for url, count in ((ONE, 2), (TWO, 5)):
        telemetry.count(names.ATTEMPTS, count, endpoint=url, outcome="ok")
        telemetry.set_gauge(names.ENDPOINT_STATE, endpoint=url, state="slow-start").set(True)
        telemetry.set_gauge(names.ENDPOINT_LATENCY, endpoint=url).set(count / 10)
    telemetry.count(names.ATTEMPTS, endpoint=ONE, outcome="server-error")
    snapshot = telemetry.snapshot()
    assert metrics.beam_counters(snapshot) == {"inference_attempts_ok": 7, "inference_attempts_server_error": 1}
    assert gauges(snapshot) == {"inference_endpoint_state_slow_start": 2, "inference_endpoint_latency_ms": 500}


def test_a_chain_shows_no_share_above_the_whole() -> None:
    """Of the roles of a chain the greatest share and the longest time are shown; their calls are added up."""
    answer, small = Telemetry("answer"), Telemetry("small")
    answer.include(small)
    for telemetry, value in ((answer, 0.9), (small, 0.5)):
        telemetry.set_gauge(names.BATCH_FILL).set(value)
        telemetry.set_gauge(names.HEDGE_DELAY).set(value)
        telemetry.set_gauge(names.LOOP_LAG).set(value)
        telemetry.set_gauge(names.CALLS_IN_FLIGHT).set(2)
    assert gauges(answer.snapshot()) == {
        "inference_batch_fill_percent": 90,
        "inference_hedge_delay_ms": 900,
        "inference_loop_lag_ms": 900,
        "inference_calls_in_flight": 4,
    }


def test_a_histogram_is_a_count_a_sum_and_quantiles() -> None:
    """Durations are whole milliseconds, tokens whole numbers; those of all endpoints are one distribution."""
    telemetry = Telemetry("answer")
    for number in range(1, 101):
        telemetry.record(names.ATTEMPT_DURATION, number / 100, endpoint=ONE if number % 2 else TWO)
        telemetry.record(names.TOKEN_USAGE, number, gen_ai_token_type="input")
    snapshot = telemetry.snapshot()
    assert metrics.beam_counters(snapshot) == {
        "inference_attempt_duration_count": 100,
        "inference_attempt_duration_sum_ms": 50_500,
        "gen_ai_client_token_usage_input_count": 100,
        "gen_ai_client_token_usage_input_sum": 5_050,
    }
    found = gauges(snapshot)
    assert sorted(found) == sorted(
        f"{name}_{quantile}{unit}"
        for name, unit in (("inference_attempt_duration", "_ms"), ("gen_ai_client_token_usage_input", ""))
        for quantile in ("p50", "p95", "p99")
    )
    assert abs(found["inference_attempt_duration_p95_ms"] - 950) <= 10
    assert abs(found["gen_ai_client_token_usage_input_p50"] - 50) <= 1


def test_a_share_is_per_cent() -> None:
    """A whole number of a share would say nothing."""
    telemetry = Telemetry("answer")
    telemetry.set_gauge(names.BATCH_FILL).set(0.64)
    assert gauges(telemetry.snapshot()) == {"inference_batch_fill_percent": 64}


def test_rounding_does_not_add_up() -> None:
    """Sums are rounded as a whole, so after thousands of readings they are still exact to 1."""
    telemetry, shared = Telemetry("answer"), metrics._Shared()
    chance, grown, total = random.Random(1), 0, 0.0
    for _ in range(3_000):
        value = chance.random() * 1e-3
        total += value
        telemetry.record(names.QUEUE_WAIT, value)
        grown += shared.grown(telemetry.snapshot(bins=False)).get("inference_queue_wait_sum_ms", 0)
    assert abs(grown - total * 1000) <= 0.5


class Recorder:
    """In place of Beam's metrics: what was added and set, by name; one for each thread."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.values: dict[str, int] = {}

    def metric(self, _kind: str, name: str) -> Any:
        class Metric:
            inc = staticmethod(lambda count: self.counts.update({name: count}))
            set = staticmethod(lambda value: self.values.update({name: value}))

        return Metric


def bridge_to(telemetry: Telemetry | None, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> Any:
    bridge, recorder = metrics.BeamBridge(telemetry, clock), Recorder()
    monkeypatch.setattr(bridge, "_metric", recorder.metric)
    return bridge, recorder


class Interrupted(Telemetry):
    """After each reading other threads have a turn. Notes whether the instances' lock was held."""

    held = True

    def snapshot(self, *, bins: bool = True) -> Snapshot:
        self.held = self.held and metrics._shared[self].lock.locked()
        taken = super().snapshot(bins=bins)
        os.sched_yield()
        return taken


def test_instances_hand_over_each_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several instances of a step, on threads of their own, hand over together what was counted: all of it, once."""
    telemetry, clock, done = Interrupted("answer"), VirtualClock(), threading.Event()
    pairs = [bridge_to(telemetry, clock, monkeypatch) for _ in range(4)]

    def bundles(bridge: metrics.BeamBridge) -> None:
        while not done.is_set():
            bridge.finish_bundle(idle=True)

    threads = [threading.Thread(target=bundles, args=(bridge,)) for bridge, _ in pairs]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        counter = telemetry.counter(names.STALLS)
        for _ in range(100_000):
            counter.add()
            if not counter.value % 100:
                os.sched_yield()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    pairs[0][0].finish_bundle(idle=True)
    assert telemetry.held
    assert sum(recorder.counts["inference_stream_stalls"] for _, recorder in pairs) == 100_000


def test_a_bundle_reports_when_it_is_time_or_nothing_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load a step reports once a second; with nothing under way its last counts leave at once; gauges keep their second."""
    telemetry, clock = Telemetry("answer"), VirtualClock()
    bridge, recorder = bridge_to(telemetry, clock, monkeypatch)
    telemetry.gauge(names.CALLS_IN_FLIGHT, clock.monotonic_s)

    def bundle(idle: bool) -> tuple[int, int]:
        telemetry.count(names.STALLS)
        bridge.finish_bundle(idle=idle)
        return recorder.counts["inference_stream_stalls"], recorder.values["inference_calls_in_flight"]

    first = round(clock.monotonic_s())
    assert bundle(idle=False) == (1, first)
    assert bundle(idle=False) == (1, first)
    assert bundle(idle=True) == (3, first)
    clock.advance(1.0)
    assert bundle(idle=False) == (4, first + 1)


def test_without_telemetry_nothing_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that reports nothing gives nothing to Beam."""
    bridge, recorder = bridge_to(None, VirtualClock(), monkeypatch)
    bridge.start_bundle()
    bridge.finish_bundle(idle=True)
    assert (recorder.counts, recorder.values) == (Counter(), {})
