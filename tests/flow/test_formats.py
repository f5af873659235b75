"""A job whose topics are Avro and Protobuf with a schema registry, on the runners of a laptop."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from urllib3.util import Retry

from pipeline.build import Steps, build
from pipeline.cases.support.case import SUPPORT
from pipeline.formatted import formatted
from runners import prism as prism_runner
from tests.flow.doubles import DIRECT, beam_options, model, read_lines
from transforms import dead_letters, files
from transforms.errors import Unavailable
from transforms.formats.codec import Decode, Encode
from transforms.formats.register import register_schemas
from transforms.formats.registry import RegistrySettings
from transforms.formats.registry_double import RegistryDouble
from transforms.formats.settings import TopicFormat, read_formats
from transforms.records import SourceRecord
from transforms.remote.model_double import ModelDouble

SCHEMAS = Path(__file__).resolve().parents[2] / "pipeline" / "cases" / "support" / "schemas"
FORMATS = f"""
registry: {{url: URL}}
topics:
  support.events: {{format: avro, schema: {SCHEMAS}/event.avsc, compatibility: BACKWARD}}
  support.chat.replies: {{format: protobuf, schema: {SCHEMAS}/reply.proto, subject_naming: RecordName}}
"""
WRITTEN = ("support.events", "support.chat.replies")


@pytest.fixture
def registry() -> Iterator[RegistryDouble]:
    with RegistryDouble() as double:
        yield double


def formats_of(registry: RegistryDouble, folder: Path) -> dict[str, TopicFormat]:
    path = folder / "formats.yaml"
    path.write_text(FORMATS.replace("URL", registry.url))
    return register_schemas(read_formats(path), WRITTEN)


class Read(beam.PTransform):  # type: ignore[misc]
    """Records as Kafka would give them."""

    def __init__(self, records: list[SourceRecord]) -> None:
        super().__init__()
        self._records = records

    def expand(self, pipeline: Any) -> beam.PCollection:
        return pipeline | beam.Create(self._records, reshuffle=False).with_output_types(SourceRecord)


def chat(number: int) -> dict[str, str]:
    return {
        "id": f"chat-{number}",
        "channel": "chat",
        "customer_id": "c",
        "at": "2026-03-02T09:30:00Z",
        "text": f"Where is order {number}?",
    }


def run(
    runner: dict[str, Any],
    out: Path,
    records: list[SourceRecord],
    formats: dict[str, TopicFormat],
    written: tuple[str, ...] = WRITTEN,
) -> None:
    case = formatted(SUPPORT, formats, {}, written)
    with ModelDouble(latency_ms=5.0) as double:
        pipeline = beam.Pipeline(options=beam_options(**runner))
        ask = {"end_slice_s": 0.25} if runner["runner"] == DIRECT else {}
        settings = Steps(model(double.base_url), dead_letters.to_json, ask_options=ask)
        build(pipeline, case, Read(records), files.WriteLines(str(out)), settings)
        with prism_runner.Failures() as failures:
            failures.wait(pipeline.run())


def test_a_job_reads_avro_and_writes_protobuf(runner: dict[str, Any], registry: RegistryDouble, tmp_path: Path) -> None:
    """Every event has a reply in its topic's format; what cannot be decoded is a dead letter, byte for byte as it came."""
    formats = formats_of(registry, tmp_path)
    encode = Encode(formats)
    good = [
        SourceRecord(
            encode.value("support.events", json.dumps(chat(number)).encode()), topic="support.events", offset=number
        )
        for number in range(5)
    ]
    bad = [
        SourceRecord(b'{"id": "json"}', b"\xff", (("h", b"v"),), "support.events", 3, 70, 9),
        SourceRecord(b"\x00\x00\x00\x03\xe7\x02a", None, (), "support.events", 3, 71, 9),
        SourceRecord((good[0].value or b"")[:9], None, (), "support.events", 3, 72, 9),
    ]
    run(runner, tmp_path / "out", [*good, *bad], formats)

    decode = Decode(formats)
    replies = [
        json.loads(decode.value("support.chat.replies", base64.b64decode(line["value_base64"])))
        if "value_base64" in line
        else json.loads(decode.value("support.chat.replies", line["value"].encode()))
        for line in read_lines(tmp_path / "out" / "support.chat.replies.jsonl")
    ]
    assert sorted(reply["id"] for reply in replies) == [f"chat-{number}" for number in range(5)]
    assert all(reply["reply"] and reply["channel"] == "chat" for reply in replies)

    dead = {letter["offset"]: letter for letter in read_lines(tmp_path / "out" / "support.dead-letters.jsonl")}
    assert {offset: (one["stage"], one["error_type"]) for offset, one in dead.items()} == {
        70: ("parse", "format-prefix"),
        71: ("parse", "format-schema"),
        72: ("parse", "format-data"),
    }
    first = dead[70]
    assert (first["value"], first["key_base64"], first["partition"]) == ('{"id": "json"}', "/w==", 3)
    assert first["headers"] == [{"name": "h", "value": "v"}]


def test_a_registry_that_is_down_makes_no_dead_letter(
    registry: RegistryDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records whose schema cannot be asked for fail the job, which a runner starts again; none is given up."""
    monkeypatch.setattr("transforms.formats.registry.RETRIES", Retry(0))
    formats = formats_of(registry, tmp_path)
    value = Encode(formats).value("support.events", json.dumps(chat(1)).encode())
    settings = RegistrySettings("http://127.0.0.1:9")
    down = {"support.events": TopicFormat(topic="support.events", format="avro", registry=settings)}
    with pytest.raises(Unavailable, match=r"schema registry at http://127\.0\.0\.1:9 does not answer"):
        run({"runner": DIRECT}, tmp_path / "out", [SourceRecord(value, topic="support.events")], down, ())
    assert read_lines(tmp_path / "out" / "support.dead-letters.jsonl") == []
