"""What is known later about an outcome, such as a label, joined with it by the event's id, whichever of the two comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
from apache_beam import coders
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Duration, Timestamp

from transforms.coders import register
from transforms.metrics import NAMESPACE
from transforms.records import DeadLetter, SourceRecord

DEFAULT_MEMORY_S = 30 * 86_400.0
STAGE = "join"
"""The stage of dead letters of feedback without an outcome."""

JOINED = "feedback_joined"
REPEATED = "feedback_repeats"
WITHOUT_FEEDBACK = "outcomes_without_feedback"
UNMATCHED = "feedback_unmatched"
"""Counters: pairs; second feedback to one id, or a second outcome; outcomes and feedback whose other half never came."""

_OUTCOME = "outcome"
_FEEDBACK = "feedback"
_BOTH = "both"
_LOST = "lost"
_PAIRS = "pairs"


class Half(msgspec.Struct, frozen=True, array_like=True):
    """One of the two that belong together, encoded: `side` is ``outcome`` or ``feedback``."""

    side: str
    value: msgspec.Raw


register(Half)


class Joined(NamedTuple):
    """What `JoinFeedback` gives."""

    pairs: beam.PCollection
    """What `combine` made of each pair."""

    unmatched: beam.PCollection
    """`DeadLetter`s of feedback whose outcome was not there in time."""


class JoinFeedback(beam.PTransform):  # type: ignore[misc]
    """Joins a PCollection of outcomes and one of feedback, given as a pair of them; gives a `Joined`.

    Each half is kept until its other comes, for `memory_s` seconds of the stream's time at most. The first feedback to an id counts:
    what comes after it within that time is counted as a repeat, and so is a copy of an outcome. Feedback without an outcome becomes
    a dead letter of the stage ``join`` and the type ``unmatched``; an outcome without feedback is counted. `combine` makes of an
    outcome and its feedback what is reported, a value of `pair_type`. The types are `msgspec.Struct`s; keep outcomes small, they
    are state. All functions must be importable on workers. Raises ValueError for a time that is not positive.
    """

    def __init__(
        self,
        *,
        outcome_type: type,
        outcome_id: Callable[[Any], str],
        feedback_type: type,
        feedback_id: Callable[[Any], str],
        source_of: Callable[[Any], SourceRecord],
        combine: Callable[[Any, Any], Any],
        pair_type: Any,
        memory_s: float = DEFAULT_MEMORY_S,
    ) -> None:
        super().__init__()
        if memory_s <= 0:
            raise ValueError(f"memory_s must be above 0, and is {memory_s:g}.")
        register(pair_type)
        self._ids = {_OUTCOME: outcome_id, _FEEDBACK: feedback_id}
        self._pair_type = pair_type
        self._join = _Join(outcome_type, feedback_type, feedback_id, source_of, combine, memory_s)

    def expand(self, both: tuple[beam.PCollection, beam.PCollection]) -> Joined:
        """Keys both by id, brings them together, and joins."""
        keyed = [
            records
            | f"IntoGlobalWindow_{side}" >> beam.WindowInto(GlobalWindows())
            | f"Key_{side}"
            >> beam.ParDo(_KeyHalf(side, self._ids[side])).with_output_types(beam.typehints.Tuple[bytes, Half])
            for side, records in zip((_OUTCOME, _FEEDBACK), both, strict=True)
        ]
        joined = (
            tuple(keyed) | "Both" >> beam.Flatten() | "Join" >> beam.ParDo(self._join).with_outputs(_LOST, main=_PAIRS)
        )
        pairs, lost = joined[_PAIRS], joined[_LOST]
        pairs.element_type, lost.element_type = self._pair_type, DeadLetter
        return Joined(pairs, lost)


class _KeyHalf(beam.DoFn):  # type: ignore[misc]
    def __init__(self, side: str, id_of: Callable[[Any], str]) -> None:
        self._side = side
        self._id_of = id_of

    def setup(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()

    def process(self, record: Any) -> Iterator[tuple[bytes, Half]]:
        yield self._id_of(record).encode(), Half(self._side, msgspec.Raw(self._encoder.encode(record)))


class _Join(beam.DoFn):  # type: ignore[misc]
    CELL = ReadModifyWriteStateSpec("half", coders.BytesCoder())
    EXPIRY = TimerSpec("expiry", TimeDomain.WATERMARK)

    def __init__(
        self,
        outcome_type: type,
        feedback_type: type,
        feedback_id: Callable[[Any], str],
        source_of: Callable[[Any], SourceRecord],
        combine: Callable[[Any, Any], Any],
        memory_s: float,
    ) -> None:
        self._types = {_OUTCOME: outcome_type, _FEEDBACK: feedback_type}
        self._feedback_id = feedback_id
        self._source_of = source_of
        self._combine = combine
        self._memory_s = memory_s

    def setup(self) -> None:
        self._decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
            side: msgspec.msgpack.Decoder(kind) for side, kind in self._types.items()
        }
        self._counters = {
            name: Metrics.counter(NAMESPACE, name) for name in (JOINED, REPEATED, WITHOUT_FEEDBACK, UNMATCHED)
        }

    def process(
        self,
        element: tuple[bytes, Half],
        timestamp: Any = beam.DoFn.TimestampParam,
        cell: Any = beam.DoFn.StateParam(CELL),
        expiry: Any = beam.DoFn.TimerParam(EXPIRY),
    ) -> Iterator[Any]:
        half, waiting = element[1], half_in(cell.read())
        if waiting is None:
            cell.write(_encoder.encode(half))
            expiry.set(Timestamp.of(timestamp) + Duration.of(self._memory_s))
        elif waiting.side in {half.side, _BOTH}:
            self._counters[REPEATED].inc()
        else:
            values = {one.side: self._decoders[one.side].decode(one.value) for one in (half, waiting)}
            # What stays says that the id is done, until the timer that is set comes.
            cell.write(_encoder.encode(Half(_BOTH, _NOTHING)))
            self._counters[JOINED].inc()
            yield self._combine(values[_OUTCOME], values[_FEEDBACK])

    @on_timer(EXPIRY)  # type: ignore[untyped-decorator]
    def forget(self, cell: Any = beam.DoFn.StateParam(CELL)) -> Iterator[Any]:
        """Ends the wait: feedback without an outcome is a dead letter."""
        waiting = half_in(cell.read())
        cell.clear()
        if waiting is None or waiting.side == _BOTH:
            return
        if waiting.side == _OUTCOME:
            self._counters[WITHOUT_FEEDBACK].inc()
            return
        self._counters[UNMATCHED].inc()
        feedback = self._decoders[_FEEDBACK].decode(waiting.value)
        event_id = self._feedback_id(feedback)
        letter = DeadLetter(
            source=self._source_of(feedback),
            stage=STAGE,
            error_type="unmatched",
            message=f"No outcome with the id {event_id!r} came within {self._memory_s:.0f} s of this feedback.",
            id=event_id,
        )
        yield beam.pvalue.TaggedOutput(_LOST, letter)


_NOTHING = msgspec.Raw(msgspec.msgpack.encode(None))
_encoder = msgspec.msgpack.Encoder()
_halves = msgspec.msgpack.Decoder(Half)


def half_in(cell: bytes | None) -> Half | None:
    """The half that a cell of state holds; None for an empty one. Raises `msgspec.DecodeError` for another's bytes."""
    return _halves.decode(cell) if cell else None
