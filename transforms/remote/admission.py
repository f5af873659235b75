"""Who may send next, and where: the one door that every attempt of a model's calls goes through, and the one book they are in.

A request is let through when fewer than `most` are under way, and an endpoint may be sent to (`pool`) that has fewer under way
than its own limit (`concurrency`) and room in its quota (`quota`). Its tokens are an estimate, corrected by what servers report.
The one who waits longest goes first, by the turn that its event was given when it came: a repeat does not queue up behind younger
events, and nobody overtakes. What an attempt came to is told here once, and goes from here to the endpoint, its limit and the
quota, so that they agree.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Literal

from transforms.remote.batcher import TokenEstimate
from transforms.remote.client_metrics import ClientMetrics
from transforms.remote.clock import Clock
from transforms.remote.concurrency import Limit, Sample, Verdict
from transforms.remote.loop_lag import LoopLag
from transforms.remote.outliers import Kind
from transforms.remote.pool import EndpointState, Pool, Ticket
from transforms.remote.quota import Quota, Reservation

Blocked = Literal["permits", "endpoints", "limits", "quota"]
"""Why nobody is let through: all permits are out, no endpoint may be sent to, or those that may be are at their limit or quota."""

_VERDICTS: Mapping[Kind, Verdict] = {
    "ok": "ok",
    "throttled": "throttled",
    "server-error": "overloaded",
    "timeout": "overloaded",
    "unreachable": "failed",
    "broken-reply": "failed",
    "refused": "failed",
    "cancelled": "cancelled",
}
_NOT_SPENT: frozenset[Kind] = frozenset({"throttled", "unreachable"})

_LEAST_WAIT_S = 0.001
_LOOK_AGAIN_S = 0.1


class Permit:
    """The right to send one request to `endpoint`, from `began_s` on, a moment of the monotonic clock.

    `in_flight` are the requests to it, this one included, and `estimated` the tokens that the request is thought to cost.
    """

    __slots__ = ("began_s", "endpoint", "estimated", "in_flight", "reservation", "ticket")

    def __init__(
        self, endpoint: EndpointState, ticket: Ticket, began_s: float, estimated: int, reservation: Reservation
    ) -> None:
        self.endpoint = endpoint
        self.ticket = ticket
        self.began_s = began_s
        self.in_flight = endpoint.outstanding
        self.estimated = estimated
        self.reservation = reservation


class _Waiter:
    """Somebody who waits for a permit: another endpoint than the one of the URL `last`, if there is one."""

    __slots__ = ("failures", "future", "last", "tokens")

    def __init__(self, tokens: int, last: str | None, failures: int) -> None:
        self.tokens = tokens
        self.last = last
        self.failures = failures
        self.future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()


class Admission:
    """Lets requests through to the endpoints of a pool. Use it on one event loop; the counts may be read from any thread.

    `limits` and `quotas` are those of the endpoints, by their URLs.
    """

    def __init__(
        self,
        clock: Clock,
        pool: Pool,
        most: int,
        limits: Mapping[str, Limit],
        quotas: Mapping[str, Quota],
        metrics: ClientMetrics,
    ) -> None:
        self.most = most
        self.estimate = TokenEstimate()
        self.lag = LoopLag(clock)
        self._limits = limits
        self._quotas = quotas
        self._metrics = metrics
        self._quota_wait_s = 0.0
        self.blocked: Blocked | None = None
        self._clock = clock
        self._pool = pool
        self._in_flight = 0
        self._waiting = 0
        self._queue: list[tuple[int, int, _Waiter]] = []
        self._number = itertools.count()
        self._alarm: asyncio.TimerHandle | None = None
        self._resting: set[asyncio.Future[None]] = set()
        self.replied_s = float("-inf")
        """When a request last had a reply, of whatever endpoint; monotonic seconds."""
        self.on_trouble: Callable[[], None] | None = None
        """Called when an endpoint may have become unusable."""

    @property
    def in_flight(self) -> int:
        """The number of permits given out."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """The number of requests that wait for one."""
        return self._waiting

    async def acquire(
        self, turn: int, timeout_s: float, tokens: int = 0, last: str | None = None, failures: int = 0
    ) -> Permit:
        """Return a permit, in turn, to another endpoint than that of the URL `last` where there is one.

        `failures` is how often the request has failed so far.

        Raises:
            TimeoutError: there was none for `timeout_s` seconds; `blocked` says why.
        """
        if not self._queue:
            permit = self._grant(tokens, last)
            if permit is not None:
                self._metrics.on_permit(0.0, 0.0)
                return permit
        began_s = self._clock.monotonic_s()
        waiter = _Waiter(tokens, last, failures)
        heapq.heappush(self._queue, (turn, next(self._number), waiter))
        self._waiting += 1
        if self._queue[0][2] is waiter:
            self.pump()
        try:
            async with asyncio.timeout(timeout_s):
                permit = await waiter.future
            waited_s = self._clock.monotonic_s() - began_s
            self._metrics.on_permit(waited_s, waited_s if self.blocked == "quota" else 0.0)
        except BaseException:
            if waiter.future.done() and not waiter.future.cancelled():  # the permit came in the same turn of the loop
                self.end(waiter.future.result(), "cancelled")
            waiter.future.cancel()
            raise
        else:
            return permit
        finally:
            self._waiting -= 1

    def try_acquire(self, tokens: int, exclude: Collection[str]) -> Permit | None:
        """Return a permit to an endpoint of none of these URLs, where there is one at once and nobody waits."""
        return None if self._waiting else self._grant(tokens, None, exclude)

    def learn(self, permit: Permit, headers: Mapping[str, str]) -> None:
        """Tell what headers an answer had, of whatever status: some name the quota and what is left of it."""
        quota = self._quotas[permit.endpoint.url]
        quota.learn(self._clock.monotonic_s(), headers, self._clock.now_ms())

    def end(
        self,
        permit: Permit,
        kind: Kind,
        *,
        tokens: tuple[int, int] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Give a permit back, and tell what the request came to: exactly once for each permit.

        `tokens` are those of the question and of the reply, as the server reports them; `retry_after_s` is for how long it asked
        to be left alone.
        """
        now_s = self._clock.monotonic_s()
        endpoint = permit.endpoint
        took_s = now_s - permit.began_s
        self._metrics.on_attempt(endpoint.url, kind, took_s)
        output = tokens[1] if tokens else None
        verdict = _VERDICTS[kind]
        if kind == "throttled" and (retry_after_s or self._quotas[endpoint.url].known):
            verdict = "cancelled"  # a quota is a rate: it says nothing of how many may be in flight
        rtt_s = self.lag.without(took_s) if verdict == "ok" else took_s
        sample = Sample(now_s, rtt_s, permit.in_flight, verdict, output or None)
        self._limits[endpoint.url].observe(sample)
        self._tell_quota(permit, kind, now_s, tokens, retry_after_s)
        was = endpoint.breaker.state
        if kind == "ok":
            self.replied_s = now_s
        endpoint.on_end(now_s, kind, took_s, permit.ticket)
        self._in_flight -= 1
        if not self._in_flight:
            self.lag.stop()
        if was != "closed" and endpoint.breaker.state == "closed":
            self._wake_resting()
        if kind != "ok" and self.on_trouble is not None:
            self.on_trouble()
        self.pump()

    async def rest(self, seconds: float, *, until_recovery: bool) -> None:
        """Let `seconds` of back-off pass; with `until_recovery` no longer than until an endpoint is found to work again."""
        loop = asyncio.get_running_loop()
        awake = loop.create_future()
        alarm = loop.call_later(max(0.0, seconds), _settle, awake)
        if until_recovery:
            self._resting.add(awake)
        try:
            await awake
        finally:
            alarm.cancel()
            self._resting.discard(awake)

    def pump(self) -> None:
        """Let through who may go. To be called when something has changed that this does not know of."""
        while self._queue:
            waiter = self._queue[0][2]
            if waiter.future.done():
                heapq.heappop(self._queue)
                continue
            permit = self._grant(waiter.tokens, waiter.last)
            if permit is None:
                self._set_alarm()
                return
            if permit.endpoint.breaker.state != "closed":
                waiter = self._least_failed(waiter)
                permit.estimated = waiter.tokens  # what was reserved for the first is settled with the reply
            waiter.future.set_result(permit)

    def _least_failed(self, first: _Waiter) -> _Waiter:
        """Who is sent as the probe of an endpoint that failed: the one that failed least itself, since the fault may be its own."""
        waiting = [entry for entry in self._queue if not entry[2].future.done()]
        return min(waiting, key=lambda entry: (entry[2].failures, entry[:2]))[2] if waiting else first

    def _tell_quota(
        self, permit: Permit, kind: Kind, now_s: float, tokens: tuple[int, int] | None, retry_after_s: float | None
    ) -> None:
        quota = self._quotas[permit.endpoint.url]
        if kind in _NOT_SPENT:
            quota.refund(permit.reservation, now_s, refused=kind == "throttled")
            if kind == "throttled":
                quota.on_throttled(now_s, retry_after_s)
            return
        if tokens is None:
            quota.settle(permit.reservation, now_s, permit.reservation.tokens)
            return
        self.estimate.correct(permit.estimated, sum(tokens))
        quota.settle(permit.reservation, now_s, sum(tokens))

    def _grant(self, tokens: int, last: str | None, exclude: Collection[str] = ()) -> Permit | None:
        if self._in_flight >= self.most:
            self.blocked = "permits"
            return None
        now_s = self._clock.monotonic_s()
        left_out = set(exclude)
        self.blocked, self._quota_wait_s = "endpoints", float("inf")
        while (endpoint := self._choose(now_s, last, left_out)) is not None:
            if self._has_room(endpoint, now_s):
                reserved = self._quotas[endpoint.url].try_reserve(now_s, self.estimate.corrected(tokens))
                if isinstance(reserved, Reservation):
                    self._in_flight += 1
                    self.lag.start()
                    return Permit(endpoint, endpoint.on_start(now_s), now_s, tokens, reserved)
                self._quota_wait_s = min(self._quota_wait_s, reserved)
                self.blocked = "quota"
            elif self.blocked == "endpoints":
                self.blocked = "limits"
            left_out.add(endpoint.url)
        return None

    def _has_room(self, endpoint: EndpointState, now_s: float) -> bool:
        limit = self._limits[endpoint.url]
        if endpoint.outstanding < limit.limit:
            return True
        limit.press(now_s)
        return endpoint.outstanding < limit.limit

    def _choose(self, now_s: float, last: str | None, exclude: Collection[str]) -> EndpointState | None:
        chances = self._clock.random(), self._clock.random()
        if last is not None and len(self._pool.endpoints) > 1:
            other = self._pool.choose(now_s, *chances, exclude={last, *exclude})
            if other is not None:
                return other
        return self._pool.choose(now_s, *chances, exclude=exclude)

    def _set_alarm(self) -> None:
        """Look again when an endpoint may be usable by the mere passing of time; what ends looks again anyway."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self.blocked == "permits":
            return
        # An endpoint that may not be sent to now can become usable beside one that is at its limit.
        wait_s = self._pool.wait_s(self._clock.monotonic_s()) if self.blocked == "endpoints" else _LOOK_AGAIN_S
        wait_s = max(min(wait_s, self._quota_wait_s), _LEAST_WAIT_S)
        self._alarm = asyncio.get_running_loop().call_later(wait_s, self.pump)

    def _wake_resting(self) -> None:
        for awake in self._resting:
            _settle(awake)
        self._resting.clear()


def _settle(awake: asyncio.Future[None]) -> None:
    if not awake.done():
        awake.set_result(None)
