"""Leases the quotas of a model's endpoints from a Redis, in the background, as long as the client lives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from transforms.remote.clock import Clock
from transforms.remote.quota import Quota
from transforms.remote.quota_redis import SharedQuota, SharedQuotaSettings, open_shared_quota


class SharedQuotas:
    """The shared quotas of endpoints, by URL; nothing where `settings` is None. Making it reads the password: on the worker.

    Raises:
        SettingsError: the package `redis` is not installed, or the password cannot be read.
    """

    def __init__(self, settings: SharedQuotaSettings | None, quotas: Mapping[str, Quota], clock: Clock) -> None:
        self.shared: list[SharedQuota] = []
        self._tasks: list[asyncio.Task[None]] = []
        if settings is None:
            return
        process = f"{clock.random():.17f}"
        password = settings.auth.read_secret() if settings.auth else None
        for url, quota in quotas.items():
            own = msgspec.structs.replace(settings, name=f"{settings.name}:{url}")
            self.shared.append(open_shared_quota(own, quota, process, clock, password))

    def start(self) -> None:
        """Begin to lease, if it has not begun. To be called on the event loop."""
        if len(self._tasks) < len(self.shared):
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(shared.run()) for shared in self.shared]

    async def close(self) -> None:
        """Lease no more, and close the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for shared in self.shared:
            await shared.close()
