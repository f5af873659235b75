"""The root of a source written in Python: its shards, once, and a watermark that does not end before the job is drained.

Beam's `Impulse` ends the time of its stream at once. A source behind it that keeps its own time with timers would then never learn of
a drain: on Flink, timers in processing time no longer fire once the input has ended, and its operator waits for those that hold the
watermark for ever (`ExecutableStageDoFnOperator.flushData`, 2.59). Work that a splittable DoFn has put off is the exception: a
drain takes it up at once. So the root is one, whose rest is put off for years, with the watermark shortly before the end of time:
when the rest is taken up early, the job is being drained, and the watermark goes to the end (docs/adr/0024).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Duration, Timestamp

from transforms.ask.shards import shard_keys
from transforms.remote.clock import SystemClock

_YEAR_S = 366 * 86_400

NEVER = Timestamp(micros=GlobalWindow().max_timestamp().micros - _YEAR_S * 1_000_000)
"""The watermark of the root until a drain: before timers at the end of the global window fire, behind all others."""

PUT_OFF_S = 10 * _YEAR_S
"""For how long the rest is put off; whole seconds, since Flink's runner drops what is less."""

_BEGIN = b""


class StartShards(beam.PTransform):  # type: ignore[misc]
    """Gives ``(key, number)`` of each of so many shards once, at the start of a job; the keys are those of `shard_keys`.

    Its watermark stands at `NEVER` until the job is drained.
    """

    def __init__(self, shards: int) -> None:
        super().__init__()
        self._shards = shards

    def expand(self, pipeline: Any) -> beam.PCollection:
        """Impulse, and the DoFn that puts its rest off."""
        shards = beam.ParDo(_StartShards(self._shards))
        return (
            pipeline.pipeline
            | "Impulse" >> beam.Impulse()
            | "Start" >> shards.with_output_types(beam.typehints.Tuple[bytes, int])
        )


class Put(RestrictionTracker):  # type: ignore[misc]
    """A restriction that is one value, which the DoFn replaces; only the DoFn splits it, into what is done and the rest."""

    def __init__(self, value: bytes) -> None:
        self._value = value
        self._is_put_off = False

    def current_restriction(self) -> bytes:
        """The value."""
        return self._value

    def current_progress(self) -> RestrictionProgress:
        """Nothing is known of it."""
        return RestrictionProgress(completed=0.0, remaining=1.0)

    def try_claim(self, value: bytes) -> bool:
        """Makes `value` what the rest begins with."""
        if self._is_put_off:
            return False
        self._value = value
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[bytes, bytes] | None:
        """Puts all that remains off; refuses to be cut in any other way."""
        if fraction_of_remainder != 0 or self._is_put_off:
            return None
        self._is_put_off = True
        return self._value, self._value

    def check_done(self) -> None:
        """Nothing can be left undone."""

    def is_bounded(self) -> bool:
        """A source of a stream has no end of its own."""
        return False


class _Whole(RestrictionProvider):  # type: ignore[misc]
    def initial_restriction(self, _element: bytes) -> bytes:
        return _BEGIN

    def create_tracker(self, restriction: bytes) -> Put:
        return Put(restriction)

    def restriction_size(self, _element: bytes, _restriction: bytes) -> float:
        return 1.0

    def restriction_coder(self) -> coders.Coder:
        return coders.BytesCoder()


class _StartShards(beam.DoFn):  # type: ignore[misc]
    def __init__(self, shards: int) -> None:
        self._shards = shards

    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]
    def process(
        self,
        _: bytes,
        tracker: Any = beam.DoFn.RestrictionParam(_Whole()),
        estimator: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterator[tuple[bytes, int]]:
        now_s = SystemClock().now_ms() // 1_000
        put_off = tracker.current_restriction()
        begins = put_off == _BEGIN
        if begins:
            yield from ((key, number) for number, key in enumerate(shard_keys(self._shards)))
        # What is taken up long before its time is taken up by a drain, and leaves no rest.
        if begins or now_s > int(put_off) - _YEAR_S:
            tracker.try_claim(b"%d" % (now_s + PUT_OFF_S))
            estimator.set_watermark(NEVER)
            tracker.defer_remainder(Duration(PUT_OFF_S))
