"""Records from files and to files."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from tests.flow.doubles import DIRECT, beam_options
from transforms import files
from transforms.files import ReadLines, WriteLines, line_of
from transforms.records import OutputRecord, SourceRecord


@pytest.fixture(autouse=True)
def not_draining() -> Iterator[None]:
    """No test leaves the readers of this process stopped."""
    yield
    files.resume()


class Collect(beam.DoFn):  # type: ignore[misc]
    """Keeps what comes, with its event time, for the test; calls `then` for each."""

    found: list[tuple[SourceRecord, int]] = []  # noqa: RUF012 - one process, one test at a time

    def __init__(self, drain_at: int | None = None) -> None:
        self._drain_at = drain_at

    def process(self, record: SourceRecord, timestamp: Any = beam.DoFn.TimestampParam) -> None:
        """Keeps the record."""
        self.found.append((record, timestamp.micros))
        if record.offset == self._drain_at:
            files.drain()


def read(*paths: Path | str, drain_at: int | None = None) -> list[tuple[SourceRecord, int]]:
    """What `ReadLines` gives, with event times in microseconds, in the order of position."""
    Collect.found = []
    with beam.Pipeline(options=beam_options(DIRECT)) as pipeline:
        _ = pipeline | ReadLines(str(path) for path in paths) | beam.ParDo(Collect(drain_at))
    return sorted(Collect.found, key=lambda pair: (pair[0].topic, pair[0].offset))


def values(found: list[tuple[SourceRecord, int]]) -> list[bytes | None]:
    return [record.value for record, _ in found]


BIG = b'{"id": "' + b"x" * 2_000_000 + b'"}'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\r\nb\r\n", [b"a", b"b"]),
        (b"a\r\r\nb\r", [b"a\r", b"b"]),
        (b"a\rb\n", [b"a\rb"]),
        (b"\n\n", [b"", b""]),
        (b"  a \n", [b"  a "]),
        (b"\xff\xfe\n\xc3\n", [b"\xff\xfe", b"\xc3"]),
        ("\ufeffa\u2028b\x0bc\x85\n".encode(), ["\ufeffa\u2028b\x0bc\x85".encode()]),
        (b"a\x00b\n", [b"a\x00b"]),
        (BIG + b"\nb\n", [BIG, b"b"]),
    ],
)
def test_a_line_is_a_record(tmp_path: Path, content: bytes, expected: list[bytes]) -> None:
    """Each line is a record whose value is its bytes without the line's end; nothing else breaks a line or is decoded."""
    (tmp_path / "in").write_bytes(content)
    found = read(tmp_path / "in")
    assert values(found) == expected
    assert [record.offset for record, _ in found] == list(range(len(expected)))


def test_a_record_knows_its_position(tmp_path: Path) -> None:
    """Topic is the path, partition 0, offset the number of the line in its file, event time that of reading."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"1\n2\n")
    found = read(tmp_path / "b", tmp_path / "a")
    assert [(record.topic, record.partition, record.offset) for record, _ in found] == [
        (str(tmp_path / name), 0, number) for name in ("a", "b") for number in (0, 1)
    ]
    for record, micros in found:
        assert record.event_time_ms * 1_000 == micros > 0
        assert (record.key, record.headers) == (None, ())


def test_a_compressed_file_is_read_as_what_it_holds(tmp_path: Path) -> None:
    """A file whose name says gzip gives its lines."""
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b"a\nb\n"))
    assert values(read(tmp_path / "in.jsonl.gz")) == [b"a", b"b"]


def test_no_files() -> None:
    """Without a path nothing is read."""
    assert read() == []


def test_drain_stops_the_readers_until_resumed(tmp_path: Path) -> None:
    """A reader stops after the line it is at, the job ends well, and the next job reads again."""
    (tmp_path / "in").write_bytes(b"".join(b"%d\n" % number for number in range(10)))
    files.drain()
    assert read(tmp_path / "in") == []
    files.resume()
    assert len(read(tmp_path / "in")) == 10


def test_a_reader_stops_in_the_middle() -> None:
    """Lines that were read before `drain` are kept, and none is read after."""
    reader = files._ReadLines().process(__file__)
    first = [next(reader).value.offset for _ in range(3)]
    files.drain()
    assert first == [0, 1, 2]
    assert list(reader) == []


def write(folder: Path | str, records: list[OutputRecord]) -> None:
    with beam.Pipeline(options=beam_options(DIRECT)) as pipeline:
        _ = pipeline | beam.Create(records, reshuffle=False).with_output_types(OutputRecord) | WriteLines(str(folder))


def test_a_file_per_topic(tmp_path: Path) -> None:
    """Each topic has its file, made with its folder, with a line for each record."""
    folder = tmp_path / "new" / "out"
    write(folder, [OutputRecord("a", b'{"n": 1}'), OutputRecord("b.c", b'{"n": 2}'), OutputRecord("a", b'{"n": 3}')])
    assert sorted(os.listdir(folder)) == ["a.jsonl", "b.c.jsonl"]
    assert sorted((folder / "a.jsonl").read_bytes().splitlines()) == [b'{"n": 1}', b'{"n": 3}']
    assert (folder / "b.c.jsonl").read_bytes() == b'{"n": 2}\n'


def test_a_second_job_appends(tmp_path: Path) -> None:
    """What is in a file stays there."""
    write(tmp_path, [OutputRecord("a", b'{"n": 1}')])
    write(tmp_path, [OutputRecord("a", b'{"n": 2}')])
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"n": 1}\n{"n": 2}\n'


def bundle(folder: Path, *records: OutputRecord) -> files._WriteLines:
    """A bundle of the writer with these records in it, not finished."""
    writer = files._WriteLines(str(folder))
    writer.start_bundle()
    for one in records:
        writer.process(one)
    return writer


def test_a_bundle_writes_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its end a bundle writes nothing; then each file gets all its lines by one append."""
    appends: list[tuple[str, bytes]] = []
    monkeypatch.setattr(files, "_append", lambda path, data: appends.append((path, data)))
    writer = bundle(tmp_path, OutputRecord("a", b"{}"), OutputRecord("b", b"{}"), OutputRecord("a", b"{}"))
    assert appends == []
    writer.finish_bundle()
    assert appends == [(str(tmp_path / "a.jsonl"), b"{}\n{}\n"), (str(tmp_path / "b.jsonl"), b"{}\n")]


def test_a_bundle_that_is_undone_leaves_nothing(tmp_path: Path) -> None:
    """A bundle that never ends wrote nothing, and the next one of the same instance does not hold its lines."""
    writer = bundle(tmp_path, OutputRecord("a", b'{"n": 1}'))
    assert os.listdir(tmp_path) == []
    writer.start_bundle()
    writer.process(OutputRecord("a", b'{"n": 2}'))
    writer.finish_bundle()
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"n": 2}\n'


def test_a_bundle_that_failed_in_the_job_is_written_once(tmp_path: Path) -> None:
    """A failure between two records undoes the bundle: its lines are there once, not twice."""
    Stumble.left = 1
    records = [OutputRecord("a", b'{"n": %d}' % number) for number in range(3)]
    with beam.Pipeline(options=beam_options(DIRECT)) as pipeline:
        created = pipeline | beam.Create(records, reshuffle=False).with_output_types(OutputRecord)
        _ = created | beam.ParDo(Stumble()).with_output_types(OutputRecord) | WriteLines(str(tmp_path))
    assert Stumble.left == 0
    assert sorted((tmp_path / "a.jsonl").read_bytes().splitlines()) == [b'{"n": %d}' % number for number in range(3)]


class Stumble(beam.DoFn):  # type: ignore[misc]
    """Fails once, at the last record."""

    left = 0

    def process(self, record: OutputRecord) -> Iterator[OutputRecord]:
        """Passes the record on, but once."""
        if record.value == b'{"n": 2}' and Stumble.left:
            Stumble.left -= 1
            raise RuntimeError("a stumble")
        yield record


def test_a_write_in_parts_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel takes only part of a write, the rest follows."""
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, bytes(data[:3])))
    files._append(str(tmp_path / "a"), b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_a_folder_with_a_scheme_gets_an_object_per_bundle() -> None:
    """Where there is no appending, each bundle is an object of its own in the folder of its topic."""
    written: list[tuple[str, bytes]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_write_object", lambda path, data: written.append((path, data)))
        for _ in range(2):
            writer = files._WriteLines("gs://bucket/out/")
            writer.start_bundle()
            writer.process(OutputRecord("a", b"{}"))
            writer.finish_bundle()
    paths = [path for path, _ in written]
    assert len(set(paths)) == 2
    assert all(path.startswith("gs://bucket/out/a/") and path.endswith(".jsonl") for path in paths)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (b'{"a": 1}', b'{"a": 1}\n'),
        (b"", b'{"value":""}\n'),
        (b"text", b'{"value":"text"}\n'),
        (b'{"a":\n1}', b'{"value":"{\\"a\\":\\n1}"}\n'),
        (b"\xff", b'{"value_base64":"/w=="}\n'),
        (None, b'{"value":null}\n'),
    ],
)
def test_a_value_is_one_line(value: bytes | None, line: bytes) -> None:
    """A JSON object is its own line; any other value stands in one, whatever bytes it has."""
    assert line_of(OutputRecord("t", value)) == line


@pytest.mark.parametrize("value", [b"{broken", b"{\xff}", b"{}{}", b'{"a": NaN}', b"{"])
def test_every_line_is_json(value: bytes) -> None:
    """What only begins like an object is no object: the line is JSON all the same, and holds the value."""
    facts = json.loads(line_of(OutputRecord("t", value)))
    assert set(facts) <= {"value", "value_base64"}
