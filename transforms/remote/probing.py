"""Sends the health probes that `probes` says are due, while there is an endpoint that needs them.

Each may take `ProbeSettings.every_s` seconds, 1 by default; those of different endpoints go on at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from transforms.remote.admission import Admission
from transforms.remote.clock import Clock
from transforms.remote.pool import EndpointState, Pool
from transforms.remote.probes import ProbeSchedule, ProbeSettings

Probe = Callable[[str, float], Awaitable[bool]]
"""Whether the endpoint of a base URL is up, found out within so many seconds."""


class Probing:
    """Probes the endpoints of a pool that are left out, on the running event loop, until all of them are used again.

    `on_probe` is told of each probe, by the endpoint's URL, whether it found the endpoint up.
    """

    def __init__(
        self,
        pool: Pool,
        settings: ProbeSettings,
        clock: Clock,
        probe: Probe,
        admission: Admission,
        on_probe: Callable[[str, bool], None],
    ) -> None:
        self._schedule = ProbeSchedule(pool, settings)
        self._pool = pool
        self._settings = settings
        self._clock = clock
        self._probe = probe
        self._admission = admission
        self._task: asyncio.Task[None] | None = None
        self._on_probe = on_probe
        self._under_way: set[asyncio.Task[None]] = set()
        admission.on_trouble = self.wake

    def wake(self) -> None:
        """Begin, where an endpoint is left out and nothing is under way."""
        if (self._task is None or self._task.done()) and self._has_unusable():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End what is under way."""
        tasks = [*self._under_way, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)

    def _has_unusable(self) -> bool:
        """Whether an endpoint is left out, or will be when it no longer asks to be left alone: nobody would wake this then."""
        now_s = self._clock.monotonic_s()
        return any(state.is_left_out(now_s) for state in self._pool.endpoints)

    async def _run(self) -> None:
        while self._has_unusable():
            for state in self._schedule.due(self._clock.monotonic_s()):
                task = asyncio.get_running_loop().create_task(self._one(state))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            await self._clock.sleep(max(0.01, self._schedule.wait_s(self._clock.monotonic_s())))

    async def _one(self, state: EndpointState) -> None:
        ok = False
        try:
            ok = await self._probe(state.url, self._settings.every_s)
            self._on_probe(state.url, ok)
        finally:
            self._schedule.on_result(self._clock.monotonic_s(), state, ok)
            self._admission.pump()
