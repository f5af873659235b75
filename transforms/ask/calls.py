"""The calls under way in this process, shared by every instance of a step.

Beam makes and drops instances of a step as it likes; a call outlives them. It belongs to the process and is found again by
(step, shard, event). What is here is a cache of the step's state: losing it costs calls, never events.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Protocol

from transforms.remote import loop
from transforms.remote.client import Call, Client, Outcome
from transforms.remote.clock import Clock, SystemClock
from transforms.remote.settings import ModelSettings

# How long a client without users is kept. Runners drop the last instance of a step and make another at once
# (DirectRunner for every bundle, Flink at a restart), and a closed client would cancel calls that are still wanted.
CLIENT_GRACE_S = 30.0

# How long after its event's deadline a call that nobody asked for any more is kept.
ORPHAN_GRACE_MS = 60_000


class Caller(Protocol):
    """What makes the calls: the client of a model server, or a double of it in tests."""

    async def call(self, call: Call) -> Outcome:
        """The outcome of `call`; errors are outcomes."""

    async def close(self) -> None:
        """Gives up connections. No call may follow."""


Run = Callable[[Coroutine[Any, Any, Outcome]], Future[Outcome]]
"""What runs a call: the process's event loop, or a test."""


class RunningCall:
    """One call, from its start until the step no longer needs it. `taken`: its outcome was handed out, maybe in vain."""

    __slots__ = ("deadline_ms", "future", "taken")

    def __init__(self, future: Future[Outcome], deadline_ms: int) -> None:
        self.future = future
        self.deadline_ms = deadline_ms
        self.taken = False


class Calls:
    """The calls of one step in this process, by (shard, event). Every method may be called from any thread."""

    def __init__(self, caller: Caller, clock: Clock, run: Run = loop.run) -> None:
        self.clock = clock
        self._run = run
        self._caller = caller
        self._lock = threading.Condition()
        self._shards: dict[bytes, dict[str, RunningCall]] = {}
        self._finished: dict[bytes, dict[str, RunningCall]] = {}
        self._running = 0
        self._completed = 0
        self._next_sweep_ms = 0

    @property
    def running(self) -> int:
        """How many calls have no outcome yet."""
        return self._running

    def find(self, shard: bytes, key: str) -> RunningCall | None:
        """The call of this event, or None where this process knows of none."""
        with self._lock:
            return self._shards.get(shard, {}).get(key)

    def start(self, shard: bytes, key: str, call: Call) -> RunningCall:
        """Starts the call of an event and returns it at once."""
        with self._lock:
            self._running += 1
            self._sweep()
        future = self._run(self._caller.call(call))
        running = RunningCall(future, call.deadline_ms)
        with self._lock:
            self._shards.setdefault(shard, {})[key] = running
        future.add_done_callback(lambda _: self._on_completion(shard, key, running))
        return running

    def finished(self, shard: bytes) -> list[tuple[str, RunningCall]]:
        """The calls of a shard that have an outcome, in the order they were completed."""
        with self._lock:
            return list(self._finished.get(shard, {}).items())

    def drop(self, shard: bytes, key: str) -> None:
        """Forgets a call whose outcome is safe in the runner's hands."""
        with self._lock:
            self._forget(shard, key)

    def drop_taken(self, shard: bytes, wanted: Callable[[str], bool]) -> None:
        """Forgets the calls of a shard whose outcome was handed out and which its state no longer wants."""
        with self._lock:
            finished = self._finished.get(shard, {})
            for key in [key for key, call in finished.items() if call.taken and not wanted(key)]:
                self._forget(shard, key)

    def wait_for_completion(self, seen: int, timeout_s: float) -> int:
        """Waits until more than `seen` calls were completed since the start, at most `timeout_s`; returns how many were."""
        with self._lock:
            self._lock.wait_for(lambda: self._completed > seen, timeout_s)
            return self._completed

    @property
    def completed(self) -> int:
        """How many calls were completed since the start."""
        return self._completed

    async def close(self) -> None:
        """Closes the client."""
        await self._caller.close()

    def _on_completion(self, shard: bytes, key: str, call: RunningCall) -> None:
        with self._lock:
            self._running -= 1
            self._completed += 1
            if self._shards.get(shard, {}).get(key) is call:
                self._finished.setdefault(shard, {})[key] = call
            self._lock.notify_all()

    def _forget(self, shard: bytes, key: str) -> None:
        self._shards.get(shard, {}).pop(key, None)
        self._finished.get(shard, {}).pop(key, None)

    def _sweep(self) -> None:
        """Forgets the outcomes of shards that moved to another process. Looks every minute at most."""
        now_ms = self.clock.now_ms()
        if now_ms < self._next_sweep_ms:
            return
        self._next_sweep_ms = now_ms + ORPHAN_GRACE_MS
        for shard, finished in self._finished.items():
            for key in [key for key, call in finished.items() if call.deadline_ms + ORPHAN_GRACE_MS < now_ms]:
                self._forget(shard, key)


class _Shared:
    """The `Calls` of one step and how many instances of it use them."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.users = 0


_shared: dict[str, _Shared] = {}
_shared_lock = threading.Lock()

MakeCaller = Callable[[ModelSettings, Clock], Caller]


def make_client(settings: ModelSettings, clock: Clock) -> Caller:
    """The client of the model server that `settings` name."""
    return Client(settings, clock)


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
