"""What the model is asked about a fraud event, what is decided on its score, and where the decision goes."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from pipeline.cases.fraud.events import FEATURES, FraudEvent, rfc_3339
from pipeline.cases.fraud.thresholds import decide, thresholds
from transforms.errors import BadReply
from transforms.panes import Recent, WindowSettings
from transforms.records import Answer, OutputRecord, SourceRecord, output_for
from transforms.remote.questions import Tensor, Tensors

TOPICS = {"approve": "fraud.approved", "review": "fraud.review", "block": "fraud.blocked"}
"""The topic of each decision."""

ANALYTICS = "fraud.analytics"

WINDOWS = WindowSettings(windows_s=(3_600.0,), pane_s=60.0, lateness_s=3_600.0)
"""An entity's last hour, a minute at a time; an event that is an hour late still counts for those after it."""

COUNTED = ("request_from_other_domain", "long_url")
"""The features whose mean over the entity's window the model gets."""

INPUTS = (*FEATURES, "entity_events", *(f"entity_mean_{name}" for name in COUNTED))
"""The columns of the model, in their order."""

PROBABILITIES = "predict_proba"
"""The output of MLServer's scikit-learn runtime that holds a probability for each class."""


class FraudDecision(msgspec.Struct, frozen=True, array_like=True):
    """A scored event with what was decided on it and why."""

    event: FraudEvent
    answer: Answer
    score: float
    decision: str
    reasons: tuple[str, ...]


def entity_of(event: FraudEvent) -> str:
    """Whose window the event counts in; an event without an entity has one of its own."""
    return f"e:{event.entity}" if event.entity else f"i:{event.id}"


def time_of(event: FraudEvent) -> int:
    """The event's own time."""
    return event.at_ms


def values_of(event: FraudEvent) -> tuple[float, ...]:
    """What is summed over the entity's window."""
    return counted_values(event.features)


def counted_values(features: tuple[float, ...]) -> tuple[float, ...]:
    """The features of `COUNTED`."""
    return tuple(features[FEATURES.index(name)] for name in COUNTED)


def with_recent(event: FraudEvent, found: tuple[Recent, ...]) -> FraudEvent:
    """The event with the figures of its entity."""
    return msgspec.structs.replace(event, recent=found)


def inputs(features: tuple[float, ...], recent: Recent) -> tuple[float, ...]:
    """A row of the model: training and stream make it here."""
    return (*features, float(recent.count), *(recent.mean(number) for number in range(len(COUNTED))))


def ask(event: FraudEvent) -> Tensors:
    """The question to the model: one row."""
    row = inputs(event.features, event.recent[0])
    return Tensors((Tensor("features", "FP64", (1, len(row)), row),))


def check(answered: tuple[FraudEvent, Answer]) -> FraudDecision:
    """The decision on an event. Raises BadReply, of the kind ``no-score``, where the model gave no probability."""
    event, answer = answered
    score = score_in(answer)
    decision, reasons = decide(score, event.recent[0].count, thresholds())
    return FraudDecision(event, answer, score, decision, reasons)


def score_in(answer: Answer) -> float:
    """The probability of fraud in an answer: of the two classes, or of that alone. Raises BadReply."""
    value = answer.value
    # A fixed value that stands in for a model, in models.yaml, may be the number itself.
    found: Any = value.get(PROBABILITIES) if isinstance(value, dict) else value
    while isinstance(found, list | tuple) and found:
        found = found[-1]
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 1:
        raise BadReply("no-score", f"The answer has no {PROBABILITIES} between 0 and 1.")
    return float(found)


def output_id(output: FraudDecision) -> str:
    """The id of the event that was decided on."""
    return output.event.id


def output_source(output: FraudDecision) -> SourceRecord:
    """The record it came from."""
    return output.event.source


def route(output: FraudDecision) -> OutputRecord:
    """The decision as a record, on the topic of its kind, with key, headers and event time of its event."""
    answer = output.answer
    facts = {
        **facts_of(output),
        "model": answer.model,
        "role": answer.role,
        "fallback_reason": answer.reason,
        "endpoint": answer.endpoint,
        "attempts": answer.attempts,
        "model_ms": round(answer.model_ms, 1),
        "latency_ms": round(answer.waited_ms, 1),
    }
    return _record(TOPICS[output.decision], output, facts)


def side_outputs(output: FraudDecision) -> tuple[OutputRecord, ...]:
    """The facts for analytics: the decision, and everything the model was given."""
    event = output.event
    given = dict(zip(INPUTS, inputs(event.features, event.recent[0]), strict=True))
    return (_record(ANALYTICS, output, {**facts_of(output), "inputs": given}),)


def facts_of(output: FraudDecision) -> dict[str, Any]:
    """What every record about a decision has."""
    event = output.event
    return {
        "id": event.id,
        "at": rfc_3339(event.at_ms),
        "entity": event.entity,
        "decision": output.decision,
        "score": round(output.score, 6),
        "reasons": list(output.reasons),
        "thresholds_version": thresholds().version,
        "entity_events": event.recent[0].count,
    }


def _record(topic: str, output: FraudDecision, facts: dict[str, Any]) -> OutputRecord:
    return output_for(output.event.source, topic, orjson.dumps(facts), output.event.id)
