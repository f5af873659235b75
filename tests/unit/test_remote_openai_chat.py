"""The wire protocol `openai-chat`: what is sent, what is taken for a reply, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from transforms.errors import BrokenReply
from transforms.remote.openai_chat import Message, Reply, parse_reply, request_body


def body(**over: Any) -> bytes:
    good: dict[str, Any] = {
        "id": "chatcmpl-1",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    return json.dumps({**good, **over}).encode()


def choice(**over: Any) -> list[dict[str, Any]]:
    return [{"message": {"content": "Hi."}, "finish_reason": "stop", **over}]


def test_a_request_holds_model_messages_and_params() -> None:
    """The body holds the model, the messages in their order and the params, and the reserved ones not."""
    messages = (Message("system", "Be brief."), Message("user", "Grüße, 你好"))
    sent = json.loads(request_body("m", messages, {"max_tokens": 5, "stream": True, "model": "x", "messages": []}))
    assert sent == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße, 你好"}],
        "max_tokens": 5,
    }


@pytest.mark.parametrize(
    ("given", "reply"),
    [
        (body(), Reply("Hi.", "stop", "m", 3, 2)),
        (body(usage=None), Reply("Hi.", "stop", "m")),
        (body(usage={}), Reply("Hi.", "stop", "m")),
        (body(model=None), Reply("Hi.", "stop", None, 3, 2)),
        (body(error=None), Reply("Hi.", "stop", "m", 3, 2)),
        (body(choices=choice(finish_reason=None)), Reply("Hi.", None, "m", 3, 2)),
        (body(choices=choice(message={"content": ""})), Reply("", "stop", "m", 3, 2)),
        (body(choices=choice() + choice(message={"content": "Second."})), Reply("Hi.", "stop", "m", 3, 2)),
    ],
)
def test_a_good_body_gives_a_reply(given: bytes, reply: Reply) -> None:
    """The first choice's text is the reply; what else the server says is kept where it says it."""
    assert parse_reply(given) == reply


BROKEN = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"<html>502</html>",
    body()[:-1],
    body()[: len(body()) // 2],
    body() + b"}",
    body().replace(b"Hi.", b"\xff\xfe"),
    body().decode().encode("utf-16"),
    body(choices=None),
    body(choices=[]),
    body(choices={}),
    body(choices=[None]),
    body(choices=[{}]),
    body(choices=choice(message=None)),
    body(choices=choice(message={})),
    body(choices=choice(message={"content": None})),
    body(choices=choice(message={"content": 1})),
    body(choices=choice(message={"content": ["Hi."]})),
    body(choices=choice(finish_reason=1)),
    body(model=1),
    body(usage={"prompt_tokens": -1}),
    body(usage={"prompt_tokens": 1.5}),
    body(usage={"prompt_tokens": True}),
    body(usage=[]),
    b'{"error": {"message": "overloaded"}}',
    b'{"error": "overloaded"}',
    b'{"choices": ' + b"[" * 100_000,
    b'{"x": ' + b"[" * 100_000,
]


@pytest.mark.parametrize("given", BROKEN, ids=range(len(BROKEN)))
def test_anything_else_is_a_broken_reply(given: bytes) -> None:
    """A body that is cut, not UTF-8, of another shape or an error object is a BrokenReply with a sentence."""
    with pytest.raises(BrokenReply) as caught:
        parse_reply(given)
    assert str(caught.value).endswith(".")


def test_every_cut_of_a_good_body_is_broken() -> None:
    """No prefix of a good body is taken for a reply."""
    good = body()
    for length in range(len(good)):
        with pytest.raises(BrokenReply):
            parse_reply(good[:length])


def test_an_error_object_is_quoted() -> None:
    """The sentence about an error object in a 200 holds the server's own words."""
    with pytest.raises(BrokenReply, match="overloaded"):
        parse_reply(b'{"error": {"message": "overloaded"}}')
