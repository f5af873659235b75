"""Steps with keyed state around records that keep their windows: into the global window, under a key, through the step, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows


def through_state(
    records: beam.PCollection, key_of: Callable[[Any], str], step: beam.DoFn, label: str, key_label: str = "Key"
) -> beam.PCollection:
    """Return what `step` gives for a PCollection[T] keyed by `key_of`, a PCollection[T] in the windows that the records had.

    The step is given pairs of a key in UTF-8 and a record. To be called in a transform's `expand`: the labels are the names under
    which runners keep the state of a job, so they must not change.
    """
    record_type = records.element_type
    windowing = records.windowing
    keyed = (
        records
        | "IntoGlobalWindow" >> beam.WindowInto(GlobalWindows())
        | key_label >> beam.ParDo(_Key(key_of)).with_output_types(beam.typehints.Tuple[bytes, record_type])
    )
    given = keyed | label >> beam.ParDo(step).with_output_types(record_type)
    return given if windowing.is_default() else given | "RestoreWindows" >> beam.WindowInto(windowing)


class _Key(beam.DoFn):  # type: ignore[misc]
    def __init__(self, key_of: Callable[[Any], str]) -> None:
        self._key_of = key_of

    def process(self, record: Any) -> Iterator[tuple[bytes, Any]]:
        yield self._key_of(record).encode(), record
