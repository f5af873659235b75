"""Which endpoint is worse than it should be, and for how long it is left out: outlier ejection.

An endpoint is an outlier
- by *errors*: `consecutive` failures in a row; or, of the results of the last `window_s` seconds, `least_volume` or more, a
  share of `error_share` or more failures;
- by *broken replies*: a share of `broken_share` or more of the same results, so fewer than of other failures: an answer that
  is no answer of the protocol is a fault of the server, whatever its load;
- by being *slow*: its typical latency over the window is above ``slow_times · m + slow_extra_s``, m being the median of the
  typical latencies of the others. The second part lets a far region pass beside a near one;
- by being *silent*: `consecutive` requests or more are under way, and for ``max(least_silent_s, slow_times · typical latency,
  2 · peak-sensitive average)`` seconds nothing has come back. A server that hangs gives no failure until the timeout of a
  request;
- by *refusing*: `consecutive` refusals or more (k) in a row, without an answer between, while another endpoint answers the same
  traffic: ``q^k <= 1e-9``, q being the other's ``(refusals + 1/2) / (answers and refusals + 1)``, since the row began and in the
  window, whichever is more; since the row began it has answered once at least. Records that no server takes are spread over all
  endpoints, q is high with them, and they eject none. An endpoint with the wrong key or without the model answers 401, 403 or 404 to
  everything, and fast, and so draws the traffic. The row outlasts the ejection: after its end the next refusal ejects again.

Slow and silent are judged once an endpoint has given `least_volume` replies and its first is a `window_s` old: of the first
requests the short ones end first, and those under way are all long. For silence the latencies before an ejection are
remembered.

It is ejected for ``min(longest_ejection_s, base_ejection_s · times)`` seconds; `times` counts its ejections, and one of them
is forgiven for every `forgive_s` seconds that it was back. At most `most_ejected_share` of the endpoints are ejected at once, see
the pool.

Failures are a server's error, a timeout, no connection, and a broken reply. A refusal is no failure, and alone a healthy answer. A
request to slow down is none and no failure: the limiter deals with it. What was cancelled says nothing. Nor does the result of a
request that was sent before the latest ejection.

Defaults: 5 in a row; half of 20 results in 10 s, a quarter for broken replies; 5 times the others' median and 0.2 s more; silent
for 2 s; ejected for 5 s, 60 s at the longest, forgiven in 60 s; half of the endpoints at most.

Source: Envoy's outlier detection (consecutive errors, failure percentage with a least volume, base time · times, greatest
share ejected). Slow, silent, broken replies and refusing are this project's; the halves in q are those of Krichevsky and
Trofimov's estimator (1981), for which what was never seen is not impossible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal, get_args

import msgspec

from transforms.remote import ranges
from transforms.remote.window import SlidingCount

Kind = Literal["ok", "throttled", "server-error", "timeout", "unreachable", "broken-reply", "refused", "cancelled"]
"""How a request to an endpoint ended. All but the first and last are the kinds of `transforms.errors`."""

FAILURES = frozenset({"server-error", "timeout", "unreachable", "broken-reply"})
"""The kinds that speak against an endpoint."""

HEALTHY = frozenset({"ok", "refused"})
"""The kinds that speak for an endpoint, as long as others are refused too: see `Refusals`."""

ANSWERED = frozenset({"ok", "throttled", "server-error", "broken-reply", "refused"})
"""The kinds that show that something came back."""

Reason = Literal["errors", "broken-replies", "slow", "silent", "refusing"]
"""Why an endpoint was ejected."""

_BY_CHANCE = 1e-9


class OutlierSettings(msgspec.Struct, frozen=True):
    """When an endpoint is ejected, and for how long; see the module for the formulas. Times are seconds."""

    consecutive: int = 5
    error_share: float = 0.5
    broken_share: float = 0.25
    window_s: float = 10.0
    least_volume: int = 20
    slow_times: float = 5.0
    slow_extra_s: float = 0.2
    least_silent_s: float = 2.0
    base_ejection_s: float = 5.0
    longest_ejection_s: float = 60.0
    forgive_s: float = 60.0
    most_ejected_share: float = 0.5

    def __post_init__(self) -> None:
        """Raise SettingsError for a number out of its range, or a first ejection longer than the longest."""
        ranges.positive(consecutive=self.consecutive, window_s=self.window_s, least_volume=self.least_volume)
        ranges.share(error_share=self.error_share, broken_share=self.broken_share)
        ranges.rising(broken_share=self.broken_share, error_share=self.error_share)
        ranges.positive(slow_times=self.slow_times, least_silent_s=self.least_silent_s, forgive_s=self.forgive_s)
        ranges.not_negative(slow_extra_s=self.slow_extra_s)
        ranges.positive(base_ejection_s=self.base_ejection_s)
        ranges.rising(base_ejection_s=self.base_ejection_s, longest_ejection_s=self.longest_ejection_s)
        ranges.share(most_ejected_share=self.most_ejected_share)

    def most_ejected(self, endpoints: int) -> int:
        """Return how many of so many endpoints may be ejected at once: the share, but one at least, and never all."""
        return min(max(1, int(self.most_ejected_share * endpoints)), endpoints - 1)


class Results:
    """What the results of one endpoint say about it. Times are monotonic seconds."""

    def __init__(self, settings: OutlierSettings) -> None:
        self.settings = settings
        self.in_a_row = 0
        self._results = SlidingCount(settings.window_s)
        self._failures = SlidingCount(settings.window_s)
        self._broken = SlidingCount(settings.window_s)

    def add(self, now_s: float, kind: str) -> None:
        """Note a result; one that is neither for nor against the endpoint is left out."""
        if kind not in FAILURES and kind not in HEALTHY:
            return
        failed = kind in FAILURES
        self.in_a_row = self.in_a_row + 1 if failed else 0
        self._results.add(now_s)
        if failed:
            self._failures.add(now_s)
        if kind == "broken-reply":
            self._broken.add(now_s)

    def suspicion(self, now_s: float) -> Reason | None:
        """Return why the endpoint should be ejected by its results, or None."""
        if self.in_a_row >= self.settings.consecutive:
            return "errors"
        results = self._results.total(now_s)
        if results < self.settings.least_volume:
            return None
        if self._failures.total(now_s) >= self.settings.error_share * results:
            return "errors"
        return "broken-replies" if self._broken.total(now_s) >= self.settings.broken_share * results else None

    def clear(self) -> None:
        """Forget everything."""
        self.in_a_row = 0
        for count in (self._results, self._failures, self._broken):
            count.clear()


class Refusals:
    """What the refusals of one endpoint say about it beside the others of its model. Times are monotonic seconds.

    `row` counts its refusals since its last answer; `answers` and `refusals` are all there ever were.
    """

    def __init__(self, settings: OutlierSettings) -> None:
        self.settings = settings
        self.row = 0
        self.answers = 0
        self.refusals = 0
        self._answered = SlidingCount(settings.window_s)
        self._refused = SlidingCount(settings.window_s)
        self._before: dict[Refusals, tuple[int, int]] = {}

    def add(self, now_s: float, kind: str, everyone: Iterable[Refusals]) -> None:
        """Note a result; one that is neither an answer nor a refusal is left out. `everyone` are all endpoints of the model."""
        if kind == "ok":
            self.row = 0
            self.answers += 1
            self._answered.add(now_s)
        elif kind == "refused":
            if self.row == 0:
                self._before = {one: (one.answers, one.refusals) for one in everyone}
            self.row += 1
            self.refusals += 1
            self._refused.add(now_s)

    def speak_against(self, now_s: float, others: Iterable[Refusals]) -> bool:
        """Return whether the row is longer than chance makes it where one of the `others` answers the same traffic."""
        if self.row < self.settings.consecutive:
            return False
        return any(share**self.row <= _BY_CHANCE for other in others if (share := self._share_of(now_s, other)))

    def _share_of(self, now_s: float, other: Refusals) -> float | None:
        """The share of another endpoint's results that are refusals, or None where it has not answered since the row began."""
        answers, refusals = self._before.get(other, (other.answers, other.refusals))
        answered, refused = other.answers - answers, other.refusals - refusals
        if not answered:
            return None
        since = _share(answered, refused)
        lately = other._answered.total(now_s), other._refused.total(now_s)
        # A row that is older than the window has seen all that is in it.
        return since if sum(lately) <= answered + refused else max(since, _share(*lately))


def _share(answered: int, refused: int) -> float:
    return (refused + 0.5) / (answered + refused + 1.0)


def is_slow(typical_s: float, others_s: Sequence[float], settings: OutlierSettings) -> bool:
    """Return whether a typical latency is far above those of the other endpoints; never where there are none."""
    return bool(others_s) and typical_s > settings.slow_times * median(others_s) + settings.slow_extra_s


def silence_s(typical_s: float, average_s: float, settings: OutlierSettings) -> float:
    """Return after how many seconds without anything coming back an endpoint of such latencies is silent."""
    return max(settings.least_silent_s, settings.slow_times * typical_s, 2.0 * average_s)


class Ejection:
    """Whether one endpoint is left out, until when, and how often it was. Times are monotonic seconds.

    `number` counts the ejections ever, `numbers` the same by reason, `reason` is that of the latest, `returned_s` when it
    ended or will end.
    """

    def __init__(self, settings: OutlierSettings) -> None:
        self.settings = settings
        self.number = 0
        self.numbers: dict[Reason, int] = dict.fromkeys(get_args(Reason), 0)
        self.reason: Reason | None = None
        self.returned_s = float("-inf")
        self._times = 0

    def wait_s(self, now_s: float) -> float:
        """Return for how many seconds the endpoint is still left out; 0 when it is back."""
        return max(0.0, self.returned_s - now_s)

    def begin(self, now_s: float, reason: Reason) -> None:
        """Leave the endpoint out, for longer the more often it happens."""
        forgiven = 0 if self._times == 0 else int((now_s - self.returned_s) / self.settings.forgive_s)
        self.number += 1
        self.numbers[reason] += 1
        self.reason = reason
        base_s, longest_s = self.settings.base_ejection_s, self.settings.longest_ejection_s
        # No more than fill the longest, so that a long outage is forgiven in the time of a short one.
        self._times = min(max(0, self._times - forgiven) + 1, math.ceil(longest_s / base_s))
        self.returned_s = now_s + min(longest_s, base_s * self._times)

    def end(self, now_s: float) -> None:
        """Take the endpoint back now."""
        self.returned_s = min(self.returned_s, now_s)

    def prolong(self, until_s: float) -> None:
        """Leave the endpoint, which is ejected, out until `until_s` at least."""
        self.returned_s = max(self.returned_s, until_s)
