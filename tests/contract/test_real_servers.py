"""The wire protocols on servers that others wrote: llama.cpp, MLServer and LLMock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.contract import real_servers
from tests.contract.real_servers import MODEL, score_of
from transforms.remote import loop
from transforms.remote.batcher import BatchSettings
from transforms.remote.client import Call, Client, Outcome
from transforms.remote.clock import SystemClock
from transforms.remote.grpc_transport import GrpcTransport
from transforms.remote.questions import Chat, Message, Question, Tensor, Tensors, Text
from transforms.remote.settings import Endpoint, ModelSettings, RetryPolicy
from transforms.remote.streams import StreamSettings
from transforms.remote.transport import AiohttpTransport

FEW = RetryPolicy(max_attempts=8, base_s=0.01, cap_s=0.1, wait_for_server=False)


def ask(url: str, questions: list[Question], **over: Any) -> list[Outcome]:
    """Ask all at once, with a client of their own."""
    settings = ModelSettings(**{"role": "answer", "endpoints": (Endpoint(url),), "model": "m", "retry": FEW, **over})
    deadline_ms = SystemClock().now_ms() + 60_000

    async def main() -> list[Outcome]:
        client = Client(settings)
        calls = [Call(f"{over}-{at}"[-80:], question, deadline_ms) for at, question in enumerate(questions)]
        try:
            return await asyncio.gather(*map(client.call, calls))
        finally:
            await client.close()

    return loop.run(main()).result(120.0)


def chat(text: str, schema: dict[str, Any] | None = None) -> Chat:
    return Chat((Message("system", "You are brief."), Message("user", text)), schema)


# llama.cpp


def test_llama_streams_what_it_says_as_a_whole(llm: str) -> None:
    """The pieces of a stream are the same text as the whole, with the same counts, and the first of them is timed."""
    greedy = {"max_tokens": 12, "temperature": 0, "seed": 1}
    (whole,) = ask(llm, [chat("Count to five.")], params=greedy)
    (streamed,) = ask(llm, [chat("Count to five.")], params=greedy, stream=StreamSettings())
    assert whole.reply is not None, whole.error_message
    assert streamed.reply is not None, streamed.error_message
    assert streamed.reply.text == whole.reply.text
    assert whole.reply.completion_tokens
    assert streamed.reply.completion_tokens == whole.reply.completion_tokens
    assert streamed.reply.finish_reason == whole.reply.finish_reason
    assert streamed.reply.first_token_ms is not None
    assert 0.0 < streamed.reply.first_token_ms < streamed.model_ms


def test_llama_keeps_to_a_schema(llm: str) -> None:
    """A question's schema reaches the server, which writes nothing else."""
    schema = {
        "type": "object",
        "properties": {"tone": {"enum": ["calm", "angry"]}, "urgent": {"type": "boolean"}},
        "required": ["tone", "urgent"],
        "additionalProperties": False,
    }
    (outcome,) = ask(llm, [chat("Where is my parcel?!", schema)], params={"max_tokens": 64, "temperature": 0})
    assert outcome.reply is not None, outcome.error_message
    written = json.loads(outcome.reply.text)
    assert written.keys() == {"tone", "urgent"}
    assert written["tone"] in ("calm", "angry")


def test_llama_is_described_by_expressions_too(llm: str) -> None:
    """As a server of nobody's protocol, it answers the same."""
    options = {
        "path": "/chat/completions",
        "request": {"model": "{{model}}", "messages": "{{messages}}", "max_tokens": 8, "temperature": 0},
        "response": {
            "text": "choices[0].message.content",
            "finish_reason": "choices[0].finish_reason",
            "completion_tokens": "usage.completion_tokens",
        },
    }
    (described,) = ask(llm, [chat("Hello?")], protocol="http-json", options=options)
    (spoken,) = ask(llm, [chat("Hello?")], params={"max_tokens": 8, "temperature": 0})
    assert described.reply is not None, described.error_message
    assert spoken.reply is not None
    assert (described.reply.text, described.reply.completion_tokens) == (
        spoken.reply.text,
        spoken.reply.completion_tokens,
    )


# MLServer


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URLs of an MLServer, for REST and gRPC."""
    with real_servers.mlserver(tmp_path_factory.mktemp("mlserver")) as urls:
        yield urls


FORMS = {
    "rest": ("open-inference", {}),
    "rest negotiated": ("open-inference", {"binary": "auto"}),
    "grpc raw": ("open-inference-grpc", {}),
    "grpc typed": ("open-inference-grpc", {"raw": False}),
}


@pytest.fixture(params=FORMS)
def scoring(request: pytest.FixtureRequest, mlserver: tuple[str, str]) -> dict[str, Any]:
    """What to ask MLServer with, in each form."""
    protocol, options = FORMS[request.param]
    url = mlserver[0] if protocol == "open-inference" else mlserver[1]
    return {"url": url, "protocol": protocol, "options": options, "model": MODEL, "timeout_s": 20.0}


def record(number: int) -> Tensors:
    return Tensors((Tensor("x", "FP64", (1, 2), [float(number), 1.0]),))


@pytest.mark.parametrize("batch", [None, BatchSettings(max_items=8, max_wait_ms=200.0, idle_below=0)])
def test_mlserver_scores_each_record(scoring: dict[str, Any], batch: BatchSettings | None) -> None:
    """One by one or in batches, each record has the score of its own features, as the model was trained to give."""
    outcomes = ask(scoring.pop("url"), [record(number) for number in range(24)], batch=batch, **scoring)
    assert [outcome.error_message for outcome in outcomes] == [None] * 24
    for number, outcome in enumerate(outcomes):
        assert outcome.reply is not None
        ((score,),) = outcome.reply.value["predict"]
        assert score == pytest.approx(score_of(number, 1.0))
        assert outcome.reply.model == MODEL


def test_mlserver_refuses_a_model_that_it_has_not(scoring: dict[str, Any]) -> None:
    """Its 404, or NOT_FOUND, is final."""
    (outcome,) = ask(scoring.pop("url"), [record(1)], **{**scoring, "model": "absent"})
    assert (outcome.error_type, outcome.attempts) == ("refused", 1), outcome.error_message


def test_mlserver_says_whether_it_is_ready(scoring: dict[str, Any]) -> None:
    """The protocol's own probe is 200 for the model that is there, and is not for one that is absent."""
    url = scoring.pop("url")
    paths = []
    for model in (MODEL, "absent"):
        settings = ModelSettings(role="score", endpoints=(Endpoint(url),), **{**scoring, "model": model})
        paths.append(settings.make_protocol().probe_path or "")

    async def main() -> list[int]:
        transport = GrpcTransport() if url.startswith("grpc") else AiohttpTransport()
        try:
            return [(await transport.get(url + path, {}, 20.0))[0] for path in paths]
        finally:
            await transport.close()

    there, absent = loop.run(main()).result(60.0)
    assert there == 200
    assert absent != 200


# LLMock

CHATS: list[Question] = [chat(f"Say {number}") for number in range(20)]
TEXTS: list[Question] = [Text(f"word {number}") for number in range(20)]

SPOKEN = [
    ("/v1", "openai-chat", None, CHATS),
    ("/v1", "openai-chat", StreamSettings(), CHATS),
    ("/gemini/v1beta", "gemini", None, CHATS),
    ("/gemini/v1beta", "gemini", StreamSettings(), CHATS),
    ("/v1", "openai-embeddings", None, TEXTS),
]

FAULTS = (
    "--error-rate=429=0.15",
    "--error-rate=503=0.1",
    "--error-rate=500=0.05",
    "--stream-fault=truncate=0.15",
    "--latency-ms=2",
)


def test_a_server_that_judges_its_clients_finds_no_fault_with_ours(tmp_path_factory: pytest.TempPathFactory) -> None:
    """LLMock breaks a quarter of the requests and some streams: every question is answered, and its verdict is a pass."""
    with real_servers.llmock(tmp_path_factory.mktemp("llmock"), *FAULTS) as url:

        def outcomes_of(
            base: str, protocol: str, stream: StreamSettings | None, questions: list[Question]
        ) -> list[Outcome]:
            return ask(url + base, questions, protocol=protocol, stream=stream, model="gemini-2.5-flash")

        # Side by side: most of the time is what its Retry-After asks for.
        with ThreadPoolExecutor(len(SPOKEN)) as pool:
            found = [pool.submit(outcomes_of, *one) for one in SPOKEN]
        for outcomes in (one.result() for one in found):
            assert [outcome.error_message for outcome in outcomes] == [None] * 20
            assert all(outcome.reply and (outcome.reply.text or outcome.reply.value) for outcome in outcomes)
        verdict = requests.get(f"{url}/_llmock/verdict", timeout=10.0).json()
    assert verdict["passed"], verdict
    assert verdict["faults_injected"] > 0
