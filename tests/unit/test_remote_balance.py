"""What the choice between endpoints is made of: draws, latencies, slow start."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from transforms.remote.balance import IDLE_S, Recent, ReplyTime, draw, draw_two, ramp


@pytest.mark.parametrize("seed", range(20))
def test_draws_follow_weights(seed: int) -> None:
    """Over evenly spread numbers each index is drawn in proportion to its weight, and one without weight never."""
    chance = random.Random(seed)
    weights = [chance.choice([0.0, 1.0, 2.0, 5.0]) for _ in range(5)] + [1.0]
    counts = Counter(draw(weights, number / 2000) for number in range(2000))
    for index, weight in enumerate(weights):
        assert counts[index] / 2000 == pytest.approx(weight / sum(weights), abs=0.002)


@pytest.mark.parametrize("seed", range(50))
def test_two_draws_are_different(seed: int) -> None:
    """Two indices are never the same, but where there is only one."""
    chance = random.Random(seed)
    weights = [chance.uniform(1e-9, 1.0) for _ in range(chance.choice([2, 3, 9]))]
    for _ in range(50):
        first, second = draw_two(weights, chance.random(), chance.random())
        assert first != second
        assert {first, second} <= set(range(len(weights)))
    assert draw_two([3.0], chance.random(), chance.random()) == (0, 0)


@pytest.mark.parametrize("random1", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_the_edges_of_chance_are_drawn(random1: float) -> None:
    """The smallest and the greatest number give an index that has weight, also where sums are rounded."""
    for weights in ([0.1] * 10, [0.0, 0.3, 0.0], [1e-300, 1.0]):
        assert weights[draw(weights, random1)] > 0.0


def test_the_average_rises_fast_and_falls_slowly() -> None:
    """Five replies ten times slower bring it most of the way up; five fast ones not most of the way down."""
    time = ReplyTime(10.0)
    time.add(0.0, 0.1)
    for _ in range(5):
        time.add(0.0, 1.0)
    risen_s = time.average_s or 0.0
    assert 0.8 < risen_s < 1.0
    for _ in range(5):
        time.add(0.0, 0.1)
    assert risen_s > (time.average_s or 0.0) > 0.6


@pytest.mark.parametrize("seed", range(10))
def test_more_traffic_means_no_higher_average(seed: int) -> None:
    """An endpoint with three times the replies of another has the same average over time, within a tenth."""
    chance = random.Random(seed)
    means = []
    for count in (3000, 9000):
        time, total_s = ReplyTime(10.0), 0.0
        for number in range(count):
            time.add(30.0 * number / count, 0.2 * math.exp(chance.gauss(0.0, 0.6)))
            total_s += time.average_s or 0.0
        means.append(total_s / count)
    assert means[1] == pytest.approx(means[0], rel=0.1)


def test_what_was_given_up_only_raises() -> None:
    """A request that was cut off counts where it took longer than the average, and never lowers it."""
    time = ReplyTime(10.0)
    time.add_at_least(0.0, 0.5)
    assert time.average_s == 0.5
    time.add_at_least(0.0, 0.1)
    assert time.average_s == 0.5
    time.add_at_least(0.0, 1.5)
    assert time.average_s == pytest.approx(0.8)
    assert time.replies == 0


def test_an_idle_endpoint_is_forgotten() -> None:
    """Without news the average fades, so that an endpoint found slow once is tried again."""
    time = ReplyTime(10.0)
    assert time.average_now_s(0.0) is None
    time.add(0.0, 1.0)
    assert time.average_now_s(0.0) == 1.0
    assert time.average_now_s(IDLE_S) == pytest.approx(1 / math.e)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_typical_bears_a_straggler(seed: int) -> None:
    """One reply a thousand times slower among a hundred changes it by less than a tenth; the window forgets."""
    chance, time = random.Random(seed), ReplyTime(10.0)
    for number in range(100):
        time.add(number / 20, 0.2 * math.exp(chance.gauss(0.0, 0.3)))
    before_s = time.typical_s(5.0) or 0.0
    assert before_s == pytest.approx(0.2, rel=0.1)
    time.add(5.0, 200.0)
    assert time.typical_s(5.0) == pytest.approx(before_s, rel=0.1)
    assert time.typical_s(30.0) is None


def test_recent_requests_fade() -> None:
    """Requests count one each, and less with time; a steady rate settles at the rate times the time constant."""
    recent = Recent()
    for number in range(1000):
        recent.add(number / 100)
    assert recent.count(10.0) == pytest.approx(100.0, rel=0.02)
    assert recent.count(30.0) < 1e-6


def test_slow_start_is_a_straight_line() -> None:
    """From the least factor at the return to 1 after the time given; never outside."""
    assert [ramp(now_s, 10.0, 10.0, 0.1) for now_s in (5.0, 10.0, 15.0, 20.0, 99.0)] == [
        pytest.approx(factor) for factor in (0.1, 0.1, 0.55, 1.0, 1.0)
    ]
    assert ramp(0.0, float("-inf"), 10.0, 0.1) == 1.0
    assert ramp(10.0, 10.0, 0.0, 0.1) == 1.0
