"""The wire protocol `openai-chat`: ``POST {base}/chat/completions``, as OpenAI documents it and others copy it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from transforms.errors import BrokenReply

PATH = "/chat/completions"
RESERVED_PARAMS = frozenset({"model", "messages", "stream"})
"""Fields of the body that `params` may not set: the client writes the first two, and a stream would not be read."""

_Count = Annotated[int, msgspec.Meta(ge=0)]


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation. `role` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


class Reply(msgspec.Struct, frozen=True):
    """What a model answered. The counts and the rest are None where the server did not say."""

    text: str
    finish_reason: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _ReplyMessage(msgspec.Struct):
    content: str


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


class _Failure(msgspec.Struct):
    error: Any = None


_bodies = msgspec.json.Decoder(_Body)
_failures = msgspec.json.Decoder(_Failure)
_encoder = msgspec.json.Encoder()
_NO_USAGE = _Usage()


def request_body(model: str, messages: Sequence[Message], params: Mapping[str, Any]) -> bytes:
    """Return the JSON body of a request. `params` are further fields; the reserved ones among them are left out.

    Raises:
        TypeError, ValueError: something in it has no JSON form, such as half of a surrogate pair.
    """
    body: dict[str, Any] = {"model": model, "messages": messages}
    body.update((name, value) for name, value in params.items() if name not in RESERVED_PARAMS)
    return _encoder.encode(body)


def parse_reply(body: bytes) -> Reply:
    """Return the reply that the body of a 2xx answer holds: the first choice's text.

    Raises:
        BrokenReply: it is no JSON in UTF-8, lacks something, has something of another type, or is an error object.
    """
    try:
        parsed = _bodies.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenReply(_why(body, error)) from None
    if not parsed.choices:
        raise BrokenReply("The answer has no choices.")
    choice, usage = parsed.choices[0], parsed.usage or _NO_USAGE
    return Reply(
        choice.message.content, choice.finish_reason, parsed.model, usage.prompt_tokens, usage.completion_tokens
    )


def _why(body: bytes, error: Exception) -> str:
    """A sentence that says what is wrong with `body`, where `error` came of reading it."""
    if isinstance(error, msgspec.ValidationError):
        try:
            failure = _failures.decode(body).error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            failure = None
        if failure is not None:
            return f"The answer has a status of success but is an error object: {_excerpt(failure)}."
        return f"The answer does not follow the protocol: {error}."
    return f"The answer is not JSON in UTF-8: {error}."


def _excerpt(failure: Any) -> str:
    text = failure.get("message") if isinstance(failure, dict) else failure
    return str(text)
