"""Records in Avro, Protobuf and JSON, to JSON and back, with schemas that change (`transforms.formats`)."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import io
import json
import pickle
import uuid
from collections.abc import Mapping
from typing import Any

import fastavro
import pytest
from google.protobuf import descriptor_pb2

from transforms.errors import BadEvent, BadReply, SettingsError, Unavailable, UnknownSchema
from transforms.formats import protobuf
from transforms.formats.avro import parse
from transforms.formats.codec import Decode, Encode
from transforms.formats.registry import RegistrySettings, Schema, SchemaType
from transforms.formats.settings import TopicFormat
from transforms.formats.wire import SchemaId, frame, write_path
from transforms.records import OutputRecord, SourceRecord

REGISTRY = RegistrySettings("http://registry:8081")


class Known:
    """A registry in memory: what `shared_registry` would give."""

    def __init__(self, schemas: Mapping[SchemaId, Schema]) -> None:
        self.schemas = dict(schemas)
        self.answers = True

    def __call__(self, settings: RegistrySettings) -> Any:
        return self

    def schema(self, schema_id: SchemaId) -> Schema:
        if not self.answers:
            raise Unavailable("The registry does not answer.")
        if schema_id not in self.schemas:
            raise UnknownSchema(f"no schema with the {schema_id}.")
        return self.schemas[schema_id]


def avro(*fields: dict[str, Any], name: str = "Event") -> Schema:
    return Schema("AVRO", json.dumps({"type": "record", "name": name, "namespace": "x", "fields": list(fields)}))


def binary(schema: Schema, value: Any) -> bytes:
    """Avro by fastavro alone."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(schema.text)), value)
    return out.getvalue()


ID = {"name": "id", "type": "string"}
TEXT = {"name": "text", "type": ["null", "string"], "default": None}
V1 = avro(ID, TEXT)
V2 = avro(ID, TEXT, {"name": "mood", "type": "string", "default": "calm"})


def reading(registry: Known | None, value: bytes, headers: Any = (), **settings: Any) -> Any:
    """What a topic with these settings makes of a value."""
    given = {"topic": "t", "format": "avro", "registry": None if registry is None else REGISTRY, **settings}
    decode = Decode({"t": TopicFormat(**given)}, registry or Known({}))
    decoded = decode(SourceRecord(value, b"key", headers, "t", 3, 7, 11))
    assert (decoded.key, decoded.headers, decoded.partition, decoded.offset, decoded.event_time_ms) == (
        b"key",
        headers,
        3,
        7,
        11,
    )
    return json.loads(decoded.value or b"")


def refused(registry: Known | None, value: bytes, headers: Any = (), **settings: Any) -> BadEvent:
    with pytest.raises(BadEvent) as caught:
        reading(registry, value, headers, **settings)
    return caught.value


LIST = avro({"name": "next", "type": ["null", "x.Event"], "default": None})
TREE = avro({"name": "below", "type": {"type": "map", "values": {"type": "array", "items": "Event"}}})


@pytest.mark.parametrize("schema", [LIST, TREE], ids=["list", "tree"])
def test_a_record_that_may_hold_itself_is_refused(schema: Schema) -> None:
    """A payload of a recursive schema could nest until the process ends: it is refused unread, and so are settings."""
    registry = Known({SchemaId("id", 1): schema})
    bad = refused(registry, frame(1, b"\x02" * 3_000_000 + b"\x00"))
    assert (bad.kind, "recursive: x.Event" in str(bad)) == ("format-schema", True)
    with pytest.raises(SettingsError, match="recursive"):
        parse(schema)


def test_a_type_that_is_used_twice_is_not_recursive() -> None:
    """Only what holds itself is refused: one type in two fields is common."""
    point = {"type": "record", "name": "Point", "fields": [{"name": "x", "type": "int"}]}
    schema = avro({"name": "from", "type": point}, {"name": "to", "type": "x.Point"})
    assert reading(None, b"\x02\x04", schema=schema) == {"from": {"x": 1}, "to": {"x": 2}}


def test_avro_with_the_schema_it_was_written_with() -> None:
    """A record's own schema, found by its id, is enough to read it; a null is a name that is not there."""
    known = Known({SchemaId("id", 5): V1})
    assert reading(known, frame(5, binary(V1, {"id": "a", "text": None}))) == {"id": "a"}
    assert reading(known, frame(5, binary(V1, {"id": "a", "text": "hi"}))) == {"id": "a", "text": "hi"}


def test_avro_that_an_older_writer_wrote() -> None:
    """The reader's newer schema fills in its default."""
    known = Known({SchemaId("id", 5): V1})
    read = reading(known, frame(5, binary(V1, {"id": "a", "text": "hi"})), schema=V2)
    assert read == {"id": "a", "text": "hi", "mood": "calm"}


def test_avro_that_a_newer_writer_wrote() -> None:
    """The reader's older schema skips what it does not know."""
    known = Known({SchemaId("id", 6): V2})
    read = reading(known, frame(6, binary(V2, {"id": "a", "text": "hi", "mood": "angry"})), schema=V1)
    assert read == {"id": "a", "text": "hi"}


def test_avro_of_both_in_one_topic() -> None:
    """Records of two versions of a schema lie in one topic, and each is read with its own."""
    known = Known({SchemaId("id", 5): V1, SchemaId("id", 6): V2})
    decode = Decode({"t": TopicFormat(topic="t", format="avro", registry=REGISTRY)}, known)
    old, new = binary(V1, {"id": "a", "text": "x"}), binary(V2, {"id": "b", "text": "y", "mood": "z"})
    values = [decode.value("t", value) for value in (frame(5, old), frame(6, new), frame(5, old))]
    assert [json.loads(value)["id"] for value in values] == ["a", "b", "a"]


def test_avro_that_the_reader_cannot_read() -> None:
    """A field that the reader needs and the writer lacks is an error of resolution, not a guess."""
    known = Known({SchemaId("id", 5): V1})
    needs = avro(ID, {"name": "must", "type": "string"})
    error = refused(known, frame(5, binary(V1, {"id": "a", "text": None})), schema=needs)
    assert error.kind == "format-resolution"
    assert "must" in str(error)


def test_avro_without_a_registry() -> None:
    """A topic without a registry holds payloads of the one schema of the settings."""
    assert reading(None, binary(V2, {"id": "a", "mood": "b"}), schema=V2) == {"id": "a", "mood": "b"}


@pytest.mark.parametrize("value", [b"", b"\x40abc", b"\x02a\x09", b"\x02a\x00left over", b"\x01"])
def test_bytes_that_are_no_avro(value: bytes) -> None:
    """A payload that is cut off, malformed or too long is bad data."""
    assert refused(None, value, schema=V1).kind == "format-data"


def test_avro_values_that_json_lacks() -> None:
    """Bytes become base64, times RFC 3339, decimals and UUIDs strings; what JSON has no word for is refused."""
    schema = avro(
        {"name": "b", "type": "bytes"},
        {"name": "t", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "d", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "u", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["ONE", "TWO"]}},
        {"name": "n", "type": {"type": "map", "values": ["null", "double"]}},
    )
    number = uuid.UUID(int=7)
    value = {
        "b": b"\xff\x00",
        "t": dt.datetime(2026, 3, 2, 9, 30, tzinfo=dt.UTC),
        "d": decimal.Decimal("1.50"),
        "u": number,
        "e": "TWO",
        "n": {"a": 1.5, "b": None},
    }
    read = reading(None, binary(schema, value), schema=schema)
    assert read == {
        "b": base64.b64encode(b"\xff\x00").decode(),
        "t": "2026-03-02T09:30:00Z",
        "d": "1.50",
        "u": str(number),
        "e": "TWO",
        "n": {"a": 1.5},
    }


def test_avro_schemas_that_refer_to_others() -> None:
    """A named type of another subject is found through the references."""
    below = Schema("AVRO", '{"type": "enum", "name": "Mood", "namespace": "x", "symbols": ["CALM", "ANGRY"]}')
    text = '{"type": "record", "name": "E", "namespace": "x", "fields": [{"name": "m", "type": "x.Mood"}]}'
    schema = Schema("AVRO", text, (("x.Mood", below),))
    known = Known({SchemaId("id", 1): schema})
    assert reading(known, frame(1, b"\x02")) == {"m": "ANGRY"}


PROTO_1 = (
    'syntax = "proto3"; package x; message Other { int32 n = 1; } message Event { string id = 1; string text = 2; }'
)
PROTO_2 = PROTO_1.replace(
    "string text = 2;", "string text = 2; int64 big = 3; message Inner { bool yes = 1; } Inner in = 4;"
)
REFERRING = 'syntax = "proto3"; package y; import "x.proto"; message Whole { x.Event event = 1; }'


def proto(text: str, *references: tuple[str, Schema]) -> Schema:
    return Schema("PROTOBUF", text, references)


@pytest.fixture(scope="module")
def compiled() -> dict[str, bytes]:
    """The schemas of this file, each compiled once."""
    return {text: protobuf.compile_schema(proto(text)) for text in (PROTO_1, PROTO_2)}


def message(compiled: bytes, name: str, value: Any) -> bytes:
    return protobuf.ProtobufWriter(compiled, name).write(value)


PROTO: dict[str, Any] = {"format": "protobuf"}


@pytest.mark.parametrize(
    ("prefix", "headers"),
    [
        (frame(5, b"", (1,)), ()),
        (b"\x00\x00\x00\x00\x05\x07\x0a\x05Event", ()),
        (b"\x00\x00\x00\x00\x05\x09\x0a\x07x.Event", ()),
        (b"", (("__value_schema_id", frame(5, b"", (1,))),)),
        (b"", (("apicurio.value.globalId", bytes(7) + b"\x05"), ("apicurio.protobuf.type", b"Event"))),
        (bytes(8) + b"\x05" + write_path((1,)), ()),
    ],
    ids=["path", "ref", "full-ref", "header", "apicurio-header", "8-bytes"],
)
def test_protobuf_by_every_way_to_name_a_message(
    compiled: dict[str, bytes], prefix: bytes, headers: tuple[tuple[str, bytes], ...]
) -> None:
    """A message that is not the first of its file is found by its path or its name, in the value or in a header."""
    known = Known({SchemaId(kind, 5): proto(PROTO_1) for kind in ("id", "global", "long")})  # type: ignore[arg-type]
    payload = message(compiled[PROTO_1], "Event", {"id": "a", "text": "hi"})
    assert reading(known, prefix + payload, headers, **PROTO) == {"id": "a", "text": "hi"}


def test_protobuf_that_a_newer_writer_wrote(compiled: dict[str, bytes]) -> None:
    """The reader's older message leaves out what it does not know; without one, all is read, 64-bit integers as strings."""
    known = Known({SchemaId("id", 6): proto(PROTO_2)})
    payload = message(compiled[PROTO_2], "Event", {"id": "a", "big": 2**60, "in": {"yes": True}})
    value = frame(6, payload, (1,))
    assert reading(known, value, **PROTO) == {"id": "a", "text": "", "big": str(2**60), "in": {"yes": True}}
    own: Any = {**PROTO, "schema": proto(PROTO_1), "descriptors": compiled[PROTO_1], "message": "Event"}
    assert reading(known, value, **own) == {"id": "a", "text": ""}


def test_protobuf_that_an_older_writer_wrote(compiled: dict[str, bytes]) -> None:
    """The reader's newer message gives what is not there its default; a message that is not there stays away."""
    known = Known({SchemaId("id", 5): proto(PROTO_1)})
    value = frame(5, message(compiled[PROTO_1], "Event", {"id": "a"}), (1,))
    own: Any = {**PROTO, "schema": proto(PROTO_2), "descriptors": compiled[PROTO_2], "message": "x.Event"}
    assert reading(known, value, **own) == {"id": "a", "text": "", "big": "0"}


def test_protobuf_of_another_message(compiled: dict[str, bytes]) -> None:
    """A record of another message than the topic's is refused, though its bytes could be read."""
    known = Known({SchemaId("id", 5): proto(PROTO_1)})
    own: Any = {**PROTO, "schema": proto(PROTO_1), "descriptors": compiled[PROTO_1], "message": "Event"}
    error = refused(known, frame(5, b"", (0,)), **own)
    assert error.kind == "format-resolution"
    assert "x.Other" in str(error)


def test_protobuf_without_a_registry(compiled: dict[str, bytes]) -> None:
    """A topic without a registry holds bare messages."""
    own: Any = {**PROTO, "schema": proto(PROTO_1), "descriptors": compiled[PROTO_1], "message": "Event"}
    assert reading(None, message(compiled[PROTO_1], "Event", {"id": "a"}), **own) == {"id": "a", "text": ""}


@pytest.mark.parametrize("payload", [b"\x0a\xff", b"\x0a\x02\xff\xfe", b"\x0f"])
def test_bytes_that_are_no_protobuf(compiled: dict[str, bytes], payload: bytes) -> None:
    """A payload that is cut off, not UTF-8 or malformed is bad data."""
    own: Any = {**PROTO, "schema": proto(PROTO_1), "descriptors": compiled[PROTO_1], "message": "Event"}
    assert refused(None, payload, **own).kind == "format-data"


def test_protobuf_schemas_that_refer_to_others(compiled: dict[str, bytes]) -> None:
    """An import is found through the references."""
    known = Known({SchemaId("id", 1): proto(REFERRING, ("x.proto", proto(PROTO_1)))})
    inner = message(compiled[PROTO_1], "Event", {"id": "a"})
    assert reading(known, frame(1, b"\x0a" + bytes([len(inner)]) + inner, (0,)), **PROTO) == {
        "event": {"id": "a", "text": ""}
    }


def test_a_schema_that_a_python_client_registered(compiled: dict[str, bytes]) -> None:
    """Confluent's Python client registers the compiled file in base64, and that is read too."""
    file = descriptor_pb2.FileDescriptorSet.FromString(compiled[PROTO_1]).file[-1]
    known = Known({SchemaId("id", 5): proto(base64.b64encode(file.SerializeToString()).decode())})
    value = frame(5, message(compiled[PROTO_1], "Event", {"id": "a"}), (1,))
    assert reading(known, value, **PROTO) == {"id": "a", "text": ""}


@pytest.mark.parametrize(
    ("schema", "format_", "words"),
    [
        (proto("message {"), "protobuf", "no Protobuf"),
        (proto('syntax = "proto3"; import "gone.proto"; message M {}'), "protobuf", "gone.proto"),
        (proto('syntax = "proto3"; message M {}', ("../../up.proto", proto(PROTO_1))), "protobuf", "no name of a file"),
        (Schema("AVRO", "{}"), "avro", "no Avro"),
        (Schema("AVRO", "{}"), "protobuf", "is AVRO"),
        (proto(PROTO_1), "avro", "is PROTOBUF"),
    ],
)
def test_a_schema_of_the_registry_that_is_none(schema: Schema, format_: str, words: str) -> None:
    """A record whose schema is none, or of another format, is bad, and the sentence says why."""
    error = refused(Known({SchemaId("id", 5): schema}), frame(5, b"\x00"), format=format_)
    assert error.kind == "format-schema"
    assert words in str(error)


def test_a_path_that_the_schema_lacks() -> None:
    """A path to no message is an error of the schema."""
    error = refused(Known({SchemaId("id", 5): proto(PROTO_1)}), frame(5, b"", (2,)), **PROTO)
    assert error.kind == "format-schema"


def test_an_id_that_the_registry_lacks() -> None:
    """A schema that is not there is the record's fault; a registry that does not answer is not."""
    known = Known({})
    error = refused(known, frame(9, b"x"))
    assert (error.kind, "id 9" in str(error)) == ("format-schema", True)
    known.answers = False
    with pytest.raises(Unavailable):
        reading(known, frame(9, b"x"))


def test_json_behind_a_prefix() -> None:
    """A JSON topic with a registry has its prefixes taken off, and no schema is asked for."""
    known = Known({})
    known.answers = False
    assert reading(known, frame(9, b'{"id": 1}'), format="json") == {"id": 1}
    assert refused(known, b'{"id": 1}', format="json").kind == "format-prefix"


def test_other_topics_and_tombstones_pass() -> None:
    """A record of a topic without a format, of a plain one, or without a value, is untouched."""
    formats = {"t": TopicFormat(topic="t", format="avro", schema=V1), "j": TopicFormat(topic="j")}
    decode, encode = Decode(formats), Encode(formats)
    for source in (SourceRecord(b"x", topic="u"), SourceRecord(b"x", topic="j"), SourceRecord(None, topic="t")):
        assert decode(source) is source
    for output in (OutputRecord("u", b"x"), OutputRecord("j", b"x"), OutputRecord("t", None)):
        assert encode(output) is output


def number(type_: SchemaType) -> dict[str, Any]:
    return {"registry": REGISTRY, "schema_id": 7, "topic": "t", "format": type_.lower()}


def test_what_is_written_is_read(compiled: dict[str, bytes]) -> None:
    """In each format, with and without a registry, what `Encode` writes `Decode` reads, also in another process."""
    value = {"id": "a", "text": "grüß dich"}
    json_schema = Schema("JSON", '{"title": "E", "type": "object"}')
    given: list[dict[str, Any]] = [
        {**number("AVRO"), "schema": V1},
        {**number("PROTOBUF"), "schema": proto(PROTO_1), "descriptors": compiled[PROTO_1], "message": "Event"},
        {**number("JSON"), "schema": json_schema},
    ]
    for settings in (*given, *({**one, "registry": None, "schema_id": None} for one in given)):
        formats = {"t": TopicFormat(**settings)}
        known = Known({SchemaId("id", 7): settings["schema"]})
        encode = pickle.loads(pickle.dumps(Encode(formats)))
        written = encode(OutputRecord("t", json.dumps(value).encode(), b"k", id="a"))
        assert (written.key, written.id) == (b"k", "a")
        assert json.loads(Decode(formats, known).value("t", written.value or b"")) == value


@pytest.mark.parametrize(
    "value", [b'{"id": 1}', b'{"id": "a", "more": 1}', b"{}", b"[]", b"not json", b'{"id": "a", "text": 5}']
)
def test_a_record_that_does_not_fit_is_refused(compiled: dict[str, bytes], value: bytes) -> None:
    """A wrong type, a field that the schema lacks, or no object at all is refused, not dropped or bent."""
    settings: list[dict[str, Any]] = [{"topic": "t", "format": "avro", "schema": V1}]
    if value != b"{}":  # proto3 has no required field
        settings.append(
            {
                "topic": "t",
                "format": "protobuf",
                "schema": proto(PROTO_1),
                "descriptors": compiled[PROTO_1],
                "message": "Event",
            }
        )
    for one in settings:
        with pytest.raises(BadReply) as caught:
            Encode({"t": TopicFormat(**one)}).value("t", value)
        assert caught.value.kind == "format-data"


def test_a_schema_that_is_not_registered_is_refused() -> None:
    """An encoder whose topic has a registry but no id yet is not made."""
    with pytest.raises(SettingsError, match="not registered"):
        Encode({"t": TopicFormat(topic="t", format="avro", schema=V1, registry=REGISTRY)})


def test_a_decoder_travels_without_what_it_holds() -> None:
    """A decoder is pickled as its settings, whatever it has read before."""
    decode = Decode({"t": TopicFormat(topic="t", format="avro", schema=V1)})
    decode.value("t", b"\x02a\x00")
    copy = pickle.loads(pickle.dumps(decode))
    assert json.loads(copy.value("t", b"\x02b\x00")) == {"id": "b"}
