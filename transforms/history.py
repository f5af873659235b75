"""What came before under the same key is written into each record: the last few entries, for a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam import coders
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from transforms.keyed import through_state

DEFAULT_LAST = 5
DEFAULT_MEMORY_S = 30 * 86_400.0


class Remembered(msgspec.Struct, frozen=True, array_like=True):
    """One entry of a history: when it was (event time, Unix milliseconds), which event made it, and what it says."""

    event_time_ms: int
    id: str
    entry: msgspec.Raw


class Memory(msgspec.Struct, frozen=True, array_like=True):
    """What a cell of state holds: entries, oldest first by event time, and for when its timer is set (Unix milliseconds)."""

    entries: tuple[Remembered, ...] = ()
    timer_ms: int = 0


class RememberHistory(beam.PTransform):  # type: ignore[misc]
    """Writes into each record of a PCollection[T] what is remembered under its key, then remembers the record too.

    `entry_of` makes of a record what is kept of it, a value of `entry_type` (anything msgspec encodes); ``write(record, entries)``
    gives the record with the entries, oldest first by event time. At most `last` are kept, each for `memory_s` seconds of event
    time. A record whose id is among them is not its own history: done again, or replayed, it is remembered once.

    State is keyed by what `key_of` gives: one cell, and a timer that empties it. It is part of checkpoints and savepoints. What a
    record sees depends on which came first, so two records of one key that are close in time may be each other's history or not.
    Raises ValueError for numbers that make no sense.
    """

    def __init__(
        self,
        *,
        key_of: Callable[[Any], str],
        id_of: Callable[[Any], str],
        entry_of: Callable[[Any], Any],
        entry_type: Any,
        write: Callable[[Any, tuple[Any, ...]], Any],
        last: int = DEFAULT_LAST,
        memory_s: float = DEFAULT_MEMORY_S,
    ) -> None:
        super().__init__()
        if last < 1 or memory_s <= 0:
            raise ValueError(f"last must be at least 1 and memory_s above 0, and they are {last} and {memory_s:g}.")
        self._key_of = key_of
        self._remember = _Remember(id_of, entry_of, entry_type, write, last, memory_s)

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Keys, remembers, and drops the key."""
        return through_state(records, self._key_of, self._remember, "Remember")


class _Remember(beam.DoFn):  # type: ignore[misc]
    CELL = ReadModifyWriteStateSpec("history", coders.BytesCoder())
    EXPIRY = TimerSpec("expiry", TimeDomain.WATERMARK)

    def __init__(
        self,
        id_of: Callable[[Any], str],
        entry_of: Callable[[Any], Any],
        entry_type: Any,
        write: Callable[[Any, tuple[Any, ...]], Any],
        last: int,
        memory_s: float,
    ) -> None:
        self._id_of = id_of
        self._entry_of = entry_of
        self._entry_type = entry_type
        self._write = write
        self._last = last
        self._memory_ms = round(memory_s * 1_000)

    def setup(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._entries: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(self._entry_type)

    def process(
        self,
        element: tuple[bytes, Any],
        timestamp: Any = beam.DoFn.TimestampParam,
        cell: Any = beam.DoFn.StateParam(CELL),
        expiry: Any = beam.DoFn.TimerParam(EXPIRY),
    ) -> Iterator[Any]:
        record = element[1]
        now_ms = Timestamp.of(timestamp).micros // 1_000
        event_id = self._id_of(record)
        memory = remembered(cell.read())
        before = [one for one in memory.entries if one.id != event_id and one.event_time_ms + self._memory_ms > now_ms]
        yield self._write(record, tuple(self._entries.decode(one.entry) for one in before))
        own = Remembered(now_ms, event_id, msgspec.Raw(self._encoder.encode(self._entry_of(record))))
        kept = sorted((*before, own), key=_by_time)[-self._last :]
        timer_ms = memory.timer_ms or now_ms + self._memory_ms
        cell.write(self._encoder.encode(Memory(tuple(kept), timer_ms)))
        # A timer that is pending is not moved: it costs a write of state for each record, and runners differ in what it then holds.
        if not memory.timer_ms:
            expiry.set(Timestamp(micros=timer_ms * 1_000))

    @on_timer(EXPIRY)  # type: ignore[untyped-decorator]
    def forget(
        self,
        timestamp: Any = beam.DoFn.TimestampParam,
        cell: Any = beam.DoFn.StateParam(CELL),
        expiry: Any = beam.DoFn.TimerParam(EXPIRY),
    ) -> None:
        """Empties the cell, or where later records came meanwhile waits for the end of the youngest."""
        memory = remembered(cell.read())
        if not memory.entries:
            return
        end_ms = memory.entries[-1].event_time_ms + self._memory_ms
        if end_ms * 1_000 <= Timestamp.of(timestamp).micros:
            cell.clear()
            return
        cell.write(self._encoder.encode(Memory(memory.entries, end_ms)))
        expiry.set(Timestamp(micros=end_ms * 1_000))


_cells = msgspec.msgpack.Decoder(Memory)


def remembered(cell: bytes | None) -> Memory:
    """What a cell of state holds; nothing for an empty one. Raises `msgspec.DecodeError` for another's bytes."""
    return _cells.decode(cell) if cell else Memory()


def _by_time(one: Remembered) -> tuple[int, str]:
    return one.event_time_ms, one.id
