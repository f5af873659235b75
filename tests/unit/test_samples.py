"""The shipped sample events are what their README and `expected.json` say."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from pipeline.cases.support.events import SupportEvent, parse_event, read_id
from transforms.errors import BadEvent
from transforms.records import SourceRecord

SAMPLES = Path(__file__).resolve().parents[2] / "pipeline" / "samples"
LINES = (SAMPLES / "support.jsonl").read_bytes().split(b"\n")
README = (SAMPLES / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed() -> list[SupportEvent | BadEvent]:
    """Every line of the file, read as an event or as the reason why it is none."""
    return [outcome(SourceRecord(value=line, offset=number)) for number, line in enumerate(LINES[:-1])]


def outcome(record: SourceRecord) -> SupportEvent | BadEvent:
    try:
        return parse_event(record)
    except BadEvent as error:
        return error


def first_seen(parsed: list[SupportEvent | BadEvent]) -> list[SupportEvent]:
    return list({event.id: event for event in reversed(parsed) if isinstance(event, SupportEvent)}.values())


def test_the_file_holds_what_expected_json_says(parsed: list[SupportEvent | BadEvent]) -> None:
    """The counts of lines, good events per channel, malformed ones per kind and repeats are those of expected.json."""
    good = first_seen(parsed)
    bad = Counter(error.kind for error in parsed if isinstance(error, BadEvent))
    counted = {
        "events": len(parsed),
        "good": dict(Counter(event.channel for event in good)),
        "bad": dict(bad),
        "repeats": len(parsed) - len(good) - bad.total(),
    }
    assert counted == json.loads((SAMPLES / "expected.json").read_bytes())


def test_there_are_enough_samples_of_each_kind(parsed: list[SupportEvent | BadEvent]) -> None:
    """There are at least 34 chats, 30 e-mails, 24 calls, 12 kinds of malformed events, nine languages and a repeat."""
    good = Counter(event.channel for event in first_seen(parsed))
    assert good["chat"] >= 34
    assert good["email"] >= 30
    assert good["call"] >= 24
    assert len({error.kind for error in parsed if isinstance(error, BadEvent)}) >= 12
    assert len({event.id.split("-")[1] for event in first_seen(parsed)}) >= 9
    assert json.loads((SAMPLES / "expected.json").read_bytes())["repeats"] >= 1


def test_each_line_is_one_event() -> None:
    """No line is blank, the last one ends in a line feed, and no line breaks at a carriage return."""
    assert LINES[-1] == b""
    assert all(line.strip() for line in LINES[:-1])
    assert not any(b"\r" in line for line in LINES)


def test_a_repeat_is_exact() -> None:
    """A good event whose id was seen before is the same line, byte for byte."""
    by_id: dict[str, bytes] = {}
    for line in LINES[:-1]:
        event_id = read_id(SourceRecord(value=line))
        if event_id:
            assert by_id.setdefault(event_id, line) == line


def test_texts_are_short_enough_for_the_embedded_model(parsed: list[SupportEvent | BadEvent]) -> None:
    """No good event says more than 600 characters, of which none is a replacement for one that was lost."""
    for event in first_seen(parsed):
        assert 0 < len(event.text) <= 600, event.id
        assert "\ufffd" not in event.text + (event.subject or ""), event.id


def test_no_history_or_markup_is_left(parsed: list[SupportEvent | BadEvent]) -> None:
    """What an e-mail quotes, and the tags of HTML and WebVTT, are in no text."""
    for event in first_seen(parsed):
        assert not re.search(r"^>|</?\w+|-----|support@example\.com", event.text, re.MULTILINE), event.id


def test_calls_have_two_speakers(parsed: list[SupportEvent | BadEvent]) -> None:
    """Each call has an agent and a customer, and turns in the order of time."""
    for event in first_seen(parsed):
        if event.channel == "call":
            assert len({turn.speaker for turn in event.turns}) == 2, event.id
            assert [turn.start_ms for turn in event.turns] == sorted(turn.start_ms for turn in event.turns)


def test_addresses_are_of_example_domains() -> None:
    """No address in the file could belong to anybody."""
    domains = set(re.findall(rb"[\w.+-]+@([\w-]+(?:\.[\w-]+)+)", b"\n".join(LINES).replace(rb"=\r\n", b"")))
    assert domains == {b"example.com", b"example.org"}


def test_the_readme_counts_the_good_events(parsed: list[SupportEvent | BadEvent]) -> None:
    """The table of languages and channels in the README counts what is in the file."""
    counts = Counter((event.id.split("-")[1], event.channel) for event in first_seen(parsed))
    rows = re.findall(r"\| \w+ \(`(\w\w)`\) \| (\d+) \| (\d+) \| (\d+) \|", README)
    table = {
        (language, channel): int(count)
        for language, *row in rows
        for channel, count in zip(("chat", "email", "call"), row, strict=True)
    }
    assert table == dict(counts)


def test_the_readme_counts_the_malformed_events(parsed: list[SupportEvent | BadEvent]) -> None:
    """The table of kinds in the README counts what is in the file."""
    counts = Counter(error.kind for error in parsed if isinstance(error, BadEvent))
    assert {kind: int(count) for kind, count in re.findall(r"\| `([\w-]+)` \| (\d+) \|", README)} == dict(counts)


def test_the_readme_lists_the_orders(parsed: list[SupportEvent | BadEvent]) -> None:
    """Each order that a good event names is in the README, with its customer and that event."""
    rows = {order: (customer, ids) for order, customer, ids in re.findall(r"\| (ORD-\d+) \| (\S+) \| (.*) \|", README)}
    named = set()
    for event in first_seen(parsed):
        for order in re.findall(r"ORD-\d+", f"{event.subject} {event.text}"):
            customer, ids = rows[order]
            assert customer == event.customer_id, order
            assert event.id in ids.split(", "), order
            named.add(order)
    assert named == set(rows)
