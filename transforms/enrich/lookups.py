"""Values from a slow source by key: cached for a time, one fetch a key at once, many keys in one fetch. No Beam."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import msgspec

from transforms.errors import CallError, SettingsError, Unreachable
from transforms.remote.batcher import Batcher, BatchSettings
from transforms.remote.cache import CachedCalls, CacheSettings, MemoryCache
from transforms.remote.clock import Clock

V = TypeVar("V")

OnFailure = Literal["go-on", "dead-letter"]
"""What becomes of a record whose look-up fails: it goes on without the value, and says so, or it is a dead letter."""

Fetch = Callable[[Sequence[str]], Awaitable[Mapping[str, V]]]
"""Fetches the values of many keys at once; a key that is not in what it returns has none."""


class LookupSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How values are looked up.

    A fetch has at most `max_keys` keys, and all of a look-up must be over within `timeout_s`. A value, also that there is none, is
    kept for `memory_s` seconds, at most `max_entries` of them in a process. `on_failure` is the rule.
    """

    timeout_s: float = 2.0
    memory_s: float = 60.0
    max_entries: int = 10_000
    max_keys: int = 100
    on_failure: OnFailure = "go-on"

    def __post_init__(self) -> None:
        """Raise SettingsError for numbers that make no sense or a rule that is not known."""
        if min(self.timeout_s, self.memory_s, self.max_entries, self.max_keys) <= 0:
            raise SettingsError("timeout_s, memory_s, max_entries and max_keys of a look-up must be above 0.")
        if self.on_failure not in ("go-on", "dead-letter"):
            raise SettingsError(f"on_failure {self.on_failure} is not known; write go-on or dead-letter.")


class Lookups(Generic[V]):
    """Looks values up. Use it on one event loop.

    `fetch` gets the values; `value_type` is theirs (for the cache, which holds bytes), `absent` what a key without one gives.
    `fetched` counts the keys that went to the source, `fetches` the requests.
    """

    def __init__(self, fetch: Fetch[V], value_type: Any, absent: V, settings: LookupSettings, clock: Clock) -> None:
        self.settings = settings
        self.fetches = 0
        self.fetched = 0
        self._fetch = fetch
        self._absent = absent
        self._clock = clock
        cache = MemoryCache(CacheSettings(ttl_s=settings.memory_s, max_entries=settings.max_entries), clock)
        decoder: msgspec.msgpack.Decoder[V] = msgspec.msgpack.Decoder(value_type)
        self._cached: CachedCalls[V] = CachedCalls(cache, clock, msgspec.msgpack.encode, decoder.decode)
        batches = BatchSettings(max_items=settings.max_keys, max_wait_ms=2.0)
        self._batcher: Batcher[str, V] = Batcher(batches, self._send, clock)

    async def find(self, key: str) -> V:
        """Return the value of `key`.

        Raises:
            CallError: the source failed, or was not done within `LookupSettings.timeout_s`. That is not cached.
        """
        deadline_s = self._clock.monotonic_s() + self.settings.timeout_s
        found = await self._cached.run(
            key.encode(), lambda: self._batcher.submit(key, size_bytes=len(key), deadline_s=deadline_s), deadline_s
        )
        return found.value

    async def close(self) -> None:
        """Give up what is under way."""
        await self._batcher.close()

    async def _send(self, keys: list[str]) -> Sequence[V]:
        self.fetches += 1
        self.fetched += len(keys)
        try:
            found = await self._fetch(keys)
        except CallError:
            raise
        except Exception as error:  # noqa: BLE001 - every driver has errors of its own
            # A driver's sentence may hold the address with its password.
            raise Unreachable(f"The source of a look-up failed: {type(error).__name__}.") from None
        return [found.get(key, self._absent) for key in keys]
