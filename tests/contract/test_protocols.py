"""What the client and a model server owe each other: one suite for every wire protocol, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from transforms.remote import loop
from transforms.remote.batcher import BatchSettings
from transforms.remote.client import Call, Client, Outcome
from transforms.remote.clock import SystemClock
from transforms.remote.double_answers import embedding_of
from transforms.remote.model_double import Fault, FaultKind, ModelDouble, reply_text
from transforms.remote.protocols import PROTOCOLS
from transforms.remote.questions import Chat, Message, Question, Reply, Tensor, Tensors, Text, Value
from transforms.remote.settings import Endpoint, ModelSettings, RetryPolicy
from transforms.remote.streams import StreamSettings
from transforms.remote.transport import AiohttpTransport

RESOURCE = "projects/p/locations/l/endpoints/1"


class Case(msgspec.Struct, frozen=True):
    """How a protocol is asked number `n`, and what is its answer."""

    protocol: str
    base: str
    question: Callable[[int], Question]
    answer: Callable[[int], Any]
    over: dict[str, Any] = {}
    any_json: bool = False
    """Whether every answer in JSON is a good one."""


def chat(number: int) -> Chat:
    return Chat((Message("system", "Be brief."), Message("user", f"Grüße {number}")))


def chat_answer(number: int) -> str:
    return reply_text(f"Grüße {number}")


def text(number: int) -> Text:
    return Text("x" * number)


def tensors(number: int) -> Tensors:
    """Two rows of two numbers, and a third for each."""
    rows = Tensor("a", "FP64", (2, 2), [number, 1.0, number, 2.0])
    return Tensors((rows, Tensor("b", "INT64", (2,), [number, number])))


def sums(number: int) -> list[float]:
    return [2.0 * number + 1.0, 2.0 * number + 2.0]


def value(number: int) -> Value:
    return Value({"a": [number, 0.5], "name": "Grüße"})


def value_sum(number: int) -> float:
    return number + 0.5


TEXT_TO_TEXT = {"path": "/json", "request": {"text": "{{text}}"}, "response": {"text": "out"}}
MANY = {
    "path": "/json",
    "request": {"texts": "{{items[].text}}"},
    "items": "results",
    "response": {"text": "out", "value": "length"},
}
STREAM = {"stream": StreamSettings(stall_s=0.2)}

CASES = {
    "openai-chat": Case("openai-chat", "/v1", chat, chat_answer),
    "openai-chat streamed": Case("openai-chat", "/v1", chat, chat_answer, STREAM),
    "openai-embeddings": Case("openai-embeddings", "/v1", text, lambda number: embedding_of("x" * number)),
    "open-inference": Case("open-inference", "", tensors, lambda number: {"sum": sums(number)}),
    "open-inference binary": Case(
        "open-inference", "", tensors, lambda number: {"sum": sums(number)}, {"options": {"binary": True}}
    ),
    "open-inference negotiated": Case(
        "open-inference", "", tensors, lambda number: {"sum": sums(number)}, {"options": {"binary": "auto"}}
    ),
    "tensorflow-serving": Case("tensorflow-serving", "", value, value_sum),
    "tensorflow-serving rows of tensors": Case("tensorflow-serving", "", tensors, sums),
    "tensorflow-serving columns": Case("tensorflow-serving", "", tensors, sums, {"options": {"format": "column"}}),
    "vertex": Case("vertex", "/v1", value, value_sum, {"model": RESOURCE}),
    "vertex raw": Case(
        "vertex",
        "/v1",
        value,
        lambda number: {"sum": value_sum(number)},
        {"model": RESOURCE, "options": {"method": "rawPredict"}},
        any_json=True,
    ),
    "gemini": Case("gemini", "/v1beta", chat, chat_answer),
    "gemini streamed": Case("gemini", "/v1beta", chat, chat_answer, STREAM),
    "http-json": Case("http-json", "", text, lambda number: reply_text("x" * number), {"options": TEXT_TO_TEXT}),
    "http-json many": Case("http-json", "", text, lambda number: reply_text("x" * number), {"options": MANY}),
}


class Room:
    """A client of one protocol and its double. Attempts time out after 0.3 s."""

    def __init__(self, case: Case, double: ModelDouble, **over: Any) -> None:
        self.case = case
        self.double = double
        retry = RetryPolicy(max_attempts=3, base_s=0.001, cap_s=0.01, wait_for_server=False)
        settings = {
            "role": "answer",
            "protocol": case.protocol,
            "endpoints": (Endpoint(double.root_url + case.base),),
            "model": "double",
            "timeout_s": 0.3,
            "retry": retry,
            **case.over,
            **over,
        }
        self.settings = ModelSettings(**settings)
        self.client = Client(self.settings)

    def ask(self, *numbers: int, question: Question | None = None) -> list[Outcome]:
        deadline_ms = SystemClock().now_ms() + 30_000

        async def main() -> list[Outcome]:
            calls = [Call(f"e{number}", question or self.case.question(number), deadline_ms) for number in numbers]
            return await asyncio.gather(*map(self.client.call, calls))

        return loop.run(main()).result(60.0)

    def close(self) -> None:
        loop.run(self.client.close()).result(60.0)


def answered(reply: Reply | None) -> Any:
    """What was answered, as text or as value."""
    return reply and (reply.text or reply.value)


@pytest.fixture(params=CASES)
def room(request: pytest.FixtureRequest, double: ModelDouble) -> Iterator[Room]:
    """Each protocol in its forms."""
    made = Room(CASES[request.param], double)
    yield made
    made.close()


def test_every_protocol_is_here() -> None:
    """A protocol without a case is one that nobody has seen on a socket."""
    elsewhere = {"open-inference-grpc"}  # test_open_inference_grpc.py
    assert {case.protocol for case in CASES.values()} == set(PROTOCOLS) - elsewhere


def test_each_question_has_its_own_answer(room: Room) -> None:
    """Of many questions at once, each gets its answer, in one attempt, under its own id."""
    numbers = range(1, 31)
    outcomes = room.ask(*numbers)
    assert [outcome.error_message for outcome in outcomes] == [None] * 30
    assert [answered(outcome.reply) for outcome in outcomes] == [room.case.answer(number) for number in numbers]
    assert {outcome.attempts for outcome in outcomes} == {1}


BATCHED = [
    name
    for name in CASES
    if not {"chat", "gemini", "raw"} & set(name.replace("-", " ").split()) and name != "http-json"
]


@pytest.mark.parametrize("name", BATCHED)
def test_questions_that_travel_together_have_their_own_answers(name: str, double: ModelDouble) -> None:
    """In batches, few requests are sent, and each question still gets its own answer, whatever number of rows it has."""
    room = Room(CASES[name], double, batch=BatchSettings(max_items=8, max_wait_ms=1000.0, idle_below=0))
    numbers = range(1, 33)
    outcomes = room.ask(*numbers)
    room.close()
    assert [answered(outcome.reply) for outcome in outcomes] == [room.case.answer(number) for number in numbers]
    assert double.requests == 4


PASSING: list[FaultKind] = [
    "status", "drop", "hang", "truncate", "garbage", "not-json", "not-utf8", "no-choices", "error-object", "slow", "cut",
]  # fmt: skip


@pytest.mark.parametrize("kind", PASSING)
def test_a_fault_that_passes_is_outlived(room: Room, kind: FaultKind) -> None:
    """Whatever goes wrong with the first answer, the second is the reply; half an answer is never one."""
    if room.case.any_json and kind in ("no-choices", "error-object"):
        kind = "not-json"  # the body is the container's: every answer in JSON is a good one
    room.double.set_faults(Fault(kind, status=503, attempts=(1,)))
    (outcome,) = room.ask(3)
    assert answered(outcome.reply) == room.case.answer(3), outcome.error_message
    assert outcome.attempts == 2
    assert room.double.attempts == {"e3": 2}


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_final(room: Room, status: int) -> None:
    """A request that the server does not want is sent once."""
    room.double.set_faults(Fault("status", status=status))
    (outcome,) = room.ask(3)
    assert (outcome.error_type, outcome.attempts, room.double.requests) == ("refused", 1, 1)


def test_a_server_that_asks_for_time_gets_it(room: Room) -> None:
    """A 429 is waited out, and is no attempt that counts against the event."""
    room.double.set_faults(Fault("status", status=429, retry_after="0.05", attempts=(1, 2, 3)))
    (outcome,) = room.ask(3)
    assert answered(outcome.reply) == room.case.answer(3), outcome.error_message
    assert outcome.attempts == 4


def test_a_question_of_another_kind_is_not_sent(room: Room) -> None:
    """It is refused here, and costs no request."""
    wrong = tensors(1) if not isinstance(room.case.question(1), Tensors) else text(1)
    if room.case.protocol in ("tensorflow-serving", "vertex"):
        wrong = text(1)
    (outcome,) = room.ask(3, question=wrong)
    assert (outcome.error_type, outcome.attempts, room.double.requests) == ("refused", 0, 0)


def test_the_probe_of_a_protocol_answers_while_the_server_is_well(room: Room) -> None:
    """Where a protocol has a path for health probes, it gives 200 on a server that works; else the server's own does."""
    path = room.settings.make_protocol().probe_path or "/health"
    base = room.settings.endpoints[0].url if room.settings.make_protocol().probe_path else room.double.root_url

    async def main() -> int:
        transport = AiohttpTransport()
        try:
            return (await transport.get(base + path, {}, 10.0))[0]
        finally:
            await transport.close()

    assert loop.run(main()).result(60.0) == 200


@pytest.mark.parametrize("name", ["openai-chat streamed", "gemini streamed"])
def test_a_stream_is_read_as_it_comes(name: str, double: ModelDouble) -> None:
    """Longer than the bound on a silence in all, its pieces are not: it is read to its end, and its first text is timed."""
    with ModelDouble(piece_ms=80.0) as slow:
        room = Room(CASES[name], slow, timeout_s=10.0)
        (outcome,) = room.ask(3)
        room.close()
    assert answered(outcome.reply) == chat_answer(3)
    assert outcome.reply is not None
    assert outcome.reply.first_token_ms is not None
    assert outcome.reply.first_token_ms < outcome.model_ms


def test_a_stream_that_falls_silent_is_cut_off(double: ModelDouble) -> None:
    """A server that hangs in the middle is noticed by its silence, long before the attempt's time is over."""
    room = Room(CASES["openai-chat streamed"], double, timeout_s=20.0)
    double.set_faults(Fault("slow", attempts=(1,)))
    (outcome,) = room.ask(3)
    room.close()
    assert answered(outcome.reply) == chat_answer(3)
    assert double.wait_until(lambda stats: stats.disconnects >= 1).disconnects == 1
