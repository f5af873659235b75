"""A pure function as a step with two roads: its result, or a dead letter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics

from transforms.errors import BadEvent, BadReply, Unavailable
from transforms.metrics import NAMESPACE
from transforms.records import DeadLetter, SourceRecord

GOOD = "good"
BAD = "bad"

MAX_MESSAGE = 1_000
"""The longest message of a dead letter, in characters: it travels in a header."""


class Applied(NamedTuple):
    """What `Apply` gives. Every record that goes in comes out of exactly one of the two."""

    good: beam.PCollection
    """What the function gave."""

    bad: beam.PCollection
    """`DeadLetter`s of the records it refused."""


class Apply(beam.PTransform):  # type: ignore[misc]
    """Applies `function` to each record of a PCollection[T]; gives an `Applied`.

    The function says no by raising `BadEvent` or `BadReply`. `Unavailable` fails the bundle. Any other exception is a mistake in
    it: the record becomes a dead letter too, of type ``error``, rather than stopping the stream. A function that is an object with
    a method `setup` has it called on the worker before the first record. `stage` names the step in dead letters, `source_of` finds the
    untouched record in a T and `id_of` its id, or None; `attempts_of` the calls made for it. All must be importable on workers.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        stage: str,
        output_type: Any,
        source_of: Callable[[Any], SourceRecord],
        id_of: Callable[[Any], str | None],
        attempts_of: Callable[[Any], int] | None = None,
    ) -> None:
        super().__init__()
        self._do_fn = _Apply(function, stage, source_of, id_of, attempts_of)
        self._output_type = output_type

    def expand(self, records: beam.PCollection) -> Applied:
        """One ParDo with two outputs."""
        outputs = records | beam.ParDo(self._do_fn).with_outputs(BAD, main=GOOD)
        good, bad = outputs[GOOD], outputs[BAD]
        good.element_type = self._output_type
        bad.element_type = DeadLetter
        return Applied(good, bad)


class _Apply(beam.DoFn):  # type: ignore[misc]
    def __init__(
        self,
        function: Callable[[Any], Any],
        stage: str,
        source_of: Callable[[Any], SourceRecord],
        id_of: Callable[[Any], str | None],
        attempts_of: Callable[[Any], int] | None,
    ) -> None:
        self._function = function
        self._stage = stage
        self._source_of = source_of
        self._id_of = id_of
        self._attempts_of = attempts_of

    def setup(self) -> None:
        make_ready = getattr(self._function, "setup", None)
        if make_ready is not None:
            make_ready()

    def process(self, record: Any) -> Iterator[Any]:
        try:
            result = self._function(record)
        except Unavailable:
            raise
        except (BadEvent, BadReply) as error:
            yield self._dead_letter(record, error.kind, str(error))
        except Exception as error:  # noqa: BLE001 - one record must not stop the stream, whatever is wrong with it
            sentence = f"The step {self._stage} failed on this record with {error!r}. This is a mistake in the step."
            yield self._dead_letter(record, "error", sentence)
        else:
            yield result

    def _dead_letter(self, record: Any, error_type: str, message: str) -> Any:
        letter = DeadLetter(
            source=self._source_of(record),
            stage=self._stage,
            error_type=error_type,
            message=message[:MAX_MESSAGE],
            attempts=self._attempts_of(record) if self._attempts_of else 0,
            id=self._id_of(record),
        )
        return beam.pvalue.TaggedOutput(BAD, letter)


class Count(beam.DoFn):  # type: ignore[misc]
    """Passes records on and counts them in the counter `name`."""

    def __init__(self, name: str) -> None:
        self._counter = Metrics.counter(NAMESPACE, name)

    def process(self, record: Any) -> Iterator[Any]:
        """Yields the record."""
        self._counter.inc()
        yield record
