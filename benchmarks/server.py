"""The benchmark's model server: openai-chat replies after a seeded latency, cheap enough to be no part of what is measured.

    python -m benchmarks.server --profile '{"median_s": 0.2, "sigma": 0.6}'

It prints one line when it listens. HTTP/1.1 is read and written by hand on a bare protocol, which takes about a tenth of a
framework's time: only what clients of this API send is understood (a POST with Content-Length, one request at a time on each
connection). A request's key is its `Idempotency-Key`, else the first word of its user message (`profile.py` says what follows of it).

``GET /stats`` gives `Stats` as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import socket
from typing import Any

import msgspec

from benchmarks.profile import Profile, Quota
from transforms.remote.loop import new_event_loop

LARGEST_BYTES = 4 << 20
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
# Ours names the model behind the event's id, for which the latency is drawn for every contestant.
_KEY = re.compile(rb"\r\nidempotency-key: *([^\r]+?)(?::[^:\r]+-[0-9a-f]{8})?(?:\r|\Z)", re.IGNORECASE)
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 411: "Length Required", 429: "Too Many Requests"}


class Stats(msgspec.Struct):
    """What the server has seen. `refused` for want of quota; `cut` connections that broke with a request under way."""

    requests: int = 0
    replies: int = 0
    refused: int = 0
    cut: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    connections: int = 0


class _Message(msgspec.Struct):
    content: str
    role: str = ""


class _Asked(msgspec.Struct):
    messages: list[_Message]
    model: str = ""


_asked = msgspec.json.Decoder(_Asked)


def response(status: int, body: bytes, headers: str = "") -> bytes:
    """An answer of HTTP/1.1 as it goes over the wire."""
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def completion(key: str, asked: str) -> bytes:
    """The body of a reply, which names the key it is for."""
    return msgspec.json.encode(
        {
            "id": f"chatcmpl-{key}",
            "object": "chat.completion",
            "created": 0,
            "model": "bench",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": f"Reply to {key}"}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": len(asked) // 4, "completion_tokens": 3, "total_tokens": len(asked) // 4 + 3},
        }
    )


class ModelServer:
    """Answers on one event loop. `port` is 0 for any free one, and holds the real one once it listens."""

    def __init__(self, profile: Profile, port: int = 0) -> None:
        self.profile = profile
        self.port = port
        self.stats = Stats()
        self.open: set[_Connection] = set()
        self._quota = Quota(profile.quota_per_s)
        self._listening: asyncio.Server | None = None
        self._first_s: float | None = None

    async def listen(self) -> None:
        """Begin to listen on 127.0.0.1."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", self.port))
        self.port = made.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: _Connection(self), sock=made, backlog=4096)

    def hang_up(self) -> None:
        """Stop listening and cut every connection."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        for connection in list(self.open):
            connection.cut()

    def arrived(self, now_s: float) -> None:
        """Count a request; the first sets the time of the outage."""
        self.stats.requests += 1
        if self._first_s is None:
            self._first_s = now_s
            if self.profile.outage_for_s:
                self._plan_outage()

    def answer(self, key: str, asked: str, now_s: float) -> tuple[float, bytes]:
        """What a request gets, and after how many seconds."""
        if not self._quota.take(now_s):
            self.stats.refused += 1
            refusal = b'{"error": {"message": "Too many requests.", "type": "rate_limit"}}'
            return 0.0, response(429, refusal, "Retry-After: 1\r\n")
        return self.profile.latency_s(key), response(200, completion(key, asked))

    def _plan_outage(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self.profile.outage_at_s, self.hang_up)
        end_s = self.profile.outage_at_s + self.profile.outage_for_s
        loop.call_later(end_s, lambda: setattr(self, "back", loop.create_task(self.listen())))


class _Connection(asyncio.Protocol):
    """One connection of a client, with at most one request under way."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server
        self._read = b""
        self._waiting: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        self._server.open.add(self)
        self._server.stats.connections += 1

    def connection_lost(self, _: Exception | None) -> None:
        self._server.open.discard(self)
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
            self._server.stats.in_flight -= 1
            self._server.stats.cut += 1

    def cut(self) -> None:
        """Break the connection at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._read += data
        if self._waiting is None:
            self._next()

    def _next(self) -> None:
        """Take one whole request out of what was read, if there is one."""
        head_end = self._read.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._read[:head_end]
        length = _LENGTH.search(head)
        end = head_end + 4 + (int(length[1]) if length else 0)
        if end > LARGEST_BYTES or (head.startswith(b"POST") and length is None):
            self._transport.write(response(411, b"{}"))
            self._transport.close()
        elif len(self._read) >= end:
            body, self._read = self._read[head_end + 4 : end], self._read[end:]
            self._serve(head, body)

    def _serve(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"POST"):
            self._chat(head, body)
        elif head.startswith(b"GET /stats "):
            self._transport.write(response(200, msgspec.json.encode(self._server.stats)))
        else:
            self._transport.write(response(404, b"{}"))

    def _chat(self, head: bytes, body: bytes) -> None:
        now_s = self._loop.time()
        self._server.arrived(now_s)
        try:
            said = _asked.decode(body).messages[-1].content
        except (msgspec.DecodeError, UnicodeDecodeError, IndexError):
            self._transport.write(response(400, b'{"error": {"message": "not a chat request"}}'))
            return
        named = _KEY.search(head)
        key = named[1].decode("latin-1") if named else said.split(None, 1)[0] if said.strip() else ""
        delay_s, answer = self._server.answer(key, said, now_s)
        stats = self._server.stats
        stats.in_flight += 1
        stats.most_in_flight = max(stats.most_in_flight, stats.in_flight)
        self._waiting = self._loop.call_later(delay_s, self._reply, answer)

    def _reply(self, answer: bytes) -> None:
        self._waiting = None
        self._server.stats.in_flight -= 1
        self._server.stats.replies += 1
        self._transport.write(answer)
        if self._read:
            self._next()


async def _serve(profile: Profile, port: int) -> None:
    server = ModelServer(profile, port)
    await server.listen()
    print(f"listening on http://127.0.0.1:{server.port}/v1", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


def main(argv: list[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="benchmarks.server", description="A model server with seeded latency.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes any free one")
    parser.add_argument("--profile", default="{}", help="JSON: how it behaves (benchmarks/profile.py)")
    given = parser.parse_args(argv)
    profile = msgspec.json.decode(given.profile, type=Profile)
    new_event_loop().run_until_complete(_serve(profile, given.port))


if __name__ == "__main__":
    main()
