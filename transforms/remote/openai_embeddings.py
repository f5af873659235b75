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

from transforms.errors import BrokenReply, Refused
from transforms.remote.batcher import rough_tokens
from transforms.remote.bodies import decode
from transforms.remote.protocols import ProtocolSettings, Request, read_options, refuse_reserved, refuse_stream
from transforms.remote.questions import Question, Reply, Text

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


_bodies = msgspec.json.Decoder(_Body)
_encoder = msgspec.json.Encoder()
_NO_USAGE = _Usage()


class EmbeddingsOptions(msgspec.Struct, frozen=True):
    """The protocol's own options: there are none."""


class OpenAIEmbeddings:
    """The protocol for one model; see `WireProtocol`. It takes `Text` questions, any number in a request.

    Raises:
        SettingsError: a param is the client's to set, an option is unknown, or a stream is asked for.
    """

    most_items: int | None = None
    samples = False
    schemes = ("http", "https")
    probe_path: str | None = None

    def __init__(self, settings: ProtocolSettings) -> None:
        refuse_reserved(settings.params, RESERVED_PARAMS)
        read_options(settings.options, EmbeddingsOptions)
        refuse_stream("openai-embeddings", settings)
        self._settings = settings

    def request(self, questions: Sequence[Question]) -> Request:
        """Return the request; see `WireProtocol.request`."""
        texts = [_text(question) for question in questions]
        try:
            body = request_body(self._settings.model, texts, self._settings.params)
        except (TypeError, ValueError) as error:
            raise Refused(f"The request has no JSON form: {error}.", 0) from None
        return Request(PATH, body, {}, sum(map(rough_tokens, texts)))

    def replies(self, questions: Sequence[Question], headers: Mapping[str, str], body: bytes) -> Sequence[Reply]:
        """Return a reply to each text, whose value is its vector; see `WireProtocol.replies`."""
        parsed = parse_reply(body, len(questions))
        shares = _shares(parsed.prompt_tokens, questions)
        return [
            Reply("", None, parsed.model, tokens, 0, list(vector))
            for vector, tokens in zip(parsed.vectors, shares, strict=True)
        ]

    def reader(self) -> None:
        """Return None: there are no streams."""

    def params(self, question: Question) -> Mapping[str, Any]:
        """Return the params of the settings."""
        return self._settings.params


def _text(question: Question) -> str:
    if isinstance(question, Text):
        return question.text
    raise Refused(f"openai-embeddings takes texts; a question of the kind {type(question).__name__} it has not.", 0)


def _shares(tokens: int | None, questions: Sequence[Question]) -> list[int | None]:
    """The tokens of a request as its texts share them, by their length; their sum is what the server said."""
    if tokens is None:
        return [None] * len(questions)
    lengths = [rough_tokens(_text(question)) for question in questions]
    total, done, given = sum(lengths) or 1, 0, 0
    shares: list[int | None] = []
    for length in lengths:
        done += length
        share = tokens * done // total - given
        shares.append(share)
        given += share
    return shares


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
    parsed = decode(_bodies, body)
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
