"""How good the decisions were, by the labels that came later: precision, recall and calibration for each hour of events."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from pipeline.cases.fraud.events import Label, rfc_3339
from pipeline.cases.fraud.score import FraudDecision
from transforms.records import OutputRecord
from transforms.tally import Tally, Window

QUALITY = "fraud.quality"
BINS = 10


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of a decision until its label comes; `at_ms` is the event's time."""

    id: str
    at_ms: int
    score: float
    decision: str


class Judged(msgspec.Struct, frozen=True, array_like=True):
    """A decision with its label."""

    at_ms: int
    score: float
    decision: str
    is_fraud: bool


class Bin(msgspec.Struct, frozen=True, array_like=True):
    """The decisions whose scores lie in one tenth: how many, the sum of their scores, how many were fraud."""

    count: int = 0
    scores: float = 0.0
    frauds: int = 0


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """The counts of a window: of frauds and of others by decision, the sum of squared errors, and the bins of calibration."""

    frauds: dict[str, int] = {}
    others: dict[str, int] = {}
    squares: float = 0.0
    bins: tuple[Bin, ...] = (Bin(),) * BINS


def outcomes(output: FraudDecision) -> tuple[Outcome, ...]:
    """What is kept of a decision."""
    return (Outcome(output.event.id, output.event.at_ms, output.score, output.decision),)


def combine(outcome: Outcome, label: Label) -> Judged:
    """The two together."""
    return Judged(outcome.at_ms, outcome.score, outcome.decision, label.is_fraud)


def group_of(_: Judged) -> str:
    """All decisions make one figure."""
    return ""


def time_of(judged: Judged) -> int:
    """The event's time: figures are of when the decision was made, not of when the label came."""
    return judged.at_ms


def add(counts: Counts, judged: Judged) -> Counts:
    """The counts with a labelled decision."""
    side = "frauds" if judged.is_fraud else "others"
    before = getattr(counts, side)
    number = min(int(judged.score * BINS), BINS - 1)
    old = counts.bins[number]
    new = Bin(old.count + 1, old.scores + judged.score, old.frauds + judged.is_fraud)
    changed: dict[str, Any] = {side: {**before, judged.decision: before.get(judged.decision, 0) + 1}}
    return msgspec.structs.replace(
        counts,
        squares=counts.squares + (judged.score - judged.is_fraud) ** 2,
        bins=(*counts.bins[:number], new, *counts.bins[number + 1 :]),
        **changed,
    )


def figures(counts: Counts) -> dict[str, Any]:
    """The figures of some counts; None where there is nothing to divide by.

    `blocked` takes a blocked event for the model's yes, `flagged` one that was blocked or reviewed. `brier` is the mean squared
    error of the scores (G. W. Brier, Monthly Weather Review 78(1), 1950), `calibration_error` the mean distance between scores and
    shares of fraud over the bins, weighted by their counts (expected calibration error; Naeini, Cooper, Hauskrecht, AAAI 2015).
    """
    labelled = sum(counts.frauds.values()) + sum(counts.others.values())
    return {
        "labelled": labelled,
        "frauds": sum(counts.frauds.values()),
        "blocked": _rates(counts, ("block",)),
        "flagged": _rates(counts, ("block", "review")),
        "brier": _ratio(counts.squares, labelled),
        "calibration_error": _ratio(sum(abs(one.scores - one.frauds) for one in counts.bins), labelled),
        "bins": [
            {
                "from": number / BINS,
                "to": (number + 1) / BINS,
                "count": one.count,
                "mean_score": _ratio(one.scores, one.count),
                "fraud_share": _ratio(one.frauds, one.count),
            }
            for number, one in enumerate(counts.bins)
        ],
    }


def _rates(counts: Counts, decisions: tuple[str, ...]) -> dict[str, Any]:
    right = sum(counts.frauds.get(one, 0) for one in decisions)
    wrong = sum(counts.others.get(one, 0) for one in decisions)
    return {
        "count": right + wrong,
        "precision": _ratio(right, right + wrong),
        "recall": _ratio(right, sum(counts.frauds.values())),
    }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


def to_record(window: Window, counts: Counts) -> OutputRecord:
    """The figures of a window as a record; keyed by the window, so that a compacted topic keeps the last revision."""
    start, end = rfc_3339(window.start_ms), rfc_3339(window.end_ms)
    facts = {
        "id": f"{start}/{window.revision}",
        "window_start": start,
        "window_end": end,
        "revision": window.revision,
        **figures(counts),
    }
    return OutputRecord(
        QUALITY, orjson.dumps(facts), key=start.encode(), event_time_ms=window.start_ms, id=str(facts["id"])
    )


TALLY = Tally(group_of, time_of, Counts, add, to_record)
