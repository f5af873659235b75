"""The whole fraud job over its samples, with a model that follows a rule: decisions, windows, labels, and where what is wrong goes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from pipeline import options, runs
from pipeline.build import Steps, build
from pipeline.cases.fraud.case import FRAUD, LABELS, SAMPLES
from pipeline.cases.fraud.events import FEATURES, parse_event
from pipeline.cases.fraud.quality import Counts, Judged, add, figures
from pipeline.cases.fraud.score import TOPICS
from pipeline.cases.fraud.thresholds import decide, thresholds
from pipeline.outputs import FileWatch
from pipeline.registry import case_named
from pipeline.summary import Summary, unaccounted
from runners import prism as prism_runner
from tests.flow.doubles import DIRECT, PRISM, beam_options, model, read_lines
from transforms import dead_letters, files
from transforms.ask.calls import make_client
from transforms.errors import BadEvent, SettingsError
from transforms.metrics import RECORDS_IN, REPEATS, counter
from transforms.records import SourceRecord
from transforms.remote.client import Call, Outcome
from transforms.remote.clock import Clock
from transforms.remote.questions import Reply, Tensors
from transforms.remote.settings import ModelSettings

NO_ANSWER = "page-0805"
"""An event about which the model says nothing of use."""


def rule(row: tuple[float, ...]) -> float:
    """The score of a row: a rule in the place of a model."""
    return row[FEATURES.index("anchor_from_other_domain")]


class Ruled:
    """A `Caller` that answers at once, as MLServer does."""

    async def call(self, call: Call) -> Outcome:
        assert isinstance(call.question, Tensors)
        score = rule(tuple(call.question.inputs[0].data))
        value = {} if call.id == NO_ANSWER else {"predict_proba": [[1 - score, score]]}
        return Outcome(call.id, Reply("", None, "rule", value=value), None, None, 1, 0.0, 0.0, "rule")

    async def close(self) -> None:
        pass


class MakeRuled:
    def __call__(self, _settings: ModelSettings, _clock: Clock) -> Ruled:
        return Ruled()


@dataclass(frozen=True)
class Ran:
    """What a job wrote and counted."""

    out: Path
    records: int
    repeats: int

    def lines(self, topic: str) -> list[dict[str, Any]]:
        return read_lines(self.out / f"{topic}.jsonl")

    def decisions(self) -> dict[str, dict[str, Any]]:
        return {one["id"]: {**one, "topic": topic} for topic in FRAUD.output_topics for one in self.lines(topic)}


@pytest.fixture(scope="module", params=[DIRECT, pytest.param(PRISM, marks=pytest.mark.prism)])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The job over samples and labels, once on each runner, in the mode that it has there with labels."""
    place = request.getfixturevalue("prism") if request.param == PRISM else None
    out = tmp_path_factory.mktemp("fraud")
    steps = Steps(
        model=model("http://rule.invalid"),
        dead_letter_record=dead_letters.to_json,
        ask_options={"mode": "bundles"},
        make_caller=MakeRuled(),
    )
    pipeline = beam.Pipeline(options=beam_options(request.param, place))
    read, labels = files.ReadLines([str(SAMPLES)]), files.ReadLines([str(LABELS)])
    build(pipeline, FRAUD, read, files.WriteLines(str(out)), steps, labels)
    with prism_runner.Failures() as failures:
        result = pipeline.run()
        failures.wait(result)
    return Ran(out, counter(result, RECORDS_IN) or 0, counter(result, REPEATS) or 0)


def good_events() -> dict[str, Any]:
    found = {}
    for line in SAMPLES.read_bytes().splitlines():
        try:
            event = parse_event(SourceRecord(value=line))
        except BadEvent:
            continue
        found[event.id] = event
    return found


def labels() -> dict[str, bool]:
    found = map(json.loads, LABELS.read_bytes().splitlines())
    return {one["id"]: one["label"] for one in found if isinstance(one["label"], bool)}


def test_every_event_has_one_outcome_and_labels_count_for_none(ran: Ran) -> None:
    """In = outcomes + repeats, with the labels' records beside."""
    summary = Summary()
    beside = (*FRAUD.side_topics, *FRAUD.feedback.written_topics)
    summary.add(FileWatch(str(ran.out), FRAUD.output_topics, FRAUD.dead_letter_topic, beside, "fraud.review").poll())
    assert (ran.records, ran.repeats) == (460, 2)
    assert unaccounted(summary, ran.records, ran.repeats) == 0
    assert summary.copies == 0
    assert summary.side["fraud.analytics"] == 449
    assert sum(summary.dead.values()) == 9


def test_each_decision_is_the_rules(ran: Ran) -> None:
    """Each good event is decided by its score and its entity's events, and lies on the topic of that."""
    decisions, events = ran.decisions(), good_events()
    assert decisions.keys() == events.keys() - {NO_ANSWER}
    for event_id, one in decisions.items():
        score = rule(events[event_id].features)
        assert one["score"] == score
        assert (one["decision"], one["reasons"]) == tuple(
            map_reasons(decide(score, one["entity_events"], thresholds()))
        )
        assert one["topic"] == TOPICS[one["decision"]]


def map_reasons(found: tuple[str, tuple[str, ...]]) -> tuple[str, list[str]]:
    return found[0], list(found[1])


def test_windows_hold_what_came_before_of_the_entity(ran: Ran) -> None:
    """No event sees more than its entity's events of the hour before it, and each entity's last has seen some of them."""
    events, decisions = good_events(), ran.decisions()
    for event_id, one in decisions.items():
        event = events[event_id]
        minute = event.at_ms // 60_000
        inside = [
            other
            for other in events.values()
            if other.entity == event.entity and minute - 60 < other.at_ms // 60_000 <= minute
        ]
        assert 1 <= one["entity_events"] <= len(inside)
    assert max(one["entity_events"] for one in decisions.values()) > 20


def test_what_is_wrong_is_a_dead_letter_with_its_reason(ran: Ran) -> None:
    """Malformed events and the answer without a score; of labels the malformed one, and those without a decision."""
    kinds = sorted((one["stage"], one["error_type"]) for one in ran.lines("fraud.dead-letters"))
    assert kinds == [
        ("check", "no-score"),
        ("parse", "bad-feature"),
        ("parse", "bad-field"),
        ("parse", "bad-field"),
        ("parse", "bad-field"),
        ("parse", "missing-feature"),
        ("parse", "not-json"),
        ("parse", "not-utf8"),
        ("parse", "unknown-feature"),
    ]
    found = {(one["id"], one["stage"], one["error_type"]) for one in ran.lines("fraud.labels.dead-letters")}
    assert found == {
        ("page-0800", "parse", "bad-field"),
        ("page-unknown", "join", "unmatched"),
        (NO_ANSWER, "join", "unmatched"),
    }


def test_the_figures_are_those_of_decisions_and_labels(ran: Ran) -> None:
    """The last revision of each hour has the precision, recall and calibration that decisions and labels give by themselves."""
    latest: dict[str, dict[str, Any]] = {}
    for one in sorted(ran.lines("fraud.quality"), key=lambda one: one["revision"]):
        latest[one["window_start"]] = one
    wanted: dict[str, Counts] = {}
    events, known = good_events(), labels()
    for event_id, one in ran.decisions().items():
        start = one["at"][:13]
        judged = Judged(events[event_id].at_ms, one["score"], one["decision"], known[event_id])
        wanted[start] = add(wanted.get(start, Counts()), judged)
    assert {start[:13] for start in latest} == wanted.keys()
    for start, one in latest.items():
        for name, figure in figures(wanted[start[:13]]).items():
            assert one[name] == (pytest.approx(figure) if isinstance(figure, float) else figure)


def test_feedback_is_read_where_it_was_said_or_with_the_samples() -> None:
    """The samples bring their labels; another input has those that are named, or none."""
    assert runs.feedback_of(options.read(["--case=fraud", f"--input={SAMPLES}"]), FRAUD).paths == (str(LABELS),)
    assert runs.feedback_of(options.read(["--case=fraud", f"--input={LABELS}"]), FRAUD) is None
    named = options.read(["--case=fraud", f"--input={LABELS}", f"--feedback={SAMPLES}"])
    assert runs.feedback_of(named, FRAUD).paths == (str(SAMPLES),)


def test_on_direct_runner_feedback_changes_the_mode() -> None:
    """It holds no watermark: labels would be given up while their events are asked about. With an order of keys it is refused."""
    words = ["--case=fraud", f"--input={SAMPLES}", f"--feedback={LABELS}"]
    assert runs.able_to_join(options.read(words)).ask_mode == "bundles"
    assert runs.able_to_join(options.read(words[:2])).ask_mode == "timers"
    with pytest.raises(SettingsError, match="--order=key"):
        runs.able_to_join(options.read([*words, "--order=key", "--repeat_memory_s=0"]))


@pytest.mark.parametrize(
    "flags",
    [
        ["--feedback=kafka://h:1/t"],
        ["--feedback=/nowhere"],
        ["--feedback=kafka://h:1", "--runner=FlinkRunner", "--input=kafka://h:1/t"],
        [f"--feedback={LABELS}", "--runner=FlinkRunner", "--input=kafka://h:1/t"],
        [f"--feedback={LABELS}", "--runner=FlinkRunner"],
    ],
)
def test_feedback_that_cannot_be_read_is_refused(flags: list[str]) -> None:
    """Before anything starts: of a runner that has no Kafka, without a topic or file, or of another kind than the input."""
    with pytest.raises(SettingsError, match="--feedback"):
        options.read(["--case=fraud", *flags])


def test_a_case_from_elsewhere_is_found_by_its_module() -> None:
    """MODULE:NAME names a case; what is no module, or no case, is refused with a sentence."""
    assert case_named("pipeline.cases.fraud.case:FRAUD") is FRAUD
    for wrong in ("no.such:CASE", "pipeline.cases.fraud.case:SAMPLES", "pipeline.cases.fraud.case:", ":X", "frud"):
        with pytest.raises(SettingsError, match="--case="):
            case_named(wrong)


def test_without_labels_nothing_is_joined(tmp_path: Path) -> None:
    """The graph has no step of feedback where none is read."""
    steps = Steps(model=model("http://rule.invalid"), dead_letter_record=dead_letters.to_json, make_caller=make_client)
    for read, wanted in ((None, False), (files.ReadLines([str(LABELS)]), True)):
        pipeline = beam.Pipeline(options=beam_options(DIRECT))
        write = files.WriteLines(str(tmp_path))
        build(pipeline, FRAUD, files.ReadLines([str(SAMPLES)]), write, steps, read)
        names = {one.unique_name for one in pipeline.to_runner_api().components.transforms.values()}
        assert any("Feedback" in name for name in names) is wanted
