"""Figures over what came lately under the same key, written into each record: sliding windows of event time in keyed state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam import coders
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from transforms.keyed import through_state
from transforms.metrics import NAMESPACE
from transforms.panes import Panes, Recent, WindowSettings, add, is_late, recent

LATE = "late_for_windows"
"""The counter of records that came too late to be counted."""


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What a cell of state holds: panes; until when it is needed, and for when its timer is set (the stream's time, Unix ms)."""

    panes: Panes = ()
    end_ms: int = 0
    timer_ms: int = 0


class AggregateRecent(beam.PTransform):  # type: ignore[misc]
    """Writes into each record of a PCollection[T] what the records of its key came to, over sliding windows that end with it.

    `values_of` gives the numbers that are summed, as many for each record; ``write(record, figures)`` gives the record with a
    `Recent` for each window. Windows are of the time that `time_of` gives (Unix milliseconds), which may be another than the
    stream's own. A record sees what has come before it and is not after it in that time; nothing waits for records that are still
    on their way, as a decision would have to wait with it. One that is late but within `settings.lateness_s` is counted where it
    belongs, for those that come after; a later one sees what is left, counts for nobody, and is counted in `LATE`.

    State is keyed by what `key_of` gives: one cell, bounded by the number of panes, and a timer that empties it once the stream has
    moved on by all windows and the lateness. A record that is sent again is counted again: repeats are dropped before this step.
    """

    def __init__(
        self,
        *,
        key_of: Callable[[Any], str],
        time_of: Callable[[Any], int],
        values_of: Callable[[Any], tuple[float, ...]],
        write: Callable[[Any, tuple[Recent, ...]], Any],
        settings: WindowSettings,
    ) -> None:
        super().__init__()
        self._key_of = key_of
        self._aggregate = _Aggregate(time_of, values_of, write, settings)

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Keys, aggregates, and drops the key."""
        return through_state(records, self._key_of, self._aggregate, "Aggregate")


class _Aggregate(beam.DoFn):  # type: ignore[misc]
    CELL = ReadModifyWriteStateSpec("panes", coders.BytesCoder())
    EXPIRY = TimerSpec("expiry", TimeDomain.WATERMARK)

    def __init__(
        self,
        time_of: Callable[[Any], int],
        values_of: Callable[[Any], tuple[float, ...]],
        write: Callable[[Any, tuple[Recent, ...]], Any],
        settings: WindowSettings,
    ) -> None:
        self._time_of = time_of
        self._values_of = values_of
        self._write = write
        self._settings = settings

    def setup(self) -> None:
        self._late = Metrics.counter(NAMESPACE, LATE)

    def process(
        self,
        element: tuple[bytes, Any],
        timestamp: Any = beam.DoFn.TimestampParam,
        cell: Any = beam.DoFn.StateParam(CELL),
        expiry: Any = beam.DoFn.TimerParam(EXPIRY),
    ) -> Iterator[Any]:
        record = element[1]
        kept = kept_in(cell.read())
        at_ms, values, settings = self._time_of(record), self._values_of(record), self._settings
        yield self._write(record, recent(kept.panes, at_ms, values, settings))
        if is_late(kept.panes, at_ms, settings):
            self._late.inc()
            return
        end_ms = max(kept.end_ms, Timestamp.of(timestamp).micros // 1_000 + settings.kept_ms)
        timer_ms = kept.timer_ms or end_ms
        cell.write(_encoder.encode(Kept(add(kept.panes, at_ms, values, settings), end_ms, timer_ms)))
        # As in `history`: a timer that is pending is not moved.
        if not kept.timer_ms:
            expiry.set(Timestamp(micros=timer_ms * 1_000))

    @on_timer(EXPIRY)  # type: ignore[untyped-decorator]
    def forget(
        self,
        timestamp: Any = beam.DoFn.TimestampParam,
        cell: Any = beam.DoFn.StateParam(CELL),
        expiry: Any = beam.DoFn.TimerParam(EXPIRY),
    ) -> None:
        """Empties the cell, or where later records came meanwhile waits until it is not needed any more."""
        kept = kept_in(cell.read())
        if not kept.panes:
            return
        if kept.end_ms * 1_000 <= Timestamp.of(timestamp).micros:
            cell.clear()
            return
        cell.write(_encoder.encode(Kept(kept.panes, kept.end_ms, kept.end_ms)))
        expiry.set(Timestamp(micros=kept.end_ms * 1_000))


_encoder = msgspec.msgpack.Encoder()
_cells = msgspec.msgpack.Decoder(Kept)


def kept_in(cell: bytes | None) -> Kept:
    """What a cell of state holds; nothing for an empty one. Raises `msgspec.DecodeError` for another's bytes."""
    return _cells.decode(cell) if cell else Kept()
