"""What the client counts of itself: numbers that cost little to add to, and can be read from any thread.

An instrument is bound to its labels once, where a policy is made; counting is then an addition, and a measurement one bucket
of a histogram. Each bound instrument has one writer, as a rule the event loop. Whoever reads takes a `Snapshot`: plain values,
of which two can be subtracted.

Histograms keep every value to within 1 % of itself, so quantiles are true and not guesses between bounds: bucket i holds the
values above s·gⁱ⁻¹ up to s·gⁱ, and stands for s·2·gⁱ / (g + 1). With g the 35th root of 2, and s the least bound of an
instrument, of which the others are multiples by powers of two, buckets end where bounds lie: what is counted under a bound is
exact.

Labels are bounded: their names are those of the table in `names`, an instrument has at most `MOST_SERIES` of them, and further
ones are counted as `OTHER` (a gauge among them shows the last). An endpoint is shown without the user, the password and the
query of its URL.

Source: Masson, Rim and Lee, "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error Guarantees", VLDB 2019,
in its authors' library; docs/adr/0014 has the costs.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
import numpy as np
from ddsketch.mapping import LogarithmicMapping
from ddsketch.store import DenseStore

from transforms.remote import names
from transforms.remote.names import Instrument
from transforms.remote.pool import EndpointState, Pool

ACCURACY = 0.01
"""By how much of itself a value of a histogram may be off."""

MOST_SERIES = 512
"""How many combinations of labels an instrument has at most."""

OTHER = "other"
"""The value of labels that came after `MOST_SERIES` others."""

# Between them lie 2 418 buckets, so a histogram has an end too.
_LEAST, _MOST = 1e-9, 1e12
_LONGEST_LABEL = 120
# The fewest buckets to a doubling that keep values within `ACCURACY`.
_PER_DOUBLING = 35
_MAPPING = LogarithmicMapping.from_gamma_offset(2 ** (1 / _PER_DOUBLING), 0.0)
# A logarithm is rounded: without this a value that equals a bound may lie above it.
_SLACK = 1e-9
_TOGETHER = 256
_ENDPOINT_STATES = ("ready", "slow-start", "waiting", "ejected", "open")
_BREAKER_STATES = ("closed", "open", "half-open")

Soon = Callable[[Callable[[], None]], object]
"""Runs a function on the event loop before long, such as `loop.call_soon_threadsafe`; returns at once."""

_T = TypeVar("_T")

log = logging.getLogger(__name__)


class Series(NamedTuple):
    """What a value belongs to: an instrument's name and the values of all its labels, in the table's order."""

    name: str
    values: tuple[str, ...]


class Distribution(msgspec.Struct, frozen=True):
    """The values of a histogram: how many, their sum, and how many lie in each bucket; those end at `scale` times powers of g."""

    count: int = 0
    sum: float = 0.0
    bins: Mapping[int, int] = {}
    scale: float = 1.0

    def quantile(self, share: float) -> float | None:
        """Return the value below or at which `share` (0 to 1) of the values lie, within 1 %; None where there are none."""
        found = self.quantiles((share,))
        return found[0] if found else None

    def quantiles(self, shares: Iterable[float]) -> list[float]:
        """Return `quantile` for each of the rising `shares`; nothing where there are no values."""
        found: list[float] = []
        total, keys, value = 0, iter(sorted(self.bins)), 0.0
        for share in shares if self.bins else ():
            rank = math.floor(share * (self.count - 1))
            while total <= rank:
                key = next(keys)
                total, value = total + self.bins[key], float(_MAPPING.value(key)) * self.scale
            found.append(value)
        return found

    def counts(self, bounds: Iterable[float]) -> list[int]:
        """Return how many values are at most each of the rising `bounds`.

        Exact for `scale` times a power of two; with another bound count values of up to 2 % above it, too.
        """
        shift = _shift(self.scale)
        rest = sorted(self.bins, reverse=True)
        found, total = [], 0
        for bound in bounds:
            last = math.ceil(math.log2(bound) * _PER_DOUBLING - shift)
            while rest and rest[-1] <= last:
                total += self.bins[rest.pop()]
            found.append(total)
        return found

    def plus(self, other: Distribution) -> Distribution:
        """Return the values of both."""
        return self._combined(other, 1)

    def minus(self, earlier: Distribution) -> Distribution:
        """Return the values that came after an `earlier` reading of the same histogram."""
        return self._combined(earlier, -1)

    def _combined(self, other: Distribution, sign: int) -> Distribution:
        left = bins = dict(self.bins)
        if other.bins:
            for key, count in other.bins.items():
                bins[key] = bins.get(key, 0) + sign * count
            left = {key: count for key, count in bins.items() if count > 0}
        return Distribution(self.count + sign * other.count, self.sum + sign * other.sum, left, self.scale)


def _shift(scale: float) -> float:
    """What is taken from the logarithm of a value, in buckets, before it is rounded up to the number of its bucket."""
    return math.log2(scale) * _PER_DOUBLING + _SLACK


class Snapshot(msgspec.Struct, frozen=True):
    """Every value of a `Telemetry` at one moment. Counters and histograms count since it was made."""

    counters: Mapping[Series, float] = {}
    gauges: Mapping[Series, float] = {}
    histograms: Mapping[Series, Distribution] = {}

    def since(self, earlier: Snapshot) -> Snapshot:
        """Return what counters and histograms gained after `earlier`, and the gauges of now."""
        none = Distribution()
        return Snapshot(
            {series: value - earlier.counters.get(series, 0) for series, value in self.counters.items()},
            self.gauges,
            {series: value.minus(earlier.histograms.get(series, none)) for series, value in self.histograms.items()},
        )


class Counter:
    """A number that only grows. One writer."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, count: float = 1) -> None:
        """Add `count`, 0 or more."""
        self.value += count


class Gauge:
    """A number that is set. One writer."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0.0

    def set(self, value: float) -> None:
        """Replace the number."""
        self.value = value


class Histogram:
    """Values, each kept within 1 % of itself, from 1e-9 to 1e12; what lies outside, or is no number, counts as the end. One writer.

    Counts under a bound are exact where it is `scale` times a power of two.
    """

    __slots__ = ("_count", "_lock", "_new", "_scale", "_shift", "_store", "_sum")

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale
        self._shift = _shift(scale)
        self._lock = threading.Lock()
        self._new: list[float] = []
        self._store = DenseStore()
        self._count = 0
        self._sum = 0.0

    def record(self, value: float) -> None:
        """Add a value in the instrument's unit."""
        new = self._new
        new.append(value)
        if len(new) >= _TOGETHER:
            with self._lock:
                self._sort_in()

    def read(self, *, bins: bool = True) -> Distribution:
        """Return the values so far; from any thread. Without `bins` their count and sum alone, which is cheap."""
        with self._lock:
            self._sort_in()
            if not bins:
                return Distribution(self._count, self._sum, scale=self._scale)
            held, offset, count, total = list(self._store.bins), self._store.offset, self._count, self._sum
        bucketed = {offset + at: int(found) for at, found in enumerate(held) if found}
        return Distribution(count, total, bucketed, self._scale)

    def _sort_in(self) -> None:
        """Put the new values into their buckets, all at once: a tenth of what it costs one by one. Needs the lock."""
        new = self._new
        many = len(new)
        values = np.array(new[:many], dtype=np.float64)
        # The writer may append meanwhile, which is behind what was counted.
        del new[:many]
        if not many:
            return
        values = np.nan_to_num(values, nan=_LEAST).clip(_LEAST, _MOST)
        found = np.ceil(np.log2(values) * _PER_DOUBLING - self._shift).astype(np.int64)
        keys, counts = np.unique(found, return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            self._store.add(key, count)
        self._count += many
        self._sum += float(values.sum())


Reader = Callable[[], float]
"""Gives a number when it is asked; called on the event loop where there is one."""


class Values:
    """What a `Telemetry` has counted, without the functions that it reads numbers by: to keep this keeps no client alive."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counters: dict[Series, Counter] = {}
        self.gauges: dict[Series, Gauge] = {}
        self.histograms: dict[Series, Histogram] = {}
        self.parts: list[Values] = []

    def snapshot(self, *, bins: bool = True) -> Snapshot:
        """Return every value, as `Telemetry.snapshot` does."""
        with self.lock:
            counters, gauges = list(self.counters.items()), list(self.gauges.items())
            histograms = list(self.histograms.items())
        own = Snapshot(
            {series: counter.value for series, counter in counters},
            {series: gauge.value for series, gauge in gauges},
            {series: histogram.read(bins=bins) for series, histogram in histograms},
        )
        return merged([own, *(part.snapshot(bins=bins) for part in self.parts)]) if self.parts else own


class Telemetry:
    """The instruments of one client. `role`, `operation`, `provider` and `model` are labels of all that it reports.

    Instruments are those of `names`; other names or labels are a ValueError where they are bound. Numbers that are read
    (`gauge`, `observed`) are read on the event loop by way of `soon`, so their functions need no care for threads; without
    `soon` in the thread that calls `refresh`. `values` is what was counted.
    """

    def __init__(
        self, role: str, *, operation: str = "chat", provider: str = "", model: str = "", soon: Soon | None = None
    ) -> None:
        self.role = role
        self.values = Values()
        self._constants = {
            "role": role,
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": model,
        }
        self._soon = soon
        self._lock = self.values.lock
        self._series: dict[str, int] = {}
        self._readers: dict[Series, tuple[Counter | Gauge, Reader]] = {}
        self._said: set[Series] = set()
        self._parts: list[Telemetry] = []

    def counter(self, instrument: Instrument, **labels: str) -> Counter:
        """Return the counter with these labels, to be kept; the dots of their names are written as underscores."""
        return self._bound(self.values.counters, Counter, instrument, "counter", labels)

    def histogram(self, instrument: Instrument, **labels: str) -> Histogram:
        """Return the histogram with these labels, to be kept."""
        return self._bound(
            self.values.histograms, lambda: Histogram(instrument.bounds[0]), instrument, "histogram", labels
        )

    def set_gauge(self, instrument: Instrument, **labels: str) -> Gauge:
        """Return the gauge with these labels, to be kept and set."""
        return self._bound(self.values.gauges, Gauge, instrument, "gauge", labels)

    def gauge(self, instrument: Instrument, read: Reader, **labels: str) -> None:
        """Show what `read` gives when it is asked: see `refresh`."""
        self._read_by(self.set_gauge(instrument, **labels), self._key(instrument, labels), read)

    def observed(self, instrument: Instrument, read: Reader, **labels: str) -> None:
        """Show a count that somebody else keeps: what `read` gives must never become less."""
        self._read_by(self.counter(instrument, **labels), self._key(instrument, labels), read)

    def count(self, instrument: Instrument, count: float = 1, **labels: str) -> None:
        """Add to a counter whose labels are known only now; a bound one is ten times cheaper."""
        self.counter(instrument, **labels).add(count)

    def record(self, instrument: Instrument, value: float, **labels: str) -> None:
        """Add to a histogram whose labels are known only now; a bound one is cheaper."""
        self.histogram(instrument, **labels).record(value)

    def include(self, part: Telemetry) -> None:
        """Report what `part` reports too: the telemetry of another role that this one calls."""
        self._parts.append(part)
        self.values.parts.append(part.values)

    def close(self) -> None:
        """Read the counts that others keep for the last time, and show gauges no more: what they tell of has ended.

        To be called on the event loop when the client is closed.
        """
        self._read_all()
        with self._lock:
            self._readers.clear()
            self.values.gauges.clear()

    def snapshot(self, *, bins: bool = True) -> Snapshot:
        """Return every value; without `bins` of histograms the counts and sums alone. From any thread.

        Counters and histograms are those of now; numbers that are read are those of the last `refresh`.
        """
        return self.values.snapshot(bins=bins)

    def deltas_since(self, earlier: Snapshot) -> tuple[Snapshot, Snapshot]:
        """Return the snapshot of now, and what it has more than an `earlier` one of the same telemetry."""
        now = self.snapshot()
        return now, now.since(earlier)

    def refresh(self, wait_s: float = 0.0) -> None:
        """Read the numbers that are read. With `soon` the event loop does it; waits for that `wait_s` seconds at most.

        To be called from another thread than the event loop's, where it waits.
        """
        if self._soon is None:
            self._read_all()
            return
        done = threading.Event()

        def read() -> None:
            self._read_all()
            done.set()

        with contextlib.suppress(RuntimeError):  # the loop is closed: the last readings stay
            self._soon(read)
            done.wait(wait_s)

    def _read_all(self) -> None:
        for part in self._parts:
            part._read_all()  # noqa: SLF001 - another of the same class
        for series, (bound, read) in list(self._readers.items()):
            try:
                bound.value = read()
            except Exception:
                # A number that cannot be shown must not cost a call.
                if series not in self._said:
                    self._said.add(series)
                    log.exception("The metric %s could not be read; its last value stays.", series.name)

    def _read_by(self, bound: Counter | Gauge, series: Series, read: Reader) -> None:
        with self._lock:
            self._readers[series] = (bound, read)

    def _bound(
        self,
        known: dict[Series, _T],
        make: Callable[[], _T],
        instrument: Instrument,
        kind: str,
        labels: Mapping[str, str],
    ) -> _T:
        if instrument.kind != kind:
            raise ValueError(f"{instrument.name} is a {instrument.kind}, and is used as a {kind}.")
        series = self._key(instrument, labels)
        found = known.get(series)
        if found is not None:
            return found
        with self._lock:
            if series not in known:
                if self._series.get(instrument.name, 0) >= MOST_SERIES:
                    series = self._other(instrument)
                self._series[instrument.name] = self._series.get(instrument.name, 0) + 1
            return known.setdefault(series, make())

    def _key(self, instrument: Instrument, labels: Mapping[str, str]) -> Series:
        try:
            values = tuple(_shown(label, labels[label.replace(".", "_")]) for label in instrument.labels)
        except KeyError:
            values = ()
        if len(values) != len(labels) or len(values) != len(instrument.labels):
            wanted, given = ", ".join(instrument.labels) or "none", ", ".join(labels) or "none"
            raise ValueError(f"{instrument.name} takes the labels: {wanted}; given: {given}.")
        return Series(instrument.name, (*self._constant_values(instrument), *values))

    def _other(self, instrument: Instrument) -> Series:
        return Series(instrument.name, (*self._constant_values(instrument), *(OTHER for _ in instrument.labels)))

    def _constant_values(self, instrument: Instrument) -> tuple[str, ...]:
        return tuple(self._constants[label] for label in instrument.constants)


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return several snapshots as one: what has equal labels is added up, but for gauges of which the greatest is shown."""
    counters: dict[Series, float] = {}
    gauges: dict[Series, float] = {}
    histograms: dict[Series, Distribution] = {}
    for snapshot in snapshots:
        for series, value in snapshot.counters.items():
            counters[series] = counters.get(series, 0) + value
        for series, value in snapshot.gauges.items():
            before = gauges.get(series, 0)
            gauges[series] = max(before, value) if series.name in names.NOT_ADDED_UP else before + value
        for series, distribution in snapshot.histograms.items():
            known = histograms.get(series)
            histograms[series] = known.plus(distribution) if known else distribution
    return Snapshot(counters, gauges, histograms)


class Recent:
    """What histograms gained over about the last `window_s` seconds, from the snapshots that somebody takes anyway.

    It is counted from the latest of its snapshots that is at least `window_s` old; from the start where there is none.
    """

    def __init__(self, window_s: float = 60.0) -> None:
        self._window_s = window_s
        self._kept: deque[tuple[float, Mapping[Series, Distribution]]] = deque([(float("-inf"), {})])

    def add(self, now_s: float, histograms: Mapping[Series, Distribution]) -> dict[Series, Distribution]:
        """Take in the histograms of now, and return what they have more than those of `window_s` seconds ago."""
        while len(self._kept) > 1 and self._kept[1][0] <= now_s - self._window_s:
            self._kept.popleft()
        before, none = self._kept[0][1], Distribution()
        # A twelfth apart, so that frequent readers keep few.
        if now_s - self._kept[-1][0] >= self._window_s / 12:
            self._kept.append((now_s, histograms))
        return {series: value.minus(before.get(series, none)) for series, value in histograms.items()}


def observe_pool(telemetry: Telemetry, pool: Pool, now: Callable[[], float]) -> None:
    """Report the endpoints of a pool: state, breaker, requests in flight, latency, ejections by reason.

    `now` is the monotonic clock in seconds that the pool is told.
    """
    for endpoint in pool.endpoints:
        _observe_endpoint(telemetry, endpoint, now)


def _observe_endpoint(telemetry: Telemetry, endpoint: EndpointState, now: Callable[[], float]) -> None:
    url = endpoint.url
    telemetry.gauge(names.REQUESTS_IN_FLIGHT, lambda: endpoint.outstanding, endpoint=url)
    telemetry.gauge(names.ENDPOINT_LATENCY, lambda: endpoint.latency_s or 0.0, endpoint=url)
    for state in _ENDPOINT_STATES:
        telemetry.gauge(names.ENDPOINT_STATE, _is(lambda: endpoint.state(now()), state), endpoint=url, state=state)
    for state in _BREAKER_STATES:
        telemetry.gauge(names.BREAKER_STATE, _is(lambda: endpoint.breaker.state, state), endpoint=url, state=state)
    for reason in endpoint.ejection.numbers:
        read = partial(endpoint.ejection.numbers.__getitem__, reason)
        telemetry.observed(names.EJECTIONS, read, endpoint=url, reason=reason)


def _is(state: Callable[[], str], wanted: str) -> Reader:
    return lambda: float(state() == wanted)


def endpoint_label(url: str) -> str:
    """Return a URL as it may be shown: scheme, host, port and path, without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "?"
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path}"


def _shown(label: str, value: str) -> str:
    return (endpoint_label(value) if label == names.ENDPOINT else value)[:_LONGEST_LABEL]
