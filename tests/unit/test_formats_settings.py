"""`formats.yaml`: what is taken, what is refused, and with which sentence; schemas made known before a job starts."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from transforms.errors import SettingsError
from transforms.formats.registry import Registry, RegistrySettings, Schema
from transforms.formats.settings import TopicFormat, check_topics, read_formats

AVSC = '{"type": "record", "name": "E", "namespace": "x.y", "fields": [{"name": "id", "type": "string"}]}'
PROTO = 'syntax = "proto3"; package x.y; message A { string id = 1; } message B { string id = 1; }'
JSON = '{"title": "E", "type": "object"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "e.avsc").write_text(AVSC)
    (tmp_path / "e.proto").write_text(PROTO)
    (tmp_path / "e.json").write_text(JSON)
    (tmp_path / "bad.txt").write_text("{")
    return tmp_path


def read(folder: Path, text: str) -> dict[str, TopicFormat]:
    path = folder / "formats.yaml"
    path.write_text(text, encoding="utf-8")
    return read_formats(path)


FULL = """
registry: {url: "http://r:8081/", user: me, password: "${env:PASSWORD}", ca: ca.pem, timeout_s: 2, long_ids: content}
topics:
  plain: {format: json}
  in: {format: avro}
  out: {format: avro, schema: e.avsc, subject_naming: TopicRecordName, compatibility: FULL}
  proto: {format: protobuf, schema: e.proto, message: B, registry: http://other:8081, subject_naming: RecordName, register: false}
  own: {format: protobuf, schema: e.proto, message: x.y.A, subject: my-subject}
  bare: {format: avro, schema: e.avsc, registry: false}
  json: {format: json, schema: e.json, registry: {url: "https://r", token: "${env:TOKEN}"}, subject_naming: RecordName}
"""


def test_a_full_file_is_read(folder: Path) -> None:
    """Every key reaches its setting, and what a topic does not say of the registry the file says."""
    formats = read(folder, FULL)
    registry = RegistrySettings("http://r:8081/", "me", "${env:PASSWORD}", None, "ca.pem", 2.0, "content")
    plain = TopicFormat(topic="plain", format="json", registry=registry)
    assert formats["plain"] == plain
    assert formats["in"] == TopicFormat(topic="in", format="avro", registry=registry)
    out = formats["out"]
    assert (out.schema, out.registry, out.compatibility) == (Schema("AVRO", AVSC), registry, "FULL")
    assert (formats["proto"].registry, formats["proto"].register) == (RegistrySettings("http://other:8081"), False)
    assert formats["bare"].registry is None
    assert formats["json"].registry == RegistrySettings("https://r", token="${env:TOKEN}")


def test_subjects_are_named_as_confluent_names_them(folder: Path) -> None:
    """TopicName, RecordName and TopicRecordName give Confluent's names; one that is given stands."""
    formats = read(folder, FULL)
    names = {topic: formats[topic].subject_name for topic in ("in", "out", "proto", "own", "json")}
    assert names == {
        "in": "in-value",
        "out": "out-x.y.E",
        "proto": "x.y.B",
        "own": "my-subject",
        "json": "E",
    }


def test_what_is_read_can_travel(folder: Path) -> None:
    """The settings hold the schemas themselves, are pickled whole, and hold no secret."""
    formats = read(folder, FULL)
    data = pickle.dumps(formats)
    assert pickle.loads(data) == formats
    assert b"x.y" in data


WRONG = [
    ("topics: [1]", "topics: expected `object`"),
    ("topic: {}", "topic: is not a known key; did you mean topics?"),
    ("topics: {t: {formt: avro}}", "topics.t.formt: is not a known key; did you mean format?"),
    ("topics: {t: {}}", "topics.t: object missing required field `format`"),
    ("topics: {t: {format: arvo}}", "topics.t.format: invalid enum value 'arvo'; known are json, avro, protobuf"),
    ("topics: {t: avro}", "topics.t: must be a mapping"),
    ("topics: {t: {format: avro}}", "topics.t.schema: is missing; without a registry"),
    ("topics: {t: {format: protobuf}}", "topics.t.schema: is missing; without a registry"),
    ("topics: {t: {format: avro, schema: gone.avsc}}", "gone.avsc cannot be read: No such file"),
    ("topics: {t: {format: avro, schema: bad.txt}}", "topics.t.schema: the schema is no Avro"),
    ("topics: {t: {format: json, schema: bad.txt}}", "topics.t.schema: the schema is no JSON"),
    ("topics: {t: {format: protobuf, schema: bad.txt}}", "topics.t.schema: the schema is no Protobuf"),
    ("topics: {t: {format: avro, schema: e.json}}", "topics.t.schema: the schema is no Avro"),
    ("topics: {t: {format: protobuf, schema: e.proto}}", "message is missing: the schema has x.y.A, x.y.B"),
    ("topics: {t: {format: protobuf, schema: e.proto, message: C}}", "message is C, which the schema does not have"),
    ("topics: {t: {format: avro, schema: e.avsc, message: A}}", "topics.t.message: names a Protobuf message"),
    ("topics: {t: {format: protobuf, message: A, registry: 'http://r'}}", "topics.t.message: needs schema"),
    ("topics: {t: {format: avro, schema: e.avsc, subject: s}}", "topics.t.subject: needs a registry"),
    ("topics: {t: {format: avro, schema: e.avsc, compatibility: FULL}}", "topics.t.compatibility: needs a registry"),
    (
        "topics: {t: {format: avro, registry: 'http://r', compatibility: BACKWARDS}}",
        "topics.t.compatibility: is BACKWARDS; did you mean BACKWARD?",
    ),
    (
        "topics: {t: {format: avro, registry: 'http://r', compatibility: FULL, register: false}}",
        "topics.t.compatibility: is set when a schema is registered",
    ),
    (
        "topics: {t: {format: avro, schema: e.avsc, registry: 'http://r', subject: s, subject_naming: RecordName}}",
        "topics.t.subject: contradicts subject_naming",
    ),
    ("registry: {url: 'ftp://r'}\ntopics: {}", "registry.url is not an http or https URL"),
    ("registry: {url: 'http://u:p@r'}\ntopics: {}", "registry.url must be a base URL alone"),
    (
        "registry: {url: 'http://r', pasword: x}\ntopics: {}",
        "registry.pasword: is not a known key; did you mean password?",
    ),
    ("registry: {url: 'http://r', user: u, password: secret}\ntopics: {}", "registry.password must be ${env:NAME}"),
    ("registry: {url: 'http://r', token: 'x${env:T}'}\ntopics: {}", "registry.token must be ${env:NAME}"),
    ("registry: {url: 'http://r', user: u}\ntopics: {}", "registry.user and password go together"),
    (
        "registry: {url: 'http://r', user: u, password: '${env:P}', token: '${env:T}'}\ntopics: {}",
        "registry.token contradicts user",
    ),
    ("registry: {url: 'http://r', timeout_s: 0}\ntopics: {}", "registry.timeout_s is 0"),
    ("topics: {t: {format: json}, t: {format: avro}}", "the key t is written twice"),
    ("topics: {t: {format: json", "is not YAML"),
    ("[]", "must be a mapping"),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_refused(folder: Path, text: str, words: str) -> None:
    """Each mistake gives one sentence that begins with the file and says where and what."""
    with pytest.raises(SettingsError) as caught:
        read(folder, text)
    assert str(caught.value).startswith(str(folder / "formats.yaml"))
    assert words in str(caught.value)
    assert "secret" not in str(caught.value).replace("never the secret itself", "")


def test_topics_of_another_run_are_refused(folder: Path) -> None:
    """A topic that is neither read nor written is named with the nearest, and one that is written needs a schema."""
    formats = read(folder, "registry: {url: 'http://r'}\ntopics: {orders.events: {format: avro}}")
    check_topics(formats, "f", ["orders.events"], [])
    with pytest.raises(SettingsError, match=r"topics.orders.events: .* did you mean order.events\?"):
        check_topics(formats, "f", ["order.events"], [])
    with pytest.raises(SettingsError, match=r"topics.orders.events.schema: is missing"):
        check_topics(formats, "f", [], ["orders.events"])


def test_a_registry_is_not_pickled() -> None:
    """What holds secrets and sockets refuses to travel."""
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(Registry(RegistrySettings("http://r")))


def test_a_secret_is_resolved_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is not set is named, and its value stands in no error."""
    settings = RegistrySettings("http://r", token="${env:FARCALL_TEST_TOKEN}")
    with pytest.raises(SettingsError, match="FARCALL_TEST_TOKEN, which is not set"):
        Registry(settings)
    monkeypatch.setenv("FARCALL_TEST_TOKEN", "hush")
    assert "hush" not in repr(settings) + repr(Registry(settings))
