"""The wire protocol `openai-chat` with ``stream: true``: chat completion chunks, put together into one `Reply`.

Sources: OpenAI's reference of chat completion chunks and of ``stream_options.include_usage``; `sse` for the frames.
Each event's data is a chunk with pieces of text (``delta.content``); the last piece carries ``finish_reason``; a
chunk without choices carries ``usage``; ``data: [DONE]`` ends the stream. A reply is one only when both a
``finish_reason`` and ``[DONE]`` have come: a stream that was cut is refused, wherever it was cut. The first choice
(index 0) is read, others are not. A refusal (``delta.refusal``) is no reply, and neither is what the server's filter cut off.

Defaults: a stream may have 16 MiB, as an answer in one piece.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from transforms.errors import BrokenReply
from transforms.remote.bodies import excerpt_of
from transforms.remote.questions import Reply
from transforms.remote.sse import Event, SseParser
from transforms.remote.streams import failure_of
from transforms.remote.transport import LARGEST_REPLY_BYTES

_DONE = "[DONE]"
_FILTERED = "content_filter"
_WITHOUT_TEXT = frozenset({"tool_calls", "function_call"})
_EXCERPT = 200

_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None


class _Chunk(msgspec.Struct):
    """A chunk. Some servers leave `choices` out, or null, where only `usage` comes."""

    choices: list[_Choice] | None = None
    model: str | None = None
    usage: _Usage | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)
_anything: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_NO_USAGE = _Usage()
_NO_DELTA = _Delta()


class ChatStream:
    """Puts one streamed reply together. Pure: bytes and moments come in as arguments.

    `first_token_s` is the moment at which the first piece of text came, None before; `done` whether the stream has
    said that it is complete. What comes after that is not looked at. `size`, `chunks` and `first_chunk_s` are those of a
    `ChunkReader`; ``[DONE]`` is no chunk.
    """

    def __init__(self, largest_bytes: int = LARGEST_REPLY_BYTES) -> None:
        self.first_token_s: float | None = None
        self.first_chunk_s: float | None = None
        self.chunks = 0
        self.size = 0
        self.done = False
        self._parser = SseParser("strict", largest_bytes)
        self._largest = largest_bytes
        self._pieces: list[str] = []
        self._refusal: list[str] = []
        self._finish_reason: str | None = None
        self._model: str | None = None
        self._usage = _NO_USAGE

    def feed(self, chunk: bytes, now_s: float) -> bool:
        """Take the next bytes, which came at `now_s`; return whether the stream is complete.

        Raises:
            BrokenReply: they do not follow the protocol, or are more than the bound.
            CallError: they hold an error, which is the one that `streams.failure_of` says.
        """
        self.size += len(chunk)
        if self.size > self._largest:
            raise BrokenReply(f"The stream is larger than {self._largest} bytes.")
        if not self.done:
            for event in self._parser.feed(chunk):
                self._take(event, now_s)
        return self.done

    def reply(self) -> Reply:
        """Return the reply, once the stream is complete.

        Raises:
            BrokenReply: it was cut before ``[DONE]`` or has no finish_reason; or see `check_answer`.
        """
        if not self.done:
            raise BrokenReply("The stream was cut: it ended before [DONE].")
        if self._finish_reason is None:
            raise BrokenReply("The stream was cut: it has no finish_reason.")
        usage = self._usage
        text = "".join(self._pieces)
        check_answer(text, "".join(self._refusal), self._finish_reason)
        return Reply(text, self._finish_reason, self._model, usage.prompt_tokens, usage.completion_tokens)

    def _take(self, event: Event, now_s: float) -> None:
        if self.done:
            return
        if event.name == "error":
            raise failure_of(_failure_in(event.data), f"The stream holds an error: {event.data[:_EXCERPT]}.")
        if event.data.strip() == _DONE:
            self.done = True
            return
        self.chunks += 1
        if self.first_chunk_s is None:
            self.first_chunk_s = now_s
        self._note(_parsed(event.data), now_s)

    def _note(self, chunk: _Chunk, now_s: float) -> None:
        if chunk.error is not None:
            sentence = f"The stream holds an error object: {excerpt_of(chunk.error)[:_EXCERPT]}."
            raise failure_of(chunk.error, sentence)
        self._model = self._model or chunk.model
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices or ():
            if choice.index == 0:
                self._note_choice(choice, now_s)

    def _note_choice(self, choice: _Choice, now_s: float) -> None:
        delta = choice.delta or _NO_DELTA
        if delta.content:
            self._pieces.append(delta.content)
            if self.first_token_s is None:
                self.first_token_s = now_s
        if delta.refusal:
            self._refusal.append(delta.refusal)
        self._finish_reason = choice.finish_reason or self._finish_reason


def check_answer(text: str, refusal: str, finish_reason: str | None) -> None:
    """Refuse what is no answer, though it came complete, as a stream or as a whole.

    Raises:
        BrokenReply: the model refused; the server's filter cut the text off, of which OpenAI's reference says that content was
            omitted; or there is no text because the model answered with something else.
    """
    if refusal:
        raise BrokenReply(f"The model refused to answer: {refusal[:_EXCERPT].rstrip('. ')}.")
    if finish_reason == _FILTERED:
        raise BrokenReply("The answer is not complete: the server's filter cut it off (finish_reason content_filter).")
    if not text and finish_reason in _WITHOUT_TEXT:
        raise BrokenReply(f"The answer holds no text; it ended for {finish_reason}.")


def _failure_in(data: str) -> Any:
    """The error object that an event of the type `error` has as its data, or within it."""
    try:
        body = _anything.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return body.get("error", body) if isinstance(body, dict) else None


def _parsed(data: str) -> _Chunk:
    try:
        return _chunks.decode(data)
    except msgspec.ValidationError as error:
        raise BrokenReply(f"A chunk of the stream does not follow the protocol: {error}.") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BrokenReply(f"A chunk of the stream is not JSON: {error}.") from None
