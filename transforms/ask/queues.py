"""Events that leave in the order in which they were taken: one queue for each order key, within one shard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Queues:
    """The queues of one shard. An event has its place from when it is taken until it may leave. Needs a lock outside."""

    def __init__(self) -> None:
        self._queues: dict[bytes, deque[str]] = {}
        self._places: set[str] = set()

    def add(self, queue: bytes, key: str) -> None:
        """Gives an event the last place of a queue, unless it has a place."""
        if key not in self._places:
            self._places.add(key)
            self._queues.setdefault(queue, deque()).append(key)

    def leave(self, queue: bytes, is_done: Callable[[str], bool]) -> list[str]:
        """Takes those out of a queue that may leave: from its head on, until one is not done."""
        waiting = self._queues.get(queue)
        left = []
        while waiting and is_done(waiting[0]):
            left.append(waiting.popleft())
        self._places.difference_update(left)
        if not waiting:
            self._queues.pop(queue, None)
        return left

    def clear(self) -> None:
        """Forgets all places."""
        self._queues.clear()
        self._places.clear()
