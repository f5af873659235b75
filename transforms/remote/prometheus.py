"""A page of this process's metrics for Prometheus: what every client of the process reports, by the names of `names`.

Histograms are shown as Prometheus' own, with the bounds of their table, so that they can be added up over processes; and their
true quantiles over about the last minute as gauges beside them, ``…_quantile``. Buckets are exact; bounds are written as Go
writes numbers, which is how OpenMetrics wants them.

Counts never fall while the process lives: what a client counted stays after it is closed, and its gauges leave.

Several worker processes on one machine: each takes the first free port of `PORTS` from the one that is asked for, and logs
which. Where none is free the process goes on without a page: metrics must not end a job.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from socketserver import BaseServer
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from transforms.errors import SettingsError
from transforms.remote import names
from transforms.remote.clock import Clock
from transforms.remote.names import Instrument
from transforms.remote.telemetry import Distribution, Recent, Series, Snapshot, Telemetry, Values, merged

HOST = "127.0.0.1"
"""Where the page is served unless the address says otherwise: this machine alone sees it."""

PORTS = 16
"""How many ports are tried, from the one that is asked for upwards: one for each worker process of a machine."""

_WAIT_S = 1.0

log = logging.getLogger(__name__)


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``PORT`` or ``HOST:PORT``. Raises SettingsError where it is neither."""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65536 - PORTS or (":" in text and not host):
        raise SettingsError(f"{text or 'nothing'} is not PORT or HOST:PORT, with a port from 1 to {65536 - PORTS}.")
    return host.strip("[]") or HOST, int(port)


class Page(Collector):
    """The metrics of several clients as families of Prometheus.

    Of a client that is no longer in use the gauges leave the page by themselves; what it counted stays.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._scrape = threading.Lock()
        self._clients: dict[weakref.ref[Telemetry], Values] = {}
        self._left = Snapshot()
        self._recent = Recent()

    def add(self, telemetry: Telemetry) -> None:
        """Show what this client reports too."""
        with self._lock:
            self._present()
            self._clients[weakref.ref(telemetry)] = telemetry.values

    def describe(self) -> Iterable[Metric]:
        """Nothing: which series there are is known at the time of a scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The families of now."""
        # One after the other: no reading may overtake another.
        with self._scrape:
            shown = self._read()
            recent = self._recent.add(self._clock.monotonic_s(), shown.histograms)
        for instrument in names.INSTRUMENTS:
            yield from _families(instrument, shown, recent)

    def _read(self) -> Snapshot:
        """Every value of now, those of clients that left included."""
        with self._lock:
            clients, left = self._present(), self._left
        for client in clients:
            client.refresh(_WAIT_S)
        return merged([left, *(client.snapshot() for client in clients)])

    def _present(self) -> list[Telemetry]:
        """The clients that are in use; what the others counted is put aside. Needs the lock.

        Not in a callback of the references: the collector of garbage may run one in a thread that holds the lock.
        """
        present = []
        for reference, values in list(self._clients.items()):
            client = reference()
            if client is not None:
                present.append(client)
                continue
            del self._clients[reference]
            last = values.snapshot()
            self._left = merged([self._left, Snapshot(last.counters, {}, last.histograms)])
        return present


def _families(
    instrument: Instrument, shown: Snapshot, recent: Mapping[Series, Distribution]
) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
    labels = [names.prometheus_label(label) for label in instrument.all_labels]
    name, text = instrument.prometheus_name, instrument.description
    if instrument.kind == "histogram":
        found = _of(instrument, shown.histograms)
        if found:
            yield _histogram(instrument, found, labels)
            yield _quantiles(instrument, _of(instrument, recent), labels)
        return
    values = _of(instrument, shown.counters if instrument.kind == "counter" else shown.gauges)
    kind = CounterMetricFamily if instrument.kind == "counter" else GaugeMetricFamily
    if values:
        family = kind(name, text, labels=labels)
        for series, value in values.items():
            family.add_metric(list(series.values), float(value))
        yield family


_V = TypeVar("_V")


def _of(instrument: Instrument, values: Mapping[Series, _V]) -> dict[Series, _V]:
    return {series: value for series, value in values.items() if series.name == instrument.name}


def _histogram(
    instrument: Instrument, found: Mapping[Series, Distribution], labels: list[str]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(instrument.prometheus_name, instrument.description, labels=labels)
    for series, values in found.items():
        counts = values.counts(instrument.bounds)
        buckets = [
            (floatToGoString(bound), float(count))  # type: ignore[no-untyped-call]
            for bound, count in zip(instrument.bounds, counts, strict=True)
        ]
        family.add_metric(list(series.values), [*buckets, ("+Inf", float(values.count))], values.sum)
    return family


def _quantiles(instrument: Instrument, found: Mapping[Series, Distribution], labels: list[str]) -> GaugeMetricFamily:
    text = f"True quantiles over about the last minute. {instrument.description}"
    family = GaugeMetricFamily(f"{instrument.prometheus_name}_quantile", text, labels=[*labels, "quantile"])
    for series, values in found.items():
        for share, value in zip(names.QUANTILES, values.quantiles(names.QUANTILES), strict=False):
            family.add_metric([*series.values, f"{share:g}"], value)
    return family


class _Served:
    """The page of this process, once somebody asked for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.page: Page | None = None
        self.address: tuple[str, int] | None = None
        self.stop: Callable[[], None] = lambda: None


_served = _Served()


def _forget() -> None:
    """In a forked child: the thread of the parent's page does not live in it."""
    global _served  # noqa: PLW0603 - one a process
    _served = _Served()


os.register_at_fork(after_in_child=_forget)


def close() -> None:
    """End this process's page, if there is one; the next `serve` starts another."""
    global _served  # noqa: PLW0603 - one a process
    with _served.lock:
        _served.stop()
        _served = _Served()


def serve(telemetry: Telemetry, host: str, port: int, clock: Clock) -> tuple[str, int] | None:
    """Show `telemetry` on this process's page, which the first call starts; returns where it is, None where no port is free.

    Later calls add to the page that there is, whatever address they name.
    """
    with _served.lock:
        if _served.page is None:
            _served.page = Page(clock)
            _served.address, _served.stop = _start(_served.page, host, port)
        _served.page.add(telemetry)
        return _served.address


def _start(page: Page, host: str, port: int) -> tuple[tuple[str, int] | None, Callable[[], None]]:
    """Where the page is served from now on, None where no port is free; and what ends it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(page)
    ProcessCollector(registry=registry)
    for number in range(port, port + PORTS):
        try:
            server, _ = start_http_server(number, addr=host, registry=registry)
        except OSError:
            continue
        log.info("Metrics of the worker process %d: http://%s:%d/metrics", os.getpid(), host, number)
        return (host, number), partial(_end, server)
    log.warning(
        "The metrics of the worker process %d are not shown: none of the ports %d to %d on %s could be opened.",
        os.getpid(),
        port,
        port + PORTS - 1,
        host,
    )
    return None, lambda: None


def _end(server: BaseServer) -> None:
    server.shutdown()
    server.server_close()


class WithPage:
    """Makes callers as `make` does, and shows what each reports on the page of its process. Travels with the graph.

    A caller reports by its attribute `telemetry`; one without it is made and not shown.
    """

    def __init__(self, make: Callable[..., Any], address: str) -> None:
        self._make = make
        self._host, self._port = parse_address(address)

    def __call__(self, settings: Any, clock: Clock) -> Any:
        """The caller."""
        caller = self._make(settings, clock)
        telemetry = getattr(caller, "telemetry", None)
        if telemetry is not None:
            serve(telemetry, self._host, self._port, clock)
        return caller
