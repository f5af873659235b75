"""Batching in virtual time: when a batch leaves, and that each item gets its own outcome whatever becomes of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from math import ceil, log2
from typing import Any

import pytest

from transforms.errors import (
    BrokenReply,
    CallError,
    DeadlineExceeded,
    Refused,
    ServerFailed,
    SettingsError,
    Throttled,
    TimedOut,
    Unreachable,
)
from transforms.remote.batcher import Batcher, BatchSettings, TokenEstimate, in_order, rough_tokens
from transforms.remote.fakes import VirtualClock

Answer = Callable[[list[int]], Sequence[Any]]


def echo(items: list[int]) -> list[str]:
    return [f"re {item}" for item in items]


class Server:
    """A server for batches in virtual time. `requests` are (moment, items); `answer` may raise."""

    def __init__(self, answer: Answer = echo, takes_s: float = 0.1, seed: int = 0, **settings: Any) -> None:
        self.clock = VirtualClock(seed)
        self.answer = answer
        self.takes_s = takes_s
        self.requests: list[tuple[float, list[int]]] = []
        self.open = 0
        self.most_open = 0
        self.cancelled = 0
        self.batcher: Batcher[int, Any] = Batcher(BatchSettings(**settings), self.send, self.clock)

    async def send(self, items: list[int]) -> Sequence[Any]:
        self.requests.append((self.clock.monotonic_s(), items))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self.clock.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.open -= 1
        return self.answer(items)

    async def submit_all(self, items: Sequence[int], **over: Any) -> list[Any]:
        return await asyncio.gather(*(self.batcher.submit(item, **over) for item in items), return_exceptions=True)

    def outcomes(self, items: Sequence[int], **over: Any) -> list[Any]:
        return self.clock.run(self.submit_all(items, **over))

    @property
    def sizes(self) -> list[int]:
        return [len(items) for _, items in self.requests]


def good(items: Sequence[int]) -> list[str]:
    return echo(list(items))


# When a batch leaves


def test_what_is_handed_in_together_goes_together() -> None:
    """Items of one turn of the loop travel in one request at once, in order, and each gets its own reply."""
    server = Server()
    assert server.outcomes(range(10)) == good(range(10))
    assert server.requests == [(0.0, list(range(10)))]


def test_a_batch_closes_by_count() -> None:
    """No request holds more than `max_items`, and none less where there are enough."""
    server = Server(max_items=4)
    assert server.outcomes(range(10)) == good(range(10))
    assert server.sizes == [4, 4, 2]
    assert server.batcher.sent == {"items": 2, "age": 1}


@pytest.mark.parametrize("seed", range(50))
def test_a_batch_closes_by_bytes_and_tokens(seed: int) -> None:
    """No request breaks a bound, except with one item that does so alone, and none could have held the next item."""
    chance = random.Random(seed)
    server = Server(max_items=1000, max_bytes=100, max_tokens=50)
    size = {item: chance.choice([1, 10, 60, 150]) for item in range(60)}
    tokens = {item: chance.choice([1, 10, 30, 70]) for item in range(60)}

    async def main() -> list[Any]:
        submit = server.batcher.submit
        return await asyncio.gather(*(submit(item, size_bytes=size[item], tokens=tokens[item]) for item in size))

    assert server.clock.run(main()) == good(range(60))
    assert [item for _, items in server.requests for item in items] == list(range(60))
    for (_, items), (_, after) in zip(server.requests, server.requests[1:], strict=False):
        assert len(items) == 1 or (sum(map(size.get, items)) <= 100 and sum(map(tokens.get, items)) <= 50)  # type: ignore[arg-type]
        full = sum(map(size.get, items)) >= 100  # type: ignore[arg-type]
        more = [*items, after[0]]
        assert full or sum(map(size.get, more)) > 100 or sum(map(tokens.get, more)) > 50  # type: ignore[arg-type]


async def arrive(server: Server, moments_s: Sequence[float], **over: Any) -> list[Any]:
    """Submit item n at the nth moment; the outcomes."""

    async def one(item: int, moment_s: float) -> Any:
        await server.clock.sleep(moment_s)
        return await server.batcher.submit(item, **over)

    tasks = [one(item, moment_s) for item, moment_s in enumerate(moments_s)]
    return await asyncio.gather(*tasks, return_exceptions=True)


def ages_s(server: Server, moments_s: Sequence[float]) -> list[float]:
    """How long each item waited before it was on its way."""
    return [sent_s - moments_s[item] for sent_s, items in server.requests for item in items]


@pytest.mark.parametrize("seed", range(100))
def test_no_item_waits_longer_than_the_age_bound(seed: int) -> None:
    """With room for requests, every item is on its way within `max_wait_ms`, at any rate."""
    chance = random.Random(seed)
    rate = chance.choice([1, 10, 100, 1000])
    moments_s = [chance.random() * 200 / rate for _ in range(200)]
    settings = {"max_items": chance.choice([2, 8, 64]), "idle_below": chance.choice([0, 1, 3])}
    server = Server(takes_s=chance.choice([0.001, 0.05, 1.0]), max_wait_ms=20, max_in_flight=1000, **settings)
    assert server.clock.run(arrive(server, moments_s)) == good(range(200))
    assert max(ages_s(server, moments_s)) <= 0.020 + 1e-6


def test_without_the_age_bound_an_item_waits_longer() -> None:
    """The sibling: with an age bound of a minute the second item waits until the first one's reply has come."""
    server = Server(takes_s=1.0, max_wait_ms=60_000)
    moments_s = [0.0, 0.1]
    server.clock.run(arrive(server, moments_s))
    assert max(ages_s(server, moments_s)) == pytest.approx(0.9, abs=1e-3)


def test_an_idle_batcher_sends_at_once_and_a_busy_one_fills() -> None:
    """The first item does not wait; those that come while it is on its way go together when it is back."""
    server = Server(takes_s=0.1, max_wait_ms=1000)
    server.clock.run(arrive(server, [0.0, 0.02, 0.04, 0.06]))
    assert [(round(moment_s, 3), items) for moment_s, items in server.requests] == [(0.0, [0]), (0.1, [1, 2, 3])]
    assert server.batcher.sent == {"idle": 2}


def test_without_the_rule_for_idle_every_item_waits() -> None:
    """The sibling: with `idle_below` 0 the first item waits for its age."""
    server = Server(takes_s=0.1, max_wait_ms=50, idle_below=0)
    server.clock.run(arrive(server, [0.0, 0.02, 0.04, 0.06]))
    assert [(round(moment_s, 3), items) for moment_s, items in server.requests] == [(0.05, [0, 1, 2]), (0.11, [3])]


def test_at_the_bound_on_requests_a_batch_goes_on_filling() -> None:
    """What has no room waits, and is one full request when there is room, not many small ones."""
    server = Server(takes_s=1.0, max_wait_ms=10, max_in_flight=2)
    moments_s = [0.05 * number for number in range(22)]
    server.clock.run(arrive(server, moments_s))
    assert server.most_open == 2
    assert server.sizes == [1, 1, 19, 1]


def test_the_bound_on_requests_may_move() -> None:
    """`limit` is asked anew whenever there is something to send."""
    server = Server(max_items=1)
    bound = 1
    server.batcher = Batcher(server.batcher.settings, server.send, server.clock, limit=lambda: bound)

    async def main() -> None:
        nonlocal bound
        task = asyncio.create_task(server.submit_all(range(9)))
        await server.clock.sleep(0.15)
        assert server.most_open == 1
        bound = 4
        await task

    server.clock.run(main())
    assert server.most_open == 4


def test_a_near_deadline_closes_the_batch_in_time() -> None:
    """A batch with a deadline in it leaves so early that a request as long as those before can still be answered."""
    server = Server(takes_s=0.2, max_wait_ms=10_000, idle_below=0, deadline_margin_ms=50)

    async def main() -> list[Any]:
        for item in range(20):
            await server.batcher.submit(item)
        began_s = server.clock.monotonic_s()
        patient = asyncio.create_task(server.batcher.submit(98))
        await server.clock.sleep(0.1)
        hurried = await server.batcher.submit(99, deadline_s=began_s + 1.0)
        return [hurried, await patient, server.clock.monotonic_s() - began_s]

    hurried, patient, took_s = server.clock.run(main())
    assert (hurried, patient) == ("re 99", "re 98")
    assert 0.9 < took_s < 1.0
    assert server.batcher.sent == {"age": 20, "deadline": 1}


def test_a_server_that_became_slow_is_learnt_from_what_was_cut_off() -> None:
    """Requests that are cancelled at their deadlines teach how long one takes, so that later ones leave in time."""
    server = Server(takes_s=0.01, max_wait_ms=10_000, idle_below=0)
    late = 0
    for item in range(40):
        server.takes_s = 0.01 if item < 20 else 0.2
        (outcome,) = server.outcomes([item], deadline_s=server.clock.monotonic_s() + 1.0)
        late += isinstance(outcome, DeadlineExceeded)
    assert late <= 3


def test_without_a_margin_the_same_item_is_late() -> None:
    """The sibling: with no margin, learnt or set, the batch leaves at the deadline itself, and is late."""
    server = Server(takes_s=0.2, max_wait_ms=10_000, idle_below=0, deadline_margin_ms=0)
    (outcome,) = server.outcomes([1], deadline_s=1.0)
    assert isinstance(outcome, DeadlineExceeded)


def two_rates(idle_below: int, rate: float) -> tuple[float, float]:
    """The median latency in ms and the items per request, on a server of 8 slots with 10 ms a request, 0.5 an item."""
    clock = VirtualClock()
    chance = random.Random(1)

    async def send(items: list[int]) -> list[int]:
        await clock.sleep(0.010 + 0.0005 * len(items))
        return items

    batcher: Batcher[int, int] = Batcher(BatchSettings(idle_below=idle_below), send, clock)
    took_s: list[float] = []

    async def one(item: int) -> None:
        began_s = clock.monotonic_s()
        await batcher.submit(item)
        took_s.append(clock.monotonic_s() - began_s)

    async def main() -> None:
        tasks = []
        for item in range(600):
            await clock.sleep(chance.expovariate(rate))
            tasks.append(asyncio.create_task(one(item)))
        await asyncio.gather(*tasks)

    clock.run(main())
    return sorted(took_s)[300] * 1000, batcher.items_sent / batcher.sent.total()


def test_sending_at_once_when_idle_costs_nothing_when_busy() -> None:
    """Against waiting always: less than half of the latency at 5 items/s, and at 1,000/s about the same fill."""
    (always_ms, _), (at_once_ms, _) = two_rates(0, 5), two_rates(1, 5)
    assert at_once_ms < always_ms / 2
    (always_ms, always_fill), (at_once_ms, at_once_fill) = two_rates(0, 1000), two_rates(1, 1000)
    assert at_once_ms <= always_ms
    assert at_once_fill > 0.8 * always_fill


# What becomes of the items


def poisoned(poison: set[int], error: Callable[[], Exception]) -> Answer:
    def answer(items: list[int]) -> list[str]:
        if poison.intersection(items):
            raise error()
        return echo(items)

    return answer


CONTENT = {
    "broken": lambda: BrokenReply("The answer is cut."),
    "refused 400": lambda: Refused("answered 400.", 400),
    "refused 413": lambda: Refused("answered 413.", 413),
    "refused 422": lambda: Refused("answered 422.", 422),
    "no wire form": lambda: Refused("has no JSON form.", 0),
    "defect": lambda: KeyError("index"),
}
WHOLE = {
    "refused 401": lambda: Refused("answered 401.", 401),
    "refused 404": lambda: Refused("answered 404.", 404),
    "throttled": lambda: Throttled("answered 429.", 3.0),
    "server error": lambda: ServerFailed("answered 500."),
    "unreachable": lambda: Unreachable("broke."),
    "timeout": lambda: TimedOut("no answer."),
    "deadline": lambda: DeadlineExceeded("passed."),
}


@pytest.mark.parametrize("error", CONTENT.values(), ids=CONTENT)
@pytest.mark.parametrize("place", [0, 1, 31, 32, 40, 63])
def test_one_poison_record_among_64_costs_12_extra_requests(error: Callable[[], Exception], place: int) -> None:
    """63 good replies, the poison's own error, and 12 requests besides the first, wherever it stands."""
    server = Server(poisoned({place}, error))
    outcomes = server.outcomes(range(64))
    assert type(outcomes.pop(place)) is type(error())
    assert outcomes == good([item for item in range(64) if item != place])
    assert len(server.requests) - 1 == 12


@pytest.mark.parametrize("seed", range(100))
def test_many_poison_records_harm_no_other(seed: int) -> None:
    """Any number of poison records, of any count: each fails alone, within the bounds on requests."""
    chance = random.Random(seed)
    count, poison = chance.randint(2, 100), set()
    poison = {item for item in range(count) if chance.random() < chance.choice([0.02, 0.2, 1.0])}
    server = Server(poisoned(poison, CONTENT["broken"]), max_items=100)
    outcomes = server.outcomes(range(count))
    assert {item for item in range(count) if outcomes[item] != f"re {item}"} == poison
    assert all(isinstance(outcomes[item], BrokenReply) for item in poison)
    assert len(server.requests) - 1 <= min(2 * len(poison) * ceil(log2(count)), 2 * count - 2)


@pytest.mark.parametrize("error", WHOLE.values(), ids=WHOLE)
def test_an_error_of_the_whole_request_is_not_bisected(error: Callable[[], Exception]) -> None:
    """Each item gets it as it is, after one request: it is the retry loop's business."""
    server = Server(poisoned({5}, error))
    outcomes = server.outcomes(range(64))
    assert {type(outcome) for outcome in outcomes} == {type(error())}
    assert len(server.requests) == 1


def test_without_bisection_one_poison_record_harms_the_others() -> None:
    """The sibling: where a server answers 500 to a bad record, 63 good items fail with it, unless asked otherwise."""
    answer = poisoned({5}, WHOLE["server error"])
    assert not any(isinstance(outcome, str) for outcome in Server(answer).outcomes(range(64)))
    bisecting = Server(answer, bisect_server_errors=True)
    assert sum(isinstance(outcome, str) for outcome in bisecting.outcomes(range(64))) == 63
    assert len(bisecting.requests) == 13


@pytest.mark.parametrize(
    "spoil", [lambda replies: replies[:-1], lambda replies: [*replies, "more"], lambda replies: []]
)
def test_a_short_or_long_reply_is_bisected(spoil: Callable[[list[str]], list[str]]) -> None:
    """A server that answers short or long while one record is there costs only that record."""
    server = Server(lambda items: spoil(echo(items)) if 7 in items else echo(items))
    outcomes = server.outcomes(range(64))
    assert isinstance(outcomes.pop(7), BrokenReply)
    assert outcomes == good([item for item in range(64) if item != 7])
    assert len(server.requests) == 13


def by_name(items: Sequence[int], replies: Sequence[str]) -> list[str]:
    """A protocol whose replies name their item."""
    named = {reply.removeprefix("re "): reply for reply in replies}
    if set(named) != set(map(str, items)):
        raise BrokenReply("The answer names other items.")
    return [named[str(item)] for item in items]


@pytest.mark.parametrize("seed", range(50))
def test_a_reordered_reply_harms_nobody(seed: int) -> None:
    """Where replies name their items, any order gives each item its own, and a doubled one costs only its batch."""
    chance = random.Random(seed)

    def answer(items: list[int]) -> list[str]:
        replies = echo(items)
        chance.shuffle(replies)
        return [replies[0], *replies[:-1]] if len(items) > 2 and chance.random() < 0.3 else replies

    server = Server(answer, max_items=chance.choice([2, 7, 64]))
    server.batcher = Batcher(server.batcher.settings, server.send, server.clock, by_name)
    assert server.outcomes(range(100)) == good(range(100))


def test_without_matching_a_reordered_reply_goes_to_the_wrong_items() -> None:
    """The sibling: by place alone, a reordered reply looks like a good one."""
    assert Server(lambda items: echo(items)[::-1]).outcomes(range(4)) == good([3, 2, 1, 0])


def test_a_match_that_loses_replies_is_caught() -> None:
    """The number of replies is checked behind `match` too."""
    server = Server()
    server.batcher = Batcher(server.batcher.settings, server.send, server.clock, lambda items, replies: replies[1:])
    assert all(isinstance(outcome, BrokenReply) for outcome in server.outcomes(range(4)))


@pytest.mark.parametrize("seed", range(150))
def test_each_item_has_exactly_one_outcome_whatever_happens(seed: int) -> None:
    """Under random errors, cancels and deadlines: own reply, an error, or the cancel that was asked for; in time."""
    chance = random.Random(seed)
    errors = [*CONTENT.values(), *WHOLE.values()]

    def answer(items: list[int]) -> list[str]:
        server.takes_s = chance.choice([0.0, 0.01, 0.3])
        luck = chance.random()
        if luck < 0.2:
            error = chance.choice(errors)()
            raise error
        return echo(items)[: len(items) - (luck < 0.3)]

    bound = chance.choice([1, 3, 100])
    server = Server(answer, 0.1, seed, max_items=chance.choice([1, 5, 64]), max_in_flight=bound, max_bytes=1000)
    ends: dict[int, list[str]] = {item: [] for item in range(80)}

    async def one(item: int) -> None:
        await server.clock.sleep(chance.random())
        deadline_s = server.clock.monotonic_s() + chance.choice([0.05, 0.5, 100.0])
        try:
            reply = await server.batcher.submit(item, deadline_s=deadline_s, size_bytes=chance.randrange(400))
            assert reply == f"re {item}"
            ends[item].append("reply")
        except asyncio.CancelledError:
            ends[item].append("cancelled")
            raise
        except (CallError, KeyError) as error:
            ends[item].append(type(error).__name__)
        assert server.clock.monotonic_s() <= deadline_s + 1e-6

    async def main() -> set[int]:
        tasks = [asyncio.create_task(one(item)) for item in ends]
        await server.clock.sleep(chance.random())
        victims = {item for item in ends if chance.random() < 0.3 and not tasks[item].done()}
        for item in victims:
            tasks[item].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.clock.sleep(1.0)
        return victims

    victims = server.clock.run(main())
    assert all(len(end) == 1 or (not end and item in victims) for item, end in ends.items())
    assert {item for item, end in ends.items() if end == ["cancelled"]} <= victims
    assert server.most_open <= bound
    assert (server.batcher.in_flight, server.batcher.waiting, server.open) == (0, 0, 0)


# Cancelling, deadlines, closing


def test_cancelling_one_harms_no_other() -> None:
    """Whether it waits or is on its way, a cancelled item leaves the others their replies."""
    server = Server(takes_s=1.0, max_wait_ms=100, idle_below=0)

    async def main(cancel_s: float) -> list[Any]:
        tasks = [asyncio.create_task(server.batcher.submit(item)) for item in range(4)]
        await server.clock.sleep(cancel_s)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    for cancel_s, sent in ((0.05, [0, 2, 3]), (0.5, [0, 1, 2, 3])):
        outcomes = server.clock.run(main(cancel_s))
        assert isinstance(outcomes.pop(1), asyncio.CancelledError)
        assert outcomes == good([0, 2, 3])
        assert server.requests.pop()[1] == sent


@pytest.mark.parametrize("cancel_s", [0.0, 0.05, 0.5])
def test_a_request_for_which_nobody_waits_is_cancelled(cancel_s: float) -> None:
    """When the last waiter of a batch leaves, it is not sent, or its request is cancelled; others go on."""
    server = Server(takes_s=1.0, max_items=2, max_wait_ms=100, idle_below=0)

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(server.batcher.submit(item)) for item in range(4)]
        await server.clock.sleep(cancel_s)
        for task in tasks[:2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = server.clock.run(main())
    assert [type(outcome) for outcome in outcomes[:2]] == [asyncio.CancelledError] * 2
    assert outcomes[2:] == good([2, 3])
    assert server.cancelled == (1 if server.requests[0][1] == [0, 1] else 0)
    assert (server.batcher.in_flight, server.batcher.waiting) == (0, 0)


def test_half_of_a_split_batch_is_cancelled_alone() -> None:
    """After a split, a half whose waiters have all left is cancelled, and the other answered."""
    server = Server(poisoned({9}, CONTENT["broken"]), takes_s=1.0)

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(server.batcher.submit(item)) for item in (9, 1, 2, 3)]
        await server.clock.sleep(1.5)
        for task in tasks[:2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert server.clock.run(main())[2:] == good([2, 3])
    assert (server.cancelled, len(server.requests)) == (1, 3)


def test_a_deadline_holds_while_others_wait_on() -> None:
    """An item whose deadline passes gets DeadlineExceeded then; the rest of its batch gets its replies."""
    server = Server(takes_s=1.0)

    async def main() -> tuple[list[Any], float]:
        patient = asyncio.create_task(server.batcher.submit(1))
        outcomes = await server.submit_all([2], deadline_s=0.5)
        return [*outcomes, await patient], server.clock.monotonic_s()

    (hurried, patient), _ = server.clock.run(main())
    assert isinstance(hurried, DeadlineExceeded)
    assert patient == "re 1"


def test_a_deadline_that_passed_sends_nothing() -> None:
    """An item that comes too late is refused at once."""
    server = Server()
    server.clock.advance(5.0)
    (outcome,) = server.outcomes([1], deadline_s=5.0)
    assert isinstance(outcome, DeadlineExceeded)
    assert not server.requests


def test_a_request_cancelled_from_outside_fails_its_items() -> None:
    """A `send` that ends in CancelledError is an error of its items, not a cancel of those who wait."""

    def answer(items: list[int]) -> list[str]:
        raise asyncio.CancelledError

    assert [type(outcome) for outcome in Server(answer).outcomes(range(3))] == [CallError] * 3


@pytest.mark.parametrize("close_s", [0.0, 0.5])
def test_closing_fails_what_waits_and_cancels_what_is_on_its_way(close_s: float) -> None:
    """After `close` every item has an outcome, no request is open, and nothing more is taken."""
    server = Server(takes_s=1.0, max_items=2, max_in_flight=1)

    async def main() -> list[Any]:
        task = asyncio.create_task(server.submit_all(range(5)))
        await server.clock.sleep(close_s)
        await server.batcher.close()
        return [*await task, *await server.submit_all([9])]

    assert [type(outcome) for outcome in server.clock.run(main())] == [CallError] * 6
    assert (server.open, server.batcher.in_flight, server.batcher.waiting) == (0, 0, 0)


# Tokens and settings


def test_token_estimates_follow_what_is_reported() -> None:
    """The ratio is that of the tokens, long items weighing more, and goes with a change within a few dozen reports."""
    estimate = TokenEstimate()
    assert estimate.corrected(10) == 10
    chance = random.Random(1)
    for ratio in (2.0, 0.5):
        for _ in range(50):
            estimated = chance.choice([1, 1000])
            estimate.correct(estimated, 5 if estimated == 1 else 1000 * ratio)
        assert estimate.ratio == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize(("estimated", "reported"), [(0, 5), (-1, 5), (5, None), (5, -1)])
def test_reports_that_say_nothing_change_nothing(estimated: float, reported: float | None) -> None:
    """No report, and numbers that cannot be, leave the ratio as it is."""
    estimate = TokenEstimate()
    estimate.correct(estimated, reported)
    assert estimate.ratio == 1.0


def test_the_ratio_is_bounded() -> None:
    """One absurd report cannot make batches of nothing or of everything."""
    estimate = TokenEstimate()
    estimate.correct(1, 1e9)
    assert estimate.ratio == 16.0
    estimate = TokenEstimate()
    estimate.correct(1e9, 0)
    assert estimate.ratio == 1 / 16


def test_batches_close_by_corrected_tokens() -> None:
    """Once servers report twice the tokens, a batch holds half of the items."""
    server = Server(max_tokens=100)
    server.outcomes(range(20), tokens=10)
    server.batcher.estimate.correct(100, 200)
    server.outcomes(range(20), tokens=10)
    assert server.sizes == [10, 10, 5, 5, 5, 5]


def test_rough_tokens_count_bytes() -> None:
    """One token for every four bytes that are begun, of text that may hold half a surrogate pair."""
    assert [rough_tokens(text) for text in ("", "a", "abcd", "abcde", "你好", "\ud800")] == [0, 1, 1, 2, 2, 1]


@pytest.mark.parametrize(
    "over",
    [
        {"max_items": 0},
        {"max_bytes": 0},
        {"max_tokens": 0},
        {"max_in_flight": 0},
        {"max_wait_ms": -1},
        {"max_wait_ms": float("inf")},
        {"deadline_margin_ms": float("nan")},
        {"idle_below": -1},
        {"idle_below": 9},
        {"idle_below": 0, "max_wait_ms": 0},
        {"max_items": 1, "bisect_server_errors": True},
    ],
)
def test_settings_that_cannot_be_are_refused(over: dict[str, Any]) -> None:
    """Values out of range, and contradictions, are a SettingsError with a sentence."""
    with pytest.raises(SettingsError) as caught:
        BatchSettings(**over)
    assert str(caught.value).endswith(".")


def test_in_order_compares_numbers() -> None:
    """By place alone, as many replies as items are taken, and no other number."""
    assert in_order([1, 2], ["a", "b"]) == ["a", "b"]
    with pytest.raises(BrokenReply, match="1 replies for 2 items"):
        in_order([1, 2], ["a"])
