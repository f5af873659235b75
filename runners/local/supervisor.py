"""The process that starts the parts of a stack and starts again what died.

It knows nothing about Kafka or Flink: it follows `run/plan.json`, which `Stack.up` writes, and says what it did in
`run/state.json`. It uses the standard library alone, so that it is small and quick to start. When it is killed, the
parts live on; the next one finds them by pid and start time and looks after them again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runners.local.processes import MARK, ProcessId

NAME = "supervisor"
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
SETTLED_AFTER_S = 30.0
_LOOK_EVERY_S = 0.1
_LOG_KEPT_BYTES = 32 << 20


@dataclass(frozen=True)
class Planned:
    """One part as the plan has it. One that is not `wanted` failed to start; it is not started again."""

    words: tuple[str, ...]
    env: Mapping[str, str]
    log: str
    wanted: bool = True


@dataclass(frozen=True)
class Seen:
    """What the supervisor knows about a part.

    `deaths` counts how often it ended without being asked, `restarts` how often it was started again after that;
    `exit_status` is the last end's (negative: the signal), None where it is not known.
    """

    pid: int = 0
    start_ticks: int = 0
    deaths: int = 0
    restarts: int = 0
    exit_status: int | None = None

    @property
    def process(self) -> ProcessId:
        """The process last started for the part."""
        return ProcessId(self.pid, self.start_ticks)

    def alive(self) -> bool:
        """Whether that process still runs."""
        return self.pid > 0 and self.process.alive()


@dataclass(frozen=True)
class State:
    """The content of `run/state.json`."""

    supervisor: ProcessId | None
    parts: Mapping[str, Seen]


def write_plan(run: Path, plan: Mapping[str, Planned]) -> None:
    """Replace the plan. It takes effect within a tenth of a second, and before any further restart."""
    _write(run / "plan.json", {name: asdict(part) for name, part in plan.items()})


def read_plan(run: Path) -> dict[str, Planned]:
    """The plan; empty where there is none."""
    return {name: Planned(tuple(part.pop("words")), **part) for name, part in _read(run / "plan.json").items()}


def read_state(run: Path) -> State:
    """What the last supervisor wrote; empty where there was none."""
    content = _read(run / "state.json")
    who = content.get(NAME)
    parts = {name: Seen(**seen) for name, seen in content.get("parts", {}).items()}
    return State(ProcessId(**who) if who else None, parts)


def delay_s(quick_deaths: int) -> float:
    """How long to wait before a part is started again that died `quick_deaths` times in a row soon after its start."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(quick_deaths, 16))


class Supervisor:
    """Keeps the parts of the plan in `home`/run running, one `look` at a time."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._run = home / "run"
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._quick_deaths: dict[str, int] = {}
        self._not_before_s: dict[str, float] = {}
        self._plan: dict[str, Planned] = {}
        self._plan_version: tuple[int, int] | None = None
        self._parts = dict(read_state(self._run).parts)
        self._save()

    def look(self) -> None:
        """Notice what died, and start what is wanted and due."""
        before = dict(self._parts)
        died = [name for name, seen in self._parts.items() if seen.pid and not self._alive(seen)]
        # Read after the deaths: what was taken out of the plan before it was ended is not started again.
        self._follow_plan()
        for name in died:
            self._note_death(name)
        for name, part in self._plan.items():
            running = self._parts.get(name, Seen()).pid > 0
            if part.wanted and not running and time.monotonic() >= self._not_before_s.get(name, 0.0):
                self._start(name, part)
        if self._parts != before:
            self._save()

    def _follow_plan(self) -> None:
        try:
            written = (self._run / "plan.json").stat()
        except FileNotFoundError:
            return
        # Each plan is a new file, so that two within one tick of the file system's clock differ too.
        version = (written.st_ino, written.st_mtime_ns)
        if version != self._plan_version:
            # Somebody acted: what waits for its next try need not wait any longer.
            self._not_before_s.clear()
            self._quick_deaths.clear()
            self._plan, self._plan_version = read_plan(self._run), version

    def _alive(self, seen: Seen) -> bool:
        child = self._children.get(seen.pid)
        # A child is over when it was collected: only then is its status known.
        return child.poll() is None if child is not None else seen.alive()

    def _note_death(self, name: str) -> None:
        seen = self._parts[name]
        child = self._children.pop(seen.pid, None)
        status = child.returncode if child is not None else None
        self._say(f"{name}, pid {seen.pid}, ended, {how(status)}")
        if name not in self._plan:
            del self._parts[name]
            return
        lived_s = seen.process.uptime_s()
        quick = 0 if lived_s > SETTLED_AFTER_S else self._quick_deaths.get(name, 0)
        self._not_before_s[name] = time.monotonic() + delay_s(quick)
        self._quick_deaths[name] = quick + 1
        counted = seen.deaths + (1 if self._plan[name].wanted else 0)
        self._parts[name] = replace(seen, pid=0, start_ticks=0, deaths=counted, exit_status=status)

    def _start(self, name: str, part: Planned) -> None:
        seen = self._parts.get(name, Seen())
        keep_small(Path(part.log))
        with open(part.log, "ab") as log:
            try:
                child = subprocess.Popen(
                    part.words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **part.env, MARK: f"{self._home}|{name}"},
                    cwd=self._home,
                    start_new_session=True,
                )
            except OSError as error:
                log.write(f"{part.words[0]} could not be started: {error}\n".encode())
                self._not_before_s[name] = time.monotonic() + LONGEST_DELAY_S
                self._parts[name] = replace(seen, deaths=seen.deaths + 1, exit_status=None)
                return
        # A child that was not waited for has an entry in /proc, whatever became of it.
        started = ProcessId.of(child.pid) or ProcessId(child.pid, 0)
        self._children[child.pid] = child
        again = seen.restarts + (1 if seen.deaths else 0)
        self._parts[name] = replace(seen, pid=child.pid, start_ticks=started.start_ticks, restarts=again)
        self._say(f"{name} started, pid {child.pid}")

    def _save(self) -> None:
        me = ProcessId.of(os.getpid())
        parts = {name: asdict(seen) for name, seen in self._parts.items()}
        _write(self._run / "state.json", {NAME: asdict(me) if me else None, "parts": parts})

    def _say(self, line: str) -> None:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)  # noqa: T201 - its standard output is its log


def how(status: int | None) -> str:
    """How a process ended, in words, from what `subprocess` calls its return code."""
    if status is None:
        return "status not known"
    return f"by signal {-status}" if status < 0 else f"with status {status}"


def keep_small(log: Path) -> None:
    """Put a log file that has grown large aside as ``.1``, in place of the one put aside before."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _LOG_KEPT_BYTES:
            log.replace(log.with_name(log.name + ".1"))


def _write(path: Path, content: object) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never half."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return content


def main(home: Path) -> int:
    """Supervise until SIGTERM. Ends at once where the stack at `home` has a supervisor already."""
    with open(home / "run" / "supervisor.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        stopping: list[int] = []
        wake_in, wake_out = os.pipe()
        for end in (wake_in, wake_out):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake_out)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        supervisor = Supervisor(home)
        while not stopping:
            supervisor.look()
            # A child's death wakes it at once; the interval is for the plan and for parts it did not start itself.
            if select.select([wake_in], [], [], _LOOK_EVERY_S)[0]:
                os.read(wake_in, 4096)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
