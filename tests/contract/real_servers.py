"""Real model servers on 127.0.0.1: MLServer with a model of scikit-learn's, and LLMock, which judges its clients.

Each runs in an environment of its own in the cache, installed once: MLServer in that of the local stack, LLMock in that of
`requirements-servers.txt`.
"""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from runners.local import artifacts
from runners.local import mlserver as local_mlserver
from runners.local.part import Artifact

REQUIREMENTS = Path(__file__).with_name("requirements-servers.txt")
MODEL = "scores"
READY_WITHIN_S = 120.0

TRAIN = """
import sys
import joblib
import numpy as np
from sklearn.linear_model import LinearRegression

x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
joblib.dump(LinearRegression().fit(x, x @ np.array([2.0, -1.0]) + 0.5), sys.argv[1])
"""


def score_of(one: float, other: float) -> float:
    """What the model in MLServer gives for a record of these two features."""
    return 2.0 * one - other + 0.5


def python() -> Path:
    """The Python of the servers' environment, installed now where the cache has none."""
    pins = REQUIREMENTS.read_bytes() + f"{sys.version_info[:2]} {sys.base_prefix}".encode()
    key = f"servers-{hashlib.sha256(pins).hexdigest()[:12]}"
    return artifacts.fetch(Artifact("LLMock, for the contract suite", key, _install)) / "bin" / "python"


def _install(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    words = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q", "--no-deps"]
    subprocess.run([*words, "--disable-pip-version-check", "-r", str(REQUIREMENTS)], check=True)


@contextmanager
def mlserver(folder: Path) -> Iterator[tuple[str, str]]:
    """MLServer inside the block: its URLs for REST and for gRPC."""
    model = folder / "model.joblib"
    subprocess.run([local_mlserver.python(), "-c", TRAIN, str(model)], check=True)
    with local_mlserver.serve({MODEL: model}, log=folder / "log") as server:
        yield server.base_url, server.grpc_url


@contextmanager
def llmock(folder: Path, *flags: str) -> Iterator[str]:
    """LLMock inside the block, with its flags for faults: its URL."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    start = "from llmock.cli import app; app()"
    with _running(
        ["-c", start, "serve", "--host=127.0.0.1", f"--port={port}", *flags], f"{url}/health", folder / "log"
    ):
        yield url


@contextmanager
def _running(words: list[str], ready: str, log: Path) -> Iterator[None]:
    with open(log, "ab") as output:
        process = subprocess.Popen([str(python()), *words], stdout=output, stderr=output, cwd=log.parent)
    try:
        end_s = time.monotonic() + READY_WITHIN_S
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"The server did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5.0).status_code == 200
    except requests.RequestException:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
