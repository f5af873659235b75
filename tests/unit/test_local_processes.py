"""Processes are known by pid and start time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from runners.local import processes
from runners.local.processes import ProcessId


def sleeper(**words: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; print(1, flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
        **words,
    )


def ended(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_pid_used_again_is_another_process() -> None:
    """A process with the same pid and another start time is not the one that was meant, and gets no signal."""
    child = sleeper()
    try:
        now = ProcessId.of(child.pid)
        before = ProcessId(child.pid, now.start_ticks - 1)
        assert now.alive()
        assert not before.alive()
        assert processes.stop([before], 0.1) == []
        assert child.poll() is None
    finally:
        ended(child)


def test_a_process_that_ended_but_was_not_waited_for_is_not_alive() -> None:
    """A zombie counts as ended."""
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    identity = ProcessId.of(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not identity.alive()
    child.wait()


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    """What does not end when asked is killed after the grace time."""
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-S", "-c", stubborn], stdout=subprocess.PIPE)
    child.stdout.readline()
    identity = ProcessId.of(child.pid)
    assert processes.stop([identity], 0.1) == []
    assert not identity.alive()
    ended(child)


def test_only_processes_with_the_mark_of_this_home_are_ours(tmp_path: Path) -> None:
    """Processes are found by the home in their environment; those of another home are not."""
    child = sleeper(env={processes.MARK: f"{tmp_path}|part"})
    try:
        child.stdout.readline()
        facts = [processes.look(child.pid)]
        assert list(processes.marked(tmp_path, facts)) == ["part"]
        assert processes.marked(tmp_path / "other", facts) == {}
    finally:
        ended(child)
