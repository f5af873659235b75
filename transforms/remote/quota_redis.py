"""One quota for worker processes on several machines: each leases its share of the coming period from a Redis.

Time is cut into periods of `period_s` seconds by the Redis's own clock. In the background, once a period, a process leases for the
next one: it asks for what it needs, and a script (atomic in Redis) grants what is still free of the whole, and never more::

    wanted = clamp(1.25 · what it used since the last lease / the whole, floor, 1)        (1 if it had to wait)
    floor  = 1 / (4 · processes)
    grant  = min(wanted, most, free)    with    most = max(1 - sum of the others' wishes, 1 / processes)

where others are those who leased for the period before. So a process alone gets all that it wants, two hungry ones get half each
after a period, and the sum of the grants of a period is at most 1, or what was granted twice would be sent twice. The grant
becomes the share of a `Quota` (`Quota.set_share`) when its period begins, so `try_reserve` never waits for Redis. Grants are
cut by ``window_s / (window_s + burst_s)``, since buckets may hold `burst_s` seconds of the quota when a window begins.

*Without Redis* (down, slow, or an error): after `fallback_s` without a lease the process keeps the smaller of its last two grants.
The grants of a period add up to 1 at most, and when Redis goes some processes have had those of one period and some those of the
next: the smaller of two is never more than that of the period which all had. The share of the settings is not taken, as nothing
checks that those of all add up to 1, and 1 is its default. A process that just came and was granted nothing yet, or next to
nothing, has ``floor`` instead, to get on at all: a quarter more than the whole, at worst, if all but a few came in the last period.
A process that never had a lease knows of no other, and has the share of its settings: where processes may start while Redis is
away, set it to one part in so many. `state` says which holds (``leased``, ``kept`` or ``static``), `failures` counts. The next lease
that succeeds ends it. While only some processes have lost their Redis, those that hold leases may be granted what the others keep.

Keys: ``farcall:quota:{name}:<period>``, a hash of grants and wishes by process, which expires after three periods. Time in Redis, so
workers' clocks need not agree. Source: this project's; leasing slices of a quota is Doorman's (YouTube) and Kubernetes' API priority's
idea in small. The package `redis` is imported when a quota is opened.
"""

from __future__ import annotations

import asyncio
import importlib
from collections import deque
from typing import Any, Literal, Protocol

import msgspec

from transforms.errors import SettingsError
from transforms.remote import ranges
from transforms.remote.auth import Auth, refuse_google
from transforms.remote.clock import Clock
from transforms.remote.quota import Quota

PREFIX = "farcall:quota:"
"""What every key in the Redis begins with."""

_FLOOR = 0.25

State = Literal["static", "leased", "kept"]
"""Whether the share is that of the settings, leased, or kept from the last leases."""

LEASE = """
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local period_us = tonumber(ARGV[2])
local period = math.floor(now_us / period_us) + 1
local key, before = KEYS[1] .. ':' .. string.format('%d', period), KEYS[1] .. ':' .. string.format('%d', period - 1)
local begins_us = period * period_us - now_us
local held = redis.call('HGET', key, 'g' .. ARGV[1])
local wanted, processes, others, granted = tonumber(ARGV[3]), 1, 0, 0
local seen = redis.call('HGETALL', before)
for i = 1, #seen, 2 do
  if string.sub(seen[i], 1, 1) == 'w' and seen[i] ~= 'w' .. ARGV[1] then
    processes, others = processes + 1, others + tonumber(seen[i + 1])
  end
end
if held then return {held, begins_us, processes} end
local now = redis.call('HGETALL', key)
for i = 1, #now, 2 do
  if string.sub(now[i], 1, 1) == 'g' then granted = granted + tonumber(now[i + 1]) end
end
if wanted < 0.25 / processes then wanted = 0.25 / processes end
local most = math.max(1 - others, 1 / processes)
local grant = string.format('%.9f', math.max(0, math.min(wanted, most, 1 - granted) - 0.000000001))
redis.call('HSET', key, 'g' .. ARGV[1], grant, 'w' .. ARGV[1], string.format('%.9f', wanted))
redis.call('PEXPIRE', key, math.ceil(3 * period_us / 1000))
return {grant, begins_us, processes}
"""
"""The script: key, then process, period in microseconds, wanted share.

It gives the grant, the microseconds to its period, and the number of processes, this one included.
"""


class SharedQuotaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where a shared quota is kept. `name` is that of the quota: the same in all processes that share it, one per endpoint.

    `timeout_ms` is the patience with one answer of Redis, whose password is found through `auth`.
    """

    url: str
    name: str
    period_s: float = 1.0
    timeout_ms: float = 200.0
    fallback_s: float = 3.0
    auth: Auth | None = None

    def __post_init__(self) -> None:
        """Raise SettingsError for a URL that is none of Redis, no name, or times that contradict each other."""
        if not self.url.startswith(("redis://", "rediss://", "unix://")):
            raise SettingsError(
                "url of a shared quota must begin with redis://, rediss:// or unix://; name the Redis so."
            )
        if not self.name or "{" in self.name or "}" in self.name:
            raise SettingsError(
                "name of a shared quota must not be empty and has no braces; all who share it use the same."
            )
        refuse_google(self.auth, "a Redis")
        ranges.positive(period_s=self.period_s, timeout_ms=self.timeout_ms, fallback_s=self.fallback_s)
        ranges.rising(period_s=self.period_s, fallback_s=self.fallback_s)
        ranges.rising(timeout_ms=self.timeout_ms, period_ms=self.period_s * 1000.0)


class RedisScripts(Protocol):
    """What is used of `redis.asyncio.Redis`."""

    async def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> Any:
        """``EVAL``."""

    async def aclose(self) -> None:
        """Close the connections."""


class SharedQuota:
    """Leases shares for one `Quota`; `run` does so until it is cancelled. Use it on one event loop.

    `state`, how many `leases` and `failures` there were, and how often the lease was `lost`, after failures for `fallback_s`.
    """

    def __init__(
        self, settings: SharedQuotaSettings, quota: Quota, process: str, clock: Clock, client: RedisScripts
    ) -> None:
        self.state: State = "static"
        self.leases = 0
        self.failures = 0
        self.lost = 0
        self._settings = settings
        self._quota = quota
        self._process = process
        self._clock = clock
        self._client = client
        self._key = f"{PREFIX}{{{settings.name}}}"
        self._leased_s = float("-inf")
        self._grants: deque[float] = deque(maxlen=2)
        self._floor = 0.0
        own = quota.settings
        self._cut = own.window_s / (own.window_s + own.burst_s)

    async def run(self) -> None:
        """Lease each coming period until cancelled; then what was leased last is kept."""
        try:
            while True:
                await self.lease()
        finally:
            self._fall_back(self._clock.monotonic_s())

    async def lease(self) -> None:
        """Lease the next period, and return when it has begun and its share holds."""
        period_s = self._settings.period_s
        try:
            grant, begins_s, processes = await self._ask()
        except Exception:  # noqa: BLE001 - whatever it is, there is no lease
            self.failures += 1
            now_s = self._clock.monotonic_s()
            if now_s - self._leased_s >= self._settings.fallback_s:
                self.lost += self.state == "leased"
                self._fall_back(now_s)
            await self._clock.sleep(period_s / 2.0)
            return
        await self._clock.sleep(begins_s)
        now_s = self._clock.monotonic_s()
        self.leases += 1
        self.state = "leased"
        self._leased_s = now_s
        self._grants.append(grant)
        self._floor = _FLOOR / processes
        self._quota.set_share(now_s, grant * self._cut)
        await self._clock.sleep(period_s / 2.0)

    async def close(self) -> None:
        """Close the connections."""
        try:
            async with asyncio.timeout(self._settings.timeout_ms / 1000.0):
                await self._client.aclose()
        except Exception:  # noqa: BLE001 - as above
            self.failures += 1

    async def _ask(self) -> tuple[float, float, int]:
        wanted = self._quota.wanted_share(self._clock.monotonic_s())
        period_us = round(self._settings.period_s * 1e6)
        async with asyncio.timeout(self._settings.timeout_ms / 1000.0):
            words = (self._process, period_us, f"{wanted:.9f}")
            grant, begins_us, processes = await self._client.eval(LEASE, 1, self._key, *words)
        return float(grant), float(begins_us) / 1e6, int(processes)

    def _fall_back(self, now_s: float) -> None:
        if self.state == "leased":
            self.state = "kept"
            self._quota.set_share(now_s, max(min(self._grants), self._floor) * self._cut)


def open_shared_quota(
    settings: SharedQuotaSettings, quota: Quota, process: str, clock: Clock, password: str | None = None
) -> SharedQuota:
    """Return the shared quota; `process` is a name that no other process has. Connects at first use: on the worker.

    Raises:
        SettingsError: the package `redis` is not installed.
    """
    try:
        redis = importlib.import_module("redis.asyncio")
    except ImportError:
        raise SettingsError("A shared quota needs the package redis on the workers; install farcall[redis].") from None
    timeout_s = settings.timeout_ms / 1000.0
    client = redis.Redis.from_url(
        settings.url, password=password, socket_timeout=timeout_s, socket_connect_timeout=timeout_s
    )
    return SharedQuota(settings, quota, process, clock, client)
