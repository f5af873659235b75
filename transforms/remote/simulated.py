"""A model server that exists in a clock's time alone: latency, a knee, limits, quotas, faults and outages to order.

A `SimulatedServer` is a `Transport`. It answers for any number of base URLs, each with a `Behaviour` of its own, with
valid `openai-chat` bodies. Chance comes from its seed, time from the clock it is given: under a `VirtualClock` an hour
of load takes seconds, and one seed gives one course of events.

Where the time of a request goes::

    work    = median_s · exp(sigma · N(0, 1)) + s_per_token · output tokens     (what the server does)
    latency = delay_s + U(0, jitter_s) + work / speed                           (what the client sees)

Up to `knee` requests are worked on at full speed. Above it there are two disciplines. ``sharing``: all n are worked on,
each at speed knee/n, as an inference engine with continuous batching does (processor sharing; L. Kleinrock, "Queueing
Systems", volume 2, 1976). ``queue``: knee workers, and a first-come-first-served queue before them. In both, throughput
stops growing at the knee and latency then grows in proportion to what is in flight.

A quota allows limit · quota_window_s / 60 in any `quota_window_s`: as a ``bucket`` that refills steadily (what OpenAI
documents), as a ``sliding`` window, or as a ``fixed`` one that begins again at each multiple. A request is charged when
it arrives, with the tokens that its reply will report.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from hashlib import blake2b
from statistics import NormalDist
from typing import Literal
from zlib import crc32

import msgspec

from transforms.errors import SettingsError
from transforms.remote.clock import Clock
from transforms.remote.transport import Answer, NotConnected, Opened, broke_off, timed_out

_TOLERANCE = 1e-6
_BYTES_PER_TOKEN = 4
_NORMAL = NormalDist()

Discipline = Literal["sharing", "queue"]
QuotaWindow = Literal["bucket", "sliding", "fixed"]


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What one URL of a `SimulatedServer` does. Each part is off by default but the latency.

    `median_s` and `sigma` shape the work of a request, `delay_s` and `jitter_s` the way to the server, which no load
    makes longer. A reply has `short_tokens` tokens, or for the share `long_share` of the ids `long_tokens`; each costs
    `s_per_token` of work. `knee` and `discipline` say what concurrency costs (None: nothing). With more than
    `most_in_flight` in flight a request is answered `overload_status`.

    `requests_per_min` and `tokens_per_min` are quotas, counted as `quota_window` over `quota_window_s`; beyond them a
    request is answered 429. `retry_after` adds ``Retry-After`` and ``retry-after-ms`` to what a quota refuses,
    `overload_retry_after_s` to what `most_in_flight` refuses. `rate_headers` adds ``x-ratelimit-*`` to every answer.

    Of the requests that are let in, the share `silent_rate` is never answered, `error_rate` is answered 500 at once,
    `garbage_rate` gets a 200 that is not JSON. During an outage (from, to; in seconds of the clock) nobody listens, and
    what was in flight at its begin breaks. A request meets the faults and outages of the behaviour that held
    when it arrived; the knee is always the present one.
    """

    median_s: float = 0.2
    sigma: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    s_per_token: float = 0.0
    short_tokens: int = 20
    long_tokens: int = 400
    long_share: float = 0.0
    knee: int | None = None
    discipline: Discipline = "sharing"
    most_in_flight: int | None = None
    overload_status: Literal[429, 503] = 429
    overload_retry_after_s: float | None = None
    requests_per_min: float | None = None
    tokens_per_min: float | None = None
    quota_window: QuotaWindow = "bucket"
    quota_window_s: float = 60.0
    retry_after: bool = True
    rate_headers: bool = False
    silent_rate: float = 0.0
    error_rate: float = 0.0
    garbage_rate: float = 0.0
    outages: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        """Raise SettingsError for a share outside [0, 1], a time below 0, or a limit that lets nothing through."""
        for name in ("long_share", "silent_rate", "error_rate", "garbage_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingsError(f"{name} is {getattr(self, name):g}; it must be a share from 0 to 1.")
        if self.silent_rate + self.error_rate + self.garbage_rate > 1.0:
            raise SettingsError("silent_rate, error_rate and garbage_rate together exceed 1; make them smaller.")
        for name in ("median_s", "sigma", "delay_s", "jitter_s", "s_per_token"):
            if getattr(self, name) < 0.0:
                raise SettingsError(f"{name} is {getattr(self, name):g}; it must not be below 0.")
        for name in ("knee", "most_in_flight", "requests_per_min", "tokens_per_min", "quota_window_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SettingsError(f"{name} is {value:g}; it must be above 0, or None for no limit.")


Schedule = Sequence[tuple[float, Behaviour]]
"""Behaviours by the second of the clock from which each holds; before the first one, the first holds."""


class Counts:
    """What one URL has seen so far.

    `sent` are all requests; of those `answered` got a reply, `throttled` a 429 or 503, `failed` a 500, `garbled` a body
    that is not JSON; `silent` ones were never answered, `unconnected` found nobody; `broken` by an outage; `cancelled`
    by the client, timeouts included. `inside_windows` were sent while the server had asked to be left alone: 0 for
    a client that keeps ``Retry-After``. `completion_tokens` were reported in replies. `in_flight` now, `most_in_flight`
    at once.
    """

    def __init__(self, now_s: float) -> None:
        self.sent = 0
        self.answered = 0
        self.throttled = 0
        self.failed = 0
        self.garbled = 0
        self.silent = 0
        self.unconnected = 0
        self.broken = 0
        self.cancelled = 0
        self.inside_windows = 0
        self.completion_tokens = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._began_s = now_s
        self._changed_s = now_s
        self._area = 0.0

    def average_in_flight(self, now_s: float) -> float:
        """Return the requests in flight, weighted by time, from the server's begin until `now_s`."""
        elapsed_s = now_s - self._began_s
        if elapsed_s <= 0.0:
            return float(self.in_flight)
        return (self._area + self.in_flight * (now_s - self._changed_s)) / elapsed_s

    def change_in_flight(self, now_s: float, by: int) -> None:
        """Note that `by` requests more (or fewer) are in flight from `now_s` on."""
        self._area += self.in_flight * (now_s - self._changed_s)
        self._changed_s = now_s
        self.in_flight += by
        self.most_in_flight = max(self.most_in_flight, self.in_flight)


class SimulatedServer:
    """A `Transport` whose servers are simulated: `sites` gives the behaviour, or the schedule of them, per base URL.

    A request goes to the site with the longest base URL that its own begins with; one that fits none finds nobody.
    """

    def __init__(self, clock: Clock, sites: Mapping[str, Behaviour | Schedule], seed: int = 0) -> None:
        self._clock = clock
        self._sites = {
            url: _Site(clock, url, _schedule(behaviour), seed)
            for url, behaviour in sorted(sites.items(), key=lambda site: -len(site[0]))
        }

    def counts(self, url: str) -> Counts:
        """Return what the site of `url` has seen.

        Raises:
            KeyError: there is no such site.
        """
        site = self._site(url)
        if site is None:
            raise KeyError(url)
        return site.counts

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Answer one request as the behaviour of its site says; see `Transport.post`."""
        site = self._site(url)
        if site is None:
            raise NotConnected(f"Nobody listens at {url}; name it among the sites of the simulation.")
        return await site.post(body, headers, timeout_s)

    @contextlib.asynccontextmanager
    async def stream(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncIterator[Opened]:
        """Answer as `post` does, the body in one piece; see `Transport.stream`."""
        status, answered, answer = await self.post(url, body, headers, timeout_s)

        async def pieces() -> AsyncIterator[bytes]:
            yield answer

        yield status, answered, pieces()

    async def get(self, url: str, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Answer a health probe as `post` answers an empty request."""
        return await self.post(url, b"", headers, timeout_s)

    def _site(self, url: str) -> _Site | None:
        return next((site for base, site in self._sites.items() if url.startswith(base)), None)


def _schedule(behaviour: Behaviour | Schedule) -> Schedule:
    if isinstance(behaviour, Behaviour):
        return ((0.0, behaviour),)
    return sorted(behaviour, key=lambda step: step[0])


class _Chance:
    """The numbers of one seed, one after the other: each is a hash of the seed and its place in the series."""

    def __init__(self, seed: int) -> None:
        self._series = blake2b(seed.to_bytes(8, "big"), digest_size=8)
        self._drawn = 0

    def random(self) -> float:
        """The next number, evenly spread over (0, 1)."""
        self._drawn += 1
        series = self._series.copy()
        series.update(self._drawn.to_bytes(8, "big"))
        return ((int.from_bytes(series.digest(), "big") >> 12) + 0.5) / 2**52

    def normal(self) -> float:
        """The next number, normally distributed around 0 with deviation 1."""
        return _NORMAL.inv_cdf(self.random())


class _Site:
    """One URL: what it does now, and what it has seen."""

    def __init__(self, clock: Clock, url: str, schedule: Schedule, seed: int) -> None:
        self._clock = clock
        self._url = url
        self._later = deque(schedule)
        self._seed = crc32(f"{seed} {url}".encode())
        self._chance = _Chance(self._seed)
        self._service = _Service(clock)
        self._closed_until_s = (-math.inf, -math.inf)
        self._quota: tuple[object, ...] = ()
        self._requests: _Window | None = None
        self._tokens: _Window | None = None
        self.counts = Counts(clock.monotonic_s())
        self._behave(self._later.popleft()[1], clock.monotonic_s())

    def _behave(self, behaviour: Behaviour, now_s: float) -> None:
        self._behaviour = behaviour
        self._service.configure(behaviour.knee, behaviour.discipline)
        quota = (behaviour.requests_per_min, behaviour.tokens_per_min, behaviour.quota_window, behaviour.quota_window_s)
        if quota != self._quota:  # a step that leaves the quota as it is does not fill it up again
            self._quota = quota
            self._requests = _window(behaviour, behaviour.requests_per_min, now_s)
            self._tokens = _window(behaviour, behaviour.tokens_per_min, now_s)

    def _follow_schedule(self, now_s: float) -> None:
        while self._later and self._later[0][0] <= now_s:
            self._behave(self._later.popleft()[1], now_s)

    async def post(self, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Answer:
        now_s = self._clock.monotonic_s()
        self._follow_schedule(now_s)
        self._note_sent(now_s)
        if any(begin_s <= now_s < end_s for begin_s, end_s in self._behaviour.outages):
            self.counts.unconnected += 1
            await self._clock.sleep(min(self._behaviour.delay_s, timeout_s))
            raise NotConnected(f"Nobody listens at {self._url}; an outage is simulated.")
        self.counts.change_in_flight(now_s, 1)
        try:
            return await self._until_broken(body, headers, timeout_s, now_s)
        except asyncio.CancelledError:
            self.counts.cancelled += 1
            raise
        finally:
            self.counts.change_in_flight(self._clock.monotonic_s(), -1)

    def _note_sent(self, now_s: float) -> None:
        self.counts.sent += 1
        opened_s, closes_s = self._closed_until_s
        if opened_s < now_s < closes_s - _TOLERANCE:
            self.counts.inside_windows += 1

    async def _until_broken(self, body: bytes, headers: Mapping[str, str], timeout_s: float, now_s: float) -> Answer:
        """The answer, unless the client's patience or an outage comes first."""
        outage_s = min((begin_s - now_s for begin_s, _ in self._behaviour.outages if begin_s > now_s), default=math.inf)
        try:
            async with asyncio.timeout(min(timeout_s, outage_s)):
                return await self._answer(body, headers, now_s)
        except TimeoutError:
            if outage_s < timeout_s:
                self.counts.broken += 1
                raise broke_off(self._url) from None
            self.counts.cancelled += 1
            raise timed_out(self._url, timeout_s) from None

    async def _answer(self, body: bytes, headers: Mapping[str, str], now_s: float) -> Answer:
        behaviour = self._behaviour
        key = _key(headers)
        prompt_tokens, completion_tokens = max(1, len(body) // _BYTES_PER_TOKEN), self._length(key)
        refusal = self._refusal(prompt_tokens + completion_tokens, now_s)
        extra = self._rate_headers(now_s) if behaviour.rate_headers else {}
        way_s = behaviour.delay_s + behaviour.jitter_s * self._chance.random()
        if way_s:
            await self._clock.sleep(way_s)
        if refusal is not None:
            return self._refuse(*refusal, extra)
        fault = self._chance.random()
        if fault < behaviour.silent_rate:
            self.counts.silent += 1
            await self._clock.sleep(math.inf)
        if fault < behaviour.silent_rate + behaviour.error_rate:
            self.counts.failed += 1
            return 500, extra, b'{"error": {"message": "a simulated error"}}'
        await self._service.work(self._work_s(completion_tokens))
        if fault < behaviour.silent_rate + behaviour.error_rate + behaviour.garbage_rate:
            self.counts.garbled += 1
            return 200, extra, b"\x1f\x8b this is no JSON"
        self.counts.answered += 1
        self.counts.completion_tokens += completion_tokens
        return 200, extra, _reply(key, prompt_tokens, completion_tokens)

    def _length(self, key: str) -> int:
        """The tokens of the reply to `key`: the same however often it is asked."""
        behaviour = self._behaviour
        share = crc32(f"{self._seed} {key}".encode()) / 2**32 if key else self._chance.random()
        return behaviour.long_tokens if share < behaviour.long_share else behaviour.short_tokens

    def _work_s(self, tokens: int) -> float:
        behaviour = self._behaviour
        spread = math.exp(behaviour.sigma * self._chance.normal()) if behaviour.sigma else 1.0
        return behaviour.median_s * spread + behaviour.s_per_token * tokens

    def _refusal(self, tokens: int, now_s: float) -> tuple[int, float | None] | None:
        """The status and Retry-After of a request that is over a limit; None for one that is let in and charged."""
        behaviour = self._behaviour
        if behaviour.most_in_flight is not None and self.counts.in_flight > behaviour.most_in_flight:
            return behaviour.overload_status, behaviour.overload_retry_after_s
        charged = [(window, amount) for window, amount in ((self._requests, 1), (self._tokens, tokens)) if window]
        wait_s = max((window.wait_s(now_s, amount) for window, amount in charged), default=0.0)
        if wait_s > 0.0:
            return 429, wait_s if behaviour.retry_after else None
        for window, amount in charged:
            window.take(now_s, amount)
        return None

    def _refuse(self, status: int, retry_after_s: float | None, extra: dict[str, str]) -> Answer:
        self.counts.throttled += 1
        headers = dict(extra)
        if retry_after_s is not None:
            wait_ms = math.ceil(retry_after_s * 1000.0)
            headers |= {"Retry-After": str(math.ceil(retry_after_s)), "retry-after-ms": str(wait_ms)}
            now_s = self._clock.monotonic_s()
            closes_s = max(self._closed_until_s[1], now_s + wait_ms / 1000.0)
            opened_s = self._closed_until_s[0] if now_s < self._closed_until_s[1] else now_s
            self._closed_until_s = (opened_s, closes_s)
        return status, headers, b'{"error": {"message": "a simulated limit was reached"}}'

    def _rate_headers(self, now_s: float) -> dict[str, str]:
        found = dict[str, str]()
        for what, window in (("requests", self._requests), ("tokens", self._tokens)):
            if window:
                found[f"x-ratelimit-limit-{what}"] = str(int(window.limit_per_min))
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, int(window.remaining(now_s))))
                found[f"x-ratelimit-reset-{what}"] = duration_text(window.reset_s(now_s))
        return found


def _key(headers: Mapping[str, str]) -> str:
    """The event's id in the idempotency key, so that what a seed gives depends on no model's settings."""
    found = headers.get("Idempotency-Key") or headers.get("idempotency-key")
    found = found or next((value for name, value in headers.items() if name.lower() == "idempotency-key"), "")
    return found.rsplit(":", 1)[0]


def _reply(key: str, prompt_tokens: int, completion_tokens: int) -> bytes:
    message = {"role": "assistant", "content": f"Reply to {key}."}
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return msgspec.json.encode({"model": "simulated", "choices": [choice], "usage": usage})


def duration_text(seconds: float) -> str:
    """Return `seconds` as ``x-ratelimit-reset-*`` writes them: Go's durations, such as ``6m0s``, ``1.5s``, ``20ms``."""
    milliseconds = math.ceil(seconds * 1000.0 - _TOLERANCE)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest_ms = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{rest_ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + rest


class _Job:
    """A request that is worked on or waits for a worker."""

    __slots__ = ("done", "gone", "work_s")

    def __init__(self, work_s: float) -> None:
        self.work_s = work_s
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = False


class _Service:
    """The work of a site. All that is worked on progresses at one speed, so one number says how far each has come."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._knee: float = math.inf
        self._sharing = True
        self._progress_s = 0.0
        self._at_s = clock.monotonic_s()
        self._active = 0
        self._number = 0
        self._heap: list[tuple[float, int, _Job]] = []
        self._waiting: deque[_Job] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def configure(self, knee: int | None, discipline: Discipline) -> None:
        self._advance()
        self._knee = math.inf if knee is None else knee
        self._sharing = discipline == "sharing"
        if self._heap or self._waiting:
            self._next()

    async def work(self, work_s: float) -> None:
        """Return when `work_s` seconds of work are done; cancelling it frees its place."""
        job = _Job(work_s)
        self._advance()
        self._waiting.append(job)
        self._next()
        try:
            await job.done
        finally:
            if not job.gone:
                self._leave(job)

    def _leave(self, job: _Job) -> None:
        self._advance()
        job.gone = True
        if job in self._waiting:
            self._waiting.remove(job)
        else:
            self._active -= 1
        self._next()

    def _speed(self) -> float:
        return min(1.0, self._knee / self._active) if self._sharing and self._active else 1.0

    def _advance(self) -> None:
        now_s = self._clock.monotonic_s()
        self._progress_s += (now_s - self._at_s) * self._speed()
        self._at_s = now_s

    def _next(self) -> None:
        """Begin what there is room for, and set the timer to the next end."""
        while self._waiting and (self._sharing or self._active < self._knee):
            job = self._waiting.popleft()
            self._active += 1
            self._number += 1
            heapq.heappush(self._heap, (self._progress_s + job.work_s, self._number, job))
        while self._heap and self._heap[0][2].gone:
            heapq.heappop(self._heap)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            rest_s = max(0.0, self._heap[0][0] - self._progress_s) / self._speed()
            self._timer = asyncio.get_running_loop().call_later(rest_s, self._finish)

    def _finish(self) -> None:
        self._timer = None
        self._advance()
        while self._heap and (self._heap[0][2].gone or self._heap[0][0] <= self._progress_s + _TOLERANCE):
            job = heapq.heappop(self._heap)[2]
            if not job.gone:
                job.gone = True
                self._active -= 1
                job.done.set_result(None)
        self._next()


class _Bucket:
    """A quota that refills steadily up to what accrues in one window."""

    def __init__(self, limit_per_min: float, window_s: float, now_s: float) -> None:
        self.limit_per_min = limit_per_min
        self._per_s = limit_per_min / 60.0
        self._most = max(1.0, self._per_s * window_s)
        self._level = self._most
        self._at_s = now_s

    def remaining(self, now_s: float) -> float:
        self._level = min(self._most, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        return self._level

    def wait_s(self, now_s: float, amount: float) -> float:
        lacking = min(amount, self._most) - self.remaining(now_s)
        return lacking / self._per_s if lacking > _TOLERANCE else 0.0

    def take(self, now_s: float, amount: float) -> None:
        self._level = self.remaining(now_s) - amount

    def reset_s(self, now_s: float) -> float:
        return (self._most - self.remaining(now_s)) / self._per_s


class _Sliding:
    """A quota on what arrived within the last window."""

    def __init__(self, limit_per_min: float, window_s: float, now_s: float) -> None:
        self.limit_per_min = limit_per_min
        self._most = max(1.0, limit_per_min * window_s / 60.0)
        self._window_s = window_s
        self._taken: deque[tuple[float, float]] = deque()
        self._sum = 0.0
        self._at_s = now_s

    def remaining(self, now_s: float) -> float:
        while self._taken and self._taken[0][0] <= now_s - self._window_s + _TOLERANCE:
            self._sum -= self._taken.popleft()[1]
        return self._most - self._sum

    def wait_s(self, now_s: float, amount: float) -> float:
        lacking = min(amount, self._most) - self.remaining(now_s)
        if lacking <= _TOLERANCE:
            return 0.0
        for at_s, taken in self._taken:
            lacking -= taken
            if lacking <= _TOLERANCE:
                return at_s + self._window_s - now_s
        return self._window_s

    def take(self, now_s: float, amount: float) -> None:
        self._taken.append((now_s, amount))
        self._sum += amount

    def reset_s(self, now_s: float) -> float:
        return self._taken[-1][0] + self._window_s - now_s if self._taken else 0.0


class _Fixed:
    """A quota that begins again at each multiple of the window."""

    def __init__(self, limit_per_min: float, window_s: float, now_s: float) -> None:
        self.limit_per_min = limit_per_min
        self._most = max(1.0, limit_per_min * window_s / 60.0)
        self._window_s = window_s
        self._number = now_s // window_s
        self._sum = 0.0

    def remaining(self, now_s: float) -> float:
        number = now_s // self._window_s
        if number != self._number:
            self._number, self._sum = number, 0.0
        return self._most - self._sum

    def wait_s(self, now_s: float, amount: float) -> float:
        lacking = min(amount, self._most) - self.remaining(now_s)
        return (self._number + 1) * self._window_s - now_s if lacking > _TOLERANCE else 0.0

    def take(self, now_s: float, amount: float) -> None:
        self.remaining(now_s)
        self._sum += amount

    def reset_s(self, now_s: float) -> float:
        return (now_s // self._window_s + 1) * self._window_s - now_s


_Window = _Bucket | _Sliding | _Fixed
_WINDOWS: Mapping[QuotaWindow, type[_Bucket | _Sliding | _Fixed]] = {
    "bucket": _Bucket,
    "sliding": _Sliding,
    "fixed": _Fixed,
}


def _window(behaviour: Behaviour, limit_per_min: float | None, now_s: float) -> _Window | None:
    if limit_per_min is None:
        return None
    return _WINDOWS[behaviour.quota_window](limit_per_min, behaviour.quota_window_s, now_s)
