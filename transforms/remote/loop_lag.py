"""How long the event loop lets things wait: the part of a round-trip time that is the client's own.

A reply that lies in the socket is noticed once the loop's present turn is over and the thread has Python's interpreter again; it
is read in one turn, and its caller goes on in the next. On a machine that is busy, or beside threads that compute, that is tens of
milliseconds, and it grows with everything else that the process does. A limit that took it for the server's would send less to a
server that has nothing to do with it.

A probe does what a reply does: a timer falls due, and two turns later the probe looks at the clock. What has passed beyond the
due time is the lag of that moment. The lag is their average, fading with `FADE` per probe, one each `EVERY_S` while there is
something to measure for (by default 0.2 and 0.05 s: the last quarter of a second counts most).
"""

from __future__ import annotations

import asyncio

from transforms.remote.clock import Clock

EVERY_S = 0.05
FADE = 0.2


class LoopLag:
    """Measures the lag of the running event loop, from `start` to `stop`. Use it on that loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lag_s = 0.0
        self._due_s = 0.0
        self._handle: asyncio.Handle | None = None

    @property
    def lag_s(self) -> float:
        """How many seconds a reply waits here, as last found."""
        return self._lag_s

    def start(self) -> None:
        """Begin to probe; no more where it has begun."""
        if self._handle is None:
            self._arm()

    def stop(self) -> None:
        """End probing. The lag stays as it was."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def without(self, took_s: float) -> float:
        """What the server took of a round trip of `took_s` seconds: less the lag, but half of it at least.

        Where more than half is the client's, what is left is noise, and the client is what the limit should spare.
        """
        return max(took_s - self._lag_s, took_s / 2.0)

    def _arm(self) -> None:
        self._due_s = self._clock.monotonic_s() + EVERY_S
        self._handle = asyncio.get_running_loop().call_later(EVERY_S, self._read)

    def _read(self) -> None:
        self._handle = asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._handle = asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        late_s = max(0.0, self._clock.monotonic_s() - self._due_s)
        self._lag_s += FADE * (late_s - self._lag_s)
        self._arm()
