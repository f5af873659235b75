"""What the client counts of itself: quantiles, readings that lose nothing, bounded labels, the policies' own numbers."""

from __future__ import annotations

import asyncio
import math
import random
import sys
import threading
from collections.abc import Iterator

import pytest

from transforms.remote import names
from transforms.remote.cache import CacheSettings, MemoryCache
from transforms.remote.cache_redis import RedisCache
from transforms.remote.client_metrics import ClientMetrics
from transforms.remote.fakes import VirtualClock
from transforms.remote.names import Instrument
from transforms.remote.pool import Pool, PoolSettings
from transforms.remote.settings import Endpoint
from transforms.remote.telemetry import (
    MOST_SERIES,
    OTHER,
    Distribution,
    Histogram,
    Recent,
    Series,
    Snapshot,
    Telemetry,
    endpoint_label,
    observe_pool,
)

SHARES = (0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)


def draws(kind: str, seed: int, number: int = 5_000) -> list[float]:
    chance = random.Random(seed)
    shapes = {
        "log-normal": lambda: chance.lognormvariate(-1.6, 0.6),
        "bimodal": lambda: chance.gauss(0.2, 0.01) if chance.random() < 0.9 else chance.gauss(30.0, 1.0),
        "heavy": lambda: chance.paretovariate(0.8) * 1e-3,
        "constant": lambda: 0.25,
        "bytes": lambda: float(chance.randrange(1, 16 << 20)),
    }
    return [abs(shapes[kind]()) for _ in range(number)]


def near(value: float | None, true: float) -> bool:
    return value is not None and abs(value - true) <= 0.01 * true * (1 + 1e-9)


def distribution(values: list[float]) -> Distribution:
    telemetry = Telemetry("answer")
    histogram = telemetry.histogram(names.QUEUE_WAIT)
    for value in values:
        histogram.record(value)
    return histogram.read()


@pytest.mark.parametrize("kind", ["log-normal", "bimodal", "heavy", "constant", "bytes"])
def test_quantiles_are_true_within_one_per_cent(kind: str) -> None:
    """Of 5 000 values of any shape, each quantile is within 1 % of the value of that rank; count and sum are exact."""
    for seed in range(5):
        values = draws(kind, seed)
        found, ranked = distribution(values), sorted(values)
        assert found.count == len(values)
        assert math.isclose(found.sum, math.fsum(values), rel_tol=1e-9)
        for share in SHARES:
            assert near(found.quantile(share), ranked[math.floor(share * (len(values) - 1))]), (kind, seed, share)


def test_an_interval_has_the_quantiles_of_its_own_values() -> None:
    """What came between two readings is told apart from what came before, and put together again it is the whole."""
    telemetry = Telemetry("answer")
    histogram = telemetry.histogram(names.QUEUE_WAIT)
    before, after = draws("log-normal", 1), [10 * value for value in draws("log-normal", 2)]
    for value in before:
        histogram.record(value)
    early = histogram.read()
    for value in after:
        histogram.record(value)
    late = histogram.read().minus(early)
    assert late.count == len(after)
    assert near(late.quantile(0.95), sorted(after)[math.floor(0.95 * (len(after) - 1))])
    whole = late.plus(early)
    assert (whole.count, whole.bins) == (histogram.read().count, histogram.read().bins)


HISTOGRAMS = [instrument for instrument in names.INSTRUMENTS if instrument.kind == "histogram"]


def under(bounds: tuple[float, ...], values: list[float]) -> list[int]:
    return [sum(value <= bound for value in values) for bound in bounds]


def around(bounds: tuple[float, ...]) -> list[float]:
    """Values at the bounds, near them on both sides, and the next whole numbers."""
    near_ones = (1.0, 0.999_999, 1.000_001, 0.995, 1.005)
    return [bound * factor for bound in bounds for factor in near_ones] + [bound + 1 for bound in bounds]


@pytest.mark.parametrize("instrument", HISTOGRAMS, ids=lambda one: one.name)
def test_buckets_hold_what_is_at_most_their_bound(instrument: Instrument) -> None:
    """Counts under the bounds of each instrument are exact: a value that equals a bound counts in it, the next one does not."""
    labels = {label.replace(".", "_"): "x" for label in instrument.labels}
    histogram = Telemetry("answer").histogram(instrument, **labels)
    values = [*around(instrument.bounds), *draws("log-normal", 3), *draws("bytes", 3)]
    for value in values:
        histogram.record(value)
    assert histogram.read().counts(instrument.bounds) == under(instrument.bounds, values)


def test_buckets_that_end_elsewhere_are_not_exact() -> None:
    """The sibling: of times that are counted from 1 and not from their least bound, neighbours count too."""
    histogram, values = Histogram(), around(names.TIME_BOUNDS_S)
    for value in values:
        histogram.record(value)
    assert histogram.read().counts(names.TIME_BOUNDS_S) != under(names.TIME_BOUNDS_S, values)


def test_bounds_are_the_least_one_times_powers_of_two() -> None:
    """So each bound of an instrument is the end of a bucket."""
    for instrument in HISTOGRAMS:
        powers = [math.log2(bound / instrument.bounds[0]) for bound in instrument.bounds]
        assert all(math.isclose(power, round(power), abs_tol=1e-12) for power in powers), instrument.name


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e300, 1e-300])
def test_no_number_breaks_a_histogram(value: float) -> None:
    """What is no measurement is counted at the end of the range, and the sum stays a number."""
    found = distribution([value, 1.0])
    assert found.count == sum(found.bins.values()) == 2
    assert math.isfinite(found.sum)


def test_nothing_has_no_quantile() -> None:
    """A histogram without values has none."""
    assert Distribution().quantile(0.5) is None
    assert Distribution().counts([1.0]) == [0]


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_readings_lose_nothing_and_count_nothing_twice() -> None:
    """While one thread counts and measures, the deltas that others take add up to everything, whoever reads and when."""
    telemetry = Telemetry("answer")
    number, done = 120_000, threading.Event()
    taken: list[Snapshot] = []
    lock, last = threading.Lock(), [Snapshot()]
    broken: list[Distribution] = []

    def read() -> None:
        while not done.is_set():
            take()

    def take() -> None:
        with lock:
            last[0], delta = telemetry.deltas_since(last[0])
            taken.append(delta)
        broken.extend(one for one in delta.histograms.values() if one.count != sum(one.bins.values()))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    counter, histogram = telemetry.counter(names.STALLS), telemetry.histogram(names.QUEUE_WAIT)
    chance = random.Random(4)
    for at in range(number):
        counter.add()
        # Rising and falling, so that the range of buckets grows at both ends under the readers' hands.
        histogram.record(chance.uniform(0.5, 2.0) * 10 ** (6 * math.sin(at / 3_000)))
    done.set()
    for reader in readers:
        reader.join()
    take()
    assert broken == []
    stalls, waits = Series("inference_stream_stalls", ("answer",)), Series("inference_queue_wait", ("answer",))
    assert sum(delta.counters.get(stalls, 0) for delta in taken) == number
    assert sum(delta.histograms[waits].count for delta in taken if waits in delta.histograms) == number
    assert len(taken) > 3


def test_an_instrument_has_so_many_series_and_no_more() -> None:
    """Values of labels without end are counted under one series after so many, and none is lost."""
    telemetry = Telemetry("answer")
    for number in range(3 * MOST_SERIES):
        telemetry.count(names.FALLBACKS, to="other", reason=f"r{number}")
    counters = telemetry.snapshot().counters
    assert len(counters) == MOST_SERIES + 1
    assert sum(counters.values()) == 3 * MOST_SERIES
    assert counters[Series("inference_fallbacks", ("answer", OTHER, OTHER))] == 2 * MOST_SERIES


def test_a_series_that_is_bound_again_is_the_same() -> None:
    """Two policies that bind the same labels add to the same number."""
    telemetry = Telemetry("answer", operation="chat", provider="openai", model="m")
    assert telemetry.counter(names.OUTCOMES, kind="ok") is telemetry.counter(names.OUTCOMES, kind="ok")
    telemetry.record(names.OPERATION_DURATION, 1.0, error_type="")
    (series,) = telemetry.snapshot().histograms
    assert series == ("gen_ai.client.operation.duration", ("answer", "chat", "openai", "m", ""))


@pytest.mark.parametrize(
    ("protocol", "provider"),
    [
        ("openai-chat", "openai"),
        ("openai-embeddings", "openai"),
        ("gemini", "gcp.gemini"),
        ("vertex", "gcp.vertex_ai"),
        ("open-inference-grpc", "open-inference-grpc"),
    ],
)
def test_a_protocol_has_a_provider(protocol: str, provider: str) -> None:
    """The label that the conventions require has their word for the protocol, or the protocol's name, and is on `gen_ai.` alone."""
    assert names.provider_of(protocol) == provider
    assert {"gen_ai.provider.name" in one.constants for one in names.INSTRUMENTS if "gen_ai" in one.name} == {True}
    assert {"gen_ai.provider.name" in one.constants for one in names.INSTRUMENTS if "gen_ai" not in one.name} == {False}


@pytest.mark.parametrize(
    ("labels", "said"),
    [({}, "endpoint, outcome; given: none"), ({"endpoint": "u", "outcome": "ok", "event": "e1"}, "endpoint, outcome")],
)
def test_labels_that_are_not_in_the_table_are_refused(labels: dict[str, str], said: str) -> None:
    """A label that is missing or unknown, such as an event's id, is a ValueError that names those there are."""
    with pytest.raises(ValueError, match=said):
        Telemetry("answer").counter(names.ATTEMPTS, **labels)


def test_an_instrument_is_used_as_what_it_is() -> None:
    """A histogram is no counter."""
    with pytest.raises(ValueError, match="is a histogram, and is used as a counter"):
        Telemetry("answer").counter(names.QUEUE_WAIT)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host:8443/v1?key=secret#secret", "https://host:8443/v1"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
        ("http://host/v1", "http://host/v1"),
        ("http://host:secret/", "?"),
    ],
)
def test_no_secret_of_a_url_is_shown(url: str, shown: str) -> None:
    """User, password, query and fragment of an endpoint are left out of its label."""
    assert endpoint_label(url) == shown
    telemetry = Telemetry("answer")
    telemetry.count(names.ATTEMPTS, endpoint=url, outcome="ok")
    assert next(iter(telemetry.snapshot().counters)).values == ("answer", shown, "ok")


def test_a_chain_reports_its_parts() -> None:
    """What another role reports is shown under that role, is read with the rest, and equal labels are added up."""
    telemetry, other, same = Telemetry("answer"), Telemetry("small"), Telemetry("answer")
    telemetry.include(other)
    telemetry.include(same)
    for part, count in ((telemetry, 1), (other, 2), (same, 4)):
        part.count(names.STALLS, count)
        part.record(names.QUEUE_WAIT, 1.0)
    other.gauge(names.CALLS_WAITING, lambda: 3)
    telemetry.refresh()
    shown = telemetry.snapshot()
    assert {series.values: value for series, value in shown.counters.items()} == {("answer",): 5, ("small",): 2}
    assert {series.values: value.count for series, value in shown.histograms.items()} == {("answer",): 2, ("small",): 1}
    assert shown.gauges == {Series("inference_calls_waiting", ("small",)): 3}


GAUGES = [instrument for instrument in names.INSTRUMENTS if instrument.kind == "gauge"]


@pytest.mark.parametrize("instrument", GAUGES, ids=lambda one: one.name)
def test_gauges_of_equal_labels_become_one_by_what_they_are(instrument: Instrument) -> None:
    """Of two clients of a role numbers of things are added up; of a state, a time or a share there is none above the greater one."""
    first, second = Telemetry("answer"), Telemetry("answer")
    first.include(second)
    labels = dict.fromkeys(instrument.labels, "x")
    for telemetry, value in ((first, 0.5), (second, 1.0)):
        telemetry.set_gauge(instrument, **labels).set(value)
    (shown,) = first.snapshot().gauges.values()
    is_added = instrument.unit not in {"s", "1", "{endpoint}"}
    assert shown == (1.5 if is_added else 1.0)


def test_of_a_closed_client_the_counts_stay() -> None:
    """Its gauges are gone, the counts that others keep are read once more, and nothing holds on to what they were read from."""
    telemetry, stalls = Telemetry("answer"), [3]
    telemetry.gauge(names.CALLS_WAITING, lambda: 7)
    telemetry.observed(names.STALLS, lambda: stalls[0])
    telemetry.record(names.QUEUE_WAIT, 1.0)
    telemetry.refresh()
    stalls[0] = 5
    telemetry.close()
    stalls[0] = 9
    telemetry.refresh()
    shown = telemetry.snapshot()
    assert shown.gauges == {}
    assert list(shown.counters.values()) == [5]
    assert [one.count for one in shown.histograms.values()] == [1]


class GoneRedis:
    """A Redis that is not there."""

    async def get(self, name: bytes) -> bytes | None:
        raise ConnectionError

    async def set(self, name: bytes, value: bytes, *, px: int) -> None:
        raise ConnectionError

    async def aclose(self) -> None:
        return


def test_caches_show_what_they_lost() -> None:
    """What the memory had no room for, and what a Redis failed to do, are counters of their own."""
    clock = VirtualClock()
    memory = MemoryCache(CacheSettings(max_entries=2), clock)
    redis = RedisCache(CacheSettings(backend="redis", url="redis://h:1/0"), clock, GoneRedis())
    telemetry = Telemetry("answer")
    for cache in (memory, redis):
        ClientMetrics(telemetry).show_cache(cache)

    async def use() -> None:
        for number in range(5):
            await memory.put(bytes([number]), b"1234")
        for _ in range(2):
            await redis.get(b"k")
            clock.advance(2.0)

    asyncio.run(use())
    telemetry.refresh()
    shown = telemetry.snapshot()
    assert shown.counters[Series("inference_cache_evictions", ("answer",))] == 3
    assert shown.counters[Series("inference_cache_failures", ("answer",))] == 2
    assert shown.gauges[Series("inference_cache_size", ("answer",))] == 10


def test_probes_and_lost_leases_are_counted() -> None:
    """Probes count by endpoint and by what they found, leases that were lost by endpoint."""
    telemetry, lost = Telemetry("answer"), [2]
    metrics = ClientMetrics(telemetry)
    for up in (False, False, True):
        metrics.on_probe("http://h:1/v1", up)
    metrics.observe(names.QUOTA_LEASES_LOST, lambda: lost[0], endpoint="http://h:1/v1")
    telemetry.refresh()
    counters = telemetry.snapshot().counters
    assert counters[Series("inference_probes", ("answer", "http://h:1/v1", "down"))] == 2
    assert counters[Series("inference_probes", ("answer", "http://h:1/v1", "up"))] == 1
    assert counters[Series("inference_quota_leases_lost", ("answer", "http://h:1/v1"))] == 2


def test_numbers_are_read_where_they_are_kept() -> None:
    """With a loop they are read there and nowhere else, and a loop that is busy leaves the last reading."""
    waiting = []
    telemetry = Telemetry("answer", soon=waiting.append)
    telemetry.gauge(names.CALLS_WAITING, lambda: 7)
    series = Series("inference_calls_waiting", ("answer",))
    telemetry.refresh()
    assert telemetry.snapshot().gauges[series] == 0
    waiting.pop()()
    assert telemetry.snapshot().gauges[series] == 7


def test_a_loop_that_is_closed_costs_nothing() -> None:
    """After the end of the event loop the last numbers are shown."""

    def closed(_: object) -> None:
        raise RuntimeError("Event loop is closed")

    telemetry = Telemetry("answer", soon=closed)
    telemetry.set_gauge(names.RETRY_BUDGET).set(3)
    telemetry.refresh(wait_s=60.0)
    assert telemetry.snapshot().gauges == {Series("inference_retry_budget", ("answer",)): 3}


def test_a_number_that_cannot_be_read_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """A reader that raises is said once; the others are shown."""
    telemetry = Telemetry("answer")
    telemetry.gauge(names.CALLS_WAITING, lambda: 1 // 0)
    telemetry.gauge(names.CALLS_IN_FLIGHT, lambda: 5)
    telemetry.refresh()
    telemetry.refresh()
    assert telemetry.snapshot().gauges[Series("inference_calls_in_flight", ("answer",))] == 5
    assert [record.message for record in caplog.records] == [
        "The metric inference_calls_waiting could not be read; its last value stays."
    ]


def test_recent_values_are_those_of_the_last_seconds() -> None:
    """Values older than the window do not count, however often somebody reads, and few readings are kept."""
    series, recent = Series("x", ()), Recent(window_s=60.0)
    values: list[float] = []
    for second in range(600):
        values.append(1.0 if second < 300 else 100.0)
        found = recent.add(float(second), {series: distribution(values[-600:])})[series]
        assert found.count <= 60 + 6
        assert len(recent._kept) <= 14
    assert near(found.quantile(0.0), 100.0)


def test_a_pool_reports_its_endpoints() -> None:
    """State, breaker, requests in flight, latency and ejections of each endpoint are those that the pool goes by."""
    pool = Pool([Endpoint("http://one:1/v1"), Endpoint("http://two:1/v1")], PoolSettings())
    one, two = pool.endpoints
    now_s = [100.0]
    telemetry = Telemetry("answer")
    observe_pool(telemetry, pool, lambda: now_s[0])
    two.on_start(now_s[0])
    for _ in range(5):
        one.on_end(now_s[0], "server-error", 0.1, one.on_start(now_s[0]))
    telemetry.refresh()
    shown = telemetry.snapshot()

    def gauge(name: str, *values: str) -> float:
        return shown.gauges[Series(name, ("answer", *values))]

    for endpoint in pool.endpoints:
        states = {
            s: gauge("inference_endpoint_state", endpoint.url, s) for s in ("ready", "waiting", "ejected", "open")
        }
        assert {state for state, value in states.items() if value} == {endpoint.state(now_s[0])}
    assert gauge("inference_endpoint_state", one.url, "ejected") == 1
    assert gauge("inference_breaker_state", one.url, one.breaker.state) == 1
    assert gauge("inference_requests_in_flight", two.url) == 1
    assert shown.counters[Series("inference_ejections", ("answer", one.url, "errors"))] == 1
    assert shown.counters[Series("inference_ejections", ("answer", two.url, "errors"))] == 0


def test_names_are_fit_for_flink_and_prometheus() -> None:
    """No two instruments share a name anywhere, and the names have only what Flink and Prometheus leave as it is."""
    for of in (lambda i: i.name, lambda i: i.prometheus_name, lambda i: i.beam_name(("a",) * len(i.labels))):
        found = [of(instrument) for instrument in names.INSTRUMENTS]
        assert len(set(found)) == len(found)
    for instrument in names.INSTRUMENTS:
        assert instrument.name.startswith(("gen_ai.client.", "inference_"))
        values = ("http://host:1/v1",) * len(instrument.labels)
        for name in (instrument.prometheus_name, instrument.beam_name(values, "p99")):
            assert name.isascii()
            assert name.replace("_", "").isalnum()
        assert instrument.kind != "histogram" or instrument.bounds
