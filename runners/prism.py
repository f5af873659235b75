"""PrismRunner: Beam's portable local runner, a Go program. Worker code runs in the process that submits."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from runners.runner import Runner, with_defaults


def options(arguments: Sequence[str], prism: str) -> list[str]:
    """Beam's flags for a run on the Prism program at the path `prism`."""
    return with_defaults(
        arguments,
        ["--runner=PrismRunner", f"--prism_location={prism}", "--environment_type=LOOPBACK", "--prism_log_level=error"],
    )


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


RUNNER = Runner(name="PrismRunner", reads_kafka=False, in_process=True, check=_check)
