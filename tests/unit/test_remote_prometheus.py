"""A worker's page for Prometheus: what it shows, where it is served, and that it never ends a job."""

from __future__ import annotations

import gc
import math
import pickle
import socket
from collections.abc import Iterator

import pytest
import requests
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition, parser
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from transforms.errors import SettingsError
from transforms.remote import names, prometheus
from transforms.remote.clock import Clock
from transforms.remote.fakes import VirtualClock
from transforms.remote.telemetry import Snapshot, Telemetry

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
CLOCK = VirtualClock()


@pytest.fixture(autouse=True)
def no_page() -> Iterator[None]:
    """No page before a test and none after it."""
    prometheus.close()
    yield
    prometheus.close()


def free_ports(number: int) -> int:
    """The first of so many ports in a row on which nobody listens."""
    for port in range(21_000, 60_000, prometheus.PORTS):
        sockets = []
        try:
            sockets.extend(socket.create_server(("127.0.0.1", at)) for at in range(port, port + number))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return port
    raise AssertionError("no free ports")


def scrape(address: tuple[str, int] | None) -> Samples:
    assert address
    return samples_of(requests.get(f"http://{address[0]}:{address[1]}/metrics", timeout=10).text)


def read(page: Collector) -> Samples:
    """The samples of a page, without a server."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(page)
    return samples_of(generate_latest(registry).decode())


def samples_of(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one(samples: Samples, name: str, **labels: str) -> float:
    """The one sample of this name that has these labels."""
    (value,) = (v for (n, pairs), v in samples.items() if n == name and set(labels.items()) <= set(pairs))
    return value


def client(role: str = "answer") -> Telemetry:
    telemetry = Telemetry(role, provider="openai", model="m")
    telemetry.count(names.ATTEMPTS, 3, endpoint="http://u:secret@h:1/v1", outcome="ok")
    telemetry.gauge(names.CALLS_IN_FLIGHT, lambda: 4)
    for value in range(1, 1001):
        telemetry.record(names.OPERATION_DURATION, value / 1000, error_type="")
    return telemetry


def test_the_page_shows_counters_gauges_and_histograms() -> None:
    """Counts are exact, buckets add up, quantiles are true, and no secret of a URL is there."""
    telemetry = client()
    found = scrape(prometheus.serve(telemetry, "127.0.0.1", free_ports(1), CLOCK))
    assert one(found, "inference_attempts_total", endpoint="http://h:1/v1", outcome="ok", role="answer") == 3
    assert one(found, "inference_calls_in_flight", role="answer") == 4
    duration = "gen_ai_client_operation_duration_seconds"
    assert one(found, f"{duration}_count", gen_ai_provider_name="openai", gen_ai_request_model="m") == 1000
    assert one(found, f"{duration}_bucket", le="+Inf") == 1000
    assert one(found, f"{duration}_bucket", le="0.64") == 640
    assert math.isclose(one(found, f"{duration}_sum"), 500.5)
    assert math.isclose(one(found, f"{duration}_quantile", quantile="0.99"), 0.99, rel_tol=0.01)
    assert not [key for key in found if "secret" in str(key)]
    assert one(found, "process_cpu_seconds_total") > 0


def test_clients_share_the_page_of_their_process_and_leave_it() -> None:
    """Two roles are two series, two clients of one role one sum; of a client that is gone the gauges are shown no more."""
    address = prometheus.serve(first := client(), "127.0.0.1", free_ports(2), CLOCK)
    second, other = client(), client("sentiment")
    assert prometheus.serve(second, "127.0.0.1", 1, CLOCK) == prometheus.serve(other, "elsewhere", 2, CLOCK) == address
    found = scrape(address)
    assert one(found, "inference_attempts_total", role="answer") == 6
    assert one(found, "inference_attempts_total", role="sentiment") == 3
    assert one(found, "gen_ai_client_operation_duration_seconds_count", role="answer") == 2000
    del first, second
    gc.collect()
    found = scrape(address)
    assert {dict(labels)["role"] for name, labels in found if name == "inference_calls_in_flight"} == {"sentiment"}
    assert one(found, "inference_attempts_total", role="answer") == 6


def test_states_of_two_clients_are_not_added_up() -> None:
    """Where two steps ask one role an endpoint has one state, a share is at most 1, and calls in flight are a sum."""
    page, clients = prometheus.Page(CLOCK), [Telemetry("answer"), Telemetry("answer")]
    for telemetry in clients:
        page.add(telemetry)
        telemetry.set_gauge(names.ENDPOINT_STATE, endpoint="http://h:1/v1", state="ready").set(1)
        telemetry.set_gauge(names.BATCH_FILL).set(0.9)
        telemetry.set_gauge(names.LOOP_LAG).set(0.1)
        telemetry.set_gauge(names.CALLS_IN_FLIGHT).set(4)
    found = read(page)
    assert one(found, "inference_endpoint_state", state="ready") == 1
    assert one(found, "inference_batch_fill_ratio") == 0.9
    assert one(found, "inference_loop_lag_seconds") == 0.1
    assert one(found, "inference_calls_in_flight") == 8


class ForgetfulPage(prometheus.Page):
    """One that keeps nothing of a client that left."""

    def _present(self) -> list[Telemetry]:
        present = super()._present()
        self._left = Snapshot()
        return present


def after_one_left(make: type[prometheus.Page]) -> tuple[float, float, float]:
    """A page's counter, count and newest median, a minute after a busy client left and a slow one went on."""
    clock = VirtualClock()
    page, busy, slow = make(clock), Telemetry("answer"), Telemetry("answer")
    page.add(busy)
    page.add(slow)
    for telemetry, number, wait_s in ((busy, 1_000, 0.1), (slow, 10, 5.0)):
        telemetry.count(names.STALLS, number)
        for _ in range(number):
            telemetry.record(names.QUEUE_WAIT, wait_s)
    clock.advance(61)
    read(page)
    for _ in range(10):
        slow.record(names.QUEUE_WAIT, 5.0)
    del busy, telemetry
    clock.advance(61)
    gc.collect()
    found = read(page)
    return (
        one(found, "inference_stream_stalls_total"),
        one(found, "inference_queue_wait_seconds_count"),
        one(found, "inference_queue_wait_seconds_quantile", quantile="0.5"),
    )


def test_counts_stay_when_a_client_leaves() -> None:
    """What a client counted stays on the page, so nothing falls, and the quantiles of the last minute are those of its values."""
    stalls, count, median = after_one_left(prometheus.Page)
    assert (stalls, count) == (1_010, 1_020)
    assert math.isclose(median, 5.0, rel_tol=0.01)


def test_a_page_that_forgets_goes_back() -> None:
    """The sibling: without what clients left behind, counters fall and the quantiles of the last minute are none."""
    stalls, count, median = after_one_left(ForgetfulPage)
    assert (stalls, count) == (10, 20)
    assert not math.isclose(median, 5.0, rel_tol=0.01)


def test_what_clients_left_is_kept_without_the_clients() -> None:
    """Clients come and go without a scrape, parts of a chain among them: each is freed, counted once, and kept as a sum."""
    page = prometheus.Page(CLOCK)
    for _ in range(20):
        telemetry, part = Telemetry("answer"), Telemetry("small")
        telemetry.include(part)
        telemetry.gauge(names.CALLS_IN_FLIGHT, lambda telemetry=telemetry: float(bool(telemetry)))
        page.add(telemetry)
        page.add(telemetry)
        telemetry.count(names.STALLS)
        part.count(names.STALLS, 2)
        del telemetry, part
        gc.collect()
    assert len(page._clients) == 1
    found = read(page)
    assert one(found, "inference_stream_stalls_total", role="answer") == 20
    assert one(found, "inference_stream_stalls_total", role="small") == 40
    assert not page._clients


def test_bounds_are_written_as_they_are() -> None:
    """Each `le` is the bound itself, in the words that OpenMetrics wants, and whole numbers at a bound count in it."""
    page, telemetry = prometheus.Page(CLOCK), Telemetry("answer", model='m "x"\n\\')
    page.add(telemetry)
    telemetry.record(names.BATCH_SIZE, 32)
    telemetry.record(names.REQUEST_SIZE, 1 << 20)
    telemetry.record(names.TOKEN_USAGE, 5, gen_ai_token_type="input")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(page)
    bounds: dict[str, list[float]] = {}
    for family in parser.text_string_to_metric_families(exposition.generate_latest(registry).decode()):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                bounds.setdefault(family.name, []).append(float(sample.labels["le"]))
    for instrument in (names.BATCH_SIZE, names.REQUEST_SIZE, names.TOKEN_USAGE):
        assert bounds[instrument.prometheus_name] == [*instrument.bounds, math.inf]
    found = read(page)
    assert one(found, "inference_batch_size_bucket", le="32.0") == 1
    assert one(found, "inference_batch_size_bucket", le="16.0") == 0
    assert one(found, "inference_request_size_bytes_bucket", le="1.048576e+06") == 1


def test_each_process_takes_the_first_free_port() -> None:
    """Where others have taken the first ports, the next is used."""
    port = free_ports(3)
    taken = [socket.create_server(("127.0.0.1", port + at)) for at in range(2)]
    try:
        address = prometheus.serve(client(), "127.0.0.1", port, CLOCK)
    finally:
        for each in taken:
            each.close()
    assert address == ("127.0.0.1", port + 2)


def test_without_a_free_port_the_process_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """Where all ports are taken nothing is raised, and one sentence says so."""
    port = free_ports(prometheus.PORTS)
    taken = [socket.create_server(("127.0.0.1", port + at)) for at in range(prometheus.PORTS)]
    try:
        assert prometheus.serve(client(), "127.0.0.1", port, CLOCK) is None
        assert prometheus.serve(client(), "127.0.0.1", port, CLOCK) is None
    finally:
        for each in taken:
            each.close()
    assert [f"none of the ports {port} to {port + 15}" in record.message for record in caplog.records] == [True]


class _Caller:
    def __init__(self, telemetry: Telemetry | None) -> None:
        self.telemetry = telemetry


def _reporting(settings: Telemetry | None, clock: Clock) -> _Caller:
    return _Caller(settings)


def test_what_makes_callers_with_a_page_travels_with_the_graph() -> None:
    """It is pickled as plain values, and on the worker shows what its callers report, where they do."""
    port = free_ports(1)
    make = pickle.loads(pickle.dumps(prometheus.WithPage(_reporting, f"127.0.0.1:{port}")))
    telemetry = client()
    assert make(None, CLOCK).telemetry is None
    with pytest.raises(requests.ConnectionError):
        scrape(("127.0.0.1", port))
    assert make(telemetry, CLOCK).telemetry is telemetry
    assert one(scrape(("127.0.0.1", port)), "inference_attempts_total") == 3


@pytest.mark.parametrize(
    ("text", "address"),
    [("9464", ("127.0.0.1", 9464)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:9464", ("::1", 9464))],
)
def test_addresses_are_read(text: str, address: tuple[str, int]) -> None:
    """A port alone is on this machine; a host may stand before it."""
    assert prometheus.parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "65535", ":9464", "host:", "host:x", "9464:host", "٣"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """Anything else is refused with a sentence, also a port above which too few are left."""
    with pytest.raises(SettingsError, match="is not PORT or HOST:PORT"):
        prometheus.parse_address(text)
