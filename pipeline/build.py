"""The graph of a job, on one screen. No IO here: where records come from and go to are arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import msgspec

from pipeline.case import Case, Feedback, Repair, Resources
from transforms.apply import Applied, Apply, Count
from transforms.ask import AskModel
from transforms.ask.calls import MakeCaller, make_client
from transforms.coders import register
from transforms.enrich.database import DatabaseSettings
from transforms.enrich.lookups import LookupSettings
from transforms.feedback import JoinFeedback
from transforms.metrics import RECORDS_IN
from transforms.records import Answer, DeadLetter, OutputRecord, SourceRecord, traceparent_of
from transforms.remote.questions import Question
from transforms.remote.settings import ModelSettings
from transforms.repeats import DEFAULT_MEMORY_S, DropRepeats, is_replayed
from transforms.tally import TallyByWindow

ToDeadLetterRecord = Callable[[DeadLetter, str], OutputRecord]


@dataclass(frozen=True)
class Steps:
    """The settings of the steps between input and output. With `keeps_order`, events of one key leave in the order they came.

    `models` are further models by role, `orders` is the database of orders, `lookups` how it is asked.
    """

    model: ModelSettings
    dead_letter_record: ToDeadLetterRecord
    repeat_memory_s: float = DEFAULT_MEMORY_S
    ask_options: Mapping[str, Any] = field(default_factory=dict)
    topics: Mapping[str, str] = field(default_factory=dict)
    keeps_order: bool = False
    make_caller: MakeCaller = make_client
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    orders: DatabaseSettings | None = None
    lookups: LookupSettings = field(default_factory=LookupSettings)

    @property
    def resources(self) -> Resources:
        """What the steps of a case get of it."""
        return Resources(self.models, self.orders, self.lookups, self.ask_options, self.make_caller, self.keeps_order)


def build(
    pipeline: beam.Pipeline,
    case: Case,
    read: beam.PTransform,
    write: beam.PTransform,
    steps: Steps,
    read_feedback: beam.PTransform | None = None,
) -> None:
    """Lays the job of `case` into `pipeline`.

        read → parse → drop repeats → before … → ask the model → check → (repair → fallback) → decide → route → write
                 └────────────────────────┴────────────┴────────────────┴───────────────┴────────┴──→ dead letters ──┘

    `read` gives `SourceRecord`s, `write` takes `OutputRecord`s. With `read_feedback`, which gives the records of `case.feedback`,
    outcomes are kept until it comes, and the figures of it are written too. Labels are names of state: they stay as they are.
    """
    register(case.event_type, case.output_type, *case.record_types)

    records = (
        pipeline | "Read" >> read | "CountRecords" >> beam.ParDo(Count(RECORDS_IN)).with_output_types(SourceRecord)
    )
    parsed = records | "ParseEvents" >> Apply(
        case.parse, stage="parse", output_type=case.event_type, source_of=_itself, id_of=case.read_id
    )
    fresh = parsed.good | "DropRepeats" >> DropRepeats(
        case.event_id, steps.repeat_memory_s, exempt=_Replayed(case.source_of)
    )
    ready = before(fresh, case, steps.resources)
    asked = ready.good | "AskModel" >> AskModel(
        steps.model,
        case.ask,
        case.event_id,
        order_key_of=_KeyOf(case.source_of) if steps.keeps_order else None,
        traceparent_of=_TraceOf(case.source_of),
        make_caller=steps.make_caller,
        **steps.ask_options,
    )
    unanswered = asked.failed | "BuryFailures" >> beam.ParDo(_BuryFailures(case)).with_output_types(DeadLetter)
    checked = asked.answered | "CheckReplies" >> Apply(
        case.check,
        stage="check",
        output_type=case.output_type,
        source_of=_First(case.source_of),
        id_of=_First(case.event_id),
        attempts_of=_answer_attempts,
    )
    final = repaired(checked.good, case, steps)
    decided = final.good if case.decide is None else final.good | "Decide" >> _over_outputs(case, case.decide, "decide")
    good = decided if case.decide is None else decided.good
    routed = good | "RouteReplies" >> _over_outputs(case, case.route, "route", OutputRecord)

    letters = [parsed.bad, *ready.bad, unanswered, checked.bad, *final.bad, routed.bad]
    letters += [] if case.decide is None else [decided.bad]
    dead = (
        tuple(letters)
        | "AllDeadLetters" >> beam.Flatten()
        | "ToRecords"
        >> beam.ParDo(_ToRecords(steps.dead_letter_record, case.dead_letter_topic)).with_output_types(OutputRecord)
    )
    written = [routed.good, dead]
    if case.side_outputs is not None:
        written.append(
            good | "SideOutputs" >> beam.ParDo(_SideOutputs(case.side_outputs)).with_output_types(OutputRecord)
        )
    if case.feedback is not None and read_feedback is not None:
        written += judged(pipeline | "ReadFeedback" >> read_feedback, good, case.feedback, steps.dead_letter_record)
    outputs = tuple(written) | "AllOutputs" >> beam.Flatten()
    if steps.topics:
        outputs = outputs | "RenameTopics" >> beam.ParDo(_RenameTopics(steps.topics)).with_output_types(OutputRecord)
    _ = outputs | "Write" >> write


@dataclass(frozen=True)
class Roads:
    """Records that go on, and the dead letters of all steps that they passed."""

    good: beam.PCollection
    bad: tuple[beam.PCollection, ...] = ()


def before(events: beam.PCollection, case: Case, resources: Resources) -> Roads:
    """The steps of the case between the door and the model, those left out that have not what they need."""
    good, bad = events, []
    for step in case.before:
        transform = step.make(resources)
        if transform is None:
            continue
        found = good | step.label >> transform
        if isinstance(found, Applied):
            good = found.good
            bad.append(found.bad)
        else:
            good = found
    return Roads(good, tuple(bad))


def repaired(outputs: beam.PCollection, case: Case, steps: Steps) -> Roads:
    """Those that need it get their second try, and what is still not good one by the model's fallback; the others pass."""
    if case.repair is None:
        return Roads(outputs)
    once = _tried_again(outputs, case, steps, case.repair, steps.model, _REPAIR)
    fallback = steps.model.fallback
    if case.fallback is None or not isinstance(fallback, ModelSettings):
        return once
    twice = _tried_again(once.good, case, steps, case.fallback, fallback, _FALLBACK)
    return Roads(twice.good, (*once.bad, *twice.bad))


def _tried_again(
    outputs: beam.PCollection, case: Case, steps: Steps, repair: Repair, model: ModelSettings, labels: _TryLabels
) -> Roads:
    ask: Callable[[Any], Question | None] = repair.ask
    check: Callable[[tuple[Any, Answer]], Any] = repair.check
    fine, wrong, order_key_of = [], outputs, None
    if steps.keeps_order:
        # All of them go through the step, which asks about some: the others wait behind these for their turn.
        ask, check, order_key_of = _AskWhereNeeded(repair), _CheckWhereNeeded(repair), _KeyOf(case.output_source)
    else:
        sorted_ = outputs | labels.sort >> beam.ParDo(_Sort(repair)).with_outputs(_WRONG, main=_FINE)
        fine, wrong = [sorted_[_FINE]], sorted_[_WRONG]
        fine[0].element_type = wrong.element_type = case.output_type
    again = wrong | labels.ask >> AskModel(
        model,
        ask,
        repair.id_of,
        order_key_of=order_key_of,
        traceparent_of=_TraceOf(case.output_source),
        make_caller=steps.make_caller,
        **steps.ask_options,
    )
    checked = again.answered | labels.check >> _over_pairs(case, check)
    given_up = again.failed | labels.give_up >> _over_pairs(case, repair.give_up)
    good = (*fine, checked.good, given_up.good) | labels.join >> beam.Flatten()
    return Roads(good, (checked.bad, given_up.bad))


def judged(
    records: beam.PCollection, outputs: beam.PCollection, feedback: Feedback, dead_letter_record: ToDeadLetterRecord
) -> list[beam.PCollection]:
    """The figures of feedback, and its dead letters, as records to write. None of them is an outcome."""
    register(feedback.feedback_type, feedback.outcome_type, feedback.pair_type)
    parsed = records | "ParseFeedback" >> Apply(
        feedback.parse, stage="parse", output_type=feedback.feedback_type, source_of=_itself, id_of=feedback.read_id
    )
    outcomes = outputs | "KeepOutcomes" >> beam.FlatMap(feedback.outcomes).with_output_types(feedback.outcome_type)
    joined = (outcomes, parsed.good) | "JoinFeedback" >> JoinFeedback(
        outcome_type=feedback.outcome_type,
        outcome_id=feedback.outcome_id,
        feedback_type=feedback.feedback_type,
        feedback_id=feedback.feedback_id,
        source_of=feedback.source_of,
        combine=feedback.combine,
        pair_type=feedback.pair_type,
        memory_s=feedback.memory_s,
    )
    figures = joined.pairs | "TallyFeedback" >> TallyByWindow(feedback.tally)
    dead = (
        (parsed.bad, joined.unmatched)
        | "FeedbackDeadLetters" >> beam.Flatten()
        | "FeedbackToRecords"
        >> beam.ParDo(_ToRecords(dead_letter_record, feedback.dead_letter_topic)).with_output_types(OutputRecord)
    )
    return [figures, dead]


_FINE = "fine"
_WRONG = "wrong"


@dataclass(frozen=True)
class _TryLabels:
    """The labels of one further try."""

    sort: str
    ask: str
    check: str
    give_up: str
    join: str


_REPAIR = _TryLabels("SortReplies", "RepairReplies", "CheckRepairs", "GiveUpRepairs", "AllReplies")
_FALLBACK = _TryLabels("SortRepairs", "AskFallback", "CheckFallbacks", "GiveUpFallbacks", "AllRepairs")


def _over_outputs(case: Case, function: Callable[[Any], Any], stage: str, output_type: type | None = None) -> Apply:
    return Apply(
        function,
        stage=stage,
        output_type=output_type or case.output_type,
        source_of=case.output_source,
        id_of=case.output_id,
    )


def _over_pairs(case: Case, function: Callable[[Any], Any]) -> Apply:
    return Apply(
        function,
        stage="check",
        output_type=case.output_type,
        source_of=_First(case.output_source),
        id_of=_First(case.output_id),
    )


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


class _TraceOf:
    """The trace that the record belongs to which an event came from."""

    def __init__(self, source_of: Callable[[Any], SourceRecord]) -> None:
        self._source_of = source_of

    def __call__(self, event: Any) -> str | None:
        return traceparent_of(self._source_of(event))


class _AskWhereNeeded:
    """What is asked about an output that needs another try; None about the others."""

    def __init__(self, repair: Repair) -> None:
        self._repair = repair

    def __call__(self, output: Any) -> Question | None:
        return self._repair.ask(output) if self._repair.needed(output) else None


class _CheckWhereNeeded:
    """An output about which nothing was asked, as it is; with an answer, what takes its place."""

    def __init__(self, repair: Repair) -> None:
        self._repair = repair

    def __call__(self, answered: tuple[Any, Answer]) -> Any:
        return answered[0] if answered[1].source == "none" else self._repair.check(answered)


class _First:
    """A function of the first of a pair."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, pair: tuple[Any, Any]) -> Any:
        return self._function(pair[0])


class _Replayed:
    """Whether an event was sent again by `pipeline.replay`."""

    def __init__(self, source_of: Callable[[Any], SourceRecord]) -> None:
        self._source_of = source_of

    def __call__(self, event: Any) -> bool:
        return is_replayed(self._source_of(event))


class _Sort(beam.DoFn):  # type: ignore[misc]
    """Tells outputs that need another try from those that do not."""

    def __init__(self, repair: Repair) -> None:
        self._needed = repair.needed

    def process(self, output: Any) -> Iterator[Any]:
        yield beam.pvalue.TaggedOutput(_WRONG, output) if self._needed(output) else output


class _SideOutputs(beam.DoFn):  # type: ignore[misc]
    def __init__(self, function: Callable[[Any], tuple[OutputRecord, ...]]) -> None:
        self._function = function

    def process(self, output: Any) -> Iterator[OutputRecord]:
        yield from self._function(output)


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
        yield msgspec.structs.replace(record, topic=self._names.get(record.topic, record.topic))
