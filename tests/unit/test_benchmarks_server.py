"""The benchmark's model server: the same latencies for all, its faults, and its HTTP on a real socket."""

from __future__ import annotations

import asyncio
from statistics import median

import aiohttp
import pytest

from benchmarks import contestants
from benchmarks.__main__ import _settings
from benchmarks.load import Schedule
from benchmarks.plan import faulty
from benchmarks.profile import Profile, Quota
from benchmarks.server import ModelServer
from transforms.errors import SettingsError
from transforms.remote.openai_chat import Message, parse_reply, request_body

KEYS = [f"q{number}" for number in range(4_000)]
AT_ONCE = Profile(median_s=0.0)


@pytest.mark.parametrize("seed", range(10))
def test_latencies_are_those_of_the_key(seed: int) -> None:
    """Two servers of one seed give a key the same latency, with the median asked for."""
    one, other = Profile(seed=seed), Profile(seed=seed)
    found = [one.latency_s(key) for key in KEYS]
    assert found == [other.latency_s(key) for key in KEYS]
    assert median(found) == pytest.approx(0.2, rel=0.05)


def test_another_seed_gives_other_latencies() -> None:
    """The sibling: it is the seed that makes them equal."""
    assert [Profile(seed=1).latency_s(key) for key in KEYS] != [Profile(seed=2).latency_s(key) for key in KEYS]


@pytest.mark.parametrize("share", [0.01, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_stragglers_are_their_share_and_leave_the_others_alone(share: float, seed: int) -> None:
    """About the share of the keys takes ten seconds, and every other takes what it took without."""
    with_them, without = Profile(seed=seed, straggler_share=share), Profile(seed=seed)
    slow = [key for key in KEYS if with_them.straggles(key)]
    assert len(slow) / len(KEYS) == pytest.approx(share, rel=0.5)
    assert {with_them.latency_s(key) for key in slow} == {10.0}
    assert all(with_them.latency_s(key) == without.latency_s(key) for key in KEYS if key not in set(slow))


@pytest.mark.parametrize("offered_per_s", [50.0, 100.0, 1_000.0])
def test_a_quota_gives_its_rate_and_one_second_at_once(offered_per_s: float) -> None:
    """Over ten seconds no more than ten seconds' and one second's tokens are given, and all of them under a higher load."""
    quota = Quota(100.0)
    given = sum(quota.take(number / offered_per_s) for number in range(round(offered_per_s * 10)))
    assert given == pytest.approx(min(offered_per_s * 10, 1_100), abs=2)


def test_no_quota_gives_everything() -> None:
    """The sibling: without a rate there always is a token."""
    quota = Quota(0.0)
    assert all(quota.take(0.0) for _ in range(10_000))


@pytest.mark.parametrize("name", ["median_s", "sigma", "quota_per_s", "outage_for_s"])
def test_a_profile_without_sense_is_refused(name: str) -> None:
    """A negative time or rate is named."""
    with pytest.raises(SettingsError, match=name):
        Profile(**{name: -1.0})


def test_a_share_of_one_or_more_is_refused() -> None:
    """Not every call can be a straggler."""
    with pytest.raises(SettingsError, match="straggler_share"):
        Profile(straggler_share=1.0)


async def post(session: aiohttp.ClientSession, server: ModelServer, key: str | None, text: str) -> tuple[int, bytes]:
    headers = {"Idempotency-Key": key} if key else {}
    body = request_body("bench", (Message("user", text),), {})
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    async with session.post(url, data=body, headers=headers) as answer:
        return answer.status, await answer.read()


async def asked(profile: Profile, *questions: tuple[str | None, str]) -> tuple[list[tuple[int, bytes]], ModelServer]:
    """The answers to questions that are asked at once, and the server."""
    server = ModelServer(profile)
    await server.listen()
    async with aiohttp.ClientSession() as session:
        answers = await asyncio.gather(*(post(session, server, key, text) for key, text in questions))
    server.hang_up()
    return answers, server


def test_it_answers_by_the_header_or_by_the_first_word() -> None:
    """A request is known by the event in its Idempotency-Key, else by the first word of its question; the reply names it."""
    questions = (("q1:answer-0123abcd", "x"), (None, "q2 Where is it?"), ("q3", "y" * 200_000))
    answers, server = asyncio.run(asked(AT_ONCE, *questions))
    assert [parse_reply(body).text for _, body in answers] == ["Reply to q1", "Reply to q2", "Reply to q3"]
    assert (server.stats.requests, server.stats.replies, server.stats.in_flight) == (3, 3, 0)


def test_it_refuses_over_its_quota_and_says_when_to_come_back() -> None:
    """Of five requests at once with a quota of two a second, three get 429."""
    answers, server = asyncio.run(asked(Profile(median_s=0.0, quota_per_s=2.0), *((f"q{n}", "x") for n in range(5))))
    assert sorted(status for status, _ in answers) == [200, 200, 429, 429, 429]
    assert server.stats.refused == 3


def test_what_is_no_chat_request_is_refused() -> None:
    """A body that is not JSON, or has no messages, gets 400, and another path 404; the server lives on."""

    async def tried() -> list[int]:
        server = ModelServer(AT_ONCE)
        await server.listen()
        base, found = f"http://127.0.0.1:{server.port}", []
        async with aiohttp.ClientSession() as session:
            for body in (b"not json", b'{"messages": []}'):
                async with session.post(f"{base}/v1/chat/completions", data=body) as answer:
                    found.append(answer.status)
            async with session.get(f"{base}/nothing") as answer:
                found.append(answer.status)
            async with session.get(f"{base}/stats") as answer:
                found.append(answer.status)
        server.hang_up()
        return found

    assert asyncio.run(tried()) == [400, 400, 404, 200]


def test_a_server_that_hangs_up_cuts_what_is_under_way() -> None:
    """An outage breaks the connections of running requests, and they are counted."""

    async def tried() -> int:
        server = ModelServer(Profile(median_s=60.0, sigma=0.0))
        await server.listen()
        async with aiohttp.ClientSession() as session:
            calls = [asyncio.ensure_future(post(session, server, f"q{n}", "x")) for n in range(3)]
            while server.stats.in_flight < 3:  # noqa: ASYNC110 - the server has no event to wait for
                await asyncio.sleep(0)
            server.hang_up()
            failed = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, aiohttp.ClientError) for each in failed)
        return server.stats.cut

    assert asyncio.run(tried()) == 3


def test_settings_are_read_by_contestant() -> None:
    """--set ours.tick_ms=10 goes to ours alone, as a number."""
    assert _settings(["ours.tick_ms=10", "java_async.capacity=5"]) == {
        "ours": {"tick_ms": 10},
        "java_async": {"capacity": 5},
    }


@pytest.mark.parametrize("wrong", ["tick_ms=10", "ours.tick_ms", "nobody.tick_ms=1"])
def test_settings_of_nobody_are_refused(wrong: str) -> None:
    """A setting without a known contestant, or without a value, is refused."""
    with pytest.raises(SettingsError):
        _settings([wrong])


def test_unknown_names_are_refused() -> None:
    """A contestant or a scenario that does not exist is named with those that do."""
    with pytest.raises(SettingsError, match="java_async"):
        contestants.named("nobody")
    with pytest.raises(SettingsError, match="stragglers"):
        faulty("nothing", Schedule(200.0, 1.0, 1.0))
