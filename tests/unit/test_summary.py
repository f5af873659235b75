"""What a run did, told from what it wrote."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.outputs import FileWatch
from pipeline.summary import Summary, Written, events_read, percentile, print_table, unaccounted


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None),
        ([7.0], 0.0, 7.0),
        ([7.0], 0.5, 7.0),
        ([7.0], 1.0, 7.0),
        ([2.0, 1.0], 0.5, 1.0),
        ([2.0, 1.0], 0.51, 2.0),
        ([15.0, 20.0, 35.0, 40.0, 50.0], 0.05, 15.0),
        ([15.0, 20.0, 35.0, 40.0, 50.0], 0.3, 20.0),
        ([15.0, 20.0, 35.0, 40.0, 50.0], 0.4, 20.0),
        ([15.0, 20.0, 35.0, 40.0, 50.0], 1.0, 50.0),
        ([float(value) for value in range(1, 101)], 0.99, 99.0),
        ([float(value) for value in range(1, 101)], 0.95, 95.0),
    ],
)
def test_percentile_is_the_nearest_rank(values: list[float], share: float, expected: float | None) -> None:
    """A percentile is the smallest value that at least that share does not exceed: always one of the values."""
    assert percentile(values, share) == expected


def reply(identity: str, **facts: float) -> Written:
    return Written(topic="replies", identity=identity, reply=facts, attempts=1)


def dead(identity: str, stage: str = "ask", kind: str = "timeout", attempts: int = 0) -> Written:
    return Written(topic="dead", identity=identity, dead=(stage, kind), attempts=attempts)


def test_a_copy_is_counted_as_a_copy_alone() -> None:
    """What is written twice with one identity counts once, in every figure, and one time as a copy."""
    summary = Summary()
    summary.add([reply("id a", prompt_tokens=3, completion_tokens=2, latency_ms=5, model_ms=4)] * 3)
    assert (summary.outcomes, summary.replies, summary.copies, summary.requests) == (1, 1, 2, 1)
    assert (summary.prompt_tokens, summary.completion_tokens) == (3, 2)
    assert (summary.latencies_ms, summary.model_ms) == ([5.0], [4.0])
    assert summary.by_topic == {"replies": 1}


def test_a_reply_and_a_dead_letter_of_one_event_are_one_outcome() -> None:
    """An event whose second outcome is of another kind is still one event: the first one counts."""
    summary = Summary()
    summary.add([reply("id a"), dead("id a")])
    assert (summary.outcomes, summary.replies, summary.copies) == (1, 1, 1)
    assert not summary.dead


def test_dead_letters_are_counted_by_reason() -> None:
    """Dead letters are outcomes, no replies, and counted by stage and kind with the requests they cost."""
    summary = Summary()
    summary.add([dead("id a", attempts=5), dead("id b"), dead("position t 0 1", "parse", "not-json"), reply("id c")])
    assert summary.dead == {("ask", "timeout"): 2, ("parse", "not-json"): 1}
    assert (summary.outcomes, summary.replies, summary.requests) == (4, 1, 6)
    assert summary.progress() == "1 replies, 3 dead letters"


@pytest.mark.parametrize(
    ("events_in", "repeats", "expected"), [(3, 1, 0), (4, 1, 1), (2, 1, -1), (2, 0, 0), (2, 2, -2)]
)
def test_unaccounted(events_in: int, repeats: int, expected: int) -> None:
    """In - outcomes - repeats: above 0 for events that are missing, below 0 for events with two outcomes."""
    summary = Summary()
    summary.add([reply("id a"), dead("id b"), reply("id a")])
    assert unaccounted(summary, events_in, repeats) == expected


def test_the_table_says_what_was_counted() -> None:
    """The printed table has each topic, reason and figure, and a dash where there is nothing to measure."""
    summary = Summary()
    summary.add([dead("id b")])
    console = Console(file=io.StringIO(), width=100)
    print_table(console, summary, 12, 11, 1.0)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("events in", "12", "out  dead", "dead letter  ask: timeout", "– / – / – ms"):
        assert words in said
    assert "copies" not in said


def line(path: Path, **facts: object) -> None:
    with path.open("ab") as file:
        file.write(json.dumps(facts).encode() + b"\n")


def letter(path: Path, event_id: str | None, stage: str, offset: int) -> None:
    facts = {"error_type": "x", "attempts": 0, "topic": "in", "partition": 0, "offset": offset}
    line(path, id=event_id, stage=stage, **facts)


def test_the_last_offsets_may_be_committed_late() -> None:
    """Fewer committed than accounted for is asked again until it is time; a counter that says more is believed at once."""
    said = iter([6, 6, 9])
    assert events_read(0, lambda: next(said), 9, lambda: True) == 9
    said = iter([6, 7, 9])
    pauses = iter([True, False])
    assert events_read(5, lambda: next(said), 9, lambda: next(pauses)) == 7
    assert events_read(9, lambda: 6, 9, pytest.fail) == 9
    assert events_read(3, lambda: 12, 9, pytest.fail) == 12, "three events are missing, which no pause brings back"


def test_the_identity_of_outcomes(tmp_path: Path) -> None:
    """A reply and a late dead letter have the event's id; one refused at the door, or without an id, its position."""
    watch = FileWatch(str(tmp_path), ["replies"], "dead")
    line(tmp_path / "replies.jsonl", id="a", attempts=2)
    letter(tmp_path / "dead.jsonl", "a", "ask", 1)
    letter(tmp_path / "dead.jsonl", "a", "parse", 2)
    letter(tmp_path / "dead.jsonl", None, "parse", 3)
    letter(tmp_path / "dead.jsonl", None, "ask", 4)
    found = watch.poll()
    assert [one.identity for one in found] == ["id a", "id a", "position in 0 2", "position in 0 3", "position in 0 4"]
    assert [one.attempts for one in found] == [2, 0, 0, 0, 0]


def test_a_watch_gives_each_complete_line_once(tmp_path: Path) -> None:
    """Half a line waits until it is whole; a line that was given is not given again."""
    path = tmp_path / "replies.jsonl"
    watch = FileWatch(str(tmp_path), ["replies"], "dead")
    assert watch.poll() == []
    line(path, id="a")
    with path.open("ab") as file:
        file.write(b'{"id":')
    assert [one.identity for one in watch.poll()] == ["id a"]
    assert watch.poll() == []
    with path.open("ab") as file:
        file.write(b'"b"}\n')
    assert [one.identity for one in watch.poll()] == ["id b"]


def test_a_watch_clears_only_its_own_files(tmp_path: Path) -> None:
    """What an earlier run wrote to the job's topics is removed and named; other files of the folder stay."""
    for name in ("replies.jsonl", "dead.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}\n")
    watch = FileWatch(str(tmp_path), ["replies"], "dead")
    assert sorted(watch.clear()) == [str(tmp_path / "dead.jsonl"), str(tmp_path / "replies.jsonl")]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
