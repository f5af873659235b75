"""Health probes: who is asked, how often, and what comes of it."""

from __future__ import annotations

import random

import pytest

from transforms.errors import SettingsError
from transforms.remote.breaker import BreakerSettings
from transforms.remote.fakes import VirtualClock
from transforms.remote.outliers import Kind
from transforms.remote.pool import EndpointState, Pool, PoolSettings
from transforms.remote.probes import ProbeSchedule, ProbeSettings
from transforms.remote.probing import Probing
from transforms.remote.settings import Endpoint


def bench(count: int = 2, **breaker: float) -> tuple[Pool, ProbeSchedule]:
    endpoints = [Endpoint(f"http://{number}") for number in range(count)]
    pool = Pool(endpoints, PoolSettings(breaker=BreakerSettings(**breaker)))  # type: ignore[arg-type]
    return pool, ProbeSchedule(pool, ProbeSettings())


def fail(state: EndpointState, now_s: float, kind: Kind = "unreachable") -> None:
    for _ in range(5):
        state.on_end(now_s, kind, 0.1, state.on_start(now_s))


def test_usable_endpoints_are_not_probed() -> None:
    """While events tell how an endpoint is, nothing is asked."""
    _, schedule = bench()
    assert (schedule.due(0.0), schedule.wait_s(0.0)) == ([], 1.0)


def test_an_ejected_endpoint_is_probed_every_second() -> None:
    """It is due at once, not again while a probe is under way, and a second after its result."""
    pool, schedule = bench()
    a = pool.endpoints[0]
    fail(a, 0.0)
    assert schedule.due(0.0) == [a]
    assert schedule.due(0.0) == []
    assert schedule.due(3.0) == []
    schedule.on_result(3.0, a, ok=False)
    assert schedule.due(3.5) == []
    assert schedule.wait_s(3.5) == 0.5
    assert schedule.due(4.0) == [a]


def test_good_probes_take_an_unreachable_endpoint_back() -> None:
    """Two good ones in a row end the ejection and the breaker's back-off; it starts slowly and with probes."""
    pool, schedule = bench()
    a = pool.endpoints[0]
    fail(a, 0.0)
    for now_s, ok in ((0.1, True), (1.1, False), (2.1, True)):
        assert schedule.due(now_s) == [a]
        schedule.on_result(now_s, a, ok)
        assert a.state(now_s) == "ejected"
    schedule.due(3.1)
    schedule.on_result(3.1, a, ok=True)
    assert a.usable(3.1)
    assert a.breaker.state == "half-open"


@pytest.mark.parametrize("kind", ["server-error", "broken-reply"])
def test_good_probes_do_not_excuse_errors(kind: Kind) -> None:
    """An endpoint that answers probes but failed at its work stays out for its time."""
    pool, schedule = bench(consecutive=100)
    a = pool.endpoints[0]
    fail(a, 0.0, kind)
    for second in range(4):
        schedule.due(second)
        schedule.on_result(second, a, ok=True)
    assert a.state(4.0) == "ejected"
    assert a.usable(5.0)


def test_bad_probes_keep_an_endpoint_out() -> None:
    """As long as probes fail an ejection does not end; two seconds after the last one it does."""
    pool, schedule = bench(consecutive=100)
    a = pool.endpoints[0]
    fail(a, 0.0)
    for second in range(20):
        assert not a.usable(second)
        assert schedule.due(second) == [a]
        schedule.on_result(second, a, ok=False)
    assert (a.usable(20.9), a.usable(21.0)) == (False, True)


def test_bad_probes_do_not_keep_the_last_one_out() -> None:
    """Where no other endpoint can be used the ejected one is recalled, whatever probes say."""
    pool, schedule = bench(consecutive=100)
    a, b = pool.endpoints
    fail(a, 0.0)
    schedule.due(0.0)
    schedule.on_result(0.0, a, ok=False)
    b.close_until(60.0)
    assert pool.choose(0.5, 0.5, 0.5) is a


def test_a_window_holds_for_probes_too() -> None:
    """An endpoint that asked to be left alone is not probed either."""
    pool, schedule = bench()
    a = pool.endpoints[0]
    fail(a, 0.0)
    a.close_until(3.0)
    assert schedule.due(2.9) == []
    assert schedule.due(3.0) == [a]


class Door:
    """As much of `Admission` as `Probing` sees."""

    on_trouble = None

    def pump(self) -> None:
        """Nobody waits."""


def test_probing_goes_on_behind_a_window() -> None:
    """An endpoint that is left out and asks to be left alone is probed as soon as that is over, though nothing else happens."""
    clock = VirtualClock()
    pool, _ = bench()
    a, probed = pool.endpoints[0], list[float]()

    async def probe(url: str, _: float) -> bool:
        assert url == a.url
        probed.append(clock.monotonic_s())
        if len(probed) == 1:  # as for an answer with Retry-After
            a.close_until(clock.monotonic_s() + 4.0)
        return False

    async def main() -> None:
        probing = Probing(pool, ProbeSettings(), clock, probe, Door(), lambda _, __: None)  # type: ignore[arg-type]
        fail(a, clock.monotonic_s())
        a.ejection.prolong(clock.monotonic_s() + 20.0)
        probing.wake()
        await clock.sleep(8.0)
        await probing.close()

    began_s = clock.monotonic_s()
    clock.run(main())
    assert probed[0] - began_s < 0.1
    assert 4.0 <= probed[1] - began_s <= 5.1
    assert len(probed) >= 3


@pytest.mark.parametrize("seed", range(100))
def test_an_endpoint_has_one_probe_at_a_time(seed: int) -> None:
    """Over random histories, no endpoint is probed twice at once, nor while it is usable and its breaker closed."""
    chance = random.Random(seed)
    pool, schedule = bench(3)
    under_way, now_s = set[EndpointState](), 0.0
    for _ in range(300):
        now_s += chance.uniform(0.0, 0.4)
        state = chance.choice(pool.endpoints)
        if chance.random() < 0.1:
            fail(state, now_s, chance.choice(["unreachable", "server-error", "timeout"]))
        if chance.random() < 0.1 and state.usable(now_s):
            state.on_end(now_s, "ok", 0.1, state.on_start(now_s))
        for due in schedule.due(now_s):
            assert due not in under_way
            assert not due.usable(now_s) or due.breaker.state == "half-open"
            under_way.add(due)
        assert 0.0 <= schedule.wait_s(now_s) <= 1.0
        for probed in list(under_way):
            if chance.random() < 0.3:
                under_way.discard(probed)
                schedule.on_result(now_s, probed, chance.random() < 0.5)


@pytest.mark.parametrize("wrong", [{"every_s": 0.0}, {"successes": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    """A value out of its range is named."""
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        ProbeSettings(**wrong)  # type: ignore[arg-type]
