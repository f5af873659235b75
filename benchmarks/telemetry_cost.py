"""What counting costs: ``python -m benchmarks.telemetry_cost`` prints it, in microseconds each, as median and range of runs."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

from apache_beam.metrics.execution import MetricsContainer
from apache_beam.metrics.metricbase import MetricName
from ddsketch import DDSketch
from prometheus_client import CollectorRegistry, Counter, Histogram

from transforms.metrics import beam_counters, beam_gauges
from transforms.remote import names
from transforms.remote.names import Instrument
from transforms.remote.telemetry import Recent, Telemetry

RUNS = 7
TIMES = 50_000
ENDPOINTS = 3
METRICS = 40


def cost_us(call: Callable[[float], object], times: int = TIMES) -> tuple[float, float, float]:
    """The median, the least and the greatest microseconds of a call, over `RUNS` runs of so many calls, the loop's own taken off."""
    chance = random.Random(1)  # noqa: S311 - spreads values, keeps no secret
    values = [chance.lognormvariate(-1.6, 0.6) for _ in range(times)]
    costs = []
    for _ in range(RUNS):
        began_s = time.perf_counter()
        for value in values:
            call(value)
        middle_s = time.perf_counter()
        for value in values:
            _nothing(value)
        costs.append((2 * middle_s - began_s - time.perf_counter()) / times * 1e6)
    return statistics.median(costs), min(costs), max(costs)


def main() -> None:
    """Prints the table."""
    registry = CollectorRegistry()
    prom_counter = Counter("a", "a", ["b"], registry=registry).labels("c")
    prom_histogram = Histogram("d", "d", registry=registry, buckets=names.TIME_BOUNDS_S)
    telemetry = full()
    counter = telemetry.counter(names.STALLS)
    histogram = telemetry.histogram(names.QUEUE_WAIT)
    container = MetricsContainer("step")
    for number in range(METRICS):
        container.get_counter(MetricName("farcall", f"m{number}")).inc(1)
    snapshot = telemetry.snapshot()
    rows = [
        ("count, bound", cost_us(lambda _: counter.add())),
        ("count, labels looked up", cost_us(lambda _: telemetry.count(names.OUTCOMES, kind="ok"))),
        ("measurement, bound", cost_us(histogram.record)),
        ("DDSketch.add of ddsketch", cost_us(DDSketch(0.01).add)),
        ("Counter.inc of prometheus-client", cost_us(lambda _: prom_counter.inc())),
        ("Histogram.observe of prometheus-client", cost_us(prom_histogram.observe)),
        (f"snapshot of {series(telemetry)} series", cost_us(lambda _: telemetry.snapshot(), 50)),
        ("report of a bundle, gauges and all", cost_us(lambda _: report(telemetry), 50)),
        ("report of a bundle, counters alone", cost_us(lambda _: beam_counters(telemetry.snapshot(bins=False)), 50)),
        (
            f"Beam, a bundle with {METRICS} metrics",
            cost_us(lambda _: container.to_runner_api_monitoring_infos("t"), 50),
        ),
    ]
    print(f"{len(beam_counters(snapshot))} Beam counters; µs each, median (least to greatest) of {RUNS} runs")
    for name, (median, least, greatest) in rows:
        print(f"{name:<42} {median:>10.2f}  ({least:.2f} to {greatest:.2f})")


def full() -> Telemetry:
    """A telemetry in which every instrument was used, for some endpoints."""
    telemetry = Telemetry("answer", model="m")
    chance = random.Random(2)  # noqa: S311 - as above
    for instrument in names.INSTRUMENTS:
        for endpoint in range(ENDPOINTS):
            labels = {
                label.replace(".", "_"): f"http://host{endpoint}:1/v1" if label == names.ENDPOINT else "ok"
                for label in instrument.labels
            }
            _use(telemetry, instrument, labels, chance)
    return telemetry


def _use(telemetry: Telemetry, instrument: Instrument, labels: dict[str, str], chance: random.Random) -> None:
    if instrument.kind == "counter":
        telemetry.counter(instrument, **labels).add()
    elif instrument.kind == "gauge":
        telemetry.set_gauge(instrument, **labels).set(1)
    else:
        for _ in range(1_000):
            telemetry.histogram(instrument, **labels).record(chance.lognormvariate(-1.6, 0.6))


def report(telemetry: Telemetry) -> None:
    """What a bundle does to report, without Beam."""
    snapshot = telemetry.snapshot()
    beam_counters(snapshot)
    beam_gauges(snapshot, Recent().add(0.0, snapshot.histograms))


def series(telemetry: Telemetry) -> int:
    """How many series there are."""
    snapshot = telemetry.snapshot()
    return len(snapshot.counters) + len(snapshot.gauges) + len(snapshot.histograms)


def _nothing(_: float) -> None:
    return None


if __name__ == "__main__":
    main()
