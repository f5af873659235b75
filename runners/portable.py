"""PortableRunner: any portable job endpoint, such as Beam's Spark job server. The job graph is tested; Spark is not run."""

from __future__ import annotations

from collections.abc import Sequence

from runners.runner import Runner, value_of, with_defaults
from transforms.errors import SettingsError


def options(arguments: Sequence[str]) -> list[str]:
    """Beam's flags for a portable job endpoint."""
    return with_defaults(arguments, ["--runner=PortableRunner", "--environment_type=LOOPBACK"])


def _check(arguments: Sequence[str], _engine: str) -> None:
    endpoint = value_of(arguments, "--job_endpoint")
    if not endpoint:
        raise SettingsError("--runner=PortableRunner needs --job_endpoint=HOST:PORT of a job server.")
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise SettingsError(f"--job_endpoint={endpoint}: is not HOST:PORT.")


RUNNER = Runner(name="PortableRunner", reads_kafka=False, in_process=True, check=_check, ask_mode="bundles")
