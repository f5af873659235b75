"""Calls whose transcript is JSON: speakers kept, and what is malformed refused with its number."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.cases.support.events import SupportEvent, parse_event
from pipeline.cases.support.transcript import Turn
from transforms.errors import BadEvent
from transforms.records import SourceRecord


def call(segments: Any, **more: Any) -> SupportEvent:
    event = {
        "id": "c1",
        "channel": "call",
        "customer_id": "C",
        "at": "2026-03-02T10:00:00Z",
        "segments": segments,
        **more,
    }
    return parse_event(SourceRecord(value=json.dumps(event).encode()))


def segment(text: str, start: int, end: int, **more: Any) -> dict[str, Any]:
    return {"text": text, "start_ms": start, "end_ms": end, **more}


def test_segments_become_turns() -> None:
    """Segments of one speaker in a row are one turn, white space runs one space, empty segments none, and all are the text."""
    found = call(
        [
            segment("Hello,", 0, 900, speaker="Ruth"),
            segment("how can\n I help?", 900, 2_000, speaker="Ruth", confidence=0.9),
            segment(" ", 2_000, 2_100, speaker="Jo"),
            segment("It broke.", 2_100, 3_000, speaker="Jo"),
            segment("Hm.", 3_000, 3_500),
        ]
    )
    assert found.turns == (
        Turn("Ruth", "Hello, how can I help?", 0, 2_000),
        Turn("Jo", "It broke.", 2_100, 3_000),
        Turn("", "Hm.", 3_000, 3_500),
    )
    assert found.text == "Ruth: Hello, how can I help?\nJo: It broke.\nHm."


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        ([], "one segment or more"),
        ("text", "one segment or more"),
        ([segment("a", 0, 1), "b"], "Segment 2"),
        ([segment("a", 5, 9), segment("b", 4, 9)], "Segment 2"),
        ([segment("a", 5, 5)], "Segment 1"),
        ([segment("a", -1, 5)], "Segment 1"),
        ([{"text": "a", "start_ms": 0.5, "end_ms": 2}], "Segment 1"),
        ([{"text": "a", "start_ms": True, "end_ms": 2}], "Segment 1"),
        ([{"start_ms": 0, "end_ms": 2}], "`text`"),
        ([segment("a", 0, 1, speaker=None)], "`speaker`"),
    ],
)
def test_malformed_segments(segments: Any, words: str) -> None:
    """What is no segment is refused as bad-segments, with its number."""
    with pytest.raises(BadEvent, match=words) as caught:
        call(segments)
    assert caught.value.kind == "bad-segments"


def test_one_form_of_transcript() -> None:
    """Both forms in one event are refused, and so are segments that say nothing."""
    with pytest.raises(BadEvent, match="both"):
        call([segment("a", 0, 1)], vtt="WEBVTT")
    with pytest.raises(BadEvent) as caught:
        call([segment(" \u200b", 0, 1)])
    assert caught.value.kind == "no-text"
