"""PyFlink's `AsyncDataStream`, in an environment and a local cluster of its own: it pins an old Beam, and its Flink is 2.2.

The environment is made once, in the cache, from `requirements-pyflink.txt`; the Kafka connector comes from Maven. The cluster is
PyFlink's local one, inside one JVM. Settings: ``capacity`` of each subtask (2 000), ``parallelism`` (2), ``checkpoint_ms``
(2 000), ``bundle_ms`` and ``bundle_size`` of Flink's Python bundles: of 10, 100 and 1 000 ms the middle was best.
"""

from __future__ import annotations

import contextlib

from benchmarks.contestants import own_program
from benchmarks.rig import Place
from runners.local import artifacts
from runners.local.artifacts import ROOT

ENVIRONMENT = own_program.environment("PyFlink", ROOT / "requirements-pyflink.txt")
CONNECTOR = own_program.jars("Flink 2's Kafka connector", "org.apache.flink:flink-sql-connector-kafka:4.0.1-2.0")
DEFAULTS = {"capacity": 2_000, "parallelism": 2, "checkpoint_ms": 2_000, "bundle_ms": 100, "bundle_size": 1_000}
PART = "pyflink"
SETTLE_S = 8.0
"""How long after the job is called running its Python workers are up."""


class PyFlinkAsync:
    """PyFlink's asynchronous operator on its own local cluster."""

    name = "pyflink_async"

    def running(self, place: Place) -> contextlib.AbstractContextManager[None]:
        """Start the program, and end it with its JVM and workers after the body."""
        (jar,) = artifacts.fetch(CONNECTOR).glob("*.jar")
        told = own_program.facts(place, **DEFAULTS, jar=str(jar))
        return own_program.running(place, own_program.python_of(ENVIRONMENT), "pyflink_job.py", told, PART, SETTLE_S)


CONTESTANTS = {"pyflink_async": PyFlinkAsync()}
