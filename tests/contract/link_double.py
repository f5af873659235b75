"""A link to a server: what comes back over it takes longer, and it can be cut. One thread and one event loop for each."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Self
from urllib.parse import urlsplit


class LinkDouble:
    """Serves at `url` from ``with`` to its end, and passes bytes on to the server of `target`, and back after `delay_s`."""

    def __init__(self, target: str, delay_s: float = 0.0) -> None:
        parts = urlsplit(target)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path
        self._delay_s = delay_s
        self._cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._on_loop(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{self._path}"
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._on_loop(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Break what is open, and every connection that is made from now on."""
        self._on_loop(self._break())

    def restore(self) -> None:
        """Let connections be made again."""
        self._cut = False

    def _on_loop(self, made: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(made, self._loop).result(10.0)

    async def _break(self) -> None:
        self._cut = True
        for writer in self._open:
            writer.transport.abort()

    async def _end(self) -> None:
        """End what still carries: a task that nobody waits for would be destroyed with its loop."""
        self._server.close()
        carrying = asyncio.all_tasks() - {asyncio.current_task()}
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)
        # What was aborted is told so in the loop's next turn.
        await asyncio.sleep(0)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        # Cancelled is this at the end of the link alone, and asyncio would print it.
        with contextlib.suppress(asyncio.CancelledError):
            back, forth = await asyncio.open_connection(self._host, self._port)
            self._open |= {writer, forth}
            try:
                await asyncio.gather(self._pass(reader, forth, 0.0), self._pass(back, writer, self._delay_s))
            finally:
                self._open -= {writer, forth}

    @staticmethod
    async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay_s: float) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(65536):
                await asyncio.sleep(delay_s)
                sink.write(chunk)
                await sink.drain()
        sink.close()
