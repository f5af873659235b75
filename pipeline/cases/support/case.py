"""The support case: which functions it is made of."""

from __future__ import annotations

from pathlib import Path

from pipeline.case import Case
from pipeline.cases.support import answer, events

SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "support.jsonl"

SUPPORT = Case(
    name="support",
    event_type=events.SupportEvent,
    output_type=answer.SupportReply,
    role="answer",
    parse=events.parse_event,
    read_id=events.read_id,
    event_id=answer.event_id,
    source_of=answer.source_of,
    ask=answer.ask,
    check=answer.check,
    output_source=answer.output_source,
    output_id=answer.output_id,
    route=answer.route,
    input_topic="support.events",
    output_topics=tuple(answer.TOPICS.values()),
    dead_letter_topic="support.dead-letters",
    samples=SAMPLES,
    embedded_model={
        "protocol": "openai-chat",
        "model": "SmolLM2-135M-Instruct",
        # It shares this machine with everything else, and answers the samples one after the other.
        "timeout_s": 120,
        "deadline_s": 600,
        "limits": {"max_in_flight": 8},
        "params": {"max_tokens": 24, "temperature": 0},
    },
)
