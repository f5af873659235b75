"""`DropRepeats` on each runner of a laptop: what passes depends on event times alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from runners import prism as prism_runner
from tests.flow.doubles import DIRECT, Append, beam_options, read_lines
from transforms.coders import register
from transforms.metrics import REPEATS, counter
from transforms.records import Answer, CallFailure, SourceRecord
from transforms.repeats import DEFAULT_MEMORY_S, REPLAY_HEADER, DropRepeats, _Remember, is_replayed

register(SourceRecord, Answer, CallFailure)

Seen = tuple[str, float]
"""An id and its event time in seconds."""


def id_of(record: SourceRecord) -> str:
    return record.topic


class Stamp(beam.DoFn):  # type: ignore[misc]
    """Makes records of (id, event time), one after the other."""

    def process(self, batch: list[Seen]) -> Any:
        """The records of the batch, in its order."""
        for number, (event_id, at_s) in enumerate(batch):
            record = SourceRecord(value=None, topic=event_id, offset=number, event_time_ms=round(at_s * 1_000))
            yield TimestampedValue(record, at_s)


class ToFacts(beam.DoFn):  # type: ignore[misc]
    """A record as the pair that `Append` writes."""

    def process(self, record: SourceRecord) -> Any:
        """The record as something with an id, and an outcome."""
        yield _Named(f"{record.topic}{record.offset}"), CallFailure("passed", "")


class _Named:
    def __init__(self, name: str) -> None:
        self.id = name


def run(
    runner: dict[str, Any], out: Path, records: list[Seen], memory_s: float = 10.0, windows: bool = False
) -> tuple[list[str], int | None]:
    """Which records pass, as id and number, and how many repeats were counted."""
    pipeline = beam.Pipeline(options=beam_options(**runner))
    made = pipeline | beam.Create([records], reshuffle=False) | beam.ParDo(Stamp()).with_output_types(SourceRecord)
    if windows:
        made = made | beam.WindowInto(FixedWindows(5))
    passed = made | DropRepeats(id_of, memory_s)
    assert passed.element_type is SourceRecord
    _ = passed | beam.ParDo(ToFacts()) | beam.ParDo(Append(out, "failed"))
    with prism_runner.Failures() as failures:
        result = pipeline.run()
        failures.wait(result)
    return sorted(line["id"] for line in read_lines(out)), counter(result, REPEATS)


def test_within_the_memory_a_repeat_is_dropped_and_counted(runner: dict[str, Any], tmp_path: Path) -> None:
    """The first of an id passes, what follows within the time does not, in whatever order, and other ids are not concerned."""
    # a: repeats; b: alone; c: after the time; d: out of order within it; e: out of order and too far; f: at the very end.
    records = [("a", 1.0), ("b", 1.0), ("a", 1.0), ("c", 0.0), ("a", 2.0), ("d", 20.0), ("e", 100.0)]
    records += [("c", 11.0), ("d", 15.0), ("e", 80.0), ("f", 0.0), ("f", 10.0)]
    passed, repeats = run(runner, tmp_path / "out", records)
    # Prism sorts what it has by event time; either way one of the two passes.
    assert set(passed) & {"d5", "d8"} in ({"d5"}, {"d8"})
    assert [name for name in passed if name[0] != "d"] == ["a0", "b1", "c3", "c7", "e6", "e9", "f10"]
    assert repeats == 4


def test_a_repeat_moves_the_end_of_the_memory(tmp_path: Path) -> None:
    """Repeats in a row are all dropped, each within the time of the one before."""
    records = [("a", 0.0), ("a", 9.0), ("a", 18.0), ("a", 27.0), ("a", 40.0)]
    assert run({"runner": DIRECT}, tmp_path / "out", records) == (["a0", "a4"], 3)


def test_without_memory_everything_passes(runner: dict[str, Any], tmp_path: Path) -> None:
    """The sibling: 0 seconds turn the step off, and nothing is counted."""
    passed, repeats = run(runner, tmp_path / "out", [("a", 1.0), ("a", 1.0), ("a", 2.0)], memory_s=0.0)
    assert passed == ["a0", "a1", "a2"]
    assert repeats is None


def test_event_times_and_windows_survive(tmp_path: Path) -> None:
    """What passes keeps its event time and the caller's windows; a repeat is one in another window too."""
    out = tmp_path / "out"
    assert run({"runner": DIRECT}, out, [("a", 1.0), ("b", 7.0), ("a", 8.0)], windows=True) == (["a0", "b1"], 1)
    assert {(line["id"], line["at"], line["window"]) for line in read_lines(out)} == {
        ("a0", 1_000_000, "[0.0, 5.0)"),
        ("b1", 7_000_000, "[5.0, 10.0)"),
    }


def test_nothing_in_nothing_out(runner: dict[str, Any], tmp_path: Path) -> None:
    """No input, no output, no repeats."""
    assert run(runner, tmp_path / "out", []) in (([], None), ([], 0))


def test_the_memory_is_emptied() -> None:
    """Once the watermark has passed the memory's end the cell is empty, so that state does not grow with the ids ever seen."""
    seen: list[int] = []

    class Cell:
        def __init__(self, last_us: int | None) -> None:
            self.last_us = last_us

        def read(self) -> int | None:
            return self.last_us

        def clear(self) -> None:
            seen.append(self.last_us or 0)
            self.last_us = None

    step = _Remember(10.0)
    step.forget(timestamp=Timestamp(9.999), seen=Cell(1))
    assert seen == []
    step.forget(timestamp=Timestamp(11), seen=Cell(1_000_000))
    step.forget(timestamp=Timestamp(11), seen=Cell(1_000_001))
    step.forget(timestamp=Timestamp(11), seen=Cell(None))
    assert seen == [1_000_000]


def test_a_negative_memory_is_refused() -> None:
    """A memory of less than nothing makes no sense; the default is ten minutes."""
    with pytest.raises(ValueError, match="-1"):
        DropRepeats(id_of, -1.0)
    assert DEFAULT_MEMORY_S == 600.0


def test_a_record_that_is_exempt_passes(tmp_path: Path) -> None:
    """What was sent again on purpose passes though its id is known, is not counted, and is remembered like any other."""
    pipeline = beam.Pipeline(options=beam_options(DIRECT))
    batch = [("a", 1.0), ("a", 2.0), ("a", 3.0)]
    made = pipeline | beam.Create([batch], reshuffle=False) | beam.ParDo(Stamp()).with_output_types(SourceRecord)
    passed = made | DropRepeats(id_of, 10.0, exempt=is_second)
    _ = passed | beam.ParDo(ToFacts()) | beam.ParDo(Append(tmp_path / "out", "failed"))
    result = pipeline.run()
    result.wait_until_finish()
    assert sorted(line["id"] for line in read_lines(tmp_path / "out")) == ["a0", "a1"]
    assert counter(result, REPEATS) == 1


def is_second(record: SourceRecord) -> bool:
    return record.offset == 1


@pytest.mark.parametrize(
    ("headers", "expected"), [((), False), (((REPLAY_HEADER, b"ask"),), True), (((REPLAY_HEADER, None),), True)]
)
def test_a_replayed_record_is_known_by_its_header(headers: Any, expected: bool) -> None:
    """The header alone says that a record was sent again, whatever its value."""
    assert is_replayed(SourceRecord(b"", headers=headers)) is expected
