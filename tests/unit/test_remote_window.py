"""A count over the last seconds."""

from __future__ import annotations

import random

import pytest

from transforms.remote.window import SLICES, SlidingCount


@pytest.mark.parametrize("seed", range(100))
def test_a_count_covers_the_window_and_one_slice_more_at_most(seed: int) -> None:
    """Beside a list of everything, the count lies between the last window and the last window and a slice."""
    chance = random.Random(seed)
    window_s = chance.choice([0.5, 5.0, 60.0])
    count, added, now_s = SlidingCount(window_s), list[tuple[float, int]](), chance.uniform(-100, 1e6)
    for _ in range(300):
        now_s += chance.choice([0.0, 0.01, 0.3, 1.0, 20.0]) * chance.random() * window_s
        number = chance.choice([1, 1, 3])
        count.add(now_s, number)
        added.append((now_s, number))
        least = sum(number for at_s, number in added if now_s - at_s < window_s)
        most = sum(number for at_s, number in added if now_s - at_s <= window_s * (1 + 1 / SLICES) + 1e-6)
        assert least <= count.total(now_s) <= most


def test_a_cleared_count_is_empty() -> None:
    """Nothing is left after clearing, and it counts on."""
    count = SlidingCount(10.0)
    count.add(5.0, 7)
    count.clear()
    assert count.total(5.0) == 0
    count.add(6.0)
    assert count.total(6.0) == 1
    assert count.total(1e9) == 0
