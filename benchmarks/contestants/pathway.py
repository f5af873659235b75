"""Pathway's `AsyncTransformer`, in an environment of its own: a Rust engine with a Python coroutine for each row.

It reads and writes the same Kafka; its engine is one process, without Flink and, as it runs here, without persistence: it keeps
nothing over a failure, where the contestants on Flink take a checkpoint every two seconds. Settings: ``capacity`` (4 000, two of
Flink's subtasks), ``commit_ms``, which is how often its engine takes in what came and what was answered (10), ``retries`` (5).
"""

from __future__ import annotations

import contextlib

from benchmarks.contestants import own_program
from benchmarks.rig import Place

ENVIRONMENT = own_program.environment("Pathway", own_program.REQUIREMENTS / "pathway.txt")
DEFAULTS = {"capacity": 4_000, "commit_ms": 10, "retries": 5}
_PART = "pathway"
_SETTLE_S = 8.0


class Pathway:
    """`AsyncTransformer` in a process of its own."""

    name = "pathway"

    def running(self, place: Place) -> contextlib.AbstractContextManager[None]:
        """Start the program, and end it after the body."""
        told = own_program.facts(place, **DEFAULTS)
        return own_program.running(place, own_program.python_of(ENVIRONMENT), "pathway_job.py", told, _PART, _SETTLE_S)


CONTESTANTS = {"pathway": Pathway()}
