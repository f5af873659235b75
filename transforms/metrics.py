"""The names of this project's metrics, and how they are read when a job has ended."""

from __future__ import annotations

from typing import Any

NAMESPACE = "farcall"
"""The namespace of every Beam metric here. Counted on the bundle thread: Beam drops what other threads count."""

RECORDS_IN = "records_in"
REPEATS = "repeats"


def counter(result: Any, name: str) -> int | None:
    """The value of one of our counters over all steps of a finished job, or None where the runner does not tell."""
    from apache_beam.metrics import MetricsFilter  # noqa: PLC0415 - only this function needs Beam

    found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE).with_name(name))["counters"]
    if not found:
        return None
    return sum(one.committed if one.committed is not None else one.attempted or 0 for one in found)
