"""DataflowRunner: options prepared and checked. The job graph is tested; a run on the service is not."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from runners.runner import Runner, value_of, with_defaults
from transforms.errors import SettingsError

REQUIRED = ("--project", "--region", "--temp_location")


def options(arguments: Sequence[str], *, streaming: bool = True) -> list[str]:
    """Beam's flags for Dataflow, on the portable runner: streaming, as timers in processing time need it, or a batch without them."""
    own = ["--runner=DataflowRunner", "--experiments=use_runner_v2", *(["--streaming"] if streaming else [])]
    return with_defaults(arguments, own)


def _check(arguments: Sequence[str], _engine: str) -> None:
    for flag in REQUIRED:
        if not value_of(arguments, flag):
            raise SettingsError(f"--runner=DataflowRunner needs {flag}=…; it needs {', '.join(REQUIRED)}.")
    temporary = value_of(arguments, "--temp_location") or ""
    if not temporary.startswith("gs://"):
        raise SettingsError(f"--temp_location={temporary}: must be a bucket, gs://…, on Dataflow.")
    if importlib.util.find_spec("google") is None or importlib.util.find_spec("google.cloud.storage") is None:
        raise SettingsError(
            "--runner=DataflowRunner needs Beam's parts for Google Cloud; install them with: pip install 'farcall[dataflow]'."
        )


RUNNER = Runner(name="DataflowRunner", reads_kafka=False, in_process=False, check=_check)
