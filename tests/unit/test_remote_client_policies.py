"""The client with its policies turned on, in virtual time: batches, streams, hedging, cache, probes, fallbacks, quotas."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import statistics
from collections.abc import AsyncIterator, Mapping
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from transforms.remote import names
from transforms.remote.batcher import BatchSettings
from transforms.remote.cache import CacheSettings
from transforms.remote.chain import Chain
from transforms.remote.client import Call, Chat, Client, Message, Outcome
from transforms.remote.concurrency import ConcurrencySettings
from transforms.remote.fakes import (
    FakeTransport,
    Script,
    Scripted,
    Sent,
    VirtualClock,
    answered,
    hung,
    replied,
)
from transforms.remote.hedge import HedgeSettings
from transforms.remote.pool import PoolSettings
from transforms.remote.probes import ProbeSettings
from transforms.remote.questions import Question, Tensor, Tensors, Text
from transforms.remote.quota import QuotaSettings
from transforms.remote.settings import Endpoint, FixedReply, ModelSettings, RetryPolicy
from transforms.remote.simulated import Behaviour, SimulatedServer
from transforms.remote.streams import StreamSettings
from transforms.remote.transport import Opened

ONE, TWO = "http://one/v1", "http://two/v1"


def settings_of(*urls: str, **over: Any) -> ModelSettings:
    endpoints = tuple(Endpoint(url) for url in urls or (ONE,))
    return ModelSettings(**{"role": "answer", "endpoints": endpoints, "model": "m", **over})


class Bench:
    """A client over a scripted transport, both in virtual time."""

    def __init__(self, script: Script | None, settings: ModelSettings, seed: int = 0) -> None:
        self.clock = VirtualClock(seed)
        self.transport = FakeTransport(self.clock, script)
        self.client: Client | Chain = (
            Client(settings, self.clock, self.transport)
            if settings.fallback is None
            else Chain(settings, self.clock, self.transport)
        )

    def call(self, key: str, question: Question | None = None, deadline_s: float = 120.0, **over: Any) -> Call:
        question = question or Chat((Message("user", f"Where is order {key}?"),))
        return Call(key, question, self.clock.now_ms() + round(deadline_s * 1000), **over)

    async def at(self, seconds: float, call: Call) -> Outcome:
        await self.clock.sleep(seconds)
        return await self.client.call(call)

    def ask_all(self, *calls: Call, every_s: float = 0.0) -> list[Outcome]:
        async def main() -> list[Outcome]:
            return await asyncio.gather(*(self.at(number * every_s, call) for number, call in enumerate(calls)))

        return self.clock.run(main())


# Batches


def embeddings(sent: Sent, after_s: float = 0.05) -> Scripted:
    """A server of embeddings: the vector of a text is its length. A text with "bad" in it is refused, with all of its batch."""
    texts = json.loads(sent.body)["input"]
    if any("bad" in text for text in texts):
        return answered(400, b"bad input", after_s)
    data = [{"index": index, "embedding": [float(len(text))]} for index, text in enumerate(texts)]
    return Scripted(body=msgspec.json.encode({"data": data, "usage": {"prompt_tokens": 7}}), after_s=after_s)


def embedder(**over: Any) -> ModelSettings:
    return settings_of(protocol="openai-embeddings", batch=BatchSettings(), **over)


def test_events_that_come_together_travel_together() -> None:
    """200 texts at once are a handful of requests; each has its own vector, and their tokens add up to what was reported."""
    bench = Bench(embeddings, embedder())
    outcomes = bench.ask_all(*(bench.call(str(n), Text("x" * (n + 1))) for n in range(200)))
    assert [outcome.reply.value for outcome in outcomes if outcome.reply] == [[float(n + 1)] for n in range(200)]
    assert len(bench.transport.sent) <= 6
    tokens = sum(outcome.reply.prompt_tokens or 0 for outcome in outcomes if outcome.reply)
    assert tokens == 7 * len(bench.transport.sent)
    assert {outcome.attempts for outcome in outcomes} == {1}


@pytest.mark.parametrize("place", [0, 17, 63])
def test_a_poison_record_costs_the_others_nothing(place: int) -> None:
    """One record in a batch of 64 is refused: 63 good results, and at most 13 further requests."""
    bench = Bench(embeddings, embedder())
    texts = ["bad" if number == place else "good" for number in range(64)]
    outcomes = bench.ask_all(*(bench.call(str(number), Text(text)) for number, text in enumerate(texts)))
    assert [outcome.error_type for outcome in outcomes] == ["refused" if text == "bad" else None for text in texts]
    assert len(bench.transport.sent) <= 14


def test_a_broken_reply_to_a_batch_is_split_and_not_repeated() -> None:
    """A reply with too few items splits the batch at once; alone, each item is answered."""

    def script(sent: Sent) -> Scripted:
        good = embeddings(sent)
        if len(json.loads(sent.body)["input"]) == 1:
            return good
        body = json.loads(good.body)
        return Scripted(body=msgspec.json.encode({"data": body["data"][1:]}), after_s=0.05)

    bench = Bench(script, embedder())
    outcomes = bench.ask_all(*(bench.call(str(number), Text("a")) for number in range(4)))
    assert all(outcome.reply for outcome in outcomes)
    assert len(bench.transport.sent) == 7


def test_a_batch_has_a_key_of_its_own_and_the_same_one_again() -> None:
    """The idempotency key of a batch depends on its events and their order alone, and each attempt carries it."""
    keys = []
    for _ in range(2):
        bench = Bench([answered(500), embeddings_of(3)], embedder())
        bench.ask_all(*(bench.call(str(number), Text("a")) for number in range(3)))
        keys.append({sent.id for sent in bench.transport.sent})
    assert keys[0] == keys[1]
    assert len(keys[0]) == 1
    assert next(iter(keys[0])).startswith("batch-")


def embeddings_of(count: int) -> Scripted:
    data = [{"index": index, "embedding": [1.0]} for index in range(count)]
    return Scripted(body=msgspec.json.encode({"data": data}))


def test_a_batched_event_keeps_its_own_deadline() -> None:
    """An event whose deadline passes leaves its batch; the others still have their replies."""
    bench = Bench(lambda sent: embeddings(sent, after_s=5.0), embedder())
    calls = [bench.call("soon", Text("a"), deadline_s=1.0), bench.call("late", Text("b"), deadline_s=60.0)]
    soon, late = bench.ask_all(*calls)
    assert (soon.error_type, late.error_type) == ("deadline", None)
    assert 995 <= soon.total_ms <= 1_100


def test_tensors_of_many_events_are_rows_of_one_request() -> None:
    """Open inference: the rows of several events are joined, and each has the rows of its own back, by output's name."""

    def script(sent: Sent) -> Scripted:
        (tensor,) = json.loads(sent.body)["inputs"]
        assert sent.url.endswith("/v2/models/m/infer")
        scores = {"name": "score", "datatype": "FP64", "shape": [tensor["shape"][0]], "data": tensor["data"][::2]}
        return Scripted(body=msgspec.json.encode({"outputs": [scores]}), after_s=0.02)

    bench = Bench(script, settings_of(protocol="open-inference", batch=BatchSettings()))
    questions = [Tensors((Tensor("x", "FP64", (1, 2), [float(n), 0.0]),)) for n in range(50)]
    outcomes = bench.ask_all(*(bench.call(str(n), question) for n, question in enumerate(questions)))
    assert [outcome.reply.value for outcome in outcomes if outcome.reply] == [{"score": [float(n)]} for n in range(50)]
    assert len(bench.transport.sent) <= 4


def test_a_question_of_another_kind_is_refused() -> None:
    """A text for a chat model, or a conversation for one of embeddings, is the event's own fault, and nothing is sent."""
    for settings, question in ((settings_of(), Text("a")), (embedder(), Chat(()))):
        bench = Bench(embeddings, settings)
        (outcome,) = bench.ask_all(bench.call("a", question))
        assert (outcome.error_type, outcome.attempts, bench.transport.sent) == ("refused", 0, [])


# Streams


def streamed(*pieces: str, done: bool = True, finish: str | None = "stop") -> bytes:
    chunks = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    if finish:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(pieces)}})
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + (["data: [DONE]\n\n"] if done else [])
    return "".join(lines).encode()


class StreamingTransport(FakeTransport):
    """Gives the body of its script in pieces of 20 bytes, `pause_s` apart, and falls silent after `silent_after` of them, once."""

    def __init__(self, clock: VirtualClock, script: Script, pause_s: float, silent_after: int | None = None) -> None:
        super().__init__(clock, script)
        self.pause_s, self.silent_after, self.closed = pause_s, silent_after, 0

    @contextlib.asynccontextmanager
    async def stream(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncIterator[Opened]:
        status, answer_headers, answer = await self.post(url, body, headers, timeout_s)
        silent_after, self.silent_after = self.silent_after, None
        try:
            yield status, answer_headers, self._pieces(answer, silent_after)
        finally:
            self.closed += 1

    async def _pieces(self, answer: bytes, silent_after: int | None) -> AsyncIterator[bytes]:
        for number, at in enumerate(range(0, len(answer), 20)):
            await self._clock.sleep(1e9 if number == silent_after else self.pause_s)
            yield answer[at : at + 20]


def stream_bench(script: Script, pause_s: float = 0.01, silent_after: int | None = None) -> Bench:
    bench = Bench(None, settings_of())
    bench.transport = StreamingTransport(bench.clock, script, pause_s, silent_after)
    settings = settings_of(stream=StreamSettings(stall_s=2.0), retry=RetryPolicy(base_s=0.01, cap_s=0.02))
    bench.client = Client(settings, bench.clock, bench.transport)
    return bench


def test_a_stream_is_put_together() -> None:
    """The reply of a stream is its text, with its usage and the time to its first piece; the request asks for a stream."""
    bench = stream_bench([Scripted(body=streamed("Hel", "lo."), after_s=0.1)])
    (outcome,) = bench.ask_all(bench.call("a"))
    assert outcome.reply is not None
    assert (outcome.reply.text, outcome.reply.prompt_tokens, outcome.reply.completion_tokens) == ("Hello.", 3, 2)
    assert outcome.reply.first_token_ms is not None
    assert 100 < outcome.reply.first_token_ms < outcome.model_ms
    assert json.loads(bench.transport.sent[0].body)["stream"] is True


@pytest.mark.parametrize("cut", [{"done": False}, {"finish": None}])
def test_a_stream_that_was_cut_is_no_reply(cut: dict[str, Any]) -> None:
    """A stream without its end, or without a reason to end, is asked for again, and never accepted."""
    bench = stream_bench([Scripted(body=streamed("Hel", **cut)), Scripted(body=streamed("Hello."))])
    (outcome,) = bench.ask_all(bench.call("a"))
    assert outcome.reply is not None
    assert (outcome.reply.text, outcome.attempts) == ("Hello.", 2)


def test_a_stream_that_stalls_is_cut_by_its_own_deadline() -> None:
    """Silence in the middle of a stream ends the attempt after `stall_s`, long before `timeout_s`, and closes the connection."""
    bench = stream_bench([Scripted(body=streamed("Hel", "lo."))], silent_after=3)
    (outcome,) = bench.ask_all(bench.call("a"))
    assert outcome.reply is not None
    assert (outcome.reply.text, outcome.attempts) == ("Hello.", 2)
    assert 2_000 < outcome.total_ms < 3_000
    assert bench.transport.closed == 2


@pytest.mark.parametrize("deadline_s", [29.0, 31.0])
def test_a_stream_that_stalls_counts_whatever_time_the_event_has(deadline_s: float) -> None:
    """Silence of `stall_s` is a time-out of the endpoint, also where the event has less time than `timeout_s`."""
    bench = Bench(None, settings_of())
    bench.transport = StreamingTransport(bench.clock, lambda sent: Scripted(body=streamed("Hel")), 1e9)
    bench.client = Client(settings_of(stream=StreamSettings(stall_s=1.0)), bench.clock, bench.transport)
    bench.ask_all(*(bench.call(str(number), deadline_s=deadline_s) for number in range(20)))
    bench.client.telemetry.refresh()
    counters = bench.client.telemetry.snapshot().counters
    attempts = {one.values[-1]: value for one, value in counters.items() if one.name == names.ATTEMPTS.name}
    assert attempts == {"timeout": len(bench.transport.sent)}
    assert len(bench.transport.sent) <= 30


def test_a_refusal_of_a_stream_is_read_as_a_whole() -> None:
    """An answer that is not 2xx is an error with its text, whatever was asked for."""
    bench = stream_bench([answered(400, b"no streams here")])
    (outcome,) = bench.ask_all(bench.call("a"))
    assert outcome.error_type == "refused"
    assert "no streams here" in str(outcome.error_message)


# Hedging


def slow_now_and_then(sent: Sent) -> Scripted:
    """5 % of the requests take twenty times as long; by chance of their id and attempt. The others vary a little."""
    chance = random.Random(f"{sent.id} {sent.attempt}")
    slow = chance.random() < 0.05
    return replied(sent.id, after_s=(4.0 if slow else 0.2) * chance.uniform(0.9, 1.1))


@pytest.mark.parametrize("seed", range(3))
def test_hedging_cuts_the_tail_within_its_budget(seed: int) -> None:
    """5 % of requests are 20 times slower: p99 falls by 60 % or more, for 5 % more requests at most, with one output each."""

    def p99(hedge: HedgeSettings | None) -> tuple[float, int]:
        # A request that takes long is no load here: the limits are another test's business.
        fixed = ConcurrencySettings(algorithm="fixed", initial=256)
        bench = Bench(slow_now_and_then, settings_of(ONE, TWO, hedge=hedge, concurrency=fixed), seed)
        outcomes = bench.ask_all(*(bench.call(str(number)) for number in range(4_000)), every_s=0.02)
        assert all(outcome.reply and outcome.reply.text == outcome.id for outcome in outcomes)
        assert bench.transport.open == 0
        steady = [outcome.total_ms for outcome in outcomes[500:]]
        return statistics.quantiles(steady, n=100)[98], len(bench.transport.sent)

    without, _ = p99(None)
    hedged, requests = p99(HedgeSettings())
    assert hedged <= 0.4 * without
    assert requests <= 4_000 * 1.05 + 1


def test_no_hedge_while_a_server_throttles() -> None:
    """After a 429 no second request is sent for `quiet_s`, however long replies take."""

    def script(sent: Sent) -> Scripted:
        if sent.id == "throttled" and sent.attempt == 1:
            return answered(429)
        return replied(after_s=5.0 if sent.id.startswith("slow") else 0.1)

    bench = Bench(script, settings_of(ONE, TWO, hedge=HedgeSettings(budget=1.0, least_samples=10)))
    bench.ask_all(*(bench.call(str(number)) for number in range(100)), every_s=0.05)
    bench.ask_all(bench.call("throttled"))
    before = len(bench.transport.sent)
    bench.ask_all(*(bench.call(f"slow {number}") for number in range(10)))
    assert len(bench.transport.sent) == before + 10


@pytest.mark.parametrize("retry_after", [{}, {"retry_after": "1"}])
def test_a_hedge_that_is_throttled_silences_hedging(retry_after: dict[str, str]) -> None:
    """A 429 on the second request counts where the first wins, too: the next one is sent `quiet_s` later at the soonest."""

    def script(sent: Sent) -> Scripted:
        if sent.url.startswith(TWO):
            return answered(429, **retry_after)
        return replied(after_s=2.0 if sent.id.startswith("slow") else 0.1)

    regions = (Endpoint(ONE, region="near"), Endpoint(TWO, region="far"))
    fixed = ConcurrencySettings(algorithm="fixed", initial=200)
    settings = settings_of(
        endpoints=regions,
        pool=PoolSettings(regions=("near", "far")),
        hedge=HedgeSettings(budget=1.0, least_samples=10),
        concurrency=fixed,
    )
    bench = Bench(script, settings)
    bench.ask_all(*(bench.call(str(number)) for number in range(100)), every_s=0.05)
    bench.ask_all(*(bench.call(f"slow {number}") for number in range(150)), every_s=0.2)
    hedges = [sent.at_s for sent in bench.transport.sent if sent.url.startswith(TWO)]
    assert len(hedges) >= 2
    assert all(later - sooner >= 10.0 for sooner, later in pairwise(hedges))


def test_a_hedge_that_is_withheld_costs_nothing() -> None:
    """Where the budget of hedges is spent, no quota is, and no attempt is counted, for what is not sent."""
    settings = settings_of(
        ONE,
        TWO,
        hedge=HedgeSettings(budget=0.01, least_samples=10),
        quota=QuotaSettings(requests_per_min=6_000, tokens_per_min=600_000),
    )
    bench = Bench(lambda sent: replied(after_s=5.0 if sent.id.startswith("slow") else 0.1), settings)
    bench.ask_all(*(bench.call(str(number)) for number in range(100)), every_s=0.05)
    bench.ask_all(*(bench.call(f"slow {number}") for number in range(100)), every_s=0.05)
    assert isinstance(bench.client, Client)
    counts = [quota.counts for quota in bench.client._quotas.values()]
    bench.client.telemetry.refresh()
    counters = bench.client.telemetry.snapshot().counters
    assert sum(one.refunded[0] for one in counts) > 10
    assert sum(one.settled[0] for one in counts) == len(bench.transport.sent)
    attempts = sum(value for one, value in counters.items() if one.name == names.ATTEMPTS.name)
    assert attempts == len(bench.transport.sent)


def test_the_loser_of_a_hedge_is_cut_off() -> None:
    """The slower request is cancelled on the wire when the other has its reply, and the permit of each is given back."""

    def script(sent: Sent) -> Scripted:
        return hung() if sent.id == "slow" and sent.attempt == 1 else replied(after_s=0.1)

    bench = Bench(script, settings_of(ONE, TWO, hedge=HedgeSettings(budget=1.0, least_samples=10)))
    bench.ask_all(*(bench.call(str(number)) for number in range(100)), every_s=0.05)
    (outcome,) = bench.ask_all(bench.call("slow"))
    assert outcome.reply is not None
    assert outcome.total_ms < 1_000
    assert outcome.attempts == 2
    assert isinstance(bench.client, Client)
    assert (bench.transport.cancelled, bench.transport.open, bench.client.in_flight) == (1, 0, 0)


# Cache


def test_an_equal_question_is_paid_for_once() -> None:
    """Equal questions under way share a request, and later ones are answered from the cache; others are asked."""
    settings = settings_of(cache=CacheSettings(), params={"temperature": 0})
    bench = Bench([replied("Hi.", after_s=0.5)], settings)
    same = Chat((Message("user", "Hello"),))
    first = bench.ask_all(*(bench.call(str(number), same) for number in range(5)))
    (later, other) = bench.ask_all(bench.call("later", same), bench.call("other"))
    assert [outcome.source for outcome in first] == ["call", "shared", "shared", "shared", "shared"]
    assert (later.source, later.attempts, other.source) == ("cache", 0, "call")
    assert len(bench.transport.sent) == 2


def test_what_may_come_out_otherwise_is_not_cached() -> None:
    """A chat model with a temperature, or a question whose own params have one, is asked each time."""
    same = Chat((Message("user", "Hello"),), params={"temperature": 0.7})
    for params, question in (({}, Chat((Message("user", "Hello"),))), ({"temperature": 0}, same)):
        bench = Bench([replied()], settings_of(cache=CacheSettings(), params=params))
        bench.ask_all(*(bench.call(str(number), question) for number in range(3)))
        assert len(bench.transport.sent) == 3


def test_an_error_is_not_cached() -> None:
    """A question that was refused is asked again."""
    settings = settings_of(cache=CacheSettings(), params={"temperature": 0})
    bench = Bench([answered(400), replied()], settings)
    same = Chat((Message("user", "Hello"),))
    (first,) = bench.ask_all(bench.call("1", same))
    (second,) = bench.ask_all(bench.call("2", same))
    assert (first.error_type, second.error_type) == ("refused", None)


# Fallbacks


SMALL = settings_of("http://small/v1", role="small", timeout_s=5.0)


def test_a_fallback_answers_and_says_why() -> None:
    """Where a model refuses, the next one answers; the outcome names it and the reason, and counts all attempts."""

    def script(sent: Sent) -> Scripted:
        return replied("From the small one.") if "small" in sent.url else answered(400, b"too long")

    bench = Bench(script, settings_of(fallback=SMALL))
    (outcome,) = bench.ask_all(bench.call("a"))
    assert outcome.reply is not None
    assert (outcome.reply.text, outcome.role, outcome.attempts) == ("From the small one.", "small", 2)
    fallbacks = [one for one in bench.client.telemetry.snapshot().counters if one.name == names.FALLBACKS.name]
    assert [one.values for one in fallbacks] == [("answer", "small", "refused")]
    assert "answer gave no reply (refused)" in str(outcome.reason)
    assert "too long" in str(outcome.reason)


def test_the_first_model_needs_no_reason() -> None:
    """An answer of the first model of a chain is like one without a chain."""
    bench = Bench([replied()], settings_of(fallback=SMALL))
    (outcome,) = bench.ask_all(bench.call("a"))
    assert (outcome.role, outcome.reason, outcome.source) == ("answer", None, "call")


def test_a_fallback_is_left_its_time() -> None:
    """A model that hangs gives way in time for its fallback to be asked before the event's deadline."""

    def script(sent: Sent) -> Scripted:
        return replied(after_s=4.0) if "small" in sent.url else hung()

    bench = Bench(script, settings_of(fallback=SMALL))
    (outcome,) = bench.ask_all(bench.call("a", deadline_s=60.0))
    assert outcome.reply is not None
    assert 55_000 <= outcome.total_ms <= 60_000
    assert "(deadline)" in str(outcome.reason)


def test_a_fixed_value_ends_a_chain() -> None:
    """Where no model answers, the fixed value does, as text or as a value, and says so."""
    for value, text in (("A person will answer.", "A person will answer."), ({"score": 0.5}, "")):
        small = msgspec.structs.replace(SMALL, fallback=FixedReply(value))
        bench = Bench([answered(400)], settings_of(fallback=small))
        (outcome,) = bench.ask_all(bench.call("a"))
        assert outcome.reply is not None
        assert (outcome.reply.text, outcome.reply.value, outcome.source) == (text, value, "fixed")
        assert "small gave no reply" in str(outcome.reason)
        assert outcome.attempts == 2


def test_a_chain_without_an_answer_fails_with_the_last_error() -> None:
    """Where the last model fails too, the outcome is its error, with all attempts."""
    bench = Bench([answered(400)], settings_of(fallback=SMALL))
    (outcome,) = bench.ask_all(bench.call("a"))
    assert (outcome.reply, outcome.error_type, outcome.role, outcome.attempts) == (None, "refused", "small", 2)


def test_attempts_are_told_of_the_first_model_of_a_chain_alone() -> None:
    """After a restore the first model is asked first: what its fallbacks used up is none of its own."""
    told: list[int] = []
    few = RetryPolicy(max_attempts=3, base_s=0.01, cap_s=0.02, wait_for_server=False)
    small = msgspec.structs.replace(SMALL, retry=few)
    bench = Bench([answered(500)], settings_of(retry=few, fallback=small))
    (outcome,) = bench.ask_all(msgspec.structs.replace(bench.call("a"), on_spent=told.append))
    assert (outcome.attempts, told) == (6, [1, 2, 3])


def test_the_bound_of_a_batch_is_on_bodies_before_compression() -> None:
    """A server's bound is on what it unpacks: with `compress`, a batch holds no more than without."""
    largest = []
    for compress in (None, "gzip"):
        settings = settings_of(
            protocol="openai-embeddings", compress=compress, batch=BatchSettings(max_items=32, max_bytes=20_000)
        )
        bench = Bench(embedded, settings)
        questions = [Text(f"word {number} " * 500) for number in range(16)]
        bench.ask_all(*(msgspec.structs.replace(bench.call(f"e{n}"), question=one) for n, one in enumerate(questions)))
        bodies = [unpacked(sent) for sent in bench.transport.sent]
        largest.append(max(map(len, bodies)))
    assert largest[0] == largest[1] <= 20_000


def embedded(sent: Sent) -> Scripted:
    count = len(json.loads(unpacked(sent))["input"])
    data = [{"object": "embedding", "index": number, "embedding": [0.5]} for number in range(count)]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return answered(200, json.dumps({"object": "list", "model": "m", "data": data, "usage": usage}).encode())


def unpacked(sent: Sent) -> bytes:
    return gzip.decompress(sent.body) if sent.headers.get("content-encoding") == "gzip" else sent.body


def chain_of_three(*answers: str, fallback: FixedReply | None = None) -> Outcome:
    """What becomes of a call to a chain of three, of which only those named answer."""
    refusals = {"one": (400, b"too long"), "small": (422, b"too odd"), "last": (403, b"no")}

    def script(sent: Sent) -> Scripted:
        (who,) = [name for name in refusals if f"//{name}/" in sent.url]
        return replied(who) if who in answers else answered(*refusals[who])

    last = settings_of("http://last/v1", role="last", model="l", timeout_s=5.0, fallback=fallback)
    small = msgspec.structs.replace(SMALL, model="s", fallback=last)
    bench = Bench(script, settings_of(fallback=small))
    (outcome,) = bench.ask_all(bench.call("a"))
    return outcome


FIRST = "answer gave no reply (refused): http://one/v1 answered 400: too long."
SECOND = "small gave no reply (refused): http://small/v1 answered 422: too odd."
THIRD = "last gave no reply (refused): http://last/v1 answered 403: no."


@pytest.mark.parametrize(
    ("answers", "role", "reason", "attempts"),
    [
        (("one", "small", "last"), "answer", None, 1),
        (("small", "last"), "small", FIRST, 2),
        (("last",), "last", f"{FIRST} {SECOND}", 3),
    ],
)
def test_each_model_before_the_one_that_answers_says_why(
    answers: tuple[str, ...], role: str, reason: str | None, attempts: int
) -> None:
    """Of a chain of three the outcome names who answered, and the reason of each one before, in order, and counts all attempts."""
    outcome = chain_of_three(*answers)
    assert (outcome.role, outcome.reason, outcome.attempts, outcome.source) == (role, reason, attempts, "call")
    assert outcome.reply is not None
    assert outcome.reply.text == answers[0]


def test_where_all_models_fail_the_error_is_the_last_ones() -> None:
    """The outcome is the last model's, with its name and error; the reasons are those of the models before it."""
    outcome = chain_of_three()
    assert (outcome.reply, outcome.role, outcome.model, outcome.attempts) == (None, "last", "l", 3)
    assert f"last gave no reply ({outcome.error_type}): {outcome.error_message}" == THIRD
    assert outcome.reason == f"{FIRST} {SECOND}"


def test_a_fixed_value_says_why_no_model_answered() -> None:
    """Behind three models that fail, the fixed value stands with the reasons of all three."""
    outcome = chain_of_three(fallback=FixedReply("A person will answer."))
    assert outcome.reply is not None
    assert (outcome.reply.text, outcome.source, outcome.role, outcome.model) == (
        "A person will answer.",
        "fixed",
        "fixed",
        "fixed",
    )
    assert (outcome.reason, outcome.error_type, outcome.attempts) == (f"{FIRST} {SECOND} {THIRD}", None, 3)


# Probes


def test_a_probe_finds_out_that_an_endpoint_works_again() -> None:
    """While an endpoint is left out it is sent GETs, and no event; soon after it works, events go there again."""
    down_until_s = 30.0

    def script(sent: Sent) -> Scripted:
        if sent.url.endswith("/health"):
            return answered(200 if sent.at_s >= down_until_s else 503)
        bad = sent.url.startswith(ONE) and sent.at_s < down_until_s
        return answered(500) if bad else replied(after_s=0.05)

    settings = settings_of(ONE, TWO, probe=ProbeSettings(path="/health"))
    bench = Bench(script, settings)
    outcomes = bench.ask_all(*(bench.call(str(number)) for number in range(900)), every_s=0.05)
    assert all(outcome.reply for outcome in outcomes)
    probes = [sent for sent in bench.transport.sent if sent.url.endswith("/health")]
    assert {sent.url for sent in probes} == {f"{ONE}/health"}
    assert 10 <= len(probes) <= 40
    back = [sent.at_s for sent in bench.transport.sent if sent.url.startswith(f"{ONE}/chat") and sent.at_s > 30.0]
    assert min(back) < 34.0


# Quotas and limits


@pytest.mark.parametrize("retry_after", [True, False])
@pytest.mark.parametrize("headers", [True, False])
def test_a_quota_of_half_the_load_costs_no_event(retry_after: bool, headers: bool) -> None:
    """With a quota at half of the load that nobody configured, every event is answered in the end: none is a dead letter."""
    clock = VirtualClock(1)
    behaviour = Behaviour(
        median_s=0.2,
        sigma=0.3,
        requests_per_min=3_000.0,
        quota_window_s=10.0,
        retry_after=retry_after,
        rate_headers=headers,
    )
    server = SimulatedServer(clock, {ONE: behaviour}, seed=1)
    client = Client(settings_of(max_in_flight=200, deadline_s=600.0), clock, server)

    async def one(number: int) -> Outcome:
        await clock.sleep(number / 100)
        return await client.call(Call(str(number), Chat((Message("user", "x"),)), clock.now_ms() + 600_000))

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(one(number) for number in range(3_000)))

    outcomes = clock.run(main())
    counts = server.counts(ONE)
    assert all(outcome.reply for outcome in outcomes)
    assert counts.throttled <= 0.06 * counts.sent
    assert clock.monotonic_s() <= 3_000 / 50 * 1.25


def test_two_processes_with_half_a_share_each_keep_to_the_quota() -> None:
    """Two clients at twice the quota's load reach 95 % of it with 0.5 % 429s at most, and none inside a window of Retry-After."""
    clock = VirtualClock(2)
    behaviour = Behaviour(median_s=0.2, requests_per_min=2_400.0, quota_window_s=60.0)
    server = SimulatedServer(clock, {ONE: behaviour}, seed=2)
    quota = QuotaSettings(requests_per_min=2_400.0, share=0.5)
    clients = [Client(settings_of(quota=quota, max_in_flight=200), clock, server) for _ in range(2)]
    answered_s: list[float] = []

    async def one(number: int) -> None:
        await clock.sleep(number / 80)
        call = Call(str(number), Chat((Message("user", "x"),)), clock.now_ms() + 120_000)
        outcome = await clients[number % 2].call(call)
        if outcome.reply:
            answered_s.append(clock.monotonic_s())

    async def main() -> None:
        await asyncio.gather(*(one(number) for number in range(14_400)))

    clock.run(main())
    counts = server.counts(ONE)
    goodput = sum(60.0 <= at_s < 180.0 for at_s in answered_s) / 2.0
    assert goodput >= 0.95 * 2_400
    assert counts.throttled <= 0.005 * counts.sent
    assert counts.inside_windows == 0


def test_a_hard_limit_of_the_server_is_found() -> None:
    """A server that refuses beyond 20 at once is kept below that, without a quota of its own, and every event is answered."""
    clock = VirtualClock(3)
    server = SimulatedServer(clock, {ONE: Behaviour(median_s=0.2, sigma=0.2, most_in_flight=20)}, seed=3)
    client = Client(settings_of(), clock, server)

    async def one(number: int) -> Outcome:
        await clock.sleep(number / 80)
        return await client.call(Call(str(number), Chat((Message("user", "x"),)), clock.now_ms() + 120_000))

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(one(number) for number in range(4_000)))

    assert all(outcome.reply for outcome in clock.run(main()))
    assert server.counts(ONE).throttled <= 0.05 * 4_000


def test_a_server_that_takes_its_time_is_not_starved_at_the_start() -> None:
    """Calls of 30 s at 5/s: the limit does not wait for their first results, and all are answered well within their deadline."""
    bench = Bench([replied(after_s=30.0)], settings_of(timeout_s=60.0))
    outcomes = bench.ask_all(*(bench.call(str(number), deadline_s=600.0) for number in range(600)), every_s=0.2)
    assert all(outcome.reply for outcome in outcomes)
    assert max(outcome.total_ms for outcome in outcomes) < 40_000


# Reports


def test_what_is_reported_adds_up() -> None:
    """Outcomes, attempts by how they ended, retries and tokens are counted once each, and nothing is left in flight."""
    script = [answered(500), answered(429), replied(), answered(400), replied()]
    bench = Bench(script, settings_of(max_in_flight=1))
    outcomes = bench.ask_all(*(bench.call(str(number)) for number in range(6)))
    assert isinstance(bench.client, Client)
    telemetry = bench.client.telemetry
    telemetry.refresh()
    counters = telemetry.snapshot().counters
    by_name: dict[str, dict[str, float]] = {}
    for series, value in counters.items():
        by_name.setdefault(series.name, {})[series.values[-1]] = value
    failed = sum(outcome.reply is None for outcome in outcomes)
    assert by_name[names.OUTCOMES.name] == {"ok": 6.0 - failed, "refused": float(failed)}
    attempts = by_name[names.ATTEMPTS.name]
    assert (attempts["server-error"], attempts["throttled"], attempts["refused"]) == (1.0, 1.0, 1.0)
    assert sum(attempts.values()) == len(bench.transport.sent) == sum(outcome.attempts for outcome in outcomes)
    assert by_name[names.RETRIES.name] == {"server-error": 1.0, "throttled": 1.0}
    gauges = {series.name: value for series, value in telemetry.snapshot().gauges.items()}
    assert gauges[names.CALLS_IN_FLIGHT.name] == 0
    assert gauges[names.CONCURRENCY_LIMIT.name] >= 1
