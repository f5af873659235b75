"""The wire protocol `openai-chat`: what is sent, what is taken for a reply, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from transforms.errors import BrokenReply
from transforms.remote.chain import Chain
from transforms.remote.client import Call, Client, Outcome
from transforms.remote.fakes import FakeTransport, Scripted, Sent, VirtualClock, answered, replied
from transforms.remote.openai_chat import Message, Reply, parse_reply, request_body
from transforms.remote.questions import Chat
from transforms.remote.settings import Endpoint, ModelSettings, RetryPolicy


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
    body(choices=choice(finish_reason="content_filter")),
    body(choices=choice(message={"content": "", "tool_calls": []}, finish_reason="tool_calls")),
    body(choices=choice(message={"content": None, "refusal": "No."})),
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


def settings_of(**over: Any) -> ModelSettings:
    base = {"role": "answer", "endpoints": (Endpoint("http://one/v1"),), "model": "m"}
    return ModelSettings(**{**base, **over})


def sent_by(settings: ModelSettings, script: Any, key: str = "e-1") -> tuple[Outcome, list[Sent]]:
    """What becomes of one call of a chain, and what it sends, in a process of its own."""
    clock = VirtualClock()
    transport = FakeTransport(clock, script)
    call = Call(key, Chat((Message("user", "Hi"),)), clock.now_ms() + 60_000)
    return clock.run(Chain(settings, clock, transport).call(call)), transport.sent


def test_no_key_is_used_with_two_bodies() -> None:
    """A server that refuses a key that comes again with another body lets a chain's fallback answer."""
    bodies: dict[str, bytes] = {}

    def script(sent: Sent) -> Scripted:
        if bodies.setdefault(sent.key, sent.body) != sent.body:
            return answered(422, b"this Idempotency-Key is used already")
        return replied() if b"small" in sent.body else answered(400, b"too long")

    small = settings_of(role="small", model="m-small", timeout_s=5.0)
    outcome, sent = sent_by(settings_of(fallback=small), script)
    assert outcome.reply is not None, outcome.error_message
    assert [one.id for one in sent] == ["e-1", "e-1"]


def test_a_key_names_the_event_and_the_model() -> None:
    """It is the same at each attempt and in each process, and readable; only what shapes the body makes it another one."""
    outcome, sent = sent_by(settings_of(), [answered(500), replied()])
    assert outcome.attempts == 2
    assert [one.key for one in sent] == ["e-1:answer-6da20fc3"] * 2
    keys = {
        sent_by(settings_of(**over), [replied()])[1][0].key
        for over in [{"model": "n"}, {"params": {"max_tokens": 3}}, {"options": {"schema": "none"}}, {"role": "b c:d"}]
    }
    assert len(keys) == 4
    assert sent[0].key not in keys
    assert all(key.isascii() and key.isprintable() and " " not in key and key.count(":") == 1 for key in keys)
    other = settings_of(endpoints=(Endpoint("http://two/v1"),), timeout_s=3.0, retry=RetryPolicy(max_attempts=2))
    assert sent_by(other, [replied()])[1][0].key == sent[0].key
    same = sent_by(settings_of(params={"b": {1: 2, "c": 3}, "a": 1}), [replied()])[1][0]
    assert sent_by(settings_of(params={"a": 1, "b": {"c": 3, 1: 2}}), [replied()])[1][0].key == same.key


def test_an_id_may_hold_a_colon() -> None:
    """What stands before the last colon of a key is the event's id."""
    _, (sent,) = sent_by(settings_of(), [replied()], "urn:event:1")
    assert sent.id == "urn:event:1"
    assert sent.key.startswith("urn:event:1:answer-")


def test_a_param_without_a_json_form_does_not_keep_a_client_from_being_made() -> None:
    """It is the call that is refused."""
    settings = settings_of(params={"x": object()})
    Client(settings)
    outcome, sent = sent_by(settings, [replied()])
    assert (outcome.error_type, sent) == ("refused", [])
