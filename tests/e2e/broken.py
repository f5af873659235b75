"""Steps with one mechanism taken out, for the tests that show what it is for. Importable on workers."""

from __future__ import annotations

from typing import Any

from apache_beam.utils.timestamp import Timestamp

from transforms.ask import step
from transforms.ask.holds import AT_ONCE
from transforms.ask.shard import Shard

_memory: dict[tuple[str, bytes], Shard] = {}


class BelievesMemory(step._Ask):
    """Keeps the memory of a shard in the process and never compares it with state."""

    def _touch(self, key: bytes, cell: Any, bag: Any) -> Shard:
        shard = _memory.get((self._step, key))
        if shard is None:
            shard = _memory[self._step, key] = Shard(key, self._calls, self._make_call, self._instance)
            shard.touch(cell, bag)
        shard._wrote_token = False
        return shard


class HoldsAsBeamDoes(step._Ask):
    """Sets its timer without saying what it holds."""

    def _set_tick(self, shard: Shard, cell: Any, tick: Any, watchdog: Any) -> None:
        tick_us = self._calls.clock.now_ms() * 1_000 + self._tick_us
        # With the tag of the step's own, which clears it at the end of the input: else Flink would wait for it for ever.
        tick.set(Timestamp(micros=tick_us), dynamic_timer_tag=AT_ONCE)
        shard.mark_tick(cell, tick_us, shard.oldest_us or 0)


class _Forgetful(Shard):
    """Begins empty, whatever state holds."""

    def _rebuild(self, cell: Any, bag: Any, *, follows: bool) -> None:
        self._entries.clear()


class ForgetsState(step._Ask):
    """Trusts that what it has in memory is all there is."""

    def _new_shard(self, key: bytes) -> Shard:
        return _Forgetful(key, self._calls, self._make_call, self._instance)
