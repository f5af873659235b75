"""`Enrich`: a pure function of a part of a record, as a step that any case can use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import apache_beam as beam

from transforms.apply import Applied, Apply
from transforms.records import SourceRecord


class Enrich(beam.PTransform):  # type: ignore[misc]
    """Finds something out about each record of a PCollection[T] and writes it into the record; gives an `Applied`.

    `function` is called with what `read` gives, which is unpacked, and `write` puts what it returns into the record:
    ``write(record, function(*read(record)))``. So the functions of this package need not know a case's records. All must be
    importable on workers. An exception makes a dead letter of the stage ``enrich``.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        read: Callable[[Any], tuple[Any, ...]],
        write: Callable[[Any, Any], Any],
        record_type: type,
        source_of: Callable[[Any], SourceRecord],
        id_of: Callable[[Any], str | None],
    ) -> None:
        super().__init__()
        self._apply = Apply(
            Composed(function, read, write), stage="enrich", output_type=record_type, source_of=source_of, id_of=id_of
        )

    def expand(self, records: beam.PCollection) -> Applied:
        """One step with two roads."""
        applied: Applied = records | "Apply" >> self._apply
        return applied


class Composed:
    """``write(record, function(*read(record)))`` as a function of the record."""

    def __init__(
        self, function: Callable[..., Any], read: Callable[[Any], tuple[Any, ...]], write: Callable[[Any, Any], Any]
    ) -> None:
        self._function = function
        self._read = read
        self._write = write

    def __call__(self, record: Any) -> Any:
        return self._write(record, self._function(*self._read(record)))
