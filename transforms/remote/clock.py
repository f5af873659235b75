"""Time, sleep and randomness: the only file of this package that reads them.

Everything else is handed a `Clock`, so that tests run the same code in virtual time (`fakes.VirtualClock`).
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol


class Clock(Protocol):
    """What a client needs to know of time and chance."""

    def now_ms(self) -> int:
        """Return the wall clock's time in Unix milliseconds; it may jump."""

    def monotonic_s(self) -> float:
        """Return seconds since some fixed moment; it never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`; at once, but after other tasks had a turn, when it is 0 or less."""

    def random(self) -> float:
        """Return a number from the half-open interval [0, 1), evenly spread."""


class SystemClock:
    """The machine's own clock and chance."""

    def now_ms(self) -> int:
        """Return the wall clock's time in Unix milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Return the monotonic clock's time in seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep on the running event loop."""
        await asyncio.sleep(seconds)

    def random(self) -> float:
        """Return a pseudo-random number in [0, 1)."""
        return random.random()  # noqa: S311 - spreads retries, keeps no secret
