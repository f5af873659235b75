"""Processor time of a stack's parts, from /proc. Linux only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from runners.local import processes

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def spent_s(pid: int) -> float:
    """The processor seconds that a process and the children it has waited for have used; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    fields = text[text.rindex(")") + 2 :].split()
    return sum(map(int, fields[11:15])) / _TICKS_PER_S


def by_part(home: Path) -> dict[str, float]:
    """The processor seconds of each part of the stack at `home`, of all that runs now."""
    parts = processes.marked(home, processes.look_at_all())
    return {part: sum(spent_s(facts.id.pid) for facts in members) for part, members in parts.items()}


def of_pids(pids: Iterable[int]) -> float:
    """The processor seconds of these processes together."""
    return sum(map(spent_s, pids))


def since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What each part used between two moments. A part whose processes ended in between has no less than nothing."""
    return {part: max(0.0, spent - before.get(part, 0.0)) for part, spent in sorted(after.items())}
