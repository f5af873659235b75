"""The retry loop, the only one of the project: a request is sent until it has an answer that stands.

For each attempt it takes a permit to an endpoint (`admission`), sends (`exchange`), and where that failed for a passing reason
waits (`retry`). The deadline covers all of it. With hedging (`hedge`), an attempt that takes long is sent to a second endpoint
too; the first reply wins, and the other request is cut off.

An attempt that was throttled uses up nothing: the server has not failed, and the event waits for its turn. Nor does one that
failed while nobody had a reply, since the event's attempt before it began: that is an outage, and no fault of the event, which
waits, while the breaker sees to it that few requests are made. (`RetryPolicy.wait_for_server` false counts these.)

Repeats of attempts that failed are paid from a budget (`budget`; `RetryPolicy.budget` of the events, and 10 a second at least, over
10 s): where more fail than that, repeats wait for it, and first attempts go before them. No event ends by it without a repeat: replies
pay too, as long as hardly any attempt fails; and one whose time runs out (1.2 times what a reply takes is left, or a quarter of its
time) is repeated once without the budget, if any server has replied since it failed. So while all servers fail the budget's promise
holds; where they answer some, it is exceeded by one request at most for each event that would be lost else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from transforms.errors import BrokenReply, CallError, Throttled, Transient
from transforms.remote.admission import Admission, Permit
from transforms.remote.budget import Budget, BudgetSettings
from transforms.remote.client_metrics import ClientMetrics
from transforms.remote.clock import Clock
from transforms.remote.course import OVER_S, Sending
from transforms.remote.exchange import Exchange
from transforms.remote.hedge import HedgePolicy
from transforms.remote.questions import Reply
from transforms.remote.retry import full_jitter
from transforms.remote.settings import RetryPolicy
from transforms.remote.transport import NotConnected

_LEAST_RETRIES_PER_S = 10.0
_BUDGET_WINDOW_S = 10.0
_BUDGET_WAIT_S = 0.05
_SPARE_WAIT_S = 0.25
_SPARE_TIMES = 1.2
_SPARE_SHARE = 0.25
_PHASES = {
    "permits": "while all permits for requests in flight were taken",
    "endpoints": "while no endpoint could be sent to",
    "limits": "while every endpoint had as many requests in flight as it bears",
    "quota": "while the quota was used up",
}


_Task = asyncio.Task[Sequence[Reply]]


class Attempts:
    """Gets answers to requests. Use it on one event loop."""

    def __init__(
        self,
        policy: RetryPolicy,
        clock: Clock,
        admission: Admission,
        exchange: Exchange,
        metrics: ClientMetrics,
        hedge: HedgePolicy | None = None,
    ) -> None:
        self._policy = policy
        self._metrics = metrics
        self.budget = Budget(BudgetSettings(policy.budget, _LEAST_RETRIES_PER_S, _BUDGET_WINDOW_S))
        self._clock = clock
        self._admission = admission
        self._exchange = exchange
        self._hedge = hedge
        self._paying = asyncio.Lock()  # those who wait for the budget, in order: the first alone looks at it
        if hedge is not None:
            admission.on_throttled = hedge.on_throttled

    async def replies(self, sending: Sending) -> Sequence[Reply]:
        """Return the replies, one to each question.

        Raises:
            CallError: there are none. A broken reply to several questions is not asked for again: who batches splits them.
        """
        self.budget.deposit(self._clock.monotonic_s())
        while True:
            try:
                replies = await self._attempt(sending)
            except Transient as error:
                self._note(sending, error)
                if isinstance(error, BrokenReply) and len(sending.courses) > 1:
                    raise
                if sending.deadline_s - self._clock.monotonic_s() > OVER_S and sending.used_up(
                    self._policy.max_attempts
                ):
                    raise
                failed = error
            else:
                self.budget.on_result(self._clock.monotonic_s(), ok=True)
                return replies
            await self._back_off(sending, failed)

    async def _attempt(self, sending: Sending) -> Sequence[Reply]:
        rest_s = sending.rest_s(self._clock, "before it was sent")
        try:
            permit = await self._admission.acquire(
                sending.turn,
                rest_s,
                sending.request.tokens,
                sending.last_endpoint,
                sending.failures,
                sending.whole_s,
            )
        except TimeoutError:
            raise sending.courses[0].exceeded(_PHASES[self._admission.blocked or "permits"]) from None
        if self._hedge is None:
            return await self._exchange.send(sending, permit)
        return await self._hedged(sending, permit, self._hedge)

    async def _hedged(self, sending: Sending, permit: Permit, hedge: HedgePolicy) -> Sequence[Reply]:
        began_s = permit.began_s
        if not sending.failures:
            hedge.on_start(began_s)
        delay_s = hedge.delay_s(began_s)
        if delay_s is None:
            replies = await self._exchange.send(sending, permit)
        else:
            replies = await self._raced(sending, permit, hedge, delay_s)
        now_s = self._clock.monotonic_s()
        hedge.on_latency(now_s, now_s - began_s)
        return replies

    async def _raced(self, sending: Sending, first: Permit, hedge: HedgePolicy, delay_s: float) -> Sequence[Reply]:
        """Send, and after `delay_s` without an answer send to another endpoint too; the first reply wins."""
        tasks = [asyncio.create_task(self._exchange.send(sending, first))]
        try:
            done, _ = await asyncio.wait(tasks, timeout=delay_s)
            second = None if done else self._second(sending, first, hedge)
            if second is not None:
                tasks.append(asyncio.create_task(self._exchange.send(sending, second)))
            winner = await _first_with_reply(tasks)
            if winner.exception() is not None:
                self._note_absent(sending, [task for task in tasks if task is not winner])
            elif winner is not tasks[0]:
                self._metrics.on_hedge("won")
            return winner.result()
        finally:
            await _cut_off(tasks)

    def _second(self, sending: Sending, first: Permit, hedge: HedgePolicy) -> Permit | None:
        """A permit to another endpoint, where there is one at once and the budget allows."""
        now_s = self._clock.monotonic_s()
        if sending.deadline_s - now_s <= OVER_S:
            return None
        permit = self._admission.try_acquire(sending.request.tokens, {first.endpoint.url})
        if permit is not None and not hedge.try_start(now_s):
            self._admission.give_back(permit)
            self._metrics.on_hedge("withheld")
            return None
        if permit is not None:
            self._metrics.on_hedge("sent")
        return permit

    async def _wait_for_budget(self, sending: Sending, failed_s: float) -> None:
        """Wait until one more repeat may be sent, or the deadline has passed. An empty budget ends no event."""
        now_s = self._clock.monotonic_s()
        if not self._paying.locked() and self.budget.try_withdraw(now_s):
            return
        spare_s = min(_SPARE_TIMES * self._admission.needed.at(now_s), _SPARE_SHARE * sending.whole_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, sending.deadline_s - spare_s - now_s)), self._paying:
                while not self.budget.try_withdraw(self._clock.monotonic_s()):
                    await self._clock.sleep(_BUDGET_WAIT_S)
                return
        while not self._is_spared(sending, failed_s):
            now_s = self._clock.monotonic_s()
            if sending.deadline_s - now_s <= OVER_S or self.budget.try_withdraw(now_s):
                return
            await self._clock.sleep(min(_SPARE_WAIT_S, sending.deadline_s - now_s))

    def _is_spared(self, sending: Sending, failed_s: float) -> bool:
        """Whether an event whose time runs out is repeated without the budget: once, and not while all servers fail."""
        if sending.is_spared or self._admission.replied_s < failed_s:
            return False
        sending.is_spared = True
        return True

    def _note_absent(self, sending: Sending, tasks: Sequence[_Task]) -> None:
        """Take back those of these failed requests that found no server."""
        failures = [task.exception() for task in tasks if not task.cancelled()]
        for _ in range(sum(self._policy.wait_for_server and isinstance(error, NotConnected) for error in failures)):
            sending.on_absent()

    def _note(self, sending: Sending, error: Transient) -> None:
        throttled = isinstance(error, Throttled)
        absent = self._policy.wait_for_server and isinstance(error, NotConnected)
        outage = self._policy.wait_for_server and self._admission.replied_s < sending.since_s
        sending.on_failure(error, counts=not (throttled or absent or outage), happened=not absent)
        if not throttled:
            self.budget.on_result(self._clock.monotonic_s(), ok=False)

    async def _back_off(self, sending: Sending, error: CallError) -> None:
        """Wait before the next attempt, but no longer than the deadline, which then has passed."""
        rest_s = sending.rest_s(self._clock, "")
        failed_s = self._clock.monotonic_s()
        pause_s = full_jitter(sending.failures - 1, self._policy.base_s, self._policy.cap_s, self._clock.random())
        throttled = isinstance(error, Throttled)
        self._metrics.on_retry(error.kind, pause_s)
        await self._admission.rest(min(pause_s, rest_s), until_recovery=not throttled)
        if not throttled:
            await self._wait_for_budget(sending, failed_s)
        if sending.deadline_s - self._clock.monotonic_s() <= OVER_S:
            raise sending.courses[0].exceeded("during a back-off")


async def _first_with_reply(tasks: Sequence[_Task]) -> _Task:
    """The first of them that has a reply; where all fail, the last that failed."""
    pending = set(tasks)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled() and task.exception() is None:
                return task
        if not pending:
            return done.pop()


async def _cut_off(tasks: Sequence[_Task]) -> None:
    """End what is still under way, and wait for its end: a permit is given back by then."""
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.gather(*left, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.exception()
