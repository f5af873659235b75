"""Quantiles of latencies over the last seconds."""

from __future__ import annotations

import math
import random

import pytest

from transforms.remote.quantiles import SlidingQuantiles


@pytest.mark.parametrize("seed", range(60))
def test_a_quantile_is_known_to_within_five_per_cent(seed: int) -> None:
    """Beside the sorted list, each quantile differs by its bucket's half width at most, over six orders of magnitude."""
    chance = random.Random(seed)
    middle_s, spread = 10 ** chance.uniform(-3, 2), chance.choice([0.0, 0.3, 1.0])
    latencies = [middle_s * math.exp(chance.gauss(0.0, spread)) for _ in range(chance.choice([1, 2, 50, 400]))]
    quantiles = SlidingQuantiles(60.0)
    for latency_s in latencies:
        quantiles.add(5.0, latency_s)
    latencies.sort()
    for share in (0.0, 0.5, 0.9, 0.95, 0.99, 1.0):
        exact_s = latencies[max(0, math.ceil(share * len(latencies)) - 1)]
        assert quantiles.quantile(5.0, share) == pytest.approx(exact_s, rel=0.05)


def test_nothing_gives_none() -> None:
    """Without latencies, or after they have become too old, there is no quantile."""
    quantiles = SlidingQuantiles(60.0)
    assert quantiles.quantile(0.0, 0.5) is None
    quantiles.add(0.0, 1.0)
    assert quantiles.quantile(59.0, 0.5) == pytest.approx(1.0, rel=0.05)
    assert quantiles.quantile(71.0, 0.5) is None
    assert quantiles.count(71.0) == 0


def test_it_follows_a_change() -> None:
    """A window after latencies have changed, only the new ones are left."""
    quantiles = SlidingQuantiles(60.0)
    for second in range(200):
        quantiles.add(second, 0.1 if second < 100 else 3.0)
    assert quantiles.quantile(199.0, 0.01) == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("latency_s", [0.0, 1e-12, 1e-4, 1e4, 1e9])
def test_what_lies_outside_counts_at_the_edge(latency_s: float) -> None:
    """No latency is too small or too large to be counted."""
    quantiles = SlidingQuantiles(60.0)
    quantiles.add(0.0, latency_s)
    edge_s = quantiles.quantile(0.0, 0.5)
    assert edge_s is not None
    assert edge_s < 2e-4 or 1000.0 < edge_s < 1200.0
