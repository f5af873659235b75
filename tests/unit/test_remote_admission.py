"""The door in virtual time: who goes first, who is passed over, what a permit costs, and a queue as old as the deadline."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from transforms.remote import admission, names
from transforms.remote.admission import Admission, Permit, TimeNeeded
from transforms.remote.client import Call, Chat, Client, Message, Outcome
from transforms.remote.client_metrics import ClientMetrics
from transforms.remote.concurrency import ConcurrencySettings, make_limit
from transforms.remote.course import Course
from transforms.remote.fakes import (
    FakeTransport,
    Script,
    Scripted,
    Sent,
    VirtualClock,
    answered,
    dropped,
    hung,
    replied,
    unreachable,
)
from transforms.remote.outliers import Kind
from transforms.remote.pool import Pool, PoolSettings
from transforms.remote.quota import Quota, QuotaSettings
from transforms.remote.settings import Endpoint, ModelSettings
from transforms.remote.simulated import Behaviour, SimulatedServer
from transforms.remote.telemetry import Telemetry

ONE, TWO = "http://one/v1", "http://two/v1"
FIXED = ConcurrencySettings(algorithm="fixed", initial=100)

# How long a reply takes


def learnt(took_s: float, replies: int = 100, timeout_s: float = 30.0) -> TimeNeeded:
    needed = TimeNeeded(timeout_s)
    for _ in range(replies):
        needed.on_reply(1.0, took_s)
    return needed


def test_before_replies_are_known_a_request_needs_its_time_out() -> None:
    """Below ten replies within the last minute `timeout_s` is needed; from ten on, the p99 and a tenth."""
    assert learnt(2.0, 9).at(1.0) == 30.0
    assert learnt(2.0, 10).at(1.0) == pytest.approx(2.2, rel=0.05)
    assert learnt(2.0).at(80.0) == 30.0


@pytest.mark.parametrize("seed", range(5))
def test_what_is_needed_is_enough_for_nearly_every_reply(seed: int) -> None:
    """Of replies of any spread, 98.5 % or more take no longer than what is needed."""
    chance = random.Random(seed)
    needed, times = TimeNeeded(1000.0), [chance.lognormvariate(0.0, 0.2 * seed) for _ in range(2_000)]
    for time_s in times:
        needed.on_reply(1.0, time_s)
    assert sum(time_s <= needed.at(1.0) for time_s in times) >= 0.985 * len(times)


def test_a_request_that_was_cut_off_in_spite_of_enough_time_raises_what_is_needed() -> None:
    """Cuts double it, up to `timeout_s`; one with less time than is needed teaches nothing, and is no time-out."""
    needed = learnt(2.0)
    assert not needed.on_cut(1.0, 1.0)
    assert needed.at(1.3) == pytest.approx(2.2, rel=0.05)
    for second in range(2, 30):
        assert needed.on_cut(second, needed.at(second))
    assert needed.at(30.0) == 30.0


def test_half_of_a_time_out_without_a_reply_is_a_time_out() -> None:
    """Before anything is known, a cut after half of `timeout_s` counts against the endpoint, and an earlier one does not."""
    assert TimeNeeded(30.0).on_cut(1.0, 15.0)
    assert not TimeNeeded(30.0).on_cut(1.0, 14.0)


# The order


class Door:
    """An Admission with `most` permits, in virtual time, and who was let through in which order."""

    def __init__(
        self, most: int = 1, needed_s: float = 10.0, quota: QuotaSettings | None = None, urls: int = 1
    ) -> None:
        self.clock = VirtualClock()
        endpoints = [Endpoint(url) for url in (ONE, TWO)[:urls]]
        self.pool = Pool(endpoints, PoolSettings())
        self.telemetry = Telemetry("answer")
        self.quotas = {one.url: Quota(quota or QuotaSettings()) for one in endpoints}
        self.door = Admission(
            self.clock,
            self.pool,
            most,
            {one.url: make_limit(FIXED) for one in endpoints},
            self.quotas,
            ClientMetrics(self.telemetry),
            needed_s,
        )
        self.through: list[int] = []

    async def wait(self, turn: int, left_s: float, hold_s: float = 1.0, **over: Any) -> None:
        """Wait for a permit with `left_s` of 100 s left, and keep it for a while."""
        try:
            permit = await self.door.acquire(turn, left_s, whole_s=100.0, **over)
        except TimeoutError:
            return
        self.through.append(turn)
        await self.clock.sleep(hold_s)
        self.door.end(permit, "cancelled")

    def all(self, *waits: tuple[int, float]) -> list[int]:
        """Let those who wait come behind one who has the only permit; the turns in which they were let through."""

        async def main() -> None:
            first = asyncio.create_task(self.wait(0, 100.0))
            await self.clock.sleep(0.1)
            await asyncio.gather(first, *(self.wait(turn, left_s) for turn, left_s in waits))

        self.clock.run(main())
        return self.through[1:]

    def attempts(self) -> dict[str, float]:
        self.telemetry.refresh()
        counters = self.telemetry.snapshot().counters
        return {one.values[-1]: value for one, value in counters.items() if one.name == names.ATTEMPTS.name}


def test_the_oldest_with_enough_time_goes_first() -> None:
    """By turn while all have enough, whatever their deadlines; those with too little come after, the one with most time first."""
    assert Door().all((3, 90.0), (1, 50.0), (2, 60.0)) == [1, 2, 3]
    assert Door().all((1, 5.0), (2, 60.0), (3, 8.0), (4, 50.0)) == [2, 4, 3, 1]


def test_nobody_is_dropped_before_its_deadline() -> None:
    """One with too little time is let through when nobody else waits, also with next to none, and else ends by its deadline."""
    assert Door().all((1, 1.0)) == [1]
    assert Door().all((1, 1.5), (2, 60.0)) == [2]


def test_who_had_too_little_time_has_enough_when_less_is_needed() -> None:
    """When replies turn out to be quick, those that were passed over are in the order again, the oldest first."""
    bench = Door()

    async def main() -> None:
        first = asyncio.create_task(bench.wait(0, 100.0))
        await bench.clock.sleep(0.1)
        others = [asyncio.create_task(bench.wait(turn, left_s)) for turn, left_s in ((1, 8.0), (2, 9.0), (3, 60.0))]
        await bench.clock.sleep(0.5)
        assert len(bench.door._late) == 2
        for _ in range(10):
            bench.door.needed.on_reply(bench.clock.monotonic_s(), 0.1)
        await asyncio.gather(first, *others)

    bench.clock.run(main())
    assert bench.through == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(60))
def test_whoever_is_let_through_is_the_right_one(seed: int) -> None:
    """Against a slow model of the order: the oldest of those with enough time, else the one with most; each is told once."""
    chance = random.Random(seed)
    bench, waiting, ends = Door(needed_s=4.0), dict[int, tuple[float, float]](), Counter[str]()

    def expected() -> int:
        now_s = bench.clock.monotonic_s()
        left = {turn: deadline_s - now_s for turn, (deadline_s, _) in waiting.items()}
        needed_s, is_known = bench.door.needed.at(now_s), bench.door.needed.is_known
        in_time = []
        for turn, (_, whole_s) in waiting.items():
            needs_s = needed_s if is_known and needed_s < whole_s else min(needed_s, whole_s / 2.0)
            in_time += [turn] if left[turn] >= needs_s else []
        return min(in_time) if in_time else max(left, key=lambda turn: (left[turn], -turn))

    async def one(turn: int) -> None:
        await bench.clock.sleep(chance.uniform(0.0, 40.0))
        left_s = chance.choice([0.7, 3.0, 9.0, 30.0]) * chance.uniform(0.9, 1.1)
        waiting[turn] = (bench.clock.monotonic_s() + left_s, chance.choice([left_s, 60.0]))
        try:
            permit = await bench.door.acquire(turn, left_s, whole_s=waiting[turn][1])
        except TimeoutError:
            del waiting[turn]
            ends["deadline"] += 1
            return
        assert turn == expected()
        del waiting[turn]
        ends["through"] += 1
        await bench.clock.sleep(chance.uniform(0.01, 0.8))
        if chance.random() < 0.3:
            bench.door.cut(permit)
        bench.door.end(permit, chance.choice(["ok", "cancelled"]))

    async def main() -> None:
        await asyncio.gather(*(one(turn) for turn in range(120)))

    bench.clock.run(main())
    assert ends.total() == 120
    assert min(ends["deadline"], ends["through"]) > 10
    assert (bench.door.waiting, bench.door.in_flight) == (0, 0)


def test_those_who_left_are_forgotten() -> None:
    """However long more comes than is let through, nobody is kept who waits no more."""
    bench, kept = Door(needed_s=10.0), list[int]()

    async def one(turn: int) -> None:
        await bench.clock.sleep(turn / 10)
        await bench.wait(turn, 20.0)
        kept.append(len(bench.door._queue) + len(bench.door._late) - 2 * bench.door.waiting)

    async def main() -> None:
        await asyncio.gather(*(one(turn) for turn in range(3_000)))

    bench.clock.run(main())
    assert max(kept) <= 70


def test_a_probe_goes_to_one_with_enough_time_that_failed_least() -> None:
    """Of those who wait for an endpoint whose breaker is half-open, enough time comes first, then few failures, then age."""
    bench = Door(most=10)

    async def main() -> None:
        for _ in range(5):
            bench.door.end(await bench.door.acquire(0, 100.0), "server-error")
        waits = ((1, 3.0, 0), (2, 60.0, 3), (3, 60.0, 1), (4, 60.0, 1))
        await asyncio.gather(*(bench.wait(turn, left_s, failures=failures) for turn, left_s, failures in waits))

    bench.clock.run(main())
    assert bench.through[:2] == [3, 4]


# What a permit costs


def spent(end: Callable[[Admission, Permit], None]) -> tuple[float, int, dict[str, float]]:
    """The requests and tokens that one permit, ended so, leaves charged, and the attempts that are counted."""
    bench = Door(quota=QuotaSettings(requests_per_min=60.0, tokens_per_min=6_000.0))

    async def main() -> None:
        end(bench.door, await bench.door.acquire(0, 1.0, tokens=10))

    bench.clock.run(main())
    counts = bench.quotas[ONE].counts
    assert (bench.door.in_flight, bench.pool.endpoints[0].outstanding, counts.outstanding) == (0, 0, (0, 0.0))
    return counts.settled[1], counts.settled[0], bench.attempts()


def test_a_permit_that_was_not_used_costs_nothing() -> None:
    """What is given back unsent is refunded and is no attempt."""
    assert spent(lambda door, permit: door.give_back(permit)) == (0.0, 0, {})


@pytest.mark.parametrize(("sent", "charged"), [(True, 1), (False, 0)])
def test_a_connection_that_broke_after_sending_is_charged(sent: bool, charged: int) -> None:
    """A server may have counted what broke off; what found no connection it has not seen. Both are attempts."""
    tokens, requests, attempts = spent(lambda door, permit: door.end(permit, "unreachable", sent=sent))
    assert (requests, tokens > 0.0, attempts) == (charged, bool(charged), {"unreachable": 1.0})


def test_by_default_what_is_given_back_was_sent() -> None:
    """Who does not say that nothing was sent is charged: a quota is rather spent below than beyond what it is."""
    assert spent(lambda door, permit: door.end(permit, "unreachable"))[1] == 1


def test_a_probe_that_was_not_sent_leaves_its_place_to_another() -> None:
    """A half-open breaker, of which two permits came back unused, lets two others through at once."""
    bench = Door(most=10)

    async def main() -> None:
        for _ in range(5):
            bench.door.end(await bench.door.acquire(0, 100.0), "server-error")
        for _ in range(2):
            unused = [await bench.door.acquire(0, 100.0) for _ in range(2)]
            began_s = bench.clock.monotonic_s()
            for permit in unused:
                bench.door.give_back(permit)
        assert bench.clock.monotonic_s() == began_s

    bench.clock.run(main())
    assert bench.pool.endpoints[0].breaker.state == "half-open"


@pytest.mark.parametrize("kind", ["throttled", "ok", "server-error", "cancelled"])
def test_a_wish_for_fewer_requests_is_told_whoever_had_it(kind: Kind) -> None:
    """`on_throttled` is called at once for each request that was throttled, and for no other."""
    bench, told = Door(), list[float]()
    bench.door.on_throttled = told.append

    async def main() -> None:
        permit = await bench.door.acquire(0, 1.0)
        await bench.clock.sleep(2.5)
        bench.door.end(permit, kind)

    bench.clock.run(main())
    assert told == pytest.approx([2.5] if kind == "throttled" else [])


# What is said of waiting


class Bench:
    """A client over a scripted transport, both in virtual time."""

    def __init__(self, script: Script | None, settings: ModelSettings, seed: int = 0) -> None:
        self.clock = VirtualClock(seed)
        self.transport = FakeTransport(self.clock, script)
        self.client = Client(settings, self.clock, self.transport)
        self.ended: list[tuple[float, Outcome]] = []

    async def ask(self, key: str, deadline_s: float, text: str = "x") -> Outcome:
        now_ms = self.clock.now_ms()
        outcome = await self.client.call(Call(key, Chat((Message("user", text),)), now_ms + round(deadline_s * 1000)))
        self.ended.append((self.clock.monotonic_s(), outcome))
        return outcome

    def load(self, rate: float, seconds: float, deadline_s: float) -> list[Outcome]:
        """Ask evenly for so long; the outcomes in the order of asking."""

        async def one(number: int) -> Outcome:
            await self.clock.sleep(number / rate)
            return await self.ask(str(number), deadline_s)

        async def main() -> list[Outcome]:
            return await asyncio.gather(*(one(number) for number in range(round(rate * seconds))))

        return self.clock.run(main())


def settings_of(*urls: str, **over: Any) -> ModelSettings:
    endpoints = tuple(Endpoint(url) for url in urls or (ONE,))
    return ModelSettings(**{"role": "answer", "endpoints": endpoints, "model": "m", **over})


def test_all_that_wait_for_a_quota_are_reported() -> None:
    """Of 20 events that wait for nothing but their quota, the last one counts too: the waits add up to those of the queue."""
    bench = Bench([replied(after_s=0.01)], settings_of(quota=QuotaSettings(requests_per_min=60)))
    bench.load(1 / 0.9, 18.0, 120.0)
    bench.client.telemetry.refresh()
    waits = {one.name: value for one, value in bench.client.telemetry.snapshot().histograms.items()}
    quota, queue = waits[names.QUOTA_WAIT.name], waits[names.QUEUE_WAIT.name]
    assert (quota.count, queue.count) == (19, 20)
    assert quota.sum == pytest.approx(queue.sum)


def test_waiting_for_a_permit_is_no_waiting_for_a_quota() -> None:
    """Where all permits are taken, nothing is reported of the quota."""
    bench = Bench([replied(after_s=1.0)], settings_of(max_in_flight=1, quota=QuotaSettings(requests_per_min=6_000)))
    bench.load(2.0, 10.0, 120.0)
    bench.client.telemetry.refresh()
    waits = {one.name: value.count for one, value in bench.client.telemetry.snapshot().histograms.items()}
    assert (waits.get(names.QUOTA_WAIT.name, 0), waits[names.QUEUE_WAIT.name]) == (0, 20)


def test_a_deadline_in_the_queue_names_what_was_waited_for() -> None:
    """One too large for its quota says so, also where one behind it is let through meanwhile, which waits no longer than it must."""

    def script(sent: Sent) -> Scripted:
        usage = {"prompt_tokens": 500 if sent.id == "first" else 1, "completion_tokens": 1}
        return replied(after_s=0.05, usage=usage)

    bench = Bench(script, settings_of(quota=QuotaSettings(tokens_per_min=1_000, burst_s=60)))

    async def main() -> list[Outcome]:
        await bench.ask("first", 120.0, "x" * 1_900)
        await bench.clock.sleep(1.0)
        big = asyncio.create_task(bench.ask("big", 2.0, "x" * 3_500))
        await bench.clock.sleep(0.5)
        return await asyncio.gather(big, bench.ask("small", 30.0, "y"))

    big, small = bench.clock.run(main())
    assert big.error_type == "deadline"
    assert "while the quota was used up" in str(big.error_message)
    assert small.reply is not None
    assert small.total_ms < 1_000


# A queue as old as the deadline

FAULTS = {"errors": answered(500, after_s=0.05), "hang": hung(), "refused": unreachable(0.01), "broken": dropped(0.05)}


def outlasted(fault: Scripted, urls: tuple[str, ...], seed: int = 0) -> tuple[list[Outcome], list[Outcome]]:
    """Five events a second for 150 s, of 30 s each; nothing answers from second 20 to 60. All outcomes, and those from 75 s on."""
    script = lambda sent: fault if 20.0 <= sent.at_s < 60.0 else replied(sent.id, after_s=2.0)  # noqa: E731
    bench = Bench(script, settings_of(*urls, timeout_s=30.0, deadline_s=30.0), seed)
    outcomes = bench.load(5.0, 150.0, 30.0)
    assert (bench.client.waiting, bench.client.in_flight, bench.transport.open) == (0, 0, 0)
    return outcomes, outcomes[75 * 5 :]


@pytest.mark.parametrize("urls", [(ONE,), (ONE, TWO)])
@pytest.mark.parametrize("fault", FAULTS)
def test_after_an_outage_longer_than_the_deadline_events_are_answered(fault: str, urls: tuple[str, ...]) -> None:
    """However the servers failed: each call has one outcome, and all events of 15 s after the end or later are answered."""
    outcomes, later = outlasted(FAULTS[fault], urls)
    assert [outcome.id for outcome in outcomes] == [str(number) for number in range(750)]
    assert all((outcome.reply is None) == (outcome.error_type is not None) for outcome in outcomes)
    assert all(outcome.reply and outcome.reply.text == outcome.id for outcome in later)


@pytest.mark.parametrize("fault", ["errors", "refused"])
def test_oldest_first_alone_never_recovers(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sibling: where nobody is passed over for want of time, the same outage never ends."""
    monkeypatch.setattr(admission.TimeNeeded, "at", lambda self, now_s: 0.0)
    _, later = outlasted(FAULTS[fault], (ONE,))
    assert not any(outcome.reply for outcome in later)


def goodput(ended: list[tuple[float, Outcome]], per_min: float) -> float:
    """The answers between 100 s and 240 s, as a share of the quota."""
    return sum(outcome.reply is not None for at_s, outcome in ended if 100.0 <= at_s < 240.0) / (140 / 60 * per_min)


def storm(urls: tuple[str, ...], spread: float, seed: int) -> float:
    """Twice the quota is offered for 240 s, eight times as long as the deadline. The answers, as a share of the quota."""
    chance = random.Random(seed)
    quota = QuotaSettings(requests_per_min=180.0 / len(urls), window_s=10.0)
    settings = settings_of(*urls, timeout_s=30.0, deadline_s=30.0, quota=quota)
    bench = Bench(lambda sent: replied(sent.id, after_s=chance.lognormvariate(0.0, spread)), settings, seed)
    outcomes = bench.load(6.0, 240.0, 30.0)
    assert len({outcome.id for outcome in outcomes}) == len(bench.ended) == 1_440
    assert {outcome.error_type for outcome in outcomes} == {None, "deadline"}
    assert (bench.client.waiting, bench.client.in_flight, bench.transport.open) == (0, 0, 0)
    return goodput(bench.ended, 180.0)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize("urls", [(ONE,), (ONE, TWO)])
def test_a_quota_is_used_however_long_more_is_asked(urls: tuple[str, ...], spread: float, seed: int) -> None:
    """At twice its rate, for longer than the deadline, 95 % of a quota or more become answers, and each call has one outcome."""
    assert storm(urls, spread, seed) >= 0.95


@pytest.mark.parametrize("took_s", [0.3, 0.6, 0.8])
def test_events_that_have_little_more_time_than_a_reply_takes_are_answered(took_s: float) -> None:
    """Where a reply takes more than half of what an event has in all, an overload that lasts is answered as far as it can be."""
    concurrency = ConcurrencySettings(algorithm="fixed", initial=10)
    settings = settings_of(timeout_s=1.0, deadline_s=1.0, max_in_flight=10, concurrency=concurrency)
    bench = Bench(lambda sent: replied(sent.id, after_s=took_s), settings)
    offered, capacity = 20.0 / took_s, 10.0 / took_s
    bench.load(offered, 60.0, 1.0)
    later = [outcome for at_s, outcome in bench.ended if 30.0 <= at_s < 60.0]
    assert sum(outcome.reply is not None for outcome in later) >= 0.8 * 30.0 * capacity


def test_oldest_first_alone_wastes_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sibling: where nobody is passed over for want of time, next to nothing is answered."""
    monkeypatch.setattr(admission.TimeNeeded, "at", lambda self, now_s: 0.0)
    assert storm((ONE,), 0.0, 0) < 0.05


@pytest.mark.parametrize("seed", range(2))
def test_a_quota_that_is_learnt_is_used_however_long_more_is_asked(seed: int) -> None:
    """The same where nothing is configured, and the server throttles."""
    clock = VirtualClock(seed)
    server = SimulatedServer(clock, {ONE: Behaviour(median_s=1.0, requests_per_min=180.0, quota_window_s=10.0)}, seed)
    bench = Bench(None, settings_of())
    bench.clock = clock
    bench.client = Client(settings_of(timeout_s=30.0, deadline_s=30.0), clock, server)
    outcomes = bench.load(6.0, 240.0, 30.0)
    assert len({outcome.id for outcome in outcomes}) == len(bench.ended) == 1_440
    assert goodput(bench.ended, 180.0) >= 0.95


# Repeats without the budget


def test_only_events_whose_time_runs_out_are_spared() -> None:
    """After an outage a reply lets those be repeated without the budget that have a quarter of their time left; the others wait."""
    bench = Bench([replied()], settings_of())
    clock, door, attempts = bench.clock, bench.client._admission, bench.client._attempts
    let_go: list[float] = []

    async def wait(now_s: float, number: int, left_s: float) -> None:
        call = Call(str(number), Chat((Message("user", "x"),)), clock.now_ms() + round(left_s * 1_000))
        course = Course(call, now_s + left_s, number, now_s + left_s - 120.0)
        await attempts._wait_for_budget(bench.client._exchange.prepare((course,)), now_s)
        let_go.append(left_s)

    async def main() -> None:
        now_s = clock.monotonic_s()
        for _ in range(200):
            attempts.budget.deposit(now_s)
            attempts.budget.on_result(now_s, ok=False)
        while attempts.budget.try_withdraw(now_s):
            pass
        tasks = [asyncio.create_task(wait(now_s, number, (50.0, 25.0)[number % 2])) for number in range(200)]
        await clock.sleep(1.0)
        assert let_go == []
        door.replied_s = clock.monotonic_s()
        await clock.sleep(1.0)
        assert let_go == [25.0] * 100
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    clock.run(main())
