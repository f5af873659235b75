"""Requests that carry an access token which expires: fetched once for all, ahead of its end, and anew where a server refuses it.

A static secret needs none of this: it is a header that `exchange` writes. Here a transport is put around the real one; it adds
the header of the token to each request, and where the answer is 401 fetches another token and sends the request once more, as the
authentication challenge of RFC 9110 (section 11) is meant; that is no further attempt.

Defaults: a token is fetched anew 225 s before its end, as google-auth has it, while the old one is still sent; it is not sent any
more in its last 10 s; a fetch ahead that failed is tried again after 5 s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

import msgspec

from transforms.errors import TimedOut
from transforms.remote.clock import Clock
from transforms.remote.transport import Answer, Opened, Transport

T = TypeVar("T")

AHEAD_MS = 225_000
MARGIN_MS = 10_000
PAUSE_MS = 5_000


class AccessToken(msgspec.Struct, frozen=True):
    """A bearer token, and when it ends in Unix milliseconds of the wall clock (None: never)."""

    token: str
    expires_ms: int | None


Fetch = Callable[[], Awaitable[AccessToken]]
"""Fetches a token, off the event loop where that blocks. Raises CallError."""


class Authorizer(Protocol):
    """Knows the headers that authorize a request."""

    async def headers(self) -> Mapping[str, str]:
        """Return the headers; the same object as long as they hold. Raises CallError."""

    async def renew(self, refused: Mapping[str, str]) -> bool:
        """Get others than `refused`, which a server answered with 401; return whether there are any. Raises CallError."""

    def accept(self, headers: Mapping[str, str]) -> None:
        """Note that a server took these."""


class TokenAuthorizer:
    """Keeps one token. Use it on one event loop.

    However many requests need a token, one fetch is under way. A server that refuses a token which none has taken since the last
    one was renewed is not answered with yet another: the token is not what it dislikes.
    """

    def __init__(self, fetch: Fetch, clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._headers: Mapping[str, str] | None = None
        self._expires_ms: float = 0.0
        self._not_before_ms = 0
        self._renewed_in_vain = False
        self._task: asyncio.Task[None] | None = None

    async def headers(self) -> Mapping[str, str]:
        """Return the header of a token that holds; see `Authorizer.headers`."""
        rest_ms = self._expires_ms - self._clock.now_ms()
        if self._headers is None or rest_ms <= MARGIN_MS:
            await self._fetched()
        elif rest_ms <= AHEAD_MS and self._clock.now_ms() >= self._not_before_ms:
            self._begin()
        return self._headers or {}

    async def renew(self, refused: Mapping[str, str]) -> bool:
        """Get another token than the refused one; see `Authorizer.renew`."""
        if refused is not self._headers:
            return True  # another request has renewed it meanwhile
        if self._task is None:
            if self._renewed_in_vain:
                return False
            self._renewed_in_vain = True
        await self._fetched()
        return True

    def accept(self, headers: Mapping[str, str]) -> None:
        """Note that a server took this token."""
        if headers is self._headers:
            self._renewed_in_vain = False

    async def close(self) -> None:
        """End a fetch that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _fetched(self) -> None:
        """Wait for the fetch under way, or a new one; one that is cancelled does not end it for others."""
        await asyncio.shield(self._begin())

    def _begin(self) -> asyncio.Task[None]:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._ended)
        return self._task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            self._not_before_ms = self._clock.now_ms() + PAUSE_MS

    async def _run(self) -> None:
        token = await self._fetch()
        self._headers = {"Authorization": f"Bearer {token.token}"}
        self._expires_ms = float("inf") if token.expires_ms is None else token.expires_ms


class AuthorizedTransport:
    """A transport whose requests carry what an authorizer knows; see `Transport`. The token is blanked out of refusals."""

    def __init__(self, inner: Transport, authorizer: Authorizer, clock: Clock) -> None:
        self._inner = inner
        self._authorizer = authorizer
        self._clock = clock

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Send one POST; see `Transport.post`."""
        return await self._answered(
            url, timeout_s, lambda own, rest_s: self._inner.post(url, body, {**headers, **own}, rest_s)
        )

    async def get(self, url: str, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Send one GET; see `Transport.get`."""
        return await self._answered(
            url, timeout_s, lambda own, rest_s: self._inner.get(url, {**headers, **own}, rest_s)
        )

    @contextlib.asynccontextmanager
    async def stream(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncIterator[Opened]:
        """Send one POST and give the answer piece by piece; see `Transport.stream`."""
        end_s = self._clock.monotonic_s() + timeout_s
        own = await self._in_time(self._authorizer.headers(), url, end_s)
        async with self._inner.stream(url, body, {**headers, **own}, self._rest_s(url, end_s)) as opened:
            if opened[0] != 401:
                self._authorizer.accept(own)
                yield opened
                return
            refusal = (opened[0], opened[1], _once(_without(own, b"".join([piece async for piece in opened[2]]))))
        if not await self._in_time(self._authorizer.renew(own), url, end_s):
            yield refusal
            return
        own = await self._in_time(self._authorizer.headers(), url, end_s)
        async with self._inner.stream(url, body, {**headers, **own}, self._rest_s(url, end_s)) as opened:
            if opened[0] != 401:
                self._authorizer.accept(own)
            yield opened

    async def _answered(
        self, url: str, timeout_s: float, send: Callable[[Mapping[str, str], float], Awaitable[Answer]]
    ) -> Answer:
        end_s = self._clock.monotonic_s() + timeout_s
        own = await self._in_time(self._authorizer.headers(), url, end_s)
        status, headers, body = await send(own, self._rest_s(url, end_s))
        if status == 401 and await self._in_time(self._authorizer.renew(own), url, end_s):
            own = await self._in_time(self._authorizer.headers(), url, end_s)
            status, headers, body = await send(own, self._rest_s(url, end_s))
        if status != 401:
            self._authorizer.accept(own)
        return status, headers, body if 200 <= status < 300 else _without(own, body)

    async def _in_time(self, work: Awaitable[T], url: str, end_s: float) -> T:
        try:
            async with asyncio.timeout(max(0.0, end_s - self._clock.monotonic_s())):
                return await work
        except TimeoutError:
            raise TimedOut(f"There was no access token for {url} in time.") from None

    def _rest_s(self, url: str, end_s: float) -> float:
        rest_s = end_s - self._clock.monotonic_s()
        if rest_s <= 0.0:
            raise TimedOut(f"There was no access token for {url} in time.")
        return rest_s


def _without(own: Mapping[str, str], body: bytes) -> bytes:
    for value in own.values():
        body = body.replace(value.partition(" ")[2].encode() or b"\0", b"***")
    return body


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
