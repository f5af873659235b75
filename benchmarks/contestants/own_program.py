"""What contestants have in common that are programs of another framework: an environment of their own, and a program that runs in it.

A contestant's requirements are `benchmarks/contestants/requirements/NAME.txt`, all pinned; the environment is made once, in the
cache. The program is started with facts as JSON in its first word, prints ``running`` once it is, and runs until it is ended. Its
processes carry the stack's mark, so that their processor time counts, and they end with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.rig import Place
from runners.local import artifacts, processes
from runners.local.artifacts import MAVEN, ROOT
from runners.local.part import Artifact, StackError

PROGRAMS = ROOT / "benchmarks" / "contestants"
REQUIREMENTS = PROGRAMS / "requirements"


def environment(name: str, requirements: Path) -> Artifact:
    """A virtual environment with what `requirements`, a file for pip, names."""

    def fill(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q"]
        _run([*pip, "-r", str(requirements)])

    return Artifact(name, f"{name.lower()}-{_digest(requirements.read_bytes())}", fill)


def jars(title: str, *coordinates: str) -> Artifact:
    """Jars from Maven Central, each named GROUP:ARTIFACT:VERSION, as they are."""

    def fill(folder: Path) -> None:
        for one in coordinates:
            _run([MAVEN.name, "-q", "-B", "dependency:copy", f"-Dartifact={one}", f"-DoutputDirectory={folder}"])

    return Artifact(title, f"connector-{_digest(' '.join(coordinates).encode())}", fill, MAVEN)


def facts(place: Place, **more: Any) -> dict[str, Any]:
    """What a program is told: the ends of its run, `more`, and the settings of the place, which win."""
    ends = {"servers": place.servers, "topic_in": place.topic_in, "topic_out": place.topic_out}
    return {**more, **place.settings, **ends, "url": place.url, "name": place.name}


@contextlib.contextmanager
def running(
    place: Place, python: Path, program: str, told: Mapping[str, Any], part: str, settle_s: float
) -> Iterator[None]:
    """Start `program` of this folder with `python`; the body begins `settle_s` after it says that it runs.

    Raises StackError where it ends before, or during the body.
    """
    log = place.stack.place.log(place.name)
    with started(place, python, program, told, part) as process:
        _wait_running(process, log)
        # Workers of the program come up after this.
        time.sleep(settle_s)
        yield
        if process.poll() is not None:
            raise StackError(f"{program} ended: {_tail(log)}")


@contextlib.contextmanager
def started(
    place: Place, python: Path, program: str, told: Mapping[str, Any], part: str
) -> Iterator[subprocess.Popen[str]]:
    """Start `program`, and end it with all its processes after the body. Its errors go to the log of the place's name."""
    home = place.stack.place.home
    with open(place.stack.place.log(place.name), "w") as errors:
        process = subprocess.Popen(
            [str(python), "-P", "-u", str(PROGRAMS / program), json.dumps(told)],
            # -P: a module beside the program must not hide one of its environment.
            cwd=place.folder,
            env={**os.environ, processes.MARK: f"{home}|{part}", "PATH": f"{python.parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            members = processes.marked(home, processes.look_at_all()).get(part, [])
            processes.stop([each.id for each in members], 5.0)
            process.wait()
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            process.stdout.close()


def said(process: subprocess.Popen[str], place: Place) -> dict[str, Any]:
    """The next JSON object that a program prints on a line of its own. Raises StackError where it ends without."""
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    for line in process.stdout:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    raise StackError(f"The program ended with status {process.wait()}: {_tail(place.stack.place.log(place.name))}")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _run(words: list[str]) -> None:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"{words[0]} ended with status {done.returncode}: {(done.stdout + done.stderr)[-2_000:]}")


def _wait_running(process: subprocess.Popen[str], log: Path) -> None:
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    for line in process.stdout:
        if line.strip() == "running":
            return
    raise StackError(f"The program did not start: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2_000:]


def python_of(artifact: Artifact) -> Path:
    """The Python of an environment, which is made now where the cache has none."""
    return artifacts.fetch(artifact) / "bin" / "python"
