"""What a case is: a frozen value of pure functions, steps and names.

A new case is a folder and a line in `pipeline.registry`, or a module anywhere that ``--case=MODULE:NAME`` names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apache_beam as beam

from transforms.ask.calls import MakeCaller, make_client
from transforms.enrich.database import DatabaseSettings
from transforms.enrich.lookups import LookupSettings
from transforms.feedback import DEFAULT_MEMORY_S
from transforms.records import Answer, CallFailure, OutputRecord, SourceRecord
from transforms.remote.questions import Question
from transforms.remote.settings import ModelSettings
from transforms.tally import Tally


@dataclass(frozen=True)
class Resources:
    """What the steps of a case may need besides the model that answers, where it is configured.

    `models` are those of models.yaml by role, `orders` the database of orders; `ask_options` are for every `AskModel`. With
    `keeps_order` events of one Kafka key must leave each step in the order in which they came to it.
    """

    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    orders: DatabaseSettings | None = None
    lookups: LookupSettings = field(default_factory=LookupSettings)
    ask_options: Mapping[str, Any] = field(default_factory=dict)
    make_caller: MakeCaller = make_client
    keeps_order: bool = False


@dataclass(frozen=True)
class Step:
    """A step between the door and the model: its label, which is a name of state and stays as it is, and what makes it."""

    label: str

    make: Callable[[Resources], beam.PTransform | None]
    """A transform of records that gives an `Applied`, or a PCollection where it refuses none; None where what the step needs is
    not configured, and the records go on without it."""


@dataclass(frozen=True)
class Repair:
    """A further try where a reply is not good. `id_of` must give other ids than the calls before had."""

    needed: Callable[[Any], bool]
    """Whether an output of the check before gets one."""

    ask: Callable[[Any], Question]
    """What the model is asked then."""

    id_of: Callable[[Any], str]

    check: Callable[[tuple[Any, Answer]], Any]
    """An output with the new answer → the output that takes its place."""

    give_up: Callable[[tuple[Any, CallFailure]], Any]
    """The same where the call had no answer."""


@dataclass(frozen=True)
class Feedback:
    """What is known later about outcomes, such as labels, and the figures that are made of it over time.

    It comes from a topic or file of its own and counts for nothing in in = outcomes. Functions are as those of `Case`.
    """

    topic: str
    """Where it is fed to when Kafka is used."""

    parse: Callable[[SourceRecord], Any]
    """A record as it came in → feedback. Raises `BadEvent`."""

    read_id: Callable[[SourceRecord], str | None]
    """The id in a record that may be broken."""

    feedback_type: type
    """The `msgspec.Struct` that `parse` gives."""

    feedback_id: Callable[[Any], str]
    """The id of the event that it is about."""

    source_of: Callable[[Any], SourceRecord]
    """The record that it came from."""

    outcome_type: type
    """The `msgspec.Struct` of what is kept of an output until its feedback comes."""

    outcomes: Callable[[Any], tuple[Any, ...]]
    """An output → what is kept of it: one of `outcome_type`, or none where no feedback will be asked for."""

    outcome_id: Callable[[Any], str]
    """The event's id."""

    combine: Callable[[Any, Any], Any]
    """What was kept and its feedback → what `tally` counts."""

    pair_type: type
    """The `msgspec.Struct` that `combine` gives."""

    tally: Tally

    quality_topic: str
    """Where `tally` writes."""

    dead_letter_topic: str
    """For feedback that cannot be read, or whose outcome did not come in time."""

    samples: Path | None = None
    """The feedback that goes with the sample events, JSON Lines."""

    memory_s: float = DEFAULT_MEMORY_S
    """For how long either waits for the other."""

    @property
    def written_topics(self) -> tuple[str, ...]:
        """Every topic that is written of it."""
        return (self.quality_topic, self.dead_letter_topic)


@dataclass(frozen=True)
class TrainedModel:
    """An embedded predictive model: a program that trains it with scikit-learn, and on what.

    ``python program data model.joblib`` is run once, in the environment of the model server.
    """

    name: str
    program: Path
    data: Path


@dataclass(frozen=True)
class Case:
    """One job: how its events are understood, what is found out about them, what the model is asked, and where its answers go.

    All functions are pure, defined at the top of a module, and the same for the same input. `parse` raises `BadEvent`, `check` may
    raise `BadReply`; both are told apart by the `kind` they carry. `read_id` never raises. `event_id` and `source_of` understand
    what `parse` gives and what the steps of `before` make of it.
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

    embedded_model: Mapping[str, Any] | None = None
    """The settings of the embedded model that suit this case, as in models.yaml, without its address; None where there is none."""

    trained_model: TrainedModel | None = None
    """The embedded model, where it is not the language model."""

    for_embedded: Mapping[str, Any] = field(default_factory=dict)
    """Fields of this value, by name, that are others where the embedded model answers: it is small, and shares the machine."""

    record_types: tuple[type, ...] = ()
    """The `msgspec.Struct`s that the steps of `before` give."""

    before: tuple[Step, ...] = ()
    """The steps between the door and the model, in their order."""

    repair: Repair | None = None
    """The second try, if there is one."""

    fallback: Repair | None = None
    """What is still not good after `repair`, asked of the fallback of `role`, where models.yaml names a model as such."""

    decide: Callable[[Any], Any] | None = None
    """An output whose answer is final → the output with what the rules say of it."""

    side_outputs: Callable[[Any], tuple[OutputRecord, ...]] | None = None
    """Further records about an output, which count for nothing in in = outcomes."""

    side_topics: tuple[str, ...] = ()
    """Every topic that `side_outputs` may name."""

    escalation_topic: str | None = None
    """Which of `output_topics` is for what a person must answer."""

    make_orders: Callable[[Path], DatabaseSettings] | None = None
    """Makes the database that goes with the samples in a folder, and says where it is."""

    feedback: Feedback | None = None
    """What is known later about outcomes, if anything is."""

    key_field: str = "customer_id"
    """The field of an event that keys it in Kafka, when samples are fed."""

    @property
    def embedded(self) -> Case:
        """The case as the embedded model answers it."""
        return replace(self, for_embedded={}, **self.for_embedded)

    @property
    def all_topics(self) -> tuple[str, ...]:
        """Every topic that the case may write, those of feedback last."""
        feedback = self.feedback.written_topics if self.feedback else ()
        return (*self.output_topics, *self.side_topics, self.dead_letter_topic, *feedback)
