"""Ctrl-C: the first drains, the second ends; before a job runs, the first ends. ``SIGTERM`` counts like Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop:
    """What was asked for so far. `draining` is true after the first signal."""

    def __init__(self) -> None:
        self.draining = False
        self._on_drain: Callable[[], None] | None = None

    def on_drain(self, action: Callable[[], None]) -> None:
        """Sets what the first signal does from now on. Runs it at once where the signal came already."""
        self._on_drain = action
        if self.draining:
            action()

    def _signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.draining or self._on_drain is None:
            raise KeyboardInterrupt
        self.draining = True
        self._on_drain()


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Takes over SIGINT and SIGTERM for the block. To be used in the main thread."""
    stop = Stop()
    before: dict[int, Any] = {number: signal.signal(number, stop._signal) for number in (signal.SIGINT, signal.SIGTERM)}  # noqa: SLF001
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ignored_by_children() -> Iterator[None]:
    """Programs started in the block ignore Ctrl-C, which a terminal sends to them as well: we end them ourselves."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
