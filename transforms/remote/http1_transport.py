"""The transport for HTTP/1.1 without a proxy: connections kept alive, by origin.

It does less than aiohttp and takes a third of its processor time (``scripts/bench client``, docs/adr/0026).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohappyeyeballs

from transforms.errors import CallError
from transforms.remote.connection import Compression, TlsSettings, packed
from transforms.remote.http1 import (
    ClosedError,
    Connection,
    ExpiredError,
    NotHttpError,
    Target,
    TooLargeError,
    Unpacked,
    head_of,
    target_of,
)
from transforms.remote.transport import (
    LARGEST_REPLY_BYTES,
    Answer,
    NotConnected,
    Opened,
    broke_off,
    not_http,
    timed_out,
    too_large,
)

READ_ON_S = 1.0
"""How long the rest of a stream that was left in good order is waited for, so that its connection can be used again."""

READ_ON_BYTES = 64 * 1024
"""How much that rest may have."""

KEEP_S = 15.0
"""How long a connection is kept for the next request, as aiohttp has it."""

LOOKED_UP_S = 10.0
"""How long the addresses of a name are believed, as aiohttp has it."""

APART_S = 0.25
"""When the next of several addresses is tried beside the one before (RFC 8305, section 5)."""

_FAILURES = (ClosedError, ExpiredError, NotHttpError, TooLargeError)
_Origin = tuple[str, int, bool]


class Http1Transport:
    """Requests over HTTP/1.1, in plain text or TLS; see `Transport`.

    Redirects are not followed, cookies not kept, proxies not used. With `compress`, larger bodies are sent compressed; answers in
    gzip and deflate are unpacked in any case. There is no bound on connections here: the client bounds the calls in flight. An
    answer's body, packed or not, may have `largest_reply_bytes`. Use it on one event loop. Making it reads the files that
    `tls` names.

    Raises:
        SettingsError: one cannot be read, or is not what it should be.
    """

    def __init__(
        self,
        largest_reply_bytes: int = LARGEST_REPLY_BYTES,
        tls: TlsSettings | None = None,
        compress: Compression | None = None,
    ) -> None:
        self._largest = largest_reply_bytes
        self._given_tls = None if tls is None else tls.context()
        self._compress = compress
        self._idle: dict[_Origin, collections.deque[Connection]] = {}
        self._open: set[Connection] = set()
        self._looked_up: dict[_Origin, tuple[float, asyncio.Task[list[Any]]]] = {}
        self._turn = 0
        self._sweeping: asyncio.TimerHandle | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Send one POST; see `Transport.post`."""
        return await self._answer("POST", url, body, headers, timeout_s)

    async def get(self, url: str, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Send one GET; see `Transport.get`."""
        return await self._answer("GET", url, None, headers, timeout_s)

    async def _answer(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> Answer:
        target = target_of(url)
        connection = self._kept(target)
        rest_s = timeout_s
        if connection is None:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            connection = await self._connect(url, target, timeout_s)
            rest_s -= loop.time() - began_s
        try:
            self._send(connection, method, target, body, headers)
            raw = await connection.answer(rest_s, self._largest)
            return connection.status, connection.headers, self._unpacked(connection, raw)
        except _FAILURES as error:
            raise self._translated(error, url, timeout_s) from None
        finally:
            self._give_back(target, connection)

    def _send(
        self, connection: Connection, method: str, target: Target, body: bytes | None, headers: Mapping[str, str]
    ) -> None:
        if body is not None:
            body, headers = packed(self._compress, body, headers)
        connection.send(head_of(method, target, headers, None if body is None else len(body)), body or b"")

    @contextlib.asynccontextmanager
    async def stream(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncIterator[Opened]:
        """Send one POST and give the answer piece by piece; see `Transport.stream`.

        Left in good order before the end of the answer, its connection is kept for another request if the rest comes within
        `READ_ON_S` and `READ_ON_BYTES`, which nobody waits for, and closed else.
        """
        target = target_of(url)
        bound = asyncio.timeout(timeout_s)
        try:
            async with bound:
                connection = self._kept(target) or await self._connect(url, target, timeout_s)
                try:
                    self._send(connection, "POST", target, body, headers)
                    try:
                        await connection.opened()
                    except _FAILURES as error:
                        raise self._translated(error, url, timeout_s) from None
                    yield connection.status, connection.headers, self._pieces(url, connection, timeout_s)
                except BaseException:
                    self._give_back(target, connection)
                    raise
                connection.read_on(READ_ON_S, READ_ON_BYTES, functools.partial(self._give_back, target, connection))
        except TimeoutError:
            if not bound.expired():
                raise
            raise self._translated(ExpiredError(), url, timeout_s) from None

    async def close(self) -> None:
        """Close all connections; what is under way on them fails."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        kept = {connection for idle in self._idle.values() for connection in idle}
        for connection in kept:
            connection.close()
        for connection in self._open - kept:
            connection.abort()
        self._idle.clear()
        self._open.clear()
        self._looked_up.clear()

    def _kept(self, target: Target) -> Connection | None:
        """The connection to this origin that was used last, if one is kept; those that the server closed are left behind."""
        idle = self._idle.get(target.origin)
        oldest_s = asyncio.get_running_loop().time() - KEEP_S
        while idle:
            connection = idle.pop()
            if connection.is_clean and connection.idle_since_s >= oldest_s:
                return connection
            self._end(connection)
        return None

    def _give_back(self, target: Target, connection: Connection) -> None:
        """Keeps the connection for the next request, or closes it."""
        if not connection.is_clean or connection not in self._open:
            self._open.discard(connection)
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since_s = loop.time()
        self._idle.setdefault(target.origin, collections.deque()).append(connection)
        if self._sweeping is None:
            self._sweeping = loop.call_later(KEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Closes what was not used for so long. The oldest stand on the left."""
        loop = asyncio.get_running_loop()
        oldest_s = loop.time() - KEEP_S
        for origin, idle in list(self._idle.items()):
            while idle and (idle[0].idle_since_s <= oldest_s or not idle[0].is_clean):
                self._end(idle.popleft())
            if not idle:
                del self._idle[origin]
        self._sweeping = loop.call_later(KEEP_S, self._sweep) if self._idle else None

    def _end(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.close()

    async def _connect(self, url: str, target: Target, timeout_s: float) -> Connection:
        loop = asyncio.get_running_loop()
        bound = asyncio.timeout(timeout_s)
        try:
            async with bound:
                opened = await aiohappyeyeballs.start_connection(
                    await self._addresses(target), happy_eyeballs_delay=APART_S, interleave=1, loop=loop
                )
                try:
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    _, connection = await loop.create_connection(
                        functools.partial(Connection, loop),
                        sock=opened,
                        ssl=self._tls if target.tls else None,
                        server_hostname=target.host.rstrip(".") if target.tls else None,
                    )
                except BaseException:
                    opened.close()
                    raise
        except ssl.SSLCertVerificationError as error:
            raise NotConnected(
                f"No connection to {url} could be made: its certificate is not trusted ({error.verify_message})."
            ) from None
        except OSError as error:
            if bound.expired():
                raise self._translated(ExpiredError(), url, timeout_s) from None
            raise NotConnected(f"No connection to {url} could be made ({error}); is the server up?") from None
        self._open.add(connection)
        return connection

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        context = self._given_tls or ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    async def _addresses(self, target: Target) -> list[Any]:
        """The addresses of a host. Those of a name begin with another one each time, since all of them are meant to be used."""
        loop = asyncio.get_running_loop()
        found = self._looked_up.get(target.origin)
        if found is None or found[0] < loop.time():
            looking = loop.create_task(_look_up(target.host, target.port))
            looking.add_done_callback(functools.partial(self._forget_failed, target.origin))
            found = self._looked_up[target.origin] = loop.time() + LOOKED_UP_S, looking
        addresses = await asyncio.shield(found[1])
        self._turn += 1
        first = self._turn % len(addresses)
        return addresses[first:] + addresses[:first]

    def _forget_failed(self, origin: _Origin, task: asyncio.Task[list[Any]]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._looked_up.pop(origin, None)

    def _unpacked(self, connection: Connection, raw: bytes) -> bytes:
        coding = connection.headers.get("content-encoding")
        if not coding or not raw:
            return raw
        unpacked = Unpacked(coding)
        body = unpacked.feed(raw, self._largest)
        unpacked.end()
        return body

    async def _pieces(self, url: str, connection: Connection, timeout_s: float) -> AsyncIterator[bytes]:
        try:
            unpacked, read = Unpacked(connection.headers.get("content-encoding", "")), 0
            while raw := await connection.piece():
                piece = unpacked.feed(raw, self._largest - read)
                read += len(piece)
                if piece:
                    yield piece
            unpacked.end()
        except _FAILURES as error:
            raise self._translated(error, url, timeout_s) from None

    def _translated(self, error: Exception, url: str, timeout_s: float) -> CallError:
        """The failure in this project's terms."""
        if isinstance(error, ExpiredError):
            return timed_out(url, timeout_s)
        if isinstance(error, TooLargeError):
            return too_large(url, self._largest)
        if isinstance(error, NotHttpError):
            return not_http(url, error)
        return broke_off(url)


async def _look_up(host: str, port: int) -> list[Any]:
    """The addresses of a host as `socket.getaddrinfo` has them. Raises OSError for a name that has none."""
    try:
        # An address needs nobody to be asked, and no thread.
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except socket.gaierror:
        return list(await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM))
