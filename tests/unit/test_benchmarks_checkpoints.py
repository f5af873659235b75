"""What the benchmark of checkpoints makes of Flink's facts."""

from __future__ import annotations

import time

import pytest

from benchmarks.checkpoints import Checkpoint, longest_ms


def done(number: int, duration_ms: int) -> Checkpoint:
    return Checkpoint(number, 0, duration_ms, 1_000, "COMPLETED")


def test_the_longest_counts() -> None:
    """Of fewer than a hundred checkpoints the p99 is the longest."""
    assert longest_ms([done(1, 100), done(2, 700), done(3, 300)], now_ms=0.0) == 700


def test_one_under_way_counts_by_its_age() -> None:
    """A checkpoint that has not ended is not left out: its age is the least it takes."""
    now_ms = time.time() * 1e3
    under_way = Checkpoint(2, round(now_ms) - 31_000, None, 0, "IN_PROGRESS")
    assert longest_ms([done(1, 100), under_way], now_ms) == pytest.approx(31_000, abs=1)


def test_none_at_all_is_no_good_figure() -> None:
    """Where no checkpoint was even begun the figure is no number that could meet a target."""
    assert longest_ms([], now_ms=0.0) == float("inf")
