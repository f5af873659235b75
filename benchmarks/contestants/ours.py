"""This project's asynchronous step, `AskModel`, with minimal steps around it.

`Place.settings` go to `AskModel` (``shards``, ``tick_ms``, ``max_pending`` …); ``max_in_flight`` goes to the model's settings, and so
does ``limit``: the algorithm that finds out how many requests an endpoint takes (``aimd``, the default, or ``gradient``), or
``fixed``, which sends as many as `CAPACITY` allows, as all other contestants do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import apache_beam as beam

from benchmarks import records
from benchmarks.contestants import beam_job
from benchmarks.rig import Place
from transforms.ask import AskModel
from transforms.records import Answer, CallFailure, OutputRecord, SourceRecord
from transforms.remote.concurrency import Algorithm, ConcurrencySettings
from transforms.remote.questions import Chat, Message
from transforms.remote.settings import Endpoint, ModelSettings

CAPACITY = 4_000
"""Calls under way at once: that of Flink's operator (2 000) in each of two subtasks."""

_INITIAL = ConcurrencySettings().initial


def ask(record: SourceRecord) -> Chat:
    """The question of an event."""
    return Chat((Message("user", records.read_event(record.value or b"").text),))


def id_of(record: SourceRecord) -> str:
    """The id of an event, which is its key."""
    return (record.key or b"").decode()


class ToOutput(beam.DoFn):  # type: ignore[misc]
    """Makes the output of an event's outcome."""

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def process(self, pair: tuple[SourceRecord, Answer | CallFailure]) -> Iterator[OutputRecord]:
        """Yields one output."""
        record, outcome = pair
        event = records.read_event(record.value or b"")
        reply, error = (outcome.text, "") if isinstance(outcome, Answer) else ("", outcome.error_type)
        value = records.output(event.id, event.due_us, reply, error)
        yield OutputRecord(self._topic, value, key=record.key, event_time_ms=record.event_time_ms, id=event.id)


def limit(algorithm: Algorithm, most: int) -> ConcurrencySettings:
    """A limit of requests to an endpoint that may grow up to `most`; a fixed one begins there."""
    if algorithm == "fixed":
        return ConcurrencySettings(algorithm=algorithm, initial=most, most=most)
    return ConcurrencySettings(algorithm=algorithm, initial=min(_INITIAL, most), most=most)


def steps(source: beam.PCollection, place: Place) -> beam.PCollection:
    """`AskModel`, and both its roads to the output topic."""
    settings = dict(place.settings)
    most = settings.pop("max_in_flight", CAPACITY)
    model = ModelSettings(
        role="answer",
        endpoints=(Endpoint(place.url),),
        model="bench",
        max_in_flight=most,
        concurrency=limit(settings.pop("limit", "aimd"), most),
    )
    settings.setdefault("max_pending", CAPACITY)
    asked = source | "Ask" >> AskModel(model, ask, id_of, **settings)
    answered = asked.answered | "Answers" >> beam.ParDo(ToOutput(place.topic_out)).with_output_types(OutputRecord)
    failed = asked.failed | "Failures" >> beam.ParDo(ToOutput(place.topic_out)).with_output_types(OutputRecord)
    return (answered, failed) | "Both" >> beam.Flatten()


class Ours:
    """`AskModel` on the stack."""

    name = "ours"

    def running(self, place: Place) -> contextlib.AbstractContextManager[None]:
        """Submit, and cancel after the body."""
        return beam_job.running(place, steps, with_own_source=True)


CONTESTANTS = {"ours": Ours()}
