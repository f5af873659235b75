"""A count over the last seconds.

The window is cut into slices of equal length; a slice leaves as a whole when it has become older than the window. So a
count covers at least the last `window_s` seconds and at most one slice more, in constant time and memory. Slices lie on
fixed times, so two counts of the same window forget at the same moments.
"""

from __future__ import annotations

SLICES = 10
"""How many slices a window has; an older one more is still being forgotten."""


class SlidingCount:
    """What was added in the last `window_s` seconds, and at most a `SLICES`-th of that before. Time never goes back."""

    __slots__ = ("_place", "_slice", "_slice_s", "_slices", "_total")

    def __init__(self, window_s: float) -> None:
        self._slice_s = window_s / SLICES
        self._slices = [0] * (SLICES + 1)
        self._slice = 0
        self._place = 0
        self._total = 0

    def add(self, now_s: float, count: int = 1) -> None:
        """Add `count` at `now_s`."""
        self._roll(now_s)
        self._slices[self._place] += count
        self._total += count

    def total(self, now_s: float) -> int:
        """Return the sum of what the window holds at `now_s`."""
        self._roll(now_s)
        return self._total

    def clear(self) -> None:
        """Forget everything."""
        self._slices = [0] * len(self._slices)
        self._total = 0

    def _roll(self, now_s: float) -> None:
        """Empty the slices that have become too old."""
        now = int(now_s // self._slice_s)
        if now <= self._slice:
            return
        for _ in range(min(now - self._slice, len(self._slices))):
            self._place = (self._place + 1) % len(self._slices)
            self._total -= self._slices[self._place]
            self._slices[self._place] = 0
        self._slice = now
