"""`JoinFeedback` and `TallyByWindow` in a stream: either order, once each, what never comes, and figures that are written again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec

from tests.flow.doubles import Cell
from tests.flow.streams import Append, Note, options, read, stream
from transforms.feedback import JOINED, REPEATED, UNMATCHED, WITHOUT_FEEDBACK, Half, JoinFeedback, _Join
from transforms.records import OutputRecord, SourceRecord
from transforms.tally import Tally, TallyByWindow, Window


class Sum(msgspec.Struct, frozen=True, array_like=True):
    count: int = 0
    total: float = 0.0


def id_of(note: Note) -> str:
    return note.id


def source_of(note: Note) -> SourceRecord:
    return note.source


def combine(outcome: Note, feedback: Note) -> Note:
    return msgspec.structs.replace(outcome, value=feedback.value)


def key_of(note: Note) -> str:
    return note.key


def time_of(note: Note) -> int:
    return note.at_ms


def add(counts: Sum, note: Note) -> Sum:
    return Sum(counts.count + 1, counts.total + note.value)


def to_record(window: Window, counts: Sum) -> OutputRecord:
    facts = [window.group, window.start_ms, window.end_ms, window.revision, counts.count, counts.total]
    return OutputRecord("sums", json.dumps(facts).encode())


def is_feedback(note: Note) -> bool:
    return note.source.topic == "labels"


def outcome(name: str, at_s: float, key: str = "g") -> Note:
    return Note(name, key, round(at_s * 1_000))


def label(name: str, at_s: float, value: float = 1.0) -> Note:
    return Note(name, "", round(at_s * 1_000), value, source=SourceRecord(b"label", topic="labels"))


def join(tmp_path: Path, *steps: Note | float) -> tuple[list[Any], list[Any]]:
    """The pairs and the dead letters."""
    pipeline = beam.Pipeline(options=options())
    out = tmp_path / "out"
    records = pipeline | stream(*steps) | "Typed" >> beam.Map(lambda note: note).with_output_types(Note)
    outcomes = records | "Outcomes" >> beam.Filter(lambda note: not is_feedback(note)).with_output_types(Note)
    labels = records | "Labels" >> beam.Filter(is_feedback).with_output_types(Note)
    joined = (outcomes, labels) | JoinFeedback(
        outcome_type=Note,
        outcome_id=id_of,
        feedback_type=Note,
        feedback_id=id_of,
        source_of=source_of,
        combine=combine,
        pair_type=Note,
        memory_s=100.0,
    )
    _ = joined.pairs | "KeepPairs" >> beam.ParDo(Append(out, "pair"))
    _ = joined.unmatched | "KeepLost" >> beam.ParDo(Append(out, "lost"))
    pipeline.run().wait_until_finish()
    return read(out, "pair"), read(out, "lost")


def test_either_may_come_first(tmp_path: Path) -> None:
    """A label before its outcome and one after it both make a pair, with the facts of both."""
    pairs, lost = join(tmp_path, label("a", 1, 7.0), outcome("a", 2), outcome("b", 3), 50.0, label("b", 60, 8.0))
    assert sorted((one[0], one[1], one[3]) for one in pairs) == [("a", "g", 7.0), ("b", "g", 8.0)]
    assert lost == []


def test_the_first_label_counts_and_copies_do_not(tmp_path: Path) -> None:
    """A second label, one before the outcome too, and a copy of an outcome change nothing."""
    steps = (label("a", 1, 7.0), label("a", 2, 9.0), outcome("a", 3), outcome("a", 4), label("a", 5, 9.0))
    pairs, lost = join(tmp_path, *steps)
    assert [one[3] for one in pairs] == [7.0]
    assert lost == []


def test_what_is_not_matched_in_time(tmp_path: Path) -> None:
    """A label whose outcome does not come is a dead letter with its record, and no pair though the outcome comes later."""
    pairs, lost = join(tmp_path, label("a", 1), outcome("b", 1), 150.0, outcome("a", 151))
    assert pairs == []
    ((source, stage, kind, message, _, event_id),) = lost
    assert (source[4 - 1], stage, kind, event_id) == ("labels", "join", "unmatched", "a")
    assert "100 s" in message


class Counts(dict[str, int]):
    """Counters that are read at once: DirectRunner loses some of those that a step with state counts."""

    def counter(self, name: str) -> Any:
        counts = self

        class Counter:
            def inc(self) -> None:
                counts[name] = counts.get(name, 0) + 1

        return Counter()


class Timer:
    """A timer that nobody fires."""

    def set(self, _at: Any) -> None:
        pass


def test_each_is_counted_as_what_became_of_it() -> None:
    """Pairs, repeats, outcomes without feedback and feedback without an outcome have a counter each."""
    steps = [label("a", 1), outcome("a", 2), label("a", 3), outcome("b", 4), outcome("c", 5), label("d", 6)]
    found, cells = Counts(), {one.id: Cell() for one in steps}
    step = _Join(Note, Note, id_of, source_of, combine, 100.0)
    step.setup()
    step._counters = {name: found.counter(name) for name in step._counters}
    for one in steps:
        side = "feedback" if is_feedback(one) else "outcome"
        half = Half(side, msgspec.Raw(msgspec.msgpack.encode(one)))
        list(step.process((one.id.encode(), half), timestamp=one.at_ms / 1_000, cell=cells[one.id], expiry=Timer()))
    for cell in cells.values():
        list(step.forget(cell=cell))
        list(step.forget(cell=cell))
    assert found == {JOINED: 1, REPEATED: 1, WITHOUT_FEEDBACK: 2, UNMATCHED: 1}


TALLY = Tally(key_of, time_of, Sum, add, to_record, window_s=60.0, every_s=10.0, memory_s=1_000.0)


def tally(tmp_path: Path, *steps: Note | float) -> list[list[Any]]:
    """What was written, in order."""
    pipeline = beam.Pipeline(options=options())
    out = tmp_path / "out"
    records = pipeline | stream(*steps) | beam.Map(lambda note: note).with_output_types(Note)
    _ = records | TallyByWindow(TALLY) | beam.ParDo(Append(out, "sums"))
    pipeline.run().wait_until_finish()
    return [json.loads(_text(one)) for one in read(out, "sums")]


def _text(record: list[Any]) -> bytes:
    import base64

    return base64.b64decode(record[1])


def counted(name: str, own_s: float, value: float, key: str = "g") -> Note:
    return Note(name, key, round(own_s * 1_000), value)


def test_a_window_is_written_again_when_more_comes(tmp_path: Path) -> None:
    """Changes are gathered for a while and written when it is over; each writing has the next revision, and the last holds all."""
    steps = (counted("a", 1, 2.0), counted("b", 2, 3.0), 30.0, counted("c", 40, 4.0), 55.0, counted("d", 57, 5.0))
    written = tally(tmp_path, *steps, counted("e", 70, 6.0))
    assert [one for one in written if one[1] == 0] == [
        ["g", 0, 60_000, 1, 2, 5.0],
        ["g", 0, 60_000, 2, 3, 9.0],
        ["g", 0, 60_000, 3, 4, 14.0],
    ]
    assert [one for one in written if one[1]] == [["g", 60_000, 120_000, 1, 1, 6.0]]


def test_groups_are_counted_apart(tmp_path: Path) -> None:
    """Two groups of one window have a figure each."""
    written = tally(tmp_path, counted("a", 1, 2.0), counted("b", 2, 3.0, key="h|i"))
    assert sorted(written) == [["g", 0, 60_000, 1, 1, 2.0], ["h|i", 0, 60_000, 1, 1, 3.0]]


def test_a_window_that_is_forgotten_begins_again(tmp_path: Path) -> None:
    """After its time without a change a window's counts are gone, and what comes then is counted anew."""
    written = tally(tmp_path, counted("a", 1, 2.0), 2_000.0, counted("b", 2, 3.0))
    assert written == [["g", 0, 60_000, 1, 1, 2.0], ["g", 0, 60_000, 1, 1, 3.0]]
