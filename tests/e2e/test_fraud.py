"""The fraud job on the real engine: Kafka, Flink, Python workers, and MLServer with the model that the repository trains."""

from __future__ import annotations

import io
import json
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest
import requests
from confluent_kafka import Consumer, Producer, TopicPartition

from pipeline.cases.fraud import case as fraud_case
from pipeline.cases.fraud.case import FRAUD
from pipeline.cases.fraud.thresholds import decide, thresholds
from runners.local import mlserver, topics
from runners.local.stack import Stack
from tests.e2e.engine import Command, until

pytestmark = pytest.mark.e2e

SCHEMAS = Path(fraud_case.__file__).with_name("schemas")
EVENTS = [json.loads(line) for line in FRAUD.samples.read_bytes().splitlines()[:60] if line.startswith(b'{"id":"page-')]
LABELS = {
    one["id"]: one["label"]
    for one in map(json.loads, FRAUD.feedback.samples.read_bytes().splitlines())
    if isinstance(one["label"], bool)
}


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """MLServer with the trained model: its base URL."""
    trained = FRAUD.trained_model
    file = mlserver.trained(trained.name, trained.program, trained.data)
    with mlserver.serve({trained.name: file}) as server:
        yield server.base_url


class Fraud:
    """The topics of one run, by the case's own names."""

    def __init__(self, stack: Stack) -> None:
        self.tag = f"f{uuid.uuid4().hex[:6]}"
        self.kafka = stack.endpoints.kafka
        self.events, self.labels = f"{self.tag}.events", f"{self.tag}.labels"
        self.renamed = {name: f"{self.tag}.{name}" for name in FRAUD.all_topics}
        topics.create_topics(self.kafka, [self.events, self.labels, *self.renamed.values()], 2)

    def flags(self, folder: Path, url: str) -> list[str]:
        own = {"protocol": "open-inference", "model": "phishing", "options": {"outputs": ["predict_proba"]}}
        schema = str(SCHEMAS / "label.avsc")
        files = {
            "formats": {"topics": {self.labels: {"format": "avro", "schema": schema}}},
            "models": {"models": {"score": {"endpoints": [url], "timeout_s": 20, **own}}},
            "topics": self.renamed,
            "kafka_config": {"consumer": {"group.id": self.tag}},
        }
        for name, content in files.items():
            (folder / f"{name}.yaml").write_text(json.dumps(content))
        ends = [f"--input=kafka://{self.kafka}/{self.events}", f"--feedback=kafka://{self.kafka}/{self.labels}"]
        return [*ends, f"--output=kafka://{self.kafka}", *(f"--{name}={folder / name}.yaml" for name in files)]

    def produce(self, topic: str, values: list[bytes]) -> None:
        # To one partition of two: an empty one must not hold the time of the stream.
        producer = Producer({"bootstrap.servers": self.kafka})
        for value in values:
            producer.produce(topic, value=value, partition=0)
        assert producer.flush(20.0) == 0

    def read(self) -> dict[str, list[Any]]:
        """Everything in the output topics; dead letters as their headers."""
        consumer = Consumer({"bootstrap.servers": self.kafka, "group.id": "read", "enable.auto.commit": "false"})
        names = {renamed: name for name, renamed in self.renamed.items()}
        found: dict[str, list[Any]] = defaultdict(list)
        left = {}
        for renamed in names:
            for number in range(2):
                end = consumer.get_watermark_offsets(TopicPartition(renamed, number), timeout=10.0)[1]
                if end:
                    left[renamed, number] = end
        consumer.assign([TopicPartition(name, number, 0) for name, number in left])
        try:
            while left:
                messages = consumer.consume(500, 5.0)
                assert messages, f"not read: {left}"
                for message in messages:
                    assert message.error() is None
                    name = names[message.topic()]
                    dead = name.endswith("dead-letters")
                    found[name].append(dict(message.headers()) if dead else json.loads(message.value()))
                    if message.offset() + 1 >= left.get((message.topic(), message.partition()), 0):
                        left.pop((message.topic(), message.partition()), None)
        finally:
            consumer.close()
        return found

    def decisions(self) -> dict[str, dict[str, Any]]:
        found = self.read()
        return {one["id"]: {**one, "topic": topic} for topic in FRAUD.output_topics for one in found[topic]}


def label(event_id: str, value: bool | None = None) -> bytes:
    """A label in Avro; the event's own unless another is given."""
    found = LABELS[event_id] if value is None else value
    written = io.BytesIO()
    record = {"id": event_id, "at": "2026-11-01T20:00:00Z", "label": found}
    fastavro.schemaless_writer(written, fastavro.schema.load_schema(SCHEMAS / "label.avsc"), record)
    return written.getvalue()


def score_of(url: str, row: list[float]) -> float:
    """What the model server itself says of a row, asked without our client."""
    tensor = {"name": "features", "shape": [1, len(row)], "datatype": "FP64", "data": row}
    body = {"inputs": [tensor], "outputs": [{"name": "predict_proba"}]}
    answer = requests.post(f"{url}/v2/models/phishing/infer", json=body, timeout=20)
    return float(answer.json()["outputs"][0]["data"][1])


def test_events_are_decided_and_judged_by_late_labels(engine: Stack, model: str, tmp_path: Path) -> None:
    """Each event has the decision of the model's own score, windows by key count across bundles, and labels in Avro join."""
    fraud = Fraud(engine)
    first = list({one["entity"]: one for one in reversed(EVENTS)}.values())
    again = [{**one, "id": f"{one['id']}-again", "at": "2026-11-01T12:20:00Z"} for one in first]
    names = [one["id"] for one in first]
    with Command(engine, "--runner=FlinkRunner", "--case=fraud", *fraud.flags(tmp_path, model)) as command:
        command.flink_job()
        # Half of the labels are there before their events; one has no event, one is no label.
        fraud.produce(fraud.labels, [*map(label, names[::2]), label("nowhere", value=True), label(names[0])[:-1]])
        fraud.produce(fraud.events, [*(json.dumps(one).encode() for one in first), b'{"id": "broken"}'])
        until("the first decisions", lambda: len(fraud.decisions()) == len(first))
        fraud.produce(fraud.events, [json.dumps(one).encode() for one in again])
        fraud.produce(fraud.labels, [*map(label, names[1::2]), label(names[1], value=False)])
        until("the second decisions", lambda: len(fraud.decisions()) == 2 * len(first))
        # A drain reads no further: every label must have been read.
        until("the labels", lambda: fraud_committed(fraud) == len(names) + 3)
        until("figures before the stream has ended", lambda: fraud.read()["fraud.quality"], 60.0)
        command.interrupt()
        assert command.wait() == 0, command.output
    found, decided = fraud.read(), fraud.decisions()
    rows = {one["id"]: list(one["inputs"].values()) for one in found["fraud.analytics"]}
    for event_id, one in decided.items():
        assert one["score"] == pytest.approx(score_of(model, rows[event_id]), abs=1e-5)
        decision, reasons = decide(one["score"], one["entity_events"], thresholds())
        assert (one["decision"], one["reasons"]) == (decision, list(reasons))
        assert (
            one["topic"] == {"approve": "fraud.approved", "review": "fraud.review", "block": "fraud.blocked"}[decision]
        )
        assert one["entity_events"] == (2 if event_id.endswith("-again") else 1)
    assert [one["__connect.errors.exception.class.name"] for one in found["fraud.dead-letters"]] == [b"bad-field"]
    kinds = sorted(one["__connect.errors.exception.class.name"] for one in found["fraud.labels.dead-letters"])
    assert kinds == [b"format-data", b"unmatched"]
    windows: dict[str, dict[str, Any]] = {}
    for one in sorted(found["fraud.quality"], key=lambda one: one["revision"]):
        windows[one["window_start"]] = one
    assert sum(one["labelled"] for one in windows.values()) == len(names)
    assert sum(one["frauds"] for one in windows.values()) == sum(LABELS[name] for name in names)
    errors = sum((decided[name]["score"] - LABELS[name]) ** 2 for name in names)
    assert sum(one["brier"] * one["labelled"] for one in windows.values()) == pytest.approx(errors, abs=1e-3)


def fraud_committed(fraud: Fraud) -> int:
    """How many labels the job has read for good."""
    consumer = Consumer({"bootstrap.servers": fraud.kafka, "group.id": fraud.tag, "enable.auto.commit": "false"})
    try:
        found = consumer.committed([TopicPartition(fraud.labels, number) for number in range(2)], timeout=10.0)
        return sum(max(0, partition.offset) for partition in found)
    finally:
        consumer.close()
