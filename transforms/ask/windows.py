"""Records of a step in the global window that keep the windows they had before it, exactly.

`KeepWindows` packs each record with its windows into the global window, `RestoreWindows` gives them back. Windows are carried, not
assigned anew: sessions that were merged, and windows that do not follow from the event time, come back as they were. A record in
several windows (sliding ones) is packed once, so that it is asked about once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.transforms.core import Windowing
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

_GLOBAL = (GlobalWindow(),)


class Second:
    """A function of the second of a pair: of the record that was packed with its windows."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, pair: tuple[bytes, Any]) -> Any:
        """The function of the record."""
        return self._function(pair[1])


class KeepWindows(beam.PTransform):  # type: ignore[misc]
    """From a PCollection[T] in any windows to a PCollection[tuple[bytes, T]] in the global one."""

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """One ParDo, whose output is windowed otherwise."""
        pack = _InWindowing(_Pack(_coder(records.windowing)), Windowing(GlobalWindows()))
        return records | "Pack" >> pack.with_output_types(beam.typehints.Tuple[bytes, records.element_type])


class RestoreWindows(beam.PTransform):  # type: ignore[misc]
    """From a PCollection[tuple[tuple[bytes, T], U]] of packed records to a PCollection[tuple[T, U]] in the windows of `windowing`."""

    def __init__(self, windowing: Windowing, output_type: Any) -> None:
        super().__init__()
        self._windowing = windowing
        self._output_type = output_type

    def expand(self, pairs: beam.PCollection) -> beam.PCollection:
        """One ParDo, whose output is windowed otherwise."""
        unpack = _InWindowing(_Unpack(_coder(self._windowing)), self._windowing)
        return pairs | "Unpack" >> unpack.with_output_types(self._output_type)


def _coder(windowing: Windowing) -> coders.Coder:
    return coders.IterableCoder(windowing.windowfn.get_window_coder())


class _InWindowing(beam.ParDo):  # type: ignore[misc]
    """A ParDo whose output has a windowing of its own, as that of `WindowInto` has."""

    def __init__(self, do_fn: beam.DoFn, windowing: Windowing) -> None:
        super().__init__(do_fn)
        self._windowing = windowing

    def get_windowing(self, _inputs: Any) -> Windowing:
        """The windowing of the output; Beam asks."""
        return self._windowing


class _Pack(beam.DoFn):  # type: ignore[misc]
    """Beam hands over a record once for each of its windows, one after the other: they are gathered until another record comes."""

    def __init__(self, coder: coders.Coder) -> None:
        self._coder = coder

    def start_bundle(self) -> None:
        self._windows: list[Any] = []
        self._record: Any = None
        self._at: Any = None

    def process(
        self, record: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[WindowedValue]:
        # The same record in a window it has had already came twice. Two that are merged by mistake leave in both their windows.
        if self._windows and (record is not self._record or timestamp != self._at or window in self._windows):
            yield self._packed()
            self._windows = []
        self._record, self._at = record, timestamp
        self._windows.append(window)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._windows:
            yield self._packed()
            self._windows = []

    def _packed(self) -> WindowedValue:
        return WindowedValue((self._coder.encode(self._windows), self._record), Timestamp.of(self._at), _GLOBAL)


class _Unpack(beam.DoFn):  # type: ignore[misc]
    def __init__(self, coder: coders.Coder) -> None:
        self._coder = coder

    def process(self, pair: Any, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[WindowedValue]:
        (windows, record), outcome = pair
        yield WindowedValue((record, outcome), Timestamp.of(timestamp), tuple(self._coder.decode(windows)))
