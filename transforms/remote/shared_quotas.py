"""The quotas of a model's endpoints in this process: one for all clients that ask the same model, as several steps of a job do.

They are leased from a Redis, in the background, where the settings say so, as long as one of the clients lives.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import ClassVar

import msgspec

from transforms.remote.clock import Clock
from transforms.remote.quota import Quota
from transforms.remote.quota_redis import SharedQuota, SharedQuotaSettings, open_shared_quota
from transforms.remote.settings import ModelSettings


class Leases:
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


class Quotas:
    """The quotas of a model's endpoints, `by_url`, and their `leases`. Take them with `of`; `close` must follow.

    `whose` they are by a server's reckoning; `users` are the clients that have them.

    Raises:
        SettingsError: see `Leases`.
    """

    _open: ClassVar[list[Quotas]] = []
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, settings: ModelSettings, clock: Clock) -> None:
        self.by_url = {url: Quota(settings.quota) for url in settings.urls}
        self.leases = Leases(settings.shared_quota, self.by_url, clock)
        self.whose = _whose(settings)
        self.users = 1

    @classmethod
    def of(cls, settings: ModelSettings, clock: Clock, *, alone: bool = False) -> tuple[Quotas, bool]:
        """Return the quotas of a model, and whether they are new.

        They are those of the clients that ask it already, unless this one is to be `alone`, as in a time of its own.
        """
        if alone:
            return cls(settings, clock), True
        with cls._lock:
            found = next((one for one in cls._open if one.whose == _whose(settings)), None)
            if found is not None:
                found.users += 1
                return found, False
            made = cls(settings, clock)
            cls._open.append(made)
            return made, True

    async def close(self) -> None:
        """Use them no more; the last who does ends the leases."""
        with self._lock:
            self.users -= 1
            if self.users:
                return
            if self in self._open:
                self._open.remove(self)
        await self.leases.close()


def _whose(settings: ModelSettings) -> tuple[object, ...]:
    """What two models must have alike for a server to count their requests as one's."""
    return settings.urls, settings.model, settings.quota, settings.shared_quota, settings.auth
