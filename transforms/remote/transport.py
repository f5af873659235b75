"""The wire: one HTTP POST, and what can go wrong with it in this project's terms."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import aiohttp

from transforms.errors import BrokenReply, TimedOut, Transient, Unreachable
from transforms.remote.connection import Compression, ProxySettings, TlsSettings, packed

LARGEST_REPLY_BYTES = 16 * 1024 * 1024

Answer = tuple[int, Mapping[str, str], bytes]
"""An HTTP answer: status, headers, body."""


Opened = tuple[int, Mapping[str, str], AsyncIterator[bytes]]
"""An HTTP answer whose body is still to come: status, headers, the pieces of the body."""


class NotConnected(Unreachable):
    """No connection could be made, so the server has seen nothing of the request."""


class Transport(Protocol):
    """The seam between the client and the network."""

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Send one POST and return the complete answer, of whatever status.

        Cancelling it, or the end of `timeout_s` seconds, closes the connection.

        Raises:
            NotConnected: nothing was sent.
            Unreachable: the connection broke before the answer was complete.
            TimedOut: the answer was not complete within `timeout_s`.
            BrokenReply: what came back is not HTTP, or larger than the transport's bound.
        """

    def stream(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AbstractAsyncContextManager[Opened]:
        """Send one POST and give the answer once its headers are there.

        Leaving the context before the end of the answer may close the connection, and does with an error. `timeout_s` bounds all
        of it. Raises as `post` does, also from the pieces of the body.
        """

    async def get(self, url: str, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Send one GET, for a health probe, and return the complete answer; raises as `post` does."""


def timed_out(url: str, timeout_s: float) -> TimedOut:
    """The error of an answer that took too long."""
    return TimedOut(f"{url} gave no complete answer within {timeout_s:.3g} s.")


def too_large(url: str, largest_bytes: int) -> BrokenReply:
    """The error of an answer beyond the bound."""
    return BrokenReply(f"The answer of {url} is larger than {largest_bytes} bytes.")


def broke_off(url: str, why: str = "") -> Unreachable:
    """The error of a connection that ended too early; `why` are the network's own words."""
    return Unreachable(f"The connection to {url} broke before the answer was complete{f' ({why})' if why else ''}.")


def not_http(url: str, why: object) -> BrokenReply:
    """The error of bytes that are no answer."""
    return BrokenReply(f"{url} answered with something that is not HTTP ({why}).")


class AiohttpTransport:
    """The real transport: one session with connections kept alive, made at the first request.

    Redirects are not followed, cookies not kept, proxies of the environment not used unless `proxy` says so. With `compress`,
    bodies from `COMPRESSED_FROM_BYTES` on are sent compressed; answers are unpacked in any case. There is no
    bound on connections here: the client bounds the calls in flight. An answer's body, unpacked, may have
    `largest_reply_bytes`. Use it on one event loop. Making it reads the files and secrets that `tls` and `proxy` name.

    Raises:
        SettingsError: one cannot be read, or is not what it should be.
    """

    def __init__(
        self,
        largest_reply_bytes: int = LARGEST_REPLY_BYTES,
        tls: TlsSettings | None = None,
        proxy: ProxySettings | None = None,
        compress: Compression | None = None,
    ) -> None:
        self._trust_env = proxy is not None and proxy.url == "env"
        self._ssl = True if tls is None else tls.context()
        self._proxy = None if proxy is None or self._trust_env else proxy.url
        password = proxy.auth.read_secret() if proxy is not None and proxy.auth is not None else None
        self._proxy_headers: dict[str, str] | None = None
        if proxy is not None and password is not None:
            self._proxy_headers = {"Proxy-Authorization": aiohttp.encode_basic_auth(proxy.user, password)}
        self._compress = compress
        self._largest = largest_reply_bytes
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Send one POST; see `Transport.post`."""
        session = self._session or self._open()
        body, headers = packed(self._compress, body, self._told(url, headers))
        try:
            async with asyncio.timeout(timeout_s):
                async with session.post(
                    url, data=body, headers=headers, allow_redirects=False, proxy_headers=self._proxy_headers
                ) as response:
                    return response.status, response.headers, await self._body(response, url)
        except TimeoutError:
            raise timed_out(url, timeout_s) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _translated(error, url) from None  # the cause holds the request's headers

    @contextlib.asynccontextmanager
    async def stream(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncIterator[Opened]:
        """Send one POST and give the answer piece by piece; see `Transport.stream`."""
        session = self._session or self._open()
        body, headers = packed(self._compress, body, self._told(url, headers))
        try:
            async with asyncio.timeout(timeout_s):
                response = await session.post(
                    url, data=body, headers=headers, allow_redirects=False, proxy_headers=self._proxy_headers
                )
                try:
                    yield response.status, response.headers, self._pieces(response, url)
                finally:
                    # One whose answer is complete has gone back already. The others are not read on: aiohttp would take what comes
                    # behind the answer for the next one.
                    response.close()
        except TimeoutError:
            raise timed_out(url, timeout_s) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _translated(error, url) from None

    async def get(self, url: str, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Send one GET; see `Transport.get`."""
        session = self._session or self._open()
        try:
            async with asyncio.timeout(timeout_s):
                async with session.get(
                    url, headers=self._told(url, headers), allow_redirects=False, proxy_headers=self._proxy_headers
                ) as response:
                    return response.status, response.headers, await self._body(response, url)
        except TimeoutError:
            raise timed_out(url, timeout_s) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _translated(error, url) from None

    async def close(self) -> None:
        """Close the session and its connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            headers={"User-Agent": "farcall"},
            trust_env=self._trust_env,
            proxy=self._proxy,
        )
        return self._session

    def _told(self, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers of a request, with those for the proxy where it is the proxy that reads them: in plain HTTP."""
        if self._proxy_headers is None or not url.startswith("http:"):
            return headers
        return {**headers, **self._proxy_headers}

    async def _body(self, response: aiohttp.ClientResponse, url: str) -> bytes:
        """Read the body, and no more of it than the bound; leaving early closes the connection."""
        first = await response.content.readany()
        if len(first) <= self._largest and response.content.at_eof():
            return first
        return b"".join([first, *[chunk async for chunk in self._pieces(response, url, len(first))]])

    async def _pieces(self, response: aiohttp.ClientResponse, url: str, read: int = 0) -> AsyncIterator[bytes]:
        """The answer's pieces behind the `read` bytes that were taken already."""
        while read <= self._largest:
            chunk = await response.content.readany()
            if not chunk:
                return
            read += len(chunk)
            if read <= self._largest:
                yield chunk
        raise too_large(url, self._largest)


def _translated(error: aiohttp.ClientError | OSError, url: str) -> Transient:
    """The error of the network or of aiohttp, in this project's terms. Its text never holds request headers."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = error.certificate_error
        return NotConnected(f"No connection to {url} could be made: its certificate is not trusted ({why}).")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return NotConnected(f"No connection to {url} could be made: the proxy answered {error.status}.")
    if isinstance(error, aiohttp.ClientConnectorError):
        return NotConnected(f"No connection to {url} could be made ({error.os_error}); is the server up?")
    if isinstance(error, aiohttp.ClientResponseError):
        return not_http(url, " ".join(error.message.split()))
    return broke_off(url, type(error).__name__)
