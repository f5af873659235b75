"""An event whose id was seen a short time ago is counted as a repeat and goes no further."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Duration, Timestamp

from transforms.keyed import through_state
from transforms.metrics import NAMESPACE, REPEATS
from transforms.records import SourceRecord

DEFAULT_MEMORY_S = 600.0

REPLAY_HEADER = "farcall-replay"
"""The header of a record that was sent again on purpose."""


def is_replayed(record: SourceRecord) -> bool:
    """Whether a record was sent again on purpose: it carries `REPLAY_HEADER`, with whatever value."""
    return any(name == REPLAY_HEADER for name, _ in record.headers)


class DropRepeats(beam.PTransform):  # type: ignore[misc]
    """Lets the first record of each id through; counts those that follow within `memory_s` seconds of event time.

    State is keyed by id: one cell with the latest event time seen, and a timer that empties it. Without `memory_s` (0) nothing
    is remembered. A repeat moves the end of the memory. What passes depends on event times and order, not on the clock, so a
    replay of the same topic gives the same result; which of two unordered copies passes is the runner's choice. A record of which
    `exempt` is true passes in any case, and is remembered like any other. Raises ValueError for a negative time.
    """

    def __init__(
        self,
        id_of: Callable[[Any], str],
        memory_s: float = DEFAULT_MEMORY_S,
        exempt: Callable[[Any], bool] | None = None,
    ) -> None:
        super().__init__()
        if memory_s < 0:
            raise ValueError(f"memory_s must not be negative, and is {memory_s}.")
        self._id_of = id_of
        self._memory_s = memory_s
        self._exempt = exempt

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Keys by id, remembers, and drops the key."""
        if self._memory_s == 0:
            return records
        return through_state(records, self._id_of, _Remember(self._memory_s, self._exempt), "Remember", "KeyById")


class _Remember(beam.DoFn):  # type: ignore[misc]
    SEEN = ReadModifyWriteStateSpec("seen", coders.VarIntCoder())
    EXPIRY = TimerSpec("expiry", TimeDomain.WATERMARK)

    def __init__(self, memory_s: float, exempt: Callable[[Any], bool] | None = None) -> None:
        self._memory_us = round(memory_s * 1_000_000)
        self._exempt = exempt

    def setup(self) -> None:
        self._repeats = Metrics.counter(NAMESPACE, REPEATS)

    def process(
        self,
        element: tuple[bytes, Any],
        timestamp: Any = beam.DoFn.TimestampParam,
        seen: Any = beam.DoFn.StateParam(SEEN),
        expiry: Any = beam.DoFn.TimerParam(EXPIRY),
    ) -> Iterator[Any]:
        now = Timestamp.of(timestamp)
        last_us = seen.read()
        if last_us is None or now.micros > last_us:
            seen.write(now.micros)
            expiry.set(now + Duration(micros=self._memory_us))
        known = last_us is not None and abs(now.micros - last_us) <= self._memory_us
        if known and not (self._exempt is not None and self._exempt(element[1])):
            self._repeats.inc()
        else:
            yield element[1]

    @on_timer(EXPIRY)  # type: ignore[untyped-decorator]
    def forget(
        self,
        timestamp: Any = beam.DoFn.TimestampParam,
        seen: Any = beam.DoFn.StateParam(SEEN),
    ) -> None:
        """Empties the cell, unless a later record moved the end of the memory meanwhile."""
        last_us = seen.read()
        if last_us is not None and last_us + self._memory_us <= Timestamp.of(timestamp).micros:
            seen.clear()
