"""The records that travel between steps.

All are frozen values of `msgspec`, encoded as MessagePack arrays by `transforms.coders.RecordCoder` (docs/adr/0006).
Times are Unix milliseconds. The record as it came in travels with everything made of it, so that a dead letter can
hold it untouched, whatever step wrote it.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

Headers = tuple[tuple[str, bytes | None], ...]


class SourceRecord(msgspec.Struct, frozen=True, array_like=True):
    """A record as it came in, untouched.

    `topic`, `partition` and `offset` are its position: of Kafka, or the file's path, 0 and the line's number from 0.
    `event_time_ms` is Kafka's record timestamp; for files the time of reading.
    """

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    topic: str = ""
    partition: int = 0
    offset: int = 0
    event_time_ms: int = 0


class DeadLetter(msgspec.Struct, frozen=True, array_like=True):
    """A record without an answer, and why.

    `stage` is the step's name, `error_type` a short stable word (`kind` of the error), `message` a sentence,
    `attempts` how many calls to a model server were made for it.
    """

    source: SourceRecord
    stage: str
    error_type: str
    message: str
    attempts: int = 0
    id: str | None = None


class OutputRecord(msgspec.Struct, frozen=True, array_like=True):
    """A record to be written to `topic`.

    `id` is the input's id (None where it had none that could be read); `value` is written as it is.
    """

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    event_time_ms: int = 0
    id: str | None = None


_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?", re.ASCII
)


def traceparent_of(source: SourceRecord) -> str | None:
    """Return the header ``traceparent`` of a record, None where it has none that is one (W3C Trace Context, section 3.2)."""
    for name, value in source.headers:
        if name.lower() == "traceparent" and value is not None:
            text = value.decode("ascii", "replace").strip()
            return text if _TRACEPARENT.fullmatch(text) else None
    return None


def output_for(source: SourceRecord, topic: str, value: bytes, event_id: str) -> OutputRecord:
    """Return a record to `topic` that goes with a source record: it has its key, headers and event time."""
    return OutputRecord(topic, value, source.key, source.headers, source.event_time_ms, event_id)


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What a model answered for one event, and what it took.

    `model` is what the server named, `endpoint` its base URL, `attempts` all calls made for the event, `model_ms` the
    duration of the one that gave the answer, `waited_ms` the time from when the step took the event until it handed
    the answer on, `finish_reason` the protocol's word for why the text ends. `role` is that of the model which answered, and
    `reason` a sentence that says why it was not the first of a chain of fallbacks; `source` is ``call``, ``cache``, ``shared``,
    ``fixed`` or ``none`` (`remote.client.Source`). The tokens are those of the reply, also where nobody was asked for it again.
    `value` is what a model gave that does not write, of MessagePack's plain values. `first_token_ms` is the time to the first
    piece of a stream.
    """

    text: str
    model: str
    endpoint: str
    finish_reason: str | None = None
    attempts: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model_ms: float = 0.0
    waited_ms: float = 0.0
    role: str = ""
    source: str = "call"
    reason: str | None = None
    value: Any = None
    first_token_ms: float | None = None


class CallFailure(msgspec.Struct, frozen=True, array_like=True):
    """Why an event has no answer: the `kind` of the error, a sentence, and how many calls were made."""

    error_type: str
    message: str
    attempts: int = 0
