"""The endpoints of one model: which of them takes the next request, and whether any may.

An endpoint is *usable* when it has not asked to be left alone (``Retry-After``), is not ejected (`outliers`) and its
breaker allows a request (`breaker`). Among the usable ones:

1. *The nearest healthy region first.* Regions come in the order of `PoolSettings.regions`, the job's own first. A region
   takes the share ``min(1, usable weight / all weight / healthy_share)`` of what the regions before it left over; if all
   together take less than everything, their shares are scaled up. So it spills over to the next one when less than
   `healthy_share` of its weight is usable. Without `regions` all endpoints are one region.
2. *Power of two choices* within the region (`balance`).

An endpoint that returns, from an ejection or after its breaker was open, starts slowly: its weight grows from
`slow_start_least` to 1 within `slow_start_s`, in both steps. The probes of a half-open breaker have the least weight.

*The last usable endpoint is never ejected*, and at most `most_ejected_share` are at once; a silent or refusing one may be beyond
that, since it serves nothing, and has no failures that would open its breaker. Where those that are left cannot be used later on
(and not within `patience_s` either, by asking to be left alone for so short a time), the ejected endpoint that would return first
is recalled, one that refuses after all others. So nothing can be sent only while every endpoint has asked to be left alone or has
an open breaker.

Source: Envoy's priority levels and locality load balancing (spilling over; its over-provisioning factor 1.4 is the
`healthy_share` of 0.7 here) and its panic threshold, in place of which recalling keeps one endpoint in use; its slow start.

Defaults: no regions, a `healthy_share` of 0.7, slow start from 0.1 within 10 s, a patience of 1 s. Those of the rest stand in the
modules named.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from transforms.errors import SettingsError
from transforms.remote import ranges
from transforms.remote.balance import Recent, ReplyTime, draw_two, ramp
from transforms.remote.breaker import Breaker, BreakerSettings
from transforms.remote.outliers import (
    ANSWERED,
    FAILURES,
    Ejection,
    Kind,
    OutlierSettings,
    Reason,
    Refusals,
    Results,
    is_slow,
    silence_s,
)

if TYPE_CHECKING:
    from transforms.remote.settings import Endpoint

StateName = Literal["ready", "slow-start", "waiting", "ejected", "open"]
"""What an endpoint is: usable, usable with less weight, asked to be left alone, ejected, or its breaker not closed."""

Ticket = tuple[int, int]
"""Tells in which turn of the breaker and after which ejection a request was sent."""

_UNKNOWN_S = 1.0


class PoolSettings(msgspec.Struct, frozen=True):
    """How a pool chooses; see the module for the formulas. Times are seconds.

    `regions` are in the order of nearness, the job's own first; empty: regions make no difference.
    """

    regions: tuple[str, ...] = ()
    healthy_share: float = 0.7
    slow_start_s: float = 10.0
    slow_start_least: float = 0.1
    patience_s: float = 1.0
    outliers: OutlierSettings = OutlierSettings()
    breaker: BreakerSettings = BreakerSettings()

    def __post_init__(self) -> None:
        """Raise SettingsError for a number out of its range, or a region that is named twice."""
        ranges.share(healthy_share=self.healthy_share, slow_start_least=self.slow_start_least)
        ranges.not_negative(slow_start_s=self.slow_start_s, patience_s=self.patience_s)
        if len(set(self.regions)) < len(self.regions):
            raise SettingsError("regions names a region twice; name each once, in the order of nearness.")


class EndpointState:
    """What a pool knows of one endpoint. Times are monotonic seconds.

    For each request: `on_start`, and exactly once `on_end` with the ticket that `on_start` gave. Without a ticket a result
    counts whenever the request was sent.
    """

    def __init__(self, pool: Pool, endpoint: Endpoint, rank: int, settings: PoolSettings) -> None:
        self.url = endpoint.url
        self.region = endpoint.region
        self.weight = endpoint.weight
        self.rank = rank
        self.outstanding = 0
        self.breaker = Breaker(settings.breaker)
        self.ejection = Ejection(settings.outliers)
        self.reply_time = ReplyTime(settings.outliers.window_s)
        self.refusals = Refusals(settings.outliers)
        self.last_failure: Kind | None = None
        self._pool = pool
        self._settings = settings
        self._results = Results(settings.outliers)
        self._recent = Recent()
        self._opens_s = float("-inf")
        self._returned_s = float("-inf")
        self._fresh = 0  # those under way that were sent since the latest ejection
        self._progress_s = 0.0
        self._silence_s: float | None = None

    @property
    def latency_s(self) -> float | None:
        """The peak-sensitive average of reply times in seconds, or None before the first reply."""
        return self.reply_time.average_s

    def state(self, now_s: float) -> StateName:
        """Return the endpoint's state for metrics."""
        if self._opens_s > now_s:
            return "waiting"
        if self.ejection.wait_s(now_s) > 0.0:
            return "ejected"
        self.breaker.allows(now_s)
        if self.breaker.state != "closed":
            return "open"
        return "ready" if self.factor(now_s) >= 1.0 else "slow-start"

    def is_left_out(self, now_s: float) -> bool:
        """Return whether it is ejected or its breaker is not closed, whatever its server asks for besides."""
        self.breaker.allows(now_s)
        return self.ejection.wait_s(now_s) > 0.0 or self.breaker.state != "closed"

    def close_until(self, opens_s: float) -> None:
        """Send nothing before `opens_s`, as the server asked; a longer wish from before stays."""
        self._opens_s = max(self._opens_s, opens_s)

    def on_start(self, now_s: float) -> Ticket:
        """Note that a request is sent."""
        if self._fresh == 0:
            self._progress_s = now_s
        self._fresh += 1
        self.outstanding += 1
        self._recent.add(now_s)
        return self.breaker.on_start(now_s), self.ejection.number

    def on_end(self, now_s: float, kind: Kind, latency_s: float, ticket: Ticket | None = None) -> None:
        """Note how a request ended, after `latency_s` seconds; this may open the breaker and eject the endpoint.

        `cancelled` is for one that was given up for reasons that are not the endpoint's: a hedge that lost, or an event
        whose deadline left it less than the usual timeout.
        """
        self.outstanding = max(0, self.outstanding - 1)
        if ticket and ticket[1] != self.ejection.number:
            self.breaker.on_cancel(now_s, ticket[0])
            return
        self._fresh = max(0, self._fresh - 1)
        if kind in ANSWERED:
            self._progress_s = now_s
        self._tell_breaker(now_s, kind, ticket[0] if ticket else None)
        self._learn(now_s, kind, latency_s)
        self._pool.judge(self, now_s)

    def usable(self, now_s: float) -> bool:
        """Return whether a request may be sent to it now."""
        return self.ejection.wait_s(now_s) <= 0.0 and self.hold_s(now_s) <= 0.0

    def hold_s(self, now_s: float) -> float:
        """Return the seconds for which its server's wish or its breaker forbids requests; 0 where neither does."""
        return max(0.0, self._opens_s - now_s, self.breaker.wait_s(now_s))

    def gate_s(self, now_s: float) -> float:
        """Return the seconds for which its server asked to be left alone; 0 when they are over."""
        return max(0.0, self._opens_s - now_s)

    def silent_s(self, now_s: float) -> float:
        """Return for how many seconds nothing has come back while something is under way; 0 when nothing is.

        Requests from before the latest ejection do not count.
        """
        return max(0.0, now_s - self._progress_s) if self._fresh else 0.0

    def factor(self, now_s: float) -> float:
        """Return the factor of slow start, above 0 and at most 1."""
        least = self._settings.slow_start_least
        if self.breaker.state != "closed":
            return least
        returned_s = max(self._returned_s, self.ejection.returned_s)
        return ramp(now_s, returned_s, self._settings.slow_start_s, least)

    def cost(self, now_s: float, unknown_s: float) -> float:
        """Return what a request to it costs, by the formula of `balance`; `unknown_s` stands for an unknown latency."""
        load = self.outstanding + self._recent.count(now_s) + 1.0
        return load * self._expected_s(now_s, unknown_s) / (self.weight * self.factor(now_s))

    def suspicion(self, now_s: float, others: Sequence[EndpointState]) -> Reason | None:
        """Return why it should be ejected, beside the others of the pool; None where it should not."""
        reason = self._results.suspicion(now_s)
        if reason:
            return reason
        in_use = [other for other in others if other.ejection.wait_s(now_s) <= 0.0]
        if self.refusals.speak_against(now_s, (other.refusals for other in in_use)):
            return "refusing"
        typical_s = self.known_typical_s(now_s)
        if typical_s is not None:
            self._silence_s = silence_s(typical_s, self.latency_s or 0.0, self._settings.outliers)
            if is_slow(typical_s, _typical_s(now_s, in_use), self._settings.outliers):
                return "slow"
        return "silent" if self._is_silent(now_s) else None

    def known_typical_s(self, now_s: float) -> float | None:
        """Return its typical latency in seconds, or None where it has not given enough replies for long enough."""
        settings = self._settings.outliers
        if self.reply_time.replies < settings.least_volume or now_s - self.reply_time.first_s < settings.window_s:
            return None
        return self.reply_time.typical_s(now_s)

    def eject(self, now_s: float, reason: Reason) -> None:
        """Leave it out for a time. What was learnt of it is forgotten, but a row of refusals: it may come back another."""
        self.ejection.begin(now_s, reason)
        self._results.clear()
        self.reply_time = ReplyTime(self._settings.outliers.window_s)
        self._fresh = 0

    def recall(self, now_s: float) -> None:
        """End its ejection now, if there is one."""
        self.ejection.end(now_s)

    def _is_silent(self, now_s: float) -> bool:
        if self._silence_s is None or self._fresh < self._settings.outliers.consecutive:
            return False
        return self.silent_s(now_s) >= self._silence_s

    def _expected_s(self, now_s: float, unknown_s: float) -> float:
        if self.outstanding == 0:
            return self.reply_time.average_now_s(now_s) or unknown_s
        return max(self.reply_time.average_s or unknown_s, self.silent_s(now_s))

    def _learn(self, now_s: float, kind: Kind, latency_s: float) -> None:
        self._results.add(now_s, kind)
        self.refusals.add(now_s, kind, self._pool.refusals)
        if kind in FAILURES:
            self.last_failure = kind
        if kind == "ok":
            self.reply_time.add(now_s, latency_s)
        elif kind in ("timeout", "cancelled"):
            self.reply_time.add_at_least(now_s, latency_s)

    def _tell_breaker(self, now_s: float, kind: Kind, turn: int | None) -> None:
        was = self.breaker.state
        # A server that asks for fewer requests is alive, which is what a probe asks; else it says nothing.
        if kind == "cancelled" or (kind == "throttled" and was != "half-open"):
            self.breaker.on_cancel(now_s, turn)
        else:
            self.breaker.on_result(now_s, kind not in FAILURES, turn)
        if was == "half-open" and self.breaker.state == "closed":
            self._returned_s = now_s


class Pool:
    """The endpoints of one model. Pure: times are monotonic seconds, random numbers are in [0, 1).

    Raises:
        SettingsError: there is no endpoint, one is named twice, or its region and those of the settings do not fit.
    """

    def __init__(self, endpoints: Sequence[Endpoint], settings: PoolSettings) -> None:
        _check(endpoints, settings)
        self.settings = settings
        ranks = {region: rank for rank, region in enumerate(settings.regions)}
        self.endpoints = tuple(EndpointState(self, one, ranks.get(one.region, 0), settings) for one in endpoints)
        self.refusals = tuple(state.refusals for state in self.endpoints)
        self._weights = [
            sum(state.weight for state in self.endpoints if state.rank == rank) for rank in range(max(1, len(ranks)))
        ]
        self._most_ejected = settings.outliers.most_ejected(len(self.endpoints))

    def choose(
        self, now_s: float, random1: float, random2: float, exclude: Collection[str] = frozenset()
    ) -> EndpointState | None:
        """Return the endpoint that takes the next request, or None where none may: then see `wait_s`.

        The URLs in `exclude` are not chosen; while there are any, no ejected endpoint is recalled either.
        """
        if len(self.endpoints) == 1 and not exclude and self.endpoints[0].usable(now_s):
            return self.endpoints[0]
        self._judge_silent(now_s)
        usable = [state for state in self.endpoints if state.usable(now_s)]
        if not usable and not exclude:
            usable = self._recalled(now_s)
        candidates = [state for state in usable if state.url not in exclude] if exclude else usable
        if not candidates:
            return None
        if len(self._weights) > 1:
            rank, random1 = self._rank(now_s, usable, {state.rank for state in candidates}, random1)
            candidates = [state for state in candidates if state.rank == rank]
        return _cheaper(now_s, candidates, random1, random2)

    def wait_s(self, now_s: float) -> float:
        """Return the seconds after which `choose` may find an endpoint; 0 where it does now. Ask again then."""
        if self._recallable(now_s) or any(state.usable(now_s) for state in self.endpoints):
            return 0.0
        return min(hold_s for state in self.endpoints if (hold_s := state.hold_s(now_s)) > 0.0)

    def judge(self, state: EndpointState, now_s: float) -> None:
        """Eject an endpoint that is an outlier, if it may be; the endpoint calls this itself after each result."""
        others = [other for other in self.endpoints if other is not state]
        if not others or state.ejection.wait_s(now_s) > 0.0:
            return
        reason = state.suspicion(now_s, others)
        if reason and self._may_eject(now_s, others, reason):
            state.eject(now_s, reason)

    def _judge_silent(self, now_s: float) -> None:
        """A hung endpoint gives no result after which it could be judged."""
        settings = self.settings.outliers
        for state in self.endpoints:
            if state.outstanding >= settings.consecutive and state.silent_s(now_s) >= settings.least_silent_s:
                self.judge(state, now_s)

    def _may_eject(self, now_s: float, others: Sequence[EndpointState], reason: Reason) -> bool:
        """Whether others are left; so many of them as are wanted, unless the endpoint serves nothing in any case."""
        if not any(other.usable(now_s) and other.breaker.state == "closed" for other in others):
            return False
        ejected = sum(other.ejection.wait_s(now_s) > 0.0 for other in others)
        return reason in ("silent", "refusing") or ejected < self._most_ejected

    def _recalled(self, now_s: float) -> list[EndpointState]:
        """The ejected endpoint that is taken back because no other can be used, if there is one."""
        candidates = self._recallable(now_s)
        if not candidates:
            return []
        first = min(candidates, key=lambda state: (state.ejection.reason == "refusing", state.ejection.returned_s))
        first.recall(now_s)
        return [first]

    def _recallable(self, now_s: float) -> list[EndpointState]:
        """The ejected endpoints that could be taken back now; none while another will be usable in a moment."""
        ejected = [state for state in self.endpoints if state.ejection.wait_s(now_s) > 0.0]
        for state in self.endpoints:
            soon = state.gate_s(now_s) <= self.settings.patience_s and state.breaker.state == "closed"
            if soon and state.ejection.wait_s(now_s) <= 0.0:
                return []
        return [state for state in ejected if state.hold_s(now_s) <= 0.0]

    def _rank(
        self, now_s: float, usable: Sequence[EndpointState], ranks: Collection[int], random: float
    ) -> tuple[int, float]:
        """The rank of the region that takes the request, and what is left of the random number, in [0, 1) again."""
        healthy = [0.0] * len(self._weights)
        for state in usable:
            healthy[state.rank] += state.weight * state.factor(now_s)
        loads, left = [0.0] * len(healthy), 1.0
        for rank in sorted(ranks):
            loads[rank] = min(left, healthy[rank] / self._weights[rank] / self.settings.healthy_share)
            left -= loads[rank]
        return _split(loads, random)


def _check(endpoints: Sequence[Endpoint], settings: PoolSettings) -> None:
    if not endpoints:
        raise SettingsError("endpoints is empty; name at least one base URL.")
    if len({endpoint.url for endpoint in endpoints}) < len(endpoints):
        raise SettingsError("endpoints names a URL twice; give one endpoint a greater weight instead.")
    if not settings.regions:
        return
    used = {endpoint.region for endpoint in endpoints}
    for region in sorted(used.difference(settings.regions)):
        raise SettingsError(f"the region {region!r} of an endpoint is not in regions; add it there, in its place.")
    for region in sorted(set(settings.regions) - used):
        raise SettingsError(f"regions names {region!r}, where no endpoint is; leave it out, or correct the name.")


def _cheaper(now_s: float, candidates: Sequence[EndpointState], random1: float, random2: float) -> EndpointState:
    """The cheaper of two endpoints drawn by weight."""
    if len(candidates) == 1:
        return candidates[0]
    weights = [state.weight * state.factor(now_s) for state in candidates]
    pair = [candidates[index] for index in draw_two(weights, random1, random2)]
    known = [latency_s for state in candidates if (latency_s := state.latency_s)]
    unknown_s = min(known, default=_UNKNOWN_S)
    return min(pair, key=lambda state: state.cost(now_s, unknown_s))


def _typical_s(now_s: float, states: Sequence[EndpointState]) -> list[float]:
    """The typical latencies of those endpoints that are known well enough."""
    return [typical_s for state in states if (typical_s := state.known_typical_s(now_s)) is not None]


def _split(shares: Sequence[float], random: float) -> tuple[int, float]:
    """The index of the share in which a random number lies, and where in it, in [0, 1)."""
    rest = random * sum(shares)
    last = max(index for index, share in enumerate(shares) if share > 0.0)
    for index, share in enumerate(shares):
        if rest < share or index == last:
            return index, min(rest / share, 1.0 - 1e-12)
        rest -= share
    raise AssertionError  # not reached: the last share takes what is left
