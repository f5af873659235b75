"""Dynamic batching: items that were asked for one by one, by whatever keys, travel in one request.

A batch is closed by the first of these:

- items: it holds `max_items`;
- bytes, tokens: one more item would make it larger than `max_bytes` or `max_tokens` (an item that is larger than
  that alone goes alone);
- age: its oldest item has waited `max_wait_ms`;
- deadline: the earliest deadline among its items is nearer than a request is expected to take, which is
  ``max(deadline_margin_ms, mean + 4 · deviation)`` of the requests so far (the estimator of RFC 6298, section 2, with
  its gains of 1/8 and 1/4);
- idle: fewer than `idle_below` requests are on their way (1: none is). The batch then leaves at the end of the present
  turn of the event loop, so that what was handed in together goes together; while requests are on their way, the next
  batch fills. This is the group commit of databases, and Nagle's rule for small segments (RFC 896).

With `max_in_flight` requests on their way, a closed batch waits and goes on filling. Set it to the bound on calls in
flight that lies behind `send`: batches that queue up there are closed, and small for ever.

A request that fails because of what is in it is split in two, and both halves are sent, until each item that fails
does so alone: bisection, at most 2 · ⌈log₂ n⌉ further requests for one poison item among n, and never more than
2 · n - 2 in all. Such failures are a reply that is short, long, reordered or broken, a refusal of the content (400,
413, 422) and a defect; on request also a server error. Any other failure is the retry loop's business and is raised
to every item as it is.

Token estimates are corrected by what servers report: the ratio of reported to estimated tokens, both summed with a
weight of 0.9 per step back, so that long items weigh as much as they cost.

Defaults: 64 items, 1 MB, no bound on tokens, 20 ms, margin 50 ms, 8 in flight, `idle_below` 1. The last was chosen in
simulation (10 ms a request and 0.5 ms an item; median latency in ms; a server with 8 slots, and one whose requests
share a processor), and `tests/unit/test_remote_batcher.py` repeats the comparison:

    idle_below       slots, 5/s   slots, 300/s   shared, 5/s   shared, 300/s   shared, 1,000/s
    0 (always wait)          31             26            30              26                47
    1                        11             18            11              18                43
    2                        11             14            11              32                62
    8                        11             10            11             117               231
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from transforms.errors import BrokenReply, CallError, DeadlineExceeded, Refused, ServerFailed, SettingsError
from transforms.remote.clock import Clock

T = TypeVar("T")
R = TypeVar("R")

_CONTENT_REFUSED = frozenset({0, 400, 413, 422})
"""Statuses that blame what was sent; 0 is a request that has no wire form."""

_MEMORY = 0.9
_LEAST_RATIO, _GREATEST_RATIO = 1.0 / 16.0, 16.0
_BYTES_PER_TOKEN = 4


class BatchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When a batch is closed, and how many may be on their way; the module says how the bounds act together.

    Items are counted, sizes are in bytes of a request's body, tokens as a server counts them. With
    `bisect_server_errors`, a server error (5xx) of a batch is bisected too: for servers that answer so to one bad
    record.
    """

    max_items: int = 64
    max_bytes: int = 1_000_000
    max_tokens: int | None = None
    max_wait_ms: float = 20.0
    deadline_margin_ms: float = 50.0
    max_in_flight: int = 8
    idle_below: int = 1
    bisect_server_errors: bool = False

    def __post_init__(self) -> None:
        """Raise SettingsError for values that are out of range or contradict one another."""
        for name in ("max_items", "max_bytes", "max_tokens", "max_in_flight"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; it must be 1 or more.")
        for name in ("max_wait_ms", "deadline_margin_ms"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise SettingsError(f"{name} is {value:g}; it must be a number of milliseconds, 0 or more.")
        if not 0 <= self.idle_below <= self.max_in_flight:
            raise SettingsError(
                f"idle_below is {self.idle_below}; it must be from 0 to max_in_flight ({self.max_in_flight})."
            )
        if not self.idle_below and not self.max_wait_ms:
            raise SettingsError("idle_below 0 makes every item wait, and max_wait_ms 0 none; set one of them above 0.")
        if self.bisect_server_errors and self.max_items == 1:
            raise SettingsError("bisect_server_errors is of no use with max_items 1; leave one of them out.")


CLOSED_BY = ("items", "bytes", "tokens", "age", "deadline", "idle", "split")
"""What can close a batch."""


class TokenEstimate:
    """Corrects estimates of tokens by what servers report. Single-threaded."""

    def __init__(self) -> None:
        self._estimated = 0.0
        self._reported = 0.0

    @property
    def ratio(self) -> float:
        """How many tokens are reported for one that was estimated; 1 before the first report, within 1/16 to 16."""
        if self._estimated <= 0.0:
            return 1.0
        return min(_GREATEST_RATIO, max(_LEAST_RATIO, self._reported / self._estimated))

    def correct(self, estimated: float, reported: float | None) -> None:
        """Learn that a request estimated at so many tokens was reported as so many; None says nothing."""
        if reported is not None and estimated > 0 and reported >= 0:
            self._estimated = _MEMORY * self._estimated + estimated
            self._reported = _MEMORY * self._reported + reported

    def corrected(self, estimated: float) -> float:
        """Return `estimated` tokens as a server would count them."""
        return estimated * self.ratio


def rough_tokens(text: str) -> int:
    """Return an estimate of a text's tokens to begin with: one for every four bytes of UTF-8, begun ones counted."""
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


def in_order(items: Sequence[T], replies: Sequence[R]) -> Sequence[R]:
    """Return `replies` as they came: the first reply is the first item's, for protocols that say nothing else.

    Raises:
        BrokenReply: there are more or fewer replies than items.
    """
    if len(replies) != len(items):
        raise BrokenReply(f"The answer holds {len(replies)} replies for {len(items)} items.")
    return replies


class _Entry(Generic[T, R]):
    """An item that somebody waits for."""

    __slots__ = ("batch", "deadline_s", "item", "reply", "size_bytes", "tokens")

    def __init__(self, item: T, tokens: float, size_bytes: int, deadline_s: float, reply: asyncio.Future[R]) -> None:
        self.item = item
        self.tokens = tokens
        self.size_bytes = size_bytes
        self.deadline_s = deadline_s
        self.reply = reply
        self.batch: _Batch[T, R] | None = None


class _Batch(Generic[T, R]):
    """Items that travel together. `entries` are those that somebody still waits for, in their order.

    A `sealed` batch takes no more; `reason` says what closed it.
    """

    __slots__ = ("age_ends_s", "deadline_s", "entries", "reason", "sealed", "size_bytes", "task", "tokens")

    def __init__(self, age_ends_s: float) -> None:
        self.entries: dict[_Entry[T, R], None] = {}
        self.age_ends_s = age_ends_s
        self.deadline_s = float("inf")
        self.tokens = 0.0
        self.size_bytes = 0
        self.sealed = False
        self.reason: str | None = None
        self.task: asyncio.Task[None] | None = None

    def add(self, entry: _Entry[T, R]) -> None:
        entry.batch = self
        self.entries[entry] = None
        self.tokens += entry.tokens
        self.size_bytes += entry.size_bytes
        self.deadline_s = min(self.deadline_s, entry.deadline_s)

    def remove(self, entry: _Entry[T, R]) -> None:
        if entry in self.entries:
            del self.entries[entry]
            self.tokens -= entry.tokens
            self.size_bytes -= entry.size_bytes

    def seal(self, reason: str) -> None:
        self.sealed = True
        self.reason = self.reason or reason


class _ServiceTime:
    """How long a request takes: smoothed mean plus four smoothed deviations, as RFC 6298 sets its timer."""

    def __init__(self) -> None:
        self._mean_s = 0.0
        self._deviation_s = 0.0
        self._known = False

    @property
    def expected_s(self) -> float:
        return self._mean_s + 4.0 * self._deviation_s

    def cut_off(self, after_s: float) -> None:
        """Count a request that was cancelled as twice as long, where it took longer than most: as RFC 6298 backs off."""
        if after_s > self._mean_s:
            self.note(2.0 * after_s)

    def note(self, took_s: float) -> None:
        if not self._known:
            self._known, self._mean_s, self._deviation_s = True, took_s, took_s / 2.0
            return
        self._deviation_s += (abs(self._mean_s - took_s) - self._deviation_s) / 4.0
        self._mean_s += (took_s - self._mean_s) / 8.0


class Batcher(Generic[T, R]):
    """Sends items in batches and hands each its own reply or error. Use it on one event loop.

    `send` posts one request for a list of items, in order, and returns their replies; `match` puts the replies in the
    order of the items, or raises BrokenReply where it cannot (`in_order` compares only their number). `estimate` may be
    shared by batchers of one model; who reads the usage tells it (`TokenEstimate.correct`). `limit`, where given, is
    asked for the present bound on requests on their way, instead of `max_in_flight`.

    `sent` counts the requests by what closed the batch (``items``, ``bytes``, ``tokens``, ``age``, ``deadline``,
    ``idle``, ``split``), `items_sent` the items in them: their ratio is the batch fill.
    """

    def __init__(
        self,
        settings: BatchSettings,
        send: Callable[[list[T]], Awaitable[Sequence[R]]],
        clock: Clock,
        match: Callable[[Sequence[T], Sequence[R]], Sequence[R]] = in_order,
        estimate: TokenEstimate | None = None,
        limit: Callable[[], int] | None = None,
    ) -> None:
        self.settings = settings
        self.estimate = estimate or TokenEstimate()
        self.sent: Counter[str] = Counter()
        self.items_sent = 0
        self._send = send
        self._match = match
        self._limit = limit
        self._clock = clock
        self._queue: deque[_Batch[T, R]] = deque()
        self._running: set[_Batch[T, R]] = set()
        self._service = _ServiceTime()
        self._turn: asyncio.Handle | None = None
        self._alarm: asyncio.Task[None] | None = None
        self._alarm_s = float("inf")
        self._closed = False

    @property
    def in_flight(self) -> int:
        """The requests on their way."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """The items that are in no request yet."""
        return sum(len(batch.entries) for batch in self._queue)

    async def submit(self, item: T, *, tokens: float = 0, size_bytes: int = 0, deadline_s: float | None = None) -> R:
        """Return the reply to `item`.

        `tokens` is an estimate (corrected here), `size_bytes` what the item adds to a request's body, `deadline_s` a
        moment of the clock's monotonic time. Cancelling it harms no other item; a request for which nobody waits any
        more is cancelled.

        Raises:
            DeadlineExceeded: `deadline_s` passed.
            CallError: the item's own error, or one of a whole request that is no item's fault; or `close` was called.
        """
        rest_s = self._rest_s(deadline_s)
        entry = self._enter(item, self.estimate.corrected(tokens), size_bytes, deadline_s)
        try:
            async with asyncio.timeout(rest_s) as limit:
                return await entry.reply
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded("The deadline passed while the item waited for its batch's reply.") from None
            raise
        finally:
            self._leave(entry)

    async def close(self) -> None:
        """Cancel every request and fail every item that waits."""
        self._closed = True
        for batch in (*self._running, *self._queue):
            self._fail(batch, CallError("The batcher was closed before the item had its reply."))
        self._queue.clear()
        tasks = [task for task in (self._alarm, *(batch.task for batch in self._running)) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _rest_s(self, deadline_s: float | None) -> float | None:
        if self._closed:
            raise CallError("The batcher is closed.")
        if deadline_s is None:
            return None
        rest_s = deadline_s - self._clock.monotonic_s()
        if rest_s <= 0.0:
            raise DeadlineExceeded("The deadline passed before the item was put into a batch.")
        return rest_s

    def _enter(self, item: T, tokens: float, size_bytes: int, deadline_s: float | None) -> _Entry[T, R]:
        """Put an item into the open batch, or into a new one where it has no room."""
        reply: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        entry = _Entry(item, tokens, size_bytes, float("inf") if deadline_s is None else deadline_s, reply)
        batch = self._open_batch(entry)
        batch.add(entry)
        if len(batch.entries) >= self.settings.max_items:
            batch.seal("items")
        elif batch.size_bytes >= self.settings.max_bytes:
            batch.seal("bytes")
        self._pump_soon()
        return entry

    def _open_batch(self, entry: _Entry[T, R]) -> _Batch[T, R]:
        if self._queue and not self._queue[-1].sealed:
            batch = self._queue[-1]
            overfull = self._overfull(batch, entry)
            if overfull is None:
                return batch
            batch.seal(overfull)
        batch = _Batch(self._clock.monotonic_s() + self.settings.max_wait_ms / 1000.0)
        self._queue.append(batch)
        return batch

    def _overfull(self, batch: _Batch[T, R], entry: _Entry[T, R]) -> str | None:
        """The bound that `batch` would break with `entry` in it."""
        if batch.size_bytes + entry.size_bytes > self.settings.max_bytes:
            return "bytes"
        if self.settings.max_tokens is not None and batch.tokens + entry.tokens > self.settings.max_tokens:
            return "tokens"
        return None

    def _leave(self, entry: _Entry[T, R]) -> None:
        """Nobody waits for the item any more: it has its outcome, or was given up."""
        if entry.reply.done() and not entry.reply.cancelled():
            entry.reply.exception()  # seen, even where the waiter was cancelled in the same turn
        batch = entry.batch
        if batch is None or entry not in batch.entries:
            return
        batch.remove(entry)
        if batch.entries:
            return
        if batch.task is not None:
            batch.task.cancel()
        else:
            self._queue.remove(batch)

    def _pump_soon(self) -> None:
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Send what is to be sent now, and see to it that this is called again when the rest is."""
        self._turn = None
        while self._queue and self._has_room():
            batch = self._queue[0]
            reason = batch.reason or self._reason(batch)
            if reason is None:
                self._wake_at(self._closes_s(batch))
                return
            self._start(self._queue.popleft(), reason)

    def _has_room(self) -> bool:
        return len(self._running) < (self._limit() if self._limit else self.settings.max_in_flight)

    def _reason(self, batch: _Batch[T, R]) -> str | None:
        """Why an open batch is sent now, if it is."""
        now_s = self._clock.monotonic_s()
        if now_s >= batch.age_ends_s:
            return "age"
        if now_s >= self._closes_s(batch):
            return "deadline"
        return "idle" if len(self._running) < self.settings.idle_below else None

    def _closes_s(self, batch: _Batch[T, R]) -> float:
        margin_s = max(self.settings.deadline_margin_ms / 1000.0, self._service.expected_s)
        return min(batch.age_ends_s, batch.deadline_s - margin_s)

    def _wake_at(self, moment_s: float) -> None:
        """Pump at `moment_s` or before. An earlier alarm that is set already will see to the later one."""
        if self._alarm is not None:
            if self._alarm_s <= moment_s:
                return
            self._alarm.cancel()
        self._alarm_s = moment_s
        self._alarm = asyncio.create_task(self._wait_for_alarm(moment_s))

    async def _wait_for_alarm(self, moment_s: float) -> None:
        await self._clock.sleep(moment_s - self._clock.monotonic_s())
        self._alarm = None
        self._pump()

    def _start(self, batch: _Batch[T, R], reason: str) -> None:
        batch.sealed = True
        self.sent[reason] += 1
        self.items_sent += len(batch.entries)
        self._running.add(batch)
        batch.task = asyncio.create_task(self._request(batch))
        batch.task.add_done_callback(functools.partial(self._end, batch))

    def _end(self, batch: _Batch[T, R], _: asyncio.Task[None]) -> None:
        """A request is over, also one that was cancelled before it began."""
        self._running.discard(batch)
        self._fail(batch, CallError("The request was cancelled while the item waited for its reply."))
        if not self._closed:
            self._pump()

    async def _request(self, batch: _Batch[T, R]) -> None:
        """One request: every item in it gets its outcome, or a place in a smaller batch."""
        entries = list(batch.entries)
        began_s = self._clock.monotonic_s()
        try:
            replies = await self._replies([entry.item for entry in entries])
        except asyncio.CancelledError:
            self._service.cut_off(self._clock.monotonic_s() - began_s)
            raise
        except Exception as error:  # noqa: BLE001 - a defect must not cost an item its outcome
            self._failed(batch, len(entries), error)
            return
        self._service.note(self._clock.monotonic_s() - began_s)
        for entry, reply in zip(entries, replies, strict=True):
            if not entry.reply.done():
                entry.reply.set_result(reply)
        batch.entries.clear()

    async def _replies(self, items: list[T]) -> Sequence[R]:
        """The replies in the order of the items; `match` is not trusted to have counted them."""
        return in_order(items, self._match(items, await self._send(items)))

    def _failed(self, batch: _Batch[T, R], count: int, error: Exception) -> None:
        """Bisect a request of `count` items, or fail its items."""
        if count > 1 and not self._closed and self._blames_content(error):
            entries = list(batch.entries)
            batch.entries.clear()
            middle = (len(entries) + 1) // 2
            for half in (entries[middle:], entries[:middle]):
                self._put_first(half)
            return
        self._fail(batch, error)

    def _put_first(self, entries: list[_Entry[T, R]]) -> None:
        """Half of a batch, as a sealed batch at the head of the queue."""
        if not entries:
            return
        batch: _Batch[T, R] = _Batch(self._clock.monotonic_s())
        for entry in entries:
            batch.add(entry)
        batch.seal("split")
        self._queue.appendleft(batch)

    def _blames_content(self, error: Exception) -> bool:
        if isinstance(error, Refused):
            return error.status in _CONTENT_REFUSED
        if isinstance(error, ServerFailed):
            return self.settings.bisect_server_errors
        return isinstance(error, BrokenReply) or not isinstance(error, CallError)

    def _fail(self, batch: _Batch[T, R], error: Exception) -> None:
        for entry in batch.entries:
            if not entry.reply.done():
                entry.reply.set_exception(error)
        batch.entries.clear()
