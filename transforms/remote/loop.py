"""One asyncio event loop per process, in one daemon thread, made on first use.

A forked child gets its own: the thread of the parent does not live in it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _State:
    """The loop of this process and the lock that guards its making."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None


_state = _State()


def _forget() -> None:
    """In a forked child: drop the parent's loop and its lock, which may have been held at the moment of the fork."""
    global _state  # noqa: PLW0603 - one a process
    _state = _State()


os.register_at_fork(after_in_child=_forget)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop that nobody runs yet: uvloop's where it is installed, else asyncio's."""
    try:
        import uvloop  # noqa: PLC0415 - not on every system
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def event_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop of this process; callable from every thread."""
    with _state.lock:
        if _state.loop is None:
            _state.loop = new_event_loop()
            threading.Thread(target=_state.loop.run_forever, name="farcall-loop", daemon=True).start()
        return _state.loop


def run(coro: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Start `coro` on the loop of this process and return its future; callable from every other thread.

    Cancelling the future cancels the coroutine.
    """
    return asyncio.run_coroutine_threadsafe(coro, event_loop())


class Started(Generic[T]):
    """What becomes of a coroutine that `start` started.

    What is used of a future where ten thousand are under way: one of `concurrent.futures`, chained to its task, takes 2 kB more.
    """

    __slots__ = ("_error", "_function", "_is_done", "_result", "_task")

    def __init__(self) -> None:
        self._is_done = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._function: Callable[[Any], object] | None = None
        # The loop itself refers to its tasks weakly.
        self._task: asyncio.Task[T] | None = None

    def done(self) -> bool:
        """Return whether the coroutine has ended."""
        return self._is_done

    def result(self) -> T:
        """Return what it returned, or raise what it raised. Raises asyncio.InvalidStateError where it has not ended."""
        if not self._is_done:
            raise asyncio.InvalidStateError("The coroutine has not ended.")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value] # it is what the coroutine returned

    def add_done_callback(self, function: Callable[[Any], object]) -> None:
        """Have `function` called with this once it has ended: on the loop's thread, or at once. To be called once."""
        with _ending:
            if not self._is_done:
                self._function = function
                return
        function(self)

    def _begin(self, coro: Coroutine[Any, Any, T]) -> None:
        self._task = asyncio.get_running_loop().create_task(coro)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._error = asyncio.CancelledError()
        elif (error := task.exception()) is not None:
            self._error = error
        else:
            self._result = task.result()
        with _ending:
            self._is_done, self._task = True, None
            function, self._function = self._function, None
        if function is not None:
            function(self)


_ending = threading.Lock()


def start(coro: Coroutine[Any, Any, T]) -> Started[T]:
    """Start `coro` on the loop of this process and return at once; callable from every thread."""
    started: Started[T] = Started()
    event_loop().call_soon_threadsafe(started._begin, coro)  # noqa: SLF001 - of this module
    return started


def soon(function: Callable[[], None]) -> None:
    """Have `function` called on the loop of this process before long; returns at once. Callable from every thread."""
    event_loop().call_soon_threadsafe(function)
