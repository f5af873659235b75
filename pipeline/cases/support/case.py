"""The support case: which functions it is made of."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.case import Case, Repair
from pipeline.cases.support import answer, events, orders, steps
from pipeline.cases.support.feedback import FEEDBACK
from pipeline.cases.support.ticket import Ticket
from transforms.enrich.database import DatabaseSettings

SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "support.jsonl"

GRAMMAR = Path(__file__).with_name("brief.gbnf")
"""What llama.cpp lets the embedded model write: the brief reply as JSON without white space, of six words at most."""


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
        # The grammar takes the place of the schema: of that, llama.cpp would make one with white space, which costs tokens.
        "options": {"schema": "none"},
        "params": {"max_tokens": 56, "temperature": 0, "grammar": GRAMMAR.read_text()},
    },
    # It is asked briefly, and once: a second try takes as long as the first, and is no better.
    for_embedded={"ask": answer.ask_briefly, "check": answer.check_brief, "repair": None},
    record_types=(Ticket,),
    before=steps.BEFORE,
    repair=Repair(
        needed=answer.needs_repair,
        ask=answer.ask_repair,
        id_of=answer.repair_id,
        check=answer.check_repair,
        give_up=answer.give_up_repair,
    ),
    fallback=Repair(
        needed=answer.needs_fallback,
        ask=answer.ask_fallback,
        id_of=answer.fallback_id,
        check=answer.check_fallback,
        give_up=answer.give_up_fallback,
    ),
    decide=answer.decide,
    side_outputs=answer.side_outputs,
    side_topics=(answer.ANALYTICS,),
    escalation_topic=answer.ESCALATIONS,
    make_orders=sample_orders,
    feedback=FEEDBACK,
)
