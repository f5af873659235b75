"""What a model is asked, and what it answers: the records that all wire protocols share.

A question is one event's. It is one of four kinds, and a protocol understands one or two of them: a conversation, a text, named
tensors, or a value as JSON has it. A reply is text, or a value, or both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation. `role` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


class Chat(msgspec.Struct, frozen=True):
    """A conversation that the model is to go on with.

    `schema` is the JSON schema of the reply, for servers that can keep to one; the reply is not checked against it here.
    `params` go over those of the settings, for this question alone.
    """

    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None
    params: Mapping[str, Any] = {}


class Text(msgspec.Struct, frozen=True):
    """A text to be turned into numbers, such as an embedding."""

    text: str


class Tensor(msgspec.Struct, frozen=True):
    """A named tensor; `data` are its elements in row-major order, as many as `shape` says.

    They are bool for BOOL, int for the integers, float for the others but for BYTES, where they are bytes (in a request
    str will do). `parameters` are the protocol's, such as MLServer's ``content_type``.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[Any]
    parameters: Mapping[str, Any] = {}


class Tensors(msgspec.Struct, frozen=True):
    """The input tensors of one event; each has one row, or more, in its first dimension."""

    inputs: tuple[Tensor, ...]


class Value(msgspec.Struct, frozen=True):
    """Anything that JSON can write: the features of a record, say."""

    value: Any


Question = Chat | Text | Tensors | Value
"""What a model is asked about one event."""


class Reply(msgspec.Struct, frozen=True):
    """What a model answered to one question.

    `text` is what it wrote, empty where it does not write. `value` is what it gave otherwise, of None, bool, int, float, str,
    bytes, list and dict with text for keys: the vector of an embedding, the outputs of a predictive model by name. The counts
    and the rest are None where the server did not say; of a batch each reply has its share of the tokens. `first_token_ms` is
    the time from sending to the first piece of text, where it came as a stream.
    """

    text: str
    finish_reason: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    value: Any = None
    first_token_ms: float | None = None
