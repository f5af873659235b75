"""The bound on calls in flight: so many permits, given out in the order of asking."""

from __future__ import annotations

import asyncio
from collections import deque


class InFlightLimit:
    """A bound on the calls in flight. Use it on one event loop; the two counts may be read from any thread.

    A permit given back goes straight to the one who has waited longest, so nobody can overtake.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_flight = 0
        self._waiting = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def most(self) -> int:
        """The number of permits there are."""
        return self._most

    @property
    def in_flight(self) -> int:
        """The number of permits given out."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a permit."""
        return self._waiting

    async def acquire(self, timeout_s: float) -> None:
        """Take a permit, waiting `timeout_s` seconds at most.

        Raises:
            TimeoutError: no permit became free in that time.
        """
        if self._in_flight < self._most:
            self._in_flight += 1
            return
        await self._queue_up(timeout_s)

    def release(self) -> None:
        """Give a permit back."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._in_flight -= 1

    async def _queue_up(self, timeout_s: float) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # the permit came in the same turn of the loop
                self.release()
            turn.cancel()
            raise
        finally:
            self._waiting -= 1
