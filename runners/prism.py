"""PrismRunner: Beam's portable local runner, a Go program. Worker code runs in the process that submits."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from runners.local.part import StackError
from runners.runner import Runner, with_defaults

_STARTS_WITHIN_S = 20.0


def options(arguments: Sequence[str], job_endpoint: str) -> list[str]:
    """Beam's flags for a run on the Prism that listens at `job_endpoint`."""
    return with_defaults(
        arguments, ["--runner=PrismRunner", f"--job_endpoint={job_endpoint}", "--environment_type=LOOPBACK"]
    )


@contextmanager
def serve(program: str) -> Iterator[str]:
    """Runs the Prism program for the block; gives its job endpoint.

    A Prism of our own for each run, rather than the one Beam shares in a process: a job whose bundle failed goes on turning in
    it for ever, also when it is cancelled, and only the end of the program stops that. Raises StackError where it does not
    start.
    """
    port = _free_port()
    words = [program, f"--job_port={port}", "--log_level=error", "--log_kind=json", "--serve_http=false"]
    # In a session of its own: Ctrl-C at the keyboard is for the pipeline, which drains.
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_until_open(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _wait_until_open(process: subprocess.Popen[bytes], port: int) -> None:
    until_s = time.monotonic() + _STARTS_WITHIN_S
    while process.poll() is None and time.monotonic() < until_s:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise StackError("Prism did not start; run `prism --job_port=8073` from the cache by hand to see why.")


class BundleFailed(Exception):  # noqa: N818 - what happened
    """A bundle failed, and with it the run: Prism (2.77) does no bundle again."""


class Failures(logging.Handler):
    """Notices bundles that fail on the worker in this process.

    Prism neither does such a bundle again nor ends the job while timers of the step are set: its state stays RUNNING for ever.
    The worker in this process logs each failure; this listens. Use as a context around the whole run. Bundles of an earlier run
    that was cancelled go on until they notice, and fail then; those are not this run's.
    """

    _WORKER = "apache_beam.runners.worker.sdk_worker"

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._failed = threading.Event()
        self._message = ""
        self._earlier: set[FrameType] = set()

    def __enter__(self) -> Failures:  # noqa: PYI034
        self._earlier = {bundle for frame in sys._current_frames().values() if (bundle := _bundle(frame))}  # noqa: SLF001
        logging.getLogger(self._WORKER).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger(self._WORKER).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the last line of the first failure."""
        text = record.getMessage()
        if "Error processing instruction" in text and not self._failed.is_set() and not self._is_earlier():
            self._message = text.strip().splitlines()[-1]
            self._failed.set()

    def _is_earlier(self) -> bool:
        return _bundle(sys._getframe()) in self._earlier  # noqa: SLF001 - the worker logs on the thread of the bundle

    def wait(self, result: Any) -> None:
        """Waits until the job `result` has ended. Raises BundleFailed, with the job cancelled, as soon as a bundle fails."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.is_set():
                if self._failed.wait(0.1):
                    result.cancel()
                    return

        watcher = threading.Thread(target=watch, name="prism-failures", daemon=True)
        watcher.start()
        try:
            result.wait_until_finish()
        except Exception as error:
            if not self._failed.is_set():
                raise
            raise BundleFailed(self._message) from error
        finally:
            ended.set()
            watcher.join()


def _bundle(frame: FrameType | None) -> FrameType | None:
    """The frame in which Beam's worker does a bundle, at or below `frame`; None elsewhere."""
    while frame is not None:
        if frame.f_code.co_name == "_execute" and frame.f_globals.get("__name__") == Failures._WORKER:  # noqa: SLF001
            return frame
        frame = frame.f_back
    return None


def _check(_arguments: Sequence[str], _engine: str) -> None:
    """Any of Beam's flags may be given."""


RUNNER = Runner(name="PrismRunner", reads_kafka=False, in_process=True, check=_check, ask_mode="bundles")
