"""The steps around enrichments, on each runner of a laptop: history by key, look-ups, functions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
import pytest
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from runners import prism as prism_runner
from tests.flow.doubles import DIRECT, Cell, beam_options, read_lines
from transforms.coders import register
from transforms.enrich.look_up import LookUp
from transforms.enrich.lookups import Lookups, LookupSettings
from transforms.enrich.step import Enrich
from transforms.history import RememberHistory, _Remember, remembered
from transforms.records import SourceRecord
from transforms.remote.clock import SystemClock


class Note(msgspec.Struct, frozen=True, array_like=True):
    """A record of a key, with what was found out about it."""

    id: str
    key: str
    at_s: int
    history: tuple[str, ...] = ()
    value: int | None = None


register(Note)


class Stamp(beam.DoFn):  # type: ignore[misc]
    """Gives the notes of a batch one after the other, at their event times."""

    def process(self, batch: list[Note]) -> Any:
        """The notes."""
        for note in batch:
            yield TimestampedValue(note, note.at_s)


class Keep(beam.DoFn):  # type: ignore[misc]
    """Appends what comes to a file."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def process(
        self, note: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> None:
        """Writes the note, its event time and window."""
        facts = {"note": msgspec.to_builtins(note), "at": timestamp.micros // 1_000_000, "window": str(window)}
        with open(self._path, "ab") as file:
            file.write(msgspec.json.encode(facts) + b"\n")


def id_of(note: Note) -> str:
    return note.id


def key_of(note: Note) -> str:
    return note.key


def source_of(note: Note) -> SourceRecord:
    return SourceRecord(value=note.id.encode(), offset=note.at_s)


def with_history(note: Note, entries: tuple[str, ...]) -> Note:
    return msgspec.structs.replace(note, history=entries)


def with_value(note: Note, value: int | None) -> Note:
    return msgspec.structs.replace(note, value=-1 if value is None else value)


def key_and_time(note: Note) -> tuple[str, int]:
    return note.key, note.at_s


def halved(key: str, at_s: int) -> int:
    if at_s % 2:
        raise ValueError(f"{key} is odd")
    return at_s // 2


async def lengths(keys: Sequence[str]) -> Mapping[str, int]:
    await asyncio.sleep(0)
    if "bad" in keys:
        raise OSError("no such host")
    return {key: len(key) for key in keys}


def make_lookups() -> Lookups[int]:
    return Lookups(lengths, int, 0, LookupSettings(max_keys=1), SystemClock())


def run(
    runner: dict[str, Any], out: Path, notes: list[Note], step: beam.PTransform, windows: bool = False
) -> list[dict[str, Any]]:
    """What comes out of a step, in the order of writing; what it refuses is in the file `bad` beside."""
    pipeline = beam.Pipeline(options=beam_options(**runner))
    made = pipeline | beam.Create([notes], reshuffle=False) | beam.ParDo(Stamp()).with_output_types(Note)
    if windows:
        made = made | beam.WindowInto(FixedWindows(10))
    found = made | "Step" >> step
    if not isinstance(found, beam.PCollection):
        _ = found.bad | "KeepBad" >> beam.ParDo(Keep(out.with_name("bad")))
        found = found.good
    assert found.element_type is Note
    _ = found | "KeepGood" >> beam.ParDo(Keep(out))
    with prism_runner.Failures() as failures:
        failures.wait(pipeline.run())
    return read_lines(out)


def history(last: int = 2, memory_s: float = 100.0) -> RememberHistory:
    return RememberHistory(
        key_of=key_of, id_of=id_of, entry_of=id_of, entry_type=str, write=with_history, last=last, memory_s=memory_s
    )


def histories(lines: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {line["note"][0]: line["note"][3] for line in lines}


def test_history_holds_the_last_of_a_key(runner: dict[str, Any], tmp_path: Path) -> None:
    """A record sees the last two of its own key, oldest first, none older than the time, and never itself."""
    notes = [Note("a1", "a", 1), Note("b1", "b", 2), Note("a2", "a", 3), Note("a3", "a", 4), Note("a4", "a", 5)]
    notes += [Note("a4", "a", 6), Note("a5", "a", 104), Note("a6", "a", 400)]
    found = run(runner, tmp_path / "out", notes, history())
    assert histories([line for line in found if line["at"] != 6]) == {
        "a1": [], "b1": [], "a2": ["a1"], "a3": ["a1", "a2"], "a4": ["a2", "a3"], "a5": ["a4"], "a6": [],
    }  # fmt: skip
    assert [line["note"][3] for line in found if line["at"] == 6] == [["a3"]]


def test_history_keeps_time_and_windows(tmp_path: Path) -> None:
    """Records come out at their event time and in the windows they came in, with history across windows."""
    found = run(
        {"runner": DIRECT}, tmp_path / "out", [Note("a1", "a", 5), Note("a2", "a", 15)], history(), windows=True
    )
    assert {(line["at"], line["window"]) for line in found} == {(5, "[0.0, 10.0)"), (15, "[10.0, 20.0)")}
    assert histories(found) == {"a1": [], "a2": ["a1"]}


class Timer:
    """A timer that notes what it was set to."""

    at: Any = None

    def set(self, at: Any) -> None:
        self.at = at


def test_state_survives_the_instance(tmp_path: Path) -> None:
    """What one instance wrote another reads, as after a savepoint; the timer, never moved, empties the cell in the end."""
    cell, timer = Cell(), Timer()
    for number in (1, 2):
        step = _Remember(id_of, id_of, str, with_history, 5, 10.0)
        step.setup()
        (found,) = step.process(
            (b"a", Note(f"a{number}", "a", number)), beam.utils.timestamp.Timestamp(number), cell, timer
        )
    assert found.history == ("a1",)
    assert timer.at == 11
    step.forget(11, cell, timer)
    assert [one.id for one in remembered(cell.value).entries] == ["a1", "a2"]
    assert timer.at == 12
    step.forget(12, cell, timer)
    assert remembered(cell.value).entries == ()


@pytest.mark.parametrize("wrong", [{"last": 0}, {"memory_s": 0.0}])
def test_history_refuses_nonsense(wrong: dict[str, Any]) -> None:
    """No entries or no time is a mistake."""
    with pytest.raises(ValueError, match="must be"):
        history(**wrong)


def look_up(rule: str) -> LookUp:
    return LookUp(
        make_lookups,
        LookupSettings(on_failure=rule),  # type: ignore[arg-type]
        key_of=key_of,
        write=with_value,
        record_type=Note,
        source_of=source_of,
        id_of=id_of,
    )


NOTES = [Note("1", "a", 1), Note("2", "bb", 12), Note("3", "bad", 3), Note("4", "a", 4)]


def test_a_failed_look_up_goes_on_and_says_so(runner: dict[str, Any], tmp_path: Path) -> None:
    """Values are written into the records, at their times; where the look-up fails the record goes on without."""
    found = run(runner, tmp_path / "out", NOTES, look_up("go-on"))
    assert {line["note"][0]: (line["at"], line["note"][4]) for line in found} == {
        "1": (1, 1), "2": (12, 2), "3": (3, -1), "4": (4, 1),
    }  # fmt: skip
    assert read_lines(tmp_path / "bad") == []


def test_a_failed_look_up_is_a_dead_letter(tmp_path: Path) -> None:
    """By the other rule the record is a dead letter of the stage look-up, in its window, and harms no other."""
    found = run({"runner": DIRECT}, tmp_path / "out", NOTES, look_up("dead-letter"), windows=True)
    assert sorted(line["note"][0] for line in found) == ["1", "2", "4"]
    (bad,) = read_lines(tmp_path / "bad")
    assert bad["note"][1:3] == ["look-up", "unreachable"]
    assert (bad["at"], bad["window"]) == (3, "[0.0, 10.0)")


def test_a_function_over_a_part_of_a_record(runner: dict[str, Any], tmp_path: Path) -> None:
    """A function gets the part that is read, its result is written; what it cannot do is a dead letter of the stage enrich."""
    step = Enrich(halved, read=key_and_time, write=with_value, record_type=Note, source_of=source_of, id_of=id_of)
    found = run(runner, tmp_path / "out", NOTES, step)
    assert {line["note"][0]: line["note"][4] for line in found} == {"2": 6, "4": 2}
    assert {(line["note"][1], line["note"][2]) for line in read_lines(tmp_path / "bad")} == {("enrich", "error")}
