"""Who may send next, and where: the one door that every attempt of a model's calls goes through, and the one book they are in.

A request is let through when fewer than `most` are under way, and an endpoint may be sent to (`pool`) that has fewer under way
than its own limit (`concurrency`) and room in its quota (`quota`). Its tokens are an estimate, corrected by what servers report.
The oldest goes first, by the turn that its event was given when it came: a repeat does not queue up behind younger events, and
nobody overtakes one that has enough time left. What an attempt came to is told here once, and goes from here to the endpoint, its
limit and the quota, so that they agree.

*Enough time.* Where more comes than is let through for as long as a deadline, the oldest has next to no time left when its turn
comes. Its request is cut off, spends the quota and teaches nothing; so is the next one, and nobody has an answer any more, not even
when the server is well again. So one that waits is passed over while its time left is less than::

    needed = min(timeout_s, 1.1 · p99 of the replies' times of the last 60 s)

and others wait that have more. It is let through when none of those is left, and ends by its own deadline; of such, the one with most
time goes first. Below ten replies, p99 is taken for `timeout_s`, and never more than half of the time that an event had in all; nor
where it had less in all than a reply takes. A request that had as much as it needed, and was cut off by the
deadline all the same, counts as a reply of twice its time: else only quick replies would be learnt from, and `needed` would sink,
or stay too low for a server that became slower. A probe of an endpoint whose breaker is half-open goes to one with enough time, too.

p99, since under a load that lasts everyone is sent at that bound, and what lies above it is wasted; the tenth is the width of a
bucket (`quantiles`). A bound too high costs little: a deadline is as much shorter, but for those who find nobody else waiting.

Source: deadline-aware scheduling, in which work that cannot end in time gives way to what can (firm deadlines: Haritsa, Carey, Livny,
"Earliest Deadline Scheduling for Real-Time Database Systems", RTSS 1991, where earliest-deadline-first alone collapses under
overload in this way). Facebook's adaptive LIFO with CoDel (Ben Maurer, "Fail at Scale", ACM Queue 13:8, 2015) is a relative: it serves
the youngest while there is a queue, and drops early. Here nobody is dropped early, and the order turns only for those who are late.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Literal, NamedTuple

from transforms.remote.batcher import TokenEstimate
from transforms.remote.client_metrics import ClientMetrics
from transforms.remote.clock import Clock
from transforms.remote.concurrency import Limit, Sample, Verdict
from transforms.remote.loop_lag import LoopLag
from transforms.remote.outliers import Kind
from transforms.remote.pool import EndpointState, Pool, Ticket
from transforms.remote.quantiles import SlidingQuantiles
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
_LEAST_WAIT_S = 0.001
_LOOK_AGAIN_S = 0.1

_SHARE, _MARGIN, _WINDOW_S, _LEAST_REPLIES = 0.99, 1.1, 60.0, 10
_REFRESH_S = 0.25
_NEARLY = 0.95
_LEFT_OVER = 64


class TimeNeeded:
    """How long a reply takes, or nearly every one; see the module. Times are monotonic seconds.

    `timeout_s` is what one attempt may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._needed_s = timeout_s
        self._times = SlidingQuantiles(_WINDOW_S)
        self._refresh_s = float("-inf")
        self.is_known = False
        """Whether that is what replies took, and not the time-out in its place."""

    def at(self, now_s: float) -> float:
        """Return the seconds that a request needs now."""
        if now_s >= self._refresh_s:
            self._refresh_s = now_s + _REFRESH_S
            known = self._times.count(now_s) >= _LEAST_REPLIES
            learnt_s = self._times.quantile(now_s, _SHARE) if known else None
            self.is_known = learnt_s is not None
            self._needed_s = self._timeout_s if learnt_s is None else min(self._timeout_s, _MARGIN * learnt_s)
        return self._needed_s

    def on_reply(self, now_s: float, took_s: float) -> None:
        """Note a reply."""
        self._times.add(now_s, took_s)

    def on_cut(self, now_s: float, took_s: float) -> bool:
        """Note a request that its event's deadline cut off, and return whether a reply should have been there by then."""
        nearly_s = took_s / _NEARLY
        needed_s = self.at(now_s)
        if nearly_s >= needed_s:
            self._times.add(now_s, min(2.0 * took_s, self._timeout_s))
        return nearly_s >= min(needed_s, self._timeout_s / 2.0)


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
    """Somebody who waits for a permit: another endpoint than the one of the URL `last`, if there is one.

    `place` is its place in the order, `most_s` the most time until `deadline_s` that it can need.
    """

    __slots__ = ("deadline_s", "failures", "future", "last", "most_s", "place", "tokens")

    def __init__(
        self, place: tuple[int, int], deadline_s: float, most_s: float, tokens: int, last: str | None, failures: int
    ) -> None:
        self.place = place
        self.deadline_s = deadline_s
        self.most_s = most_s
        self.tokens = tokens
        self.last = last
        self.failures = failures
        self.future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()


class _Refusal(NamedTuple):
    """Why a request was not let through, and after how many seconds a quota may have room."""

    blocked: Blocked
    quota_s: float


class Admission:
    """Lets requests through to the endpoints of a pool. Use it on one event loop; the counts may be read from any thread.

    `limits` and `quotas` are those of the endpoints, by their URLs; `timeout_s` is what one attempt may take. `blocked` is why
    somebody who waited was last not let through.
    """

    def __init__(
        self,
        clock: Clock,
        pool: Pool,
        most: int,
        limits: Mapping[str, Limit],
        quotas: Mapping[str, Quota],
        metrics: ClientMetrics,
        timeout_s: float = float("inf"),
    ) -> None:
        self.most = most
        self.needed = TimeNeeded(timeout_s)
        self.estimate = TokenEstimate()
        self.lag = LoopLag(clock)
        self._limits = limits
        self._quotas = quotas
        self._metrics = metrics
        self.blocked: Blocked | None = None
        self._clock = clock
        self._pool = pool
        self._in_flight = 0
        self._waiting = 0
        self._queue: list[tuple[tuple[int, int], _Waiter]] = []
        self._late: list[tuple[float, tuple[int, int], _Waiter]] = []
        self._refused: _Waiter | None = None
        self._quota_held_s = 0.0
        self._quota_since_s: float | None = None
        self._number = itertools.count()
        self._alarm: asyncio.TimerHandle | None = None
        self._resting: set[asyncio.Future[None]] = set()
        self.replied_s = float("-inf")
        """When a request last had a reply, of whatever endpoint; monotonic seconds."""
        self.on_trouble: Callable[[], None] | None = None
        """Called when an endpoint may have become unusable."""
        self.on_throttled: Callable[[float], None] | None = None
        """Called with the moment at which any request was answered with a wish for fewer."""

    @property
    def in_flight(self) -> int:
        """The number of permits given out."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """The number of requests that wait for one."""
        return self._waiting

    async def acquire(
        self,
        turn: int,
        timeout_s: float,
        tokens: int = 0,
        last: str | None = None,
        failures: int = 0,
        whole_s: float | None = None,
    ) -> Permit:
        """Return a permit, in turn, to another endpoint than that of the URL `last` where there is one.

        `timeout_s` is the time until the event's deadline, of `whole_s` that it had in all (else of `timeout_s`); `failures` is how
        often the request has failed so far.

        Raises:
            TimeoutError: there was none for `timeout_s` seconds; `blocked` says why.
        """
        began_s = self._clock.monotonic_s()
        if self._first(began_s) is None:
            granted = self._grant(tokens, last)
            if isinstance(granted, Permit):
                self._metrics.on_permit(0.0, 0.0)
                return granted
        most_s = (timeout_s if whole_s is None else whole_s) / 2.0
        waiter = _Waiter((turn, next(self._number)), began_s + timeout_s, most_s, tokens, last, failures)
        heapq.heappush(self._queue, (waiter.place, waiter))
        self._waiting += 1
        held_s = self._held_by_quota_s(began_s)
        if self._first(began_s) is not self._refused:
            self.pump()
        try:
            async with asyncio.timeout(timeout_s):
                permit = await waiter.future
            now_s = self._clock.monotonic_s()
            self._metrics.on_permit(now_s - began_s, self._held_by_quota_s(now_s) - held_s)
        except BaseException:
            if waiter.future.done() and not waiter.future.cancelled():  # the permit came in the same turn of the loop
                self.give_back(waiter.future.result())
            waiter.future.cancel()
            if waiter is self._refused:
                self.pump()  # those behind it may need less
            raise
        else:
            return permit
        finally:
            self._waiting -= 1
            self._sweep()

    def try_acquire(self, tokens: int, exclude: Collection[str]) -> Permit | None:
        """Return a permit to an endpoint of none of these URLs, where there is one at once and nobody waits."""
        granted = None if self._waiting else self._grant(tokens, None, exclude)
        return granted if isinstance(granted, Permit) else None

    def learn(self, permit: Permit, headers: Mapping[str, str]) -> None:
        """Tell what headers an answer had, of whatever status: some name the quota and what is left of it."""
        quota = self._quotas[permit.endpoint.url]
        quota.learn(self._clock.monotonic_s(), headers, self._clock.now_ms(), permit.reservation)

    def close_until(self, url: str, opens_s: float) -> None:
        """Send nothing to the endpoint of this URL before `opens_s`, as it asked in its answer to a probe."""
        for endpoint in self._pool.endpoints:
            if endpoint.url == url:
                endpoint.close_until(opens_s)

    def end(
        self,
        permit: Permit,
        kind: Kind,
        *,
        tokens: tuple[int, int] | None = None,
        retry_after_s: float | None = None,
        sent: bool = True,
    ) -> None:
        """Give a permit back, and tell what the request came to: exactly once for each permit, or `give_back`.

        `tokens` are those of the question and of the reply, as the server reports them; `retry_after_s` is for how long it asked
        to be left alone. What no server can have seen, because there was no connection, is not `sent` and costs no quota.
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
        self._tell_quota(permit, kind, now_s, tokens, retry_after_s, sent=sent)
        was = endpoint.breaker.state
        if kind == "ok":
            self.replied_s = now_s
            self.needed.on_reply(now_s, took_s)
        endpoint.on_end(now_s, kind, took_s, permit.ticket)
        if was != "closed" and endpoint.breaker.state == "closed":
            self._wake_resting()
        if kind != "ok" and self.on_trouble is not None:
            self.on_trouble()
        if kind == "throttled" and self.on_throttled is not None:
            self.on_throttled(now_s)
        self._release()

    def give_back(self, permit: Permit) -> None:
        """Give a permit back with which no request was made: it costs no quota, and is no attempt."""
        now_s = self._clock.monotonic_s()
        self._quotas[permit.endpoint.url].refund(permit.reservation, now_s)
        permit.endpoint.on_end(now_s, "cancelled", 0.0, permit.ticket)
        self._release()

    def cut(self, permit: Permit) -> Kind:
        """Return what `end` is to be told of a request that its event's deadline cut off now; to be asked once.

        It is a time-out where it had as long as a reply takes, or half of what an attempt may: else an endpoint that hangs would
        never be found out by events that have less time than that. One that had less says nothing of the endpoint.
        """
        now_s = self._clock.monotonic_s()
        return "timeout" if self.needed.on_cut(now_s, now_s - permit.began_s) else "cancelled"

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
        now_s = self._clock.monotonic_s()
        while (waiter := self._first(now_s)) is not None:
            granted = self._grant(waiter.tokens, waiter.last)
            if not isinstance(granted, Permit):
                self._hold(waiter, granted, now_s)
                return
            if granted.endpoint.breaker.state != "closed":
                waiter = self._probe_of(waiter, now_s)
                granted.estimated = waiter.tokens  # what was reserved for the first is settled with the reply
            waiter.future.set_result(granted)
        self._hold(None, None, now_s)

    def _release(self) -> None:
        """One permit is back."""
        self._in_flight -= 1
        if not self._in_flight:
            self.lag.stop()
        self.pump()

    def _first(self, now_s: float) -> _Waiter | None:
        """Who is next: the oldest of those with enough time, else who has most; None where nobody waits."""
        needed_s = self.needed.at(now_s)
        while self._late and _has_left(self._late[0][2], now_s, needed_s):  # less is needed than it was
            waiter = heapq.heappop(self._late)[2]
            heapq.heappush(self._queue, (waiter.place, waiter))
        while self._queue:
            waiter = self._queue[0][1]
            if not waiter.future.done():
                if _has_left(waiter, now_s, self._needs(waiter, needed_s)):
                    return waiter
                heapq.heappush(self._late, (-waiter.deadline_s, waiter.place, waiter))
            heapq.heappop(self._queue)
        while self._late and self._late[0][2].future.done():
            heapq.heappop(self._late)
        return self._late[0][2] if self._late else None

    def _probe_of(self, first: _Waiter, now_s: float) -> _Waiter:
        """Who is sent as the probe of an endpoint that failed, where `first` is next.

        Of those with enough time the one that failed least itself, since the fault may be its own.
        """
        needed_s = self.needed.at(now_s)
        in_time = (waiter for _, waiter in self._queue if _has_left(waiter, now_s, self._needs(waiter, needed_s)))
        waiting = [waiter for waiter in in_time if not waiter.future.done()]
        return min(waiting, key=lambda waiter: (waiter.failures, waiter.place), default=first)

    def _needs(self, waiter: _Waiter, needed_s: float) -> float:
        """The seconds that it needs: half of its time at most, unless a reply is known to take longer, and less than all of it."""
        if self.needed.is_known and needed_s < 2.0 * waiter.most_s:
            return needed_s
        return min(needed_s, waiter.most_s)

    def _hold(self, refused: _Waiter | None, refusal: _Refusal | None, now_s: float) -> None:
        """Note who is not let through and why, None for nobody, and look again when that may be over."""
        self._refused = refused
        self._quota_held_s = self._held_by_quota_s(now_s)
        self._quota_since_s = now_s if refusal is not None and refusal.blocked == "quota" else None
        if refusal is not None:
            self.blocked = refusal.blocked
            self._set_alarm(refusal, now_s)

    def _held_by_quota_s(self, now_s: float) -> float:
        """For how many seconds somebody has waited for the quota, in all."""
        return self._quota_held_s + (0.0 if self._quota_since_s is None else now_s - self._quota_since_s)

    def _sweep(self) -> None:
        """Forget those who wait no more: among the late, those with least time are never looked at again."""
        if len(self._queue) + len(self._late) > 2 * self._waiting + _LEFT_OVER:
            self._queue = [entry for entry in self._queue if not entry[1].future.done()]
            self._late = [entry for entry in self._late if not entry[2].future.done()]
            heapq.heapify(self._queue)
            heapq.heapify(self._late)

    def _tell_quota(
        self,
        permit: Permit,
        kind: Kind,
        now_s: float,
        tokens: tuple[int, int] | None,
        retry_after_s: float | None,
        *,
        sent: bool,
    ) -> None:
        quota = self._quotas[permit.endpoint.url]
        if kind == "throttled":
            quota.refund(permit.reservation, now_s, refused=True)
            quota.on_throttled(now_s, retry_after_s)
        elif not sent:
            quota.refund(permit.reservation, now_s)
        elif tokens is None:
            quota.settle(permit.reservation, now_s, permit.reservation.tokens)
        else:
            self.estimate.correct(permit.estimated, sum(tokens))
            quota.settle(permit.reservation, now_s, sum(tokens), tokens)

    def _grant(self, tokens: int, last: str | None, exclude: Collection[str] = ()) -> Permit | _Refusal:
        if self._in_flight >= self.most:
            return _Refusal("permits", float("inf"))
        now_s = self._clock.monotonic_s()
        left_out = set(exclude)
        blocked: Blocked = "endpoints"
        quota_s = float("inf")
        while (endpoint := self._choose(now_s, last, left_out)) is not None:
            if self._has_room(endpoint, now_s):
                reserved = self._quotas[endpoint.url].try_reserve(now_s, self.estimate.corrected(tokens))
                if isinstance(reserved, Reservation):
                    self._in_flight += 1
                    self.lag.start()
                    return Permit(endpoint, endpoint.on_start(now_s), now_s, tokens, reserved)
                quota_s = min(quota_s, reserved)
                blocked = "quota"
            elif blocked == "endpoints":
                blocked = "limits"
            left_out.add(endpoint.url)
        return _Refusal(blocked, quota_s)

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

    def _set_alarm(self, refusal: _Refusal, now_s: float) -> None:
        """Look again when an endpoint may be usable by the mere passing of time; what ends looks again anyway."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if refusal.blocked == "permits":
            return
        # An endpoint that may not be sent to now can become usable beside one that is at its limit.
        wait_s = self._pool.wait_s(now_s) if refusal.blocked == "endpoints" else _LOOK_AGAIN_S
        wait_s = max(min(wait_s, refusal.quota_s), _LEAST_WAIT_S)
        self._alarm = asyncio.get_running_loop().call_later(wait_s, self.pump)

    def _wake_resting(self) -> None:
        for awake in self._resting:
            _settle(awake)
        self._resting.clear()


def _settle(awake: asyncio.Future[None]) -> None:
    if not awake.done():
        awake.set_result(None)


def _has_left(waiter: _Waiter, now_s: float, seconds: float) -> bool:
    return waiter.deadline_s - now_s >= seconds
