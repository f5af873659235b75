"""The evaluation of the support case on the labelled events that ship."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import orjson
import pytest

from pipeline import evaluate, evaluate_fraud
from pipeline.cases.fraud.case import FRAUD, SAMPLES
from pipeline.cases.support.evaluation import Share, judge_steps, read_labelled


def test_every_figure_is_as_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    """`scripts/evaluate` ends with status 0: each step is as good as is wanted, on 150 events or more, each with one outcome."""
    assert evaluate.main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in evaluate.WANTED)
    assert len(read_labelled()) >= 150


def test_the_labelled_events_are_of_many_kinds() -> None:
    """There are three channels, four languages or more, every structured kind of personal data, and returns that are refused."""
    labelled = read_labelled()
    good = [one for one in labelled if one.labels.parse == "ok"]
    assert len({one.id for one in labelled}) == len(labelled)
    assert {one.event["channel"] for one in good} == {"chat", "email", "call"}
    assert len({one.labels.language for one in good}) >= 4
    assert {kind for one in good for kind, _ in one.labels.personal} == set(evaluate_kinds())
    reasons = Counter(one.labels.expected.reason for one in good if one.labels.expected)
    assert len(reasons) >= 10
    assert sum(bool(one.labels.problems) for one in good) >= 15


def evaluate_kinds() -> tuple[str, ...]:
    """Every kind of personal data that is looked for."""
    from transforms.enrich.redact import KINDS

    return KINDS


def test_a_wrong_label_is_seen() -> None:
    """The sibling: with labels that are not true, figures fall, and the events are named."""
    labelled = read_labelled()
    wrong = [
        msgspec.structs.replace(
            one, labels=msgspec.structs.replace(one.labels, language="xx", personal=(("EMAIL", "no"),))
        )
        for one in labelled
    ]
    figures = {one.name: one for one in judge_steps(wrong)}
    assert figures["language"].value == figures["redaction recall"].value == figures["redaction precision"].value == 0
    assert "chat-en-001" in figures["language"].wrong
    assert evaluate.below(list(figures.values()))


def test_a_share_of_nothing_is_whole() -> None:
    """A figure without cases does not fail."""
    assert Share("x", 0, 0).value == 1


def fraud_outputs(folder: Path, *more: str) -> None:
    """An output to each good event of the fraud samples, and one more to each of these ids."""
    # The samples hold repeats, which have no outcome of their own.
    ids = {one["id"] for one in evaluate_fraud.lines(SAMPLES) if one.get("id", "").startswith("page-")}
    rows = [{"id": event_id, "score": 0.1, "decision": "allow"} for event_id in (*sorted(ids), *more)]
    (folder / f"{FRAUD.output_topics[0]}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))


def test_a_second_outcome_of_a_fraud_event_is_seen(tmp_path: Path) -> None:
    """One outcome for each good event is all of them; an event with two is one that has not one."""
    fraud_outputs(tmp_path)
    name = "one outcome for each good event"
    found = evaluate_fraud.judge(tmp_path)
    assert found[name] == 1.0
    twice = next(one["id"] for one in evaluate_fraud.lines(SAMPLES) if one.get("id", "").startswith("page-"))
    fraud_outputs(tmp_path, twice)
    found = evaluate_fraud.judge(tmp_path)
    assert found[name] < 1.0
    assert name in evaluate_fraud.wrong(found)
