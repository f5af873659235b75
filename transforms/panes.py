"""Counts and sums over sliding windows of event time, kept in panes so that a busy key costs no more than a quiet one.

A window is cut into panes of equal length; of each pane a count and sums are kept, and a window's figures are those of its panes
added up (Li, Maier, Tufte, Papadimos, Tucker: "No pane, no gain", SIGMOD Record 34(1), 2005). So a window moves on by a pane, not by
a record, and what is kept is bounded by the number of panes, whatever the rate. Times are Unix milliseconds.
"""

from __future__ import annotations

import msgspec

from transforms.errors import SettingsError


class WindowSettings(msgspec.Struct, frozen=True):
    """Which windows are kept, in seconds: their lengths, that of a pane, and for how long a late record still counts.

    Raises SettingsError where there is no window, a length is not positive, or a window is not a whole number of panes.
    """

    windows_s: tuple[float, ...] = (3_600.0,)
    pane_s: float = 60.0
    lateness_s: float = 3_600.0

    def __post_init__(self) -> None:
        if not self.windows_s:
            raise SettingsError("windows_s is empty; name one window at least.")
        if self.pane_s <= 0 or self.lateness_s < 0 or min(self.windows_s) <= 0:
            raise SettingsError("windows_s and pane_s must be above 0, and lateness_s not below.")
        for window_s in self.windows_s:
            if abs(window_s / self.pane_s - round(window_s / self.pane_s)) > 1e-9:
                raise SettingsError(f"A window of {window_s:g} s is no whole number of panes of {self.pane_s:g} s.")

    @property
    def pane_ms(self) -> int:
        """The length of a pane."""
        return round(self.pane_s * 1_000)

    @property
    def kept_ms(self) -> int:
        """How far behind the newest pane one is kept: the longest window and the lateness."""
        return round((max(self.windows_s) + self.lateness_s) * 1_000)


class Pane(msgspec.Struct, frozen=True, array_like=True):
    """The records of one pane: where it begins, how many they are, and the sum of each of their values."""

    start_ms: int
    count: int
    sums: tuple[float, ...]


class Recent(msgspec.Struct, frozen=True, array_like=True):
    """What a window of `window_s` seconds up to a record holds, the record itself included."""

    window_s: float
    count: int
    sums: tuple[float, ...] = ()

    def mean(self, number: int) -> float:
        """The mean of the value of this number."""
        return self.sums[number] / self.count


Panes = tuple[Pane, ...]
"""Oldest first, each begin once."""


def is_late(panes: Panes, at_ms: int, settings: WindowSettings) -> bool:
    """Whether a record at `at_ms` comes too late to be counted: its pane is not kept any more."""
    return bool(panes) and pane_start(at_ms, settings) <= panes[-1].start_ms - settings.kept_ms


def add(panes: Panes, at_ms: int, values: tuple[float, ...], settings: WindowSettings) -> Panes:
    """The panes with a record more, without those that no record which is in time can reach. One that `is_late` changes nothing."""
    if is_late(panes, at_ms, settings):
        return panes
    by_start = {pane.start_ms: pane for pane in panes}
    start_ms = pane_start(at_ms, settings)
    before = by_start.get(start_ms, Pane(start_ms, 0, (0.0,) * len(values)))
    sums = tuple(one + other for one, other in zip(before.sums, values, strict=True))
    by_start[start_ms] = Pane(start_ms, before.count + 1, sums)
    oldest_ms = max(by_start) - settings.kept_ms
    return tuple(by_start[start] for start in sorted(by_start) if start > oldest_ms)


def recent(panes: Panes, at_ms: int, values: tuple[float, ...], settings: WindowSettings) -> tuple[Recent, ...]:
    """The figures of each window that ends with the pane of `at_ms`, of panes that do not hold the record yet.

    A record that is late gets those of the panes that are left, and always itself.
    """
    last_ms = pane_start(at_ms, settings)
    found = []
    for window_s in settings.windows_s:
        first_ms = last_ms - round(window_s * 1_000)
        inside = [pane for pane in panes if first_ms < pane.start_ms <= last_ms]
        sums = tuple(value + sum(pane.sums[number] for pane in inside) for number, value in enumerate(values))
        found.append(Recent(window_s, 1 + sum(pane.count for pane in inside), sums))
    return tuple(found)


def pane_start(at_ms: int, settings: WindowSettings) -> int:
    """Where the pane of a time begins; panes are aligned with the epoch."""
    return at_ms - at_ms % settings.pane_ms
