"""Records of a topic in its format, to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from transforms.errors import BadEvent, BadReply, SettingsError, UnknownSchema
from transforms.formats.avro import AvroReader, AvroWriter
from transforms.formats.protobuf import ProtobufReader, ProtobufWriter
from transforms.formats.registry import OpenRegistry, Registry, Schema, shared_registry
from transforms.formats.settings import TopicFormat
from transforms.formats.wire import Framed, SchemaId, frame, unframe
from transforms.records import Headers, OutputRecord, SourceRecord

KINDS = ("format-prefix", "format-schema", "format-resolution", "format-data")
"""Every kind of the `BadEvent` and `BadReply` that are raised here."""


class Decode:
    """A record of any topic → the same record with JSON as its value.

    A topic without a format is JSON as it is, and a record without a value (a tombstone) stays one. To be made ready by `setup`
    where it is used: it then holds the process's registries, which are not pickled.
    """

    def __init__(self, formats: Mapping[str, TopicFormat], open_registry: OpenRegistry = shared_registry) -> None:
        self._formats = {topic: found for topic, found in formats.items() if not found.is_plain}
        self._open_registry = open_registry
        self._readers: dict[str, _TopicReader] | None = None

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Pickles the settings alone."""
        return (type(self), (self._formats, self._open_registry))

    def setup(self) -> None:
        """Makes the readers, once."""
        if self._readers is None:
            self._readers = {topic: _TopicReader(found, self._open_registry) for topic, found in self._formats.items()}

    def __call__(self, record: SourceRecord) -> SourceRecord:
        """Raises BadEvent, of one of `KINDS`, where the record cannot be decoded; Unavailable where the registry does not answer."""
        if record.topic not in self._formats or record.value is None:
            return record
        value = self.value(record.topic, record.value, record.headers)
        return msgspec.structs.replace(record, value=value)

    def value(self, topic: str, value: bytes, headers: Headers = ()) -> bytes:
        """The value of a record of `topic` as JSON. Raises as a call does."""
        if topic not in self._formats:
            return value
        self.setup()
        return (self._readers or {})[topic].read(value, headers)


class _TopicReader:
    """Reads the values of one topic."""

    def __init__(self, settings: TopicFormat, open_registry: OpenRegistry) -> None:
        self._registry = None if settings.registry is None else open_registry(settings.registry)
        self._is_json = settings.format == "json"
        self._avro = AvroReader(settings.schema) if settings.format == "avro" else None
        self._protobuf = (
            ProtobufReader(settings.descriptors, settings.message) if settings.format == "protobuf" else None
        )

    def read(self, value: bytes, headers: Headers) -> bytes:
        framed, writer = self._unframe(value, headers)
        if self._is_json:
            # The case's own rules say whether it is JSON.
            return framed.payload
        if self._avro is not None:
            content = self._avro.read(framed.payload, writer)
        else:
            assert self._protobuf is not None  # noqa: S101 - one of the three
            content = self._protobuf.read(framed, writer)
        return _json(content)

    def _unframe(self, value: bytes, headers: Headers) -> tuple[Framed, Schema | None]:
        if self._registry is None:
            return Framed(None, value), None
        framed = unframe(value, headers)
        if self._is_json or framed.schema_id is None:
            return framed, None
        return framed, _schema(self._registry, framed.schema_id)


def _schema(registry: Registry, schema_id: SchemaId) -> Schema:
    try:
        return registry.schema(schema_id)
    except UnknownSchema as error:
        raise BadEvent("format-schema", str(error)) from None


def _json(content: Any) -> bytes:
    try:
        return msgspec.json.encode(content)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadEvent("format-data", f"What the record holds cannot be said in JSON: {error}.") from None


class Encode:
    """A record with JSON as its value → the same record in the format of its topic.

    Needs no registry: the ids of the schemas are in the settings. Raises SettingsError where one is not.
    """

    def __init__(self, formats: Mapping[str, TopicFormat]) -> None:
        self._formats = {topic: found for topic, found in formats.items() if not found.is_plain}
        for topic, found in self._formats.items():
            if found.registry is not None and found.schema_id is None:
                raise SettingsError(f"The schema of the topic {topic} is not registered; call register_schemas first.")
        self._writers: dict[str, _TopicWriter] | None = None

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Pickles the settings alone."""
        return (type(self), (self._formats,))

    def setup(self) -> None:
        """Makes the writers, once."""
        if self._writers is None:
            self._writers = {topic: _TopicWriter(found) for topic, found in self._formats.items()}

    def __call__(self, record: OutputRecord) -> OutputRecord:
        """Raises BadReply ``format-data`` for a record that does not fit its topic's schema."""
        if record.topic not in self._formats or record.value is None:
            return record
        return msgspec.structs.replace(record, value=self.value(record.topic, record.value))

    def value(self, topic: str, value: bytes) -> bytes:
        """The JSON `value` of a record of `topic`, in the topic's format. Raises as a call does."""
        if topic not in self._formats:
            return value
        self.setup()
        return (self._writers or {})[topic].write(value)


class _TopicWriter:
    """Writes the values of one topic."""

    def __init__(self, settings: TopicFormat) -> None:
        schema = settings.schema
        assert schema is not None  # noqa: S101 - check_topics sees to it
        self._schema_id = settings.schema_id
        self._avro = AvroWriter(schema) if settings.format == "avro" else None
        self._protobuf = (
            ProtobufWriter(settings.descriptors or b"", settings.message) if settings.format == "protobuf" else None
        )

    def write(self, value: bytes) -> bytes:
        path = None
        if self._avro is not None:
            payload = self._avro.write(_object(value))
        elif self._protobuf is not None:
            payload, path = self._protobuf.write(_object(value)), self._protobuf.path
        else:
            payload = value
        return payload if self._schema_id is None else frame(self._schema_id, payload, path)


def _object(value: bytes) -> Any:
    try:
        return msgspec.json.decode(value, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        # A string that is not UTF-8 is a ValueError to it, what nests too deep a RecursionError.
        raise BadReply("format-data", f"A record that is to be written is no JSON object: {error}.") from None
