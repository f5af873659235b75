"""The wire protocol `openai-embeddings`: ``POST {base}/embeddings``, many texts in one request.

Source: OpenAI's reference of creating embeddings. ``input`` is a list of texts; ``data`` holds one embedding for each,
which names its text by ``index``, from 0, and may stand anywhere. With ``encoding_format: base64`` a vector is the
base64 of its numbers as 32-bit floats, little-endian: a quarter of the bytes. A reply that does not hold each index
once is broken.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from transforms.errors import BrokenReply

PATH = "/embeddings"
RESERVED_PARAMS = frozenset({"model", "input"})
"""Fields of the body that `params` may not set: the client writes them."""

_Count = Annotated[int, msgspec.Meta(ge=0)]


class EmbeddingsReply(msgspec.Struct, frozen=True):
    """What a server answered: `vectors` in the order of the texts, all of one length.

    `prompt_tokens` is the count for all texts together. It and `model` are None where the server did not say.
    """

    vectors: tuple[tuple[float, ...], ...]
    model: str | None = None
    prompt_tokens: int | None = None


class _Embedding(msgspec.Struct):
    index: _Count
    embedding: list[float] | str


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None


class _Body(msgspec.Struct):
    data: list[_Embedding]
    model: str | None = None
    usage: _Usage | None = None


class _Failure(msgspec.Struct):
    error: Any = None


_bodies = msgspec.json.Decoder(_Body)
_failures = msgspec.json.Decoder(_Failure)
_encoder = msgspec.json.Encoder()
_NO_USAGE = _Usage()


def request_body(model: str, texts: Sequence[str], params: Mapping[str, Any]) -> bytes:
    """Return the JSON body of a request.

    `params` are further fields, such as ``dimensions`` and ``encoding_format`` (``float`` where they do not say); the
    reserved ones among them are left out.

    Raises:
        TypeError, ValueError: something in it has no JSON form, such as half of a surrogate pair.
    """
    body: dict[str, Any] = {"model": model, "input": texts, "encoding_format": "float"}
    body.update((name, value) for name, value in params.items() if name not in RESERVED_PARAMS)
    return _encoder.encode(body)


def parse_reply(body: bytes, count: int) -> EmbeddingsReply:
    """Return the reply that the body of a 2xx answer to a request with `count` texts holds.

    Vectors are read in the form they come in, whatever was asked for: servers differ.

    Raises:
        BrokenReply: it is no JSON in UTF-8, does not hold each index below `count` once, has vectors that are empty, of
            different length, or not of finite numbers, or is an error object.
    """
    try:
        parsed = _bodies.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenReply(_why(body, error)) from None
    vectors = tuple(_numbers(item.embedding) for item in _ordered(parsed.data, count))
    if len({len(vector) for vector in vectors}) > 1:
        raise BrokenReply("The answer holds embeddings of different length.")
    return EmbeddingsReply(vectors, parsed.model, (parsed.usage or _NO_USAGE).prompt_tokens)


def _ordered(data: list[_Embedding], count: int) -> list[_Embedding]:
    """`data` in the order of the texts."""
    if len(data) != count:
        raise BrokenReply(f"The answer holds {len(data)} embeddings for {count} texts.")
    ordered = sorted(data, key=lambda item: item.index)
    for index, item in enumerate(ordered):
        if item.index != index:
            raise BrokenReply(f"The answer holds no embedding with index {index}, or another twice.")
    return ordered


def _numbers(embedding: list[float] | str) -> tuple[float, ...]:
    numbers = tuple(embedding) if isinstance(embedding, list) else _decoded(embedding)
    if not numbers:
        raise BrokenReply("The answer holds an empty embedding.")
    if not all(map(math.isfinite, numbers)):
        raise BrokenReply("The answer holds an embedding with a number that is not finite.")
    return numbers


def _decoded(text: str) -> tuple[float, ...]:
    """The numbers that `text` writes as base64 of little-endian 32-bit floats."""
    try:
        packed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BrokenReply(f"The answer holds an embedding that is not base64: {error}.") from None
    if len(packed) % 4:
        raise BrokenReply("The answer holds an embedding in base64 that does not consist of 32-bit floats.")
    return struct.unpack(f"<{len(packed) // 4}f", packed)


def _why(body: bytes, error: Exception) -> str:
    """A sentence that says what is wrong with `body`, where `error` came of reading it."""
    if not isinstance(error, msgspec.ValidationError):
        return f"The answer is not JSON in UTF-8: {error}."
    try:
        failure = _failures.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        failure = None
    if failure is None:
        return f"The answer does not follow the protocol: {error}."
    text = failure.get("message") if isinstance(failure, dict) else failure
    return f"The answer has a status of success but is an error object: {text}."
