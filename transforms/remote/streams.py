"""Reading an answer that comes piece by piece: its silences are bounded, and one that was cut is none.

A chunk is one event of the stream with data. Before the first one whatever comes is a sign of life, comments too, which servers
send to those who wait in their queue; after it chunks alone are, since a server that hangs may go on with its comments for ever.

Default: 20 s without a sign of life end an attempt (`StreamSettings.stall_s`). The bound on the whole attempt is `timeout_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from transforms.errors import BrokenReply, CallError, TimedOut
from transforms.remote import ranges
from transforms.remote.clock import Clock
from transforms.remote.protocols import StreamReader
from transforms.remote.questions import Reply
from transforms.remote.retry import error_of

_STATUSES: Mapping[str, int] = {
    # OpenAI's and Anthropic's types, and what is written in their manner.
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "insufficient_quota": 429,
    "server_error": 500,
    "api_error": 500,
    "internal_server_error": 500,
    "overloaded": 503,
    "overloaded_error": 503,
    "service_unavailable_error": 503,
    "unavailable_error": 503,
    "timeout_error": 504,
    # Google's statuses, by google/rpc/code.proto.
    "invalid_argument": 400,
    "failed_precondition": 400,
    "out_of_range": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "aborted": 409,
    "already_exists": 409,
    "resource_exhausted": 429,
    "unknown": 500,
    "internal": 500,
    "data_loss": 500,
    "unimplemented": 501,
    "unavailable": 503,
    "deadline_exceeded": 504,
}


class StreamSettings(msgspec.Struct, frozen=True):
    """Replies come as streams; one that gives no sign of life for `stall_s` seconds is cut off, and the attempt has failed."""

    stall_s: float = 20.0

    def __post_init__(self) -> None:
        """Raise SettingsError for a time that is not above 0."""
        ranges.positive(stall_s=self.stall_s)


class Watch(Protocol):
    """What is told of a stream while it is read."""

    def on_chunk(self, after_s: float) -> None:
        """A chunk has come, so long after the one before; the first one is not told."""

    def on_stall(self) -> None:
        """Nothing came for too long."""


@runtime_checkable
class ChunkReader(StreamReader, Protocol):
    """A reader that counts what it was fed. Without that, every piece that the network gives is taken for a chunk."""

    size: int
    """The bytes so far."""

    chunks: int
    """The chunks so far; an event that only ends the stream is none."""

    first_chunk_s: float | None
    """The moment of the first chunk."""


async def read_stream(
    pieces: AsyncIterator[bytes], clock: Clock, stall_s: float, reader: StreamReader, watch: Watch | None = None
) -> Reply:
    """Return the reply that `pieces`, the body of a 2xx answer as it comes in, holds, read by `reader`.

    `stall_s` bounds the silence before the first chunk and between two; before the first one, any byte ends it. The bound on the
    whole attempt is the caller's. `pieces` is closed, whatever happens. `watch` is told of each chunk and of a stall.

    Raises:
        TimedOut: there was no sign of life for `stall_s` seconds.
        CallError: see `ChunkReader`; where the stream holds an error, the one that it stands for (`failure_of`).
    """
    counting = reader if isinstance(reader, ChunkReader) else None
    try:
        done, chunks, heard_s = False, 0, clock.monotonic_s()
        while not done:
            rest_s = stall_s - (clock.monotonic_s() - heard_s)
            piece = await _next(pieces, rest_s, stall_s, watch)
            if piece is None:
                break
            now_s = clock.monotonic_s()
            done = reader.feed(piece, now_s)
            before, chunks = chunks, chunks + 1 if counting is None else counting.chunks
            if watch is not None:
                _tell(watch, before, chunks, now_s - heard_s)
            if chunks > before or not chunks:
                heard_s = now_s
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()
    return reader.reply()


def failure_of(failure: Any, sentence: str) -> CallError:
    """Return the error that an error object in a stream stands for: the one of the same status and body outside of a stream.

    Its status is a number from 400 to 599 in ``code`` or ``status``, or that of a known word in ``code``, ``type`` or ``status``.
    An object that has neither is a BrokenReply. `sentence` is the message.
    """
    status = _status_of(failure) if isinstance(failure, dict) else None
    if status is None:
        return BrokenReply(sentence)
    return error_of(status, {}, sentence, 0, msgspec.json.encode({"error": failure})) or BrokenReply(sentence)


def _status_of(failure: Mapping[str, Any]) -> int | None:
    said = [failure.get("code"), failure.get("type"), failure.get("status")]
    words = [str(one).lower() for one in said if isinstance(one, str) or type(one) is int]
    numbers = [int(word) for word in words if len(word) == 3 and word.isascii() and word.isdigit()]
    for number in numbers:
        if 400 <= number < 600:
            return number
    for word in words:
        status = 429 if word.startswith("rate_limit") else _STATUSES.get(word)
        if status is not None:
            return status
    return None


def _tell(watch: Watch, before: int, chunks: int, after_s: float) -> None:
    """Tell of the chunks that one piece brought: those behind its first one came with it."""
    for number in range(before, chunks):
        if number:
            watch.on_chunk(after_s if number == before else 0.0)


async def _next(pieces: AsyncIterator[bytes], rest_s: float, stall_s: float, watch: Watch | None) -> bytes | None:
    """The next piece of the body, None at its end."""
    try:
        async with asyncio.timeout(rest_s) as silence:
            return await anext(pieces, None)
    except TimeoutError:
        if not silence.expired():
            raise
        if watch is not None:
            watch.on_stall()
        raise TimedOut(f"The stream stalled: nothing of the reply came for {stall_s:.3g} s.") from None
