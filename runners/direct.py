"""DirectRunner: everything in one process, for a laptop. Bounded files in; checkpoints and restarts are not its job."""

from __future__ import annotations

from collections.abc import Sequence

from runners.runner import Runner, with_defaults

# Beam's "DirectRunner" is a switch between three runners, by what the graph uses. The asynchronous step has a processing-time
# timer, which this one alone runs; naming it keeps a change of the switch from changing what runs.
BEAM_RUNNER = "BundleBasedDirectRunner"


def options(arguments: Sequence[str]) -> list[str]:
    """Beam's flags for a run in this process."""
    return with_defaults(arguments, [f"--runner={BEAM_RUNNER}"])


def _check(_arguments: Sequence[str], _engine: str) -> None:
    """Any of Beam's flags may be given; this runner ignores those of others."""


RUNNER = Runner(name="DirectRunner", reads_kafka=False, in_process=True, check=_check)
