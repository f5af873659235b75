"""The graph of a job, on one screen. No IO here: where records come from and go to are arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam

from pipeline.case import Case
from transforms.apply import Apply, Count
from transforms.ask import AskModel
from transforms.ask.calls import MakeCaller, make_client
from transforms.coders import register
from transforms.metrics import RECORDS_IN
from transforms.records import Answer, DeadLetter, OutputRecord, SourceRecord
from transforms.remote.settings import ModelSettings
from transforms.repeats import DEFAULT_MEMORY_S, DropRepeats

ToDeadLetterRecord = Callable[[DeadLetter, str], OutputRecord]


@dataclass(frozen=True)
class Steps:
    """The settings of the steps between input and output. With `keeps_order`, events of one key leave in the order they came."""

    model: ModelSettings
    dead_letter_record: ToDeadLetterRecord
    repeat_memory_s: float = DEFAULT_MEMORY_S
    ask_options: Mapping[str, Any] = field(default_factory=dict)
    topics: Mapping[str, str] = field(default_factory=dict)
    keeps_order: bool = False
    make_caller: MakeCaller = make_client


def build(pipeline: beam.Pipeline, case: Case, read: beam.PTransform, write: beam.PTransform, steps: Steps) -> None:
    """Lays the job of `case` into `pipeline`.

        read → parse → drop repeats → ask the model → check the reply → route → write
                 └───────────────────────┴────────────────┴──→ dead letters ──┘

    `read` gives `SourceRecord`s, `write` takes `OutputRecord`s. Labels are names of state: they stay as they are.
    """
    register(case.event_type, case.output_type)
    event, output = case.event_type, case.output_type

    records = (
        pipeline | "Read" >> read | "CountRecords" >> beam.ParDo(Count(RECORDS_IN)).with_output_types(SourceRecord)
    )
    parsed = records | "ParseEvents" >> Apply(
        case.parse, stage="parse", output_type=event, source_of=_itself, id_of=case.read_id
    )
    fresh = parsed.good | "DropRepeats" >> DropRepeats(case.event_id, steps.repeat_memory_s)
    asked = fresh | "AskModel" >> AskModel(
        steps.model,
        case.ask,
        case.event_id,
        order_key_of=_KeyOf(case.source_of) if steps.keeps_order else None,
        make_caller=steps.make_caller,
        **steps.ask_options,
    )
    unanswered = asked.failed | "BuryFailures" >> beam.ParDo(_BuryFailures(case)).with_output_types(DeadLetter)
    checked = asked.answered | "CheckReplies" >> Apply(
        case.check,
        stage="check",
        output_type=output,
        source_of=_First(case.source_of),
        id_of=_First(case.event_id),
        attempts_of=_answer_attempts,
    )
    routed = checked.good | "RouteReplies" >> Apply(
        case.route, stage="route", output_type=OutputRecord, source_of=case.output_source, id_of=case.output_id
    )

    dead = (
        (parsed.bad, unanswered, checked.bad, routed.bad)
        | "AllDeadLetters" >> beam.Flatten()
        | "ToRecords"
        >> beam.ParDo(_ToRecords(steps.dead_letter_record, case.dead_letter_topic)).with_output_types(OutputRecord)
    )
    outputs = (routed.good, dead) | "AllOutputs" >> beam.Flatten()
    if steps.topics:
        outputs = outputs | "RenameTopics" >> beam.ParDo(_RenameTopics(steps.topics)).with_output_types(OutputRecord)
    _ = outputs | "Write" >> write


def _itself(record: SourceRecord) -> SourceRecord:
    return record


def _answer_attempts(answered: tuple[Any, Answer]) -> int:
    return answered[1].attempts


class _KeyOf:
    """The key of the record that an event came from."""

    def __init__(self, source_of: Callable[[Any], SourceRecord]) -> None:
        self._source_of = source_of

    def __call__(self, event: Any) -> bytes | None:
        return self._source_of(event).key


class _First:
    """A function of the first of a pair."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, pair: tuple[Any, Any]) -> Any:
        return self._function(pair[0])


class _BuryFailures(beam.DoFn):  # type: ignore[misc]
    """An event without an answer becomes a dead letter of the stage ``ask``."""

    def __init__(self, case: Case) -> None:
        self._source_of = case.source_of
        self._event_id = case.event_id

    def process(self, element: Any) -> Any:
        event, failure = element
        yield DeadLetter(
            source=self._source_of(event),
            stage="ask",
            error_type=failure.error_type,
            message=failure.message,
            attempts=failure.attempts,
            id=self._event_id(event),
        )


class _ToRecords(beam.DoFn):  # type: ignore[misc]
    def __init__(self, to_record: ToDeadLetterRecord, topic: str) -> None:
        self._to_record = to_record
        self._topic = topic

    def process(self, letter: DeadLetter) -> Any:
        yield self._to_record(letter, self._topic)


class _RenameTopics(beam.DoFn):  # type: ignore[misc]
    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = dict(names)

    def process(self, record: OutputRecord) -> Any:
        yield OutputRecord(
            topic=self._names.get(record.topic, record.topic),
            value=record.value,
            key=record.key,
            headers=record.headers,
            event_time_ms=record.event_time_ms,
            id=record.id,
        )
