"""The Avro and Protobuf forms of the cases' records, as their schema files say them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.cases.support import answer
from pipeline.cases.support.case import SAMPLES, SUPPORT
from pipeline.cases.support.events import SupportEvent, parse_event
from pipeline.cases.support.feedback import parse as parse_feedback
from pipeline.formatted import formatted
from tests.unit.test_support_rules import reply_json, ticket
from transforms.errors import BadEvent, BadReply
from transforms.formats import protobuf
from transforms.formats.codec import Decode, Encode
from transforms.formats.registry import Schema
from transforms.formats.settings import TopicFormat
from transforms.records import Answer, SourceRecord

CASES = Path(__file__).resolve().parents[2] / "pipeline" / "cases"
TOPIC = "support.events"


def shipped(case: str, name: str, topic: str) -> list[TopicFormat]:
    """A topic in the Avro and in the Protobuf form of a case's record."""
    folder = CASES / case / "schemas"
    avro = Schema("AVRO", (folder / f"{name}.avsc").read_text())
    proto = Schema("PROTOBUF", (folder / f"{name}.proto").read_text())
    return [
        TopicFormat(topic=topic, format="avro", schema=avro),
        TopicFormat(topic=topic, format="protobuf", schema=proto, descriptors=protobuf.compile_schema(proto)),
    ]


EVENTS = shipped("support", "event", TOPIC)
REPLIES = shipped("support", "reply", "support.chat.replies")
SCORED = shipped("fraud", "event", "fraud.events")


def lines() -> list[bytes]:
    return SAMPLES.read_bytes().splitlines()


def by_format(one: TopicFormat) -> str:
    return one.format


@pytest.mark.parametrize("form", EVENTS, ids=by_format)
def test_every_sample_is_the_same_event_in_each_form(form: TopicFormat) -> None:
    """A good sample that fits the schema is, decoded and parsed, the event that its JSON is, with its bytes as they came."""
    case = formatted(SUPPORT, {TOPIC: form}, {}, ())
    encode = Encode({TOPIC: form})
    count = 0
    for line in lines():
        try:
            event = parse_event(SourceRecord(line))
            value = encode.value(TOPIC, line)
        except (BadEvent, BadReply):
            continue
        record = SourceRecord(value, b"k", (("h", b"v"),), TOPIC, 1, 2, 3)
        parsed: SupportEvent = case.parse(record)
        assert parsed == msgspec.structs.replace(event, source=record)
        assert case.read_id(record) == event.id
        assert len(value) < len(line)
        count += 1
    assert count >= 88


@pytest.mark.parametrize("form", shipped("support", "feedback", "support.feedback"), ids=by_format)
def test_feedback_is_the_same_in_each_form(form: TopicFormat) -> None:
    """What an agent made of a reply is, decoded and parsed, what its JSON is, with its bytes as they came."""
    feedback = formatted(SUPPORT, {form.topic: form}, {}, ()).feedback
    assert feedback is not None
    line = b'{"id": "chat-1", "at": "2026-11-01T12:00:00Z", "verdict": "edited"}'
    coded = SourceRecord(Encode({form.topic: form}).value(form.topic, line), topic=form.topic)
    assert coded.value != line
    assert feedback.parse(coded) == msgspec.structs.replace(parse_feedback(SourceRecord(line)), source=coded)
    assert feedback.read_id(coded) == "chat-1"


@pytest.mark.parametrize("form", EVENTS, ids=by_format)
def test_what_is_malformed_stays_malformed(form: TopicFormat) -> None:
    """Bytes that are no event in the form are bad, without an id; a value that is missing is still a tombstone."""
    case = formatted(SUPPORT, {TOPIC: form}, {}, ())
    broken = SourceRecord(b'{"id": "a"', topic=TOPIC)
    with pytest.raises(BadEvent) as caught:
        case.parse(broken)
    assert caught.value.kind == "format-data"
    assert case.read_id(broken) is None
    with pytest.raises(BadEvent) as caught:
        case.parse(SourceRecord(None, topic=TOPIC))
    assert caught.value.kind == "tombstone"
    # A record of another topic is JSON still.
    assert case.parse(SourceRecord(next(line for line in lines() if b'"chat-es-001"' in line))).id == "chat-es-001"


@pytest.mark.parametrize("form", EVENTS, ids=by_format)
def test_an_event_that_fits_the_schema_may_still_break_the_rules(form: TopicFormat) -> None:
    """The case's own rules hold in every form: an e-mail without its message is refused as it is in JSON."""
    case = formatted(SUPPORT, {TOPIC: form}, {}, ())
    event = {"id": "a", "channel": "email", "customer_id": "c", "at": "2026-03-02T09:30:00Z"}
    record = SourceRecord(Encode({TOPIC: form}).value(TOPIC, json.dumps(event).encode()), topic=TOPIC)
    with pytest.raises(BadEvent) as caught:
        case.parse(record)
    assert caught.value.kind == "missing-field"
    assert case.read_id(record) == "a"


def reply(channel: str = "chat") -> answer.SupportReply:
    made = ticket(channel=channel)
    given = Answer(reply_json("We are looking into it."), "m", "http://m/v1", "stop", 2, 30, 4, 120.5, 130.25)
    return answer.decide(answer.check((made, given)))


def said(value: bytes | None) -> dict[str, Any]:
    """A reply without what is null, and without what Protobuf cannot leave away: a map that is empty."""
    return {name: one for name, one in json.loads(value or b"").items() if one is not None and one != {}}


@pytest.mark.parametrize("channel", ["chat", "email", "call"])
@pytest.mark.parametrize("form", REPLIES, ids=by_format)
def test_a_reply_goes_out_in_each_form(form: TopicFormat, channel: str) -> None:
    """Every field of a reply is in the schema, and comes back as it was; key, headers and time stand."""
    topic = f"support.{channel}.replies"
    formats = {topic: msgspec.structs.replace(form, topic=topic)}
    plain = SUPPORT.route(reply(channel))
    assert plain.topic == topic
    record = formatted(SUPPORT, formats, {}, (topic,)).route(reply(channel))
    assert msgspec.structs.replace(record, value=None) == msgspec.structs.replace(plain, value=None)
    back = said(Decode(formats).value(topic, record.value or b""))
    if back.get("decision"):
        back["decision"] = {**dict.fromkeys(json.loads(plain.value or b"")["decision"]), **back["decision"]}
    assert back == said(plain.value)
    assert len(record.value or b"") < len(plain.value or b"")


@pytest.mark.parametrize("form", REPLIES, ids=by_format)
def test_a_renamed_topic_has_the_format_of_its_new_name(form: TopicFormat) -> None:
    """Formats go by the names that Kafka knows."""
    renamed = msgspec.structs.replace(form, topic="shop.chat")
    case = formatted(SUPPORT, {"shop.chat": renamed}, {"support.chat.replies": "shop.chat"}, ("shop.chat",))
    record = case.route(reply())
    assert record.topic == "support.chat.replies", "the graph renames it later"
    assert not (record.value or b"").startswith(b"{")


def test_without_formats_a_case_is_itself() -> None:
    """A run whose topics are JSON pays nothing."""
    assert formatted(SUPPORT, {}, {}, ()) is SUPPORT


@pytest.mark.parametrize("form", SCORED, ids=by_format)
def test_a_fraud_event_comes_back_from_each_form(form: TopicFormat) -> None:
    """Id, time and features survive."""
    event: dict[str, Any] = {"id": "f-1", "at": "2026-03-02T09:30:00Z", "features": {"age": 1.0, "rate": -0.25}}
    event["entity"] = "host-1"
    value = Encode({form.topic: form}).value(form.topic, json.dumps(event).encode())
    assert json.loads(Decode({form.topic: form}).value(form.topic, value)) == event


NASTY = [
    b"",
    b"\xff",
    b'{"id": "caf\xe9"}',
    b'{"id": "\\ud800"}',
    b"NaN",
    b'{"a":' * 5_000,
    b"[" * 5_000,
    b'{"id": 1e400}',
]


@pytest.mark.parametrize("form", EVENTS, ids=by_format)
def test_what_does_not_fit_is_refused_and_nothing_else(form: TopicFormat) -> None:
    """Every sample, malformed or not, and worse, is encoded or refused with a kind: the feed and the route survive any."""
    encode = Encode({TOPIC: form})
    kinds = set()
    for line in (*lines(), *NASTY):
        try:
            encode.value(TOPIC, line)
        except BadReply as error:
            kinds.add(error.kind)
    assert kinds == {"format-data"}
    for line in NASTY:
        with pytest.raises(BadReply):
            encode.value(TOPIC, line)
