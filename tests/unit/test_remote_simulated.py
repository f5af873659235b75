"""The simulated server: that it does what its behaviour says, so that what is measured on it means something."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from transforms.errors import CallError, SettingsError, TimedOut, Unreachable
from transforms.remote.fakes import VirtualClock
from transforms.remote.openai_chat import parse_reply
from transforms.remote.retry import parse_retry_after
from transforms.remote.simulated import Behaviour, Schedule, SimulatedServer, duration_text
from transforms.remote.transport import Answer, NotConnected

URL = "http://one/v1"
POST = URL + "/chat/completions"


class Bench:
    """A simulated server of one URL and its clock."""

    def __init__(self, behaviour: Behaviour | Schedule, seed: int = 0) -> None:
        self.clock = VirtualClock(seed)
        self.server = SimulatedServer(self.clock, {URL: behaviour}, seed)
        self.counts = self.server.counts(URL)

    async def post(self, key: str = "", timeout_s: float = 1000.0, body: bytes = b"x" * 40) -> Answer:
        return await self.server.post(POST, body, {"Idempotency-Key": key} if key else {}, timeout_s)

    async def timed(self, key: str = "") -> float:
        """How long one request took, in seconds."""
        began_s = self.clock.monotonic_s()
        await self.post(key)
        return self.clock.monotonic_s() - began_s

    def together(self, number: int) -> list[float]:
        """How long each of `number` requests sent at once took."""

        async def main() -> list[float]:
            return await asyncio.gather(*(self.timed() for _ in range(number)))

        return self.clock.run(main())

    def saturate(
        self, in_flight: int, until_s: float, after: Callable[[Answer], Awaitable[None]] | None = None
    ) -> None:
        """Keep `in_flight` requests in flight until `until_s`; `after` is awaited after each answer."""

        async def worker() -> None:
            while self.clock.monotonic_s() < until_s:
                try:
                    answer = await self.post(timeout_s=5.0)
                except CallError:
                    await self.clock.sleep(0.1)
                    continue
                if after:
                    await after(answer)

        async def main() -> None:
            await asyncio.gather(*(worker() for _ in range(in_flight)))

        self.clock.run(main())


def test_a_reply_is_valid_and_reports_its_usage() -> None:
    """The body is one that the client's own protocol module reads, with the id, and tokens as charged."""
    bench = Bench(Behaviour(short_tokens=7))
    status, _, body = bench.clock.run(bench.post("event-1"))
    reply = parse_reply(body)
    assert (status, reply.text, reply.prompt_tokens, reply.completion_tokens) == (200, "Reply to event-1.", 10, 7)


@pytest.mark.parametrize("seed", range(20))
def test_latency_is_log_normal(seed: int) -> None:
    """Median and sigma of the latencies are those asked for, within what chance allows."""
    bench = Bench(Behaviour(median_s=0.3, sigma=0.6), seed)
    logs = [math.log(taken_s) for taken_s in bench.together(1500)]
    assert statistics.fmean(logs) == pytest.approx(math.log(0.3), abs=0.08)
    assert statistics.stdev(logs) == pytest.approx(0.6, abs=0.06)


@pytest.mark.parametrize("discipline", ["sharing", "queue"])
@pytest.mark.parametrize("in_flight", [1, 4, 8, 16, 40])
def test_throughput_stops_growing_at_the_knee(discipline: Any, in_flight: int) -> None:
    """Below the knee latency stays; above it throughput stays, and latency is in proportion to what is in flight."""
    bench = Bench(Behaviour(median_s=0.1, knee=8, discipline=discipline))
    bench.saturate(in_flight, 40.0)
    seconds = bench.clock.monotonic_s()
    assert bench.counts.answered / seconds == pytest.approx(min(in_flight, 8) / 0.1, rel=0.02)
    assert bench.counts.average_in_flight(seconds) == pytest.approx(in_flight, rel=0.03)


def test_without_a_knee_throughput_grows_on() -> None:
    """The knee makes the bound: without it, forty in flight give forty times the throughput of one."""
    bench = Bench(Behaviour(median_s=0.1))
    bench.saturate(40, 40.0)
    assert bench.counts.answered / bench.clock.monotonic_s() == pytest.approx(400.0, rel=0.01)


def test_sharing_slows_all_and_a_queue_slows_the_last() -> None:
    """Of four requests at once on a knee of two, sharing ends all after twice the time, a queue two on time."""
    assert Bench(Behaviour(median_s=1.0, knee=2)).together(4) == pytest.approx([2.0] * 4)
    assert Bench(Behaviour(median_s=1.0, knee=2, discipline="queue")).together(4) == pytest.approx([1.0, 1.0, 2.0, 2.0])


@pytest.mark.parametrize("discipline", ["sharing", "queue"])
@pytest.mark.parametrize("seed", range(20))
def test_work_is_conserved_whatever_is_cancelled(discipline: Any, seed: int) -> None:
    """Random arrivals and cancelling leave nothing in flight, and every place on the server is free again."""
    chance = random.Random(seed)
    bench = Bench(Behaviour(median_s=0.5, sigma=0.5, knee=3, discipline=discipline), seed)

    async def main() -> None:
        async def one() -> None:
            await bench.clock.sleep(chance.random() * 10)
            await bench.post(timeout_s=chance.choice([0.2, 1.0, 100.0]))

        await asyncio.gather(*(one() for _ in range(60)), return_exceptions=True)

    bench.clock.run(main())
    counts = bench.counts
    assert (counts.sent, counts.in_flight, counts.answered + counts.cancelled) == (60, 0, 60)
    assert counts.cancelled > 0
    free = Bench(Behaviour(median_s=0.5, knee=3, discipline=discipline))
    free.server = bench.server
    free.clock = bench.clock
    assert sum(free.together(1)) < 10.0


@pytest.mark.parametrize("status", [429, 503])
def test_more_than_the_hard_limit_is_refused(status: Any) -> None:
    """Of ten at once on a limit of six, six are answered and four are told to come back."""
    bench = Bench(Behaviour(most_in_flight=6, overload_status=status, overload_retry_after_s=1.5))

    async def main() -> list[Answer]:
        return await asyncio.gather(*(bench.post() for _ in range(10)))

    answers = bench.clock.run(main())
    assert sorted(answer[0] for answer in answers) == [200] * 6 + [status] * 4
    refused = next(answer for answer in answers if answer[0] == status)
    assert parse_retry_after(refused[1], 0) == pytest.approx(1.5)
    assert (bench.counts.answered, bench.counts.throttled) == (6, 4)


@pytest.mark.parametrize("window", ["bucket", "sliding", "fixed"])
@pytest.mark.parametrize("seed", range(10))
def test_a_quota_holds_in_every_window(window: Any, seed: int) -> None:
    """Whatever is offered, no more is let in than the quota's rate and one window's worth, and nearly that much is."""
    chance = random.Random(seed)
    bench = Bench(Behaviour(median_s=0.0, requests_per_min=600, quota_window=window, quota_window_s=2.0), seed)

    async def pause(_: Answer) -> None:
        await bench.clock.sleep(chance.random() * 0.2)

    bench.saturate(5, 60.0, pause)
    assert 570 <= bench.counts.answered <= 640
    assert bench.counts.throttled > 200


@pytest.mark.parametrize("window", ["bucket", "sliding", "fixed"])
def test_a_client_that_waits_as_told_is_let_in(window: Any) -> None:
    """After ``Retry-After`` has passed the next request is let in, and none was inside the window."""
    bench = Bench(Behaviour(median_s=0.0, requests_per_min=60, quota_window=window, quota_window_s=5.0))
    statuses = list[int]()

    async def main() -> None:
        for _ in range(40):
            status, headers, _ = await bench.post()
            statuses.append(status)
            if status == 429:
                await bench.clock.sleep(parse_retry_after(headers, 0) or 0.0)

    bench.clock.run(main())
    assert all(later == 200 for sooner, later in pairwise(statuses) if sooner == 429)
    assert 429 in statuses
    assert bench.counts.inside_windows == 0


def test_a_client_that_does_not_wait_is_found_out() -> None:
    """The sibling: requests sent before ``Retry-After`` has passed are counted as inside the window."""
    bench = Bench(Behaviour(median_s=0.0, requests_per_min=60, quota_window_s=1.0))

    async def main() -> None:
        for _ in range(10):
            await bench.post()
            await bench.clock.sleep(0.2)

    bench.clock.run(main())
    assert bench.counts.inside_windows > 3


def test_tokens_are_charged_as_reported() -> None:
    """A quota of 100 tokens lets in the two replies of 40 that fit, and the headers say what is left."""
    bench = Bench(Behaviour(tokens_per_min=100, short_tokens=30, rate_headers=True, quota_window_s=60.0))

    async def main() -> list[Answer]:
        return [await bench.post() for _ in range(3)]

    first, second, third = bench.clock.run(main())
    assert [first[0], second[0], third[0]] == [200, 200, 429]
    assert first[1]["x-ratelimit-limit-tokens"] == "100"
    assert first[1]["x-ratelimit-remaining-tokens"] == "60"
    assert first[1]["x-ratelimit-reset-tokens"] == "24s"
    assert "x-ratelimit-limit-requests" not in first[1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ms"),
        (0.02, "20ms"),
        (1.0, "1s"),
        (1.5, "1.5s"),
        (360.0, "6m0s"),
        (3661.25, "1h1m1.25s"),
        (59.9996, "1m0s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    """The reset headers have the form that OpenAI sends."""
    assert duration_text(seconds) == text


def test_the_length_of_a_reply_belongs_to_its_id() -> None:
    """Lengths are bimodal, their share is as asked, each costs time by its tokens, and a repeat has the same one."""
    bench = Bench(Behaviour(median_s=0.1, s_per_token=0.01, short_tokens=10, long_tokens=200, long_share=0.3))

    async def main() -> tuple[list[float], list[float]]:
        first = await asyncio.gather(*(bench.timed(str(number)) for number in range(1000)))
        return first, await asyncio.gather(*(bench.timed(str(number)) for number in range(1000)))

    first, second = bench.clock.run(main())
    assert first == pytest.approx(second)
    assert {round(taken_s, 6) for taken_s in first} == {0.2, 2.1}
    assert statistics.fmean(taken_s > 1.0 for taken_s in first) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("seed", range(10))
def test_faults_come_as_often_as_asked(seed: int) -> None:
    """Silence, errors and garbage each befall their share of the requests, and are counted."""
    bench = Bench(Behaviour(silent_rate=0.1, error_rate=0.2, garbage_rate=0.3), seed)

    async def main() -> list[Any]:
        return await asyncio.gather(*(bench.post(timeout_s=3.0) for _ in range(1000)), return_exceptions=True)

    answers = bench.clock.run(main())
    counts = bench.counts
    assert counts.silent == counts.cancelled == sum(isinstance(answer, TimedOut) for answer in answers)
    assert counts.failed == sum(isinstance(answer, tuple) and answer[0] == 500 for answer in answers)
    shares = [counts.silent, counts.failed, counts.garbled, counts.answered]
    assert [share / 1000 for share in shares] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.06)


def test_an_outage_breaks_what_is_in_flight_and_refuses_what_comes() -> None:
    """A request under way at its begin breaks, one within it finds nobody, one after it is answered."""
    bench = Bench(Behaviour(median_s=1.0, outages=((5.0, 8.0),)))

    async def at(second: float) -> int:
        await bench.clock.sleep(second)
        return (await bench.post())[0]

    async def main() -> list[Any]:
        return await asyncio.gather(at(3.0), at(4.5), at(6.0), at(8.0), return_exceptions=True)

    before, broken, refused, after = bench.clock.run(main())
    assert (before, after) == (200, 200)
    assert type(broken) is Unreachable
    assert type(refused) is NotConnected
    assert (bench.counts.broken, bench.counts.unconnected, bench.counts.in_flight) == (1, 1, 0)


def test_behaviours_change_as_scheduled() -> None:
    """From its second on a behaviour holds, also the knee for what is already in service."""
    bench = Bench([(10.0, Behaviour(median_s=0.1, knee=1)), (0.0, Behaviour(median_s=0.1, knee=4))])
    bench.saturate(8, 10.0)
    before = bench.counts.answered
    bench.saturate(8, 20.0)
    assert before == pytest.approx(400, rel=0.05)
    assert bench.counts.answered - before == pytest.approx(100, rel=0.1)


def test_each_url_is_a_server_of_its_own() -> None:
    """Sites have their own behaviours and counts; a URL that is none finds nobody."""
    clock = VirtualClock()
    sites = {"http://fast": Behaviour(median_s=0.1), "http://slow": Behaviour(median_s=3.0, delay_s=0.1)}
    server = SimulatedServer(clock, sites)

    async def main() -> None:
        await server.post("http://fast/chat/completions", b"", {}, 10.0)
        assert clock.monotonic_s() == pytest.approx(0.1)
        await server.post("http://slow/chat/completions", b"", {}, 10.0)
        assert clock.monotonic_s() == pytest.approx(3.2)
        with pytest.raises(NotConnected):
            await server.post("http://none/chat/completions", b"", {}, 10.0)

    clock.run(main())
    assert (server.counts("http://fast").answered, server.counts("http://slow").answered) == (1, 1)
    with pytest.raises(KeyError):
        server.counts("http://none")


@pytest.mark.parametrize("seed", range(20))
def test_one_seed_gives_one_course(seed: int) -> None:
    """Two servers of one seed under the same load have the same counts, to the last float."""

    def course() -> tuple[int, int, int, float]:
        bench = Bench(Behaviour(sigma=0.8, jitter_s=0.1, knee=4, error_rate=0.1, silent_rate=0.01), seed)
        bench.saturate(10, 15.0)
        counts = bench.counts
        return counts.sent, counts.answered, counts.failed, counts.average_in_flight(bench.clock.monotonic_s())

    assert course() == course()


@pytest.mark.parametrize(
    "wrong",
    [
        {"error_rate": 1.5},
        {"error_rate": 0.7, "silent_rate": 0.7},
        {"median_s": -1.0},
        {"knee": 0},
        {"requests_per_min": 0.0},
    ],
)
def test_what_cannot_be_simulated_is_refused(wrong: dict[str, Any]) -> None:
    """A behaviour that contradicts itself is an error of settings, in a sentence."""
    with pytest.raises(SettingsError, match=r"\.$"):
        Behaviour(**wrong)
