"""Processes by pid *and* start time, so that a pid used again is never taken for the one that had it before.

Reads /proc; Linux only.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = "FARCALL_STACK_PART"
"""Environment variable which every process of a stack carries: ``<home>|<part>``."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_POLL_S = 0.02


@dataclass(frozen=True)
class ProcessId:
    """A process, for good: the kernel's pid, and when it started in clock ticks since boot."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has `pid` now; None where there is none."""
        facts = look(pid)
        return facts.id if facts else None

    def alive(self) -> bool:
        """Whether this very process still runs. One that ended and was not waited for yet does not."""
        facts = look(self.pid)
        return facts is not None and facts.id == self and not facts.ended

    def uptime_s(self) -> float:
        """Seconds since it started."""
        since_boot_s = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, since_boot_s - self.start_ticks / _TICKS_PER_S)


@dataclass(frozen=True)
class Facts:
    """What /proc says about a process at one moment."""

    id: ProcessId
    parent: int
    session: int
    rss_bytes: int
    ended: bool


def look(pid: int) -> Facts | None:
    """What /proc says about `pid` now; None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return Facts(
        id=ProcessId(pid, int(fields[19])),
        parent=int(fields[1]),
        session=int(fields[3]),
        rss_bytes=int(fields[21]) * _PAGE_BYTES,
        # A killed process with many threads shows as a zombie while the last of them still hold its ports and memory.
        ended=fields[0] in "ZXx" and int(fields[17]) <= 1,
    )


def look_at_all() -> list[Facts]:
    """What /proc says about every process that runs now."""
    found = (look(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return [facts for facts in found if facts and not facts.ended]


def marked(home: Path, everything: Iterable[Facts]) -> dict[str, list[Facts]]:
    """The processes among `everything` that the stack at `home` started, by part, children of parts included.

    Recognized by the environment they were given, which the kernel keeps; other users' processes cannot be read and
    are never ours.
    """
    wanted = f"{MARK}={home}|".encode()
    parts: dict[str, list[Facts]] = {}
    for facts in everything:
        try:
            environment = Path(f"/proc/{facts.id.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for entry in environment:
            if entry.startswith(wanted):
                parts.setdefault(entry[len(wanted) :].decode(), []).append(facts)
    return parts


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Send a signal to this very process; False where it has ended."""
    if not process.alive():
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_ended(processes: Iterable[ProcessId], within_s: float) -> list[ProcessId]:
    """Wait until all have ended, at most `within_s`; returns those that have not."""
    left = list(processes)
    deadline_s = time.monotonic() + within_s
    while True:
        left = [each for each in left if each.alive()]
        if not left or time.monotonic() >= deadline_s:
            return left
        _reap(left)
        time.sleep(_POLL_S)


def stop(processes: Iterable[ProcessId], grace_s: float) -> list[ProcessId]:
    """End these processes: ask first, and kill after `grace_s` what still runs. Returns what even that left (none)."""
    asked = [each for each in processes if send(each, signal.SIGTERM)]
    left = wait_ended(asked, grace_s)
    for each in left:
        send(each, signal.SIGKILL)
    return wait_ended(left, 5.0)


def _reap(processes: Iterable[ProcessId]) -> None:
    """Collect those that are children of this very process, or they would stay as zombies until it ends."""
    for each in processes:
        try:
            os.waitpid(each.pid, os.WNOHANG)
        except ChildProcessError:
            continue
