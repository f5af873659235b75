"""The wire protocol `openai-chat`: ``POST {base}/chat/completions``, as OpenAI documents it and others copy it.

With ``stream``, the reply comes piece by piece (`openai_stream`). A question's schema goes out as ``response_format`` of the
type ``json_schema``, as OpenAI, vLLM and llama.cpp take it; the option ``schema: none`` leaves it out, for servers that refuse it.

A refusal (``message.refusal``) is no reply, and neither is what the server's filter cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from transforms.errors import BrokenReply, Refused
from transforms.remote.batcher import rough_tokens
from transforms.remote.bodies import decode
from transforms.remote.openai_stream import ChatStream, check_answer
from transforms.remote.protocols import ProtocolSettings, Request, read_options, refuse_reserved
from transforms.remote.questions import Chat, Message, Question, Reply

__all__ = ["PATH", "RESERVED_PARAMS", "ChatOptions", "Message", "OpenAIChat", "Reply", "parse_reply", "request_body"]

PATH = "/chat/completions"
RESERVED_PARAMS = frozenset({"model", "messages", "stream", "stream_options"})
"""Fields of the body that `params` may not set: the client writes them."""

_DEFAULT_OUTPUT_TOKENS = 256
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _ReplyMessage(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _ReplyMessage
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


_bodies = msgspec.json.Decoder(_Body)
_encoder = msgspec.json.Encoder()
_NO_USAGE = _Usage()
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


class ChatOptions(msgspec.Struct, frozen=True):
    """The protocol's own options. `schema` says whether a question's schema is sent."""

    schema: Literal["json_schema", "none"] = "json_schema"


class OpenAIChat:
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
        self._options = read_options(settings.options, ChatOptions)

    def request(self, questions: Sequence[Question]) -> Request:
        """Return the request; see `WireProtocol.request`."""
        question = questions[0]
        if not isinstance(question, Chat):
            raise Refused(
                f"openai-chat asks in messages; a question of the kind {type(question).__name__} it has not.", 0
            )
        params = self.params(question)
        if question.schema is not None and self._options.schema != "none":
            params = {**params, "response_format": _response_format(question.schema)}
        try:
            body = request_body(self._settings.model, question.messages, params, stream=self._settings.stream)
        except (TypeError, ValueError) as error:
            raise Refused(f"The request has no JSON form: {error}.", 0) from None
        return Request(PATH, body, {}, _tokens(question, params))

    def replies(self, questions: Sequence[Question], headers: Mapping[str, str], body: bytes) -> Sequence[Reply]:
        """Return the reply; see `WireProtocol.replies`."""
        return (parse_reply(body),)

    def reader(self) -> ChatStream | None:
        """Return what reads a stream, where the settings ask for one."""
        return ChatStream() if self._settings.stream else None

    def params(self, question: Question) -> Mapping[str, Any]:
        """Return the params of the settings under those of the question."""
        own = question.params if isinstance(question, Chat) else {}
        return {**self._settings.params, **own} if own else self._settings.params


def request_body(model: str, messages: Sequence[Message], params: Mapping[str, Any], *, stream: bool = False) -> bytes:
    """Return the JSON body of a request. `params` are further fields; the reserved ones among them are left out.

    With `stream` it asks for a stream that ends with its usage.

    Raises:
        TypeError, ValueError: something in it has no JSON form, such as half of a surrogate pair.
    """
    body: dict[str, Any] = {"model": model, "messages": messages}
    body.update((name, value) for name, value in params.items() if name not in RESERVED_PARAMS)
    if stream:
        body.update(_STREAMED)
    return _encoder.encode(body)


def parse_reply(body: bytes) -> Reply:
    """Return the reply that the body of a 2xx answer holds: the first choice's text.

    Raises:
        BrokenReply: see `bodies.decode` and `check_answer`; or it has no choices, or no text.
    """
    parsed = decode(_bodies, body)
    if not parsed.choices:
        raise BrokenReply("The answer has no choices.")
    choice, usage = parsed.choices[0], parsed.usage or _NO_USAGE
    text = choice.message.content
    check_answer(text or "", choice.message.refusal or "", choice.finish_reason)
    if text is None:
        raise BrokenReply("The answer does not follow the protocol: its message has no content.")
    return Reply(text, choice.finish_reason, parsed.model, usage.prompt_tokens, usage.completion_tokens)


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    name = schema.get("title")
    named = name if isinstance(name, str) and name.isidentifier() else "reply"
    return {"type": "json_schema", "json_schema": {"name": named, "schema": schema, "strict": True}}


def _tokens(question: Chat, params: Mapping[str, Any]) -> int:
    """What a request is expected to cost: its text by a rule of thumb, and all the tokens that the reply may have."""
    most = params.get("max_completion_tokens", params.get("max_tokens"))
    output = most if isinstance(most, int) else _DEFAULT_OUTPUT_TOKENS
    return sum(rough_tokens(message.content) for message in question.messages) + output
