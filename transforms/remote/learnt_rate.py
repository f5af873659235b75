"""The rate that a server takes, learnt from its refusals alone.

A server that answers 429 and says no more still tells how much it takes: between two refusals its quota went from used up
to used up, so what it let in meanwhile, over the time, *is* the quota. At a refusal w is the rate at which it came,
and no more than 1.03 of what was let in over the last minute. From then on the rate follows CUBIC::

    rate(t) = w · (1 + (1 - β) · ((t - K) / K)³)         t seconds after the refusal and the pause it asked for

so it begins at β · w, is back at w after K seconds, stays near it, and then rises ever faster to find out whether
more is allowed. β is 0.9, K is 10 s. Before the first refusal there is no bound.

Refusals within a second after the pause belong to the first one: what they refuse was under way. Where nothing at all was let
in since the last refusal, the quota is still used up (a fixed minute): w stays, and the pause doubles, from 0.1 s up to 4 s,
where the server names none.

Measured at 600 and 1 200 requests a minute with twice as much offered, quotas over 1, 10 and 60 s of three kinds: 97 % of the
quota or more and 0.1 % to 2 % refused where refusals name a ``Retry-After``; where they do not, from 93 % of a sliding window to
100 % (`tests/unit/test_remote_quota.py`). A limit that is configured, or named by headers, does better.

Source: the "adaptive" retry mode of the AWS SDKs (botocore `retries/adaptive.py` and `throttling.py`: a token bucket whose
rate CUBIC sets, with 0.7 for β and C = 0.4), and CUBIC (RFC 9438). Different here: w is also bounded by what was let in over
the last minute (1.03 of it at most), where AWS takes the rate of sending; and the curve is relative to w, where AWS's
rises by requests per second³, which is nothing for a large quota and too much for a small one.
"""

from __future__ import annotations

import math
from collections import deque

_BETA = 0.9
_PLATEAU_S = 10.0
_SAME_S = 1.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 4.0
_LEAST_PER_S = 1.0 / 60.0
_UNKNOWN_PER_S = 1.0
_MEASURED_S = 60.0
_GREATEST_EXCESS = 1.03


class LearntRate:
    """The rate of requests that refusals allow. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._most_per_s = math.inf
        self._mark = 0
        self._sent = 0
        self._periods: deque[tuple[int, float]] = deque()
        self._since_s: float | None = None
        self._begins_s = -math.inf
        self._pause_s = _FIRST_PAUSE_S

    def per_s(self, now_s: float) -> float:
        """Return the requests per second that may be sent now; infinite where nothing was ever refused."""
        if self._most_per_s == math.inf:
            return math.inf
        time = max(-1.0, (now_s - self._begins_s - _PLATEAU_S) / _PLATEAU_S)
        return max(_LEAST_PER_S, self._most_per_s * (1.0 + (1.0 - _BETA) * time**3))

    def sent(self, now_s: float) -> int:
        """A request is sent. Return the mark to tell `unsent`."""
        if self._since_s is None:
            self._since_s = now_s
        self._sent += 1
        return self._mark

    def unsent(self, mark: int) -> None:
        """A request of this mark was refused, or not sent after all."""
        if mark == self._mark:
            self._sent -= 1

    def refused(self, now_s: float, retry_after_s: float | None) -> float:
        """Learn from a refusal, after `unsent`. Return how many seconds to pause."""
        if now_s < self._begins_s or (self._sent > 0 and now_s < self._begins_s + _SAME_S):
            return retry_after_s or 0.0
        elapsed_s = 0.0 if self._since_s is None else now_s - self._since_s
        if self._sent > 0 and elapsed_s > 0.0:
            self._pause_s = _FIRST_PAUSE_S
            self._measure(now_s, elapsed_s)
        elif self._most_per_s == math.inf:
            self._most_per_s = _UNKNOWN_PER_S
        pause_s = self._pause_s if retry_after_s is None else retry_after_s
        self._pause_s = min(_LONGEST_PAUSE_S, 2.0 * self._pause_s)
        self._begins_s = now_s + pause_s
        return pause_s

    def _measure(self, now_s: float, elapsed_s: float) -> None:
        tried = self.per_s(now_s)
        self._periods.append((self._sent, elapsed_s))
        while len(self._periods) > 1 and sum(period_s for _, period_s in list(self._periods)[1:]) >= _MEASURED_S:
            self._periods.popleft()
        let_in, over_s = (sum(column) for column in zip(*self._periods, strict=True))
        self._most_per_s = max(_LEAST_PER_S, min(tried, _GREATEST_EXCESS * let_in / over_s))
        self._mark += 1
        self._sent, self._since_s = 0, now_s
