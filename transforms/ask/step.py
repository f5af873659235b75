"""`AskModel`: a record goes to a model server and comes back with an answer, while the stream goes on.

An event is kept in keyed state, its call runs on the process's event loop, and its outcome leaves on a timer. Two timers: one in
processing time while anything is under way, whose callback listens for some milliseconds and hands each outcome on as it comes, and
which holds the watermark at the earliest event time under way; and one at the end of the global window, which waits for what is
still under way when the input ends or the job is drained. With the first alone, everything under way at the end is lost and the job
still succeeds (docs/adr/0003).

A call starts when its event is given a shard, before the runner has moved it to where it is kept (docs/adr/0010), and an outcome
that is there before its record does not wait for it (docs/adr/0027).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam import coders
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow, GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from transforms.ask import calls
from transforms.ask.bundlewise import AskInBundles
from transforms.ask.holds import AT_ONCE, HOLDS_NOTHING_US, set_timer
from transforms.ask.outcomes import ANSWERED, FAILED, to_record
from transforms.ask.shard import Entry, Leaving, Shard
from transforms.ask.shards import shard_of, shard_of_key
from transforms.ask.turns import Turns
from transforms.ask.windows import KeepWindows, RestoreWindows, Second
from transforms.bundle_inputs import take_input_without_waiting
from transforms.coders import coder_of
from transforms.execution_times import end_without_sampling
from transforms.metrics import NAMESPACE, BeamBridge
from transforms.records import Answer, CallFailure
from transforms.remote.client import Call
from transforms.remote.questions import Question
from transforms.remote.settings import ModelSettings
from transforms.state_cache import weigh_without_modules

DEFAULT_SHARDS = 8
DEFAULT_TICK_MS = 20
DEFAULT_LISTEN_MS = 200
DEFAULT_MAX_PENDING = 1_000

WATCHDOG_US = 3_000_000
"""How long at least the watchdog waits for a tick, in microseconds; twice as long at most."""

MODES = ("timers", "bundles")

Ask = Callable[[Any], Question | None]
IdOf = Callable[[Any], str]
OrderKeyOf = Callable[[Any], bytes | None]
TraceparentOf = Callable[[Any], str | None]


class Asked(NamedTuple):
    """What `AskModel` gives. Every record that goes in comes out of exactly one of the two."""

    answered: beam.PCollection
    """`tuple[T, Answer]`: the records with an answer."""

    failed: beam.PCollection
    """`tuple[T, CallFailure]`: the records without one, and why."""


class AskModel(beam.PTransform):  # type: ignore[misc]
    """Asks a model server about each record of a PCollection[T]; gives an `Asked`.

    `ask` makes the question about a record, `id_of` its id: both must be importable on workers, and give the same for the same
    record, since a call is made again after a restore. Where `ask` gives None nothing is asked, and the answer is empty, of the
    source ``none``. The id is in the call's `Idempotency-Key`; records with equal ids are asked about separately. `traceparent_of`
    gives the trace that a record belongs to, as W3C's header has it, which is passed on to the server. Records keep their event
    time and their windows. The watermark behind the step waits for what is under way, on runners that know holds.

    With `order_key_of`, records of one key leave in the order in which the step took them; a record whose key is None leaves as
    soon as it can, as all do without the function. It must not raise. Calls of one key run side by side all the same: an outcome
    waits for those before it, at most until their deadlines. After a failure records of a key may come again, in order.

    `max_pending` bounds the calls without an outcome in one worker process: at it the step takes no further records until one
    is completed. `model.max_in_flight` bounds those on the wire; the others wait in the client. `shards` is fixed for the life
    of a job (it is in the keys of its state), and should be at least twice its greatest parallelism. While anything is under way
    the step listens for outcomes `listen_ms` at a time, each time a bundle; again at once while they come, and after a tenth of the
    wait, ten times `tick_ms` at most, while none does.

    At the end of the input the step waits, shard by shard, for what is under way. With `end_slice_s` it waits so many seconds at
    a time, and then gives way to other shards: for DirectRunner, which would otherwise show the first results with the last.
    Only for runners that fire an event-time timer that is set again at its own time; the others lose what is under way.

    With the mode ``bundles`` the step uses neither state nor timers: each bundle ends with the last of its calls. That is for batches
    on runners without timers in processing time; it keeps no order, and of the numbers only `max_pending` counts.

    Raises ValueError for numbers that make no sense. A call's failure never raises: it is in `Asked.failed`.
    """

    def __init__(
        self,
        model: ModelSettings,
        ask: Ask,
        id_of: IdOf,
        *,
        mode: str = "timers",
        order_key_of: OrderKeyOf | None = None,
        traceparent_of: TraceparentOf | None = None,
        shards: int = DEFAULT_SHARDS,
        tick_ms: int = DEFAULT_TICK_MS,
        listen_ms: int = DEFAULT_LISTEN_MS,
        max_pending: int = DEFAULT_MAX_PENDING,
        end_slice_s: float | None = None,
        make_caller: calls.MakeCaller = calls.make_client,
    ) -> None:
        super().__init__()
        shard_of("", shards)
        if tick_ms < 1 or max_pending < 1:
            raise ValueError(f"tick_ms and max_pending must be at least 1, and are {tick_ms} and {max_pending}.")
        if listen_ms < 0:
            raise ValueError(f"listen_ms must not be negative, and is {listen_ms}.")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, and is {mode}.")
        if mode == "bundles" and order_key_of is not None:
            raise ValueError("mode bundles keeps no order; use mode timers, or leave order_key_of out.")
        self._step = uuid.uuid4().hex
        self._mode = mode
        self._model = model
        self._ask = ask
        self._id_of = id_of
        self._order_key_of = order_key_of
        self._traceparent_of = traceparent_of
        self._shards = shards
        self._tick_ms = tick_ms
        self._listen_ms = listen_ms
        self._max_pending = max_pending
        self._end_slice_s = end_slice_s
        self._make_caller = make_caller

    def expand(self, records: beam.PCollection) -> Asked:
        """Shards the records, asks, and restores their windows."""
        if isinstance(records.windowing.windowfn, GlobalWindows):
            return self._expand_global(records)
        return self._expand_windowed(records)

    def _expand_global(self, records: beam.PCollection) -> Asked:
        windowing = records.windowing
        answered, failed = self._in_global_window(
            records | "IntoGlobalWindow" >> beam.WindowInto(GlobalWindows()), _same
        )
        if not windowing.is_default():
            answered = answered | "RestoreWindowsOfAnswered" >> beam.WindowInto(windowing)
            failed = failed | "RestoreWindowsOfFailed" >> beam.WindowInto(windowing)
        return Asked(answered, failed)

    def _expand_windowed(self, records: beam.PCollection) -> Asked:
        record_type, windowing = records.element_type, records.windowing
        answered, failed = self._in_global_window(records | "KeepWindows" >> KeepWindows(), Second)
        answered_type, failed_type = (beam.typehints.Tuple[record_type, outcome] for outcome in (Answer, CallFailure))
        return Asked(
            answered | "RestoreAnswered" >> RestoreWindows(windowing, answered_type),
            failed | "RestoreFailed" >> RestoreWindows(windowing, failed_type),
        )

    def _in_global_window(
        self, records: beam.PCollection, of: Callable[[Callable[[Any], Any]], Callable[[Any], Any]]
    ) -> tuple[beam.PCollection, beam.PCollection]:
        """Shards and asks. `of` makes a function of what comes here from one of the caller's records."""
        record_type = records.element_type
        common: dict[str, Any] = {
            "step": self._step,
            "model": self._model,
            "ask": of(self._ask),
            "id_of": of(self._id_of),
            "traceparent_of": None if self._traceparent_of is None else of(self._traceparent_of),
            "max_pending": self._max_pending,
            "make_caller": self._make_caller,
        }
        if self._mode == "bundles":
            asking, ask = records, beam.ParDo(AskInBundles(**common))
        else:
            common["order_key_of"] = None if self._order_key_of is None else of(self._order_key_of)
            shard = beam.ParDo(_Shard(shards=self._shards, **common))
            ticketed = beam.typehints.Tuple[int, record_type]
            asking = records | "Shard" >> shard.with_output_types(beam.typehints.Tuple[bytes, ticketed])
            ask = beam.ParDo(
                _Ask(
                    coder=coder_of(record_type),
                    tick_ms=self._tick_ms,
                    listen_ms=self._listen_ms,
                    end_slice_s=self._end_slice_s,
                    **common,
                )
            )
        # The label under which runners keep the state of a job: it must not follow the name of a class.
        ask.label = "Calls"
        outputs = asking | "Ask" >> ask.with_outputs(FAILED, main=ANSWERED)
        answered, failed = outputs[ANSWERED], outputs[FAILED]
        answered.element_type = beam.typehints.Tuple[record_type, Answer]
        failed.element_type = beam.typehints.Tuple[record_type, CallFailure]
        return answered, failed


def _same(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return function


class _Shard(beam.DoFn):  # type: ignore[misc]
    """Keys each record by its shard, and starts its call where the shard is at home in this process."""

    def __init__(
        self,
        *,
        step: str,
        model: ModelSettings,
        ask: Ask,
        id_of: IdOf,
        traceparent_of: TraceparentOf | None,
        order_key_of: OrderKeyOf | None,
        shards: int,
        max_pending: int,
        make_caller: calls.MakeCaller,
    ) -> None:
        self._step = step
        self._model = model
        self._ask = ask
        self._id_of = id_of
        self._traceparent_of = traceparent_of
        self._order_key_of = order_key_of
        self._shards = shards
        self._max_pending = max_pending
        self._make_caller = make_caller

    def setup(self) -> None:
        self._calls = calls.acquire(self._step, self._model, self._make_caller)

    def teardown(self) -> None:
        calls.release(self._step)

    def process(
        self, record: Any, timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[tuple[bytes, tuple[int, Any]]]:
        event_id, order_key = self._id_of(record), self._order_key_of(record) if self._order_key_of else None
        shard, is_home = self._shard(event_id, order_key)
        call = self._call(event_id, record) if is_home else None
        ticket = calls.ANY
        if call is not None:
            wait_below(self._calls, self._max_pending)
            # What keeps an order takes its place when it arrives.
            early = calls.Early(record, Timestamp.of(timestamp).micros, self._calls.clock.now_ms())
            ticket = self._calls.start_early(
                shard, event_id, call, early if order_key is None else None, most=self._max_pending
            )
        yield shard, (ticket, record)

    def _shard(self, event_id: str, order_key: bytes | None) -> tuple[bytes, bool]:
        """The shard of a record, and whether it is at home here. With an order to keep, it depends on the order key alone."""
        if order_key is not None:
            shard = shard_of_key(order_key, self._shards)
            return shard, self._calls.is_home(shard)
        home = self._calls.home(event_id)
        return (shard_of(event_id, self._shards), False) if home is None else (home, True)

    def _call(self, event_id: str, record: Any) -> Call | None:
        try:
            question = self._ask(record)
        except Exception:  # noqa: BLE001 - the step that keeps the record meets it again, and says so
            return None
        if question is None:
            return None
        trace = self._traceparent_of(record) if self._traceparent_of else None
        deadline_ms = _deadline_ms(self._calls, self._model)
        return Call(id=event_id, question=question, deadline_ms=deadline_ms, traceparent=trace)


def wait_below(running: calls.Calls, most: int) -> None:
    """Waits until fewer than `most` calls are open: for a completion, never for an emission, which may need this thread."""
    while running.open >= most:
        running.wait_for_completion(running.completed, timeout_s=1.0)


def _deadline_ms(running: calls.Calls, model: ModelSettings) -> int:
    return running.clock.now_ms() + round(model.deadline_s * 1_000)


class _Ask(beam.DoFn):  # type: ignore[misc]
    """The stateful heart of `AskModel`; keyed by shard, in the global window."""

    CELL = ReadModifyWriteStateSpec("cell", coders.BytesCoder())
    BAG = BagStateSpec("bag", coders.BytesCoder())
    TICK = TimerSpec("tick", TimeDomain.REAL_TIME)
    WATCHDOG = TimerSpec("watchdog", TimeDomain.REAL_TIME)
    END = TimerSpec("end", TimeDomain.WATERMARK)

    def __init__(
        self,
        *,
        step: str,
        model: ModelSettings,
        ask: Ask,
        id_of: IdOf,
        traceparent_of: TraceparentOf | None,
        order_key_of: OrderKeyOf | None,
        coder: coders.Coder,
        tick_ms: int,
        listen_ms: int,
        max_pending: int,
        end_slice_s: float | None,
        make_caller: calls.MakeCaller,
    ) -> None:
        self._step = step
        self._model = model
        self._ask = ask
        self._id_of = id_of
        self._traceparent_of = traceparent_of
        self._order_key_of = order_key_of
        self._coder = coder
        self._tick_us = tick_ms * 1_000
        self._listen_s = listen_ms / 1_000.0
        self._max_pending = max_pending
        self._end_slice_s = end_slice_s
        self._make_caller = make_caller

    def setup(self) -> None:
        weigh_without_modules()
        end_without_sampling()
        take_input_without_waiting()
        self._calls = calls.acquire(self._step, self._model, self._make_caller)
        self._instance = self._calls.new_instance()
        self._memory: dict[bytes, Shard] = {}
        self._touched: set[bytes] = set()
        self._turns = Turns(self._calls.clock)
        self._requests = Metrics.counter(NAMESPACE, "requests")
        self._answers = Metrics.counter(NAMESPACE, "answers")
        self._failures = Metrics.counter(NAMESPACE, "failures")
        self._bridge = BeamBridge(self._calls.telemetry, self._calls.clock)

    def teardown(self) -> None:
        self._calls.leave(self._instance)
        calls.release(self._step)

    def start_bundle(self) -> None:
        self._touched.clear()
        self._turns.start_bundle()
        self._bridge.start_bundle()

    def finish_bundle(self) -> None:
        self._bridge.finish_bundle(idle=not self._calls.running)

    def process(
        self,
        element: tuple[bytes, tuple[int, Any]],
        timestamp: Any = beam.DoFn.TimestampParam,
        cell: Any = beam.DoFn.StateParam(CELL),
        bag: Any = beam.DoFn.StateParam(BAG),
        tick: Any = beam.DoFn.TimerParam(TICK),
        watchdog: Any = beam.DoFn.TimerParam(WATCHDOG),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> Iterator[Any]:
        key, (ticket, record) = element
        event_time = Timestamp.of(timestamp)
        shard = self._touch(key, cell, bag)
        # What is there leaves first, maybe with this very record's outcome, which then need not go into state.
        yield from self._hand_out_ready(shard, cell, bag)
        shard.take(
            cell,
            bag,
            self._id_of(record),
            event_time.micros,
            _deadline_ms(self._calls, self._model),
            lambda: self._coder.encode(record),
            lambda entry: self._call(entry, record),
            self._order_key_of(record) if self._order_key_of else None,
            ticket,
            asked=lambda: self._question(record),
        )
        if shard.awaits:
            if not shard.end_set:
                end.set(GlobalWindow().max_timestamp())
                shard.mark_end(cell, is_set=True)
            if not shard.tick_set:
                self._set_tick(shard, cell, tick, watchdog)
            elif event_time.micros < shard.hold_us and shard.pending:
                # Its time stays: a timer that is moved by each record would never fire.
                set_timer(tick, shard.tick_us, event_time.micros, AT_ONCE)
                shard.mark_tick(cell, shard.tick_us, event_time.micros)
        # Where it waits for its record, the outcome of this one was there before it, and no turn may come for a while.
        yield from self._hand_out_ready(shard, cell, bag)
        yield from self._wait_below_bound(shard, cell, bag)

    @on_timer(TICK)  # type: ignore[untyped-decorator]
    def on_tick(
        self,
        key: Any = beam.DoFn.KeyParam,
        cell: Any = beam.DoFn.StateParam(CELL),
        bag: Any = beam.DoFn.StateParam(BAG),
        tick: Any = beam.DoFn.TimerParam(TICK),
        watchdog: Any = beam.DoFn.TimerParam(WATCHDOG),
    ) -> Iterator[Any]:
        """Listens, and hands out each outcome as it comes; listens again in a tick while anything is under way."""
        yield from self._listen(key, cell, bag, tick, watchdog)

    @on_timer(WATCHDOG)  # type: ignore[untyped-decorator]
    def on_watchdog(
        self,
        key: Any = beam.DoFn.KeyParam,
        cell: Any = beam.DoFn.StateParam(CELL),
        bag: Any = beam.DoFn.StateParam(BAG),
        tick: Any = beam.DoFn.TimerParam(TICK),
        watchdog: Any = beam.DoFn.TimerParam(WATCHDOG),
    ) -> Iterator[Any]:
        """No tick for so long: it was lost, as some are where Flink stops a job with a savepoint. Does what it would have done."""
        yield from self._listen(key, cell, bag, tick, watchdog)

    def _listen(self, key: bytes, cell: Any, bag: Any, tick: Any, watchdog: Any) -> Iterator[Any]:
        """Hands out what comes within `listen_s`.

        What it gives goes on at once, before the bundle ends. While it listens no record can be taken by this thread; their calls
        are under way all the same. It stops early where another shard of this thread has something to hand out, and where an
        outcome is there whose record has yet to be taken, but not so early that nobody would listen (`Turns`).
        """
        self._turns.begin(key)
        shard = self._touch(key, cell, bag)
        clock = self._calls.clock
        until_s = clock.monotonic_s() + self._listen_s
        yield from self._hand_out(shard, cell, bag)
        while shard.awaits and (rest_s := until_s - clock.monotonic_s()) > 0:
            if self._turns.wait(rest_s, partial(self._wait, key)):
                yield from self._hand_out(shard, cell, bag)
            else:
                break
        # Without the timer of the end nobody would clear this one there.
        if shard.pending or (shard.end_set and shard.awaits):
            self._set_tick(shard, cell, tick, watchdog)
        else:
            shard.mark_no_tick(cell)

    def _wait(self, key: bytes, spent: Collection[bytes], timeout_s: float) -> bool:
        others = [other for other in self._memory if other != key and other not in spent]
        return self._calls.wait_for_ready(key, others, timeout_s, till_ahead=not spent)

    @on_timer(END)  # type: ignore[untyped-decorator]
    def on_end(
        self,
        key: Any = beam.DoFn.KeyParam,
        cell: Any = beam.DoFn.StateParam(CELL),
        bag: Any = beam.DoFn.StateParam(BAG),
        tick: Any = beam.DoFn.TimerParam(TICK),
        watchdog: Any = beam.DoFn.TimerParam(WATCHDOG),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> Iterator[Any]:
        """The input has ended or the job is drained: waits for everything under way. Every call ends by its deadline."""
        shard = self._touch(key, cell, bag)
        clock = self._calls.clock
        until_s = clock.monotonic_s() + (float("inf") if self._end_slice_s is None else self._end_slice_s)
        while True:
            seen = self._calls.completed
            yield from self._hand_out(shard, cell, bag)
            rest_s = until_s - clock.monotonic_s()
            if not shard.pending or rest_s <= 0:
                break
            self._calls.wait_for_completion(seen, timeout_s=min(1.0, rest_s))
        if shard.pending:
            end.set(GlobalWindow().max_timestamp())
            return
        # A timer that is set holds the watermark, and Flink no longer fires those in processing time once the input has ended:
        # it would wait for this one for ever, in a loop without a pause (ExecutableStageDoFnOperator.flushData).
        tick.clear(dynamic_timer_tag=AT_ONCE)
        watchdog.clear()
        shard.mark_no_tick(cell)
        # The job may go on: Flink ends the input of one that it stops with a savepoint, before the savepoint (docs/adr/0013).
        # And Prism fires early where a step before this one is slow.
        shard.mark_end(cell, is_set=False)

    def _touch(self, key: bytes, cell: Any, bag: Any) -> Shard:
        shard = self._memory.get(key)
        if shard is None:
            shard = self._memory[key] = self._new_shard(key)
        if key not in self._touched:
            shard.touch(cell, bag)
            self._touched.add(key)
        return shard

    def _new_shard(self, key: bytes) -> Shard:
        return Shard(key, self._calls, self._make_call, self._instance)

    def _set_tick(self, shard: Shard, cell: Any, tick: Any, watchdog: Any) -> None:
        # Each tick is a bundle, with a round trip to the runner. While a slow model gives nothing, ticks a tenth of the wait
        # apart cost little, and delay a result by a tenth of what it took, by ten ticks at most.
        delay_us = min(max(1_000, shard.quiet_ms * 100), 10 * self._tick_us)
        tick_us = self._calls.clock.now_ms() * 1_000 + delay_us
        # A record that is on its way is held by the runner.
        oldest_us = shard.oldest_us
        hold_us = HOLDS_NOTHING_US if oldest_us is None else oldest_us
        set_timer(tick, tick_us, hold_us, AT_ONCE)
        if shard.watchdog_us < tick_us + WATCHDOG_US:
            # Always ahead of the ticks, so that it fires only when they do not. It holds nothing: it may outlast what is under way.
            set_timer(watchdog, tick_us + 2 * WATCHDOG_US, HOLDS_NOTHING_US)
            shard.mark_watchdog(cell, tick_us + 2 * WATCHDOG_US)
        shard.mark_tick(cell, tick_us, hold_us)

    def _wait_below_bound(self, shard: Shard, cell: Any, bag: Any) -> Iterator[Any]:
        """Takes no further records at the bound. Waits for a call to complete, never for an emission, which may need this thread."""
        while self._calls.open >= self._max_pending:
            seen = self._calls.completed
            yield from self._hand_out(shard, cell, bag)
            if self._calls.open >= self._max_pending:
                self._calls.wait_for_completion(seen, timeout_s=1.0)

    def _hand_out(self, shard: Shard, cell: Any, bag: Any) -> Iterable[Any]:
        for leaving in shard.hand_out(cell, bag):
            yield self._emit(leaving)

    def _hand_out_ready(self, shard: Shard, cell: Any, bag: Any) -> Iterable[Any]:
        if self._calls.has_ready(shard.key):
            yield from self._hand_out(shard, cell, bag)

    def _emit(self, leaving: Leaving) -> Any:
        record = leaving.record if leaving.payload is None else self._coder.decode(leaving.payload)
        event_time, outcome = Timestamp(micros=leaving.event_time_us), leaving.outcome
        self._requests.inc(outcome.attempts)
        made = to_record(outcome, self._model.model, float(self._calls.clock.now_ms() - leaving.started_ms))
        if isinstance(made, CallFailure):
            self._failures.inc()
            return beam.pvalue.TaggedOutput(FAILED, TimestampedValue((record, made), event_time))
        if outcome.source != "none":
            self._answers.inc()
        return TimestampedValue((record, made), event_time)

    def _make_call(self, entry: Entry) -> Call | None:
        return self._call(entry, self._coder.decode(entry.payload))

    def _call(self, entry: Entry, record: Any) -> Call | None:
        question = self._ask(record)
        if question is None:
            return None
        return Call(
            id=entry.id,
            question=question,
            deadline_ms=entry.deadline_ms,
            attempts=entry.attempts,
            traceparent=self._traceparent_of(record) if self._traceparent_of else None,
        )

    def _question(self, record: Any) -> Question | None:
        try:
            return self._ask(record)
        except Exception:  # noqa: BLE001 - it becomes an outcome where the call is made
            return None
