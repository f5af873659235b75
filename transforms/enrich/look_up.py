"""`LookUp`: values from a slow source are written into records, many look-ups at once, without a call for each record."""

from __future__ import annotations

import atexit
import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils.windowed_value import WindowedValue

from transforms.apply import BAD, GOOD, Applied
from transforms.enrich.lookups import Lookups, LookupSettings
from transforms.errors import CallError
from transforms.metrics import NAMESPACE
from transforms.records import DeadLetter, SourceRecord
from transforms.remote import loop

MAX_WAITING = 500
"""So many records of a bundle wait for their values at once, at most."""

MakeLookups = Callable[[], Lookups[Any]]
"""Makes the look-ups of a process, on its event loop. Importable on workers, and pickled with the graph: it holds no connection."""


class LookUp(beam.PTransform):  # type: ignore[misc]
    """Writes into each record of a PCollection[T] the value of its key; gives an `Applied`.

    ``write(record, value)`` gives the record with the value, or with None where the look-up failed and the rule says to go on; where
    it says ``dead-letter``, the record is one of the stage ``look-up``. Look-ups run on the process's event loop: those of a bundle
    side by side, in common requests, and with what is cached at once. The bundle waits for them at its end, `timeout_s` at
    most. Records keep event time and windows.
    """

    def __init__(
        self,
        make: MakeLookups,
        settings: LookupSettings,
        *,
        key_of: Callable[[Any], str],
        write: Callable[[Any, Any], Any],
        record_type: type,
        source_of: Callable[[Any], SourceRecord],
        id_of: Callable[[Any], str | None],
    ) -> None:
        super().__init__()
        self._record_type = record_type
        self._do_fn = _LookUp(uuid.uuid4().hex, make, settings, key_of, write, source_of, id_of)

    def expand(self, records: beam.PCollection) -> Applied:
        """One ParDo with two outputs."""
        outputs = records | "Find" >> beam.ParDo(self._do_fn).with_outputs(BAD, main=GOOD)
        good, bad = outputs[GOOD], outputs[BAD]
        good.element_type = self._record_type
        bad.element_type = DeadLetter
        return Applied(good, bad)


class _LookUp(beam.DoFn):  # type: ignore[misc]
    def __init__(
        self,
        step: str,
        make: MakeLookups,
        settings: LookupSettings,
        key_of: Callable[[Any], str],
        write: Callable[[Any, Any], Any],
        source_of: Callable[[Any], SourceRecord],
        id_of: Callable[[Any], str | None],
    ) -> None:
        self._step = step
        self._make = make
        self._settings = settings
        self._key_of = key_of
        self._write = write
        self._source_of = source_of
        self._id_of = id_of

    def setup(self) -> None:
        self._lookups = shared(self._step, self._make)
        self._failed = Metrics.counter(NAMESPACE, "lookups_failed")

    def start_bundle(self) -> None:
        self._waiting: list[tuple[Any, Any, Any, Future[Any]]] = []

    def process(
        self,
        record: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[Any]:
        self._waiting.append((record, timestamp, window, loop.run(self._lookups.find(self._key_of(record)))))
        if len(self._waiting) >= MAX_WAITING:
            yield from self._written()

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._written()

    def _written(self) -> Iterator[Any]:
        waiting, self._waiting = self._waiting, []
        for record, timestamp, window, future in waiting:
            yield self._outcome(record, timestamp, window, future)

    def _outcome(self, record: Any, timestamp: Any, window: Any, future: Future[Any]) -> Any:
        try:
            value = future.result()
        except CallError as error:
            self._failed.inc()
            if self._settings.on_failure == "dead-letter":
                letter = DeadLetter(self._source_of(record), "look-up", error.kind, str(error), id=self._id_of(record))
                return beam.pvalue.TaggedOutput(BAD, WindowedValue(letter, timestamp, (window,)))
            value = None
        return WindowedValue(self._write(record, value), timestamp, (window,))


_lookups: dict[str, Lookups[Any]] = {}
_lock = threading.Lock()


def shared(step: str, make: MakeLookups) -> Lookups[Any]:
    """The look-ups of a step in this process, made on first use and kept: runners drop instances of a step as they like."""
    with _lock:
        if step not in _lookups:
            _lookups[step] = loop.run(_made(make)).result()
        return _lookups[step]


async def _made(make: MakeLookups) -> Lookups[Any]:
    return make()


def _close_all() -> None:
    with _lock:
        left = list(_lookups.values())
        _lookups.clear()
    for lookups in left:
        with contextlib.suppress(Exception):
            loop.run(lookups.close()).result(timeout=1.0)


atexit.register(_close_all)
