"""What all contestants that are Beam pipelines have in common: the ends, the options, and the submission.

Each is a Kafka source → its own steps → the project's Kafka sink, on the pinned Flink: parallelism 2, checkpoints every
2 s, one worker process, as `runners/flink.py` sets them. A flag of `Place.beam_arguments` wins. The source is KafkaIO, Beam's own,
as the native source of Flink, but for ours, which has its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.contestants.flink_job import cancelled_after
from benchmarks.contestants.kafkaio import ReadKafkaIO
from benchmarks.rig import Place
from runners import flink
from runners.runner import with_defaults
from transforms.kafka import WriteKafka
from transforms.kafka_read import ReadKafka

Steps = Callable[[beam.PCollection, Place], beam.PCollection]
"""From `SourceRecord`s to `OutputRecord`s."""


BEHIND_KAFKAIO = ("--max_bundle_time_mills=5", "--experiments=data_buffer_size_limit=1000000")
"""What is best for the peers behind KafkaIO: short bundles, and Beam's own buffer for what goes to the worker."""


@contextlib.contextmanager
def running(place: Place, steps: Steps, *, with_own_source: bool = False) -> Iterator[None]:
    """Submit the pipeline around `steps`; the body runs while it does."""
    at = place.stack.endpoints
    endpoints = flink.FlinkEndpoints(at.job_server, at.workers)
    given = [*place.beam_arguments, f"--job_name={place.name}"]
    if not with_own_source:
        given = with_defaults(given, BEHIND_KAFKAIO)
    arguments = flink.pinned_options(given, endpoints)
    if not with_own_source:
        # Flink's native source for KafkaIO, with its offsets in the checkpoint.
        arguments.append("--experiments=use_deprecated_read")
        arguments.remove(flink.NO_CHAINS)
    pipeline = beam.Pipeline(options=PipelineOptions(arguments))
    if with_own_source:
        readers = flink.parallelism(arguments)
        read = ReadKafka(at.kafka, [place.topic_in], {"group.id": place.name}, readers=readers)
    else:
        read = ReadKafkaIO(at.kafka, [place.topic_in], at.expansion, place.name)
    records = pipeline | "Read" >> read
    steps(records, place) | "WriteOut" >> WriteKafka(at.kafka)
    pipeline.run()
    with cancelled_after(at.flink, place.name):
        yield
