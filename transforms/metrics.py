"""The names of this project's metrics in Beam, the bridge from a client's telemetry to them, and how they are read at the end.

Beam counts what the thread of a bundle counts, and drops the rest; the client counts on an event loop. So each bundle hands over
what was counted since the last one did, whichever instance of the step that was: nothing is counted twice or left out, but for
what a bundle handed over that then failed. Beam's metrics have no labels and take whole numbers: see `names`.

A histogram becomes two counters (``…_count``, ``…_sum…``) and the gauges of its quantiles over about the last minute
(``…_p50…``, ``…_p95…``, ``…_p99…``). Beam's own distribution would not do: it has no quantiles, and Flink's Prometheus reporter
shows none of it, since it is no number.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from transforms.remote import names
from transforms.remote.clock import Clock
from transforms.remote.names import Instrument
from transforms.remote.telemetry import Distribution, Recent, Series, Snapshot, Telemetry

NAMESPACE = "farcall"
"""The namespace of every Beam metric here. Counted on the bundle thread: Beam drops what other threads count."""

RECORDS_IN = "records_in"
REPEATS = "repeats"

REPORT_EVERY_S = 1.0
"""How often a step reports at most while calls are under way. With none under way each of its bundles reports."""

_WAIT_S = 0.05
_INSTRUMENTS = {instrument.name: instrument for instrument in names.INSTRUMENTS}


def counter(result: Any, name: str) -> int | None:
    """The value of one of our counters over all steps of a finished job, or None where the runner does not tell."""
    from apache_beam.metrics import MetricsFilter  # noqa: PLC0415 - only this function needs Beam

    found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE).with_name(name))["counters"]
    if not found:
        return None
    return sum(one.committed if one.committed is not None else one.attempted or 0 for one in found)


class _Shared:
    """What the instances of a step in one process share: what was handed over to Beam so far."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counted: dict[str, int] = {}
        self.recent = Recent()

    def grown(self, snapshot: Snapshot) -> dict[str, int]:
        """Return by how much Beam's counters grow; that belongs to the caller alone from now on."""
        counted = beam_counters(snapshot)
        grown = {name: value - self.counted.get(name, 0) for name, value in counted.items()}
        self.counted = counted
        return {name: value for name, value in grown.items() if value}

    def gauges(self, snapshot: Snapshot, now_s: float) -> dict[str, int]:
        """Return Beam's gauges."""
        return beam_gauges(snapshot, self.recent.add(now_s, snapshot.histograms))


_shared: weakref.WeakKeyDictionary[Telemetry, _Shared] = weakref.WeakKeyDictionary()
_shared_lock = threading.Lock()


class BeamBridge:
    """Hands a client's telemetry to Beam, for one instance of a step. Without a telemetry it does nothing.

    Call `start_bundle` and `finish_bundle` in the step's own, on the bundle's thread.
    """

    def __init__(self, telemetry: Telemetry | None, clock: Clock, every_s: float = REPORT_EVERY_S) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._every_s = every_s
        self._next_s = float("-inf")
        self._reported = False
        self._metrics: dict[tuple[str, str], Any] = {}
        with _shared_lock:
            self._shared = _Shared() if telemetry is None else _shared.setdefault(telemetry, _Shared())

    def start_bundle(self) -> None:
        """Takes the metrics of the bundle before out of the step's container, where there are any.

        Beam sends every metric that a step ever touched with each of its bundles, at 7 µs each (docs/adr/0014).
        """
        if not self._reported:
            return
        self._reported = False
        from apache_beam.metrics.execution import MetricsEnvironment  # noqa: PLC0415 - as in `counter`

        container = MetricsEnvironment.current_container()
        if container is None:
            return
        ours = {name for _, name in self._metrics}
        for key in list(container.metrics):
            metric = key.metric_name
            if getattr(metric, "namespace", None) == NAMESPACE and metric.name in ours:
                container.metrics.pop(key, None)

    def finish_bundle(self, idle: bool) -> None:
        """Hands over what was counted, if it is time; `idle`: in any case, since there may be no later bundle to do it.

        Gauges, which are never lost, are set when it is time.
        """
        if self._telemetry is None:
            return
        now_s = self._clock.monotonic_s()
        due = now_s >= self._next_s
        if not due and not idle:
            return
        gauges: dict[str, int] = {}
        if due:
            self._next_s = now_s + self._every_s
            self._telemetry.refresh(_WAIT_S)
        # Read inside the lock: no reading may overtake another.
        with self._shared.lock:
            snapshot = self._telemetry.snapshot(bins=due)
            grown = self._shared.grown(snapshot)
            if due:
                gauges = self._shared.gauges(snapshot, now_s)
        for name, count in grown.items():
            self._metric("counter", name).inc(count)
        for name, value in gauges.items():
            self._metric("gauge", name).set(value)
        self._reported = bool(grown or gauges)

    def _metric(self, kind: str, name: str) -> Any:
        metric = self._metrics.get((kind, name))
        if metric is None:
            from apache_beam.metrics import Metrics  # noqa: PLC0415 - as in `counter`

            make = Metrics.counter if kind == "counter" else Metrics.gauge
            metric = self._metrics[kind, name] = make(NAMESPACE, name)
        return metric


def beam_counters(snapshot: Snapshot) -> dict[str, int]:
    """Every Beam counter of a snapshot, as a whole number: of the counters, and of the histograms' counts and sums."""
    exact: dict[str, float] = {}
    for instrument, values, count in _instruments(snapshot.counters):
        _add(exact, instrument.beam_name(values), count * instrument.beam_factor)
    for instrument, values, distribution in _instruments(snapshot.histograms):
        _add(exact, instrument.beam_name(values, "count", unit=False), distribution.count)
        _add(exact, instrument.beam_name(values, "sum"), distribution.sum * instrument.beam_factor)
    return {name: round(value) for name, value in exact.items()}


def beam_gauges(snapshot: Snapshot, recent: Mapping[Series, Distribution]) -> dict[str, int]:
    """Every Beam gauge: of the gauges, and of the quantiles of the histograms' `recent` values; none for one without values."""
    exact: dict[str, float] = {}
    for instrument, values, value in _instruments(snapshot.gauges):
        name, shown = instrument.beam_name(values), value * instrument.beam_factor
        exact[name] = (
            max(exact.get(name, 0), shown) if instrument.together == "greatest" else exact.get(name, 0) + shown
        )
    for (instrument, values), distribution in _by_beam_name(recent).items():
        found = distribution.quantiles(names.QUANTILES)
        for share, quantile in zip(names.QUANTILES, found, strict=False):
            exact[instrument.beam_name(values, names.quantile_name(share))] = quantile * instrument.beam_factor
    return {name: round(value) for name, value in exact.items()}


def _by_beam_name(
    histograms: Mapping[Series, Distribution],
) -> dict[tuple[Instrument, tuple[str, ...]], Distribution]:
    """The histograms with those of all endpoints put together."""
    found: dict[tuple[Instrument, tuple[str, ...]], Distribution] = {}
    for instrument, values, distribution in _instruments(histograms):
        key = (
            instrument,
            tuple(
                "" if label == names.ENDPOINT else value for label, value in zip(instrument.labels, values, strict=True)
            ),
        )
        found[key] = found[key].plus(distribution) if key in found else distribution
    return found


def _instruments(series: Mapping[Series, Any]) -> Iterator[tuple[Instrument, tuple[str, ...], Any]]:
    """The instrument and the values of its own labels for each series."""
    for (name, values), value in series.items():
        instrument = _INSTRUMENTS[name]
        yield instrument, values[len(instrument.constants) :], value


def _add(sums: dict[str, float], name: str, value: float) -> None:
    sums[name] = sums.get(name, 0) + value
