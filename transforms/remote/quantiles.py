"""Quantiles of latencies over the last seconds, in little memory.

Each latency is counted in a bucket whose bounds grow by a constant factor (10 %), so that any quantile is known to within
5 % of itself, from 0.1 ms to 1 000 s; what lies outside counts in the nearest bucket. The window is cut into slices; the
oldest leaves as a whole. One latency costs constant time; a quantile walks over the buckets.

Source: the idea of buckets with a relative error is that of HdrHistogram and of DDSketch (Masson, Rim, Lee, VLDB 2019).
Here the range is fixed, which lets a slice be a plain list and be subtracted when it leaves.
"""

from __future__ import annotations

import math

_GROWTH = math.log(1.1)
_LEAST_S = 1e-4
_BUCKETS = 170
_SLICES = 6


class SlidingQuantiles:
    """The latencies of the last `window_s` seconds, and at most a sixth of that before. Times are monotonic seconds."""

    __slots__ = ("_count", "_counts", "_slice", "_slice_s", "_slices")

    def __init__(self, window_s: float) -> None:
        self._slice_s = window_s / _SLICES
        self._slices: list[list[int]] = [[0] * _BUCKETS for _ in range(_SLICES + 1)]
        self._counts = [0] * _BUCKETS
        self._count = 0
        self._slice = 0

    def add(self, now_s: float, latency_s: float) -> None:
        """Count a latency."""
        self._roll(now_s)
        bucket = _bucket(latency_s)
        self._slices[-1][bucket] += 1
        self._counts[bucket] += 1
        self._count += 1

    def count(self, now_s: float) -> int:
        """Return how many latencies the window holds."""
        self._roll(now_s)
        return self._count

    def quantile(self, now_s: float, share: float) -> float | None:
        """Return the seconds below or at which the `share` (0 to 1) of the latencies lie; None where there are none."""
        self._roll(now_s)
        if not self._count:
            return None
        rank = max(1, math.ceil(share * self._count))
        for bucket, count in enumerate(self._counts):
            rank -= count
            if rank <= 0:
                return _middle_s(bucket)
        return None  # not reached: the counts add up to the count

    def _roll(self, now_s: float) -> None:
        """Forget the slices that have become too old."""
        now = math.floor(now_s / self._slice_s)
        for _ in range(min(now - self._slice, len(self._slices))):
            self._forget(self._slices.pop(0))
            self._slices.append([0] * _BUCKETS)
        self._slice = max(self._slice, now)

    def _forget(self, old: list[int]) -> None:
        self._counts = [count - gone for count, gone in zip(self._counts, old, strict=True)]
        self._count -= sum(old)


def _bucket(latency_s: float) -> int:
    if latency_s <= _LEAST_S:
        return 0
    return min(_BUCKETS - 1, int(math.log(latency_s / _LEAST_S) / _GROWTH))


def _middle_s(bucket: int) -> float:
    """The geometric middle of a bucket."""
    return _LEAST_S * math.exp((bucket + 0.5) * _GROWTH)
