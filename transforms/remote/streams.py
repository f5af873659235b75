"""Reading an answer that comes piece by piece: its silences are bounded, and one that was cut is none.

Default: 20 s without a byte end an attempt (`StreamSettings.stall_s`). The bound on the whole attempt is `timeout_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from transforms.errors import TimedOut
from transforms.remote import ranges
from transforms.remote.clock import Clock
from transforms.remote.protocols import StreamReader
from transforms.remote.questions import Reply


class StreamSettings(msgspec.Struct, frozen=True):
    """Replies come as streams; one in which nothing comes for `stall_s` seconds is cut off, and the attempt has failed."""

    stall_s: float = 20.0

    def __post_init__(self) -> None:
        """Raise SettingsError for a time that is not above 0."""
        ranges.positive(stall_s=self.stall_s)


class Watch(Protocol):
    """What is told of a stream while it is read."""

    def on_chunk(self, after_s: float) -> None:
        """A piece has come, so long after the one before."""

    def on_stall(self) -> None:
        """Nothing came for too long."""


async def read_stream(
    chunks: AsyncIterator[bytes], clock: Clock, stall_s: float, reader: StreamReader, watch: Watch | None = None
) -> Reply:
    """Return the reply that `chunks`, the body of a 2xx answer as it comes in, holds, read by `reader`.

    `stall_s` bounds the silence before and between two pieces of the body; the bound on the whole attempt is the
    caller's. `chunks` is closed, whatever happens. `watch` is told of each piece and of a stall.

    Raises:
        TimedOut: nothing came for `stall_s` seconds.
        BrokenReply: see `StreamReader`.
    """
    try:
        done, before_s = False, None
        while not done:
            chunk = await _next(chunks, stall_s, watch)
            if chunk is None:
                break
            now_s = clock.monotonic_s()
            if watch is not None and before_s is not None:
                watch.on_chunk(now_s - before_s)
            before_s = now_s
            done = reader.feed(chunk, now_s)
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
    return reader.reply()


async def _next(chunks: AsyncIterator[bytes], stall_s: float, watch: Watch | None) -> bytes | None:
    """The next piece of the body, None at its end."""
    try:
        async with asyncio.timeout(stall_s) as silence:
            return await anext(chunks, None)
    except TimeoutError:
        if not silence.expired():
            raise
        if watch is not None:
            watch.on_stall()
        raise TimedOut(f"The stream stalled: nothing came for {stall_s:.3g} s.") from None
