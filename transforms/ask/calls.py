"""The calls under way in this process, shared by every instance of a step.

Beam makes and drops instances of a step as it likes; a call outlives them. It belongs to the process and is found again by
(step, shard, event). What is here is a cache of the step's state: losing it costs calls, never events.

A call may be started early, by the step that gives a record its shard, before the record has travelled to the step that keeps
it in state: then the model works while the runner shuffles. That pays only where both steps run in one process, so a shard is
*at home* here once an instance in this process has touched it, and no longer once a call that was started early is not claimed.
Where the outcome is there before the record, it *leaves ahead* of it, with the record that was kept in memory, and the record
goes no further when it arrives: its ticket tells it from others of its id (docs/adr/0027 says why nothing is lost by that).

Where order is kept, calls of one order key run side by side, and an outcome is *held* until all before it in its queue have one
(`queues.py`). It is released when the last of those is completed, not when it is handed out: so whoever waits for what is open to
become less waits for calls alone, which end by their deadlines.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
import zlib
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec

from transforms.ask.queues import Queues
from transforms.remote import loop
from transforms.remote.chain import Chain
from transforms.remote.client import Call, Client, Outcome
from transforms.remote.clock import Clock, SystemClock
from transforms.remote.questions import Question
from transforms.remote.settings import ModelSettings
from transforms.remote.telemetry import Telemetry

# How long a client without users is kept. Runners drop the last instance of a step and make another at once
# (DirectRunner for every bundle, Flink at a restart), and a closed client would cancel calls that are still wanted.
CLIENT_GRACE_S = 30.0

# How long an early call may wait for its record to arrive, before its shard no longer counts as being at home here.
UNCLAIMED_S = 5.0

# How long after its event's deadline a call that nobody asked for any more is kept.
ORPHAN_GRACE_MS = 60_000

# The same for one whose outcome is still to be used: it left ahead of its record, which would be asked about again without it; or
# state wants it, and no instance of the step has the shard at present.
WANTED_GRACE_MS = 600_000

ANY = 0
"""The ticket of a call that any record of its id may claim, and of a record that was given none."""


class Caller(Protocol):
    """What makes the calls: the client of a model server, or a double of it in tests."""

    async def call(self, call: Call) -> Outcome:
        """The outcome of `call`; errors are outcomes."""

    async def close(self) -> None:
        """Gives up connections. No call may follow."""


class Running(Protocol):
    """What becomes of a call that runs; futures are such."""

    def done(self) -> bool:
        """Whether it has ended."""

    def result(self) -> Outcome:
        """Its outcome, once it has ended."""

    def add_done_callback(self, function: Callable[[Any], object], /) -> None:
        """Has `function` called once it has ended."""


Run = Callable[[Coroutine[Any, Any, Outcome]], Running]
"""What runs a call: the process's event loop, or a test."""


class Early(NamedTuple):
    """A record on its way to the step, for its outcome to leave with: its event time, and when its call was started."""

    record: Any
    event_time_us: int
    started_ms: int


class _Spent:
    """How many attempts of a call failed, of those that use up what it is allowed. Outlives the place of its call."""

    __slots__ = ("attempts",)

    def __init__(self) -> None:
        self.attempts = 0


class RunningCall:
    """One call, from its start until the step no longer needs it.

    `claimed`: its record has arrived at the step. `taken`: its outcome was handed out, maybe in vain; ahead of its record, where
    that has not arrived. `early`: that record, where the outcome may leave ahead of it. `ticket`: which record may claim the call.
    `question`: what is asked, None where nothing is. `spent`: what it has used up.
    `queue`: the order key of its event, if that has one; `held`: it has an outcome, and waits for those before it in the queue.
    """

    __slots__ = ("claimed", "deadline_ms", "early", "future", "held", "question", "queue", "spent", "taken", "ticket")

    def __init__(
        self,
        future: Running,
        deadline_ms: int,
        question: Question | None,
        ticket: int = ANY,
        early: Early | None = None,
        spent: _Spent | None = None,
    ) -> None:
        self.future = future
        self.deadline_ms = deadline_ms
        self.question = question
        self.spent = spent or _Spent()
        self.ticket = ticket
        self.early = early
        self.claimed = False
        self.taken = False
        self.queue: bytes | None = None
        self.held = False

    @property
    def has_left_ahead(self) -> bool:
        """Whether its outcome was handed out before its record arrived."""
        return self.taken and not self.claimed


_instances = itertools.count(1)
# From a random number on: a record may come from another process, or from this one's predecessor.
_tickets = itertools.count(1 + int.from_bytes(os.urandom(7)))


class Homes:
    """Which shards are handled in this process, and by which instance of the step; learnt from what comes. Needs a lock outside.

    Times are seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self._instance_of: dict[bytes, int] = {}
        self._unclaimed: dict[bytes, dict[str, float]] = {}
        self._ahead: dict[bytes, set[str]] = {}
        self._chosen: tuple[bytes, ...] = ()

    def touch(self, shard: bytes, instance: int) -> bool:
        """An instance of the step handles this shard now; returns whether it did before."""
        if self._instance_of.get(shard) == instance:
            return True
        self._instance_of[shard] = instance
        self._choose()
        return False

    def leave(self, instance: int) -> None:
        """An instance has gone."""
        for shard in [shard for shard, at in self._instance_of.items() if at == instance]:
            self._forget(shard)

    def pick(self, number: int, now_s: float) -> bytes | None:
        """A shard that is at home here, or None: one for each instance, so that each has one timer to follow."""
        while self._chosen:
            shard = self._chosen[number % len(self._chosen)]
            if self.has(shard, now_s):
                return shard
        return None

    def has(self, shard: bytes, now_s: float) -> bool:
        """Whether a shard is at home here."""
        if shard not in self._instance_of:
            return False
        waiting = self._unclaimed.get(shard)
        if not waiting or now_s - next(iter(waiting.values())) <= UNCLAIMED_S:
            return True
        self._forget(shard)
        return False

    def started(self, shard: bytes, key: str, now_s: float) -> None:
        """A call was started early for this shard."""
        self._unclaimed.setdefault(shard, {}).setdefault(key, now_s)

    def claim(self, shard: bytes, key: str) -> None:
        """The record of a call has arrived at the step."""
        self._unclaimed.get(shard, {}).pop(key, None)
        self._ahead.get(shard, set()).discard(key)

    def expected(self, shard: bytes) -> int:
        """Of how many calls that were started early the record has yet to arrive."""
        return len(self._unclaimed.get(shard, ()))

    def expects(self, shard: bytes, now_s: float) -> bool:
        """Whether the record of a call that was started early has yet to arrive."""
        return self.has(shard, now_s) and bool(self._unclaimed.get(shard))

    def completed(self, shard: bytes, key: str) -> None:
        """A call of this shard that waits for its record has an outcome, maybe before that arrived."""
        if key in self._unclaimed.get(shard, {}):
            self._ahead.setdefault(shard, set()).add(key)

    def is_ahead(self, shard: bytes) -> bool:
        """Whether an outcome of this shard is there before its record."""
        return bool(self._ahead.get(shard))

    def _forget(self, shard: bytes) -> None:
        self._instance_of.pop(shard, None)
        self._unclaimed.pop(shard, None)
        self._ahead.pop(shard, None)
        self._choose()

    def _choose(self) -> None:
        first: dict[int, bytes] = {}
        for shard, instance in sorted(self._instance_of.items()):
            first.setdefault(instance, shard)
        self._chosen = tuple(sorted(first.values()))


class Calls:
    """The calls of one step in this process, by (shard, event). Every method may be called from any thread."""

    def __init__(self, caller: Caller, clock: Clock, run: Run = loop.start) -> None:
        self.clock = clock
        self._run = run
        self._caller = caller
        self._lock = threading.Condition()
        self._shards: dict[bytes, dict[str, RunningCall]] = {}
        # What has an outcome that may leave and is not taken: what a shard hands out next, in the order of completion.
        self._ready: dict[bytes, dict[str, RunningCall]] = {}
        self._queues: dict[bytes, Queues] = {}
        # What was written last into each shard's state by this process.
        self._tokens: dict[bytes, bytes] = {}
        self._homes = Homes()
        # Which instance has a shard, as far as is known: state wants what is claimed for it here.
        self._handled: dict[bytes, int] = {}
        # The calls of which attempts failed, until that is in state.
        self._worn: dict[bytes, set[str]] = {}
        self._running = 0
        self._held = 0
        self._completed = 0
        self._next_sweep_ms = 0

    @property
    def running(self) -> int:
        """How many calls have no outcome yet."""
        return self._running

    @property
    def open(self) -> int:
        """How many calls have no outcome that may leave: they run, or are held. It becomes less by completions alone."""
        return self._running + self._held

    @property
    def completed(self) -> int:
        """How many calls were completed since the start."""
        return self._completed

    @property
    def telemetry(self) -> Telemetry | None:
        """What the caller reports of itself; None for one that reports nothing."""
        return getattr(self._caller, "telemetry", None)

    def find(self, shard: bytes, key: str) -> RunningCall | None:
        """The call of this event, or None where this process knows of none."""
        with self._lock:
            return self._shards.get(shard, {}).get(key)

    def start(self, shard: bytes, key: str, call: Call, *, queue: bytes | None = None) -> None:
        """Starts the call of an event and returns at once. In a `queue` its outcome leaves after those before it."""
        self._begin()
        self._keep(shard, key, self._made(shard, key, call), claimed=True, queue=queue)

    def settle(self, shard: bytes, key: str, outcome: Outcome, deadline_ms: int, queue: bytes | None = None) -> None:
        """Gives an event its outcome without a call."""
        future: Future[Outcome] = Future()
        future.set_result(outcome)
        self._begin()
        self._keep(shard, key, RunningCall(future, deadline_ms, None), claimed=True, queue=queue)

    def _begin(self) -> None:
        with self._lock:
            self._running += 1
            self._sweep()

    def _keep(self, shard: bytes, key: str, call: RunningCall, *, claimed: bool, queue: bytes | None = None) -> None:
        call.claimed, call.queue = claimed, queue
        with self._lock:
            self._shards.setdefault(shard, {})[key] = call
            self._place(shard, key, queue)
        call.future.add_done_callback(lambda _: self._on_completion(shard, key, call))

    def home(self, event_id: str) -> bytes | None:
        """A shard that is handled in this process, the same for an id as long as none comes or goes; None where none is known."""
        with self._lock:
            return self._homes.pick(zlib.crc32(event_id.encode()), self.clock.monotonic_s())

    def is_home(self, shard: bytes) -> bool:
        """Whether a shard is handled in this process."""
        with self._lock:
            return self._homes.has(shard, self.clock.monotonic_s())

    def start_early(
        self, shard: bytes, key: str, call: Call, early: Early | None = None, *, most: int | None = None
    ) -> int:
        """Starts the call of an event that is on its way to `shard`, unless there is one; returns the ticket to claim it with.

        With the record, as `early`, the outcome may leave ahead of it. Where `most` such calls wait for their records already, the
        call is left to the step that keeps the record: what is remembered here has a bound, however long records are on their way.
        """
        with self._lock:
            if key in self._shards.get(shard, {}) or (most is not None and self._homes.expected(shard) >= most):
                return ANY
            self._homes.started(shard, key, self.clock.monotonic_s())
        ticket = next(_tickets)
        self._begin()
        self._keep(shard, key, self._made(shard, key, call, ticket, early), claimed=False)
        return ticket

    def _made(self, shard: bytes, key: str, call: Call, ticket: int = ANY, early: Early | None = None) -> RunningCall:
        """Runs a call."""
        spent = _Spent()
        counted = msgspec.structs.replace(call, on_spent=partial(self._on_spent, shard, key, spent))
        return RunningCall(self._run(self._caller.call(counted)), call.deadline_ms, call.question, ticket, early, spent)

    def _on_spent(self, shard: bytes, key: str, spent: _Spent, attempts: int) -> None:
        with self._lock:
            spent.attempts = attempts
            call = self._shards.get(shard, {}).get(key)
            if call is not None and call.spent is spent:  # else another has taken its place
                self._worn.setdefault(shard, set()).add(key)

    def spent(self, shard: bytes, keys: Collection[str]) -> dict[str, int]:
        """The calls among `keys` of which attempts failed since this was asked last, and how many of each have by now."""
        with self._lock:
            worn = self._worn.get(shard)
            if not worn:
                return {}
            known = self._shards.get(shard, {})
            found = {key: known[key].spent.attempts for key in worn if key in keys and key in known}
            worn.difference_update(found)
            return found

    def expects(self, shard: bytes) -> bool:
        """Whether the record of a call that was started early for a shard has yet to arrive."""
        with self._lock:
            return self._homes.expects(shard, self.clock.monotonic_s())

    def wrote(self, shard: bytes, token: bytes) -> None:
        """Notes the token that a bundle writes into a shard's state."""
        with self._lock:
            self._tokens[shard] = token

    def follows(self, shard: bytes, token: bytes) -> bool:
        """Whether a shard's state is what this process wrote last: then what left ahead of its record has left."""
        with self._lock:
            return self._tokens.get(shard, b"") == token

    def new_instance(self) -> int:
        """A number for an instance of the step, its own in this process."""
        return next(_instances)

    def touch(self, shard: bytes, instance: int) -> bool:
        """Notes that an instance of the step handles this shard now; returns whether it was the last that did in this process.

        Where it was not, another may have taken outcomes in a bundle that failed.
        """
        with self._lock:
            self._handled[shard] = instance
            return self._homes.touch(shard, instance)

    def leave(self, instance: int) -> None:
        """Notes that an instance is no more."""
        with self._lock:
            self._homes.leave(instance)
            for shard in [shard for shard, at in self._handled.items() if at == instance]:
                del self._handled[shard]

    def is_anothers(self, shard: bytes, key: str, ticket: int, asked: Callable[[], Question | None]) -> bool:
        """Whether the call of this key was started for another record of the same id, which has yet to arrive.

        The ticket tells. After a bundle that failed there is none, since the record may come anew; then it is what is `asked`.
        """
        with self._lock:
            call = self._shards.get(shard, {}).get(key)
            if call is None or call.claimed:
                return False
            if call.ticket != ANY:
                return call.ticket != ticket
            question = call.question
        return question != asked()

    def claim(self, shard: bytes, key: str, queue: bytes | None = None) -> RunningCall | None:
        """Notes that an event has arrived at the step; returns the call that was started for it, if there is one.

        One whose outcome has left ahead is forgotten: the record must go no further.
        """
        with self._lock:
            self._homes.claim(shard, key)
            call = self._shards.get(shard, {}).get(key)
            if call is None:
                return None
            if call.has_left_ahead:
                self._forget(shard, key)
            else:
                self._place(shard, key, queue)
                self._want(shard, key, call, queue)
            return call

    def ready(self, shard: bytes) -> list[tuple[str, RunningCall]]:
        """The calls of a shard that have an outcome which may leave and was not taken, in the order they came to."""
        with self._lock:
            return list(self._ready.get(shard, {}).items())

    def take(self, shard: bytes, keys: Iterable[str]) -> None:
        """Notes that these outcomes are handed out. They stay until they are dropped, and can be claimed again."""
        with self._lock:
            ready = self._ready.get(shard, {})
            for key in keys:
                call = ready.pop(key, None)
                if call is not None:
                    call.taken, call.early = True, None

    def drop(self, shard: bytes, key: str) -> None:
        """Forgets a call whose outcome is safe in the runner's hands."""
        with self._lock:
            self._forget(shard, key)

    def reattach(self, shard: bytes, wanted: Mapping[str, bytes | None], *, follows: bool) -> list[str]:
        """Makes the calls of a shard follow its state: returns those of `wanted` that have no call in this process.

        `wanted` has the events in the order they were taken, each with its queue, if it has one. Outcomes that were handed out in
        vain are ready again; those that state no longer wants are forgotten. A call whose record is not in state stays: it may be
        on its way. Where state `follows` what this process wrote last, what left ahead of its record has left. Else it may
        have left in vain: the call waits for a record, and for any of its id, since the record may come anew.
        """
        with self._lock:
            self._ready.pop(shard, None)
            self._queues.pop(shard, None)
            known = self._shards.get(shard, {})
            for key, call in list(known.items()):
                self._unhold(call)
                if key not in wanted:
                    self._detach(shard, key, call, follows=follows)
            for key, queue in wanted.items():
                self._place(shard, key, queue)
            for key, queue in wanted.items():
                if key in known:
                    self._want(shard, key, known[key], queue)
            self._worn[shard] = {key for key, call in known.items() if call.spent.attempts}
            return [key for key in wanted if key not in known]

    def _detach(self, shard: bytes, key: str, call: RunningCall, *, follows: bool) -> None:
        """A call that state does not have: it is over, or its record is on its way."""
        if call.claimed and call.taken:
            self._forget(shard, key)
        elif call.claimed or not follows:
            call.claimed, call.taken, call.ticket, call.early = False, False, ANY, None
            if call.future.done():
                self._homes.completed(shard, key)
        elif call.early is not None and call.future.done():
            self._ready.setdefault(shard, {})[key] = call

    def wait_for_completion(self, seen: int, timeout_s: float) -> int:
        """Waits until more than `seen` calls were completed since the start, at most `timeout_s`; returns how many were."""
        with self._lock:
            self._lock.wait_for(lambda: self._completed > seen, timeout_s)
            return self._completed

    def has_ready(self, shard: bytes) -> bool:
        """Whether `ready` gives something."""
        with self._lock:
            return bool(self._ready.get(shard))

    def wait_for_ready(
        self, shard: bytes, others: Collection[bytes], timeout_s: float, *, till_ahead: bool = True
    ) -> bool:
        """Waits until an outcome of `shard` is ready, at most `timeout_s`; returns whether one is.

        Gives up earlier where one of `others` is ready: shards that wait for the same thread. And, unless `till_ahead` is False,
        where an outcome is there before its record, which cannot arrive while this thread waits here.
        """
        end_s = self.clock.monotonic_s() + timeout_s
        with self._lock:
            while not self._ready.get(shard):
                rest_s = end_s - self.clock.monotonic_s()
                is_ahead = till_ahead and self._homes.is_ahead(shard)
                if rest_s <= 0 or is_ahead or any(self._ready.get(other) for other in others):
                    return False
                self._lock.wait(rest_s)
            return True

    async def close(self) -> None:
        """Closes the client."""
        await self._caller.close()

    def _on_completion(self, shard: bytes, key: str, call: RunningCall) -> None:
        with self._lock:
            self._running -= 1
            self._completed += 1
            if call.taken or self._shards.get(shard, {}).get(key) is not call:
                pass
            elif call.claimed:
                self._release(shard, key, call)
            elif call.early is not None:
                self._ready.setdefault(shard, {})[key] = call
            else:
                self._homes.completed(shard, key)
            self._lock.notify_all()

    def _place(self, shard: bytes, key: str, queue: bytes | None) -> None:
        if queue is not None:
            self._queues.setdefault(shard, Queues()).add(queue, key)

    def _want(self, shard: bytes, key: str, call: RunningCall, queue: bytes | None) -> None:
        call.claimed, call.taken, call.early, call.queue = True, False, None, queue
        if call.future.done():
            self._release(shard, key, call)

    def _release(self, shard: bytes, key: str, call: RunningCall) -> None:
        """An outcome may leave, with those behind it in its queue; or it is held."""
        ready = self._ready.setdefault(shard, {})
        if key in ready:
            return  # its record arrived between its end and the word of it
        if call.queue is None:
            ready[key] = call
            return
        if not call.held:
            call.held = True
            self._held += 1
        known = self._shards.get(shard, {})
        for one in self._queues.setdefault(shard, Queues()).leave(
            call.queue, lambda one: one in known and known[one].held
        ):
            self._unhold(known[one])
            ready[one] = known[one]

    def _unhold(self, call: RunningCall) -> None:
        if call.held:
            call.held = False
            self._held -= 1

    def _forget(self, shard: bytes, key: str) -> None:
        call = self._shards.get(shard, {}).pop(key, None)
        self._ready.get(shard, {}).pop(key, None)
        self._worn.get(shard, set()).discard(key)
        if call is not None:
            self._unhold(call)

    def _sweep(self) -> None:
        """Forgets the outcomes of shards that moved to another process. Looks every minute at most."""
        now_ms = self.clock.now_ms()
        if now_ms < self._next_sweep_ms:
            return
        self._next_sweep_ms = now_ms + ORPHAN_GRACE_MS
        for shard, calls in self._shards.items():
            for key in [key for key, call in calls.items() if self._is_over(shard, call, now_ms)]:
                self._forget(shard, key)

    def _is_over(self, shard: bytes, call: RunningCall, now_ms: int) -> bool:
        is_wanted = call.claimed and not call.taken
        if not call.future.done() or (is_wanted and shard in self._handled):
            return False
        grace_ms = WANTED_GRACE_MS if is_wanted or call.has_left_ahead else ORPHAN_GRACE_MS
        return call.deadline_ms + grace_ms < now_ms


class _Shared:
    """The `Calls` of one step and how many instances of it use them."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.users = 0


_shared: dict[str, _Shared] = {}
_shared_lock = threading.Lock()

MakeCaller = Callable[[ModelSettings, Clock], Caller]


def make_client(settings: ModelSettings, clock: Clock) -> Caller:
    """The client of the model that `settings` name, with its fallbacks where it has some."""
    return Client(settings, clock) if settings.fallback is None else Chain(settings, clock)


def acquire(step: str, settings: ModelSettings, make_caller: MakeCaller = make_client) -> Calls:
    """The calls of `step` in this process, made on first use. `release` must follow."""
    with _shared_lock:
        shared = _shared.get(step)
        if shared is None:
            clock = SystemClock()
            shared = _shared[step] = _Shared(Calls(make_caller(settings, clock), clock))
        shared.users += 1
        return shared.calls


def release(step: str) -> None:
    """Gives up one use. The client is closed once nobody took it up again for `CLIENT_GRACE_S`."""
    with _shared_lock:
        shared = _shared.get(step)
        if shared is None:
            return
        shared.users -= 1
        if shared.users > 0:
            return
    loop.run(_close_when_unused(step, shared.calls.clock))


def _close_all() -> None:
    """Closes what is left when the process ends in good order."""
    with _shared_lock:
        left = [shared.calls for shared in _shared.values()]
        _shared.clear()
    for calls in left:
        with contextlib.suppress(Exception):
            loop.run(calls.close()).result(timeout=1.0)


atexit.register(_close_all)


async def _close_when_unused(step: str, clock: Clock) -> None:
    while True:
        await clock.sleep(CLIENT_GRACE_S)
        with _shared_lock:
            shared = _shared.get(step)
            if shared is None or shared.users > 0:
                return
            if not shared.calls.running:
                del _shared[step]
                break
    await shared.calls.close()
