"""The step for runners without timers: calls run side by side within a bundle, which ends with the last of them.

It needs nothing of a runner, neither state nor timers: what is not finished when a bundle fails is done again with the bundle. The
price is the wait at each bundle's end, for the slowest of its calls. In a batch, whose bundles are large, that is little; a stream
has small bundles and would mostly wait (docs/adr/0002 has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from transforms.ask import calls
from transforms.ask.outcomes import FAILED, prompt_failure, to_record, unasked
from transforms.metrics import NAMESPACE, BeamBridge
from transforms.records import CallFailure
from transforms.remote.client import Call
from transforms.remote.questions import Question
from transforms.remote.settings import ModelSettings

_GLOBAL = (GlobalWindow(),)


class AskInBundles(beam.DoFn):  # type: ignore[misc]
    """Asks about each record of a bundle, in the global window. Arguments as for `AskModel`.

    At `max_pending` calls under way in the process it takes no further records until one is completed, and gives what is done.
    """

    def __init__(
        self,
        *,
        step: str,
        model: ModelSettings,
        ask: Callable[[Any], Question | None],
        id_of: Callable[[Any], str],
        traceparent_of: Callable[[Any], str | None] | None,
        max_pending: int,
        make_caller: calls.MakeCaller,
    ) -> None:
        self._step = step
        self._model = model
        self._ask = ask
        self._id_of = id_of
        self._traceparent_of = traceparent_of
        self._max_pending = max_pending
        self._make_caller = make_caller

    def setup(self) -> None:
        self._calls = calls.acquire(self._step, self._model, self._make_caller)
        # Its own place in the process's table of calls: bundles of other threads have theirs.
        self._place = b"bundle %d" % self._calls.new_instance()
        self._number = 0
        self._taken: dict[str, tuple[Any, Timestamp, int]] = {}
        self._requests = Metrics.counter(NAMESPACE, "requests")
        self._answers = Metrics.counter(NAMESPACE, "answers")
        self._failures = Metrics.counter(NAMESPACE, "failures")
        self._bridge = BeamBridge(self._calls.telemetry, self._calls.clock)

    def teardown(self) -> None:
        calls.release(self._step)

    def start_bundle(self) -> None:
        # What a bundle that failed left: its records come again, under other numbers.
        for key in self._taken:
            self._calls.drop(self._place, key)
        self._taken.clear()
        self._bridge.start_bundle()

    def process(self, record: Any, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        while self._calls.open >= self._max_pending:
            seen = self._calls.completed
            yield from self._hand_out()
            if self._calls.open >= self._max_pending:
                self._calls.wait_for_completion(seen, timeout_s=1.0)
        self._start(record, Timestamp.of(timestamp))
        yield from self._hand_out()

    def finish_bundle(self) -> Iterator[Any]:
        while self._taken:
            seen = self._calls.completed
            yield from self._hand_out()
            if self._taken:
                self._calls.wait_for_completion(seen, timeout_s=1.0)
        self._bridge.finish_bundle(idle=not self._calls.running)

    def _start(self, record: Any, event_time: Timestamp) -> None:
        now_ms, event_id = self._calls.clock.now_ms(), self._id_of(record)
        deadline_ms = now_ms + round(self._model.deadline_s * 1_000)
        self._number += 1
        key = str(self._number)
        self._taken[key] = (record, event_time, now_ms)
        try:
            question = self._ask(record)
        except Exception as error:  # noqa: BLE001 - one record that cannot be asked about must not stop the others
            self._calls.settle(self._place, key, prompt_failure(event_id, error), deadline_ms)
            return
        if question is None:
            self._calls.settle(self._place, key, unasked(event_id), deadline_ms)
            return
        trace = self._traceparent_of(record) if self._traceparent_of else None
        self._calls.start(
            self._place, key, Call(id=event_id, question=question, deadline_ms=deadline_ms, traceparent=trace)
        )

    def _hand_out(self) -> Iterator[Any]:
        for key, call in self._calls.ready(self._place):
            self._calls.drop(self._place, key)
            if key in self._taken:
                record, event_time, taken_ms = self._taken.pop(key)
                yield self._emit(record, event_time, taken_ms, call)

    def _emit(self, record: Any, event_time: Timestamp, taken_ms: int, call: calls.RunningCall) -> Any:
        outcome = call.future.result()
        made = to_record(outcome, self._model.model, float(self._calls.clock.now_ms() - taken_ms))
        self._requests.inc(outcome.attempts)
        value = WindowedValue((record, made), event_time, _GLOBAL)
        if isinstance(made, CallFailure):
            self._failures.inc()
            return beam.pvalue.TaggedOutput(FAILED, value)
        if outcome.source != "none":
            self._answers.inc()
        return value
