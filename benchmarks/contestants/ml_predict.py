"""Flink SQL's `ML_PREDICT` with Flink's own OpenAI model (`flink-model-openai`), on the local cluster of Flink 2.2 that PyFlink has.

All of it is Java: PyFlink only hands in the SQL. Best settings found: unordered, `max-concurrent-operations` as Flink's
operator has it (its default of 10 would bound the rate at 40/s with these latencies), no limit of the answer's length.
Settings: ``capacity`` of each subtask (2 000), ``parallelism`` (2), ``checkpoint_ms`` (2 000).

Its HTTP client (OkHttp in `openai-java`) has at most five calls to one host under way, all subtasks of a JVM together, and
no option changes that: with a median of 0.2 s some twenty replies a second is all there is.

The model's client sends no Idempotency-Key and takes no header; the model server knows its events by the first word of the question.
"""

from __future__ import annotations

import contextlib

from benchmarks.contestants import own_program
from benchmarks.contestants.pyflink_async import CONNECTOR, ENVIRONMENT
from benchmarks.rig import Place
from runners.local import artifacts

MODEL = own_program.jars("Flink 2's OpenAI model", "org.apache.flink:flink-model-openai:2.2.0")
DEFAULTS = {"capacity": 2_000, "parallelism": 2, "checkpoint_ms": 2_000}
_PART = "flink2"
_SETTLE_S = 5.0


class MlPredict:
    """`ML_PREDICT` on its own local cluster."""

    name = "ml_predict"

    def running(self, place: Place) -> contextlib.AbstractContextManager[None]:
        """Start the program, and end it with its JVM after the body."""
        jars = sorted(str(jar) for artifact in (CONNECTOR, MODEL) for jar in artifacts.fetch(artifact).glob("*.jar"))
        told = own_program.facts(place, **DEFAULTS, jars=jars)
        python = own_program.python_of(ENVIRONMENT)
        return own_program.running(place, python, "ml_predict_job.py", told, _PART, _SETTLE_S)


CONTESTANTS = {"ml_predict": MlPredict()}
