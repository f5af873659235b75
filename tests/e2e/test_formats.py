"""Jobs on Flink whose topics are Avro and Protobuf in a real Kafka, with a real schema registry, Apicurio."""

from __future__ import annotations

import copy
import io
import json
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
class Lane:
    """One channel of the job in one form: its input, the topic of its replies, and the registry as another program uses it."""

    form: Any
    channel: str
    registry: str
    topics: Topics

    def __post_init__(self) -> None:
        self.topics = copy.copy(self.topics)
        self.topics.input = f"{self.topics.tag}.{self.channel}.events"
        kafka_topics.create_topics(self.topics.kafka, [self.topics.input], 4)

    @property
    def event(self) -> str:
        """The schema of its events."""
        return (SCHEMAS / f"event.{self.form.suffix}").read_text()

    @property
    def case_topic(self) -> str:
        return f"support.{self.channel}.replies"

    @property
    def subject(self) -> str:
        return f"{self.topics.input}-value"

    def register(self, schema: str) -> requests.Response:
        """The registry's answer to a next version of the input's schema."""
        body = {"schema": schema, "schemaType": self.form.kind}
        return requests.post(f"{self.registry}/subjects/{self.subject}/versions", json=body, timeout=10)

    def register_first(self) -> int:
        """Registers the schema of events, which from then on changes so that older events can be read; its id."""
        number = self.register(self.event).json()["id"]
        level = {"compatibility": "BACKWARD"}
        requests.put(f"{self.registry}/config/{self.subject}", json=level, timeout=10).raise_for_status()
        return int(number)

    def formats(self, reply: Path | None = None) -> dict[str, Any]:
        """Its part of formats.yaml; `reply` is another schema for what is written."""
        own = reply or SCHEMAS / f"reply.{self.form.suffix}"
        return {
            self.topics.input: {"format": self.form.format, "schema": f"{SCHEMAS}/event.{self.form.suffix}"},
            self.topics.renamed[self.case_topic]: {
                "format": self.form.format,
                "schema": str(own),
                "compatibility": "BACKWARD",
            },
        }

    def values(self, schema: str, number: int, numbers: range, size: int = 4) -> list[bytes]:
        """Events in the form, behind an id of 4 bytes or 8."""
        events = (json.loads(chat(one, "chat-")) if self.channel == "chat" else email(one) for one in numbers)
        prefix = b"\x00" + number.to_bytes(size) + self.form.path
        return [prefix + self.form.write(schema, event) for event in events]

    def replies(self) -> list[dict[str, Any]]:
        """The replies, read with the schema that the registry has for their topic; each prefix is the id of that."""
        subject = f"{self.topics.renamed[self.case_topic]}-value"
        latest = requests.get(f"{self.registry}/subjects/{subject}/versions/latest", timeout=10).json()
        prefix = b"\x00" + latest["id"].to_bytes(4) + self.form.path
        written = [message.value() for message in self.topics.read()[self.case_topic]]
        assert {value[: len(prefix)] for value in written} <= {prefix}
        return [self.form.read(latest["schema"], value[len(prefix) :]) for value in written]

    def replies_without_registry(self) -> list[dict[str, Any]]:
        """As `replies`, with the schema of the file."""
        schema = (SCHEMAS / f"reply.{self.form.suffix}").read_text()
        skip = 5 + len(self.form.path)
        return [self.form.read(schema, message.value()[skip:]) for message in self.topics.read()[self.case_topic]]


def has(found: list[dict[str, Any]], count: int) -> bool:
    """Whether these are the replies to the first `count` events of a channel, repeats aside."""
    return (
        {one["id"] for one in found} == {f"{found[0]['channel']}-{number}" for number in range(count)}
        if found
        else False
    )


def email(number: int) -> dict[str, Any]:
    """A good e-mail event."""
    raw = f"From: c@example.org\nSubject: Order {number}\nMessage-ID: <e{number}@x>\n\nWhere is order {number}?\n"
    return {**json.loads(chat(number, "email-")), "channel": "email", "text": None, "raw": raw}


@pytest.fixture
def chats(registry: str, topics: Topics) -> Lane:
    """Chats in Avro."""
    return Lane(Avro(), "chat", registry, topics)


@pytest.fixture
def emails(registry: str, topics: Topics) -> Lane:
    """E-mails in Protobuf."""
    return Lane(Protobuf(), "email", registry, topics)


@pytest.fixture
def start(engine: Stack, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts the job on the inputs of some lanes, with the formats given."""
    with ModelDouble(latency_ms=5.0) as double:
        models = write_models(tmp_path / "models.yaml", double.base_url)

        def begin(lanes: list[Lane], found: dict[str, Any]) -> Command:
            path = tmp_path / "formats.yaml"
            path.write_text(json.dumps({"registry": {"url": lanes[0].registry}, "topics": found}))
            inputs = ",".join(lane.topics.input for lane in lanes)
            words = (*lanes[0].topics.flags(tmp_path), f"--input=kafka://{lanes[0].topics.kafka}/{inputs}")
            return Command(engine, "--runner=FlinkRunner", f"--models={models}", f"--formats={path}", *words)

        yield begin


def test_avro_and_protobuf_come_in_and_go_out_while_their_schemas_change(
    chats: Lane, emails: Lane, start: Callable[..., Command], tmp_path: Path
) -> None:
    """Events of both prefixes and of a newer schema are answered in their topic's form; what cannot be read is kept as it came."""
    lanes = [chats, emails]
    firsts = [lane.register_first() for lane in lanes]
    formats = {**chats.formats(), **emails.formats()}
    bad = {}
    with start(lanes, formats) as command:
        command.flink_job()
        for lane, first in zip(lanes, firsts, strict=True):
            lane.topics.produce(lane.values(lane.event, first, range(2)))
        for lane in lanes:
            until("replies to events of the first schema", lambda lane=lane: has(lane.replies(), 2), 60.0)

        for lane, first in zip(lanes, firsts, strict=True):
            refused = lane.register(lane.form.newer(lane.event, lane.form.incompatible))
            assert refused.status_code in {409, 422}, refused.text
            newer = lane.form.newer(lane.event, lane.form.good)
            second = lane.register(newer).json()["id"]
            assert second != first
            lane.topics.produce(lane.values(newer, second, range(2, 4)))
            lane.topics.produce(lane.values(newer, _global_id(lane, second), range(4, 6), size=8))
            (whole,) = lane.values(lane.event, first, range(9, 10))
            unknown = b"\x00" + (999_999).to_bytes(4) + b"\x00" + lane.channel.encode()
            bad[lane.channel] = [b'{"id": "%s"}' % lane.channel.encode(), unknown, whole[:-9]]
            lane.topics.produce(bad[lane.channel], headers=HEADERS)
        dead = "support.dead-letters"
        until("all dead letters", lambda: len(chats.topics.read()[dead]) == 6, 60.0)
        for lane in lanes:
            until("all replies", lambda lane=lane: has(lane.replies(), 6), 60.0)
        command.interrupt()
        assert command.wait() == 0, command.output
    for lane in lanes:
        assert all(reply["reply"] and reply["channel"] == lane.channel for reply in lane.replies())
        _check_dead_letters(lane, bad[lane.channel])

    # The next start, whose replies would break their readers, is refused before anything is started.
    changed = tmp_path / "reply.proto"
    changed.write_text(Protobuf.newer((SCHEMAS / "reply.proto").read_text(), Protobuf.incompatible))
    with start(lanes, {**formats, **emails.formats(changed)}) as command:
        assert command.wait(60.0) == 2, command.output
        assert "not compatible" in command.output


def _global_id(lane: Lane, number: int) -> int:
    """Apicurio's own id, which stands in its prefix of 8 bytes, of the version that the Confluent interface calls `number`."""
    base = lane.registry.replace("/ccompat/v7", "/registry/v3")
    path = f"{base}/groups/default/artifacts/{lane.subject}/versions"
    versions = requests.get(path, timeout=10).json()["versions"]
    return int(next(one["globalId"] for one in versions if one["contentId"] == number))


def _check_dead_letters(lane: Lane, bad: list[bytes]) -> None:
    """Each is the record as it came, with its key, headers, reason and position."""
    dead = {message.value(): message for message in lane.topics.read()["support.dead-letters"]}
    kinds = (b"format-prefix", b"format-schema", b"format-data")
    for number, (value, kind) in enumerate(zip(bad, kinds, strict=True), start=1):
        message = dead[value]
        assert message.key() == b"k%d" % number
        assert message.headers()[:1] == HEADERS
        facts = {name.removeprefix("__connect.errors."): content for name, content in message.headers()[1:]}
        assert (facts["stage"], facts["exception.class.name"]) == (b"parse", kind), facts
        assert facts["topic"].decode() == lane.topics.input
        found = _record_at(lane, int(facts["partition"]), int(facts["offset"]))
        assert found == value, "the position is that of the record"


def _record_at(lane: Lane, partition: int, offset: int) -> bytes | None:
    client = Consumer({"bootstrap.servers": lane.topics.kafka, "group.id": "at", "enable.auto.commit": "false"})
    try:
        client.assign([TopicPartition(lane.topics.input, partition, offset)])
        (message,) = client.consume(1, 10.0)
        return message.value()  # type: ignore[no-any-return]
    finally:
        client.close()


def test_a_registry_that_goes_down_loses_nothing(chats: Lane, start: Callable[..., Command], engine: Stack) -> None:
    """Schemas that were seen go on without it; an event of another waits until it is back, and is no dead letter."""
    first = chats.register_first()
    newer = chats.form.newer(chats.event, chats.form.good)
    second = chats.register(newer).json()["id"]
    with start([chats], chats.formats()) as command:
        job = command.flink_job()
        # Enough for every worker to have seen the schema.
        chats.topics.produce(chats.values(chats.event, first, range(16)))
        until("the first replies", lambda: has(chats.replies_without_registry(), 16), 60.0)
        engine.down(["registry"])
        try:
            chats.topics.produce(chats.values(chats.event, first, range(16, 18)))
            until("replies without it", lambda: has(chats.replies_without_registry(), 18), 60.0)
            chats.topics.produce(chats.values(newer, second, range(18, 19)))
            until("the bundle fails", lambda: restarts(engine, job) > 0, 60.0)
        finally:
            engine.up(["registry"])
        until("the event that waited", lambda: has(chats.replies(), 19), 90.0)
        command.interrupt()
        assert command.wait() == 0, command.output
    assert "support.dead-letters" not in chats.topics.read()


def test_samples_are_fed_in_the_format_of_their_topic(
    engine: Stack, topics: Topics, registry: str, tmp_path: Path
) -> None:
    """What fits the schema is encoded, what is malformed on purpose is sent as it is, and a watch reads a topic back."""
    fed = f"{topics.tag}.fed"
    kafka, dead = topics.kafka, topics.renamed[SUPPORT.dead_letter_topic]
    kafka_topics.create_topics(kafka, [fed], 1)
    path = tmp_path / "formats.yaml"
    topic = f"{{format: avro, schema: {SCHEMAS}/event.avsc}}"
    path.write_text(f"registry: {{url: '{registry}'}}\ntopics: {{{fed}: {topic}}}\n")
    formats = register_schemas(read_formats(path), [fed])
    watch = KafkaWatch(kafka, [fed], dead, {}, decode=Decode(formats))
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
