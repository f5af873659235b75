"""One suite for the response cache in memory and in a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from transforms.remote.cache import CacheSettings, ResponseCache, open_cache
from transforms.remote.clock import Clock, SystemClock
from transforms.remote.fakes import VirtualClock


class Room:
    """A cache and the time it lives in. `main` is run on it; `clock.sleep` is virtual where the cache is."""

    def __init__(self, settings: CacheSettings, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self.cache: ResponseCache

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        async def opened() -> None:
            self.cache = open_cache(self.settings, self.clock)
            try:
                await main
            finally:
                await self.cache.close()

        if isinstance(self.clock, VirtualClock):
            self.clock.run(opened())
        else:
            asyncio.run(opened())


@pytest.fixture(params=["memory", "redis"])
def rooms(request: pytest.FixtureRequest) -> Callable[[float], Room]:
    """Makes a room whose values live for `ttl_s`, which for a real cache is time of this machine, stalls and all."""
    if request.param == "memory":
        return lambda ttl_s: Room(CacheSettings(ttl_s=ttl_s), VirtualClock())
    url = request.getfixturevalue("redis_url")
    return lambda ttl_s: Room(CacheSettings(backend="redis", url=url, ttl_s=ttl_s, timeout_ms=10_000), SystemClock())


@pytest.fixture
def room(rooms: Callable[[float], Room]) -> Room:
    return rooms(3600.0)


def test_what_was_put_is_found_and_nothing_else(room: Room) -> None:
    """A value of any bytes comes back under its key, the last one put; another key is a miss."""

    async def main() -> None:
        for value in (b"", b"\x00\xff" * 1000, "Grüße".encode()):
            await room.cache.put(b"\x00key\xff", value)
            assert await room.cache.get(b"\x00key\xff") == value
        assert await room.cache.get(b"other") is None

    room.run(main())


def test_what_was_put_lives_for_its_time(rooms: Callable[[float], Room]) -> None:
    """After the time to live a value is gone, and can be put again."""
    room = rooms(1.0)

    async def main() -> None:
        await room.cache.put(b"short", b"v")
        assert await room.cache.get(b"short") == b"v"
        while await room.cache.get(b"short") is not None:
            await room.clock.sleep(0.02)
        await room.cache.put(b"short", b"w")
        assert await room.cache.get(b"short") == b"w"

    room.run(main())


def test_many_at_once_get_their_own(room: Room) -> None:
    """A hundred keys used at the same time do not mix."""

    async def main() -> None:
        keys = [bytes([number]) for number in range(100)]
        await asyncio.gather(*(room.cache.put(key, key * 3) for key in keys))
        assert await asyncio.gather(*(room.cache.get(key) for key in keys)) == [key * 3 for key in keys]

    room.run(main())
