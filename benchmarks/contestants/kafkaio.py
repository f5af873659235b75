"""Beam's own Kafka source, KafkaIO, as a Beam pipeline in Python has it: in Java, expanded by an expansion service.

For the peers that are Beam pipelines. The payload is built by hand, with only the fields that are set: Python's own `ReadFromKafka`
sends fields that an older Java side refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.transforms.external import ExternalTransform, NamedTupleBasedPayloadBuilder
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from transforms.records import SourceRecord

READ_URN = "beam:transform:org.apache.beam:kafka_read_with_metadata:v1"
_BYTES_DESERIALIZER = "org.apache.kafka.common.serialization.ByteArrayDeserializer"

# The fields of Java's `KafkaIO.Read.External.Configuration` that are set here. Made by a call, as Beam needs the types themselves
# and annotations are strings in this module.
_ReadPayload = NamedTuple(  # noqa: UP014
    "_ReadPayload",
    [
        ("consumer_config", Mapping[str, str]),
        ("topics", Sequence[str]),
        ("key_deserializer", str),
        ("value_deserializer", str),
        ("commit_offset_in_finalize", bool),
        ("timestamp_policy", str),
    ],
)


class ReadKafkaIO(beam.PTransform):  # type: ignore[misc]
    """Reads topics as `SourceRecord`s for the group `group`. `expansion_service` is ``HOST:PORT``."""

    def __init__(self, servers: str, topics: Sequence[str], expansion_service: str, group: str) -> None:
        super().__init__()
        self._topics = tuple(topics)
        self._expansion_service = expansion_service
        self._config = {
            "bootstrap.servers": servers,
            "group.id": group,
            "auto.offset.reset": "earliest",
            # The external read replaces KafkaIO's own defaults, and Kafka's is true: a restart before the first checkpoint would
            # begin at the end of the topic.
            "enable.auto.commit": "false",
        }

    def expand(self, pipeline: Any) -> beam.PCollection:
        """KafkaIO, then rows made records."""
        payload = _ReadPayload(
            consumer_config=self._config,
            topics=list(self._topics),
            key_deserializer=_BYTES_DESERIALIZER,
            value_deserializer=_BYTES_DESERIALIZER,
            commit_offset_in_finalize=True,
            timestamp_policy="CreateTime",
        )
        rows = pipeline.pipeline | "KafkaIO" >> ExternalTransform(
            READ_URN, NamedTupleBasedPayloadBuilder(payload), self._expansion_service
        )
        return rows | "ToRecords" >> beam.ParDo(_ToRecords()).with_output_types(SourceRecord)


class _ToRecords(beam.DoFn):  # type: ignore[misc]
    def process(self, row: Any) -> Iterator[Any]:
        record = SourceRecord(
            value=row.value,
            key=row.key,
            headers=tuple((header.key, header.value) for header in row.headers or ()),
            topic=row.topic,
            partition=row.partition,
            offset=row.offset,
            event_time_ms=row.timestamp,
        )
        yield TimestampedValue(record, Timestamp(micros=row.timestamp * 1_000))
