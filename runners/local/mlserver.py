"""A real MLServer with models of scikit-learn behind Open Inference V2, over HTTP and gRPC, as one process.

It runs in an environment of its own in the cache (`requirements-mlserver.txt`), and so does the program that trains a model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from runners.local import artifacts, probes
from runners.local.part import Artifact, Report, StackError
from runners.local.ports import HOST

_READY_WITHIN_S = 120.0
_ENDS_WITHIN_S = 10.0
_POLL_S = 0.1
_LOG_CHARACTERS = 2_000

# Its own script names the folder in which the environment was made.
_START = "from mlserver.cli import main; main()"


@dataclass(frozen=True)
class MlServer:
    """A server that answers now: the base URL of its REST interface, its address for gRPC (``grpc://…``), its process."""

    base_url: str
    grpc_url: str
    pid: int


def python() -> Path:
    """The Python of the server's environment, installed now where the cache has none. Raises as `artifacts.fetch`."""
    return artifacts.fetch(artifacts.mlserver_environment()) / "bin" / "python"


def trained(name: str, program: Path, data: Path, report: Report = lambda _: None) -> Path:
    """The file of a model, trained now where the cache has none of this program, data and environment.

    ``python program data model.joblib`` is run in the server's environment. Raises StackError with the end of what it said where it
    fails.
    """
    environment = artifacts.mlserver_environment()
    artifacts.fetch(environment, report)
    content = program.read_bytes() + data.read_bytes() + environment.key.encode()

    def fill(folder: Path) -> None:
        words = [str(python()), "-P", str(program), str(data), str(folder / "model.joblib")]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StackError(f"The model {name} could not be trained: {done.stderr[-_LOG_CHARACTERS:]}")

    key = f"model-{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    return artifacts.fetch(Artifact(f"the model {name}", key, fill), report) / "model.joblib"


@contextmanager
def serve(models: Mapping[str, Path], report: Report = lambda _: None, log: Path | None = None) -> Iterator[MlServer]:
    """A server of `models`, files of joblib by name, for as long as the block runs, on free ports of 127.0.0.1.

    What it prints goes to the file `log`, or into a folder that is removed at the end. Raises StackError with the end of that where
    it does not start.
    """
    program = python()
    with tempfile.TemporaryDirectory(prefix="mlserver-") as name:
        folder = Path(name)
        http, grpc = _lay_out(folder, models)
        written = log or folder / "log"
        began_s = time.monotonic()
        process = _started(program, folder, written)
        try:
            for model in models:
                _wait_ready(f"http://{HOST}:{http}/v2/models/{model}/ready", process, written)
            report(f"mlserver … ready in {time.monotonic() - began_s:.1f} s, {HOST}:{http}")
            yield MlServer(f"http://{HOST}:{http}", f"grpc://{HOST}:{grpc}", process.pid)
        finally:
            _end(process)


def _lay_out(folder: Path, models: Mapping[str, Path]) -> tuple[int, int]:
    """Writes the repository of models into `folder`; returns the ports for HTTP and gRPC."""
    http, grpc, metrics = _free_ports(3)
    settings = {
        "host": HOST,
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        # A process more for each model costs memory, and a model of this kind takes a millisecond.
        "parallel_workers": 0,
        "debug": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    for name, path in models.items():
        (folder / name).mkdir()
        shutil.copyfile(path, folder / name / "model.joblib")
        described = {
            "name": name,
            "implementation": "mlserver_sklearn.SKLearnModel",
            "parameters": {"uri": "./model.joblib", "version": "v1"},
        }
        (folder / name / "model-settings.json").write_text(json.dumps(described))
    return http, grpc


def _started(program: Path, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as output:
        return subprocess.Popen(
            [str(program), "-c", _START, "start", str(folder)],
            cwd=folder,
            env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # As with the language model: Ctrl-C at the keyboard is for the pipeline, which drains.
            start_new_session=True,
        )


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + _READY_WITHIN_S
    while probes.http(url) is not None:
        if process.poll() is not None or time.monotonic() > end_s:
            said = log.read_text(errors="replace")[-_LOG_CHARACTERS:]
            raise StackError(f"MLServer did not start: {said}")
        time.sleep(_POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> Sequence[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
