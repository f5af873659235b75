"""Ray Data's HTTP processor (`ray.data.llm.HttpRequestProcessorConfig`), in an environment of its own.

Ray Data is for bounded sets: it has no Kafka source that goes on, no place in a stream to come back to after a failure, and an
event has no latency in it but the set's. So it gets a file with the events of five seconds of the load, all at once, and is measured
by throughput and processor time; its start is not counted. Within a batch its processor sends one request after another, so the way to
have many under way is batches of one, a thousand at a time; with its defaults (batches of 64, four at a time) there
are four. Settings: ``batch_size`` (1), ``workers`` (1), ``batches_at_once`` (1 000), ``blocks`` (4), ``cpus`` (2), ``retries`` (5).
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import cpu
from benchmarks.contestants import own_program
from benchmarks.figures import SetAnswered
from benchmarks.rig import Place

ENVIRONMENT = own_program.environment("Ray", own_program.REQUIREMENTS / "ray.txt")
DEFAULTS = {"batch_size": 1, "workers": 1, "batches_at_once": 1_000, "blocks": 4, "cpus": 2, "retries": 5}
_PART = "ray"


class RayData:
    """`HttpRequestProcessor` over a file."""

    name = "ray_data"

    def answer_set(self, place: Place, events: Path) -> SetAnswered:
        """Ask about every event of the file. Raises StackError where the program fails."""
        told = own_program.facts(place, **DEFAULTS, events=str(events))
        python, home = own_program.python_of(ENVIRONMENT), place.stack.place.home
        with own_program.started(place, python, "ray_data_job.py", told, _PART) as process:
            own_program.said(process, place)
            before = cpu.by_part(home).get(_PART, 0.0)
            found = own_program.said(process, place)
            spent_s = cpu.by_part(home).get(_PART, 0.0) - before
        return SetAnswered(found["outputs"], found["replies"], found["seconds"], {_PART: spent_s})


CONTESTANTS = {"ray_data": RayData()}
