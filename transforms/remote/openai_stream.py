"""The wire protocol `openai-chat` with ``stream: true``: chat completion chunks, put together into one `Reply`.

Sources: OpenAI's reference of chat completion chunks and of ``stream_options.include_usage``; `sse` for the frames.
Each event's data is a chunk with pieces of text (``delta.content``); the last piece carries ``finish_reason``; a
chunk without choices carries ``usage``; ``data: [DONE]`` ends the stream. A reply is one only when both a
``finish_reason`` and ``[DONE]`` have come: a stream that was cut is refused, wherever it was cut. The first choice
(index 0) is read, others are not.

Defaults: a stream may have 16 MiB, as an answer in one piece.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from transforms.errors import BrokenReply
from transforms.remote.bodies import excerpt_of
from transforms.remote.questions import Reply
from transforms.remote.sse import Event, SseParser
from transforms.remote.transport import LARGEST_REPLY_BYTES

_DONE = "[DONE]"
_WITHOUT_TEXT = frozenset({"tool_calls", "function_call", "content_filter"})
_EXCERPT = 200

_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Delta(msgspec.Struct):
    content: str | None = None


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
_NO_USAGE = _Usage()
_NO_DELTA = _Delta()


class ChatStream:
    """Puts one streamed reply together. Pure: bytes and moments come in as arguments.

    `first_token_s` is the moment at which the first piece of text came, None before; `done` whether the stream has
    said that it is complete. What comes after that is not looked at.
    """

    def __init__(self, largest_bytes: int = LARGEST_REPLY_BYTES) -> None:
        self.first_token_s: float | None = None
        self.done = False
        self._parser = SseParser("strict", largest_bytes)
        self._largest = largest_bytes
        self._size = 0
        self._pieces: list[str] = []
        self._finish_reason: str | None = None
        self._model: str | None = None
        self._usage = _NO_USAGE

    def feed(self, chunk: bytes, now_s: float) -> bool:
        """Take the next bytes, which came at `now_s`; return whether the stream is complete.

        Raises:
            BrokenReply: they do not follow the protocol, hold an error object, or are more than the bound.
        """
        self._size += len(chunk)
        if self._size > self._largest:
            raise BrokenReply(f"The stream is larger than {self._largest} bytes.")
        if not self.done:
            for event in self._parser.feed(chunk):
                self._take(event, now_s)
        return self.done

    def reply(self) -> Reply:
        """Return the reply, once the stream is complete.

        Raises:
            BrokenReply: it was cut before ``[DONE]`` or has no finish_reason, or it is complete and has no text
                because the model answered with something else.
        """
        if not self.done:
            raise BrokenReply("The stream was cut: it ended before [DONE].")
        if self._finish_reason is None:
            raise BrokenReply("The stream was cut: it has no finish_reason.")
        if not self._pieces and self._finish_reason in _WITHOUT_TEXT:
            raise BrokenReply(f"The stream holds no text; it ended for {self._finish_reason}.")
        usage = self._usage
        text = "".join(self._pieces)
        return Reply(text, self._finish_reason, self._model, usage.prompt_tokens, usage.completion_tokens)

    def _take(self, event: Event, now_s: float) -> None:
        if self.done:
            return
        if event.name == "error":
            raise BrokenReply(f"The stream holds an error: {event.data[:_EXCERPT]}.")
        if event.data.strip() == _DONE:
            self.done = True
            return
        self._note(_parsed(event.data), now_s)

    def _note(self, chunk: _Chunk, now_s: float) -> None:
        if chunk.error is not None:
            raise BrokenReply(f"The stream holds an error object: {excerpt_of(chunk.error)[:_EXCERPT]}.")
        self._model = self._model or chunk.model
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices or ():
            if choice.index == 0:
                self._note_choice(choice, now_s)

    def _note_choice(self, choice: _Choice, now_s: float) -> None:
        piece = (choice.delta or _NO_DELTA).content
        if piece:
            self._pieces.append(piece)
            if self.first_token_s is None:
                self.first_token_s = now_s
        self._finish_reason = choice.finish_reason or self._finish_reason


def _parsed(data: str) -> _Chunk:
    try:
        return _chunks.decode(data)
    except msgspec.ValidationError as error:
        raise BrokenReply(f"A chunk of the stream does not follow the protocol: {error}.") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BrokenReply(f"A chunk of the stream is not JSON: {error}.") from None
