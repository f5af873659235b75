"""Hedging: a call that takes unusually long is sent a second time, to another endpoint; the first reply wins.

Formula: the second request leaves after ``stretch`` times the quantile `percentile` of the latencies of the last `window_s`
seconds, `least_delay_s` at the soonest. The budget bounds what is spent: over any time at most `budget` · first attempts.
``stretch`` fits the two to each other: it begins at 1, grows by a tenth (up to 4) in each second in which the budget had nothing
left for a call that was due, and shrinks by a hundredth (down to 1) in each other second. So where more calls are late than the
budget pays for, it is spent on those that are latest. A percentile at the edge of what the budget pays for would fall now among
the calls that would have ended soon, now among those that hang.

There is no hedging while there are fewer than `least_samples` latencies, and for `quiet_s` seconds after a server asked for
fewer requests.

The latency of a hedged call is that of the event: from the first request to the reply that won. Then the share of calls
above the delay is what it would be without hedging, and the delay does not run away downwards.

Source: Jeffrey Dean and Luiz André Barroso, "The Tail at Scale", CACM 2013 (hedge after the 95th percentile, for about 5 %
more load); the budget after Finagle's backup requests.
"""

from __future__ import annotations

import msgspec

from transforms.errors import SettingsError
from transforms.remote import ranges
from transforms.remote.budget import Budget, BudgetSettings
from transforms.remote.quantiles import SlidingQuantiles

_REFRESH_S = 0.1
_GROW, _SHRINK_PER_S, _MOST_STRETCH = 1.1, 0.99, 4.0


class HedgeSettings(msgspec.Struct, frozen=True):
    """When a second request is sent; see the module for the formula.

    `percentile` is a share, such as 0.9; `budget` the greatest share of extra requests. `window_s` is for both the
    latencies and the budget.
    """

    enabled: bool = True
    percentile: float = 0.9
    budget: float = 0.05
    least_delay_s: float = 0.01
    least_samples: int = 50
    window_s: float = 60.0
    quiet_s: float = 10.0

    def __post_init__(self) -> None:
        """Raise SettingsError for a number out of its range."""
        if not 0.5 <= self.percentile < 1:
            raise SettingsError(
                f"percentile is {self.percentile:g}; it is a share, 0.5 or more and below 1, such as 0.95."
            )
        ranges.share(budget=self.budget)
        ranges.positive(least_samples=self.least_samples, window_s=self.window_s)
        ranges.not_negative(least_delay_s=self.least_delay_s, quiet_s=self.quiet_s)


class HedgePolicy:
    """Decides when a call is sent a second time. Times are monotonic seconds.

    For each event: `on_start` with its first attempt, `delay_s` for how long to wait for the reply, `try_start` when that
    has passed without one, and `on_latency` when a reply has come, whichever request it answers.
    """

    def __init__(self, settings: HedgeSettings) -> None:
        self.settings = settings
        self.budget = Budget(BudgetSettings(ratio=settings.budget, least_per_s=0.0, window_s=settings.window_s))
        self._latencies = SlidingQuantiles(settings.window_s)
        self._quiet_until_s = float("-inf")
        self._learnt_s: float | None = None
        self._refresh_s = float("-inf")
        self._stretch = 1.0
        self._stretched_s = float("-inf")

    def on_start(self, now_s: float) -> None:
        """Note a first attempt, which pays into the budget."""
        self.budget.deposit(now_s)

    def on_latency(self, now_s: float, latency_s: float) -> None:
        """Note a reply: `latency_s` is from the event's first request to it."""
        self._latencies.add(now_s, latency_s)

    def on_throttled(self, now_s: float) -> None:
        """Note that a server asked for fewer requests: no hedging for `quiet_s` seconds."""
        self._quiet_until_s = now_s + self.settings.quiet_s

    def delay_s(self, now_s: float) -> float | None:
        """Return the seconds after which a call sent now is to be hedged, or None where it is not to be."""
        if not self._may(now_s):
            return None
        if now_s >= self._refresh_s:
            self._refresh_s = now_s + _REFRESH_S
            self._learnt_s = self._learn(now_s)
        return self._learnt_s

    def try_start(self, now_s: float) -> bool:
        """Return whether a second request may be sent now, and take it off the budget where it may."""
        if not self._may(now_s):
            return False
        if self.budget.try_withdraw(now_s):
            return True
        if now_s >= self._stretched_s + 1.0:
            self._stretch = min(_MOST_STRETCH, self._stretched(now_s) * _GROW)
            self._stretched_s = now_s
        return False

    def _stretched(self, now_s: float) -> float:
        if self._stretch <= 1.0:
            return 1.0
        shrunk: float = self._stretch * _SHRINK_PER_S ** (now_s - self._stretched_s)
        return max(1.0, shrunk)

    def _may(self, now_s: float) -> bool:
        return self.settings.enabled and now_s >= self._quiet_until_s

    def _learn(self, now_s: float) -> float | None:
        """The delay by the latencies so far."""
        if self._latencies.count(now_s) < self.settings.least_samples:
            return None
        learnt_s = self._latencies.quantile(now_s, self.settings.percentile)
        return None if learnt_s is None else max(learnt_s * self._stretched(now_s), self.settings.least_delay_s)
