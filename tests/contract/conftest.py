"""The servers of the contract suite: a fake in virtual time, the double on a real socket, and a real one.

Each is a rig with the same methods (`Rig` in the test module). The real one is the embedded model in llama.cpp's server, or
what the environment names: ``FARCALL_LLM_URL``, ``/v1`` included, and perhaps ``FARCALL_LLM_MODEL``.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from runners.local.llm import serve
from tests.contract import redis_server
from transforms.errors import BrokenReply
from transforms.remote import loop
from transforms.remote.client import Call, Chat, Client, Message, Outcome
from transforms.remote.clock import Clock, SystemClock
from transforms.remote.fakes import FakeTransport, Scripted, Sent, VirtualClock, answered, dropped, hung, replied
from transforms.remote.model_double import Fault, ModelDouble, reply_text
from transforms.remote.settings import Endpoint, ModelSettings, RetryPolicy
from transforms.remote.transport import Transport

T = TypeVar("T")

LLM_URL = os.environ.get("FARCALL_LLM_URL", "")


class BaseRig:
    """A client and what it needs to ask; a subclass brings the server."""

    real = False
    clock: Clock
    client: Client

    def make(self, base_url: str, transport: Transport | None = None, **over: Any) -> None:
        """Make the client."""
        retry = RetryPolicy(max_attempts=4, base_s=0.001, cap_s=0.01, wait_for_server=False)
        settings = {"role": "answer", "endpoints": (Endpoint(base_url),), "model": "double", "retry": retry, **over}
        self.client = Client(ModelSettings(**settings), self.clock, transport)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` where the client lives."""
        return loop.run(work).result(timeout=60.0)

    def call(self, key: str, text: str, deadline_s: float) -> Call:
        """Return a call with one user message."""
        return Call(key, Chat((Message("user", text),)), self.clock.now_ms() + round(deadline_s * 1000))

    def ask(self, key: str = "a", text: str = "Where is my order?", deadline_s: float = 30.0) -> Outcome:
        """Ask one question."""
        return self.run(self.client.call(self.call(key, text, deadline_s)))

    def ask_all(self, keys: list[str]) -> list[Outcome]:
        """Ask many questions at once."""

        async def main() -> list[Outcome]:
            return await asyncio.gather(*(self.client.call(self.call(key, f"Question {key}", 30.0)) for key in keys))

        return self.run(main())

    def cancel(self, key: str) -> None:
        """Ask, and cancel the call once the server has seen it."""

        async def main() -> None:
            task = asyncio.create_task(self.client.call(self.call(key, "Hello?", 30.0)))
            while not self.attempts().get(key):
                await self.clock.sleep(0.001)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

        self.run(main())

    def attempts(self) -> dict[str, int]:
        """Return how many requests the server saw, by idempotency key."""
        raise NotImplementedError


class FakeRig(BaseRig):
    """The client over a FakeTransport that does what a double with the same faults would do."""

    def __init__(self, **over: Any) -> None:
        self.clock = self._virtual = VirtualClock(start_ms=SystemClock().now_ms())
        self._faults: tuple[Fault, ...] = ()
        self._transport = FakeTransport(self.clock, self._script)
        self.make("http://fake/v1", self._transport, **over)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._virtual.run(work)

    def set_faults(self, *faults: Fault) -> None:
        """Have these faults from now on."""
        self._faults = faults

    def attempts(self) -> dict[str, int]:
        return dict(Counter(sent.id for sent in self._transport.sent))

    def disconnects(self, number: int) -> int:
        """Return how many requests the client cut off."""
        return self._transport.cancelled

    def close(self) -> None:
        """Nothing is open."""

    def _script(self, sent: Sent) -> Scripted:
        text = reply_text(msgspec.json.decode(sent.body)["messages"][-1]["content"])
        good = replied(text, model="double")
        for fault in self._faults:
            if fault.fits(0, sent.id, sent.attempt):
                return _scripted(fault, good)
        return good


def _scripted(fault: Fault, good: Scripted) -> Scripted:
    """What a transport makes of `fault`, where the good answer would be `good`."""
    if fault.kind == "status":
        headers = {name.lower().replace("-", "_"): value for name, value in fault.headers().items()}
        return answered(fault.status, fault.message.encode(), **headers)
    return {
        "drop": dropped(),
        "truncate": dropped(),
        "hang": hung(),
        "slow": hung(),
        "garbage": Scripted(error=BrokenReply("It answered with something that is not HTTP.")),
        "redirect": answered(307, location="/elsewhere"),
        "not-json": answered(200, good.body[:-9]),
        "not-utf8": answered(200, good.body.replace(b"Reply", b"\xff\xfe")),
        "no-choices": answered(200, b'{"choices": []}'),
        "error-object": answered(200, b'{"error": {"message": "a fault of the double"}}'),
    }[fault.kind]


class DoubleRig(BaseRig):
    """The client over real sockets to the model double."""

    real = True

    def __init__(self, double: ModelDouble, **over: Any) -> None:
        self.clock = SystemClock()
        self.double = double
        self.make(double.base_url, **over)

    def set_faults(self, *faults: Fault) -> None:
        """Have these faults from now on."""
        self.double.set_faults(*faults)

    def attempts(self) -> dict[str, int]:
        return dict(self.double.attempts)

    def disconnects(self, number: int) -> int:
        """Return how many clients left too early, once they are `number`."""
        return self.double.wait_until(lambda stats: stats.disconnects >= number).disconnects

    def close(self) -> None:
        """Close the connections."""
        self.run(self.client.close())


class LlmRig(BaseRig):
    """The client over real sockets to a real model server."""

    real = True

    def __init__(self, base_url: str) -> None:
        self.clock = SystemClock()
        model = os.environ.get("FARCALL_LLM_MODEL", "default")
        self.make(base_url, model=model, params={"max_tokens": 8, "temperature": 0}, timeout_s=30.0)

    def close(self) -> None:
        """Close the connections."""
        self.run(self.client.close())


@pytest.fixture(scope="session")
def shared_double() -> Iterator[ModelDouble]:
    """One double for the whole session."""
    with ModelDouble() as double:
        yield double


@pytest.fixture(scope="session")
def llm() -> Iterator[str]:
    """The base URL of a real model server."""
    if LLM_URL:
        yield LLM_URL
        return
    with serve() as server:
        yield server.base_url


@pytest.fixture
def double(shared_double: ModelDouble) -> ModelDouble:
    """The double with its counts and faults forgotten."""
    shared_double.reset()
    return shared_double


@pytest.fixture(params=["fake", "double"])
def rig(request: pytest.FixtureRequest, double: ModelDouble) -> Iterator[FakeRig | DoubleRig]:
    """A client and a server that can be told to fail; attempts time out after 0.3 s."""
    made = FakeRig(timeout_s=0.3) if request.param == "fake" else DoubleRig(double, timeout_s=0.3)
    yield made
    made.close()


@pytest.fixture(params=["fake", "double", "llm"])
def healthy_rig(request: pytest.FixtureRequest, double: ModelDouble) -> Iterator[FakeRig | DoubleRig | LlmRig]:
    """A client and a server that works, a real one among them."""
    made = {
        "fake": FakeRig,
        "double": lambda: DoubleRig(double),
        "llm": lambda: LlmRig(request.getfixturevalue("llm")),
    }[request.param]()
    yield made
    made.close()


def _redis_program() -> str:
    program = redis_server.find_program()
    if program is None:
        pytest.skip(redis_server.ABSENT)
    return program


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis of our own."""
    with redis_server.running(_redis_program(), tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[redis_server.RedisServer]:
    """A Redis for one test, which it may stop and start."""
    with redis_server.running(_redis_program(), tmp_path) as server:
        yield server
