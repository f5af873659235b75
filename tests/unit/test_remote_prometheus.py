"""A worker's page for Prometheus: what it shows, where it is served, and that it never ends a job."""

from __future__ import annotations

import gc
import math
import pickle
import socket
from collections.abc import Iterator

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from transforms.errors import SettingsError
from transforms.remote import names, prometheus
from transforms.remote.clock import Clock
from transforms.remote.fakes import VirtualClock
from transforms.remote.telemetry import Telemetry

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
    text = requests.get(f"http://{address[0]}:{address[1]}/metrics", timeout=10).text
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
    telemetry = Telemetry(role, model="m")
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
    assert one(found, f"{duration}_count", gen_ai_operation_name="chat", gen_ai_request_model="m") == 1000
    assert one(found, f"{duration}_bucket", le="+Inf") == 1000
    assert abs(one(found, f"{duration}_bucket", le="0.64") - 640) <= 7
    assert math.isclose(one(found, f"{duration}_sum"), 500.5)
    assert math.isclose(one(found, f"{duration}_quantile", quantile="0.99"), 0.99, rel_tol=0.01)
    assert not [key for key in found if "secret" in str(key)]
    assert one(found, "process_cpu_seconds_total") > 0


def test_clients_share_the_page_of_their_process_and_leave_it() -> None:
    """Two roles are two series, two clients of one role one sum; a client that is gone is shown no more."""
    address = prometheus.serve(first := client(), "127.0.0.1", free_ports(2), CLOCK)
    second, other = client(), client("sentiment")
    assert prometheus.serve(second, "127.0.0.1", 1, CLOCK) == prometheus.serve(other, "elsewhere", 2, CLOCK) == address
    found = scrape(address)
    assert one(found, "inference_attempts_total", role="answer") == 6
    assert one(found, "inference_attempts_total", role="sentiment") == 3
    assert one(found, "gen_ai_client_operation_duration_seconds_count", role="answer") == 2000
    del first, second
    gc.collect()
    assert {dict(labels).get("role") for name, labels in scrape(address) if "inference" in name} == {"sentiment"}


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
