"""What all contestants that run on the stack's Flink have in common: wait until the job runs, cancel it, wait until it is gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import requests

from runners.flink_rest import FlinkRest

RUNNING_WITHIN_S = 90.0
GONE_WITHIN_S = 40.0
_POLL_S = 0.1
_SETTLE_S = 1.0


@contextlib.contextmanager
def cancelled_after(address: str, name: str) -> Iterator[None]:
    """Wait until the job `name` runs on the Flink at `address`, and cancel it after the body. Raises TimeoutError."""
    rest = FlinkRest(address)
    try:
        _wait(f"the job {name} runs", lambda: _runs(rest, name), RUNNING_WITHIN_S)
        # Its consumers join their group after the tasks are called running.
        time.sleep(_SETTLE_S)
        yield
    finally:
        job = rest.job_named(name)
        if job is not None:
            if rest.was_restarted(job):
                print(f"note: the job {name} failed and was restarted by Flink", flush=True)
            _end(rest, job)


def _runs(rest: FlinkRest, name: str) -> bool:
    job = rest.job_named(name)
    return job is not None and rest.is_running(job)


def _end(rest: FlinkRest, job: str) -> None:
    ended = {"CANCELED", "FAILED", "FINISHED"}
    if rest.state(job) not in ended:
        rest.cancel(job)
        _wait(f"the job {job} is gone", lambda: rest.state(job) in ended, GONE_WITHIN_S)


def _wait(what: str, seen: Callable[[], bool], within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(requests.RequestException):
            if seen():
                return
        time.sleep(_POLL_S)
    raise TimeoutError(f"Not within {within_s:g} s: {what}.")
