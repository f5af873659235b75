"""A real small language model behind an OpenAI-compatible API, as one process.

It needs Python alone: llama.cpp and the model come as packages, in an environment of their own in the cache.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runners.local import artifacts, probes
from runners.local.part import Report, StackError
from runners.local.ports import HOST, is_taken
from transforms.errors import SettingsError

MODEL = "smollm2-135m-instruct"
"""The model's name in requests and replies."""

SLOTS = 2
SLOT_TOKENS = 2048
PROCESSES = 2
THREADS = 1
_READY_WITHIN_S = 60.0
_ENDS_WITHIN_S = 5.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Server:
    """A server that answers now. `base_url` ends in ``/v1``, as OpenAI's clients want it."""

    base_url: str
    pid: int
    model: str = MODEL


def command(
    port: int,
    slots: int = SLOTS,
    slot_tokens: int = SLOT_TOKENS,
    threads: int = THREADS,
    processes: int = PROCESSES,
) -> tuple[str, ...]:
    """The command line of the server; its environment must be in the cache already.

    Each of `processes` answers `slots` requests at the same time with `threads`, each with `slot_tokens` tokens for prompt and
    reply together. Processes of one thread wait for nobody, where threads of one process wait for each other after every operation.
    """
    python = artifacts.path_of(artifacts.llm_environment()) / "bin" / "python"
    return (
        str(python),
        str(Path(__file__).with_name("llm_server.py")),
        f"--port={port}",
        f"--slots={slots}",
        f"--slot-tokens={slot_tokens}",
        f"--threads={threads}",
        f"--processes={processes}",
        f"--name={MODEL}",
    )


@contextmanager
def serve(
    port: int = 0,
    report: Report = lambda _: None,
    log: Path | None = None,
    slots: int = SLOTS,
    slot_tokens: int = SLOT_TOKENS,
    threads: int = THREADS,
    processes: int = PROCESSES,
) -> Iterator[Server]:
    """A server for as long as the `with` block runs; it ends with this process, however that ends.

    `port` 0 takes a free one. What the server prints goes to the file `log`, or nowhere. Raises SettingsError for a
    port somebody else holds, StackError where the model could not be fetched or the server did not start in a minute.
    """
    if port and is_taken(port):
        raise SettingsError(f"Port {port} for the language model is taken by another process; choose another.")
    artifacts.fetch(artifacts.llm_environment(), report)
    began_s = time.monotonic()
    with open(log or "/dev/null", "ab") as output:
        process = subprocess.Popen(
            [*command(port, slots, slot_tokens, threads, processes), "--until-stdin-closes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            # Ctrl-C at the keyboard is for the pipeline, which still needs the model while it drains.
            start_new_session=True,
        )
    try:
        address = _address(process, log)
        _wait_healthy(address, process, began_s, log)
        report(f"llm … ready in {time.monotonic() - began_s:.1f} s, {address.removeprefix('http://')}")
        yield Server(f"{address}/v1", process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def _address(process: subprocess.Popen[bytes], log: Path | None) -> str:
    """The one line the server prints: where it listens, or the end of file where it ended before that."""
    said = process.stdout
    readable = said is not None and select.select([said], [], [], _READY_WITHIN_S)[0]
    line = said.readline() if said and readable else b""
    if not line:
        raise _did_not_start(process, log)
    address: str = json.loads(line)["address"]
    # Only ever on this machine, whatever name the library gives it.
    return address.replace("localhost", HOST)


def _wait_healthy(address: str, process: subprocess.Popen[bytes], began_s: float, log: Path | None) -> None:
    while probes.http(f"{address}/health") is not None:
        if process.poll() is not None or time.monotonic() - began_s > _READY_WITHIN_S:
            raise _did_not_start(process, log)
        time.sleep(_POLL_S)


def _did_not_start(process: subprocess.Popen[bytes], log: Path | None) -> StackError:
    status = process.poll()
    how = f"ended with status {status}" if status is not None else f"was not ready within {_READY_WITHIN_S:.0f} s"
    where = f"; see {log}" if log else ""
    return StackError(f"The language model server {how}{where}.")
