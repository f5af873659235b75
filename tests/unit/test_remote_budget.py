"""The budget of extra requests: what it promises whatever the traffic, and what becomes of an outage."""

from __future__ import annotations

import heapq
import random

import pytest

from transforms.errors import SettingsError
from transforms.remote.budget import Budget, BudgetSettings


@pytest.mark.parametrize("seed", range(200))
def test_withdrawals_stay_within_the_promise(seed: int) -> None:
    """Whatever the traffic, and asked as greedily as can be: ratio · N + floor · (T + 1.1 windows) at most."""
    chance = random.Random(seed)
    settings = BudgetSettings(
        chance.choice([0.01, 0.1, 0.5]), chance.choice([0.0, 0.5, 3.0]), chance.choice([1.0, 5.0])
    )
    budget, now_s, begin_s, events, extra = Budget(settings), 1000.0, 1000.0, 0, 0
    for _ in range(400):
        now_s += chance.choice([0.0, 0.001, 0.1, 2.0]) * chance.random()
        if chance.random() < 0.8:
            budget.deposit(now_s)
            events += 1
        while chance.random() < 0.9 and budget.try_withdraw(now_s):
            extra += 1
        assert budget.available(now_s) >= 0.0
        covered_s = now_s - begin_s + 1.1 * settings.window_s
        assert extra <= settings.ratio * events + settings.least_per_s * covered_s + 1e-6


def outage(rate: float, duration_s: float, budget: Budget | None, seed: int, healthy_s: float = 60.0) -> float:
    """Attempts per event of an outage after healthy traffic, every event trying as often as it may for 120 s."""
    chance = random.Random(seed)
    count = round(rate * duration_s)
    for number in range(round(rate * healthy_s)):
        if budget:
            budget.deposit(number / rate)
    attempts = 0
    tries = [(healthy_s + number / rate, number, 0) for number in range(count)]
    heapq.heapify(tries)
    while tries:
        now_s, number, made = heapq.heappop(tries)
        if now_s > healthy_s + duration_s:
            break
        if budget and made == 0:
            budget.deposit(now_s)
        sent = made == 0 or budget is None or budget.try_withdraw(now_s)
        attempts += sent
        if made + sent < 5:
            heapq.heappush(tries, (now_s + chance.uniform(0.05, 2.0), number, made + sent))
    return attempts / count


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rate", "duration_s"), [(6.5, 60.0), (50.0, 22.0), (200.0, 30.0)])
def test_an_outage_costs_a_tenth_at_most(rate: float, duration_s: float, seed: int) -> None:
    """With the defaults, at most 1.1 attempts per event, the budget saved up before included; and some are retried."""
    attempts = outage(rate, duration_s, Budget(BudgetSettings()), seed)
    assert 1.05 < attempts <= 1.1


def test_without_a_budget_an_outage_multiplies_the_load() -> None:
    """The sibling: bounded by attempts alone, the same outage costs more than four attempts per event."""
    assert outage(50.0, 60.0, None, 0) > 4.0


@pytest.mark.parametrize("seed", range(50))
def test_results_of_servers_that_fail_change_nothing(seed: int) -> None:
    """Where more than half of `ratio` of the results fail, replies pay for nothing: the promise is the same."""
    chance = random.Random(seed)
    budget, now_s, events, extra = Budget(BudgetSettings(ratio=0.2, least_per_s=0.5)), 0.0, 0, 0
    for _ in range(2_000):
        now_s += chance.choice([0.0, 0.01, 0.2]) * chance.random()
        budget.deposit(now_s)
        events += 1
        for number in range(8):
            budget.on_result(now_s, ok=bool(number))
        while budget.try_withdraw(now_s):
            extra += 1
    assert extra <= 0.2 * events + 0.5 * (now_s + 5.5) + 1e-6


def test_each_reply_pays_for_a_repeat_while_servers_are_well() -> None:
    """With a tenth of failures or fewer in the window, as many more may be sent as there were replies, and no more."""
    budget = Budget(BudgetSettings(ratio=0.2, least_per_s=0.0, window_s=10.0))
    for _ in range(100):
        budget.on_result(0.0, ok=False)
    for number in range(50):
        budget.on_result(5.0 + number / 100, ok=True)
    assert budget.available(6.0) == 0
    assert budget.available(11.5) == 50
    for _ in range(5):
        budget.on_result(11.6, ok=False)
    assert budget.available(11.6) == 50
    budget.on_result(11.6, ok=False)
    assert budget.available(11.6) == 0


def test_little_traffic_has_its_floor() -> None:
    """With no first attempts paying, extra requests may still be sent, at about the floor's rate and no faster."""
    budget, extra = Budget(BudgetSettings(least_per_s=0.8, window_s=5.0)), 0
    for tenth in range(1000):
        extra += budget.try_withdraw(tenth / 10)
    assert 72 <= extra <= 84


def test_without_a_floor_nothing_is_given_away() -> None:
    """With no floor, nothing may be sent before first attempts have paid for it, and then exactly what they paid."""
    budget = Budget(BudgetSettings(ratio=0.05, least_per_s=0.0, window_s=60.0))
    assert not budget.try_withdraw(0.0)
    for number in range(1, 201):
        budget.deposit(0.0)
        assert budget.try_withdraw(0.0) == (number % 20 == 0)


def test_unused_budget_is_forgotten_after_its_window() -> None:
    """What was saved up an hour ago pays for nothing now."""
    budget = Budget(BudgetSettings(ratio=0.5, least_per_s=0.0, window_s=5.0))
    for _ in range(100):
        budget.deposit(0.0)
    assert budget.available(4.9) == 50.0
    assert budget.available(5.6) == 0.0


@pytest.mark.parametrize("wrong", [{"ratio": 0.0}, {"ratio": 1.5}, {"least_per_s": -1.0}, {"window_s": 0.0}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    """A value out of its range is named."""
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        BudgetSettings(**wrong)
