"""Figures per window of event time that grow as records come, and are written again whenever they have.

Beam's own way would be a window and a combine with early firings. This is a keyed cell instead, for two reasons: records come days
after the window they belong to, which there are late data; and DirectRunner drops what comes after the watermark at a grouping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam import coders
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp

from transforms.records import OutputRecord

DEFAULT_WINDOW_S = 3_600.0
DEFAULT_EVERY_S = 10.0
DEFAULT_MEMORY_S = 30 * 86_400.0


class Window(msgspec.Struct, frozen=True, array_like=True):
    """A window of event time of a group, in Unix milliseconds; `revision` counts from 1 how often its figures were written."""

    group: str
    start_ms: int
    end_ms: int
    revision: int = 0


@dataclass(frozen=True)
class Tally:
    """What is counted, and how it is written. All functions are pure and importable on workers.

    `every_s`: for how long, in the stream's time, changes are gathered before they are written. `memory_s`: how long after its last
    change a window is kept; what comes after that begins it again.
    """

    group_of: Callable[[Any], str]
    """Which figures a record belongs to: those of all, or of its channel."""

    time_of: Callable[[Any], int]
    """The event time that says which window a record falls into, in Unix milliseconds."""

    counts_type: type
    """The `msgspec.Struct` of the counts; made without arguments it is that of no record."""

    add: Callable[[Any, Any], Any]
    """Counts and a record → the counts with it."""

    to_record: Callable[[Window, Any], OutputRecord]
    """A window and its counts → what is written."""

    window_s: float = DEFAULT_WINDOW_S
    every_s: float = DEFAULT_EVERY_S
    memory_s: float = DEFAULT_MEMORY_S

    def __post_init__(self) -> None:
        if min(self.window_s, self.every_s, self.memory_s) <= 0:
            raise ValueError("window_s, every_s and memory_s must be above 0.")


class Counted(msgspec.Struct, frozen=True, array_like=True):
    """What a cell of state holds: encoded counts, the last revision, whether there is news, and until when it is kept."""

    counts: msgspec.Raw
    revision: int
    fresh: bool
    end_ms: int


class TallyByWindow(beam.PTransform):  # type: ignore[misc]
    """Counts a PCollection into tumbling windows of event time and groups; gives `OutputRecord`s, the last of a window holding all.

    A record may come at any time after its window: its figures are written again with the next revision.
    """

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Keys by group and window, counts, and writes."""
        kind = records.element_type
        return (
            records
            | "IntoGlobalWindow" >> beam.WindowInto(GlobalWindows())
            | "KeyByWindow"
            >> beam.ParDo(_KeyByWindow(self._tally)).with_output_types(beam.typehints.Tuple[bytes, kind])
            | "Count" >> beam.ParDo(_Count(self._tally)).with_output_types(OutputRecord)
        )


class _KeyByWindow(beam.DoFn):  # type: ignore[misc]
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def process(self, record: Any) -> Iterator[tuple[bytes, Any]]:
        length_ms = round(self._tally.window_s * 1_000)
        at_ms = self._tally.time_of(record)
        yield f"{at_ms - at_ms % length_ms}|{self._tally.group_of(record)}".encode(), record


class _Count(beam.DoFn):  # type: ignore[misc]
    CELL = ReadModifyWriteStateSpec("counts", coders.BytesCoder())
    EMIT = TimerSpec("emit", TimeDomain.WATERMARK)
    EXPIRY = TimerSpec("expiry", TimeDomain.WATERMARK)

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def setup(self) -> None:
        self._counts: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(self._tally.counts_type)

    def process(
        self,
        element: tuple[bytes, Any],
        timestamp: Any = beam.DoFn.TimestampParam,
        cell: Any = beam.DoFn.StateParam(CELL),
        emit: Any = beam.DoFn.TimerParam(EMIT),
        expiry: Any = beam.DoFn.TimerParam(EXPIRY),
    ) -> None:
        now_ms = Timestamp.of(timestamp).micros // 1_000
        before = counted_in(cell.read())
        counts = self._tally.counts_type() if before is None else self._counts.decode(before.counts)
        encoded = msgspec.Raw(_encoder.encode(self._tally.add(counts, element[1])))
        end_ms = max(now_ms + round(self._tally.memory_s * 1_000), before.end_ms if before else 0)
        cell.write(_encoder.encode(Counted(encoded, before.revision if before else 0, fresh=True, end_ms=end_ms)))
        if before is None:
            expiry.set(Timestamp(micros=end_ms * 1_000))
        if before is None or not before.fresh:
            emit.set(Timestamp(micros=(now_ms + round(self._tally.every_s * 1_000)) * 1_000))

    @on_timer(EMIT)  # type: ignore[untyped-decorator]
    def write(
        self,
        key: Any = beam.DoFn.KeyParam,
        cell: Any = beam.DoFn.StateParam(CELL),
    ) -> Iterator[OutputRecord]:
        """Writes the figures, if there is news in them."""
        counted = counted_in(cell.read())
        if counted is None or not counted.fresh:
            return
        revision = counted.revision + 1
        cell.write(_encoder.encode(Counted(counted.counts, revision, fresh=False, end_ms=counted.end_ms)))
        start, _, group = key.decode().partition("|")
        window = Window(group, int(start), int(start) + round(self._tally.window_s * 1_000), revision)
        yield self._tally.to_record(window, self._counts.decode(counted.counts))

    @on_timer(EXPIRY)  # type: ignore[untyped-decorator]
    def forget(
        self,
        timestamp: Any = beam.DoFn.TimestampParam,
        key: Any = beam.DoFn.KeyParam,
        cell: Any = beam.DoFn.StateParam(CELL),
        expiry: Any = beam.DoFn.TimerParam(EXPIRY),
    ) -> Iterator[OutputRecord]:
        """Empties the cell, or where it changed meanwhile waits; writes what was not written."""
        counted = counted_in(cell.read())
        if counted is None:
            return
        if counted.end_ms * 1_000 > Timestamp.of(timestamp).micros:
            expiry.set(Timestamp(micros=counted.end_ms * 1_000))
            return
        yield from self.write(key, cell)
        cell.clear()


_encoder = msgspec.msgpack.Encoder()
_cells = msgspec.msgpack.Decoder(Counted)


def counted_in(cell: bytes | None) -> Counted | None:
    """What a cell of state holds; None for an empty one. Raises `msgspec.DecodeError` for another's bytes."""
    return _cells.decode(cell) if cell else None
