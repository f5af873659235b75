"""What the model double answers, by path: good answers of every wire protocol, as pure functions of the request.

Texts come from the last message of the user, or the text itself. Numbers are the sum of all numbers of a record, so that a test can
tell whose answer it has.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

STREAM_PIECES = 4
"""A streamed text comes in so many pieces, or fewer where it is shorter."""

ReplyText = Callable[[str], str]
"""Makes the reply to a text."""


class GoodAnswer(msgspec.Struct, frozen=True):
    """A good answer: its body, or the pieces of one that comes as a stream."""

    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}
    pieces: tuple[bytes, ...] = ()


class NoSuchPathError(LookupError):
    """No protocol has this path."""


def good_answer(path: str, headers: Mapping[str, str], body: bytes, reply: ReplyText) -> GoodAnswer:
    """Return the answer to a POST of `body` to `path`; `headers` have their names in lower case.

    Raises:
        NoSuchPathError: there is nothing.
        ValueError, LookupError, TypeError: the request is not one of its protocol.
    """
    for pattern, answer in _ROUTES:
        if pattern.fullmatch(path):
            return answer(path, headers, body, reply)
    raise NoSuchPathError(path)


def number_of(value: Any) -> float:
    """Return the sum of all numbers in a value of JSON."""
    if isinstance(value, bool):
        return 0.0
    if isinstance(value, int | float):
        return float(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(number_of, parts))


def embedding_of(text: str) -> list[float]:
    """Return the double's vector of a text: its length and the sum of its bytes, divided by 256."""
    data = text.encode()
    return [float(len(data)), sum(data) / 256.0]


def reply_text(message: str) -> str:
    """Return the double's reply to a user message: a pure function of it."""
    return f"Reply {blake2b(message.encode(), digest_size=4).hexdigest()} to: {message[:80]}"


def conforming(schema: Mapping[str, Any], text: str) -> Any:
    """Return a value that keeps to a JSON schema of plain words, as a server that obeys schemas gives.

    Strings are `text`, numbers the greatest allowed (else 1), arrays empty, truth values false, and of an ``enum`` the first.
    """
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: conforming(below, text) for name, below in schema.get("properties", {}).items()}
    if kind == "string":
        return "en" if "pattern" in schema else text[: schema.get("maxLength")]
    if kind in ("number", "integer"):
        return schema.get("maximum", 1)
    return {"array": [], "boolean": False}.get(str(kind))


class _Message(msgspec.Struct):
    role: str
    content: str


class _JsonSchema(msgspec.Struct):
    schema: dict[str, Any] = {}


class _ResponseFormat(msgspec.Struct):
    json_schema: _JsonSchema | None = None


class _ChatRequest(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool = False
    response_format: _ResponseFormat | None = None


_chat_requests = msgspec.json.Decoder(_ChatRequest)


def _chat(_path: str, _headers: Mapping[str, str], body: bytes, reply: ReplyText) -> GoodAnswer:
    asked = _chat_requests.decode(body)
    said = [message.content for message in asked.messages if message.role == "user"]
    text = reply(said[-1] if said else "")
    if reply is reply_text and asked.response_format and asked.response_format.json_schema:
        value = conforming(asked.response_format.json_schema.schema, text.partition(" to: ")[0])
        text = msgspec.json.encode(value).decode()
    usage = _usage(sum(len(message.content.split()) for message in asked.messages), len(text.split()))
    common: dict[str, Any] = {"id": "chatcmpl-double", "created": 0, "model": asked.model}
    if not asked.stream:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return GoodAnswer(
            msgspec.json.encode({**common, "object": "chat.completion", "choices": [choice], "usage": usage})
        )
    common["object"] = "chat.completion.chunk"
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in _cut(text))]
    chunks = [{**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({**common, "choices": [], "usage": usage})
    return _stream([*map(msgspec.json.encode, chunks), b"[DONE]"])


def _embeddings(_path: str, _headers: Mapping[str, str], body: bytes, _reply: ReplyText) -> GoodAnswer:
    asked = json.loads(body)
    texts = [asked["input"]] if isinstance(asked["input"], str) else list(asked["input"])
    data = [{"object": "embedding", "index": at, "embedding": embedding_of(text)} for at, text in enumerate(texts)]
    tokens = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _json({"object": "list", "data": data[::-1], "model": asked["model"], "usage": usage})


def _infer(path: str, headers: Mapping[str, str], body: bytes, _reply: ReplyText) -> GoodAnswer:
    """The row sums of all inputs together as the output `sum`, in binary where that was asked for."""
    length = int(headers.get("inference-header-content-length", len(body)))
    asked, rest = json.loads(body[:length]), body[length:]
    sums: Any = 0.0
    for tensor in asked["inputs"]:
        rows, size = tensor["shape"][0], tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            data = np.array(tensor["data"], np.float64)
        else:
            data, rest = np.frombuffer(rest[:size], _DTYPES[tensor["datatype"]]).astype(np.float64), rest[size:]
        if data.size != math.prod(tensor["shape"]):
            raise ValueError(f"the input {tensor['name']} has {data.size} elements")
        sums = sums + data.reshape(rows, -1).sum(axis=1)
    output: dict[str, Any] = {"name": "sum", "datatype": "FP64", "shape": [len(sums)]}
    answer = {"model_name": path.split("/")[3], "model_version": "1", "outputs": [output]}
    if not asked.get("parameters", {}).get("binary_data_output"):
        output["data"] = sums.tolist()
        return _json(answer)
    output["parameters"] = {"binary_data_size": 8 * len(sums)}
    header = json.dumps(answer).encode()
    sizes = {"Inference-Header-Content-Length": str(len(header))}
    return GoodAnswer(header + sums.astype("<f8").tobytes(), "application/octet-stream", sizes)


def _predict(_path: str, _headers: Mapping[str, str], body: bytes, _reply: ReplyText) -> GoodAnswer:
    """TensorFlow Serving's and Vertex AI's: one number for each instance; for columns, one for each row."""
    asked = json.loads(body)
    if "inputs" in asked:
        rows = zip(*asked["inputs"].values(), strict=True)
        return _json({"outputs": [number_of(list(row)) for row in rows]})
    return _json({"predictions": [number_of(instance) for instance in asked["instances"]], "deployedModelId": "double"})


def _raw_predict(_path: str, _headers: Mapping[str, str], body: bytes, _reply: ReplyText) -> GoodAnswer:
    return _json({"sum": number_of(json.loads(body))})


def _gemini(path: str, _headers: Mapping[str, str], body: bytes, reply: ReplyText) -> GoodAnswer:
    asked = json.loads(body)
    said = "".join(part["text"] for part in asked["contents"][-1]["parts"])
    text = reply(said)
    usage = {"promptTokenCount": len(said.split()), "candidatesTokenCount": len(text.split())}
    pieces = _cut(text) if ":stream" in path else [text]
    parts = [
        {
            "candidates": [{"content": {"role": "model", "parts": [{"text": piece}]}, "index": 0}],
            "modelVersion": "double",
        }
        for piece in pieces
    ]
    parts[-1]["candidates"][0]["finishReason"] = "STOP"  # type: ignore[index]
    last: dict[str, Any] = {**parts[-1], "usageMetadata": usage}
    if ":stream" not in path:
        return _json(last)
    return _stream([json.dumps(part).encode() for part in [*parts[:-1], last]])


def _any(_path: str, _headers: Mapping[str, str], body: bytes, reply: ReplyText) -> GoodAnswer:
    """A server of nobody's protocol: ``{"texts": […]}`` or ``{"text": …}`` in, results or one of them out."""
    asked = json.loads(body)
    many = [{"out": reply(text), "length": len(text)} for text in asked.get("texts", [asked.get("text")])]
    return _json({"results": many} if "texts" in asked else many[0])


_DTYPES = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}

_ROUTES = (
    (re.compile(r"/v1/chat/completions"), _chat),
    (re.compile(r"/v1/embeddings"), _embeddings),
    (re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer"), _infer),
    (re.compile(r"/v1/models/[^/:]+((/versions/\d+)|(/labels/[^/:]+))?:predict"), _predict),
    (re.compile(r"/v1/projects/[^:]+:predict"), _predict),
    (re.compile(r"/v1/projects/[^:]+:rawPredict"), _raw_predict),
    (re.compile(r"/v1beta/models/[^/:]+:(generateContent|streamGenerateContent)"), _gemini),
    (re.compile(r"/json"), _any),
)


def _json(value: Any) -> GoodAnswer:
    return GoodAnswer(json.dumps(value, ensure_ascii=False).encode())


def _stream(events: list[bytes]) -> GoodAnswer:
    pieces = tuple(b"data: " + event + b"\n\n" for event in events)
    return GoodAnswer(b"".join(pieces), "text/event-stream", {}, pieces)


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _cut(text: str) -> list[str]:
    size = max(1, -(-len(text) // STREAM_PIECES))
    return [text[at : at + size] for at in range(0, len(text), size)] or [""]
