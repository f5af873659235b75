"""The client's own part of a round-trip time."""

from __future__ import annotations

import asyncio

import pytest

from transforms.remote.admission import Admission
from transforms.remote.client_metrics import ClientMetrics
from transforms.remote.concurrency import ConcurrencySettings, Sample, make_limit
from transforms.remote.fakes import VirtualClock
from transforms.remote.loop_lag import EVERY_S, LoopLag
from transforms.remote.outliers import Kind
from transforms.remote.pool import Pool, PoolSettings
from transforms.remote.quota import Quota, QuotaSettings
from transforms.remote.settings import Endpoint
from transforms.remote.telemetry import Telemetry

URL = "http://one/v1"


def lag_beside(busy_s: float, *, seconds: float = 5.0) -> LoopLag:
    """The lag found on a loop that computes `busy_s` seconds ten milliseconds after each time it did."""
    clock = VirtualClock()
    lag = LoopLag(clock)

    async def main() -> None:
        lag.start()
        end_s = clock.monotonic_s() + seconds
        while clock.monotonic_s() < end_s:
            clock.advance(busy_s)
            await clock.sleep(0.01)
        lag.stop()

    clock.run(main())
    return lag


def test_an_idle_loop_has_none() -> None:
    """Where nothing computes, nothing waits, and a round trip is the server's."""
    lag = lag_beside(0.0)
    assert lag.lag_s == pytest.approx(0.0, abs=1e-9)
    assert lag.without(0.2) == pytest.approx(0.2)


@pytest.mark.parametrize("busy_s", [0.02, 0.1])
def test_a_busy_loop_has_what_a_reply_would_wait(busy_s: float) -> None:
    """What falls due while the loop computes waits for its end: some of the time, and never more than all of it."""
    lag = lag_beside(busy_s)
    assert busy_s / 4 < lag.lag_s <= busy_s
    assert lag.without(1.0) == pytest.approx(1.0 - lag.lag_s)


def test_half_of_a_round_trip_stays() -> None:
    """A lag that is longer than the round trip leaves half of it."""
    lag = lag_beside(0.2)
    assert lag.without(0.01) == pytest.approx(0.005)


def test_it_fades() -> None:
    """A second after the loop was busy its lag is all but forgotten."""
    clock = VirtualClock()
    lag = LoopLag(clock)

    async def main() -> None:
        lag.start()
        for _ in range(20):
            clock.advance(0.1)
            await clock.sleep(EVERY_S)
        busy_s = lag.lag_s
        await clock.sleep(1.0)
        assert lag.lag_s < busy_s / 20
        lag.stop()

    clock.run(main())


def test_nothing_is_left_on_the_loop() -> None:
    """After `stop` no timer stays, in whichever of its turns a probe was; `start` twice is one probe."""
    clock = VirtualClock()

    async def main(turns: int) -> int:
        lag = LoopLag(clock)
        lag.start()
        lag.start()
        await clock.sleep(EVERY_S)
        for _ in range(turns):
            await asyncio.sleep(0)
        lag.stop()
        before_s = clock.monotonic_s()
        await clock.sleep(10 * EVERY_S)
        assert lag.lag_s == 0.0
        return round((clock.monotonic_s() - before_s) / EVERY_S)

    for turns in range(4):
        assert clock.run(main(turns)) == 10


class Listener:
    """A limit that keeps what it is told."""

    limit = 10

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def press(self, now_s: float) -> None:
        """Learn nothing."""

    def observe(self, sample: Sample) -> None:
        """Keep it."""
        self.samples.append(sample)


def told(kind: Kind, busy_s: float) -> tuple[Sample, float]:
    """What a limit is told of a request that took a second beside a loop that computes, and what lag was found."""
    clock, listener = VirtualClock(), Listener()
    pool = Pool([Endpoint(URL)], PoolSettings())
    metrics = ClientMetrics(Telemetry("answer"))
    door = Admission(clock, pool, 10, {URL: listener}, {URL: Quota(QuotaSettings())}, metrics)

    async def main() -> None:
        permit = await door.acquire(0, 1.0)
        while clock.monotonic_s() < permit.began_s + 1.0:
            clock.advance(busy_s)
            await clock.sleep(0.01)
        door.end(permit, kind)

    clock.run(main())
    return listener.samples[0], door.lag.lag_s


def test_a_limit_is_told_what_the_server_took() -> None:
    """Of a reply the lag is taken off; an idle loop takes off nothing."""
    sample, lag_s = told("ok", 0.1)
    assert lag_s > 0.01
    assert sample.rtt_s == pytest.approx(sample.now_s - lag_s)
    assert told("ok", 0.0)[0].rtt_s == pytest.approx(1.0, abs=0.02)


def test_a_failure_is_told_as_it_was() -> None:
    """When a request was sent is reckoned from how long it took, so a failure keeps all of it."""
    sample, lag_s = told("timeout", 0.1)
    assert lag_s > 0.01
    assert sample.rtt_s >= 1.0


def limit_beside_its_own_load(cost_s: float, *, lag_taken_off: bool) -> int:
    """The limit of a server that takes 0.1 s whatever its load, called by one that computes `cost_s` for each request under way."""
    clock = VirtualClock()
    limit = make_limit(ConcurrencySettings(most=200))
    metrics = ClientMetrics(Telemetry("answer"))
    door = Admission(
        clock, Pool([Endpoint(URL)], PoolSettings()), 200, {URL: limit}, {URL: Quota(QuotaSettings())}, metrics
    )
    if not lag_taken_off:
        door.lag.without = lambda took_s: took_s  # type: ignore[method-assign]
    end_s = 20.0

    async def call() -> None:
        while clock.monotonic_s() < end_s:
            permit = await door.acquire(0, 2.0 * end_s)
            await clock.sleep(0.1)
            door.end(permit, "ok")

    async def compute() -> None:
        while clock.monotonic_s() < end_s:
            clock.advance(cost_s * door.in_flight)
            await clock.sleep(0.005)

    async def main() -> None:
        await asyncio.gather(compute(), *(call() for _ in range(200)))

    clock.run(main())
    return limit.limit


def test_a_process_holds_less_of_its_own_load_against_a_server() -> None:
    """Where a process gets slower with what it has under way, what is taken off never lowers its limit, and raises them in sum."""
    costs_s = (0.001, 0.003)
    less = [limit_beside_its_own_load(cost_s, lag_taken_off=False) for cost_s in costs_s]
    more = [limit_beside_its_own_load(cost_s, lag_taken_off=True) for cost_s in costs_s]
    assert all(one >= other for one, other in zip(more, less, strict=True)), (more, less)
    assert sum(more) > 1.1 * sum(less), (more, less)
