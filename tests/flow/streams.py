"""Steps with state under a stream whose watermark the test moves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import TimestampedValue

from transforms.coders import RecordCoder, register
from transforms.records import SourceRecord


class Note(msgspec.Struct, frozen=True, array_like=True):
    """A record of the tests: an id, a key, its own time, a value, and what a step writes into it."""

    id: str
    key: str = ""
    at_ms: int = 0
    value: float = 0.0
    found: tuple[tuple[int, float], ...] = ()
    source: SourceRecord = SourceRecord(value=None)


register(Note)


class Append(beam.DoFn):  # type: ignore[misc]
    """Appends what comes to a file of JSON, under a name."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = str(path), name

    def process(self, record: Any) -> Iterator[None]:
        facts = msgspec.to_builtins(record, enc_hook=repr)
        with open(self._path, "a") as file:
            file.write(json.dumps([self._name, facts]) + "\n")
        return iter(())


def stream(*steps: Note | float) -> TestStream:
    """Records one after the other, each a bundle, at the time of its own in seconds; a number moves the watermark on to there."""
    found = TestStream(coder=RecordCoder(Note))
    for step in steps:
        if isinstance(step, Note):
            found = found.add_elements([TimestampedValue(step, step.at_ms / 1_000)])
        else:
            found = found.advance_watermark_to(step)
    return found.advance_watermark_to_infinity()


def options() -> PipelineOptions:
    """Those of the runner that has test streams."""
    made = PipelineOptions(["--runner=BundleBasedDirectRunner"])
    made.view_as(StandardOptions).streaming = True
    return made


def read(path: Path, name: str) -> list[Any]:
    """What came under a name."""
    lines: Iterable[str] = path.read_text().splitlines() if path.exists() else ()
    return [facts for found, facts in map(json.loads, lines) if found == name]
