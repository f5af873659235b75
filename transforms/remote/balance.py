"""Which of several endpoints takes the next request: power of two choices by load, latency and weight.

Two different endpoints are drawn by weight; the one with the smaller cost is chosen. With its formula ``(outstanding +
recent + 1) · latency / weight``, where
- `outstanding` are the requests under way;
- `recent` are those sent lately, each counting ``exp(-age / RECENT_S)``. Where calls are few, nothing is outstanding, and
  without this term the heaviest endpoint would get everything; with it traffic follows weights from some ten requests a
  second on, and below that the heavy ones get more than their share;
- `latency` is a moving average of reply times that rises fast (`RISE` of the difference with each slower reply) and falls
  slowly (`FALL`), or the time since anything came back while something is under way, if that is longer. An endpoint
  to which nothing is sent is forgotten with ``exp(-idle / IDLE_S)``, so that it is tried again;
- `weight` is the endpoint's, times the factor of slow start: after a return it ramps from `least` to 1 in equal steps of time.

Defaults: `RECENT_S` 1 s, `RISE` 0.3, `FALL` 0.05, `IDLE_S` 10 s; a weight of 1; slow start from 0.1 to 1 within 10 s
(`PoolSettings`). An endpoint whose latency is not known yet is taken to be as fast as the fastest; where none is known, 1 s.

Source: Michael Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001; the peak-sensitive average
after Finagle's PeakEwma, and slow start after Envoy. Here the average moves per reply and not per second: else an endpoint
with more traffic meets higher peaks, and large weights would be cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from transforms.remote.window import SlidingCount

RISE = 0.3
FALL = 0.05
IDLE_S = 10.0
RECENT_S = 1.0

_LEAST_S = 1e-6
_LOG_UNITS = 1000  # whole numbers, so that sums that come and go stay exact


class ReplyTime:
    """What is learnt of one endpoint's latency: a peak-sensitive average, and what is typical over the last seconds.

    `average_s` is None before the first reply, `replies` counts those that were learnt from, `first_s` is the time of the
    first. What is typical is a geometric mean over a window of time: one straggler hardly moves it; other than a median it
    holds still where replies are of two lengths; and other than a mean over the latest replies it does not take the
    late half of one burst for the whole.
    """

    __slots__ = ("_count", "_logs", "_seen_s", "average_s", "first_s", "replies")

    def __init__(self, window_s: float) -> None:
        self.average_s: float | None = None
        self.first_s = float("inf")
        self.replies = 0
        self._count = SlidingCount(window_s)
        self._logs = SlidingCount(window_s)
        self._seen_s = 0.0

    def add(self, now_s: float, latency_s: float) -> None:
        """Learn from a reply."""
        self.replies += 1
        self.first_s = min(self.first_s, now_s)
        self._approach(latency_s, RISE if latency_s > (self.average_s or 0.0) else FALL)
        self._seen_s = now_s
        self._count.add(now_s)
        self._logs.add(now_s, round(_LOG_UNITS * math.log(max(latency_s, _LEAST_S))))

    def add_at_least(self, now_s: float, latency_s: float) -> None:
        """Learn from a request that was given up after `latency_s`: its reply would have taken longer."""
        if latency_s > (self.average_s or 0.0):
            self._approach(latency_s, RISE)
            self._seen_s = now_s

    def average_now_s(self, now_s: float) -> float | None:
        """Return the average, less of it the longer nothing was learnt. For an endpoint with nothing under way."""
        if self.average_s is None:
            return None
        return self.average_s * math.exp(-max(0.0, now_s - self._seen_s) / IDLE_S)

    def typical_s(self, now_s: float) -> float | None:
        """Return the geometric mean of the replies of the window; None where there are none."""
        count = self._count.total(now_s)
        return math.exp(self._logs.total(now_s) / (_LOG_UNITS * count)) if count else None

    def _approach(self, latency_s: float, part: float) -> None:
        self.average_s = latency_s if self.average_s is None else self.average_s + part * (latency_s - self.average_s)


class Recent:
    """How many requests were sent lately, each counting less the older it is."""

    __slots__ = ("_count", "_seen_s")

    def __init__(self) -> None:
        self._count = 0.0
        self._seen_s = 0.0

    def add(self, now_s: float) -> None:
        """Count a request."""
        self._count = self.count(now_s) + 1.0
        self._seen_s = now_s

    def count(self, now_s: float) -> float:
        """Return the sum of exp(-age / RECENT_S)."""
        return self._count * math.exp(-max(0.0, now_s - self._seen_s) / RECENT_S)


def ramp(now_s: float, returned_s: float, slow_start_s: float, least: float) -> float:
    """Return the factor of slow start: `least` at the return, 1 after `slow_start_s` seconds, a straight line between."""
    since_s = now_s - returned_s
    if since_s >= slow_start_s:
        return 1.0
    return least + (1.0 - least) * max(0.0, since_s) / slow_start_s


def draw(weights: Sequence[float], random: float) -> int:
    """Return an index, each with a chance in proportion to its weight. `random` is in [0, 1); the sum is above 0."""
    rest = random * sum(weights)
    last = 0
    for index, weight in enumerate(weights):
        if weight <= 0.0:
            continue
        if rest < weight:
            return index
        rest -= weight
        last = index
    return last


def draw_two(weights: Sequence[float], random1: float, random2: float) -> tuple[int, int]:
    """Return two different indices drawn by weight; twice the same where there is only one."""
    first = draw(weights, random1)
    if len(weights) == 1:
        return first, first
    return first, draw([0.0 if index == first else weight for index, weight in enumerate(weights)], random2)
