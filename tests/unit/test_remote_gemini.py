"""The wire protocol `gemini`: what is sent, whole answers and streams, blocked prompts, schemas."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from transforms.errors import BrokenReply, CallError, Refused, ServerFailed, SettingsError, Throttled
from transforms.remote.client import Call, Client
from transforms.remote.fakes import FakeTransport, Scripted, VirtualClock
from transforms.remote.gemini import Gemini, GeminiStream, narrowed, parse_reply
from transforms.remote.protocols import ProtocolSettings
from transforms.remote.questions import Chat, Message, Reply, Text
from transforms.remote.settings import Endpoint, ModelSettings
from transforms.remote.streams import StreamSettings

CHAT = Chat(
    (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Grüße"))
)


def made(params: dict[str, Any] | None = None, stream: bool = False, **options: Any) -> Gemini:
    return Gemini(ProtocolSettings(model="gemini-2.5-flash", params=params or {}, options=options, stream=stream))


def read(stream: bytes) -> Reply:
    """The reply of a stream that comes in one piece."""
    reader = GeminiStream()
    reader.feed(stream, 0.0)
    return reader.reply()


def part(text: str | None, finish: str | None = None, **over: Any) -> dict[str, Any]:
    content = {} if text is None else {"content": {"role": "model", "parts": [{"text": text}]}}
    return {"candidates": [{**content, **({"finishReason": finish} if finish else {}), "index": 0}], **over}


USAGE = {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 12, "thoughtsTokenCount": 2}


def test_a_request_is_the_documents_form() -> None:
    """System messages stand apart, the assistant is the model, params are the generation config but for those beside it."""
    sent = made({"maxOutputTokens": 5, "temperature": 0, "safetySettings": []}).request([CHAT])
    assert sent.path == "/models/gemini-2.5-flash:generateContent"
    assert json.loads(sent.body) == {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Hi"}]},
            {"role": "model", "parts": [{"text": "Yes?"}]},
            {"role": "user", "parts": [{"text": "Grüße"}]},
        ],
        "safetySettings": [],
        "generationConfig": {"maxOutputTokens": 5, "temperature": 0},
    }
    assert sent.tokens == 5 + 3 + 1 + 1 + 2
    assert made(stream=True).request([CHAT]).path == "/models/gemini-2.5-flash:streamGenerateContent?alt=sse"


SCHEMA = {
    "$schema": "x",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "a": {"type": ["string", "null"], "minLength": 1},
        "type": {"const": "x", "type": "string"},
        "c": {"type": "array", "items": {"type": "integer", "multipleOf": 2}},
        "d": {"anyOf": [{"type": "number", "exclusiveMinimum": 0}]},
    },
    "required": ["a"],
}


def test_a_schema_is_sent_in_the_part_that_is_taken() -> None:
    """What responseSchema has no word for is left out at every depth; a property may bear the name of a keyword."""
    config = json.loads(made().request([Chat(CHAT.messages, SCHEMA)]).body)["generationConfig"]
    assert config == {
        "responseMimeType": "application/json",
        "responseSchema": {
            "type": "object",
            "properties": {
                "a": {"type": "string", "nullable": True, "minLength": 1},
                "type": {"type": "string", "enum": ["x"]},
                "c": {"type": "array", "items": {"type": "integer"}},
                "d": {"anyOf": [{"type": "number"}]},
            },
            "required": ["a"],
        },
    }
    whole = json.loads(made(schema="responseJsonSchema").request([Chat(CHAT.messages, SCHEMA)]).body)
    assert whole["generationConfig"]["responseJsonSchema"] == SCHEMA
    assert b"generationConfig" not in made(schema="none").request([Chat(CHAT.messages, SCHEMA)]).body


@pytest.mark.parametrize("schema", [{"$ref": "#/x"}, {"type": ["string", "integer"]}, {"items": {"$ref": "#/x"}}])
def test_a_schema_that_cannot_be_sent_is_refused(schema: dict[str, Any]) -> None:
    """A reference or a choice of types is not silently dropped."""
    with pytest.raises(ValueError, match="responseSchema"):
        narrowed(schema)
    with pytest.raises(Refused):
        made().request([Chat(CHAT.messages, schema)])


@pytest.mark.parametrize(
    "question", [Text("a"), Chat(()), Chat((Message("system", "x"),)), Chat((Message("tool", "x"),))]
)
def test_a_question_without_a_form_is_refused(question: Any) -> None:
    """Texts, conversations without a user, and unknown roles."""
    with pytest.raises(Refused):
        made().request([question])


def test_a_good_answer_gives_a_reply() -> None:
    """The parts of the first candidate are its text, but for thoughts; thoughts count among the tokens."""
    parts = [{"text": "Hm", "thought": True}, {"text": "Gr"}, {"inlineData": {}}, {"text": "üße"}]
    body = {
        "candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}],
        "usageMetadata": USAGE,
        "modelVersion": "v",
    }
    assert parse_reply(json.dumps(body).encode()) == Reply("Grüße", "stop", "v", 7, 5)
    assert parse_reply(json.dumps(part("a", "MAX_TOKENS")).encode()) == Reply("a", "length")
    assert parse_reply(json.dumps(part("a", "LANGUAGE")).encode()) == Reply("a", "language")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"candidates": []}', json.dumps(part("a")).encode(), json.dumps(part(None, "SAFETY")).encode(),
     json.dumps(part(None, "STOP")).encode(), json.dumps(part("", "STOP")).encode(), json.dumps(part("half", "SAFETY")).encode(),
     json.dumps(part("half", "RECITATION")).encode(), json.dumps(part(None, "MAX_TOKENS")).encode(),
     b'{"error": {"message": "overloaded"}}', b'{"candidates": [{"content": {"parts": [{"text": 3}]}}]}'],
)  # fmt: skip
def test_what_is_no_answer_is_broken(body: bytes) -> None:
    """No JSON, no candidate, no finish reason, no text, text that a filter cut off, an error object: whole and as a stream."""
    with pytest.raises(BrokenReply):
        parse_reply(body)
    with pytest.raises(BrokenReply):
        read(b"data: " + body + b"\r\n\r\n")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 400, "status": "INVALID_ARGUMENT"}, Refused),
        ({"status": "PERMISSION_DENIED"}, Refused),
        ({"code": 429, "status": "RESOURCE_EXHAUSTED"}, Throttled),
        ({"status": "RESOURCE_EXHAUSTED"}, Throttled),
        ({"code": 503, "status": "UNAVAILABLE"}, ServerFailed),
        ({"status": "INTERNAL"}, ServerFailed),
        ({"code": 7, "status": "NEW"}, BrokenReply),
    ],
)
def test_an_error_in_a_stream_is_that_of_its_status(error: dict[str, Any], kind: type[CallError]) -> None:
    """The code, or else the status in Google's words, says what the same one says outside of a stream."""
    reader = GeminiStream()
    reader.feed(b"data: " + json.dumps(part("a")).encode() + b"\n\n", 0.0)
    with pytest.raises(CallError, match="so it is") as caught:
        reader.feed(b"data: " + json.dumps({"error": {"message": "so it is", **error}}).encode() + b"\n\n", 0.0)
    assert type(caught.value) is kind


def test_a_stream_may_ask_for_time() -> None:
    """The delay in an error's details is heeded, as it is outside of a stream."""
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}]
    body = json.dumps({"error": {"code": 429, "message": "so it is", "details": details}}).encode()
    clock = VirtualClock()
    transport = FakeTransport(clock, [Scripted(body=b"data: " + body + b"\n\n"), Scripted(body=STREAM)])
    settings = ModelSettings(
        role="answer", endpoints=(Endpoint("http://one"),), model="m", protocol="gemini", stream=StreamSettings()
    )
    call = Call("e-1", CHAT, clock.now_ms() + 60_000)
    outcome = clock.run(Client(settings, clock, transport).call(call))
    assert outcome.reply is not None, outcome.error_message
    assert transport.sent[1].at_s - transport.sent[0].at_s >= 7.0


def test_the_chunks_of_a_stream_are_counted() -> None:
    """Comments are none; the first chunk may come before the first text."""
    reader, pieces = GeminiStream(), [b": ping\n\n", *(STREAM[:-4] + b"\r\n\r\n").split(b"\r\n\r\n")[:4]]
    for moment_s, piece in enumerate([pieces[0], *(one + b"\r\n\r\n" for one in (pieces[3], *pieces[1:3], pieces[4]))]):
        reader.feed(piece, float(moment_s))
    assert (reader.chunks, reader.first_chunk_s, reader.first_token_s) == (4, 1.0, 2.0)
    assert reader.size == len(STREAM) + len(pieces[0])


def test_a_blocked_prompt_is_refused() -> None:
    """It would be blocked again, so it is not asked again: whole and as a stream."""
    body = json.dumps({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}).encode()
    with pytest.raises(Refused, match="PROHIBITED_CONTENT"):
        parse_reply(body)
    with pytest.raises(Refused, match="PROHIBITED_CONTENT"):
        GeminiStream().feed(b"data: " + body + b"\r\n\r\n", 0.0)


PIECES = [
    part("Gr", usageMetadata={"promptTokenCount": 7}, modelVersion="v"),
    part("ü"),
    part(None, usageMetadata={"promptTokenCount": 7}),
    part("ße", "STOP", usageMetadata=USAGE),
]
STREAM = b"".join(b"data: " + json.dumps(piece).encode() + b"\r\n\r\n" for piece in PIECES)


@pytest.mark.parametrize("seed", range(50))
def test_a_stream_gives_the_same_reply_however_it_is_cut(seed: int) -> None:
    """Cut at any byte into any pieces, the reply is the whole one's, with the moment of its first text."""
    rng = random.Random(seed)
    reader, at, now, done = GeminiStream(), 0, 0.0, False
    while at < len(STREAM):
        size = rng.randint(1, 60)
        now += 1.0
        done = reader.feed(STREAM[at : at + size], now)
        at += size
    assert done
    assert reader.reply() == Reply("Grüße", "stop", "v", 7, 5)
    assert reader.first_token_s is not None


@pytest.mark.parametrize("end", range(0, len(STREAM) - 1, 7))
def test_a_stream_that_was_cut_is_no_reply(end: int) -> None:
    """Wherever it is cut, before its last event is whole."""
    reader = GeminiStream()
    assert not reader.feed(STREAM[:end], 0.0)
    with pytest.raises(BrokenReply):
        reader.reply()


def test_a_stream_without_usage_ends_with_the_connection() -> None:
    """A finish reason without counts is complete once nothing more comes."""
    reader = GeminiStream()
    assert not reader.feed(b"data: " + json.dumps(part("a", "STOP")).encode() + b"\n\n", 0.0)
    assert reader.reply() == Reply("a", "stop")


@pytest.mark.parametrize("data", [b"data: {\n\n", b'data: {"error": {"message": "x"}}\n\n', b"data: \xff\n\n"])
def test_a_stream_that_is_none_is_broken(data: bytes) -> None:
    """No JSON, an error object, no UTF-8; and more than the bound."""
    with pytest.raises(BrokenReply):
        GeminiStream().feed(data, 0.0)
    with pytest.raises(BrokenReply, match="larger"):
        GeminiStream(10).feed(b"data: aaaaaaa", 0.0)


def test_reserved_params_are_refused() -> None:
    """The client writes the contents."""
    with pytest.raises(SettingsError, match="contents"):
        made({"contents": []})
