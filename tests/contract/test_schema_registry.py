"""A schema registry, asked by `transforms.formats.registry`: the same suite on the double and on a real Apicurio Registry."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import fastavro
import pytest
import requests
from urllib3.util import Retry

from transforms.errors import SettingsError, Unavailable, UnknownSchema
from transforms.formats import protobuf
from transforms.formats.codec import Decode, Encode
from transforms.formats.register import register_schemas
from transforms.formats.registry import UNKNOWN_MEMORY_S, Registry, RegistrySettings, Schema
from transforms.formats.registry_double import RegistryDouble
from transforms.formats.settings import TopicFormat
from transforms.formats.wire import SchemaId
from transforms.records import OutputRecord, SourceRecord

PROTO = 'syntax = "proto3"; package x; message First { int32 n = 1; } message Event { string id = 1; }'


def avro(name: str, *fields: str) -> Schema:
    """A record of strings; ``field?`` has a default."""
    listed = [
        {"name": field.rstrip("?"), "type": "string", **({"default": "-"} if field.endswith("?") else {})}
        for field in fields
    ]
    return Schema("AVRO", json.dumps({"type": "record", "name": name, "namespace": "x", "fields": listed}))


@pytest.fixture(scope="module", params=["double", pytest.param("apicurio", marks=pytest.mark.e2e)])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a registry."""
    if request.param == "double":
        with RegistryDouble() as double:
            yield double.url
        return
    from runners.local.ports import Ports
    from runners.local.stack import Stack

    stack = Stack(tmp_path_factory.mktemp("stack"), Ports.free())
    try:
        stack.up(["registry"])
        yield stack.endpoints.registry
    finally:
        stack.down(wipe=True)


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    found = Registry(RegistrySettings(url))
    yield found
    found.close()


@pytest.fixture
def subject() -> str:
    """A subject that nobody has used."""
    return f"s-{uuid.uuid4().hex}-value"


def test_what_is_registered_is_found(registry: Registry, url: str, subject: str) -> None:
    """A schema gets an id, the same one again; the id gives the schema back, to another client too."""
    schema = avro("Event", "id")
    assert not registry.has_subject(subject)
    assert registry.id_of(subject, schema) is None
    number = registry.register(subject, schema)
    assert registry.register(subject, schema) == registry.id_of(subject, schema) == number
    assert registry.has_subject(subject)
    assert json.loads(Registry(RegistrySettings(url)).schema(SchemaId("id", number)).text) == json.loads(schema.text)


def test_a_schema_changes_only_as_its_level_allows(registry: Registry, subject: str) -> None:
    """At BACKWARD a field with a default may be added, one without is refused by the check and by the registration."""
    registry.register(subject, avro("Event", "id"))
    registry.set_level(subject, "BACKWARD")
    assert registry.is_compatible(subject, avro("Event", "id", "mood?"))[0]
    broken = avro("Event", "id", "mood")
    assert not registry.is_compatible(subject, broken)[0]
    with pytest.raises(SettingsError, match=subject):
        registry.register(subject, broken)
    registry.set_level(subject, "NONE")
    assert registry.is_compatible(subject, broken)[0]


def test_a_subject_that_does_not_exist_takes_any(registry: Registry, subject: str) -> None:
    """Nothing is incompatible with nothing."""
    assert registry.is_compatible(subject, avro("Event", "id"))[0]


def test_an_unknown_id_is_told_from_a_registry_that_is_down(registry: Registry, url: str) -> None:
    """An id that is not there is the record's fault; no answer is not."""
    with pytest.raises(UnknownSchema, match="id 999999"):
        registry.schema(SchemaId("id", 999_999))
    with pytest.raises(UnknownSchema, match="GUID"):
        registry.schema(SchemaId("guid", str(uuid.uuid4())))
    with pytest.raises(UnknownSchema, match="global id 999999"):
        registry.schema(SchemaId("global", 999_999))
    down = Registry(RegistrySettings("http://127.0.0.1:9"), retries=Retry(0))
    with pytest.raises(Unavailable, match="does not answer"):
        down.schema(SchemaId("id", 1))


def test_a_registry_is_told_from_another_server(registry: Registry, url: str) -> None:
    """An address at which a registry answers passes the check; a wrong path on the same server, and silence, do not."""
    registry.check()
    with pytest.raises(Unavailable, match="no schema registry"):
        Registry(RegistrySettings(f"{url}/elsewhere")).check()
    with pytest.raises(Unavailable, match="does not answer"):
        Registry(RegistrySettings("http://127.0.0.1:9"), retries=Retry(0)).check()


def test_a_topic_that_is_only_read_needs_its_registry_at_the_start(url: str) -> None:
    """A start that reads Avro asks the registry whether it is there, and is refused where it is not."""
    there = TopicFormat(topic="t", format="avro", registry=RegistrySettings(url))
    assert register_schemas({"t": there}, []) == {"t": there}
    down = TopicFormat(topic="t", format="avro", registry=RegistrySettings("http://127.0.0.1:9"))
    with pytest.raises(SettingsError, match=r"topic t needs its registry\. .* does not answer"):
        register_schemas({"t": down}, [], lambda settings: Registry(settings, retries=Retry(0)))


def test_protobuf_and_what_it_imports(registry: Registry, subject: str) -> None:
    """A schema's references come with it, so that it compiles; Apicurio's own ids give the same."""
    below = f"below-{subject}"
    registry.register(below, Schema("PROTOBUF", PROTO))
    text = 'syntax = "proto3"; package y; import "x.proto"; message Whole { x.Event event = 1; }'
    body = {
        "schemaType": "PROTOBUF",
        "schema": text,
        "references": [{"name": "x.proto", "subject": below, "version": 1}],
    }
    base = registry._url
    number = requests.post(f"{base}/subjects/{subject}/versions", json=body, timeout=10).json()["id"]
    schema = registry.schema(SchemaId("id", number))
    assert (schema.type, [name for name, _ in schema.references]) == ("PROTOBUF", ["x.proto"])
    assert protobuf.Messages(protobuf.compile_schema(schema)).names() == ["y.Whole"]


def test_an_8_byte_id_finds_its_schema(registry: Registry, subject: str) -> None:
    """Apicurio's content ids are those of the Confluent interface, and lead to the same schema."""
    number = registry.register(subject, Schema("PROTOBUF", PROTO))
    assert registry.schema(SchemaId("content", number)) == registry.schema(SchemaId("id", number))


def formats_of(url: str, topic: str) -> dict[str, TopicFormat]:
    """An Avro topic and a Protobuf topic."""
    settings = RegistrySettings(url, long_ids="content")
    compiled = protobuf.compile_schema(Schema("PROTOBUF", PROTO))
    return {
        f"{topic}.avro": TopicFormat(
            topic=f"{topic}.avro",
            format="avro",
            schema=avro("Event", "id"),
            registry=settings,
            compatibility="BACKWARD",
        ),
        f"{topic}.proto": TopicFormat(
            topic=f"{topic}.proto",
            format="protobuf",
            schema=Schema("PROTOBUF", PROTO),
            descriptors=compiled,
            message="Event",
            registry=settings,
        ),
    }


def test_a_record_goes_out_and_comes_in(url: str, subject: str) -> None:
    """Schemas are registered before a job, ids go out with the records, and a reader without a schema of its own finds them."""
    formats = register_schemas(formats_of(url, subject), [f"{subject}.avro", f"{subject}.proto"])
    encode = Encode(formats)
    reading = {
        topic: TopicFormat(topic=topic, format=found.format, registry=found.registry)
        for topic, found in formats.items()
    }
    decode = Decode(reading)
    for topic, found in formats.items():
        assert found.schema_id is not None
        value = encode(OutputRecord(topic, b'{"id":"a"}')).value or b""
        assert value[:5] == b"\x00" + found.schema_id.to_bytes(4)
        assert json.loads(decode(SourceRecord(value, topic=topic)).value or b"") == {"id": "a"}
        longer = b"\x00" + found.schema_id.to_bytes(8) + value[5:]
        assert json.loads(decode(SourceRecord(longer, topic=topic)).value or b"") == {"id": "a"}


def test_an_incompatible_schema_stops_the_start(url: str, subject: str) -> None:
    """The second start, with a schema that breaks the level the first one set, is refused and registers nothing."""
    topic = f"{subject}.avro"
    formats = {topic: formats_of(url, subject)[topic]}
    register_schemas(formats, [topic])
    changed = {
        topic: TopicFormat(
            topic=topic, format="avro", schema=avro("Event", "id", "must"), registry=formats[topic].registry
        )
    }
    with pytest.raises(SettingsError, match="not compatible with the latest"):
        register_schemas(changed, [topic])
    assert Registry(RegistrySettings(url)).id_of(f"{topic}-value", avro("Event", "id", "must")) is None
    evolved = {
        topic: TopicFormat(
            topic=topic, format="avro", schema=avro("Event", "id", "may?"), registry=formats[topic].registry
        )
    }
    first, second = (register_schemas(one, [topic])[topic].schema_id for one in (formats, evolved))
    assert first != second


def test_a_schema_that_must_be_there_already(url: str, subject: str) -> None:
    """With register: false nothing is registered, and a schema that is missing stops the start."""
    topic = f"{subject}.avro"
    settings = RegistrySettings(url)
    found = TopicFormat(topic=topic, format="avro", schema=avro("Event", "id"), registry=settings, register=False)
    with pytest.raises(SettingsError, match="register it first"):
        register_schemas({topic: found}, [topic])
    Registry(settings).register(f"{topic}-value", avro("Event", "id"))
    assert register_schemas({topic: found}, [topic])[topic].schema_id


def test_a_registry_is_asked_once() -> None:
    """A schema is fetched once, however many records name it, and one that is not there is not asked for again at once."""
    moment = 0.0
    with RegistryDouble() as double:
        registry = Registry(RegistrySettings(double.url), monotonic_s=lambda: moment)
        number = registry.register("s", avro("Event", "id"))
        double.requests.clear()
        for _ in range(3):
            registry.schema(SchemaId("id", number))
            with pytest.raises(UnknownSchema):
                registry.schema(SchemaId("id", 77))
        assert len(double.requests) == 2
        moment = UNKNOWN_MEMORY_S
        with pytest.raises(UnknownSchema):
            registry.schema(SchemaId("id", 77))
        assert len(double.requests) == 3


def test_a_guid_finds_its_schema() -> None:
    """The GUID of the newer prefix leads to the schema. (Apicurio 3.0 has none.)"""
    schema = avro("Event", "id")
    with RegistryDouble() as double:
        registry = Registry(RegistrySettings(double.url))
        guid = double.guid_of(registry.register("s", schema))
        out = io.BytesIO()
        fastavro.schemaless_writer(out, json.loads(schema.text), {"id": "a"})
        settings = TopicFormat(topic="t", format="avro", registry=RegistrySettings(double.url))
        decode = Decode({"t": settings})
        assert decode.value("t", b"\x01" + uuid.UUID(guid).bytes + out.getvalue()) == b'{"id":"a"}'
        headers = (("__value_schema_id", b"\x01" + uuid.UUID(guid).bytes),)
        assert decode.value("t", out.getvalue(), headers) == b'{"id":"a"}'


def test_a_registry_that_stumbles_is_asked_again() -> None:
    """Answers of the passing kind are repeated; when they go on, the registry counts as down."""
    with RegistryDouble() as double:
        patient = Registry(
            RegistrySettings(double.url), retries=Retry(3, status_forcelist=(503,), allowed_methods=None)
        )
        double.fail_next(503, 503)
        assert patient.register("s", avro("Event", "id")) == 1
        hasty = Registry(RegistrySettings(double.url), retries=Retry(0))
        double.fail_next(500)
        with pytest.raises(Unavailable, match="status 500: out of order"):
            hasty.schema(SchemaId("id", 1))


def test_secrets_go_to_the_registry_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """User and password, or a token, come from variables and are sent; a redirect is not followed with them."""
    monkeypatch.setenv("FARCALL_TEST_SECRET", "hush")
    secret = "${env:FARCALL_TEST_SECRET}"
    with RegistryDouble() as double:
        Registry(RegistrySettings(double.url, token=secret)).has_subject("s")
        assert double.authorization == "Bearer hush"
        Registry(RegistrySettings(double.url, user="me", password=secret)).has_subject("s")
        assert double.authorization == requests.auth._basic_auth_str("me", "hush")
        double.fail_next(302)
        with pytest.raises(Unavailable, match="status 302"):
            Registry(RegistrySettings(double.url, token=secret)).schema(SchemaId("id", 1))
