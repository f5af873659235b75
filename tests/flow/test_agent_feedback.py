"""What agents made of replies, through the whole support job: joined by id, and the shares of each channel written."""

from __future__ import annotations

import json
from pathlib import Path

import apache_beam as beam

from pipeline.build import Steps, build
from pipeline.cases.support.case import SUPPORT
from pipeline.cases.support.scripted import MakeScripted
from tests.flow.doubles import DIRECT, beam_options, model, read_lines
from transforms import dead_letters, files


def event(number: int, channel: str = "chat") -> dict[str, str]:
    text = "Good morning, could you tell me your opening hours on Saturday, please?"
    return {
        "id": f"e{number}",
        "channel": channel,
        "customer_id": f"c{number}",
        "at": "2026-11-01T10:00:00Z",
        "text": text,
    }


def verdict(number: int, word: str) -> dict[str, str]:
    return {"id": f"e{number}", "at": "2026-11-01T11:00:00Z", "verdict": word}


def write(path: Path, records: list[dict[str, str]]) -> files.ReadLines:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return files.ReadLines([str(path)])


def test_feedback_on_replies_gives_the_shares_of_a_channel(tmp_path: Path) -> None:
    """Three verdicts on chats of an hour; one on an event that there was not, and one that is none, are dead letters beside."""
    events = write(tmp_path / "events.jsonl", [event(number) for number in range(4)])
    words = [
        verdict(0, "accepted"),
        verdict(1, "edited"),
        verdict(2, "accepted"),
        verdict(9, "rejected"),
        verdict(3, "fine"),
    ]
    said = write(tmp_path / "feedback.jsonl", words)
    steps = Steps(
        model=model("http://scripted.invalid/v1"),
        dead_letter_record=dead_letters.to_json,
        ask_options={"mode": "bundles"},
        make_caller=MakeScripted({}),
    )
    out = tmp_path / "out"
    with beam.Pipeline(options=beam_options(DIRECT)) as pipeline:
        build(pipeline, SUPPORT, events, files.WriteLines(str(out)), steps, said)
    assert {one["id"] for one in read_lines(out / "support.chat.replies.jsonl")} == {"e0", "e1", "e2", "e3"}
    last = max(read_lines(out / "support.quality.jsonl"), key=lambda one: one["revision"])
    assert (last["channel"], last["window_start"], last["feedback"]) == ("chat", "2026-11-01T10:00:00+00:00", 3)
    assert (last["accepted"], last["edited"], last["rejected"]) == (2, 1, 0)
    kinds = {(one["id"], one["error_type"]) for one in read_lines(out / "support.feedback.dead-letters.jsonl")}
    assert kinds == {("e9", "unmatched"), ("e3", "bad-field")}
