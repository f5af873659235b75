"""What a case is: a frozen value of pure functions and names. A new case is a folder and a line in `pipeline.registry`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transforms.records import Answer, OutputRecord, SourceRecord
from transforms.remote.questions import Question


@dataclass(frozen=True)
class Case:
    """One job: how its events are understood, what the model is asked, and where its answers go.

    All functions are pure, defined at the top of a module, and the same for the same input. `parse` raises `BadEvent`, `check`
    raises `BadReply`; both are told apart by the `kind` they carry. `read_id` never raises.
    """

    name: str
    event_type: type
    """The `msgspec.Struct` that `parse` gives."""

    output_type: type
    """The `msgspec.Struct` that `check` gives."""

    role: str
    """Which model of models.yaml answers."""

    parse: Callable[[SourceRecord], Any]
    """A record as it came in → an event."""

    read_id: Callable[[SourceRecord], str | None]
    """The id of a record that may be broken, for its dead letter; None where there is none to read."""

    event_id: Callable[[Any], str]
    """The event's id."""

    source_of: Callable[[Any], SourceRecord]
    """The record that an event came from."""

    ask: Callable[[Any], Question]
    """What the model is asked about an event."""

    check: Callable[[tuple[Any, Answer]], Any]
    """An event with its answer → what goes out, if the answer keeps the rules."""

    output_source: Callable[[Any], SourceRecord]
    """The record that an output came from."""

    output_id: Callable[[Any], str]
    """The id of the event that an output belongs to."""

    route: Callable[[Any], OutputRecord]
    """An output → the record to write, on its topic."""

    input_topic: str
    """Where the samples are fed to when Kafka is used."""

    output_topics: tuple[str, ...]
    """Every topic that `route` may name."""

    dead_letter_topic: str

    samples: Path
    """The sample events, JSON Lines."""

    embedded_model: Mapping[str, Any]
    """The settings of the embedded model that suit this case, as in models.yaml, without its address."""
