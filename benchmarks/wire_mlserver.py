"""A real MLServer for ``scripts/bench wire``: scikit-learn behind Open Inference V2, over HTTP and gRPC, in its own environment."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.contestants import own_program
from runners.local.part import StackError
from runners.local.ports import HOST

ENVIRONMENT = own_program.environment("MLServer", own_program.REQUIREMENTS / "mlserver.txt")
READY_WITHIN_S = 60.0

_MODEL = """
import sys, joblib, numpy
from sklearn.linear_model import LinearRegression
features = int(sys.argv[1])
model = LinearRegression().fit(numpy.eye(features), numpy.ones(features))
joblib.dump(model, sys.argv[2])
"""


def model_name(features: int) -> str:
    """The name of the model of records with so many features."""
    return f"features-{features}"


@contextlib.contextmanager
def running(folder: Path, features: Sequence[int]) -> Iterator[tuple[str, str]]:
    """An MLServer with a model for each number of features while the body runs; gives its addresses for HTTP and gRPC.

    Raises StackError where it cannot be installed, or is not ready in time.
    """
    python = own_program.python_of(ENVIRONMENT)
    for number in features:
        _write_model(python, folder / model_name(number), number)
    http, grpc, metrics = _free_ports(3)
    settings = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "debug": False,
        "logging_settings": None,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    log = folder / "mlserver.log"
    with open(log, "w") as out:
        process = subprocess.Popen(
            # Its own script names the folder in which the environment was made.
            [str(python), "-c", "from mlserver.cli import main; main()", "start", str(folder)],
            cwd=folder,
            env={**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_ready(f"http://127.0.0.1:{http}/v2/health/ready", process, log)
            yield f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        finally:
            process.terminate()
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def _write_model(python: Path, folder: Path, features: int) -> None:
    folder.mkdir(parents=True)
    settings = {
        "name": model_name(features),
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "model.joblib"},
    }
    (folder / "model-settings.json").write_text(json.dumps(settings))
    words = [str(python), "-c", _MODEL, str(features), str(folder / "model.joblib")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"The model of scikit-learn could not be made: {done.stderr[-1_000:]}")


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url, timeout=2.0).close()  # noqa: S310 - our own server
            return
        time.sleep(0.2)
    raise StackError(f"MLServer was not ready within {READY_WITHIN_S:g} s: {log.read_text(errors='replace')[-2_000:]}")
