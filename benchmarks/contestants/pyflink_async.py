"""PyFlink's `AsyncDataStream`, in an environment and a local cluster of its own: it pins an old Beam, and its Flink is 2.2.

The environment is made once, in the cache, from `requirements-pyflink.txt`; the Kafka connector comes from Maven. The cluster is
PyFlink's local one, inside one JVM. Settings: ``capacity`` of each subtask (2 000), ``parallelism`` (2), ``checkpoint_ms``
(2 000), ``bundle_ms`` and ``bundle_size`` of Flink's Python bundles: of 10, 100 and 1 000 ms the middle was best.
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

REQUIREMENTS = ROOT / "requirements-pyflink.txt"
CONNECTOR = "org.apache.flink:flink-sql-connector-kafka:4.0.1-2.0"
DEFAULTS = {"capacity": 2_000, "parallelism": 2, "checkpoint_ms": 2_000, "bundle_ms": 100, "bundle_size": 1_000}
_PART = "pyflink"
_SETTLE_S = 8.0


def environment() -> Artifact:
    """PyFlink in a virtual environment."""
    return Artifact("PyFlink", f"pyflink-{_digest(REQUIREMENTS.read_bytes())}", _fill_environment)


def connector() -> Artifact:
    """The Kafka connector of Flink 2."""
    return Artifact("Flink 2's Kafka connector", f"connector-{_digest(CONNECTOR.encode())}", _fill_connector, MAVEN)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _fill_environment(folder: Path) -> None:
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q"]
    _run([*pip, "-r", str(REQUIREMENTS)])


def _fill_connector(folder: Path) -> None:
    words = ["-q", "-B", "dependency:copy", f"-Dartifact={CONNECTOR}", f"-DoutputDirectory={folder}"]
    _run([MAVEN.name, *words])


def _run(words: list[str]) -> None:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"{words[0]} ended with status {done.returncode}: {(done.stdout + done.stderr)[-2_000:]}")


class PyFlinkAsync:
    """PyFlink's asynchronous operator on its own local cluster."""

    name = "pyflink_async"

    @contextlib.contextmanager
    def running(self, place: Place) -> Iterator[None]:
        """Start the program, and end it with its JVM and workers after the body."""
        python = artifacts.fetch(environment()) / "bin" / "python"
        (jar,) = artifacts.fetch(connector()).glob("*.jar")
        home = place.stack.place.home
        log = place.stack.place.log(place.name)
        with open(log, "w") as errors:
            process = subprocess.Popen(
                [str(python), "-u", str(ROOT / "benchmarks" / "contestants" / "pyflink_job.py"), _words(place, jar)],
                cwd=place.folder,
                # The mark makes its processes count, and end, as a part of the stack.
                env={**os.environ, processes.MARK: f"{home}|{_PART}"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
            try:
                _wait_running(process, log)
                yield
                if process.poll() is not None:
                    raise StackError(f"PyFlink ended: {_tail(log)}")
            finally:
                _end(home, process)


def _words(place: Place, jar: Path) -> str:
    facts: Mapping[str, Any] = {
        **DEFAULTS,
        **place.settings,
        "servers": place.servers,
        "topic_in": place.topic_in,
        "topic_out": place.topic_out,
        "url": place.url,
        "name": place.name,
        "jar": str(jar),
    }
    return json.dumps(facts)


def _wait_running(process: subprocess.Popen[str], log: Path) -> None:
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    for line in process.stdout:
        if line.strip() == "running":
            # Its Python workers come up after this.
            time.sleep(_SETTLE_S)
            return
    raise StackError(f"PyFlink did not start: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2_000:]


def _end(home: Path, process: subprocess.Popen[str]) -> None:
    members = processes.marked(home, processes.look_at_all()).get(_PART, [])
    processes.stop([facts.id for facts in members], 5.0)
    process.wait()
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    process.stdout.close()


CONTESTANTS = {"pyflink_async": PyFlinkAsync()}
