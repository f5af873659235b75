"""The response cache in a Redis, shared by all workers of a job.

A Redis that fails, is slow or is not there is a miss, never an error of an event: each of its answers may take
`timeout_ms` (default 50), and after a failure it is left alone for a second, so that events do not queue up for a
server that is gone. Time to live is the server's (``SET … PX``). The package `redis` is imported when a cache is opened.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import Any, Protocol

from transforms.errors import SettingsError
from transforms.remote.cache import CacheSettings
from transforms.remote.clock import Clock

PREFIX = b"farcall:reply:"
"""What every key in the Redis begins with."""

_REST_S = 1.0


class RedisClient(Protocol):
    """What is used of `redis.asyncio.Redis`."""

    async def get(self, name: bytes) -> bytes | None:
        """``GET``."""

    async def set(self, name: bytes, value: bytes, *, px: int) -> Any:
        """``SET`` with ``PX``."""

    async def aclose(self) -> None:
        """Close the connections."""


class RedisCache:
    """A `ResponseCache` in a Redis. `hits`, `misses` and `failures` are counted."""

    def __init__(self, settings: CacheSettings, clock: Clock, client: RedisClient) -> None:
        self.hits = 0
        self.misses = 0
        self.failures = 0
        self._ttl_ms = max(1, round(settings.ttl_s * 1000.0))
        self._timeout_s = settings.timeout_ms / 1000.0
        self._clock = clock
        self._client = client
        self._rests_until_s = float("-inf")

    async def get(self, key: bytes) -> bytes | None:
        """Return what was put under `key` less than the time to live ago; None where the Redis does not say in time."""
        value: bytes | None = None
        if self._awake():
            try:
                async with asyncio.timeout(self._timeout_s):
                    value = await self._client.get(PREFIX + key)
            except Exception:  # noqa: BLE001 - whatever it is, a cache's failure is a miss
                self._failed()
        if value is None:
            self.misses += 1
        else:
            self.hits += 1
        return value

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep `value`, if the Redis takes it in time."""
        if not self._awake():
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.set(PREFIX + key, value, px=self._ttl_ms)
        except Exception:  # noqa: BLE001 - as above
            self._failed()

    async def close(self) -> None:
        """Close the connections."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.aclose()
        except Exception:  # noqa: BLE001 - as above
            self._failed()

    def _awake(self) -> bool:
        return self._clock.monotonic_s() >= self._rests_until_s

    def _failed(self) -> None:
        self.failures += 1
        self._rests_until_s = self._clock.monotonic_s() + _REST_S


def open_redis(settings: CacheSettings, clock: Clock) -> RedisCache:
    """Return the cache in the Redis of `settings`. Connects at first use. Reads the password, so: on the worker.

    Raises:
        SettingsError: the package `redis` is not installed, or the password cannot be read.
    """
    try:
        redis = importlib.import_module("redis.asyncio")
    except ImportError:
        raise SettingsError("backend redis needs the package redis on the workers; install it.") from None
    timeout_s = settings.timeout_ms / 1000.0
    password = settings.auth.read_secret() if settings.auth else None
    client = redis.Redis.from_url(
        settings.url, password=password, socket_timeout=timeout_s, socket_connect_timeout=timeout_s
    )
    return RedisCache(settings, clock, client)
