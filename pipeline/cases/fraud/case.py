"""The fraud case: which functions it is made of."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam

from pipeline.case import Case, Feedback, Resources, Step, TrainedModel
from pipeline.cases.fraud import events, quality, score
from transforms.read_json import read_id
from transforms.recent import AggregateRecent

SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "fraud.jsonl"
LABELS = SAMPLES.with_name("fraud.labels.jsonl")
TRAINING = SAMPLES.with_name("fraud.training.csv")


def _make_recent(_: Resources) -> beam.PTransform:
    return AggregateRecent(
        key_of=score.entity_of,
        time_of=score.time_of,
        values_of=score.values_of,
        write=score.with_recent,
        settings=score.WINDOWS,
    )


FRAUD = Case(
    name="fraud",
    event_type=events.FraudEvent,
    output_type=score.FraudDecision,
    role="score",
    parse=events.parse_event,
    read_id=read_id,
    event_id=events.event_id,
    source_of=events.source_of,
    ask=score.ask,
    check=score.check,
    output_source=score.output_source,
    output_id=score.output_id,
    route=score.route,
    input_topic="fraud.events",
    output_topics=tuple(score.TOPICS.values()),
    dead_letter_topic="fraud.dead-letters",
    samples=SAMPLES,
    embedded_model={
        "protocol": "open-inference",
        "model": "phishing",
        "timeout_s": 30,
        "deadline_s": 120,
        "limits": {"max_in_flight": 16},
        "batch": {"max_items": 32},
        "options": {"outputs": [score.PROBABILITIES]},
        "params": {},
    },
    trained_model=TrainedModel("phishing", Path(__file__).with_name("train.py"), TRAINING),
    before=(Step("AggregateRecent", _make_recent),),
    side_outputs=score.side_outputs,
    side_topics=(score.ANALYTICS,),
    escalation_topic=score.TOPICS["review"],
    key_field="entity",
    feedback=Feedback(
        topic="fraud.labels",
        parse=events.parse_label,
        read_id=read_id,
        feedback_type=events.Label,
        feedback_id=events.event_id,
        source_of=events.source_of,
        outcome_type=quality.Outcome,
        outcomes=quality.outcomes,
        outcome_id=events.event_id,
        combine=quality.combine,
        pair_type=quality.Judged,
        tally=quality.TALLY,
        quality_topic=quality.QUALITY,
        dead_letter_topic="fraud.labels.dead-letters",
        samples=LABELS,
    ),
)
