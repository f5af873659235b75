"""The events and outputs of the benchmark, as JSON. Kept small: every contestant reads and writes them in its own way."""

from __future__ import annotations

import msgspec

_PADDING = "Where is my parcel, which I ordered two weeks ago, and when will it be here? "


class Event(msgspec.Struct, frozen=True):
    """A question. `due_us` is when it should have been sent, in Unix microseconds."""

    id: str
    due_us: int
    text: str


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a contestant makes of an event: a reply, or why there is none."""

    id: str
    due_us: int
    reply: str = ""
    error: str = ""


_events = msgspec.json.Decoder(Event)
_outputs = msgspec.json.Decoder(Output)


def id_of(number: int) -> str:
    """The id of the event with this number."""
    return f"q{number}"


def number_of(identity: str) -> int:
    """The number of the event with this id."""
    return int(identity[1:])


def text_of(identity: str, padding_bytes: int = 0) -> str:
    """The question: its first word is the id, by which the model server knows it."""
    wanted = max(len(_PADDING), padding_bytes)
    return f"{identity} {(_PADDING * (wanted // len(_PADDING) + 1))[:wanted]}"


def event(identity: str, due_us: int, padding_bytes: int = 0) -> bytes:
    """The value of an event."""
    return msgspec.json.encode(Event(identity, due_us, text_of(identity, padding_bytes)))


def read_event(value: bytes) -> Event:
    """The event of a value."""
    return _events.decode(value)


def output(identity: str, due_us: int, reply: str = "", error: str = "") -> bytes:
    """The value of an output."""
    return msgspec.json.encode(Output(identity, due_us, reply, error))


def read_output(value: bytes) -> tuple[str, int, int]:
    """The id of an output, when its event was due, and 1 if it has a reply, else 0."""
    found = _outputs.decode(value)
    return found.id, found.due_us, int(bool(found.reply))
