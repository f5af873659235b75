"""A deterministic stand-in for a model server, on a real socket. It speaks every wire protocol over HTTP (`double_answers`).

In a test::

    with ModelDouble(latency_ms=20) as double:
        settings = ModelSettings(role="answer", endpoints=(Endpoint(double.base_url),), model="double")

or as a process of its own, which prints one line when it listens::

    python -m transforms.remote.model_double --port 8000 --latency_ms 200 --sigma 0.6 \
        --faults '[{"kind": "status", "status": 503, "retry_after": "0.5", "attempts": [1], "fraction": 0.1}]'

The reply is a pure function of the last user message, the latency one of the event's id in the `Idempotency-Key` and the
seed: log-normal with `latency_ms` as its median and `sigma` as its shape. `Fault` says what can go wrong.

Beside the protocols' own paths it serves ``GET /v1/models`` and ``GET /health``, and to be steered from another
process ``GET /control/stats`` (see `Stats`), ``POST /control/faults`` (a JSON array of `Fault`),
``POST /control/reset`` (forget all counts and faults) and ``POST /control/down?for_s=3`` (nobody listens for so long).
"""

from __future__ import annotations

import argparse
import asyncio
import email.utils
import re
import signal
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from hashlib import blake2b
from math import exp
from statistics import NormalDist
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import msgspec
from aiohttp import web

from transforms.remote.clock import SystemClock
from transforms.remote.double_answers import GoodAnswer, NoSuchPathError, good_answer, reply_text
from transforms.remote.loop import new_event_loop

T = TypeVar("T")

FaultKind = Literal[
    "status",
    "drop",
    "hang",
    "truncate",
    "garbage",
    "not-json",
    "not-utf8",
    "no-choices",
    "error-object",
    "redirect",
    "slow",
    "cut",
]


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes wrong, and for which requests; the first fault that fits is used.

    A request fits when its id is `id` (None: any; ``abc*`` fits a prefix), its attempt, counted from 1 for each id, is
    among `attempts` (empty: all), and it is among the `fraction` that a hash of seed, id and attempt picks.

    Kinds: ``status`` answers `status`; ``drop`` breaks the connection; ``hang`` never answers; ``truncate`` breaks it
    in the middle of the body; ``garbage`` sends bytes that are not HTTP; ``not-json``, ``not-utf8``, ``no-choices`` and
    ``error-object`` answer 200 with such a body; ``redirect`` answers 307 to another path of this server; ``slow``
    begins its answer and never ends it; ``cut`` ends it in its middle, as if it were whole. `retry_after` is sent as it
    is, or `retry_after_date_s` as the HTTP date so many seconds ahead, or `retry_after_ms` as ``retry-after-ms``.
    `after_ms` is waited first, instead of the latency.
    """

    kind: FaultKind
    status: int = 500
    id: str | None = None
    attempts: tuple[int, ...] = ()
    fraction: float = 1.0
    retry_after: str | None = None
    retry_after_date_s: float | None = None
    retry_after_ms: str | None = None
    after_ms: float = 0.0
    message: str = "a fault of the double"

    def fits(self, seed: int, key: str, attempt: int) -> bool:
        """Return whether this fault befalls that attempt of the id `key`."""
        if self.id is not None and not (key.startswith(self.id[:-1]) if self.id.endswith("*") else key == self.id):
            return False
        if self.attempts and attempt not in self.attempts:
            return False
        return self.fraction >= 1.0 or _share(seed, "fault", key, str(attempt)) < self.fraction

    def headers(self) -> dict[str, str]:
        """Return the headers that ask to wait."""
        found: dict[str, str] = {}
        if self.retry_after is not None:
            found["Retry-After"] = self.retry_after
        elif self.retry_after_date_s is not None:
            at_s = SystemClock().now_ms() / 1000.0 + self.retry_after_date_s
            found["Retry-After"] = email.utils.formatdate(at_s, usegmt=True)
        if self.retry_after_ms is not None:
            found["retry-after-ms"] = self.retry_after_ms
        return found


class Stats(msgspec.Struct, frozen=True):
    """What a double has seen: the numbers behind ``/control/stats``.

    `requests` for a model's answer, `answered` of them with a reply, `faults` of them with a fault; `in_flight` now
    and `most_in_flight` at once; `disconnects`: the client left before the answer was complete; `duplicates`: replies
    to an id that had got one before; `attempts` by id.
    """

    requests: int
    answered: int
    faults: int
    in_flight: int
    most_in_flight: int
    disconnects: int
    duplicates: int
    attempts: dict[str, int]


_faults = msgspec.json.Decoder(tuple[Fault, ...])


def latency_s(seed: int, key: str, median_ms: float, sigma: float) -> float:
    """Return the latency of the request with the id `key` in seconds.

    Log-normal: median · exp(sigma · z), where z, standard normal, is a hash of seed and id.
    """
    if median_ms <= 0.0:
        return 0.0
    z = NormalDist().inv_cdf(min(max(_share(seed, "latency", key), 1e-12), 1.0 - 1e-12)) if sigma else 0.0
    return median_ms / 1000.0 * exp(sigma * z)


_MODEL = re.compile(r":[^:]+-[0-9a-f]{8}\Z", re.ASCII)


def event_id_of(key: str) -> str:
    """Return the event's id in an idempotency key of ours, behind which the model is named; any other key as it is."""
    return _MODEL.sub("", key)


class ModelDouble:
    """A model server in a thread of this process, from ``with`` to its end. All of it may be used from any thread.

    `latency_ms` is the median and `sigma` the shape of the log-normal latency; `faults` as `Fault` says; `reply` makes
    the text (by default `reply_text`, or a value of the JSON schema that a request asks for);
    with `token`, requests without ``Authorization: Bearer {token}`` get 401. The pieces of a stream come `piece_ms` after
    each other. With `tls`, the context of a server, it speaks HTTPS. Port 0 takes any free one.
    """

    def __init__(
        self,
        port: int = 0,
        latency_ms: float = 0.0,
        sigma: float = 0.0,
        seed: int = 0,
        faults: tuple[Fault, ...] = (),
        reply: Callable[[str], str] = reply_text,
        token: str | None = None,
        host: str = "127.0.0.1",
        piece_ms: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.seed = seed
        self.faults = faults
        self._latency_ms = latency_ms
        self._sigma = sigma
        self._reply = reply
        self._token = token
        self._piece_ms = piece_ms
        self._tls = tls
        self._changed = threading.Condition()
        self._forget()

    def __enter__(self) -> Self:
        """Start the thread and listen."""
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="model-double", daemon=True)
        self._thread.start()
        self._on_loop(self._start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Break all connections and end the thread."""
        self._on_loop(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def base_url(self) -> str:
        """The base URL for `Endpoint`, ``/v1`` included."""
        return f"{self.root_url}/v1"

    @property
    def root_url(self) -> str:
        """The URL under which ``/health`` and ``/control`` are."""
        return f"{'http' if self._tls is None else 'https'}://{self.host}:{self.port}"

    @property
    def requests(self) -> int:
        """The number of requests for a model's answer so far."""
        return sum(self.attempts.values())

    def stats(self) -> Stats:
        """Return what this double has seen."""
        return Stats(
            requests=self.requests,
            answered=sum(self._answered.values()),
            faults=self._faulty,
            in_flight=self._in_flight,
            most_in_flight=self._most_in_flight,
            disconnects=self._disconnects,
            duplicates=sum(count - 1 for count in self._answered.values()),
            attempts=dict(self.attempts),
        )

    def reset(self) -> None:
        """Forget all counts and faults."""
        self.faults = ()
        self._forget()

    def set_faults(self, *faults: Fault) -> None:
        """Have these faults from the next request on, and no others."""
        self.faults = faults

    def set_down(self, down: bool) -> None:
        """Stop listening and break all connections, or listen again on the same port."""
        self._on_loop(self._close() if down else self._listen())

    def wait_until(self, seen: Callable[[Stats], bool], timeout_s: float = 10.0) -> Stats:
        """Return the first stats that `seen` accepts.

        Raises:
            TimeoutError: there were none within `timeout_s` seconds of real time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: seen(self.stats()), timeout_s):
                raise TimeoutError(f"The model double did not get there within {timeout_s:g} s: {self.stats()}")
            return self.stats()

    def _forget(self) -> None:
        self.attempts: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._faulty = 0
        self._in_flight = 0
        self._most_in_flight = 0
        self._disconnects = 0

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30.0)

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model}", self._health)
        app.router.add_get("/v2/models/{model}/ready", self._health)
        app.router.add_get("/health", self._health)
        app.router.add_get("/control/stats", self._control_stats)
        app.router.add_post("/control/faults", self._control_faults)
        app.router.add_post("/control/reset", self._control_reset)
        app.router.add_post("/control/down", self._control_down)
        app.router.add_post("/{path:.*}", self._serve)
        self._site: web.SockSite | None = None
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await self._listen()

    async def _stop(self) -> None:
        await self._close()
        await self._runner.cleanup()

    async def _listen(self) -> None:
        if self._site is not None:
            return
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.host, self.port))
        self.port = sock.getsockname()[1]
        self._site = web.SockSite(self._runner, sock, backlog=4096, ssl_context=self._tls)
        await self._site.start()

    async def _close(self) -> None:
        if self._site is None:
            return
        await self._site.stop()
        self._site = None
        for connection in self._runner.server.connections if self._runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "double", "object": "model"}]})

    async def _control_stats(self, _: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self.stats()), content_type="application/json")

    async def _control_faults(self, request: web.Request) -> web.Response:
        try:
            self.faults = _faults.decode(await request.read())
        except msgspec.DecodeError as error:
            return _error(400, str(error))
        return web.json_response({"faults": len(self.faults)})

    async def _control_reset(self, _: web.Request) -> web.Response:
        self.reset()
        return web.json_response({})

    async def _control_down(self, request: web.Request) -> web.Response:
        try:
            seconds = float(request.query.get("for_s", "1"))
        except ValueError:
            return _error(400, "for_s is not a number")
        self._outage = asyncio.get_running_loop().create_task(self._go_down(seconds))
        return web.json_response({"down_for_s": seconds})

    async def _go_down(self, seconds: float) -> None:
        clock = SystemClock()
        await clock.sleep(0.05)  # lets the answer to the request that asked for this leave
        await self._close()
        await clock.sleep(seconds)
        await self._listen()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        """One answer, counted."""
        key = event_id_of(request.headers.get("Idempotency-Key", ""))
        self._count(key)
        try:
            return await self._answer(request, key)
        except (asyncio.CancelledError, ConnectionError):
            self._disconnects += 1
            raise
        finally:
            self._in_flight -= 1
            with self._changed:
                self._changed.notify_all()

    def _count(self, key: str) -> None:
        self.attempts[key] += 1
        self._in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self._in_flight)
        with self._changed:
            self._changed.notify_all()

    async def _answer(self, request: web.Request, key: str) -> web.StreamResponse:
        attempt = self.attempts[key]
        body = await request.read()
        if self._token is not None and request.headers.get("Authorization") != f"Bearer {self._token}":
            return _error(401, "Incorrect API key provided.")
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            good = good_answer(request.path, headers, body, self._reply)
        except NoSuchPathError:
            return _error(404, f"there is no {request.path}")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return _error(400, f"{type(error).__name__}: {error}")
        for fault in self.faults:
            if fault.fits(self.seed, key, attempt):
                self._faulty += 1
                await SystemClock().sleep(fault.after_ms / 1000.0)
                return await self._fail(request, fault, good)
        await SystemClock().sleep(latency_s(self.seed, key, self._latency_ms, self._sigma))
        self._answered[key] += 1
        if good.pieces:
            return await self._streamed(request, good, len(good.pieces))
        return web.Response(body=good.body, content_type=good.content_type, headers=good.headers)

    async def _streamed(self, request: web.Request, good: GoodAnswer, count: int) -> web.StreamResponse:
        """Send the first `count` pieces of a stream, and end it."""
        response = web.StreamResponse(headers={"Content-Type": good.content_type})
        await response.prepare(request)
        for piece in good.pieces[:count]:
            await response.write(piece)
            await SystemClock().sleep(self._piece_ms / 1000.0)
        await response.write_eof()
        return response

    async def _fail(self, request: web.Request, fault: Fault, good: GoodAnswer) -> web.StreamResponse:
        """Do what `fault` says, to a request whose answer would be `good`."""
        if fault.kind == "status":
            return _error(fault.status, fault.message, fault.headers())
        if fault.kind == "redirect":
            return web.Response(status=307, headers={"Location": f"{self.base_url}/models"})
        if fault.kind == "hang":
            await asyncio.get_running_loop().create_future()
        if fault.kind in ("drop", "garbage"):
            return _broken(request, b"\x00\xff garbage, not HTTP\r\n\r\n" if fault.kind == "garbage" else b"")
        if fault.kind in ("truncate", "slow"):
            return await _half(request, good, for_ever=fault.kind == "slow")
        if fault.kind == "cut":
            return await self._cut(request, good)
        body = {
            "not-json": good.body[: len(good.body) // 2],
            "not-utf8": good.body.replace(b"Reply", b"\xff\xfe") if b"Reply" in good.body else b'"\xff\xfe"',
            "no-choices": b'{"model": "double", "choices": []}',
            "error-object": msgspec.json.encode({"error": {"message": fault.message, "type": "server_error"}}),
        }[fault.kind]
        if good.pieces and fault.kind in ("no-choices", "error-object"):
            body = b"data: " + body + b"\n\n"
        return web.Response(body=body, content_type=good.content_type)

    async def _cut(self, request: web.Request, good: GoodAnswer) -> web.StreamResponse:
        if good.pieces:
            return await self._streamed(request, good, len(good.pieces) // 2)
        return web.Response(body=good.body[: len(good.body) // 2], content_type=good.content_type, headers=good.headers)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An answer in OpenAI's form of an error."""
    body = msgspec.json.encode({"error": {"message": message, "type": "error", "code": status}})
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")


def _broken(request: web.Request, last_words: bytes) -> web.StreamResponse:
    """Break the connection, with these raw bytes as the answer."""
    transport = request.transport
    if transport is not None:
        if last_words:
            transport.write(last_words)
            transport.close()
        else:
            transport.abort()
    return web.Response()


async def _half(request: web.Request, good: GoodAnswer, for_ever: bool) -> web.StreamResponse:
    """Send half of the answer, and then break the connection, or nothing more `for_ever`."""
    body = good.body
    length = {} if good.pieces else {"Content-Length": str(len(body))}
    response = web.StreamResponse(headers={"Content-Type": good.content_type, **good.headers, **length})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if for_ever:
        await asyncio.get_running_loop().create_future()
    if request.transport is not None:
        request.transport.close()
    return response


def _share(*parts: object) -> float:
    """A number in [0, 1) that depends on nothing but `parts`."""
    digest = blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def main(argv: list[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="model_double", description="A deterministic model server.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes any free one")
    parser.add_argument("--latency_ms", type=float, default=0.0, help="median of the log-normal latency, milliseconds")
    parser.add_argument("--sigma", type=float, default=0.0, help="shape of the log-normal latency")
    parser.add_argument("--seed", type=int, default=0, help="seed of latencies and faults")
    parser.add_argument("--faults", default="[]", help="JSON array of faults")
    given = parser.parse_args(argv)
    try:
        faults = _faults.decode(given.faults)
    except msgspec.DecodeError as error:
        parser.error(f"--faults: {error}")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    double = ModelDouble(given.port, given.latency_ms, given.sigma, given.seed, faults, host=given.host)
    with double:
        print(f"model double listening on {double.base_url}", flush=True)  # noqa: T201 - the one line it promises
        stop.wait()


if __name__ == "__main__":
    main()
