"""Adaptive limits: what they find on servers of many kinds, and what they must never do."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from typing import Any

import pytest

from benchmarks.limits import SERVERS, URL, Caller, adaptive, measure
from transforms.errors import SettingsError
from transforms.remote.concurrency import ConcurrencySettings, Limit, Sample, Verdict, make_limit
from transforms.remote.fakes import VirtualClock
from transforms.remote.simulated import Behaviour, Schedule, SimulatedServer

ADAPTIVE = ["aimd", "gradient"]
LOG_NORMAL = Behaviour(median_s=0.2, sigma=0.6)


def tell(limit: Limit, chance: random.Random, rounds: int, verdict: Verdict = "ok", now_s: float = 0.0) -> float:
    """Tell a limit of so many requests in a row, with as many in flight as it allows; return the time after them."""
    for _ in range(rounds):
        now_s += 0.2 / limit.limit
        limit.observe(Sample(now_s, 0.2 * math.exp(0.3 * chance.gauss(0.0, 1.0)), limit.limit, verdict, None))
    return now_s


@pytest.mark.parametrize("block", range(20))
def test_whatever_is_observed_the_limit_keeps_its_bounds(block: int) -> None:
    """In 2 000 random courses the limit is never below `least` or above `most`, and can grow again after the worst of them."""
    for seed in range(block * 100, block * 100 + 100):
        chance = random.Random(seed)
        algorithm = chance.choice(ADAPTIVE)
        least = chance.choice([1, 2, 8])
        settings = ConcurrencySettings(algorithm=algorithm, initial=chance.choice([8, 20]), least=least, most=40)
        limit, now_s = make_limit(settings), 0.0
        for _ in range(150):
            now_s += chance.choice([0.0, 0.001, 0.1, 5.0])
            verdict: Verdict = chance.choice(["ok", "ok", "throttled", "overloaded", "failed", "cancelled"])
            tokens = chance.choice([None, 0, 1, 20, 4000])
            in_flight = chance.randint(1, max(1, limit.limit))
            limit.observe(Sample(now_s, chance.choice([0.0, 1e-7, 0.01, 0.3, 70.0]), in_flight, verdict, tokens))
            assert least <= limit.limit <= 40


@pytest.mark.parametrize("algorithm", ADAPTIVE)
@pytest.mark.parametrize("seed", range(20))
def test_a_limit_at_its_least_grows_again(algorithm: str, seed: int) -> None:
    """After a long outage that cut it to 1, healthy replies bring it to 20 and more."""
    chance, limit = random.Random(seed), make_limit(ConcurrencySettings(algorithm=algorithm))
    now_s = tell(limit, chance, 8000, "overloaded", tell(limit, chance, 500))
    assert limit.limit == 1
    tell(limit, chance, 3000, "ok", now_s)
    assert limit.limit >= 20


@pytest.mark.parametrize("algorithm", ADAPTIVE)
@pytest.mark.parametrize("seed", range(20))
def test_a_limit_that_is_not_used_does_not_grow(algorithm: str, seed: int) -> None:
    """A caller who has three requests in flight keeps the limit where it was."""
    chance, limit = random.Random(seed), make_limit(ConcurrencySettings(algorithm=algorithm, initial=8))
    for number in range(2000):
        rtt_s = 0.2 * math.exp(0.3 * chance.gauss(0.0, 1.0))
        limit.observe(Sample(number * 0.07, rtt_s, 3, "ok", None))
    assert limit.limit <= 8


@pytest.mark.parametrize("verdict", ["failed", "cancelled"])
@pytest.mark.parametrize("algorithm", ADAPTIVE)
def test_what_is_the_requests_own_fault_says_nothing(algorithm: str, verdict: Verdict) -> None:
    """Thousands of refused or cancelled requests move nothing."""
    limit = make_limit(ConcurrencySettings(algorithm=algorithm, initial=30))
    tell(limit, random.Random(0), 3000, verdict)
    assert limit.limit == 30


def test_a_fixed_limit_stays() -> None:
    """Nothing moves a fixed limit."""
    limit = make_limit(ConcurrencySettings(algorithm="fixed", initial=30))
    tell(limit, random.Random(0), 300, "throttled")
    assert limit.limit == 30


# Per kind of server: the best throughput of a fixed limit in replies a second (python -m benchmarks.limits), the ratio
# to reach, and the greatest average limit that is sensible.
HEALTHY, LIMITED = 0.95, 0.90


def best_rate(name: str, limits: tuple[int, ...], seed: int) -> float:
    return max(measure(SERVERS[name], fixed(limit), 20.0, 5.0, seed).rate for limit in limits)


def fixed(limit: int) -> ConcurrencySettings:
    return ConcurrencySettings(algorithm="fixed", initial=limit)


@pytest.mark.parametrize("seed", [4])
@pytest.mark.parametrize(
    ("name", "limits", "ratio", "most"),
    [
        ("healthy", (128,), HEALTHY, 128),
        ("delay 100 ms, jitter 50 ms", (128,), HEALTHY, 128),
        ("10 % of 20 × length", (128,), HEALTHY, 128),
        ("knee 32, shared", (32, 48), LIMITED, 45),
        ("knee 32, queue", (32, 48), LIMITED, 45),
        ("knee 8", (8, 16), LIMITED, 15),
        ("hard limit 40: 429", (40, 48), LIMITED, 42),
        ("hard limit 24: 503", (24, 32), LIMITED, 30),
        ("quota 6000/min", (24, 32), LIMITED, 40),
        ("1 % silent", (48, 64), LIMITED, 70),
        ("the same, knee 32", (32, 48), LIMITED, 60),
    ],
)
def test_the_default_comes_near_the_best_fixed_limit(
    name: str, limits: tuple[int, ...], ratio: float, most: int, seed: int
) -> None:
    """The throughput of the best fixed limits, without many more requests in flight than they need."""
    found = measure(SERVERS[name], adaptive("aimd"), 20.0, 5.0, seed)
    assert found.rate >= ratio * best_rate(name, limits, seed)
    assert found.average_limit <= most


def run_one(server: Behaviour | Schedule, seconds: float, seed: int, demand: int = 128) -> Caller:
    clock = VirtualClock(seed)
    caller = Caller(clock, SimulatedServer(clock, {URL: server}, seed), make_limit(adaptive("aimd")), demand)
    clock.run(caller.run(seconds))
    return caller


@pytest.mark.parametrize("seed", [0, 3, 10])
def test_a_healthy_server_gets_all_that_is_wanted_before_long(seed: int) -> None:
    """From 5 s on the limit is nearly what the caller wants, also where chance ended slow start (as with seeds 3 and 10)."""
    caller = run_one(LOG_NORMAL, 10.0, seed)
    assert caller.average_limit(5.0) >= 0.95 * 128


@pytest.mark.parametrize("seed", range(4))
def test_a_step_of_latency_does_not_collapse_the_limit(seed: int) -> None:
    """Three times the latency, without load being the reason: it falls to 24 at least, and from 12 s later on is 64 or more again."""
    caller = run_one([(0.0, LOG_NORMAL), (8.0, Behaviour(median_s=0.6, sigma=0.6))], 30.0, seed)
    assert min(limit for at_s, limit in caller.limits if at_s > 8.0) >= 24
    assert statistics.fmean(limit for at_s, limit in caller.limits if at_s > 20.0) >= 64


@pytest.mark.parametrize("seed", range(4))
def test_an_outage_is_recovered_from(seed: int) -> None:
    """Within five seconds after an outage of five, the rate is nine tenths of what it was; meanwhile less is sent
    than a fixed limit of 32 sends, ten times a second."""
    caller = run_one(Behaviour(median_s=0.2, sigma=0.6, knee=32, outages=((10.0, 15.0),)), 30.0, seed)
    assert caller.rate(20.0, 30.0) >= 0.9 * caller.rate(4.0, 10.0)
    assert caller.refused <= 32 * 50


@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_loses_capacity_and_gets_it_back_is_followed(seed: int) -> None:
    """A third of the capacity is left: 10 seconds later the limit is near it; 10 seconds after it is back, the limit fits again."""
    knees = [(0.0, 48), (12.0, 16), (30.0, 48)]
    schedule = [(at_s, Behaviour(median_s=0.2, sigma=0.6, knee=knee)) for at_s, knee in knees]
    caller = run_one(schedule, 50.0, seed)
    low = statistics.fmean(limit for at_s, limit in caller.limits if 22.0 < at_s < 30.0)
    high = statistics.fmean(limit for at_s, limit in caller.limits if at_s > 40.0)
    assert 15 <= low <= 40
    assert 42 <= high <= 75


def jain(values: list[float]) -> float:
    """Jain's fairness index: 1 where all are equal, 1/n where one has all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("server", [Behaviour(sigma=0.6, knee=48), Behaviour(sigma=0.6, most_in_flight=48)])
def test_several_clients_of_one_server_share_it(server: Behaviour, seed: int) -> None:
    """Four clients, one of which comes ten seconds later: rates are fair (Jain's index 0.8 or more), and together near the best."""
    clock = VirtualClock(seed)
    simulated = SimulatedServer(clock, {URL: server}, seed)
    callers = [Caller(clock, simulated, make_limit(adaptive("aimd"))) for _ in range(4)]

    async def main() -> None:
        async def late(caller: Caller, after_s: float) -> None:
            await clock.sleep(after_s)
            await caller.run(50.0)

        await asyncio.gather(*(late(caller, 10.0 * (number == 3)) for number, caller in enumerate(callers)))

    clock.run(main())
    rates = [caller.rate(25.0, 50.0) for caller in callers]
    print(server.knee, rates, [c.average_limit(25.0) for c in callers], jain(rates), sum(rates))
    assert jain(rates) >= 0.8
    assert sum(rates) >= 0.9 * 200.0


@pytest.mark.parametrize(
    "settings",
    [
        {"tolerance": 2.0, "patience": 5, "decrease_ratio": 0.8},
        {"algorithm": "gradient", "queue": 9, "decrease_ratio": 0.5, "patience": 3},
        {"algorithm": "fixed", "initial": 500, "most": 500, "tolerance": 1.3},
    ],
)
def test_what_an_algorithm_uses_or_is_the_default_is_taken(settings: dict[str, Any]) -> None:
    """An algorithm's own settings, the bounds of all, and a default written out are no contradiction."""
    assert ConcurrencySettings(**settings).initial >= 1


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"initial": 0}, "initial"),
        ({"least": 9}, "least"),
        ({"most": 4}, "most"),
        ({"decrease_ratio": 1.0}, "decrease_ratio"),
        ({"proof_ratio": 0.95}, "proof_ratio"),
        ({"tolerance": 0.9}, "tolerance"),
        ({"smoothing": 0.0}, "smoothing"),
        ({"overloaded_share": 2.0}, "overloaded_share"),
        ({"queue": 9}, "queue is of the algorithm gradient, and this is aimd"),
        ({"algorithm": "gradient", "patience": 5}, "patience is of the algorithm aimd, and this is gradient"),
        ({"algorithm": "fixed", "tolerance": 2.0}, "tolerance is of the algorithm aimd, and this is fixed"),
        ({"algorithm": "fixed", "round_rtts": 2.0}, "round_rtts is of the algorithm aimd and gradient"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], word: str) -> None:
    """Settings that contradict each other are refused with a sentence that names them."""
    with pytest.raises(SettingsError, match=word):
        ConcurrencySettings(**settings)
