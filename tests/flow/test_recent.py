"""`AggregateRecent` in a stream: windows by key, records out of order, late ones, and state that goes away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions

from tests.flow.streams import Append, Note, options, read, stream
from transforms.metrics import counter
from transforms.panes import Recent, WindowSettings
from transforms.recent import LATE, AggregateRecent

SETTINGS = WindowSettings(windows_s=(60.0,), pane_s=10.0, lateness_s=60.0)


def key_of(note: Note) -> str:
    return note.key


def time_of(note: Note) -> int:
    return note.at_ms


def values_of(note: Note) -> tuple[float, ...]:
    return (note.value,)


def write(note: Note, found: tuple[Recent, ...]) -> Note:
    return msgspec.structs.replace(note, found=tuple((one.count, one.sums[0]) for one in found))


def run(tmp_path: Path, *steps: Note | float) -> dict[str, Any]:
    """What each record was given, by id."""
    pipeline = beam.Pipeline(options=options())
    out = tmp_path / "out"
    _ = aggregated(pipeline | stream(*steps)) | beam.ParDo(Append(out, "written"))
    pipeline.run().wait_until_finish()
    return {one[0]: tuple(map(tuple, one[4])) for one in read(out, "written")}


def aggregated(notes: beam.PCollection) -> beam.PCollection:
    """The step under test."""
    return (
        notes
        | beam.Map(lambda note: note).with_output_types(Note)
        | AggregateRecent(key_of=key_of, time_of=time_of, values_of=values_of, write=write, settings=SETTINGS)
    )


def note(name: str, at_s: float, value: float = 1.0, key: str = "k") -> Note:
    return Note(name, key, round(at_s * 1_000), value)


def test_a_record_sees_its_key_within_the_window(tmp_path: Path) -> None:
    """Counts and sums are those of the key's last minute; another key has its own."""
    found = run(tmp_path, note("a", 100), note("b", 110, 5.0), note("other", 111, key="x"), note("c", 165))
    assert found == {"a": ((1, 1.0),), "b": ((2, 6.0),), "other": ((1, 1.0),), "c": ((2, 6.0),)}


def test_a_record_out_of_order_counts_for_those_after_it(tmp_path: Path) -> None:
    """It sees nothing that is after it, and the next one sees it."""
    found = run(tmp_path, note("a", 150), note("early", 130), note("b", 151))
    assert (found["early"], found["b"]) == (((1, 1.0),), ((3, 3.0),))


def test_a_late_record_goes_on_alone(tmp_path: Path) -> None:
    """Its own figure is itself, and nobody sees it."""
    found = run(tmp_path, note("a", 300), note("late", 170), note("b", 301))
    assert (found["late"], found["b"]) == (((1, 1.0),), ((2, 2.0),))


def test_late_records_are_counted() -> None:
    """The job's counter has one for each, whatever order the runner gives the others in."""
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=DirectRunner"]))
    notes = [note("a", 1_000), *(note(f"late{number}", 100 + number) for number in range(3))]
    _ = aggregated(pipeline | beam.Create(notes, reshuffle=False))
    result = pipeline.run()
    result.wait_until_finish()
    assert counter(result, LATE) == 3


def test_state_goes_away_when_the_stream_has_moved_on(tmp_path: Path) -> None:
    """After windows and lateness of the stream's time a key begins again."""
    late_again = Note("again", "k", 100_000, 1.0)
    found = run(tmp_path, note("a", 100), 10_000.0, late_again)
    assert found["again"] == ((1, 1.0),)
    # Without the time that passed it would have been seen.
    (tmp_path / "kept").mkdir()
    kept = run(tmp_path / "kept", note("a", 100), late_again)
    assert kept["again"] == ((2, 2.0),)
