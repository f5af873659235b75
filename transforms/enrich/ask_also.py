"""`AskAlso`: what a second model says of a record is written into it; where it says nothing, the record goes on without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from transforms.ask import AskModel
from transforms.metrics import NAMESPACE
from transforms.records import Answer


class AskAlso(beam.PTransform):  # type: ignore[misc]
    """Asks a model about each record of a PCollection[T] by `ask` and writes its answer into the record; gives PCollection[T].

    ``write(record, answer)`` gives the record with the answer; it raises `ValueError` for one that it cannot read. Then, and where
    the call failed, the record goes on as it is, and the counter ``enrichments_missed`` says how often: what such a model adds is
    worth less than the event.
    """

    def __init__(self, ask: AskModel, write: Callable[[Any, Answer], Any]) -> None:
        super().__init__()
        self._ask = ask
        self._write = write

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Asks, writes, and joins both roads again."""
        record_type = records.element_type
        asked = records | "Ask" >> self._ask
        written = asked.answered | "Write" >> beam.ParDo(_Write(self._write)).with_output_types(record_type)
        missed = asked.failed | "GoOn" >> beam.ParDo(_GoOn()).with_output_types(record_type)
        return (written, missed) | "Join" >> beam.Flatten()


class _Write(beam.DoFn):  # type: ignore[misc]
    def __init__(self, write: Callable[[Any, Answer], Any]) -> None:
        self._write = write

    def setup(self) -> None:
        self._missed = Metrics.counter(NAMESPACE, "enrichments_missed")

    def process(self, element: tuple[Any, Answer]) -> Iterator[Any]:
        record, answer = element
        try:
            yield self._write(record, answer)
        except ValueError:
            self._missed.inc()
            yield record


class _GoOn(beam.DoFn):  # type: ignore[misc]
    def setup(self) -> None:
        self._missed = Metrics.counter(NAMESPACE, "enrichments_missed")

    def process(self, element: tuple[Any, Any]) -> Iterator[Any]:
        self._missed.inc()
        yield element[0]
