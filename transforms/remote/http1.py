"""HTTP/1.1 requests on connections of our own: what `Http1Transport` is made of (RFC 9110, RFC 9112; docs/adr/0026).

The bytes of answers are read by llhttp, Node's parser, through httptools. Here is what lies around it: the bytes of a request, a
connection that has one request at a time, and the bounds on what a server may send.
"""

from __future__ import annotations

import asyncio
import functools
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import httptools
import msgspec
from yarl import URL

LARGEST_HEAD_BYTES = 64 * 1024
"""How much an answer may have before its body begins."""

_HELD_BYTES = 256 * 1024
_DEFAULTS = (("Accept", "*/*"), ("Accept-Encoding", "gzip, deflate"), ("User-Agent", "farcall"))
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_OURS = frozenset({"connection", "content-length", "host", "transfer-encoding"})


class ClosedError(Exception):
    """The connection ended before the answer was complete."""


class NotHttpError(Exception):
    """What came is not HTTP/1.1 as we asked for it; the text says why."""


class TooLargeError(Exception):
    """The answer is larger than the bound."""


class ExpiredError(Exception):
    """The answer was not complete in time."""


class Target(msgspec.Struct, frozen=True):
    """Where a URL leads: whom to connect to, and what stands in a request."""

    host: str
    port: int
    tls: bool
    authority: str
    path: str

    @property
    def origin(self) -> tuple[str, int, bool]:
        """What a connection is made for."""
        return self.host, self.port, self.tls


@functools.lru_cache(maxsize=1024)
def target_of(url: str) -> Target:
    """The target of a URL with http or https. Raises ValueError for any other."""
    found = URL(url)
    if found.scheme not in {"http", "https"} or not found.raw_host or found.port is None:
        raise ValueError(f"{url} is no URL with http or https.")
    authority = found.host_port_subcomponent or found.raw_host
    return Target(found.raw_host, found.port, found.scheme == "https", authority, found.raw_path_qs)


def head_of(method: str, target: Target, headers: Mapping[str, str], body_bytes: int | None) -> bytes:
    """The bytes of a request up to its body, whose length is `body_bytes`; None for a request without one.

    Raises ValueError for a header that holds a control character: a line break would begin another header.
    """
    given = {name.lower() for name in headers}
    lines = [
        f"{method} {target.path} HTTP/1.1",
        f"Host: {target.authority}",
        *[f"{name}: {value}" for name, value in _DEFAULTS if name.lower() not in given],
        *[f"{name}: {value}" for name, value in headers.items() if name.lower() not in _OURS],
    ]
    if body_bytes is not None:
        lines.append(f"Content-Length: {body_bytes}")
    if _CONTROL.search("".join(lines)):
        raise ValueError("A header of the request holds a control character, such as a line break.")
    lines.append("\r\n")
    return "\r\n".join(lines).encode()


class Unpacked:
    """Undoes the content coding of an answer's body: gzip, deflate (with zlib's header or without), or none.

    Raises NotHttpError for another coding, and where the body is not of the coding that it names.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding.strip().lower()
        if self._coding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
            raise NotHttpError(f"it is packed as {self._coding}, which was not asked for")
        self._is_plain = self._coding in {"", "identity"}
        self._inflater: Any = None

    def feed(self, data: bytes, most: int) -> bytes:
        """What `data`, the next of the body, gives. Raises TooLargeError where that has more than `most` bytes."""
        if self._is_plain:
            if len(data) > most:
                raise TooLargeError
            return data
        pieces: list[bytes] = []
        while data:
            if self._inflater is None:
                self._inflater = zlib.decompressobj(self._window_bits(data[0]))
            try:
                piece = self._inflater.decompress(data, most + 1)
            except zlib.error as error:
                raise NotHttpError(f"its body is not {self._coding}: {error}") from None
            most -= len(piece)
            if most < 0:
                raise TooLargeError
            pieces.append(piece)
            # There may be several files of gzip, one behind the other (RFC 1952, section 2.2).
            data = self._inflater.unused_data
            if self._inflater.eof:
                self._inflater = None
        return b"".join(pieces)

    def end(self) -> None:
        """The body has ended. Raises ClosedError where more of what is packed was to come."""
        if self._inflater is not None:
            raise ClosedError

    def _window_bits(self, first: int) -> int:
        """What zlib has to expect. By RFC 9110 deflate has zlib's header, which begins with an 8 in the low bits; not all know."""
        if self._coding != "deflate":
            return 16 + zlib.MAX_WBITS
        return zlib.MAX_WBITS if first & 0x0F == 8 else -zlib.MAX_WBITS


class Connection(asyncio.Protocol):
    """One connection, with one request at a time. Use it on one event loop.

    `send`, then either `answer`, or `opened` and `piece` until that is empty; `read_on` does without the rest. Each of them but the
    last raises ClosedError, NotHttpError or TooLargeError; after that, and unless `is_clean`, the connection is of no more use.
    """

    __slots__ = (
        "_ended",
        "_error",
        "_expiry",
        "_head_bytes",
        "_held_bytes",
        "_is_complete",
        "_is_kept",
        "_is_paused",
        "_is_whole",
        "_loop",
        "_most",
        "_parser",
        "_pieces",
        "_transport",
        "_waiter",
        "headers",
        "idle_since_s",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: Any = None
        self._parser: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended: Callable[[], None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._error: Exception | None = None
        self._is_complete = True
        self._is_kept = True
        self._is_paused = False
        self._is_whole = False
        self._head_bytes = 0
        self._held_bytes = 0
        self._most = 0
        self._pieces: list[bytes] = []
        self.status = 0
        """The status of the answer; 0 until its headers have come."""
        self.headers: dict[str, str] = {}
        """The headers of the answer, by their names in small letters; one that came several times has its values joined by commas."""
        self.idle_since_s = 0.0
        """When it was given back, in seconds of the loop; whoever keeps it sets this."""

    @property
    def is_clean(self) -> bool:
        """Whether the next request may be sent: the last one and its answer are complete, and the server goes on."""
        return (
            self._is_complete
            and self._is_kept
            and not self._is_paused  # it would read nothing of the next answer
            and not self._transport.is_closing()
            and not self._transport.get_write_buffer_size()
        )

    def send(self, head: bytes, body: bytes) -> None:
        """Sends a request."""
        self.status, self.headers, self._pieces = 0, {}, []
        self._is_complete, self._is_whole = False, False
        self._head_bytes = self._held_bytes = 0
        self._transport.write(head + body)

    async def answer(self, timeout_s: float, most: int) -> bytes:
        """The body of the answer, once all of it is there. Raises ExpiredError after `timeout_s` seconds too.

        Raises TooLargeError as soon as more than `most` bytes have come.
        """
        self._is_whole, self._most = True, most
        expiry = self._loop.call_later(timeout_s, self._expire)
        try:
            await self._changed()
        finally:
            expiry.cancel()
        # An idle connection keeps no answer.
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def opened(self) -> None:
        """Waits for the headers of the answer."""
        while not self.status:
            await self._changed()

    async def piece(self) -> bytes:
        """The next of the body, as it comes; nothing at its end. What is not asked for is held up to a bound."""
        while not self._pieces and not self._is_complete:
            await self._changed()
        if self._error is not None:
            raise self._error
        found, self._pieces, self._held_bytes = b"".join(self._pieces), [], 0
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        return found

    def read_on(self, for_s: float, most: int, ended: Callable[[], None]) -> None:
        """Drops the rest of the answer as it comes, and calls `ended` when that is complete, or has failed.

        It fails after `for_s` seconds, and where more than `most` bytes come of it.
        """
        self._pieces, self._most = [], most
        if not self._is_complete:
            self._check_size()
        if self._is_complete or self._error is not None:
            ended()
            return
        self._ended = ended
        self._expiry = self._loop.call_later(for_s, self._expire)

    def close(self) -> None:
        """Closes it in good order."""
        self._transport.close()

    def abort(self) -> None:
        """Closes it at once, whatever is still on its way."""
        self._transport.abort()

    async def _changed(self) -> None:
        """Waits until it is complete, or in error, which it raises; unless all of it is wanted, also until more has come."""
        if self._error is None and not self._is_complete:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        if self._ended is not None:
            if self._expiry is not None:
                self._expiry.cancel()
            ended, self._ended, self._expiry = self._ended, None, None
            # Later, since bytes behind the answer may stand in the same piece.
            self._loop.call_soon(ended)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None and not self._is_complete:
            self._error = error
            self._wake()
        self._is_kept = False

    def _expire(self) -> None:
        self._fail(ExpiredError())

    def _check_size(self) -> None:
        if self._held_bytes > self._most:
            self._fail(TooLargeError())

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Reads what came; without a request nothing may."""
        if self._is_complete or self._error is not None:
            self._is_kept = False
            self._transport.abort()
            return
        if not self.status:
            self._head_bytes += len(data)
        if self._parser is None:
            # It takes a kilobyte, which calls that wait for their answer do without. What servers get wrong and is clear, aiohttp
            # and browsers read too.
            self._parser = httptools.HttpResponseParser(self)
            self._parser.set_dangerous_leniencies(
                lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
            )
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(NotHttpError(" ".join(str(error).split())))
            return
        if self._is_complete:
            self._parser = None
        elif not self.status and self._head_bytes > LARGEST_HEAD_BYTES:
            self._fail(NotHttpError(f"its headers have more than {LARGEST_HEAD_BYTES} bytes"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends; so does a body that has no other end."""
        self._is_kept = False
        self._parser = None  # which refers to this connection
        if not self._is_complete:
            if exc is None and self._error is None and self.status and self._ends_with_the_connection():
                self._is_complete = True
                self._wake()
            else:
                self._fail(ClosedError())

    def _ends_with_the_connection(self) -> bool:
        """Whether the body has no length of its own (RFC 9112, section 6.3)."""
        coding = self.headers.get("transfer-encoding")
        if coding is not None:
            return not coding.lower().rstrip().endswith("chunked")
        return "content-length" not in self.headers

    # What the parser calls.

    def on_message_begin(self) -> None:
        """An answer begins. One that nobody asked for makes the connection useless."""
        if self._is_complete:
            self._is_kept = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or one behind the body, which says nothing that we need."""
        if self.status or self._is_complete:
            return
        key, text = name.decode("latin-1").lower(), value.decode("utf-8", "surrogateescape")
        before = self.headers.get(key)
        self.headers[key] = text if before is None else f"{before}, {text}"

    def on_headers_complete(self) -> None:
        """All headers have come; of an interim answer (1xx), which is none, they are forgotten at its end."""
        if self._is_complete:
            return
        self.status = self._parser.get_status_code()
        if self.status >= 200 and not self._is_whole:
            self._wake()

    def on_body(self, body: bytes) -> None:
        """More of the body."""
        if self._is_complete:
            return
        self._pieces.append(body)
        self._held_bytes += len(body)
        if self._is_whole:
            self._check_size()
            return
        if self._ended is not None:
            self._pieces = []
            self._check_size()
            return
        if self._held_bytes > _HELD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        """The answer is complete."""
        if self._is_complete:
            return
        if 100 <= self.status < 200:
            self.status, self.headers = 0, {}
            return
        self._is_kept = self._is_kept and self._parser.should_keep_alive()
        self._is_complete = True
        self._wake()
