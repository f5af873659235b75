"""The wire protocol `gemini`: Google's ``generateContent``, and ``streamGenerateContent`` as Server-Sent Events.

Source: the Gemini API's reference (ai.google.dev/api/generate-content) and Vertex AI's, which are alike. The base URL is
``https://generativelanguage.googleapis.com/v1beta``, with a key in the header ``x-goog-api-key``, or on Vertex AI
``https://{region}-aiplatform.googleapis.com/v1/projects/{project}/locations/{region}/publishers/google`` with a token
(``auth: {google: true}``). System messages become ``systemInstruction``, the assistant's role is ``model``. Params are fields of
``generationConfig``, but for ``safetySettings``, ``tools``, ``toolConfig``, ``cachedContent`` and ``labels``, which stand beside it.

A question's schema goes out as ``responseSchema``, in the part of JSON schema that Gemini takes (a select subset of OpenAPI 3.0): what
is outside of it is left out, and ``["string", "null"]`` becomes ``nullable``. The option ``schema: responseJsonSchema`` sends it
as it is, to models that take this; ``none`` leaves it out.

The finish reasons are given in the words that all protocols share: ``STOP`` is ``stop``, ``MAX_TOKENS`` is ``length``, others in
small letters. A prompt that was blocked is refused: it would be blocked again. An answer without text is broken, and so is one that
a filter cut off (``SAFETY``, ``RECITATION``, ``BLOCKLIST``, ``PROHIBITED_CONTENT``, ``SPII``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec

from transforms.errors import BrokenReply, Refused
from transforms.remote.batcher import rough_tokens
from transforms.remote.bodies import decode, encode, excerpt_of
from transforms.remote.protocols import ProtocolSettings, Request, read_options, refuse_reserved
from transforms.remote.questions import Chat, Message, Question, Reply
from transforms.remote.sse import SseParser
from transforms.remote.streams import failure_of
from transforms.remote.transport import LARGEST_REPLY_BYTES

RESERVED_PARAMS = frozenset(
    {"contents", "systemInstruction", "generationConfig", "responseSchema", "responseJsonSchema", "responseMimeType"}
)
"""Fields that `params` may not set: the client writes them."""

BESIDE_THE_CONFIG = frozenset({"safetySettings", "tools", "toolConfig", "cachedContent", "labels"})
"""Params that are fields of the body itself."""

_KEPT = frozenset({
    "type", "format", "title", "description", "nullable", "enum", "items", "minItems", "maxItems", "properties", "required",
    "minProperties", "maxProperties", "minLength", "maxLength", "pattern", "minimum", "maximum", "anyOf", "propertyOrdering",
    "default", "example",
})  # fmt: skip
_WORDS = {"STOP": "stop", "MAX_TOKENS": "length"}
_FILTERED = frozenset({"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"})
_DEFAULT_OUTPUT_TOKENS = 256
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Part(msgspec.Struct):
    text: str | None = None
    thought: bool = False


class _Content(msgspec.Struct):
    parts: list[_Part] = []


class _Candidate(msgspec.Struct):
    content: _Content | None = None
    finishReason: str | None = None  # noqa: N815 - the protocol's words, here and below
    index: int = 0


class _Feedback(msgspec.Struct):
    blockReason: str | None = None  # noqa: N815


class _Usage(msgspec.Struct):
    promptTokenCount: _Count | None = None  # noqa: N815
    candidatesTokenCount: _Count | None = None  # noqa: N815
    thoughtsTokenCount: _Count | None = None  # noqa: N815


class _Body(msgspec.Struct):
    candidates: list[_Candidate] = []
    promptFeedback: _Feedback | None = None  # noqa: N815
    usageMetadata: _Usage | None = None  # noqa: N815
    modelVersion: str | None = None  # noqa: N815
    error: Any = None


_bodies = msgspec.json.Decoder(_Body)
_NO_USAGE = _Usage()


class GeminiOptions(msgspec.Struct, frozen=True):
    """The protocol's own options. `schema` says as what a question's schema is sent."""

    schema: Literal["responseSchema", "responseJsonSchema", "none"] = "responseSchema"


class Gemini:
    """The protocol for one model; see `WireProtocol`. It takes `Chat` questions, one in a request.

    Raises:
        SettingsError: a param is the client's to set, or an option is unknown.
    """

    most_items: int | None = 1
    samples = True
    schemes = ("http", "https")
    probe_path: str | None = None

    def __init__(self, settings: ProtocolSettings) -> None:
        refuse_reserved(settings.params, RESERVED_PARAMS)
        self._settings = settings
        self._options = read_options(settings.options, GeminiOptions)
        method = "streamGenerateContent?alt=sse" if settings.stream else "generateContent"
        self._path = f"/models/{quote(settings.model.removeprefix('models/'), safe='')}:{method}"

    def request(self, questions: Sequence[Question]) -> Request:
        """Return the request; see `WireProtocol.request`."""
        question = questions[0]
        if not isinstance(question, Chat):
            raise Refused(f"gemini asks in messages; a question of the kind {type(question).__name__} it has not.", 0)
        params = self.params(question)
        try:
            body = encode(request_body(question, params, self._options.schema))
        except (TypeError, ValueError, RecursionError) as error:
            raise Refused(f"The request has no form in the protocol: {error}.", 0) from None
        return Request(self._path, body, {}, _tokens(question, params))

    def replies(self, questions: Sequence[Question], headers: Mapping[str, str], body: bytes) -> Sequence[Reply]:
        """Return the reply; see `WireProtocol.replies`."""
        return (parse_reply(body),)

    def reader(self) -> GeminiStream | None:
        """Return what reads a stream, where the settings ask for one."""
        return GeminiStream() if self._settings.stream else None

    def params(self, question: Question) -> Mapping[str, Any]:
        """Return the params of the settings under those of the question."""
        own = question.params if isinstance(question, Chat) else {}
        return {**self._settings.params, **own} if own else self._settings.params


def request_body(question: Chat, params: Mapping[str, Any], schema_as: str = "responseSchema") -> dict[str, Any]:
    """Return the body of a request. The reserved ones among the params are left out.

    Raises:
        ValueError: no message but of the system, a role that is none, or a schema that Gemini cannot take.
    """
    system = [message.content for message in question.messages if message.role == "system"]
    contents = [_content(message) for message in question.messages if message.role != "system"]
    if not contents:
        raise ValueError("there is no message of the user")
    body: dict[str, Any] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": [{"text": text} for text in system]}
    given = {name: value for name, value in params.items() if name not in RESERVED_PARAMS}
    body.update((name, value) for name, value in given.items() if name in BESIDE_THE_CONFIG)
    config = {name: value for name, value in given.items() if name not in BESIDE_THE_CONFIG}
    if question.schema is not None and schema_as != "none":
        as_it_is = schema_as == "responseJsonSchema"
        config["responseMimeType"] = "application/json"
        config[schema_as] = dict(question.schema) if as_it_is else narrowed(question.schema)
    if config:
        body["generationConfig"] = config
    return body


def narrowed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON schema in the part of it that ``responseSchema`` takes.

    Raises:
        ValueError: it has references, which cannot be left out.
    """
    if "$ref" in schema:
        raise ValueError("the schema has a $ref, which responseSchema cannot hold; set schema: responseJsonSchema")
    kept = {name: value for name, value in schema.items() if name in _KEPT}
    kinds = kept.get("type")
    if isinstance(kinds, list):
        named = [kind for kind in kinds if kind != "null"]
        if len(named) != 1:
            raise ValueError(f"the schema has the types {kinds}, which responseSchema cannot hold")
        kept["type"] = named[0]
        if len(named) < len(kinds):
            kept["nullable"] = True
    if "const" in schema:
        kept["enum"] = [schema["const"]]
    if isinstance(kept.get("properties"), Mapping):
        kept["properties"] = {name: narrowed(value) for name, value in kept["properties"].items()}
    if isinstance(kept.get("items"), Mapping):
        kept["items"] = narrowed(kept["items"])
    if isinstance(kept.get("anyOf"), list):
        kept["anyOf"] = [narrowed(value) for value in kept["anyOf"]]
    return kept


def parse_reply(body: bytes) -> Reply:
    """Return the reply that the body of a 2xx answer holds: the first candidate's text.

    Raises:
        BrokenReply: see `bodies.decode`; or it has no candidate, or one without text or that a filter cut off.
        Refused: the prompt was blocked.
        CallError: it is an error object, which is the error that `streams.failure_of` says.
    """
    gathered = _Gathered()
    gathered.take(decode(_bodies, body))
    return gathered.reply()


class GeminiStream:
    """Puts one streamed reply together; see `StreamReader`. Each event holds a piece of the answer in the form of a whole one.

    There is no end mark: a stream is complete once a finish reason has come, and the usage or the end with it. `size`, `chunks` and
    `first_chunk_s` are those of a `ChunkReader`.
    """

    def __init__(self, largest_bytes: int = LARGEST_REPLY_BYTES) -> None:
        self.first_token_s: float | None = None
        self.first_chunk_s: float | None = None
        self.chunks = 0
        self.size = 0
        self._parser = SseParser("strict", largest_bytes)
        self._largest = largest_bytes
        self._gathered = _Gathered()

    def feed(self, chunk: bytes, now_s: float) -> bool:
        """Take the next bytes, which came at `now_s`; return whether the stream is complete.

        Raises:
            BrokenReply: they do not follow the protocol, or are more than the bound.
            Refused: the prompt was blocked.
            CallError: they hold an error object, which is the error that `streams.failure_of` says.
        """
        self.size += len(chunk)
        if self.size > self._largest:
            raise BrokenReply(f"The stream is larger than {self._largest} bytes.")
        for event in self._parser.feed(chunk):
            self.chunks += 1
            if self.first_chunk_s is None:
                self.first_chunk_s = now_s
            self._gathered.take(decode(_bodies, event.data.encode()))
            if self._gathered.pieces and self.first_token_s is None:
                self.first_token_s = now_s
        return self._gathered.complete

    def reply(self) -> Reply:
        """Return the reply, once the stream has ended.

        Raises:
            BrokenReply: it was cut before a finish reason or by a filter, or holds no text.
        """
        return self._gathered.reply()


class _Gathered:
    """What has come of an answer."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._finish: str | None = None
        self._model: str | None = None
        self._usage = _NO_USAGE
        self._counted = False

    @property
    def complete(self) -> bool:
        return self._finish is not None and self._counted

    def take(self, body: _Body) -> None:
        """Note one part of the answer, or all of it."""
        if body.error is not None:
            sentence = f"The answer has a status of success but is an error object: {excerpt_of(body.error)}."
            raise failure_of(body.error, sentence)
        if not body.candidates and body.promptFeedback is not None and body.promptFeedback.blockReason:
            raise Refused(f"The prompt was blocked: {body.promptFeedback.blockReason}.", 0)
        self._model = body.modelVersion or self._model
        if body.usageMetadata is not None:
            self._usage = body.usageMetadata
            self._counted = body.usageMetadata.candidatesTokenCount is not None
        for candidate in body.candidates:
            if candidate.index == 0:
                parts = candidate.content.parts if candidate.content else []
                self.pieces += [part.text for part in parts if part.text and not part.thought]
                self._finish = candidate.finishReason or self._finish

    def reply(self) -> Reply:
        """The reply; raises BrokenReply where there is none."""
        if self._finish is None:
            raise BrokenReply("The answer was cut: it has no candidate with a finish reason.")
        if self._finish in _FILTERED:
            raise BrokenReply(f"The answer is not complete: a filter cut it off ({self._finish}).")
        if not self.pieces:
            raise BrokenReply(f"The answer holds no text; it ended for {self._finish}.")
        return Reply(
            "".join(self.pieces),
            _WORDS.get(self._finish, self._finish.lower()),
            self._model,
            self._usage.promptTokenCount,
            _output_tokens(self._usage),
        )


def _output_tokens(usage: _Usage) -> int | None:
    """The tokens of text and thought, which are paid alike."""
    counts = [count for count in (usage.candidatesTokenCount, usage.thoughtsTokenCount) if count is not None]
    return sum(counts) if counts else None


def _content(message: Message) -> dict[str, Any]:
    roles = {"user": "user", "assistant": "model"}
    if message.role not in roles:
        raise ValueError(f"there is no role {message.role}")
    return {"role": roles[message.role], "parts": [{"text": message.content}]}


def _tokens(question: Chat, params: Mapping[str, Any]) -> int:
    most = params.get("maxOutputTokens")
    output = most if isinstance(most, int) else _DEFAULT_OUTPUT_TOKENS
    return sum(rough_tokens(message.content) for message in question.messages) + output
