"""Hedging: how much of the tail it cuts, what it costs, and when it keeps quiet."""

from __future__ import annotations

import heapq
import math
import random

import msgspec
import pytest

from transforms.errors import SettingsError
from transforms.remote.hedge import HedgePolicy, HedgeSettings

EVENTS = 12_000
RATE = 100.0


class Course(msgspec.Struct, frozen=True):
    """What became of a run: the latency of each event, and how many second requests were sent."""

    latencies_s: list[float]
    hedges: int

    def percentile_s(self, share: float) -> float:
        return sorted(self.latencies_s)[math.ceil(share * len(self.latencies_s)) - 1]


class Servers:
    """Replies of two servers: of first requests exactly the share `slow` is 20 times slower, of second ones by chance."""

    def __init__(self, seed: int, slow: float, events: int) -> None:
        self._chance = random.Random(seed)
        self._slow = slow
        self._first = [number < slow * events for number in range(events)]
        self._chance.shuffle(self._first)

    def first_s(self) -> float:
        return self._latency_s(self._first.pop())

    def second_s(self) -> float:
        return self._latency_s(self._chance.random() < self._slow)

    def _latency_s(self, slow: bool) -> float:
        return 0.2 * math.exp(self._chance.gauss(0.0, 0.3)) * (20.0 if slow else 1.0)


def run(policy: HedgePolicy, seed: int, slow: float = 0.05, events: int = EVENTS) -> Course:
    """A stream of calls in virtual time, each sent to one server and perhaps to the other as well."""
    servers, hedges, latencies_s = Servers(seed, slow, events), 0, list[float]()
    line = [(number / RATE, number, "start", 0.0, 0.0) for number in range(events)]
    while line:
        now_s, number, what, start_s, first_s = heapq.heappop(line)
        if what == "start":
            policy.on_start(now_s)
            ends_s, delay_s = now_s + servers.first_s(), policy.delay_s(now_s)
            if delay_s is None or now_s + delay_s >= ends_s:
                heapq.heappush(line, (ends_s, number, "reply", now_s, 0.0))
            else:
                heapq.heappush(line, (now_s + delay_s, number, "hedge", now_s, ends_s))
        elif what == "hedge":
            if policy.try_start(now_s):
                hedges += 1
                first_s = min(first_s, now_s + servers.second_s())
            heapq.heappush(line, (first_s, number, "reply", start_s, 0.0))
        else:
            policy.on_latency(now_s, now_s - start_s)
            latencies_s.append(now_s - start_s)
    return Course(latencies_s, hedges)


def cut(settings: HedgeSettings, seed: int, events: int = EVENTS) -> tuple[float, float]:
    """By which share hedging cuts p99 where 5 % of calls are 20 times slower, and extra requests per event."""
    without = run(HedgePolicy(HedgeSettings(enabled=False)), seed, events=events)
    hedged = run(HedgePolicy(settings), seed, events=events)
    assert without.hedges == 0
    return 1.0 - hedged.percentile_s(0.99) / without.percentile_s(0.99), hedged.hedges / events


@pytest.mark.parametrize("seed", range(6))
def test_hedging_cuts_the_tail_within_its_budget(seed: int) -> None:
    """With 5 % of calls 20 times slower, p99 falls by 60 % or more for 5 % more requests or fewer."""
    saved, extra = cut(HedgeSettings(), seed)
    assert saved >= 0.6
    assert extra <= 0.05


def test_a_percentile_that_the_budget_does_not_last_for_is_stretched() -> None:
    """Where more calls are late than the budget pays for, the delay grows, and shrinks again when the budget lasts."""
    policy = learnt()
    first_s = policy.delay_s(1.0)
    assert first_s is not None
    for second in range(1, 8):
        while policy.try_start(second):
            pass
    longer_s = policy.delay_s(8.0)
    assert longer_s is not None
    assert 1.5 * first_s < longer_s < 2.1 * first_s
    for _ in range(60):
        policy.on_latency(40.0, 0.2)
    assert policy.delay_s(40.0) == pytest.approx(longer_s * 0.99**33, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("slow", [0.0, 0.02, 0.07, 0.2, 0.5])
def test_the_budget_holds_whatever_the_share_of_slow_calls(seed: int, slow: float) -> None:
    """However many calls are slow, extra requests stay within the budget, and latency gets no worse."""
    without = run(HedgePolicy(HedgeSettings(enabled=False)), seed, slow, 1000)
    hedged = run(HedgePolicy(HedgeSettings()), seed, slow, 1000)
    assert hedged.hedges <= 0.05 * 1000
    assert sum(hedged.latencies_s) <= 1.05 * sum(without.latencies_s)


def test_without_the_budget_it_would_cost_more() -> None:
    """The sibling: with a budget that is never spent, the same calls cost far more than 5 %."""
    assert run(HedgePolicy(HedgeSettings(budget=1.0, percentile=0.8)), 0, slow=0.2, events=1000).hedges > 100


def learnt(latency_s: float = 0.2, **over: float) -> HedgePolicy:
    """A policy that has seen 200 events of about the same latency in the last second."""
    policy = HedgePolicy(HedgeSettings(**over))
    for number in range(200):
        policy.on_start(number / 200)
        policy.on_latency(number / 200, latency_s)
    return policy


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.95, 0.99])
def test_the_delay_is_the_learnt_percentile(percentile: float) -> None:
    """Of evenly spread latencies the delay is the percentile, to within the width of a bucket."""
    policy = HedgePolicy(HedgeSettings(percentile=percentile))
    for number in range(1000):
        policy.on_start(1.0)
        policy.on_latency(1.0, 0.1 + number / 1000)
    assert policy.delay_s(1.0) == pytest.approx(0.1 + percentile, rel=0.05)


def test_the_delay_has_a_floor() -> None:
    """Where calls take next to nothing the delay is `least_delay_s`."""
    assert learnt(0.001, least_delay_s=0.05).delay_s(1.0) == 0.05


def test_few_samples_mean_no_hedging() -> None:
    """Below `least_samples` nothing is hedged; from it on it is."""
    policy = HedgePolicy(HedgeSettings(least_samples=50))
    for number in range(50):
        assert policy.delay_s(number / 5) is None
        policy.on_start(number / 5)
        policy.on_latency(number / 5, 0.2)
    assert policy.delay_s(10.0) is not None


def test_throttling_silences_it() -> None:
    """For `quiet_s` after a server asked for fewer requests nothing is hedged, also where the delay was given before."""
    policy = learnt(quiet_s=10.0)
    assert policy.delay_s(1.0) is not None
    policy.on_throttled(1.0)
    assert policy.delay_s(10.9) is None
    assert not policy.try_start(10.9)
    assert policy.delay_s(11.1) is not None
    assert policy.try_start(11.1)


def test_an_empty_budget_silences_it() -> None:
    """When the budget is spent nothing more is sent."""
    policy = learnt()
    assert [policy.try_start(1.0) for _ in range(12)] == [True] * 10 + [False] * 2


def test_disabled_it_does_nothing() -> None:
    """Switched off, it gives no delay and sends nothing."""
    policy = HedgePolicy(HedgeSettings(enabled=False))
    for _ in range(200):
        policy.on_start(0.0)
        policy.on_latency(0.0, 0.2)
    assert (policy.delay_s(0.0), policy.try_start(0.0)) == (None, False)


@pytest.mark.parametrize(
    "wrong",
    [{"percentile": 1.0}, {"percentile": 95.0}, {"budget": 0.0}, {"least_samples": 0}, {"quiet_s": -1.0}],
)
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    """A value out of its range is named."""
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        HedgeSettings(**wrong)
