"""The fraud case without Beam: its door, its question, its rule, its figures, and the files it ships with."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.cases.fraud import quality, score
from pipeline.cases.fraud.case import FRAUD, LABELS, SAMPLES, TRAINING
from pipeline.cases.fraud.events import FEATURES, KINDS, FraudEvent, Label, parse_event, parse_label
from pipeline.cases.fraud.samples import write_samples
from pipeline.cases.fraud.thresholds import Thresholds, decide, read_thresholds, thresholds
from pipeline.formatted import formatted
from tests.unit.test_case_formats import shipped
from transforms.errors import BadEvent, BadReply, SettingsError
from transforms.formats.codec import Encode
from transforms.panes import Recent
from transforms.records import Answer, SourceRecord
from transforms.tally import Window

GOOD: dict[str, Any] = {
    "id": "p1",
    "at": "2026-11-01T10:00:00.5+01:00",
    "entity": "host-1",
    "features": dict.fromkeys(FEATURES, 0.5),
}


def record(value: Any) -> SourceRecord:
    return SourceRecord(value=value if isinstance(value, bytes) or value is None else json.dumps(value).encode())


def event(count: int = 1) -> FraudEvent:
    return msgspec.structs.replace(parse_event(record(GOOD)), recent=(Recent(3_600.0, count, (0.5, 0.5)),))


def answer(value: Any) -> Answer:
    return Answer("", "phishing", "http://127.0.0.1", value=value)


def test_a_good_event_is_read() -> None:
    """Id, time in UTC, entity and features in the model's order; an entity may be left out."""
    found = parse_event(record(GOOD))
    assert (found.id, found.at_ms, found.entity, found.features) == ("p1", 1_793_523_600_500, "host-1", (0.5,) * 9)
    assert parse_event(record({name: GOOD[name] for name in ("id", "at", "features")})).entity == ""


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("tombstone", None),
        ("too-large", b" " * 1_048_577),
        ("not-utf8", b'{"id": "\xff"}'),
        ("not-json", b"{"),
        ("bad-field", []),
        ("bad-field", {**GOOD, "id": ""}),
        ("bad-field", {**GOOD, "id": 7}),
        ("bad-field", {**GOOD, "at": "2026-11-01T10:00:00"}),
        ("bad-field", {**GOOD, "at": "yesterday"}),
        ("bad-field", {name: GOOD[name] for name in ("id", "at")}),
        ("bad-field", {**GOOD, "features": {**GOOD["features"], "https": "1"}}),
        ("bad-field", {**GOOD, "features": {**GOOD["features"], "https": True}}),
        ("missing-feature", {**GOOD, "features": {"https": 1}}),
        ("unknown-feature", {**GOOD, "features": {**GOOD["features"], "htps": 1}}),
        ("bad-feature", {**GOOD, "features": {**GOOD["features"], "https": 1.01}}),
        ("bad-feature", {**GOOD, "features": {**GOOD["features"], "https": -0.01}}),
    ],
)
def test_a_bad_event_is_refused_with_its_reason(kind: str, value: Any) -> None:
    """Each way to be wrong has its kind, and nothing is coerced."""
    with pytest.raises(BadEvent) as caught:
        parse_event(record(value))
    assert caught.value.kind == kind
    assert kind in KINDS


def test_the_question_is_one_row_in_the_order_of_training() -> None:
    """The row has the features and the entity's figures, as many as the training data has columns before the label."""
    (tensor,) = score.ask(event(count=4)).inputs
    heading = TRAINING.read_text(encoding="utf-8").splitlines()[0].split(",")
    assert heading == [*score.INPUTS, "label"]
    assert tensor.shape == (1, len(score.INPUTS))
    assert list(tensor.data) == [0.5] * 9 + [4.0, 0.125, 0.125]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"predict_proba": [[0.25, 0.75]]}, 0.75),
        ({"predict_proba": [0.75]}, 0.75),
        (0.75, 0.75),
        (1, 1.0),
    ],
)
def test_a_score_is_found(value: Any, wanted: float) -> None:
    """The probability of the second class, or a number alone, such as a fixed value that stands in for a model."""
    assert score.score_in(answer(value)) == wanted


@pytest.mark.parametrize("value", [None, {}, {"predict": [1]}, {"predict_proba": []}, [[1.5]], [True], "0.5", -0.1])
def test_an_answer_without_a_score_is_refused(value: Any) -> None:
    """What is no number from 0 to 1 makes a dead letter, never a decision."""
    with pytest.raises(BadReply) as caught:
        score.check((event(), answer(value)))
    assert caught.value.kind == "no-score"


LIMITS = Thresholds(version="t", review_from=0.3, block_from=0.8, burst_events=10)


@pytest.mark.parametrize(
    ("value", "events", "decision", "reasons"),
    [
        (0.0, 1, "approve", ()),
        (0.2999, 10, "approve", ()),
        (0.3, 1, "review", ("score",)),
        (0.7999, 1, "review", ("score",)),
        (0.1, 11, "review", ("burst",)),
        (0.5, 11, "review", ("score", "burst")),
        (0.8, 1, "block", ("score",)),
        (1.0, 11, "block", ("score",)),
    ],
)
def test_the_rule(value: float, events: int, decision: str, reasons: tuple[str, ...]) -> None:
    """A threshold belongs to the stricter side; a burst is looked at; a blocked event is blocked for its score."""
    assert decide(value, events, LIMITS) == (decision, reasons)


def test_every_record_about_a_decision_has_its_version_and_topic() -> None:
    """The decision leaves on its topic with the version of the thresholds; analytics has everything the model was given."""
    for value, topic in ((0.0, "fraud.approved"), (0.5, "fraud.review"), (0.99, "fraud.blocked")):
        output = score.check((event(), answer(value)))
        routed, (side,) = score.route(output), score.side_outputs(output)
        facts = json.loads(routed.value or b"")
        assert (routed.topic, routed.id, facts["id"], facts["score"]) == (topic, "p1", "p1", value)
        assert facts["thresholds_version"] == thresholds().version
        assert list(json.loads(side.value or b"")["inputs"]) == list(score.INPUTS)
        assert routed.topic in FRAUD.all_topics
        assert side.topic in FRAUD.all_topics


@pytest.mark.parametrize(
    "text",
    [
        "version: a\nreview_from: 0.9\nblock_from: 0.8\nburst_events: 1\n",
        "version: a\nreview_from: 0\nblock_from: 0.8\nburst_events: 1\n",
        "version: a\nreview_from: 0.3\nblock_from: 1.1\nburst_events: 1\n",
        "version: a\nreview_from: 0.3\nblock_from: 0.8\nburst_events: 0\n",
        "version: a\nreview_from: 0.3\nblock_from: 0.8\n",
        "version: a\nreview_from: 0.3\nblock_from: 0.8\nburst_events: 1\nblok_from: 1\n",
    ],
)
def test_thresholds_that_contradict_are_refused(tmp_path: Path, text: str) -> None:
    """A file with a key that is unknown, missing or out of order is an error that names the file or the rule."""
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises((SettingsError, msgspec.ValidationError)):
        read_thresholds(tmp_path / "t.yaml")


def judged(*pairs: tuple[float, str, bool]) -> quality.Counts:
    counts = quality.Counts()
    for value, decision, is_fraud in pairs:
        counts = quality.add(counts, quality.Judged(0, value, decision, is_fraud))
    return counts


def test_the_figures_of_labels() -> None:
    """Precision, recall, Brier score and calibration of a table worked out by hand."""
    counts = judged(
        (0.9, "block", True),
        (0.95, "block", False),
        (0.5, "review", True),
        (0.2, "approve", True),
        (0.05, "approve", False),
    )
    found = quality.figures(counts)
    assert (found["labelled"], found["frauds"]) == (5, 3)
    assert found["blocked"] == {"count": 2, "precision": 0.5, "recall": pytest.approx(1 / 3, abs=1e-6)}
    assert found["flagged"] == {
        "count": 3,
        "precision": pytest.approx(2 / 3, abs=1e-6),
        "recall": pytest.approx(2 / 3, abs=1e-6),
    }
    assert found["brier"] == pytest.approx((0.01 + 0.9025 + 0.25 + 0.64 + 0.0025) / 5, abs=1e-6)
    # Bins: 0.05; 0.2; 0.5; 0.9 and 0.95 with one fraud of two.
    assert found["calibration_error"] == pytest.approx((0.05 + 0.8 + 0.5 + 0.85) / 5, abs=1e-6)
    assert [one["count"] for one in found["bins"]] == [1, 0, 1, 0, 0, 1, 0, 0, 0, 2]
    assert found["bins"][9]["fraud_share"] == 0.5


def test_figures_without_anything_to_divide_by_are_null() -> None:
    """Nothing blocked has no precision, no fraud no recall; a score of 1 has a bin."""
    found = quality.figures(judged((1.0, "approve", False)))
    assert found["blocked"] == {"count": 0, "precision": None, "recall": None}
    assert found["bins"][9]["count"] == 1
    assert quality.figures(quality.Counts())["brier"] is None


def test_a_window_is_a_record_of_its_own_key() -> None:
    """Revisions of a window share the key, and differ in the id."""
    counts = judged((0.5, "review", True))
    first, second = (quality.to_record(Window("", 0, 3_600_000, number), counts) for number in (1, 2))
    assert first.key == second.key == b"1970-01-01T00:00:00.000Z"
    assert (first.id, second.id) == ("1970-01-01T00:00:00.000Z/1", "1970-01-01T00:00:00.000Z/2")


def test_labels_are_read_and_refused() -> None:
    """A label is true or false, and nothing that could be meant for it."""
    good = {"id": "p1", "at": "2026-11-01T10:00:00Z", "label": True}
    found = parse_label(record(good))
    assert isinstance(found, Label)
    assert (found.id, found.is_fraud) == ("p1", True)
    for wrong in ("yes", 1, None):
        with pytest.raises(BadEvent) as caught:
            parse_label(record({**good, "label": wrong}))
        assert caught.value.kind == "bad-field"


def test_the_samples_are_what_the_command_writes(tmp_path: Path) -> None:
    """`python -m pipeline.cases.fraud.samples` writes the very files that ship, from river's data set and a seed."""
    write_samples(tmp_path)
    for path in (SAMPLES, LABELS, TRAINING):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_what_is_in_the_samples() -> None:
    """450 good events, two of them twice, eight malformed ones; a label for each, none of which the training data has seen."""
    good, bad = [], Counter()
    for line in SAMPLES.read_bytes().splitlines():
        try:
            good.append(parse_event(record(line)))
        except BadEvent as error:
            bad[error.kind] += 1
    assert len(good) == 452
    assert len({one.id for one in good}) == 450
    assert sum(bad.values()) == 8
    labels = [json.loads(line) for line in LABELS.read_bytes().splitlines()]
    assert {one["id"] for one in labels if isinstance(one["label"], bool)} == {one.id for one in good} | {
        "page-unknown"
    }
    assert len(TRAINING.read_text(encoding="utf-8").splitlines()) == 801
    assert min(int(one.id.removeprefix("page-")) for one in good) == 800


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("number", [0, 1], ids=["avro", "protobuf"])
def test_labels_in_other_formats_are_the_same(number: int, value: bool) -> None:
    """A label encoded by the shipped schema parses to what its JSON does, a false one too; one without a value is bad."""
    form = shipped("fraud", "label", "fraud.labels")[number]
    forms = {form.topic: form}
    feedback = formatted(FRAUD, forms, {}, ()).feedback
    assert feedback is not None
    label = {"id": "page-1", "at": "2026-11-01T12:00:00Z", "label": value}
    coded = SourceRecord(Encode(forms).value(form.topic, json.dumps(label).encode()), topic=form.topic)
    found = feedback.parse(coded)
    assert msgspec.structs.replace(found, source=record(label)) == parse_label(record(label))
    assert found.source == coded
    assert feedback.read_id(coded) == "page-1"
    with pytest.raises(BadEvent):
        feedback.parse(SourceRecord(coded.value[:-2] if coded.value else b"", topic=form.topic))


@pytest.mark.parametrize("number", [0, 1], ids=["avro", "protobuf"])
def test_events_in_other_formats_are_the_same(number: int) -> None:
    """An event encoded in Avro or Protobuf by the shipped schema parses to what its JSON does."""
    form = shipped("fraud", "event", "fraud.events")[number]
    forms = {form.topic: form}
    encode = Encode(forms)
    encode.setup()
    value = encode.value("fraud.events", json.dumps(GOOD).encode())
    case = formatted(FRAUD, forms, {}, ())
    case.parse.setup()  # type: ignore[attr-defined]
    coded = SourceRecord(value=value, topic="fraud.events")
    found = case.parse(coded)
    assert msgspec.structs.replace(found, source=record(GOOD)) == parse_event(record(GOOD))
    assert found.source == coded
