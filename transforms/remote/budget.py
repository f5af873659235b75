"""How many requests may be sent beyond the first attempts: retries, or hedges.

Formula, over a sliding window of `window_s` seconds: ``available = max(ratio · first attempts, least_per_s · window_s) + paid -
withdrawals``; one more request may be sent where that is 1 or more. ``paid`` are the replies, where at most half of `ratio` of the
results failed; else it is 0, and so it is where no results are told (`on_result`).

So while servers fail, repeats are few, and when they are well again each reply pays for one more, which doubles their rate with
each reply's time, like a slow start: what broke all at once is repeated without waiting for the share, and without a wave.

Promise, of a time in which ``paid`` is 0. A withdrawal leaves the window no sooner than the first attempts that paid for it, so no
first attempt pays twice. Over T seconds with N first attempts the withdrawals are at most ``ratio · N + least_per_s · (T + 1.1 ·
window_s)``; and where first attempts come at ``least_per_s / ratio`` a second or faster, at most ``ratio · (N + those of the 1.1 ·
window_s before)``. With the defaults, an outage of 22 s or more at 6.25 events/s or more costs at most
``1 + 0.08 · (1 + 5.5 / 22) = 1.1`` attempts per event. A bound on attempts per event alone (`RetryPolicy.max_attempts`) promises no
more than `max_attempts` times the load at the moment when servers can bear it least.

Source: the retry budget of Twitter's Finagle (a share of the requests of the last seconds, and a reserve for clients with
little traffic), and retry throttling of gRPC (proposal A6). Other than Finagle's, the reserve is a floor under the share
and is not added to it, so that it costs nothing where there is traffic.
"""

from __future__ import annotations

import msgspec

from transforms.remote import ranges
from transforms.remote.window import SlidingCount

_ROUNDING = 1e-9


class BudgetSettings(msgspec.Struct, frozen=True):
    """The size of a budget.

    `ratio` is how many extra requests a first attempt pays for; `least_per_s` may be sent each second however few first
    attempts there are (0: none); both count over `window_s` seconds, so unused budget is kept that long and no longer.
    """

    ratio: float = 0.08
    least_per_s: float = 0.5
    window_s: float = 5.0

    def __post_init__(self) -> None:
        """Raise SettingsError for a share, rate or time that is none."""
        ranges.share(ratio=self.ratio)
        ranges.not_negative(least_per_s=self.least_per_s)
        ranges.positive(window_s=self.window_s)


class Budget:
    """Counts first attempts, and the extra requests that they pay for. Times are monotonic seconds."""

    def __init__(self, settings: BudgetSettings) -> None:
        self.settings = settings
        self._floor = settings.least_per_s * settings.window_s
        self._deposits = SlidingCount(settings.window_s)
        self._withdrawals = SlidingCount(settings.window_s)
        self._replies = SlidingCount(settings.window_s)
        self._failures = SlidingCount(settings.window_s)

    def deposit(self, now_s: float) -> None:
        """Note a first attempt. To be called once for each event, and not for its extra requests."""
        self._deposits.add(now_s)

    def on_result(self, now_s: float, *, ok: bool) -> None:
        """Note a reply, or an attempt that failed on its server."""
        (self._replies if ok else self._failures).add(now_s)

    def try_withdraw(self, now_s: float) -> bool:
        """Return whether one extra request may be sent now, and take it off the budget where it may."""
        if self.available(now_s) < 1.0 - _ROUNDING:
            return False
        self._withdrawals.add(now_s)
        return True

    def available(self, now_s: float) -> float:
        """Return how many extra requests may be sent now; a fraction is on its way to the next. Never below 0."""
        return max(0.0, self._allowed(now_s) - self._withdrawals.total(now_s))

    def _allowed(self, now_s: float) -> float:
        return max(self.settings.ratio * self._deposits.total(now_s), self._floor) + self._paid(now_s)

    def _paid(self, now_s: float) -> int:
        replies, failures = self._replies.total(now_s), self._failures.total(now_s)
        return replies if failures <= self.settings.ratio / 2.0 * (replies + failures) else 0
