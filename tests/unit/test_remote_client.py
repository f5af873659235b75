"""The client in virtual time: what holds for every call, whatever the server does."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import random
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest

from transforms.errors import TimedOut
from transforms.remote import names
from transforms.remote.attempts import Attempts
from transforms.remote.auth import Auth
from transforms.remote.breaker import BreakerSettings
from transforms.remote.budget import Budget
from transforms.remote.client import Call, Chat, Client, Message, Outcome, Reply
from transforms.remote.concurrency import ConcurrencySettings
from transforms.remote.course import Course, Sending
from transforms.remote.fakes import (
    FakeTransport,
    Script,
    Scripted,
    Sent,
    VirtualClock,
    _VirtualLoop,
    answered,
    dropped,
    hung,
    replied,
    unreachable,
)
from transforms.remote.pool import PoolSettings
from transforms.remote.protocols import Request
from transforms.remote.quota import QuotaSettings
from transforms.remote.settings import Endpoint, ModelSettings, RetryPolicy
from transforms.remote.transport import Answer, NotConnected, broke_off

URL = "http://one/v1"
COUNTING = RetryPolicy(wait_for_server=False, budget=1.0)
NEVER_OPEN = PoolSettings(breaker=BreakerSettings(consecutive=10**9, failure_share=1.0, least_volume=10**9))


def settings_of(*urls: str, **over: Any) -> ModelSettings:
    endpoints = tuple(Endpoint(url) for url in urls or (URL,))
    return ModelSettings(**{"role": "answer", "endpoints": endpoints, "model": "m", **over})


class Bench:
    """A client over a scripted transport, both in virtual time."""

    def __init__(self, script: Script | None = None, settings: ModelSettings | None = None, seed: int = 0) -> None:
        self.clock = VirtualClock(seed)
        self.transport = FakeTransport(self.clock, script)
        self.client = Client(settings or settings_of(), self.clock, self.transport)

    def call(self, key: str = "a", deadline_s: float = 120.0, **over: Any) -> Call:
        deadline_ms = self.clock.now_ms() + round(deadline_s * 1000)
        params = over.pop("params", {})
        return Call(key, Chat((Message("user", "Where is my order?"),), params=params), deadline_ms, **over)

    def ask(self, **over: Any) -> Outcome:
        return self.clock.run(self.client.call(self.call(**over)))

    def ask_all(self, calls: list[Call]) -> list[Outcome]:
        async def main() -> list[Outcome]:
            return await asyncio.gather(*(self.client.call(call) for call in calls))

        return self.clock.run(main())


REFUSALS = (400, 401, 403, 404, 405, 413, 422)


class Chaos:
    """A server that does anything, the same for one seed, and remembers what it did.

    `windows` are the times (URL, begin, end in seconds) in which it asked to be left alone.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.windows: list[tuple[str, float, float]] = []
        self.did: dict[str, list[tuple[Sent, Scripted]]] = {}

    def __call__(self, sent: Sent) -> Scripted:
        chance = random.Random(f"{self.seed} {sent.id} {sent.attempt}")
        after_s = chance.choice([0.0, 0.01, 0.2, 1.0, 5.0])
        wait_s = chance.choice([0.0, 0.3, 1.0, 2.5, 20.0])
        scripts = [
            replied(sent.id, after_s),
            replied(sent.id, after_s),
            answered(500, b"oops", after_s),
            answered(429, b"", after_s, retry_after=str(wait_s)),
            answered(503, b"", after_s, retry_after_ms=str(wait_s * 1000)),
            answered(chance.choice(REFUSALS), b"no", after_s),
            answered(200, b'{"choices": [', after_s),
            answered(302, b"", after_s, location="http://elsewhere"),
            dropped(after_s),
            unreachable(after_s),
            hung(),
        ]
        scripted = chance.choices(scripts, weights=[chance.random() ** 2 for _ in scripts])[0]
        if scripted.status in (429, 503) and after_s < sent.timeout_s:
            self.windows.append((sent.url, sent.at_s + after_s, sent.at_s + after_s + wait_s))
        self.did.setdefault(sent.id, []).append((sent, scripted))
        return scripted

    def counted(self, key: str) -> int:
        """The attempts of `key` that found a server, or were cut off before it showed that there is none."""
        return sum(
            not (isinstance(scripted.error, NotConnected) and scripted.after_s < sent.timeout_s)
            for sent, scripted in self.did.get(key, [])
        )

    def throttled(self, key: str) -> int:
        """The attempts of `key` that were answered with a wish for fewer requests."""
        return sum(
            scripted.error is None and scripted.status in (429, 503) and scripted.after_s < sent.timeout_s
            for sent, scripted in self.did.get(key, [])
        )


def ends_a_call(sent: Sent, scripted: Scripted) -> bool:
    """Whether nothing may be sent after this answer: a reply, or a refusal."""
    arrives = scripted.error is None and scripted.after_s < sent.timeout_s
    return arrives and (scripted.status in (*REFUSALS, 302) or (scripted.status == 200 and len(scripted.body) > 20))


@pytest.mark.parametrize("seed", range(200))
def test_what_holds_whatever_the_server_does(seed: int) -> None:
    """One outcome a call, in time, counted right; no repeat after an end; the bound and every window kept."""
    chance = random.Random(seed)
    waits = chance.random() < 0.5
    policy = RetryPolicy(max_attempts=chance.choice([1, 2, 5]), base_s=0.2, cap_s=2.0, wait_for_server=waits)
    urls = [f"http://{number}/v1" for number in range(chance.choice([1, 1, 2, 3]))]
    pool = chance.choice([PoolSettings(), NEVER_OPEN])
    settings = settings_of(*urls, timeout_s=3.0, max_in_flight=chance.choice([1, 3, 50]), retry=policy, pool=pool)
    server = Chaos(seed)
    bench = Bench(server, settings, seed)
    deadlines_s = [chance.choice([0.0, 0.5, 3.0, 30.0]) for _ in range(30)]
    before = [chance.choice([0, 0, 2]) for _ in deadlines_s]
    calls = [
        bench.call(f"id-{number}", deadline_s, attempts=attempts)
        for number, (deadline_s, attempts) in enumerate(zip(deadlines_s, before, strict=True))
    ]
    outcomes = bench.ask_all(calls)

    assert [outcome.id for outcome in outcomes] == [call.id for call in calls]
    assert bench.transport.most_open <= settings.max_in_flight
    assert (bench.client.in_flight, bench.client.waiting, bench.transport.open) == (0, 0, 0)
    for call, outcome, deadline_s in zip(calls, outcomes, deadlines_s, strict=True):
        check_time(outcome, deadline_s, server)
        check_attempts(call, outcome, server, policy)
    for sent in bench.transport.sent:
        for url, begin_s, end_s in server.windows:
            assert sent.url != url or not begin_s < sent.at_s < end_s - 1e-6


def check_time(outcome: Outcome, deadline_s: float, server: Chaos) -> None:
    """No outcome and no request after the deadline, and no DeadlineExceeded before it."""
    assert outcome.total_ms <= deadline_s * 1000 + 100
    assert all(sent.at_s <= deadline_s for sent, _ in server.did.get(outcome.id, []))
    if outcome.error_type == "deadline":
        assert outcome.total_ms >= deadline_s * 1000 - 5


def check_attempts(call: Call, outcome: Outcome, server: Chaos, policy: RetryPolicy) -> None:
    """Each attempt that may have found a server is counted, none is made too many, and none after an end."""
    did = server.did.get(call.id, [])
    made = server.counted(call.id) if policy.wait_for_server else len(did)
    assert outcome.attempts == call.attempts + made
    if not policy.wait_for_server:
        assert outcome.attempts - server.throttled(outcome.id) <= max(policy.max_attempts, call.attempts + 1)
    assert not any(ends_a_call(sent, scripted) for sent, scripted in did[:-1])
    assert (outcome.reply is None) == (outcome.error_type is not None) == (outcome.error_message is not None)
    assert outcome.reply is None or outcome.reply.text == call.id


@pytest.mark.parametrize("seed", range(100))
def test_the_same_seed_gives_the_same_course(seed: int) -> None:
    """Time, chance and order are the clock's alone: two runs of one seed send the same requests at the same times."""

    def course() -> tuple[list[Outcome], list[Sent]]:
        bench = Bench(Chaos(seed), settings_of(timeout_s=3.0, max_in_flight=3), seed)
        return bench.ask_all([bench.call(str(number), 20.0) for number in range(15)]), bench.transport.sent

    assert course() == course()


def test_a_reply_is_the_outcome() -> None:
    """A good answer gives its reply, one attempt, the time it took, and where it came from."""
    outcome = Bench([replied("Hi.", after_s=0.25)]).ask()
    assert outcome.reply == Reply("Hi.", "stop", "fake", 1, 1)
    assert (outcome.attempts, outcome.error_type, outcome.endpoint) == (1, None, URL)
    assert outcome.model_ms == pytest.approx(250)
    assert outcome.total_ms == pytest.approx(250)


@pytest.mark.parametrize("status", [*REFUSALS, 301, 307])
def test_a_permanent_error_is_never_repeated(status: int) -> None:
    """After a refusal nothing more is sent, and the outcome says which status it was."""
    bench = Bench([answered(status, b"no such model"), replied()])
    outcome = bench.ask()
    assert (outcome.error_type, outcome.attempts, len(bench.transport.sent)) == ("refused", 1, 1)
    assert str(status) in str(outcome.error_message)
    assert "no such model" in str(outcome.error_message)


PASSING = {
    "server-error": answered(500),
    "throttled": answered(429),
    "unreachable": dropped(),
    "timeout": hung(),
    "broken-reply": answered(200, b"{}"),
}


@pytest.mark.parametrize("kind", PASSING)
def test_a_passing_error_is_repeated_until_it_has_passed(kind: str) -> None:
    """Two failures and a good answer make a reply of three attempts, all with the same idempotency key and body."""
    bench = Bench([PASSING[kind], PASSING[kind], replied("Hi.")])
    outcome = bench.ask(key="event-7")
    assert outcome.reply is not None
    assert outcome.attempts == 3
    assert {sent.id for sent in bench.transport.sent} == {"event-7"}
    assert len({sent.body for sent in bench.transport.sent}) == 1


@pytest.mark.parametrize("kind", [kind for kind in PASSING if kind != "throttled"])
def test_attempts_are_bounded(kind: str) -> None:
    """An error that does not pass ends the call after `max_attempts`, with its own kind, where it is not to wait for the server."""
    policy = RetryPolicy(max_attempts=4, wait_for_server=False)
    bench = Bench([PASSING[kind]], settings_of(timeout_s=1.0, retry=policy))
    outcome = bench.ask()
    assert (outcome.error_type, outcome.attempts, len(bench.transport.sent)) == (kind, 4, 4)


@pytest.mark.parametrize("kind", [kind for kind in PASSING if kind != "throttled"])
def test_an_event_that_fails_while_others_are_answered_is_bounded(kind: str) -> None:
    """The server answers others: then the fault is the event's own, and it ends after `max_attempts`."""

    def script(sent: Sent) -> Scripted:
        return PASSING[kind] if sent.id == "bad" else replied()

    bench = Bench(script, settings_of(timeout_s=1.0, retry=RetryPolicy(max_attempts=4)))

    async def main() -> Outcome:
        bad = asyncio.create_task(bench.client.call(bench.call("bad")))
        for number in range(1_000):
            await bench.client.call(bench.call(str(number)))
            await bench.clock.sleep(0.1)
        return await bad

    outcome = bench.clock.run(main())
    assert (outcome.error_type, outcome.attempts) == (kind, 4)


@pytest.mark.parametrize("kind", [kind for kind in PASSING if kind != "throttled"])
def test_a_lone_event_outlasts_an_outage(kind: str) -> None:
    """With nobody answered, an event waits for the server to recover, though its attempts are used up, and few are made."""

    def script(sent: Sent) -> Scripted:
        return PASSING[kind] if sent.at_s < 60.0 else replied()

    outcome = Bench(script, settings_of(timeout_s=1.0, retry=RetryPolicy(max_attempts=2))).ask()
    assert outcome.reply is not None
    assert outcome.attempts < 30


def test_a_short_deadline_outlasts_a_breaker() -> None:
    """Whatever an outage lasted, an event that comes after it is answered: a breaker opens for less than an event's time."""

    def script(sent: Sent) -> Scripted:
        return answered(500) if sent.at_s < 60.0 else replied()

    bench = Bench(script, settings_of(deadline_s=4.0, timeout_s=1.0))

    async def main() -> list[Outcome]:
        tasks = list[asyncio.Task[Outcome]]()
        for number in range(140):
            tasks.append(asyncio.create_task(bench.client.call(bench.call(str(number), deadline_s=4.0))))
            await bench.clock.sleep(0.5)
        return list(await asyncio.gather(*tasks))

    outcomes = bench.clock.run(main())
    assert {outcome.error_type for outcome in outcomes[:100]} == {"deadline"}
    assert all(outcome.reply is not None for outcome in outcomes[120:])


def test_an_event_that_always_fails_does_not_keep_the_breaker_open() -> None:
    """The probe of an endpoint whose breaker one bad event has opened is another event, where one waits."""

    def script(sent: Sent) -> Scripted:
        return answered(500) if sent.id == "bad" else replied()

    bench = Bench(script, settings_of(retry=RetryPolicy(max_attempts=20)))

    async def main() -> Outcome:
        bad = asyncio.create_task(bench.client.call(bench.call("bad")))
        while bench.client.pool.endpoints[0].breaker.state == "closed":
            await bench.clock.sleep(0.01)
        good = await asyncio.gather(*(bench.client.call(bench.call(str(number))) for number in range(5)))
        bad.cancel()
        return max(good, key=lambda outcome: outcome.total_ms)

    slowest = bench.clock.run(main())
    assert slowest.reply is not None
    assert slowest.total_ms < 2_000


def test_throttled_attempts_use_up_nothing() -> None:
    """A server that asks for fewer requests for a long time costs no event its answer: it waits, until its deadline."""

    def script(sent: Sent) -> Scripted:
        return answered(429) if sent.at_s < 60.0 else replied()

    settings = settings_of(retry=RetryPolicy(max_attempts=2))
    outcome = Bench(script, settings).ask()
    assert outcome.reply is not None
    assert outcome.attempts > 2
    late = Bench([answered(429)], settings).ask(deadline_s=30.0)
    assert late.error_type == "deadline"
    assert "throttled" in str(late.error_message)


def test_attempts_made_before_count() -> None:
    """Attempts of an earlier process use up the same allowance."""
    bench = Bench([answered(500)], settings_of(retry=COUNTING))
    assert bench.ask(attempts=3).attempts == 5
    assert len(bench.transport.sent) == 2


def test_a_call_with_its_attempts_used_up_gets_one_more() -> None:
    """A dead letter is no substitute for an answer that is possible: a lost call is made once more."""
    bench = Bench([replied()])
    outcome = bench.ask(attempts=9)
    assert outcome.reply is not None
    assert outcome.attempts == 10


def test_back_offs_are_bounded_by_the_formula() -> None:
    """The pause before retry n is below min(cap, base·2ⁿ), and not the same for all."""
    policy = RetryPolicy(max_attempts=10, base_s=0.2, cap_s=3.0, wait_for_server=False)
    pauses = list[list[float]]()
    for seed in range(30):
        # Without a breaker, which would make them longer.
        bench = Bench([answered(500)], settings_of(retry=policy, pool=NEVER_OPEN), seed)
        bench.ask()
        at_s = [sent.at_s for sent in bench.transport.sent]
        pauses.append([later - sooner for sooner, later in pairwise(at_s)])
    for retry, column in enumerate(zip(*pauses, strict=True)):
        assert max(column) <= min(3.0, 0.2 * 2**retry) + 1e-6
        assert max(column) > min(column)


@pytest.mark.parametrize("header", ["retry_after", "retry_after_ms", "x_ms_retry_after_ms"])
def test_retry_after_closes_the_endpoint_for_all(header: str) -> None:
    """Nothing is sent, by any call, while the server has asked to be left alone, and all are answered after it."""
    value = "4" if header == "retry_after" else "4000"

    def script(sent: Sent) -> Scripted:
        return answered(429, **{header: value}) if sent.at_s < 4.0 else replied()

    bench = Bench(script, settings_of(max_in_flight=1))
    outcomes = bench.ask_all([bench.call(str(number)) for number in range(20)])
    assert all(outcome.reply for outcome in outcomes)
    assert [sent.at_s < 4.0 for sent in bench.transport.sent] == [True] + [False] * 20


def test_a_closed_endpoint_leaves_the_others_open() -> None:
    """While one endpoint asks to be left alone, calls go to the other."""

    def script(sent: Sent) -> Scripted:
        return answered(503, retry_after="60") if "//one/" in sent.url else replied()

    bench = Bench(script, settings_of(URL, "http://two/v1"))
    outcomes = bench.ask_all([bench.call(str(number), 30.0) for number in range(10)])
    assert all(outcome.endpoint == "http://two/v1" for outcome in outcomes)
    assert all(outcome.reply and outcome.total_ms < 1000 for outcome in outcomes)


def test_a_repeat_goes_to_another_endpoint() -> None:
    """Attempts of one call alternate where there are two endpoints."""
    bench = Bench(
        [answered(500)], settings_of("http://a", "http://b", retry=RetryPolicy(max_attempts=4, wait_for_server=False))
    )
    bench.ask()
    urls = [sent.url[7] for sent in bench.transport.sent]
    assert urls in (["a", "b", "a", "b"], ["b", "a", "b", "a"])


def test_endpoints_share_the_calls_by_weight() -> None:
    """Equal endpoints get equal shares; one of twice the weight gets twice as much."""
    for weight, wanted in ((1.0, 0.5), (2.0, 2 / 3)):
        endpoints = (Endpoint("http://a"), Endpoint("http://b", weight=weight))
        settings = ModelSettings(role="answer", endpoints=endpoints, model="m", max_in_flight=30)
        bench = Bench([replied(after_s=0.2)], settings)
        bench.ask_all([bench.call(str(number)) for number in range(2_000)])
        share = sum(sent.url.startswith("http://b") for sent in bench.transport.sent) / 2_000
        assert share == pytest.approx(wanted, rel=0.1)


def outage(settings: ModelSettings) -> tuple[list[Outcome], float]:
    """200 events/s for 40 s; the server fails from second 5 to 25. The outcomes, and the requests per event."""
    count = 8_000

    def script(sent: Sent) -> Scripted:
        return answered(500, after_s=0.01) if 5.0 <= sent.at_s < 25.0 else replied(after_s=0.2)

    bench = Bench(script, settings)

    async def one(number: int) -> Outcome:
        await bench.clock.sleep(number / 200)
        return await bench.client.call(bench.call(str(number)))

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(one(number) for number in range(count)))

    outcomes = bench.clock.run(main())
    return outcomes, len(bench.transport.sent) / count


def test_an_outage_costs_few_attempts_and_no_event() -> None:
    """While a server fails, events wait: at most 1.1 requests per event in all, and every event is answered after it."""
    outcomes, requests = outage(settings_of(max_in_flight=200))
    assert all(outcome.reply is not None for outcome in outcomes)
    assert requests <= 1.1


def test_without_a_breaker_an_outage_is_a_storm() -> None:
    """The sibling: with retries alone the same outage costs more than that, and events."""
    outcomes, requests = outage(settings_of(max_in_flight=200, pool=NEVER_OPEN, retry=COUNTING))
    assert requests > 1.1
    assert not all(outcome.reply is not None for outcome in outcomes)


class BreaksOnce(FakeTransport):
    """A server whose replies take 30 s, and whose connections all break at second 70; it is well before and after."""

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Answer:
        at_s = self._note(url, body, headers, timeout_s).at_s
        if at_s < 70.0 < at_s + 30.0:
            await self._clock.sleep(70.0 - at_s)
            raise broke_off(url)
        await self._clock.sleep(30.0)
        return 200, {}, replied().body


def broken_once() -> list[Outcome]:
    """60 events a second for 80 s, of 120 s each, when 1 800 of them break at once."""
    bench = Bench()
    bench.transport = BreaksOnce(bench.clock)
    fixed = ConcurrencySettings(algorithm="fixed", initial=3_000, most=3_000)
    settings = settings_of(timeout_s=60.0, max_in_flight=4_000, concurrency=fixed)
    bench.client = Client(settings, bench.clock, bench.transport)

    async def one(number: int) -> Outcome:
        await bench.clock.sleep(number / 60)
        return await bench.client.call(bench.call(str(number)))

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(one(number) for number in range(4_800)))

    return bench.clock.run(main())


def test_what_breaks_all_at_once_is_answered_when_the_server_is_well() -> None:
    """Far more repeats at once than the budget has: none is held back until its deadline, since replies pay for them."""
    assert all(outcome.reply for outcome in broken_once())


def test_the_share_alone_gives_events_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sibling: where replies pay for nothing and nobody is spared, hundreds of the same events miss their deadline."""
    monkeypatch.setattr(Budget, "_paid", lambda self, now_s: 0)
    monkeypatch.setattr(Attempts, "_is_spared", lambda self, sending, failed_s: False)
    assert sum(outcome.reply is None for outcome in broken_once()) > 300


def brownout(seed: int) -> tuple[list[Outcome], float]:
    """60 events a second for 60 s, of 20 s each; of all attempts 40 % fail. The outcomes, and the requests per event."""

    def script(sent: Sent) -> Scripted:
        fails = random.Random(f"{seed} {sent.id} {sent.attempt}").random() < 0.4
        return answered(500, after_s=0.1) if fails else replied(after_s=0.2)

    fixed = ConcurrencySettings(algorithm="fixed", initial=200)
    bench = Bench(script, settings_of(deadline_s=20.0, timeout_s=5.0, pool=NEVER_OPEN, concurrency=fixed), seed)

    async def one(number: int) -> Outcome:
        await bench.clock.sleep(number / 60)
        return await bench.client.call(bench.call(str(number), 20.0))

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(one(number) for number in range(3_600)))

    return bench.clock.run(main()), len(bench.transport.sent) / 3_600


@pytest.mark.parametrize("seed", range(3))
def test_an_empty_budget_leaves_each_event_a_repeat(seed: int) -> None:
    """Where far more attempts fail than the budget pays for, each event that failed is repeated, for 1.6 requests an event at most."""
    outcomes, requests = brownout(seed)
    assert all(outcome.reply or outcome.attempts > 1 for outcome in outcomes)
    assert requests <= 1.6


def test_the_budget_alone_gives_events_up_after_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sibling: where nobody is spared, hundreds of events end in their wait for the budget without a repeat."""
    monkeypatch.setattr(Attempts, "_is_spared", lambda self, sending, failed_s: False)
    outcomes, _ = brownout(0)
    assert sum(outcome.reply is None and outcome.attempts == 1 for outcome in outcomes) > 300


def test_while_all_servers_fail_the_budget_holds_for_every_repeat() -> None:
    """Without a breaker, and nothing but errors for 60 s: repeats are a fifth of the first attempts, and what is saved up before."""
    bench = Bench([answered(500, after_s=0.05)], settings_of(deadline_s=20.0, timeout_s=5.0, pool=NEVER_OPEN))

    async def one(number: int) -> Outcome:
        await bench.clock.sleep(number / 60)
        return await bench.client.call(bench.call(str(number), 20.0))

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(one(number) for number in range(3_600)))

    assert not any(outcome.reply for outcome in bench.clock.run(main()))
    repeats = sum(sent.attempt > 1 for sent in bench.transport.sent)
    assert repeats <= 0.2 * 3_600 + 10 * 31


def test_a_round_that_does_not_count_uses_up_nothing() -> None:
    """Of a hedged round both requests are attempts; none is used up where the round does not count, and both where it does."""
    course = Course(Call("a", Chat(()), 0), 100.0, 0, 0.0)
    sending = Sending([course], Request("/", b"", {}, 1), {})
    for counts, spent in ((False, 0), (False, 0), (True, 2)):
        sending.on_attempt("http://one/v1", 1.0)
        sending.on_attempt("http://two/v1", 2.0)
        sending.on_failure(TimedOut("x"), counts=counts, happened=True)
        assert course.spent == spent
    assert course.attempts == 6


def test_a_hedge_does_not_move_the_begin_of_the_round_before() -> None:
    """`since_s` is when the round before began, however many requests this one has."""
    sending = Sending([Course(Call("a", Chat(()), 0), 100.0, 0, 0.0)], Request("/", b"", {}, 1), {})
    for begins_s, since_s in ((1.0, 1.0), (5.0, 1.0), (9.0, 5.0)):
        sending.on_attempt("http://one/v1", begins_s)
        sending.on_attempt("http://two/v1", begins_s + 1.0)
        assert sending.since_s == since_s
        sending.on_failure(TimedOut("x"), counts=False, happened=True)


def test_a_hedge_that_found_no_server_is_no_attempt() -> None:
    """Of a round whose two requests failed, the one that found no server is not counted, whichever ended last."""
    course = Course(Call("a", Chat(()), 0), 100.0, 0, 0.0)
    sending = Sending([course], Request("/", b"", {}, 1), {})
    sending.on_attempt("http://one/v1", 1.0)
    sending.on_attempt("http://two/v1", 2.0)
    sending.on_absent()
    sending.on_failure(TimedOut("x"), counts=True, happened=True)
    assert (course.attempts, course.spent) == (1, 1)


def test_a_bad_endpoint_is_left() -> None:
    """Of two endpoints one fails: within its first failures the traffic is on the other, and no event is lost."""

    def script(sent: Sent) -> Scripted:
        return answered(500, after_s=0.01) if sent.url.startswith("http://a") else replied(after_s=0.05)

    bench = Bench(script, settings_of("http://a", "http://b", max_in_flight=20))
    outcomes = bench.ask_all([bench.call(str(number)) for number in range(3_000)])
    assert all(outcome.reply is not None for outcome in outcomes)
    assert sum(sent.url.startswith("http://a") for sent in bench.transport.sent) <= 0.05 * 3_000


def test_a_time_out_cut_by_the_deadline_says_nothing_of_the_endpoint() -> None:
    """Events with little time left do not make a healthy endpoint look bad: its breaker stays closed."""
    bench = Bench([replied(after_s=5.0)], settings_of(timeout_s=30.0))
    outcomes = bench.ask_all([bench.call(str(number), deadline_s=1.0) for number in range(30)])
    assert {outcome.error_type for outcome in outcomes} == {"deadline"}
    assert bench.ask().reply is not None
    assert bench.clock.monotonic_s() == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize("timeout_s", [31.0, 29.0, 10.0])
def test_a_hung_endpoint_is_found_out_by_events_with_less_time_than_a_time_out(timeout_s: float) -> None:
    """Events of 30 s, of which one comes each half second, open the breaker of a server that hangs, whatever `timeout_s` is."""
    bench = Bench([hung()], settings_of(timeout_s=timeout_s, deadline_s=60.0))

    async def one(number: int) -> Outcome:
        await bench.clock.sleep(number / 2)
        return await bench.client.call(bench.call(str(number), 30.0))

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(one(number) for number in range(400)))

    assert {outcome.error_type for outcome in bench.clock.run(main())} == {"deadline"}
    assert sum(100.0 <= sent.at_s < 200.0 for sent in bench.transport.sent) <= 30


def test_a_permit_that_comes_too_late_is_no_attempt() -> None:
    """What has no time left when its permit comes is not sent, costs no quota and is not counted."""
    settings = settings_of(max_in_flight=1, quota=QuotaSettings(requests_per_min=6_000))
    bench = Bench([replied(after_s=1.0)], settings)
    deadlines_s = {"a": 10.0, "b": 1.0005, "c": 1.0, "d": 1.001}
    outcomes = bench.ask_all([bench.call(key, deadline_s) for key, deadline_s in deadlines_s.items()])
    assert [outcome.error_type for outcome in outcomes] == [None, "deadline", "deadline", "deadline"]
    bench.client.telemetry.refresh()
    counters = bench.client.telemetry.snapshot().counters
    assert sum(value for one, value in counters.items() if one.name == names.ATTEMPTS.name) == 1
    assert bench.client._quotas[URL].counts.settled[0] == len(bench.transport.sent) == 1


def test_connections_that_break_stay_within_the_quota() -> None:
    """Where 40 % of requests break off once sent, no minute holds more of them than the quota; what found no server is free."""

    def chance(sent: Sent) -> float:
        return random.Random(f"{sent.id} {sent.attempt}").random()

    def script(sent: Sent) -> Scripted:
        if chance(sent) < 0.1:
            return unreachable(0.05)
        return dropped(0.05) if chance(sent) < 0.5 else replied(after_s=0.05)

    quota = QuotaSettings(requests_per_min=600, learn=False)
    bench = Bench(script, settings_of(quota=quota, pool=NEVER_OPEN, deadline_s=600.0))

    async def one(number: int) -> Outcome:
        await bench.clock.sleep(number / 20)
        return await bench.client.call(bench.call(str(number), 600.0))

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(one(number) for number in range(1_200)))

    bench.clock.run(main())
    seen = [sent.at_s for sent in bench.transport.sent if chance(sent) >= 0.1]
    assert max(sum(at_s <= one < at_s + 60.0 for one in seen) for at_s in seen[::20]) <= 600
    absent = len(bench.transport.sent) - len(seen)
    assert bench.client._quotas[URL].counts.refunded[0] == absent > 50


WAITS: dict[str, list[Scripted]] = {
    "the wire": [hung()],
    "a window": [answered(429, retry_after="3600")],
    "back-offs": [answered(500)],
    "a server that is down": [unreachable()],
}


@pytest.mark.parametrize("wait", WAITS)
def test_the_deadline_covers_every_wait(wait: str) -> None:
    """Whatever a call waits for, its deadline ends it on time and names the last error."""
    policy = RetryPolicy(max_attempts=1000, base_s=1.0)
    bench = Bench(WAITS[wait], settings_of(retry=policy, deadline_s=60.0))
    outcome = bench.ask(deadline_s=7.0)
    assert outcome.error_type == "deadline"
    assert outcome.total_ms == pytest.approx(7000, abs=5)
    assert "the last error was" in str(outcome.error_message)


def test_the_deadline_covers_waiting_for_a_permit() -> None:
    """A call that finds all permits taken until its deadline ends on time, and was never sent."""
    bench = Bench([hung()], settings_of(max_in_flight=1))
    first, second = bench.ask_all([bench.call("a", 20.0), bench.call("b", 5.0)])
    assert (first.error_type, second.error_type) == ("deadline", "deadline")
    assert second.total_ms == pytest.approx(5000, abs=5)
    assert (second.attempts, second.endpoint) == (0, None)
    assert "permits" in str(second.error_message)


@pytest.mark.parametrize("deadline_s", [0.0, -5.0])
def test_after_the_deadline_nothing_is_sent(deadline_s: float) -> None:
    """A call whose deadline has passed already is not sent."""
    bench = Bench([replied()])
    outcome = bench.ask(deadline_s=deadline_s, attempts=2)
    assert (outcome.error_type, outcome.attempts, bench.transport.sent) == ("deadline", 2, [])


def test_an_attempt_has_its_own_timeout() -> None:
    """A hanging attempt is cut off after `timeout_s` and repeated."""
    bench = Bench([hung(), replied()], settings_of(timeout_s=2.0))
    outcome = bench.ask()
    assert outcome.reply is not None
    assert bench.transport.cancelled == 1
    assert 2000 <= outcome.total_ms <= 2200


def test_events_wait_for_a_server_that_comes_up() -> None:
    """Attempts that found no server are not counted: after 100 s of outage every event is still answered."""

    def script(sent: Sent) -> Scripted:
        return unreachable() if sent.at_s < 100.0 else replied()

    bench = Bench(script)
    outcomes = bench.ask_all([bench.call(str(number)) for number in range(50)])
    assert all(outcome.reply and outcome.attempts == 1 for outcome in outcomes)


def test_attempts_used_up_do_not_end_the_wait_for_a_server() -> None:
    """A call whose attempts were used up before still waits for a server that is down, for its last one."""

    def script(sent: Sent) -> Scripted:
        return unreachable() if sent.at_s < 50.0 else replied()

    outcome = Bench(script).ask(attempts=5)
    assert outcome.reply is not None
    assert outcome.attempts == 6


def test_not_waiting_for_a_server_counts_every_attempt() -> None:
    """With `wait_for_server` off, a server that is down ends a call after `max_attempts`."""
    bench = Bench([unreachable()], settings_of(retry=RetryPolicy(max_attempts=3, wait_for_server=False)))
    outcome = bench.ask()
    assert (outcome.error_type, outcome.attempts) == ("unreachable", 3)


def test_a_connection_that_broke_later_counts() -> None:
    """An attempt that may have reached the server is among the attempts; one that found none is not."""
    bench = Bench([unreachable(), dropped(), unreachable(), dropped(), replied()])
    outcome = bench.ask()
    assert (outcome.error_type, outcome.attempts, len(bench.transport.sent)) == (None, 3, 5)


def test_cancelling_gives_everything_back() -> None:
    """A cancelled call ends at once, wherever it is, cuts its request off and frees its permit."""

    async def main() -> None:
        tasks = [asyncio.create_task(bench.client.call(bench.call(str(number)))) for number in range(4)]
        await bench.clock.sleep(1.0)
        assert (bench.client.in_flight, bench.client.waiting) == (2, 2)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    bench = Bench([hung()], settings_of(max_in_flight=2))
    bench.clock.run(main())
    assert (bench.client.in_flight, bench.client.waiting, bench.transport.open) == (0, 0, 0)
    assert bench.clock.monotonic_s() == pytest.approx(1.0)


def test_requests_carry_id_trace_and_params() -> None:
    """Headers and body hold what the call says; its params go over those of the settings."""
    bench = Bench(settings=settings_of(params={"max_tokens": 5, "temperature": 0}))
    bench.ask(key="e-1", traceparent="00-aa-bb-01", params={"max_tokens": 9})
    (sent,) = bench.transport.sent
    assert sent.url == "http://one/v1/chat/completions"
    assert sent.id == "e-1"
    assert sent.headers["traceparent"] == "00-aa-bb-01"
    assert sent.headers["content-type"] == "application/json"
    body = json.loads(sent.body)
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 9, 0)


def test_ids_that_no_header_may_hold_are_encoded() -> None:
    """Line breaks, spaces and other scripts are percent-encoded, and no two ids give the same header."""
    ids = ["a b", "a\r\nX-Evil: 1", "é", "%C3%A9", "你好", " a b", "a%20b", "\ud800"]
    bench = Bench()
    for key in ids:
        assert bench.ask(key=key).id == key
    values = [sent.headers["idempotency-key"] for sent in bench.transport.sent]
    assert len(set(values)) == len(ids)
    assert all(value.isascii() and value.isprintable() and " " not in value for value in values)


def test_a_bad_traceparent_is_left_out() -> None:
    """A traceparent that could end a header is not sent."""
    bench = Bench()
    bench.ask(traceparent="00-a\r\nX-Evil: 1")
    assert "traceparent" not in bench.transport.sent[0].headers


def test_a_question_without_a_json_form_is_refused() -> None:
    """Half of a surrogate pair, or a param that is no JSON, ends the call before anything is sent."""
    bench = Bench()
    call = Call("a", Chat((Message("user", "\ud800"),)), bench.clock.now_ms() + 1000)
    (outcome,) = bench.ask_all([call])
    assert outcome.error_type == "refused"
    assert bench.ask(params={"x": object()}).error_type == "refused"
    assert bench.transport.sent == []


def test_a_defect_is_an_outcome_too() -> None:
    """An exception nobody foresaw ends its own call with an outcome, and frees its permit."""

    class Defective:
        async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Any:
            raise KeyError("unforeseen")

    bench = Bench()
    bench.client = Client(settings_of(), bench.clock, Defective())
    outcome = bench.ask()
    assert (outcome.error_type, outcome.attempts, bench.client.in_flight) == ("call", 1, 0)
    assert "unforeseen" in str(outcome.error_message)


def test_the_secret_is_sent_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret is in the header, and in no repr, outcome or error, also where the server repeats it."""
    monkeypatch.setenv("FARCALL_TEST_KEY", "hunter2")
    bench = Bench([answered(401, b"bad key hunter2")], settings_of(auth=Auth(env="FARCALL_TEST_KEY")))
    outcome = bench.ask()
    assert bench.transport.sent[0].headers["authorization"] == "Bearer hunter2"
    assert "bad key ***" in str(outcome.error_message)
    assert "hunter2" not in f"{outcome!r} {bench.client!r} {bench.client!s} {bench.client.settings!r}"


@pytest.mark.parametrize("status", [401, 200])
def test_a_secret_is_not_cut_in_half(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """Wherever a server's words are cut, no part of a secret among them is left."""
    monkeypatch.setenv("FARCALL_TEST_KEY", "hunter2" * 200)
    for length in (0, 190, 198, 940, 999):
        body = json.dumps({"error": {"message": "x" * length + "hunter2" * 200}}).encode()
        bench = Bench([answered(status, body)], settings_of(auth=Auth(env="FARCALL_TEST_KEY")))
        outcome = bench.ask()
        assert "hu" not in str(outcome.error_message)
        assert len(str(outcome.error_message)) <= 1000


def test_a_client_cannot_be_pickled() -> None:
    """Pickling a client, which holds a secret, fails with a sentence that says what to do."""
    with pytest.raises(TypeError, match="pickle its settings"):
        pickle.dumps(Bench().client)


def test_many_calls_leave_nothing_behind() -> None:
    """After thousands of calls through few permits, no task, future or call is left."""
    bench = Bench([replied(after_s=0.2)], settings_of(max_in_flight=64))
    outcomes = bench.ask_all([bench.call(str(number)) for number in range(3000)])
    assert sum(outcome.reply is not None for outcome in outcomes) == 3000
    assert bench.transport.most_open == 64
    del outcomes
    gc.collect()
    tasks = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.Task)]
    # Other tests of the process may have tasks of their own, on a real loop.
    assert not [task for task in tasks if isinstance(task.get_loop(), _VirtualLoop) and not task.done()]
