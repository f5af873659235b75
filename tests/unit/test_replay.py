"""Dead letters are chosen, shown, and sent again as they came in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import replay
from pipeline.replay import Letter, Wanted, letter_from, letter_of
from transforms import dead_letters
from transforms.errors import SettingsError
from transforms.records import DeadLetter, SourceRecord
from transforms.repeats import REPLAY_HEADER

AT_MS = 1_772_442_000_000  # 2026-03-02T09:00:00Z


def dead(event_id: str, stage: str = "ask", kind: str = "deadline", minute: int = 0, **source: Any) -> DeadLetter:
    record = SourceRecord(
        value=source.pop("value", json.dumps({"id": event_id}).encode()),
        event_time_ms=AT_MS + minute * 60_000,
        **{"topic": "support.events", "offset": 1, **source},
    )
    return DeadLetter(record, stage, kind, "It took too long.", 2, event_id)


LETTERS = [dead("a"), dead("b", minute=5), dead("c", kind="refused", minute=10), dead("d", stage="look-up", minute=20)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of dead letters, as a job writes it."""
    path = tmp_path / "support.dead-letters.jsonl"
    path.write_bytes(b"".join((dead_letters.to_json(one, "t").value or b"") + b"\n" for one in LETTERS))
    return path


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ["a", "b", "c", "d"]),
        (["--stage=ask"], ["a", "b", "c"]),
        (["--stage=ask", "--stage=look-up", "--error=deadline"], ["a", "b", "d"]),
        (["--error=refused"], ["c"]),
        (["--since=2026-03-02T09:05:00Z"], ["b", "c", "d"]),
        (["--until=2026-03-02T10:05:00+01:00"], ["a"]),
        (["--since=2026-03-02T09:05:00Z", "--until=2026-03-02T09:20:00Z"], ["b", "c"]),
        (["--stage=parse"], []),
    ],
)
def test_letters_are_chosen(file: Path, tmp_path: Path, flags: list[str], expected: list[str]) -> None:
    """Stage, error and time choose together; the start of a time counts, its end does not."""
    target = tmp_path / "again.jsonl"
    assert replay.main([f"--from={file}", f"--to={target}", *flags, "--send"]) == 0
    assert ids(target) == expected


def test_nothing_is_written_without_send(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --send the same choice is shown, with counts, and nothing is written."""
    target = tmp_path / "again.jsonl"
    assert replay.main([f"--from={file}", f"--to={target}", "--stage=ask"]) == 0
    said = capsys.readouterr().out
    assert "3 of 4 dead letters" in said
    assert "deadline" in said
    assert "nothing was sent" in said
    assert not target.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--to=x.jsonl"], "--from"),
        (["--from={file}"], "--to is missing"),
        (["--from={file}", "--to={file}"], "is there already"),
        (["--from=/nowhere", "--to=x"], "cannot be read"),
        (["--from=kafka://h:1", "--to=x"], "one topic"),
        (["--from={file}", "--to=x", "--since=yesterday"], "--since"),
        (["--from={file}", "--to=x", "--until=2026-03-02T09:00:00"], "offset"),
        (["--from={file}", "--to=x", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_use(file: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str) -> None:
    """What is wrong is said in one sentence, with status 2."""
    assert replay.main([flag.format(file=file) for flag in flags]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_line_that_is_no_dead_letter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another file is refused with the number of the line."""
    (tmp_path / "replies.jsonl").write_text('{"id": "a", "reply": "x"}\n')
    assert replay.main([f"--from={tmp_path}/replies.jsonl", "--to=x"]) == 2
    assert "line 1" in capsys.readouterr().err


@pytest.mark.parametrize("value", [b"{}", b"\xff\xfe", None])
def test_bytes_survive_a_file(value: bytes | None) -> None:
    """Value, key and headers come out of the JSON as they were, whatever bytes they are."""
    letter = dead("a", value=value, key=b"\xff", headers=(("h", b"\x00\xff"), ("n", None)))
    found = letter_of(dead_letters.to_json(letter, "t").value or b"", "here")
    assert found == Letter(letter.source, "ask", "deadline", "a")


class FakeMessage:
    """A record of Kafka, as confluent_kafka gives it."""

    def __init__(self, letter: DeadLetter) -> None:
        record = dead_letters.to_kafka(letter, "support.dead-letters")
        self._record = record

    def headers(self) -> list[tuple[str, bytes | None]]:
        return list(self._record.headers)

    def value(self) -> bytes | None:
        return self._record.value

    def key(self) -> bytes | None:
        return self._record.key

    def timestamp(self) -> tuple[int, int]:
        return (1, self._record.event_time_ms)

    def topic(self) -> str:
        return self._record.topic

    def offset(self) -> int:
        return 7


def test_a_letter_from_kafka() -> None:
    """The record comes out of the topic without the headers that say why it is there, and knows where it came from."""
    letter = dead("a", key=b"k", headers=(("h", b"v"),))
    found = letter_from(FakeMessage(letter))  # type: ignore[arg-type]
    assert (found.source.headers, found.source.topic, found.stage, found.error, found.id) == (
        (("h", b"v"),), "support.events", "ask", "deadline", "a",
    )  # fmt: skip


class FakeProducer:
    """Keeps what it is given."""

    sent: list[dict[str, Any]] = []  # noqa: RUF012 - read by the test, which clears it

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def produce(self, topic: str, **record: Any) -> None:
        self.sent.append({"topic": topic, **record})

    def poll(self, _: float) -> int:
        return 0

    def flush(self, _: float) -> int:
        return 0


def test_what_is_sent_is_the_record_with_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key, value, headers and time are the record's, and one header says that it is sent again, once."""
    monkeypatch.setattr(replay, "Producer", FakeProducer)
    FakeProducer.sent.clear()
    letter = dead("a", key=b"k", headers=(("h", b"v"), (REPLAY_HEADER, b"old")))
    found = letter_from(FakeMessage(letter))  # type: ignore[arg-type]
    for topic in (None, "other"):
        replay.send([found], "h:1", topic, replay.KafkaConfig(), 7)
    first, second = FakeProducer.sent
    assert (first["topic"], second["topic"]) == ("support.events", "other")
    assert (first["key"], first["value"], first["timestamp"]) == (b"k", b'{"id": "a"}', AT_MS)
    assert first["headers"] == [("h", b"v"), (REPLAY_HEADER, b"ask 7")]


def test_a_letter_of_a_file_needs_a_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that was read from a file cannot be sent to where it came from."""
    monkeypatch.setattr(replay, "Producer", FakeProducer)
    letter = Letter(SourceRecord(b"{}", topic="/data/events.jsonl"), "ask", "deadline", "a")
    with pytest.raises(SettingsError, match="--to"):
        replay.send([letter], "h:1", None, replay.KafkaConfig(), 7)


def test_everything_fits_no_wish() -> None:
    """Without wishes every letter is wanted."""
    assert Wanted().fits(Letter(SourceRecord(b""), "x", "y", None))
