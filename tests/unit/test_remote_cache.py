"""The response cache in virtual time: what is kept, for how long, and who shares a call."""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from transforms.errors import BrokenReply, CallError, DeadlineExceeded, Refused, SettingsError
from transforms.remote import cache_redis
from transforms.remote.auth import Auth
from transforms.remote.cache import (
    Answered,
    CachedCalls,
    CacheSettings,
    MemoryCache,
    SingleFlight,
    cacheable,
    content_key,
    open_cache,
)
from transforms.remote.cache_redis import RedisCache
from transforms.remote.client import Call, Chat, Client, Outcome
from transforms.remote.clock import Clock
from transforms.remote.fakes import FakeTransport, Script, Scripted, Sent, VirtualClock, answered, replied
from transforms.remote.openai_chat import Message, Reply
from transforms.remote.questions import Question, Tensor, Tensors, Text, Value
from transforms.remote.settings import Endpoint, ModelSettings, RetryPolicy

ASKED = ("openai-chat", "m", [{"role": "user", "content": "Hi"}], {"temperature": 0, "max_tokens": 5})

# Keys


def test_equal_requests_have_equal_keys() -> None:
    """The order of keys makes no difference, nor whether a message is a record or a mapping; the key has 32 bytes."""
    key = content_key(*ASKED)
    assert len(key) == 32
    assert content_key("openai-chat", "m", (Message("user", "Hi"),), {"max_tokens": 5, "temperature": 0}) == key


def test_different_requests_have_different_keys() -> None:
    """Whatever part differs, the key does; nothing moves from one part into the next."""
    others = [
        ("openai-stream", *ASKED[1:]),
        ("openai-chat", "m2", *ASKED[2:]),
        (*ASKED[:2], [{"role": "user", "content": "Hi "}], ASKED[3]),
        (*ASKED[:2], [{"role": "system", "content": "Hi"}], ASKED[3]),
        (*ASKED[:2], [], ASKED[3]),
        (*ASKED[:3], {}),
        (*ASKED[:3], {"temperature": 0, "max_tokens": 6}),
        ("openai-cha", "tm", *ASKED[2:]),
        (*ASKED[:2], msgspec.json.encode(ASKED[2]), ASKED[3]),
        (*ASKED[:2], [["1", "2"]], {}),
        (*ASKED[:2], ["1", "2"], {}),
        (*ASKED[:2], [1, 2], {}),
        (*ASKED, {"path": "/tone"}),
        (*ASKED, {"path": "/language"}),
    ]
    assert len({content_key(*ASKED), *(content_key(*other) for other in others)}) == len(others) + 1


def test_no_two_values_of_a_tensor_have_the_same_key() -> None:
    """Numbers that JSON has no word for, and bytes beside the text that stands for them there, are told apart."""
    values = [math.nan, math.inf, -math.inf, 0.0, None, b"hi", "aGk=", "hi", "NaN", "null"]
    keys = {content_key("open-inference", "m", Tensors((Tensor("x", "FP32", (1,), [one]),)), {}) for one in values}
    assert len(keys) == len(values)


def test_the_key_stays_the_same_from_process_to_process() -> None:
    """The key is a function of the request alone: a Redis outlives the process that wrote into it."""
    assert content_key("p", "m", ["x"], {}).hex() == "6e36679f485755c5cf5cc445fc10383dfffc13e5f67c88986f80b6e132ee07f4"


# What may be cached


@pytest.mark.parametrize(
    ("params", "samples", "may"),
    [
        ({"temperature": 0}, True, True),
        ({"temperature": 0.0, "n": 1, "stream": False, "seed": 3}, True, True),
        ({}, True, False),
        ({"temperature": None}, True, False),
        ({"temperature": 0.1}, True, False),
        ({"temperature": 0, "n": 2}, True, False),
        ({"temperature": 0, "best_of": 2}, True, False),
        ({"temperature": 0, "stream": True}, True, False),
        ({}, False, True),
        ({"dimensions": 256}, False, True),
        ({"temperature": 1}, False, False),
        ({"sequence_id": 7}, False, False),
    ],
)
def test_only_what_would_come_out_the_same_is_cacheable(params: dict[str, Any], samples: bool, may: bool) -> None:
    """Chance, several answers, streams and sequences are not cached, but on a person's word."""
    assert cacheable(params, samples=samples) is may
    assert cacheable(params, samples=samples, always=True)


# Memory


class Memory:
    """A MemoryCache in virtual time."""

    def __init__(self, **over: Any) -> None:
        self.clock = VirtualClock()
        self.cache = MemoryCache(CacheSettings(**over), self.clock)

    def put(self, key: bytes, value: bytes) -> None:
        self.clock.run(self.cache.put(key, value))

    def get(self, key: bytes) -> bytes | None:
        return self.clock.run(self.cache.get(key))


def test_memory_bounds_entries_by_last_use() -> None:
    """The entry that was used longest ago goes first."""
    memory = Memory(max_entries=2)
    memory.put(b"a", b"1")
    memory.put(b"b", b"2")
    memory.get(b"a")
    memory.put(b"c", b"3")
    assert [memory.get(key) for key in (b"a", b"b", b"c")] == [b"1", None, b"3"]
    assert memory.cache.evicted == 1


@pytest.mark.parametrize("seed", range(50))
def test_memory_does_what_a_slow_model_of_it_does(seed: int) -> None:
    """Under random use, gets, bounds, times and counts are those of a list that is searched from one end."""
    chance = random.Random(seed)
    entries, size = chance.choice([1, 3, 100]), chance.choice([30, 100, 10_000])
    memory = Memory(max_entries=entries, max_bytes=size, ttl_s=10.0)
    model: list[tuple[bytes, bytes, float]] = []
    for _ in range(200):
        key, now_s = bytes([chance.randrange(8)]), memory.clock.monotonic_s()
        found = next((entry for entry in model if entry[0] == key), None)
        if chance.random() < 0.5:
            value = bytes(chance.choice([0, 5, 20, 40]))
            memory.put(key, value)
            model = [entry for entry in model if entry[0] != key]
            if 1 + len(value) <= size:
                model.append((key, value, now_s + 10.0))
            while len(model) > entries or sum(1 + len(entry[1]) for entry in model) > size:
                del model[0]
        else:
            alive = found is not None and now_s < found[2]
            assert memory.get(key) == (found[1] if found and alive else None)
            model = [entry for entry in model if entry[0] != key] + ([found] if found and alive else [])
        assert len(memory.cache) == len(model)
        assert memory.cache.size_bytes == sum(1 + len(entry[1]) for entry in model) <= size
        memory.clock.advance(chance.choice([0.0, 0.5, 3.0]))


# Single flight

Made = Callable[[], Awaitable[Any]]


class Flights:
    """SingleFlight over calls that take a second; `calls` are who made one, `cancelled` how many were cut off."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.flight: SingleFlight[str] = SingleFlight(self.clock)
        self.calls: list[str] = []
        self.cancelled = 0

    def made(self, name: str, error: Exception | None = None, takes_s: float = 1.0) -> Made:
        async def call() -> str:
            self.calls.append(name)
            try:
                await self.clock.sleep(takes_s)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            if error is not None:
                raise error
            return f"of {name}"

        return call

    def ask(self, name: str, key: bytes = b"k", deadline_s: float | None = None, **over: Any) -> asyncio.Task[str]:
        return asyncio.create_task(self.flight.run(key, self.made(name, **over), deadline_s))

    def outcomes(self, main: Callable[[], Awaitable[list[asyncio.Task[str]]]]) -> list[Any]:
        async def run() -> list[Any]:
            return await asyncio.gather(*await main(), return_exceptions=True)

        outcomes = self.clock.run(run())
        assert self.flight.in_flight == 0
        return outcomes


def test_equal_keys_share_one_call_and_others_do_not() -> None:
    """Three of a key make one call, another key its own, and a later one of the key a new one."""
    flights = Flights()

    async def main() -> list[asyncio.Task[str]]:
        tasks = [flights.ask(name) for name in "abc"] + [flights.ask("x", b"other")]
        await flights.clock.sleep(2.0)
        return [*tasks, flights.ask("d")]

    assert flights.outcomes(main) == ["of a", "of a", "of a", "of x", "of d"]
    assert (flights.calls, flights.flight.shared) == (["a", "x", "d"], 2)


def test_without_single_flight_each_makes_its_call() -> None:
    """The sibling: with keys of their own the same three callers make three calls."""
    flights = Flights()

    async def main() -> list[asyncio.Task[str]]:
        return [flights.ask(name, name.encode()) for name in "abc"]

    assert flights.outcomes(main) == ["of a", "of b", "of c"]
    assert flights.calls == ["a", "b", "c"]


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_cancelled_caller_leaves_the_call_to_the_others(victim: int) -> None:
    """Also when it is the one who made the call: that goes on, and is not made twice."""
    flights = Flights()

    async def main() -> list[asyncio.Task[str]]:
        tasks = [flights.ask(name) for name in "abc"]
        await flights.clock.sleep(0.5)
        tasks[victim].cancel()
        return tasks

    outcomes = flights.outcomes(main)
    assert isinstance(outcomes.pop(victim), asyncio.CancelledError)
    assert (outcomes, flights.calls, flights.cancelled) == (["of a", "of a"], ["a"], 0)


def test_a_call_for_which_nobody_waits_is_cancelled() -> None:
    """When all callers are cancelled so is the call, and the next one of the key makes a new one."""
    flights = Flights()

    async def main() -> list[asyncio.Task[str]]:
        tasks = [flights.ask(name) for name in "ab"]
        await flights.clock.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return [flights.ask("c")]

    assert flights.outcomes(main) == ["of c"]
    assert (flights.calls, flights.cancelled) == (["a", "c"], 1)


def test_who_asks_right_after_a_cancel_gets_a_call_of_its_own() -> None:
    """A call that is being cancelled takes no new callers, not even in the same turn of the loop."""
    flights = Flights()

    async def again() -> str:
        try:
            return await flights.flight.run(b"k", flights.made("a"))
        except asyncio.CancelledError:
            return await flights.flight.run(b"k", flights.made("b"))

    async def main() -> list[asyncio.Task[str]]:
        task = asyncio.create_task(again())
        await flights.clock.sleep(0.5)
        task.cancel()
        return [task]

    assert flights.outcomes(main) == ["of b"]
    assert (flights.calls, flights.cancelled, flights.flight.shared) == (["a", "b"], 1, 0)


def test_each_caller_keeps_its_own_deadline() -> None:
    """A caller whose deadline passes gets DeadlineExceeded then, whoever made the call; the others their result."""
    flights = Flights()

    async def main() -> list[asyncio.Task[str]]:
        return [flights.ask("a", deadline_s=0.4), flights.ask("b"), flights.ask("c", deadline_s=0.6)]

    first, second, third = flights.outcomes(main)
    assert (type(first), second, type(third)) == (DeadlineExceeded, "of a", DeadlineExceeded)
    assert flights.calls == ["a"]


def test_a_call_that_ends_by_its_makers_deadline_is_made_again_by_the_next() -> None:
    """The deadline of one is no error of another, who has more time."""
    flights = Flights()

    async def main() -> list[asyncio.Task[str]]:
        late = DeadlineExceeded("The deadline passed.")
        return [flights.ask("a", error=late, takes_s=0.3), flights.ask("b", error=late), flights.ask("c")]

    first, second, third = flights.outcomes(main)
    assert (type(first), type(second), third) == (DeadlineExceeded, DeadlineExceeded, "of c")
    assert flights.calls == ["a", "b", "c"]


@pytest.mark.parametrize("error", [Refused("No.", 422), BrokenReply("Cut."), KeyError("x")])
def test_any_other_error_is_shared_and_not_kept(error: Exception) -> None:
    """All who share the call get its error, and the next one of the key makes a new call."""
    flights = Flights()

    async def main() -> list[asyncio.Task[str]]:
        tasks = [flights.ask("a", error=error), flights.ask("b")]
        await asyncio.wait(tasks)
        return [*tasks, flights.ask("c")]

    assert flights.outcomes(main) == [error, error, "of c"]
    assert flights.calls == ["a", "c"]


def test_a_call_cancelled_from_outside_is_made_by_the_next() -> None:
    """A call that ends in CancelledError fails its maker with a CallError, and the next caller makes its own."""
    flights = Flights()

    async def main() -> list[asyncio.Task[str]]:
        return [flights.ask("a", error=asyncio.CancelledError()), flights.ask("b")]  # type: ignore[arg-type]

    first, second = flights.outcomes(main)
    assert (type(first), second) == (CallError, "of b")


def test_a_deadline_that_passed_makes_no_call() -> None:
    """A caller that comes too late is refused at once."""
    flights = Flights()
    flights.clock.advance(2.0)

    async def main() -> list[asyncio.Task[str]]:
        return [flights.ask("a", deadline_s=2.0)]

    assert isinstance(flights.outcomes(main)[0], DeadlineExceeded)
    assert not flights.calls


@pytest.mark.parametrize("seed", range(150))
def test_each_caller_has_exactly_one_outcome_whatever_happens(seed: int) -> None:
    """Random keys, errors, deadlines and cancels: one outcome a caller, in time, never two calls of a key at once."""
    chance = random.Random(seed)
    clock = VirtualClock(seed)
    flight: SingleFlight[bytes] = SingleFlight(clock)
    open_keys: list[bytes] = []
    ends = dict.fromkeys(range(60), 0)

    async def one(number: int) -> None:
        await clock.sleep(chance.random() * 2)
        key = bytes([chance.randrange(4)])
        deadline_s = clock.monotonic_s() + chance.choice([0.1, 0.5, 50.0])

        async def call() -> bytes:
            assert key not in open_keys
            open_keys.append(key)
            try:
                await clock.sleep(min(chance.choice([0.0, 0.2, 0.6]), deadline_s - clock.monotonic_s()))
                if chance.random() < 0.2:
                    raise BrokenReply("Cut.")
                if clock.monotonic_s() >= deadline_s - 1e-6:
                    raise DeadlineExceeded("Passed.")
                return key
            finally:
                open_keys.remove(key)

        try:
            assert await flight.run(key, call, deadline_s) == key
        except DeadlineExceeded:
            assert clock.monotonic_s() >= deadline_s - 1e-6
        except BrokenReply:
            pass
        assert clock.monotonic_s() <= deadline_s + 1e-6
        ends[number] += 1

    async def main() -> int:
        tasks = [asyncio.create_task(one(number)) for number in ends]
        await clock.sleep(chance.random() * 2)
        cancelled = [task for task in tasks if chance.random() < 0.3 and task.cancel()]
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        return len(cancelled)

    cancelled = clock.run(main())
    assert sum(ends.values()) == 60 - cancelled
    assert (flight.in_flight, open_keys) == (0, [])


# Both together


class Cached:
    """CachedCalls of chat replies over a memory, in virtual time."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.memory = MemoryCache(CacheSettings(ttl_s=60.0), self.clock)
        decoder = msgspec.msgpack.Decoder(Reply)
        self.calls: CachedCalls[Reply] = CachedCalls(self.memory, self.clock, msgspec.msgpack.encode, decoder.decode)
        self.made = 0

    async def call(self) -> Reply:
        self.made += 1
        await self.clock.sleep(1.0)
        return Reply("Hi.", "stop")

    async def fail(self) -> Reply:
        self.made += 1
        raise Refused("No.", 422)

    def ask(self, count: int, call: Callable[[], Awaitable[Reply]] | None = None) -> list[Any]:
        async def main() -> list[Any]:
            tasks = [self.calls.run(b"k", call or self.call) for _ in range(count)]
            return await asyncio.gather(*tasks, return_exceptions=True)

        return self.clock.run(main())


def test_a_reply_says_where_it_came_from() -> None:
    """The first call is paid for, equal ones at the same time share it, later ones come from the cache."""
    cached = Cached()
    assert [answered.source for answered in cached.ask(3)] == ["call", "shared", "shared"]
    assert cached.ask(2) == [Answered(Reply("Hi.", "stop"), "cache")] * 2
    assert cached.made == 1
    cached.clock.advance(60.0)
    assert [answered.source for answered in cached.ask(1)] == ["call"]


def test_errors_are_never_cached() -> None:
    """A failed call is made again by the next one who asks."""
    cached = Cached()
    assert [type(error) for error in cached.ask(2, cached.fail)] == [Refused] * 2
    assert (cached.made, len(cached.memory)) == (1, 0)
    assert [answered.source for answered in cached.ask(1)] == ["call"]


def test_a_value_that_does_not_decode_is_a_miss() -> None:
    """What another version has put there is asked again, and replaced."""
    cached = Cached()
    cached.clock.run(cached.memory.put(b"k", b"\xc1"))
    assert [answered.source for answered in cached.ask(1)] == ["call"]
    assert [answered.source for answered in cached.ask(1)] == ["cache"]


# A client with a cache


class Asking:
    """A client with a cache over a scripted transport, in virtual time; with a `redis`, the cache is in there."""

    def __init__(self, script: Script, redis: Any = None, clock: VirtualClock | None = None, **over: Any) -> None:
        self.clock = clock or VirtualClock()
        self.transport = FakeTransport(self.clock, script)
        endpoints = (Endpoint("http://one/v1"),)
        settings = {"role": "answer", "endpoints": endpoints, "model": "m", "cache": CacheSettings()}
        self.client = Client(ModelSettings(**settings | over), self.clock, self.transport)
        if redis is not None:
            cache = RedisCache(CacheSettings(), self.clock, redis)
            decoder = msgspec.msgpack.Decoder(Reply)
            self.client._cached = CachedCalls(cache, self.clock, msgspec.msgpack.encode, decoder.decode)

    def ask(self, *questions: Question, deadline_s: float = 120.0, attempts: tuple[int, ...] = ()) -> list[Outcome]:
        """Ask these at once, and close the client; `attempts` are those made before, of the first calls."""
        before = (*attempts, *(0 for _ in questions))

        async def main() -> list[Outcome]:
            at_ms = self.clock.now_ms() + round(deadline_s * 1000)
            calls = [
                Call(str(number), question, at_ms, attempts=before[number]) for number, question in enumerate(questions)
            ]
            return await asyncio.gather(*(self.client.call(call) for call in calls))

        return self.clock.run(main())


HI = Chat((Message("user", "Hi"),), params={"temperature": 0})


def http_json(path: str, reads: str) -> dict[str, Any]:
    options = {"path": path, "request": {"v": "{{value}}"}, "response": {"value": reads}, "samples": False}
    return {"protocol": "http-json", "options": options}


@pytest.mark.parametrize("followers", [1, 3])
def test_one_with_its_attempts_used_up_takes_nobody_with_it(followers: int) -> None:
    """Where a call that had one attempt left fails, those who share it ask again, with all of theirs."""
    policy = RetryPolicy(max_attempts=5, base_s=0.01, cap_s=0.02, wait_for_server=False)
    asking = Asking([answered(500, b"busy", 0.1), replied("Hi")], retry=policy)
    worn, *others = asking.ask(HI, *([HI] * followers), attempts=(4,))
    assert (worn.error_type, worn.attempts) == ("server-error", 5)
    assert all(outcome.reply and outcome.reply.text == "Hi" for outcome in others)
    assert len(asking.transport.sent) == 2


def test_one_with_all_its_attempts_shares_its_failure() -> None:
    """The sibling: where the one who called had all its attempts, nobody asks anew."""
    asking = Asking([answered(500)], retry=RetryPolicy(max_attempts=2, base_s=0.01, cap_s=0.02, wait_for_server=False))
    outcomes = asking.ask(HI, HI)
    assert [outcome.error_type for outcome in outcomes] == ["server-error"] * 2
    assert len(asking.transport.sent) == 2


def test_a_reply_that_cannot_be_kept_is_a_reply() -> None:
    """A number of more than 64 bits in a reply is handed out once it has come, and asked for again the next time."""
    large = 123456789012345678901234567890
    asking = Asking([Scripted(body=b'{"out": %d}' % large)], **http_json("/x", "out"))
    for sent in (1, 2):
        (outcome,) = asking.ask(Value({"value": 1}))
        assert outcome.reply is not None
        assert (outcome.reply.value, outcome.source, len(asking.transport.sent)) == (large, "call", sent)


def test_a_question_without_a_key_is_asked_each_time() -> None:
    """A number of more than 64 bits in a question has no key: it is asked, and nothing is cached."""
    asking = Asking([Scripted(body=b'{"out": 1}')], **http_json("/x", "out"))
    for sent in (1, 2):
        (outcome,) = asking.ask(Value({"value": 2**70}))
        assert outcome.reply is not None
        assert (outcome.source, len(asking.transport.sent)) == ("call", sent)


class ADict:
    """A client of a Redis that keeps what it is given, `put_s` seconds later."""

    def __init__(self, clock: Clock, put_s: float = 0.0) -> None:
        self.clock = clock
        self.put_s = put_s
        self.kept: dict[bytes, bytes] = {}

    async def get(self, name: bytes) -> bytes | None:
        return self.kept.get(name)

    async def set(self, name: bytes, value: bytes, *, px: int) -> Any:
        await self.clock.sleep(self.put_s)
        self.kept[name] = value

    async def aclose(self) -> None:
        """Nothing is open."""


def test_models_that_read_different_things_share_no_reply() -> None:
    """Two models over one Redis that differ in their options alone have each their own reply to the same text."""
    clock = VirtualClock()
    redis = ADict(clock)

    def script(sent: Sent) -> Scripted:
        return Scripted(body=b'{"tone": "angry"}' if sent.url.endswith("/tone") else b'{"language": "de"}')

    for _ in range(2):
        for reads, wanted in (("tone", "angry"), ("language", "de")):
            options = http_json(f"/{reads}", reads)
            options["options"]["request"] = {"v": "{{text}}"}
            (outcome,) = Asking(script, redis, clock, **options).ask(Text("Hallo"))
            assert outcome.reply is not None
            assert outcome.reply.value == wanted
    assert len(redis.kept) == 2


def test_a_redis_that_is_slow_to_keep_costs_no_event_its_time() -> None:
    """A reply that came in time stands, and is handed out at once, however long it takes to keep it."""
    clock = VirtualClock()
    asking = Asking([replied("Hi", after_s=0.98)], ADict(clock, 10.0), clock, timeout_s=1.0, deadline_s=1.0)
    (outcome,) = asking.ask(HI, deadline_s=1.0)
    assert outcome.error_type is None
    assert outcome.total_ms == pytest.approx(980.0, abs=5.0)


# A Redis that fails (one that works: tests/contract/test_response_cache.py)


class SickRedis:
    """A client of a Redis that raises, or hangs."""

    def __init__(self, clock: Clock, error: Exception | None) -> None:
        self.clock = clock
        self.error = error
        self.asked = 0

    async def get(self, name: bytes) -> bytes | None:
        self.asked += 1
        if self.error is None:
            await self.clock.sleep(1e6)
        raise self.error or AssertionError

    async def set(self, name: bytes, value: bytes, *, px: int) -> Any:
        return await self.get(name)

    async def aclose(self) -> None:
        await self.get(b"")


@pytest.mark.parametrize("error", [ConnectionError("refused"), OSError("no route"), ValueError("protocol"), None])
def test_a_redis_that_fails_is_a_miss_and_is_left_alone_for_a_while(error: Exception | None) -> None:
    """Whatever it does costs 50 ms at most, once a second, and no error reaches an event."""
    clock = VirtualClock()
    sick = SickRedis(clock, error)
    cache = RedisCache(CacheSettings(backend="redis", url="redis://one"), clock, sick)

    async def main() -> None:
        for _ in range(100):
            assert await cache.get(b"k") is None
            await cache.put(b"k", b"v")
        assert clock.monotonic_s() <= 0.05 + 1e-3
        assert sick.asked == 1
        await clock.sleep(1.0)
        await cache.put(b"k", b"v")
        assert sick.asked == 2
        await cache.close()

    clock.run(main())
    assert clock.monotonic_s() <= 1.15 + 1e-3
    assert (cache.hits, cache.misses, cache.failures) == (0, 100, 3)


def test_cancelling_who_waits_for_a_redis_is_no_failure_of_it() -> None:
    """A cancel goes through, and the Redis is asked again by the next one."""
    clock = VirtualClock()
    cache = RedisCache(CacheSettings(backend="redis", url="redis://one"), clock, SickRedis(clock, None))

    async def main() -> None:
        task = asyncio.create_task(cache.get(b"k"))
        await clock.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    clock.run(main())
    assert cache.failures == 0


# Settings


@pytest.mark.parametrize(
    "over",
    [
        {"backend": "redis"},
        {"backend": "redis", "url": "redis://one", "max_entries": 5},
        {"backend": "redis", "url": "redis://one", "max_bytes": 5},
        {"backend": "redis", "url": "http://one"},
        {"backend": "redis", "url": "redis://"},
        {"backend": "redis", "url": "redis://one:99999"},
        {"backend": "redis", "url": "redis://one?password=hunter2"},
        {"backend": "redis", "url": "redis://user:hunter2@one"},
        {"backend": "memory", "url": "redis://one"},
        {"backend": "memory", "auth": Auth(env="SECRET")},
        {"backend": "disk"},
        {"ttl_s": 0},
        {"ttl_s": float("nan")},
        {"ttl_s": float("inf")},
        {"timeout_ms": 0},
        {"max_entries": 0},
        {"max_bytes": 0},
    ],
)
def test_settings_that_cannot_be_are_refused(over: dict[str, Any]) -> None:
    """Values out of range, and contradictions, are a SettingsError with a sentence that holds no secret."""
    with pytest.raises(SettingsError) as caught:
        CacheSettings(**over)
    assert str(caught.value).endswith(".")
    assert "hunter2" not in str(caught.value)


def test_the_settings_choose_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory by default; a Redis without its package is refused with a sentence."""
    clock = VirtualClock()
    assert isinstance(open_cache(CacheSettings(), clock), MemoryCache)
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(SettingsError, match="package redis"):
        open_cache(CacheSettings(backend="redis", url="redis://one"), clock)


def test_a_redis_is_opened_with_its_bounds_and_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The password comes from where `auth` says, and every answer is bounded, the connection's too."""
    opened: dict[str, Any] = {}

    class Package:
        class Redis:
            @staticmethod
            def from_url(url: str, **over: Any) -> SickRedis:
                opened.update(over, url=url)
                return SickRedis(VirtualClock(), None)

    monkeypatch.setattr(cache_redis.importlib, "import_module", lambda name: Package)
    monkeypatch.setenv("SECRET", "hunter2")
    settings = CacheSettings(backend="redis", url="redis://one", auth=Auth(env="SECRET"), timeout_ms=20)
    assert isinstance(open_cache(settings, VirtualClock()), RedisCache)
    assert opened == {
        "url": "redis://one",
        "password": "hunter2",
        "socket_timeout": 0.02,
        "socket_connect_timeout": 0.02,
    }
