"""The support case: which functions it is made of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pipeline.case import Case, Repair
from pipeline.cases.support import answer, events, orders, steps
from pipeline.cases.support.feedback import FEEDBACK
from pipeline.cases.support.phrases import languages
from pipeline.cases.support.ticket import Ticket
from transforms.enrich.database import DatabaseSettings
from transforms.replies import ReplySchema

SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "support.jsonl"

SMALL_REPLY_CHARACTERS = 60
"""The longest reply that the embedded model may write: it is slow, and what it writes after that is no better."""


def small_schema() -> ReplySchema:
    """The schema of replies, narrowed so that a small model is done with one in some fifty tokens."""
    fields: dict[str, Any] = dict(answer.SCHEMA.schema["properties"])
    fields["reply"] = {"type": "string", "minLength": 1, "maxLength": SMALL_REPLY_CHARACTERS}
    fields["language"] = {"enum": list(languages())}
    fields["confidence"] = {"enum": [0.2, 0.5, 0.9]}
    fields["claims"] = {"type": "array", "maxItems": 0}
    return ReplySchema("reply", {**answer.SCHEMA.schema, "properties": fields})


def sample_orders(folder: Path) -> DatabaseSettings:
    """The database that goes with the samples, in `folder`, made where this version of it is not there yet."""
    version = hashlib.sha256(orders.SAMPLES.read_bytes()).hexdigest()[:12]
    path = folder / f"orders-{version}.sqlite"
    if path.exists():
        return DatabaseSettings(f"sqlite:///{path}")
    return orders.make_database(path, orders.read_orders())


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
    output_topics=(*answer.TOPICS.values(), answer.ESCALATIONS),
    dead_letter_topic="support.dead-letters",
    samples=SAMPLES,
    embedded_model={
        "protocol": "openai-chat",
        "model": "SmolLM2-135M-Instruct",
        # It shares this machine with everything else, and answers the samples one after the other.
        "timeout_s": 120,
        "deadline_s": 600,
        "limits": {"max_in_flight": 8},
        # It gets a narrower schema than a question carries.
        "options": {"schema": "none"},
        "params": {"max_tokens": 120, "temperature": 0, "response_format": small_schema().response_format()},
    },
    record_types=(Ticket,),
    before=steps.BEFORE,
    repair=Repair(
        needed=answer.needs_repair,
        ask=answer.ask_repair,
        id_of=answer.repair_id,
        check=answer.check_repair,
        give_up=answer.give_up_repair,
    ),
    decide=answer.decide,
    side_outputs=answer.side_outputs,
    side_topics=(answer.ANALYTICS,),
    escalation_topic=answer.ESCALATIONS,
    make_orders=sample_orders,
    feedback=FEEDBACK,
)
