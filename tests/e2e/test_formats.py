"""Jobs on Flink whose topics are Avro and Protobuf in a real Kafka, with a real schema registry, Apicurio."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import pytest
import requests
from confluent_kafka import Consumer, TopicPartition
from google.protobuf import json_format, message_factory

from pipeline import feed
from pipeline.cases.support.case import SUPPORT
from pipeline.outputs import KafkaWatch
from runners.local import topics as kafka_topics
from runners.local.stack import Stack
from tests.e2e.engine import ROOT, Command, Topics, chat, restarts, until, write_models
from transforms.formats import protobuf
from transforms.formats.codec import Decode, Encode
from transforms.formats.register import register_schemas
from transforms.formats.registry import Schema
from transforms.formats.settings import read_formats
from transforms.remote.model_double import ModelDouble

pytestmark = pytest.mark.e2e

SCHEMAS = ROOT / "pipeline" / "cases" / "support" / "schemas"
REPLIES = "support.chat.replies"
HEADERS = [("trace", b"1")]


@pytest.fixture(scope="module")
def registry(engine: Stack) -> Iterator[str]:
    """The base URL of a schema registry beside Kafka and Flink."""
    engine.up(["registry"])
    yield engine.endpoints.registry
    engine.down(["registry"])


class Avro:
    """Avro by `fastavro` alone: what another program writes and reads."""

    format, suffix, kind = "avro", "avsc", "AVRO"
    path = b""

    @staticmethod
    def newer(text: str, field: str) -> str:
        """The schema with one more field, before the others: whoever reads it as the older one stumbles."""
        schema = json.loads(text)
        return json.dumps({**schema, "fields": [json.loads(field), *schema["fields"]]})

    good = '{"name": "priority", "type": "string", "default": "normal"}'
    incompatible = '{"name": "priority", "type": "string"}'

    @staticmethod
    def write(text: str, value: dict[str, Any]) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(text)), value)
        return out.getvalue()

    @staticmethod
    def read(text: str, payload: bytes) -> dict[str, Any]:
        found: Any = fastavro.schemaless_reader(io.BytesIO(payload), fastavro.parse_schema(json.loads(text)), None)
        return dict(found)


class Protobuf:
    """Protobuf by Google's library alone, with the one message of the file, whose path is a zero."""

    format, suffix, kind = "protobuf", "proto", "PROTOBUF"
    path = b"\x00"

    @staticmethod
    def newer(text: str, field: str) -> str:
        """The schema with its first field changed, or one more behind it."""
        return text.replace("string id = 1;", field, 1)

    good = "string id = 1; string priority = 40;"
    incompatible = "int32 id = 1;"

    @staticmethod
    def _message(text: str) -> Any:
        found = protobuf.Messages(protobuf.compile_schema(Schema("PROTOBUF", text)))
        return message_factory.GetMessageClass(found.at((0,)))()

    @classmethod
    def write(cls, text: str, value: dict[str, Any]) -> bytes:
        return bytes(json_format.ParseDict(value, cls._message(text)).SerializeToString())

    @classmethod
    def read(cls, text: str, payload: bytes) -> dict[str, Any]:
        message = cls._message(text)
        message.ParseFromString(payload)
        return json_format.MessageToDict(message, preserving_proto_field_name=True)


@dataclass
class World:
    """A job's topics in one form, and the registry as another program would use it."""

    form: Any
    registry: str
    topics: Topics

    @property
    def event(self) -> str:
        return (SCHEMAS / f"event.{self.form.suffix}").read_text()

    @property
    def subject(self) -> str:
        return f"{self.topics.input}-value"

    def register(self, schema: str) -> requests.Response:
        """The registry's answer to a next version of the input's schema."""
        body = {"schema": schema, "schemaType": self.form.kind}
        return requests.post(f"{self.registry}/subjects/{self.subject}/versions", json=body, timeout=10)

    def write_formats(self, folder: Path, reply: Path) -> Path:
        """A formats.yaml: events are read, and replies to chats written, in the form."""
        found = {
            self.topics.input: {"format": self.form.format, "schema": f"{SCHEMAS}/event.{self.form.suffix}"},
            self.topics.renamed[REPLIES]: {
                "format": self.form.format,
                "schema": str(reply),
                "compatibility": "BACKWARD",
            },
        }
        path = folder / "formats.yaml"
        path.write_text(json.dumps({"registry": {"url": self.registry}, "topics": found}))
        return path

    def values(self, schema: str, number: int, numbers: range, size: int = 4) -> list[bytes]:
        """Events in the form, behind an id of 4 bytes or 8."""
        return [
            b"\x00" + number.to_bytes(size) + self.form.path + self.form.write(schema, json.loads(chat(one)))
            for one in numbers
        ]

    def replies(self) -> list[dict[str, Any]]:
        """The replies, read with the schema that the registry has for their topic, after their prefix was compared with its id."""
        subject = f"{self.topics.renamed[REPLIES]}-value"
        latest = requests.get(f"{self.registry}/subjects/{subject}/versions/latest", timeout=10).json()
        prefix = b"\x00" + latest["id"].to_bytes(4) + self.form.path
        written = [message.value() for message in self.topics.read()[REPLIES]]
        assert {value[: len(prefix)] for value in written} <= {prefix}
        return [self.form.read(latest["schema"], value[len(prefix) :]) for value in written]

    def count(self) -> int:
        """How many replies and dead letters there are."""
        return sum(map(len, self.topics.read().values()))


@pytest.fixture(params=[Avro, Protobuf], ids=lambda form: form.format)
def world(request: pytest.FixtureRequest, registry: str, topics: Topics) -> World:
    return World(request.param(), registry, topics)


@pytest.fixture
def start(world: World, engine: Stack, tmp_path: Path) -> Iterator[Callable[[Path], Command]]:
    """Starts the job with a schema for its replies."""
    with ModelDouble(latency_ms=5.0) as double:
        models = write_models(tmp_path / "models.yaml", double.base_url)

        def begin(reply: Path) -> Command:
            formats = world.write_formats(tmp_path, reply)
            words = (f"--models={models}", f"--formats={formats}", *world.topics.flags(tmp_path))
            return Command(engine, "--runner=FlinkRunner", *words)

        yield begin


def ids(found: list[dict[str, Any]]) -> list[str]:
    return sorted({one["id"] for one in found})


def test_a_job_reads_and_writes_its_form_while_the_schema_changes(
    world: World, start: Callable[[Path], Command], tmp_path: Path
) -> None:
    """Events of both prefixes and of a newer schema are answered in the form of the topic; what cannot be read is kept as it came."""
    first = world.register(world.event).json()["id"]
    level = {"compatibility": "BACKWARD"}
    requests.put(f"{world.registry}/config/{world.subject}", json=level, timeout=10).raise_for_status()
    newer = world.form.newer(world.event, world.form.good)
    reply = SCHEMAS / f"reply.{world.form.suffix}"
    with start(reply) as command:
        command.flink_job()
        world.topics.produce(world.values(world.event, first, range(2)))
        until("replies to events of the first schema", lambda: len(world.replies()) == 2, 60.0)

        refused = world.register(world.form.newer(world.event, world.form.incompatible))
        assert refused.status_code in {409, 422}, refused.text
        second = world.register(newer).json()["id"]
        assert second != first
        world.topics.produce(world.values(newer, second, range(2, 4)))
        own = _global_id(world, second)
        world.topics.produce(world.values(newer, own, range(4, 6), size=8))
        (whole,) = world.values(world.event, first, range(9, 10))
        bad = [b'{"id": "json"}', b"\x00" + (999_999).to_bytes(4) + b"\x00x", whole[:9]]
        world.topics.produce(bad, headers=HEADERS)
        until("all outcomes", lambda: world.count() >= 9, 60.0)
        command.interrupt()
        assert command.wait() == 0, command.output
    replies = world.replies()
    assert ids(replies) == [f"e{number}" for number in range(6)]
    assert all(reply["reply"] and reply["channel"] == "chat" for reply in replies)
    _check_dead_letters(world, bad)

    # The next start, whose replies would break their readers, is refused before anything is started.
    changed = tmp_path / reply.name
    changed.write_text(world.form.newer(reply.read_text(), world.form.incompatible))
    with start(changed) as command:
        assert command.wait(60.0) == 2, command.output
        assert "not compatible" in command.output
    assert len(world.replies()) == len(replies)


def _global_id(world: World, number: int) -> int:
    """Apicurio's own id, which stands in its prefix of 8 bytes, of the version that the Confluent interface calls `number`."""
    base = world.registry.replace("/ccompat/v7", "/registry/v3")
    path = f"{base}/groups/default/artifacts/{world.subject}/versions"
    versions = requests.get(path, timeout=10).json()["versions"]
    return int(next(one["globalId"] for one in versions if one["contentId"] == number))


def _check_dead_letters(world: World, bad: list[bytes]) -> None:
    """Each is the record as it came, with its key, headers, reason and position."""
    dead = {message.value(): message for message in world.topics.read()["support.dead-letters"]}
    assert dead.keys() == set(bad)
    kinds = (b"format-prefix", b"format-schema", b"format-data")
    for number, (value, kind) in enumerate(zip(bad, kinds, strict=True), start=1):
        message = dead[value]
        assert message.key() == b"k%d" % number
        assert message.headers()[:1] == HEADERS
        facts = {name.removeprefix("__connect.errors."): content for name, content in message.headers()[1:]}
        assert (facts["stage"], facts["exception.class.name"]) == (b"parse", kind), facts
        assert facts["exception.message"]
        found = _record_at(world, facts["topic"].decode(), int(facts["partition"]), int(facts["offset"]))
        assert found == value, "the position is that of the record"


def _record_at(world: World, topic: str, partition: int, offset: int) -> bytes | None:
    client = Consumer({"bootstrap.servers": world.topics.kafka, "group.id": "at", "enable.auto.commit": "false"})
    try:
        client.assign([TopicPartition(topic, partition, offset)])
        (message,) = client.consume(1, 10.0)
        return message.value()  # type: ignore[no-any-return]
    finally:
        client.close()


@pytest.mark.parametrize("world", [Avro], indirect=True, ids=["avro"])
def test_a_registry_that_goes_down_loses_nothing(world: World, start: Callable[[Path], Command], engine: Stack) -> None:
    """Schemas that were seen go on without it; an event of another waits until it is back, and is no dead letter."""
    first = world.register(world.event).json()["id"]
    newer = world.form.newer(world.event, world.form.good)
    second = world.register(newer).json()["id"]
    with start(SCHEMAS / "reply.avsc") as command:
        job = command.flink_job()
        # One in each of the first partitions, so that every worker has seen the schema.
        world.topics.produce(world.values(world.event, first, range(8)))
        until("the first replies", lambda: len(ids(_replies_without_registry(world))) == 8, 60.0)
        engine.down(["registry"])
        try:
            world.topics.produce(world.values(world.event, first, range(8, 10)))
            until("replies without it", lambda: len(ids(_replies_without_registry(world))) == 10, 60.0)
            world.topics.produce(world.values(newer, second, range(10, 11)))
            until("the bundle fails", lambda: restarts(engine, job) > 0, 60.0)
        finally:
            engine.up(["registry"])
        until("the event that waited", lambda: "e10" in ids(world.replies()), 90.0)
        command.interrupt()
        assert command.wait() == 0, command.output
    assert ids(world.replies()) == sorted(f"e{number}" for number in range(11))
    assert "support.dead-letters" not in world.topics.read()


def _replies_without_registry(world: World) -> list[dict[str, Any]]:
    schema = (SCHEMAS / f"reply.{world.form.suffix}").read_text()
    return [world.form.read(schema, message.value()[5:]) for message in world.topics.read()[REPLIES]]


def test_samples_are_fed_in_the_format_of_their_topic(engine: Stack, registry: str, tmp_path: Path) -> None:
    """What fits the schema is encoded, what is malformed on purpose is sent as it is, and a watch reads a topic back."""
    fed = f"fed-{uuid.uuid4().hex[:6]}"
    kafka = engine.endpoints.kafka
    kafka_topics.create_topics(kafka, [fed], 1)
    path = tmp_path / "formats.yaml"
    topic = f"{{format: avro, schema: {SCHEMAS}/event.avsc}}"
    path.write_text(f"registry: {{url: '{registry}'}}\ntopics: {{{fed}: {topic}}}\n")
    formats = register_schemas(read_formats(path), [fed])
    watch = KafkaWatch(kafka, [fed], SUPPORT.dead_letter_topic, {}, decode=Decode(formats))
    try:
        (tmp_path / "some.jsonl").write_bytes(chat(7) + b"\n")
        assert feed.feed(tmp_path / "some.jsonl", kafka, fed, Encode(formats)).records == 1
        seen = until("the record", watch.poll, 20.0)
    finally:
        watch.close()
    assert [record.identity for record in seen] == ["id e7"]
    (tmp_path / "some.jsonl").write_bytes(b"not json\n")
    feed.feed(tmp_path / "some.jsonl", kafka, fed, Encode(formats))
    client = Consumer({"bootstrap.servers": kafka, "group.id": fed, "enable.auto.commit": "false"})
    try:
        client.assign([TopicPartition(fed, 0, 0)])
        first, second = (message.value() for message in client.consume(2, 10.0))
    finally:
        client.close()
    assert (first[:1], second) == (b"\x00", b"not json")
