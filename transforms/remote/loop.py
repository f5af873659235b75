"""One asyncio event loop per process, in one daemon thread, made on first use.

A forked child gets its own: the thread of the parent does not live in it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

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


def soon(function: Callable[[], None]) -> None:
    """Have `function` called on the loop of this process before long; returns at once. Callable from every thread."""
    event_loop().call_soon_threadsafe(function)
