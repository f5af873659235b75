"""Access tokens in virtual time: one fetch for all, ahead of the end, and once more where a server refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from transforms.errors import CallError, TimedOut
from transforms.remote.authorized import AHEAD_MS, MARGIN_MS, AccessToken, AuthorizedTransport, TokenAuthorizer
from transforms.remote.fakes import FakeTransport, Scripted, Sent, VirtualClock, answered
from transforms.remote.transport import NotConnected

LIFE_MS = 3_600_000


class Bench:
    """A transport with tokens ``t1``, ``t2``, … over a scripted one, all in virtual time."""

    def __init__(self, script: Callable[[Sent], Scripted] | None = None, fetch_s: float = 1.0) -> None:
        self.clock = VirtualClock()
        self.fetches = 0
        self.fetch_s = fetch_s
        self.failure: CallError | None = None
        self.life_ms: int | None = LIFE_MS
        self.inner = FakeTransport(self.clock, script)
        self.authorizer = TokenAuthorizer(self.fetch, self.clock)
        self.transport = AuthorizedTransport(self.inner, self.authorizer, self.clock)

    async def fetch(self) -> AccessToken:
        self.fetches += 1
        number = self.fetches
        await self.clock.sleep(self.fetch_s)
        if self.failure is not None:
            raise self.failure
        return AccessToken(f"t{number}", None if self.life_ms is None else self.clock.now_ms() + self.life_ms)

    async def post(self, timeout_s: float = 30.0) -> Any:
        return await self.transport.post("http://m/x", b"", {"A": "b"}, timeout_s)

    def tokens(self) -> list[str]:
        return [sent.headers["authorization"].removeprefix("Bearer ") for sent in self.inner.sent]


def only(tokens: list[str]) -> Callable[[Sent], Scripted]:
    """A server that takes these tokens, as they are when it is asked, and no others."""

    def answer(sent: Sent) -> Scripted:
        value = sent.headers["authorization"]
        return answered(200) if value.removeprefix("Bearer ") in tokens else answered(401, b"no " + value.encode())

    return answer


def test_many_requests_share_one_fetch() -> None:
    """A hundred requests at once wait for one token, and keep their own headers."""
    bench = Bench()

    async def main() -> None:
        await asyncio.gather(*(bench.post() for _ in range(100)))
        await bench.post()

    bench.clock.run(main())
    assert bench.fetches == 1
    assert set(bench.tokens()) == {"t1"}
    assert bench.inner.sent[0].headers["a"] == "b"


def test_a_token_is_fetched_ahead_of_its_end() -> None:
    """Within the last minutes a new one is fetched while the old is still sent: no request waits."""
    bench = Bench(fetch_s=5.0)

    async def main() -> None:
        await bench.post()
        bench.clock.advance((LIFE_MS - AHEAD_MS) / 1000.0 + 1.0)
        began = bench.clock.monotonic_s()
        await asyncio.gather(*(bench.post() for _ in range(10)))
        assert bench.clock.monotonic_s() - began < 1.0
        await bench.clock.sleep(6.0)
        await bench.post()

    bench.clock.run(main())
    assert bench.tokens() == ["t1"] * 11 + ["t2"]
    assert bench.fetches == 2


def test_a_token_at_its_end_is_not_sent() -> None:
    """In its last seconds, and after a pause of the process, requests wait for the next one."""
    bench = Bench()

    async def main() -> None:
        await bench.post()
        bench.clock.advance((LIFE_MS - MARGIN_MS) / 1000.0)
        await bench.post()

    bench.clock.run(main())
    assert bench.tokens() == ["t1", "t2"]


def test_a_token_without_end_is_kept() -> None:
    """One that never ends is never fetched anew."""
    bench = Bench()
    bench.life_ms = None

    async def main() -> None:
        await bench.post()
        bench.clock.advance(1e9)
        await bench.post()

    bench.clock.run(main())
    assert bench.fetches == 1


def test_a_fetch_ahead_that_fails_hurts_nobody() -> None:
    """The old token is sent on, and the fetch tried again, but not with every request."""
    bench = Bench(fetch_s=0.0)

    async def main() -> None:
        await bench.post()
        bench.clock.advance((LIFE_MS - AHEAD_MS) / 1000.0 + 1.0)
        bench.failure = NotConnected("No.")
        for _ in range(100):
            await bench.post()
            await bench.clock.sleep(0.1)
        bench.failure = None
        await bench.clock.sleep(6.0)
        await bench.post()
        await bench.clock.sleep(0.1)
        await bench.post()

    bench.clock.run(main())
    assert bench.fetches in (4, 5)
    assert bench.tokens()[-1] == f"t{bench.fetches}"


def test_a_refused_token_is_fetched_anew_once_for_all() -> None:
    """Ten requests whose token was revoked meanwhile share one new one, and each is sent once more."""
    wanted = ["t1"]
    bench = Bench(only(wanted))

    async def main() -> None:
        assert (await bench.post())[0] == 200
        wanted[:] = ["t2"]
        assert {(await answer)[0] for answer in [asyncio.ensure_future(bench.post()) for _ in range(10)]} == {200}

    bench.clock.run(main())
    assert bench.fetches == 2
    assert bench.tokens() == ["t1"] * 11 + ["t2"] * 10


def test_a_server_that_takes_no_token_is_not_fed_with_them() -> None:
    """Where a new token did not help, 401 is the answer, without the token in it, until a token was taken again."""
    bench = Bench(only([]))

    async def main() -> None:
        for _ in range(5):
            status, _, body = await bench.post()
            assert (status, body) == (401, b"no Bearer ***")

    bench.clock.run(main())
    assert bench.fetches == 2
    assert bench.tokens() == ["t1", "t2", "t2", "t2", "t2", "t2"]


def test_the_time_for_a_token_is_part_of_the_attempt() -> None:
    """A fetch that hangs ends the attempt in time; a cancelled request does not end the fetch of the others."""
    bench = Bench(fetch_s=20.0)

    async def main() -> None:
        patient = asyncio.create_task(bench.post(30.0))
        with pytest.raises(TimedOut):
            await bench.post(5.0)
        assert bench.clock.monotonic_s() == pytest.approx(5.0)
        assert (await patient)[0] == 200

    bench.clock.run(main())
    assert bench.fetches == 1
    assert bench.inner.sent[0].timeout_s == pytest.approx(10.0)


def test_a_failed_fetch_is_the_failure_of_all_who_wait_and_of_no_other() -> None:
    """Each gets the reason; the next request fetches again."""
    bench = Bench()
    bench.failure = NotConnected("No token server.")

    async def main() -> None:
        results = await asyncio.gather(*(bench.post() for _ in range(3)), return_exceptions=True)
        assert [str(result) for result in results] == ["No token server."] * 3
        bench.failure = None
        assert (await bench.post())[0] == 200

    bench.clock.run(main())
    assert bench.fetches == 2
    assert len(bench.inner.sent) == 1


def test_a_stream_and_a_probe_carry_tokens_too() -> None:
    """A stream is opened once more with a new token; what is refused then comes as it is."""
    wanted = ["t2"]
    bench = Bench(only(wanted))

    async def opened() -> tuple[int, bytes]:
        async with bench.transport.stream("http://m/x", b"", {}, 30.0) as (status, _, pieces):
            return status, b"".join([piece async for piece in pieces])

    async def main() -> None:
        assert (await opened())[0] == 200
        wanted[:] = []
        assert (await opened())[0] == 401
        assert await opened() == (401, b"no Bearer ***")
        wanted[:] = ["t3"]
        assert (await bench.transport.get("http://m/ready", {}, 30.0))[0] == 200

    bench.clock.run(main())
    assert bench.fetches == 3


def test_closing_ends_a_fetch() -> None:
    """Nothing is left behind."""
    bench = Bench(fetch_s=1000.0)

    async def main() -> None:
        with pytest.raises(TimedOut):
            await bench.post(1.0)
        await bench.authorizer.close()
        assert len(asyncio.all_tasks()) == 1

    bench.clock.run(main())
