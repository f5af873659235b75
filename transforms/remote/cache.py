"""The response cache: one question asked twice is paid for once.

- Key: BLAKE2b, 256 bits (RFC 7693), of the protocol, its options, the model and the content as MessagePack with its keys in order,
  each part led by its length. Where it is sent makes no difference, what is sent and how it is read does; the model's name is part
  of it, so a server that changes a model behind its name needs a `ttl_s` to match.
- Memory: least recently used out first, bounded by entries and by bytes (of keys and values), each entry for `ttl_s`
  after it was put. Nothing but a reply is ever put: an error is asked again.
- Single flight, after Go's package of that name: callers with the same key share one call. What Go's lacks: the call
  belongs to none of them. A caller that is cancelled, or whose own deadline passes, leaves it to the others, and where
  the call ends by the deadline of the one who made it, or fails where that one had used attempts up before, the next one makes it
  anew.
- A reply is handed out before it is put: no cache costs an event its time, and what cannot be encoded is not kept.
- What may be cached is what would come out the same again: see `cacheable`.

Defaults: 1 hour, 10,000 entries, 64 MiB; for Redis, 50 ms for each of its answers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from hashlib import blake2b
from typing import Any, Generic, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec

from transforms.errors import CallError, DeadlineExceeded, SettingsError, Transient
from transforms.remote.auth import Auth, refuse_google
from transforms.remote.clock import Clock

R = TypeVar("R")

MAX_ENTRIES = 10_000
MAX_BYTES = 64 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder(order="sorted")
_PERSON = b"farcall-reply"


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Whether and where replies are kept.

    `max_entries` and `max_bytes` bound the memory of one process (None: 10,000 and 64 MiB); a Redis has its own
    ``maxmemory``. `url` is the Redis to use, like ``redis://host:6379/0``; its password is found through `auth`.
    `timeout_ms` bounds each of its answers. `always` caches also what would not come out the same again.
    """

    backend: Literal["memory", "redis"] = "memory"
    ttl_s: float = 3600.0
    max_entries: int | None = None
    max_bytes: int | None = None
    url: str | None = None
    auth: Auth | None = None
    timeout_ms: float = 50.0
    always: bool = False

    def __post_init__(self) -> None:
        """Raise SettingsError for values that are out of range or contradict one another."""
        for name in ("ttl_s", "timeout_ms"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise SettingsError(f"{name} is {getattr(self, name):g}; it must be a number above 0.")
        for name in ("max_entries", "max_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; it must be 1 or more, or leave the cache out.")
        if self.backend == "memory":
            self._check_memory()
        elif self.backend == "redis":
            self._check_redis()
        else:
            raise SettingsError(f"backend {self.backend} is not known; write memory or redis.")

    def _check_memory(self) -> None:
        if self.url is not None or self.auth is not None:
            raise SettingsError("url and auth are for a Redis; write backend: redis, or leave them out.")

    def _check_redis(self) -> None:
        if self.url is None:
            raise SettingsError("backend redis needs a url, like redis://host:6379/0.")
        if self.max_entries is not None or self.max_bytes is not None:
            raise SettingsError("max_entries and max_bytes are for backend memory; set maxmemory in the Redis instead.")
        _check_redis_url(self.url)
        refuse_google(self.auth, "a Redis")


def _check_redis_url(url: str) -> None:
    """Refuse what is no URL of a Redis, or holds a secret; the sentence does not repeat it."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise SettingsError("url is not a URL; write it like redis://host:6379/0.") from None
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise SettingsError("url is not one of a Redis; write it like redis://host:6379/0, or rediss:// for TLS.")
    if parts.password is not None or parts.query:
        raise SettingsError("url may hold no password and no options; name the password under auth instead.")


def content_key(
    protocol: str, model: str, content: Any, params: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> bytes:
    """Return the key of a request: 32 bytes that depend on what is asked and how its answer is read, not on where.

    `content` is what goes into the body beside the params (messages, texts, tensors); `options` are the protocol's own.

    Raises:
        TypeError, ValueError, OverflowError: something in it has no form in MessagePack.
    """
    digest = blake2b(digest_size=32, person=_PERSON)
    # Not JSON, which has one word for all numbers that are none, and writes bytes as text.
    encoded = (_encoder.encode(part) for part in (content, params, options or {}))
    for part in (protocol.encode(), model.encode(), *encoded):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def cacheable(params: Mapping[str, Any], *, samples: bool = True, always: bool = False) -> bool:
    """Return whether a reply to a request with these params would come out the same again.

    `samples` says that the protocol's models draw their answers by chance unless told otherwise, as chat models do:
    then the params must set ``temperature`` to 0. More than one answer (``n``, ``best_of``), a stream, and a request
    that belongs to a sequence on the server (``sequence_id``) are never cacheable. `always` is a person's word that
    all this does not matter.
    """
    if always:
        return True
    if params.get("stream") or params.get("sequence_id"):
        return False
    if any(params.get(name) not in (None, 1) for name in ("n", "best_of")):
        return False
    temperature = params.get("temperature")
    return not temperature and (temperature is not None or not samples)


class ResponseCache(Protocol):
    """Keeps encoded replies for some time. None of it raises, but for CancelledError: what fails is a miss."""

    async def get(self, key: bytes) -> bytes | None:
        """Return what was put under `key`, or None."""

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep `value`, if there is room."""

    async def close(self) -> None:
        """Let go of what the cache holds open."""


class MemoryCache:
    """A `ResponseCache` in this process. `hits`, `misses` and `evicted` are counted; `size_bytes` is what it holds."""

    def __init__(self, settings: CacheSettings, clock: Clock) -> None:
        self.hits = 0
        self.misses = 0
        self.evicted = 0
        self.size_bytes = 0
        self._ttl_s = settings.ttl_s
        self._max_entries = settings.max_entries or MAX_ENTRIES
        self._max_bytes = settings.max_bytes or MAX_BYTES
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of entries, those included whose time is over and that nobody asked for since."""
        return len(self._entries)

    async def get(self, key: bytes) -> bytes | None:
        """Return what was put under `key` less than the time to live ago, or None."""
        value, ends_s = self._entries.get(key, (None, 0.0))
        if value is not None and self._clock.monotonic_s() < ends_s:
            self._entries.move_to_end(key)
            self.hits += 1
            return value
        if value is not None:
            self._drop(key)
        self.misses += 1
        return None

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep `value`, unless it is larger than the whole cache, and drop what was used longest ago."""
        if key in self._entries:
            self._drop(key)
        if len(key) + len(value) > self._max_bytes:
            return
        self._entries[key] = (value, self._clock.monotonic_s() + self._ttl_s)
        self.size_bytes += len(key) + len(value)
        while len(self._entries) > self._max_entries or self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self.evicted += 1

    async def close(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.size_bytes = 0

    def _drop(self, key: bytes) -> None:
        value, _ = self._entries.pop(key)
        self.size_bytes -= len(key) + len(value)


def open_cache(settings: CacheSettings, clock: Clock) -> ResponseCache:
    """Return the cache that `settings` describe. To be called on the worker, on the event loop that will use it.

    Raises:
        SettingsError: the package or the secret that a Redis needs is not there.
    """
    if settings.backend == "memory":
        return MemoryCache(settings, clock)
    from transforms.remote.cache_redis import open_redis  # noqa: PLC0415 - needs a package that not all install

    return open_redis(settings, clock)


class _Caller(Generic[R]):
    """Somebody who waits for the result of a key, and could make the call."""

    __slots__ = ("call", "is_worn", "result")

    def __init__(self, call: Callable[[], Awaitable[R]], is_worn: bool) -> None:
        self.call = call
        self.is_worn = is_worn
        self.result: asyncio.Future[R] = asyncio.get_running_loop().create_future()


class _Flight(Generic[R]):
    """The call under way for a key, and who waits for it, in the order of asking."""

    __slots__ = ("callers", "task")

    def __init__(self) -> None:
        self.callers: dict[_Caller[R], None] = {}
        self.task: asyncio.Task[R] | None = None


class SingleFlight(Generic[R]):
    """Lets concurrent callers with the same key share one call. Use it on one event loop.

    `shared` counts the callers that found a call under way.
    """

    def __init__(self, clock: Clock) -> None:
        self.shared = 0
        self._clock = clock
        self._flights: dict[bytes, _Flight[R]] = {}

    @property
    def in_flight(self) -> int:
        """The calls under way."""
        return len(self._flights)

    async def run(
        self, key: bytes, call: Callable[[], Awaitable[R]], deadline_s: float | None = None, *, is_worn: bool = False
    ) -> R:
        """Return what `call`, or that of an earlier caller still under way with the same `key`, returns.

        `deadline_s` is this caller's own, a moment of the clock's monotonic time; `is_worn` says that its `call` has fewer attempts
        left than a new one. A call is cancelled when nobody waits for it any more.

        Raises:
            DeadlineExceeded: `deadline_s` passed.
            Exception: what the call raised. All who share it get the same, except where it was the deadline, or a
            cancel, of the one who made it, or a passing failure of a call that was worn.
        """
        rest_s = None if deadline_s is None else deadline_s - self._clock.monotonic_s()
        if rest_s is not None and rest_s <= 0.0:
            raise DeadlineExceeded("The deadline passed before the call was made.")
        caller = _Caller(call, is_worn)
        flight = self._board(key, caller)
        try:
            async with asyncio.timeout(rest_s) as limit:
                return await caller.result
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded("The deadline passed while an equal call was under way.") from None
            raise
        finally:
            self._leave(key, flight, caller)

    def _board(self, key: bytes, caller: _Caller[R]) -> _Flight[R]:
        flight = self._flights.get(key)
        if flight is not None:
            self.shared += 1
            flight.callers[caller] = None
            return flight
        flight = self._flights[key] = _Flight()
        flight.callers[caller] = None
        self._start(key, flight)
        return flight

    def _leave(self, key: bytes, flight: _Flight[R], caller: _Caller[R]) -> None:
        if caller.result.done() and not caller.result.cancelled():
            caller.result.exception()  # seen, even where the caller was cancelled in the same turn
        if flight.callers.pop(caller, self) is self or flight.callers:
            return
        self._end(key, flight)
        if flight.task is not None:
            flight.task.cancel()

    def _end(self, key: bytes, flight: _Flight[R]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _start(self, key: bytes, flight: _Flight[R]) -> None:
        """Let the one who has waited longest make the call."""
        leader = next(iter(flight.callers))
        task = flight.task = asyncio.create_task(_made(leader.call))
        task.add_done_callback(lambda task: self._landed(key, flight, leader, task))

    def _landed(self, key: bytes, flight: _Flight[R], leader: _Caller[R], task: asyncio.Task[R]) -> None:
        """Hand out what came of the call; where it ended for the leader's sake alone, the next caller makes it."""
        error = CallError("The call was cancelled from outside.") if task.cancelled() else task.exception()
        gave_up = leader.is_worn and isinstance(error, Transient)
        if task.cancelled() or gave_up or isinstance(error, DeadlineExceeded):
            flight.callers.pop(leader, None)
            _settle(leader, task, error)
            if flight.callers:
                self._start(key, flight)
                return
        self._end(key, flight)
        for caller in flight.callers:
            _settle(caller, task, error)
        flight.callers.clear()


async def _made(call: Callable[[], Awaitable[R]]) -> R:
    return await call()


def _settle(caller: _Caller[R], task: asyncio.Task[R], error: BaseException | None) -> None:
    if caller.result.done():
        return
    if error is None:
        caller.result.set_result(task.result())
    else:
        caller.result.set_exception(error)


class Answered(msgspec.Struct, Generic[R], frozen=True):
    """A result and where it came from: ``cache``, this caller's own ``call``, or an equal one that was ``shared``."""

    value: R
    source: Literal["cache", "call", "shared"]


class CachedCalls(Generic[R]):
    """A cache with single flight before it. `encode` and `decode` turn results into bytes and back."""

    def __init__(
        self, cache: ResponseCache, clock: Clock, encode: Callable[[R], bytes], decode: Callable[[bytes], R]
    ) -> None:
        self._cache = cache
        self._encode = encode
        self._decode = decode
        self._flight: SingleFlight[Answered[R]] = SingleFlight(clock)
        self._putting: dict[bytes, tuple[asyncio.Task[None], R]] = {}

    async def run(
        self, key: bytes, call: Callable[[], Awaitable[R]], deadline_s: float | None = None, *, is_worn: bool = False
    ) -> Answered[R]:
        """Return the cached result of `key`, or what `call` or an equal call under way returns, which is then cached.

        A cached value that does not decode, such as one of another version, is a miss. `is_worn`: see `SingleFlight.run`.

        Raises:
            DeadlineExceeded: `deadline_s` passed.
            Exception: what the call raised. It is not cached.
        """
        made = False

        async def answer() -> Answered[R]:
            nonlocal made
            made = True
            return await self._answer(key, call)

        answered = await self._flight.run(key, answer, deadline_s, is_worn=is_worn)
        return answered if made or answered.source == "cache" else Answered(answered.value, "shared")

    async def close(self) -> None:
        """Wait for what is being put, and close the cache."""
        while self._putting:
            await asyncio.wait([task for task, _ in self._putting.values()])
        await self._cache.close()

    async def _answer(self, key: bytes, call: Callable[[], Awaitable[R]]) -> Answered[R]:
        if key in self._putting:
            return Answered(self._putting[key][1], "cache")
        cached = await self._cache.get(key)
        value = None if cached is None else self._decoded(cached)
        if value is not None:
            return Answered(value, "cache")
        result = await call()
        self._put(key, result)
        return Answered(result, "call")

    def _put(self, key: bytes, result: R) -> None:
        """Begin to keep a result; nobody waits for that."""
        try:
            encoded = self._encode(result)
        except (ValueError, TypeError, OverflowError, RecursionError):  # such as a number of more than 64 bits
            return
        task = asyncio.create_task(self._cache.put(key, encoded))
        self._putting[key] = (task, result)
        task.add_done_callback(lambda task: self._on_put(key, task))

    def _on_put(self, key: bytes, task: asyncio.Task[None]) -> None:
        """One reply less is on its way into the cache; one that did not come there is a miss."""
        self._putting.pop(key, None)
        if not task.cancelled():
            task.exception()

    def _decoded(self, cached: bytes) -> R | None:
        try:
            return self._decode(cached)
        except (ValueError, TypeError):  # msgspec's errors of decoding are ValueErrors
            return None
