"""Whose turn it is among shards that listen on one thread.

A runner gives a bundle the timers that are due when it begins. What a turn sets is due in the next bundle, and that begins when the
runner has ended this one, some milliseconds after it began. A shard that gives way to one that had its turn in the bundle already
would leave the thread to nobody until then. So it listens on, and gives way once the bundle is about as old as the runner lets it get.
To a shard that has not had its turn, whose timer may be in the bundle, it gives way at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from transforms.remote.clock import Clock

PATIENCE_S = 0.02
"""How old a bundle is when the runner ends it: on Flink its ``--max_bundle_time_mills`` (`runners.flink.MAX_BUNDLE_TIME_MS`)."""


class Turns:
    """The turns of one instance of a step. Call `start_bundle` first in each bundle, and `begin` first in each turn."""

    def __init__(self, clock: Clock, patience_s: float = PATIENCE_S) -> None:
        self._clock = clock
        self._patience_s = patience_s
        self._until_s = float("-inf")
        self._had: set[bytes] = set()

    def start_bundle(self) -> None:
        """A bundle begins: nobody had a turn in it."""
        self._had.clear()
        self._until_s = self._clock.monotonic_s() + self._patience_s

    def begin(self, key: bytes) -> None:
        """The turn of a shard begins."""
        self._had.add(key)

    @property
    def patience_s(self) -> float:
        """How long those that had their turn must still wait, in seconds; 0 or less where they need not."""
        return self._until_s - self._clock.monotonic_s()

    @property
    def spent(self) -> Collection[bytes]:
        """The shards to which nobody gives way now."""
        return self._had if self.patience_s > 0 else frozenset()

    def wait(self, timeout_s: float, wait: Callable[[Collection[bytes], float], bool]) -> bool:
        """Waits by `wait`, which is given the spent shards and for how long; returns whether there is what was waited for.

        `wait` returns False before its time where the shard gives way. After the patience it is called again, with nobody spent.
        """
        spent, patience_s = self.spent, self.patience_s
        if spent:
            if wait(spent, min(timeout_s, patience_s)):
                return True
            timeout_s -= patience_s
            if timeout_s <= 0 or self.spent:
                return False
        return wait((), timeout_s)
