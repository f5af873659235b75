"""The wire protocol `openai-embeddings`: what is sent, what is taken for a reply, and what is not."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import struct
from typing import Any

import pytest

from transforms.errors import BrokenReply, Refused
from transforms.remote.batcher import Batcher, BatchSettings, TokenEstimate, rough_tokens
from transforms.remote.fakes import FakeTransport, Scripted, Sent, VirtualClock, answered
from transforms.remote.openai_embeddings import PATH, EmbeddingsReply, parse_reply, request_body


def packed(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def item(index: int, *numbers: float, **over: Any) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": list(numbers), **over}


def body(*data: Any, **over: Any) -> bytes:
    good = {"object": "list", "data": list(data), "model": "m", "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    return json.dumps({**good, **over}).encode()


GOOD = body(item(0, 0.5, 1.0), item(1, 0.25, -1.0))


def test_a_request_holds_model_texts_and_params() -> None:
    """The body holds the texts in their order and the params, numbers as floats unless asked for, the reserved not."""
    sent = json.loads(request_body("m", ["Grüße", "你好"], {"dimensions": 2, "model": "x", "input": []}))
    assert sent == {"model": "m", "input": ["Grüße", "你好"], "encoding_format": "float", "dimensions": 2}
    assert json.loads(request_body("m", ["a"], {"encoding_format": "base64"}))["encoding_format"] == "base64"
    with pytest.raises(ValueError, match="surrogates"):
        request_body("m", ["\ud800"], {})


@pytest.mark.parametrize(
    ("given", "reply"),
    [
        (GOOD, EmbeddingsReply(((0.5, 1.0), (0.25, -1.0)), "m", 8)),
        (body(item(1, 2), item(0, 1)), EmbeddingsReply(((1.0,), (2.0,)), "m", 8)),
        (body(item(0, 1.0), item(1, 2.0), usage=None), EmbeddingsReply(((1.0,), (2.0,)), "m")),
        (body(item(0, 1.0), item(1, 2.0), model=None, usage={}), EmbeddingsReply(((1.0,), (2.0,)))),
        (body(item(0, embedding=packed(0.5, 1)), item(1, 0.25, -1)), EmbeddingsReply(((0.5, 1), (0.25, -1)), "m", 8)),
    ],
)
def test_a_good_body_gives_a_reply(given: bytes, reply: EmbeddingsReply) -> None:
    """The vectors stand in the order of the texts, in whichever form and order they came."""
    assert parse_reply(given, 2) == reply


@pytest.mark.parametrize("seed", range(50))
def test_any_order_and_form_gives_the_same_vectors(seed: int) -> None:
    """However a server orders its data, and whether it packs a vector or not, each text gets its own."""
    chance = random.Random(seed)
    count = chance.randint(1, 64)
    vectors = [tuple(chance.randint(-999, 999) / 8 for _ in range(3)) for _ in range(count)]
    data = [
        item(index, embedding=packed(*vector) if chance.random() < 0.5 else list(vector))
        for index, vector in enumerate(vectors)
    ]
    chance.shuffle(data)
    assert list(parse_reply(body(*data), len(data)).vectors) == vectors


BROKEN = [
    b"",
    b"null",
    b"{}",
    b"<html>502</html>",
    GOOD[:-1],
    GOOD + b"}",
    GOOD.decode().encode("utf-16"),
    body(),
    body(item(0, 1.0)),
    body(item(0, 1.0), item(1, 2.0), item(2, 3.0)),
    body(item(0, 1.0), item(0, 2.0)),
    body(item(1, 1.0), item(2, 2.0)),
    body(item(0, 1.0), item(-1, 2.0)),
    body(item(0, 1.0), {"embedding": [2.0]}),
    body(item(0, 1.0), {"index": 1}),
    body(item(0, 1.0), None),
    body(item(0, 1.0), item(1)),
    body(item(0, 1.0), item(1, 1.0, 2.0)),
    body(item(0, 1.0), item(1, embedding=None)),
    body(item(0, 1.0), item(1, embedding=["1"])),
    body(item(0, 1.0), item(1, embedding=[True])),
    body(item(0, 1.0), item(1, embedding=[[1.0]])),
    body(item(0, 1.0), item(1, embedding="?")),
    body(item(0, 1.0), item(1, embedding="AAA")),
    body(item(0, 1.0), item(1, embedding="AAAA")),
    body(item(0, 1.0), item(1, embedding="ÄÄÄÄ")),
    body(item(0, 1.0), item(1, embedding="")),
    body(item(0, 1.0), item(1, embedding=packed(float("nan")))),
    body(item(0, 1.0), item(1, embedding=packed(float("inf")))),
    body(item(0, 1.0), item(1, float("nan"))),
    body(item(0, 1.0), item(1, 2.0)).replace(b"2.0", b"1e999"),
    body(item(0, 1.0), item(1, 2.0), model=1),
    body(item(0, 1.0), item(1, 2.0), usage={"prompt_tokens": -1}),
    body(item(0, 1.0), item(1, 2.0), usage=[]),
    b'{"error": {"message": "overloaded"}}',
    b'{"data": ' + b"[" * 100_000,
]


@pytest.mark.parametrize("given", BROKEN, ids=range(len(BROKEN)))
def test_anything_else_is_a_broken_reply(given: bytes) -> None:
    """What is cut, short, long, doubled, of another shape or not of numbers is a BrokenReply with a sentence."""
    with pytest.raises(BrokenReply) as caught:
        parse_reply(given, 2)
    assert str(caught.value).endswith(".")


def test_every_cut_of_a_good_body_is_broken() -> None:
    """No prefix of a good body is taken for a reply."""
    for length in range(len(GOOD)):
        with pytest.raises(BrokenReply):
            parse_reply(GOOD[:length], 2)


def test_an_error_object_is_quoted() -> None:
    """The sentence about an error object in a 200 holds the server's own words."""
    with pytest.raises(BrokenReply, match="overloaded"):
        parse_reply(b'{"error": {"message": "overloaded"}}', 1)


def server(sent: Sent) -> Scripted:
    """A server that answers out of order, counts a token a character, and refuses a blank text."""
    texts = json.loads(sent.body)["input"]
    if "" in texts:
        return answered(400, b"input may not be blank")
    data = [item(index, float(len(text))) for index, text in enumerate(texts)]
    return answered(200, body(*reversed(data), usage={"prompt_tokens": sum(map(len, texts))}), 0.1)


def test_texts_of_many_callers_travel_together() -> None:
    """Behind a batcher each caller gets the vector of its text, a blank text only its own refusal."""
    clock = VirtualClock()
    transport = FakeTransport(clock, server)
    estimate = TokenEstimate()

    async def send(texts: list[str]) -> tuple[tuple[float, ...], ...]:
        status, _, given = await transport.post(f"http://one/v1{PATH}", request_body("m", texts, {}), {}, 1.0)
        if status != 200:
            raise Refused("answered 400.", status)
        reply = parse_reply(given, len(texts))
        estimate.correct(sum(map(rough_tokens, texts)), reply.prompt_tokens)
        return reply.vectors

    async def main() -> list[Any]:
        batcher: Batcher[str, tuple[float, ...]] = Batcher(BatchSettings(), send, clock, estimate=estimate)
        texts = ["x" * length for length in range(64)]
        return await asyncio.gather(*(batcher.submit(text) for text in texts), return_exceptions=True)

    blank, *vectors = clock.run(main())
    assert isinstance(blank, Refused)
    assert vectors == [(float(length),) for length in range(1, 64)]
    assert len(transport.sent) == 13
    assert estimate.ratio == pytest.approx(4.0, rel=0.1)
