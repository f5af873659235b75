"""Fakes that ship: a clock whose time costs nothing, and a transport that answers as a script says."""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from transforms.errors import CallError
from transforms.remote.clock import Clock
from transforms.remote.transport import Answer, NotConnected, Opened, broke_off, timed_out

T = TypeVar("T")

_STEP_S = 1e-9


class VirtualClock:
    """A clock whose time passes only while nothing can run, and then at once. Also the loop that such time needs.

    Everything that waits inside `run` waits in virtual time: `sleep`, and asyncio's own timers too. The same `seed`
    gives the same numbers, and the same program the same order of events. A program that waits for something that can
    never come fails with RuntimeError, instead of hanging.
    """

    def __init__(self, seed: int = 0, start_ms: int = 1_750_000_000_000) -> None:
        self._start_ms = start_ms
        self._elapsed_s = 0.0
        self._random = random.Random(seed)  # noqa: S311 - drives tests

    def now_ms(self) -> int:
        """Return the virtual wall clock's time in Unix milliseconds."""
        return self._start_ms + int(self._elapsed_s * 1000.0)

    def monotonic_s(self) -> float:
        """Return the virtual seconds since this clock was made."""
        return self._elapsed_s

    async def sleep(self, seconds: float) -> None:
        """Let `seconds` pass. Only inside `run`."""
        if not isinstance(asyncio.get_running_loop(), _VirtualLoop):
            raise RuntimeError("A VirtualClock sleeps only inside its own run().")  # noqa: TRY004 - no type is wrong
        await asyncio.sleep(seconds)

    def random(self) -> float:
        """Return the next number of the seed's series, in [0, 1)."""
        return self._random.random()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass without running anything, as if the process had been stopped for so long."""
        self._elapsed_s += seconds

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` to its end in virtual time and return its result. May be called again: time goes on."""
        with asyncio.Runner(loop_factory=lambda: _VirtualLoop(self)) as runner:
            return runner.run(main)


class _VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on the time of a VirtualClock."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        super().__init__(_JumpingSelector(clock))

    def time(self) -> float:
        return self._clock.monotonic_s()


class _JumpingSelector(selectors.SelectSelector):
    """A selector that, where it would wait, moves the clock instead."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError("Nothing is left that could happen: the program waits for ever.")
        self._clock.advance(max(timeout, _STEP_S))
        return []


class Sent(msgspec.Struct, frozen=True):
    """A request that reached a FakeTransport. `attempt` counts those of one idempotency key, from 1.

    `at_s` is the clock's monotonic time, `timeout_s` what the client allowed; headers have their names in lower case.
    """

    url: str
    body: bytes
    headers: Mapping[str, str]
    attempt: int
    at_s: float
    timeout_s: float

    @property
    def key(self) -> str:
        """The idempotency key, or an empty string."""
        return self.headers.get("idempotency-key", "")

    @property
    def id(self) -> str:
        """The event's id in the idempotency key: what stands before the last colon, behind which the model is named."""
        return self.key.rsplit(":", 1)[0]


class Scripted(msgspec.Struct, frozen=True):
    """What a FakeTransport does with one request: `after_s` seconds later it answers, or raises `error`."""

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""
    after_s: float = 0.0
    error: CallError | None = None


def replied(text: str = "Hello.", after_s: float = 0.0, **fields: Any) -> Scripted:
    """Return the script of a chat reply with this text; `fields` go into the body, over its own."""
    body: dict[str, Any] = {
        "model": "fake",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    return Scripted(body=msgspec.json.encode(body | fields), after_s=after_s)


def answered(status: int, body: bytes = b"", after_s: float = 0.0, **headers: str) -> Scripted:
    """Return the script of any HTTP answer; `headers` are written with underscores, such as ``retry_after="3"``."""
    return Scripted(status, {name.replace("_", "-"): value for name, value in headers.items()}, body, after_s)


def unreachable(after_s: float = 0.0) -> Scripted:
    """Return the script of a server that is not there: nothing is sent."""
    return Scripted(error=NotConnected("No connection could be made; is the server up?"), after_s=after_s)


def dropped(after_s: float = 0.0) -> Scripted:
    """Return the script of a connection that breaks after the request was sent."""
    return Scripted(error=broke_off("the server"), after_s=after_s)


def hung() -> Scripted:
    """Return the script of a server that never answers."""
    return Scripted(after_s=float("inf"))


Script = Callable[[Sent], Scripted] | Iterable[Scripted]
"""What to do with each request: a function of it, or one after the other, the last of which is repeated."""


class FakeTransport:
    """A transport that answers as its script says (without one: always the same reply), on the clock it is given.

    It keeps the promises of `Transport`.

    `sent` are the requests so far, `open` those under way, `most_open` the most there ever were at once, and
    `cancelled` how many were cut off, by a timeout or by cancelling.
    """

    def __init__(self, clock: Clock, script: Script | None = None) -> None:
        self._clock = clock
        script = script or (replied(),)
        self._script = script if callable(script) else _one_after_the_other(script)
        self._attempts: dict[str, int] = {}
        self.sent: list[Sent] = []
        self.open = 0
        self.most_open = 0
        self.cancelled = 0

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Do with the request what the script says; see `Transport.post`."""
        sent = self._note(url, body, headers, timeout_s)
        scripted = self._script(sent)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self._wait(scripted.after_s, url, timeout_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.open -= 1
        if scripted.error is not None:
            raise scripted.error
        return scripted.status, scripted.headers, scripted.body

    @contextlib.asynccontextmanager
    async def stream(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncIterator[Opened]:
        """Do with the request what the script says, the body in one piece; see `Transport.stream`."""
        status, answered_headers, answer = await self.post(url, body, headers, timeout_s)
        yield status, answered_headers, _in_pieces(answer)

    async def get(self, url: str, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Do with the request what the script says; its body is empty."""
        return await self.post(url, b"", headers, timeout_s)

    async def _wait(self, after_s: float, url: str, timeout_s: float) -> None:
        if after_s < timeout_s:
            await self._clock.sleep(after_s)
            return
        await self._clock.sleep(timeout_s)
        self.cancelled += 1
        raise timed_out(url, timeout_s)

    def _note(self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Sent:
        lower = {name.lower(): value for name, value in headers.items()}
        key = lower.get("idempotency-key", "")
        self._attempts[key] = self._attempts.get(key, 0) + 1
        sent = Sent(url, body, lower, self._attempts[key], self._clock.monotonic_s(), timeout_s)
        self.sent.append(sent)
        return sent


async def _in_pieces(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _one_after_the_other(script: Iterable[Scripted]) -> Callable[[Sent], Scripted]:
    """The script as a function: each once, and the last for ever."""
    rest = list(script)

    def next_one(_: Sent) -> Scripted:
        return rest.pop(0) if len(rest) > 1 else rest[0]

    return next_one
