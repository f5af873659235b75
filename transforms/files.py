"""Records from files and to files: JSON Lines, one file per topic.

Output goes through a plain ParDo. Beam's own file sinks group, and DirectRunner silently drops results that come after the
watermark at a grouping; the asynchronous step's results do.
"""

from __future__ import annotations

import base64
import os
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from transforms.records import OutputRecord, SourceRecord
from transforms.remote.clock import SystemClock

_draining = threading.Event()


def drain() -> None:
    """Makes every reader of files in this process stop after the line it is at."""
    _draining.set()


def resume() -> None:
    """Undoes `drain`, for the next job in this process."""
    _draining.clear()


class ReadLines(beam.PTransform):  # type: ignore[misc]
    """Reads files line by line as `SourceRecord`s: value the line without its end, topic the path, offset its number from 0.

    Event time is the time of reading. Bytes are not decoded. An empty line is a record with an empty value.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        super().__init__()
        self._paths = tuple(paths)

    def expand(self, pipeline: Any) -> beam.PCollection:
        """Creates the paths and reads each."""
        return (
            pipeline
            | "Paths" >> beam.Create(list(self._paths), reshuffle=False)
            | "Read" >> beam.ParDo(_ReadLines()).with_output_types(SourceRecord)
        )


class _ReadLines(beam.DoFn):  # type: ignore[misc]
    def process(self, path: str) -> Iterator[Any]:
        clock = SystemClock()
        with FileSystems.open(path, compression_type="auto") as file:
            # Beam's reader of compressed files is no iterator.
            for number, line in enumerate(iter(file.readline, b"")):
                if _draining.is_set():
                    return
                now_ms = clock.now_ms()
                value = line.removesuffix(b"\n").removesuffix(b"\r")
                record = SourceRecord(value=value, topic=path, offset=number, event_time_ms=now_ms)
                yield TimestampedValue(record, Timestamp(micros=now_ms * 1_000))


class WriteLines(beam.PTransform):  # type: ignore[misc]
    """Writes `OutputRecord`s to ``<folder>/<topic>.jsonl``, one line of JSON for each, by `line_of`.

    A bundle's lines are appended when it ends, each file's by one write, so that an undone bundle leaves nothing unless the process
    dies within the write; lines of a bundle done twice carry the same id. A folder with a scheme (``gs://…``) gets a folder per
    topic and an object per bundle, as object stores cannot append.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """One ParDo; gives nothing."""
        return records | "Write" >> beam.ParDo(_WriteLines(self._folder)).with_output_types(type(None))


class _WriteLines(beam.DoFn):  # type: ignore[misc]
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def start_bundle(self) -> None:
        self._lines: dict[str, list[bytes]] = defaultdict(list)

    def process(self, record: OutputRecord) -> None:
        self._lines[record.topic].append(line_of(record))

    def finish_bundle(self) -> None:
        for topic, lines in self._lines.items():
            data = b"".join(lines)
            if "://" in self._folder:
                _write_object(f"{self._folder.rstrip('/')}/{topic}/{uuid.uuid4().hex}.jsonl", data)
            else:
                _append(os.path.join(self._folder, f"{topic}.jsonl"), data)
        self._lines.clear()


def line_of(record: OutputRecord) -> bytes:
    """A record's value as one line: as it is where it is a JSON object, else as the string ``value`` of one.

    Bytes that are not UTF-8 are base64 under ``value_base64``; a record without a value is ``{"value": null}``.
    """
    value = record.value
    if value is not None and value[:1] == b"{" and b"\n" not in value and _is_json(value):
        return value + b"\n"
    return orjson.dumps(text_or_base64("value", value), option=orjson.OPT_APPEND_NEWLINE)


def _is_json(value: bytes) -> bool:
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return False
    return True


def text_or_base64(name: str, value: bytes | None) -> dict[str, str | None]:
    """``{name: text}``, or ``{name_base64: …}`` for bytes that are not UTF-8."""
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def _append(path: str, data: bytes) -> None:
    # O_APPEND: the kernel places each write at the end, so processes that share a file do not write into each other.
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def _write_object(path: str, data: bytes) -> None:
    with FileSystems.create(path) as file:
        file.write(data)
