"""The pool of Python workers: Beam's external worker service, with real processes that can be looked after.

Beam's own `worker_pool_main` starts whatever `python` comes first in PATH, without state cache, and never reads what
a worker prints: a worker that fills the pipe stands still. Here each worker runs this very Python, has the state cache
on, writes to a log file of its own, is collected when it ends, and ends when the pool does.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import traceback
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from runners.local.ports import HOST
from runners.local.supervisor import keep_small

STATE_CACHE_MIB = 128
DATA_BUFFER_TIME_LIMIT_MS = -1
_LOOK_EVERY_S = 0.2
_ENDS_WITHIN_S = 3.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class PoolSettings:
    """What the pool needs to know.

    `secrets` is a folder of files, each named as the variable in which workers have its content, unless the pool has one
    of that name; they are read when a worker starts. `state_cache_mib` is each worker's; `data_buffer_time_limit_ms` is
    how long a worker may hold back outputs of a running bundle, -1 for as long as the buffer is not full.
    """

    port: int
    logs: Path
    pids: Path
    secrets: Path | None = None
    state_cache_mib: int = STATE_CACHE_MIB
    data_buffer_time_limit_ms: int = DATA_BUFFER_TIME_LIMIT_MS


@dataclass(frozen=True)
class _Start:
    worker_id: str
    control_url: str
    started: Future[int] = field(default_factory=Future)


@dataclass(frozen=True)
class _Stop:
    worker_id: str


class Pool:
    """Starts and ends worker processes. All of it happens on the thread that calls `turn`.

    That thread must be the main one: the kernel ends a worker when the *thread* that started it ends, and a gRPC
    server's threads come and go.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._wishes: queue.Queue[_Start | _Stop | None] = queue.Queue()
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._leaving: dict[int, subprocess.Popen[bytes]] = {}
        self._log = logging.getLogger(__name__)
        self._save()

    def start(self, worker_id: str, control_url: str) -> int:
        """Start a worker and return its pid. Safe on any thread but the one that calls `turn`; raises OSError."""
        wish = _Start(worker_id, control_url)
        self._wishes.put(wish)
        return wish.started.result(timeout=30)

    def stop(self, worker_id: str) -> None:
        """End a worker soon. Safe on any thread."""
        self._wishes.put(_Stop(worker_id))

    def wake(self) -> None:
        """Let `turn` return without a wish."""
        self._wishes.put(None)

    def turn(self) -> None:
        """Do what was wished for within the next moment, and collect workers that ended."""
        with contextlib.suppress(queue.Empty):
            wish = self._wishes.get(timeout=_LOOK_EVERY_S)
            if isinstance(wish, _Start):
                self._start(wish)
            elif isinstance(wish, _Stop) and (worker := self._workers.pop(wish.worker_id, None)):
                worker.terminate()
                self._leaving[worker.pid] = worker
                self._save()
        self._collect()

    def close(self) -> None:
        """End every worker and wait until they have gone."""
        everyone = [*self._workers.values(), *self._leaving.values()]
        for worker in everyone:
            worker.terminate()
        for worker in everyone:
            try:
                worker.wait(_ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self._workers.clear()
        self._save()

    def _start(self, wish: _Start) -> None:
        try:
            worker = self._spawn(wish)
        except OSError as error:
            wish.started.set_exception(error)
            return
        if before := self._workers.get(wish.worker_id):
            # A TaskManager that was started again counts its workers from one again.
            before.terminate()
            self._leaving[before.pid] = before
        self._workers[wish.worker_id] = worker
        self._save()
        self._log.info("worker %s started, pid %d", wish.worker_id, worker.pid)
        wish.started.set_result(worker.pid)

    def _spawn(self, wish: _Start) -> subprocess.Popen[bytes]:
        settings = self._settings
        path = settings.logs / f"worker-{re.sub(r'[^A-Za-z0-9_.-]', '_', wish.worker_id)}.log"
        keep_small(path)
        with open(path, "ab") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "runners.local.workers",
                    "work",
                    f"--id={wish.worker_id}",
                    f"--control={wish.control_url}",
                    f"--parent={os.getpid()}",
                    f"--state-cache-mib={settings.state_cache_mib}",
                    f"--data-buffer-time-limit-ms={settings.data_buffer_time_limit_ms}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**read_secrets(settings.secrets), **os.environ},
            )

    def _collect(self) -> None:
        ended = {name: worker for name, worker in self._workers.items() if worker.poll() is not None}
        for name, worker in ended.items():
            del self._workers[name]
            self._log.info("worker %s, pid %d, ended with status %d", name, worker.pid, worker.returncode)
        self._leaving = {pid: worker for pid, worker in self._leaving.items() if worker.poll() is None}
        if ended:
            self._save()

    def _save(self) -> None:
        partial = self._settings.pids.with_name(self._settings.pids.name + ".partial")
        partial.write_text(json.dumps({name: worker.pid for name, worker in self._workers.items()}))
        partial.replace(self._settings.pids)


def read_pids(pids: Path) -> dict[str, int]:
    """The pid of each worker by its id, as the pool wrote them; empty where there is no pool."""
    try:
        content: dict[str, int] = json.loads(pids.read_text())
    except FileNotFoundError:
        return {}
    return content


def read_secrets(folder: Path | None) -> dict[str, str]:
    """The content of each file in `folder` by the file's name; empty where there is no folder."""
    if folder is None or not folder.is_dir():
        return {}
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.is_file()}


def run_pool(settings: PoolSettings) -> int:
    """Serve until SIGTERM. Must be called on the main thread."""
    # Not at the top: `status` reads this module, and Beam takes a second to import.
    import grpc  # noqa: PLC0415
    from apache_beam.portability.api import beam_fn_api_pb2 as messages  # noqa: PLC0415
    from apache_beam.portability.api import beam_fn_api_pb2_grpc as services  # noqa: PLC0415

    pool = Pool(settings)

    class Service(services.BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]
        def StartWorker(self, request: Any, _context: Any) -> Any:  # noqa: N802 - the service's own name
            try:
                pool.start(request.worker_id, request.control_endpoint.url)
            except Exception:  # noqa: BLE001 - the caller is another process
                return messages.StartWorkerResponse(error=traceback.format_exc())
            return messages.StartWorkerResponse()

        def StopWorker(self, request: Any, _context: Any) -> Any:  # noqa: N802 - as above
            pool.stop(request.worker_id)
            return messages.StopWorkerResponse()

    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()
        pool.wake()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=[("grpc.so_reuseport", 0)])
    services.add_BeamFnExternalWorkerPoolServicer_to_server(Service(), server)
    server.add_insecure_port(f"{HOST}:{settings.port}")
    server.start()
    logging.getLogger(__name__).info("worker pool listens on %s:%d", HOST, settings.port)
    while not stopping.is_set():
        pool.turn()
    server.stop(0)
    pool.close()
    return 0


def run_worker(worker_id: str, control: str, parent: int, state_cache_mib: int, data_buffer_time_limit_ms: int) -> None:
    """Be one worker, until its runner hangs up. Ends the process."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return
    from apache_beam.runners.worker.sdk_worker import SdkHarness  # noqa: PLC0415 - as in run_pool

    status = 0
    try:
        SdkHarness(
            control,
            worker_id=worker_id,
            state_cache_size=state_cache_mib << 20,
            data_buffer_time_limit_ms=data_buffer_time_limit_ms,
        ).run()
    except Exception:
        # The usual end when a TaskManager is killed: the control stream breaks.
        logging.getLogger(__name__).warning("the runner hung up", exc_info=True)
        status = 1
    # Threads of the user's steps may never end by themselves; a worker without a runner is of no use to anyone.
    last = threading.Timer(_ENDS_WITHIN_S, os._exit, [status])
    last.daemon = True
    last.start()
    sys.exit(status)


def main(arguments: list[str] | None = None) -> int:
    """`pool` serves; `work` is what the pool starts."""
    parser = argparse.ArgumentParser(prog="python -m runners.local.workers", description=__doc__)
    modes = parser.add_subparsers(dest="mode", required=True)
    pool, work = modes.add_parser("pool"), modes.add_parser("work")
    pool.add_argument("--port", type=int, required=True)
    pool.add_argument("--logs", type=Path, required=True)
    pool.add_argument("--pids", type=Path, required=True)
    pool.add_argument("--secrets", type=Path)
    work.add_argument("--id", required=True)
    work.add_argument("--control", required=True)
    work.add_argument("--parent", type=int, required=True)
    for mode in (pool, work):
        mode.add_argument("--state-cache-mib", type=int, default=STATE_CACHE_MIB)
        mode.add_argument("--data-buffer-time-limit-ms", type=int, default=DATA_BUFFER_TIME_LIMIT_MS)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-5s %(name)s - %(message)s")
    if given.mode == "pool":
        return run_pool(
            PoolSettings(
                given.port,
                given.logs,
                given.pids,
                given.secrets,
                given.state_cache_mib,
                given.data_buffer_time_limit_ms,
            )
        )
    run_worker(given.id, given.control, given.parent, given.state_cache_mib, given.data_buffer_time_limit_ms)
    return 0


if __name__ == "__main__":
    # Under its real name: what a worker defines in `__main__` could not be found again when it is unpickled.
    from runners.local import workers  # noqa: PLW0406

    sys.exit(workers.main())
