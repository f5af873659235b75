"""How good the steps of the support case are, measured on labelled events.

A scripted model answers, so that only our steps are judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson

from pipeline.cases.support.events import parse_event, read_id
from pipeline.cases.support.orders import read_orders
from pipeline.cases.support.steps import composed, opened, with_orders
from pipeline.cases.support.ticket import Order, Ticket
from transforms.enrich.redact import KINDS
from transforms.errors import BadEvent, BadReply
from transforms.records import SourceRecord
from transforms.replies import ReplySchema

LABELLED = Path(__file__).resolve().parents[2] / "samples" / "labelled.jsonl"
OUTPUT_SCHEMA = Path(__file__).with_name("output.schema.json")


class Expected(msgspec.Struct, frozen=True):
    """What the rule for returns must say of an order."""

    reason: str
    order_id: str | None


class Labels(msgspec.Struct, frozen=True):
    """What is true of an event: read by a person, not by the steps.

    `parse` is ``ok`` or the kind of a malformed event, `personal` the kinds and values of personal data, `expected` what the rule for
    returns must say where the customer asks for one (``return`` in the file), `person` whether a person must answer, and `problems`
    what is wrong with the first reply of the script.
    """

    parse: str
    language: str = ""
    personal: tuple[tuple[str, str], ...] = ()
    expected: Expected | None = msgspec.field(default=None, name="return")
    person: bool = False
    problems: tuple[str, ...] = ()


class Labelled(msgspec.Struct, frozen=True):
    """An event, its labels, and the replies that the scripted model gives to it."""

    event: dict[str, Any]
    labels: Labels
    replies: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The event's id."""
        return str(self.event["id"])

    @property
    def record(self) -> SourceRecord:
        """The event as a record."""
        return SourceRecord(value=orjson.dumps(self.event))


class Share(msgspec.Struct, frozen=True):
    """A figure: so many of so many, and the cases that are not, by id."""

    name: str
    good: int
    of: int
    wrong: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The share, 1 of nothing."""
        return self.good / self.of if self.of else 1.0


def read_labelled(path: Path = LABELLED) -> list[Labelled]:
    """The labelled events of a file. Raises `msgspec.ValidationError` for a line that is none."""
    decoder = msgspec.json.Decoder(Labelled)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]


def share(name: str, judged: Sequence[tuple[str, bool]]) -> Share:
    """A figure from ids and verdicts."""
    wrong = tuple(one for one, good in judged if not good)
    return Share(name, len(judged) - len(wrong), len(judged), wrong)


def ticket_of(one: Labelled, orders: Mapping[str, Sequence[Order]]) -> Ticket:
    """The ticket of a labelled event as the pure steps make it, without history. Raises BadEvent for a malformed one."""
    steps = composed()
    ticket = opened(parse_event(one.record))
    for label in ("NormalizeText", "RemoveBoilerplate", "DetectLanguage", "RedactText", "ScoreSentiment"):
        ticket = steps[label](ticket)
    ticket = with_orders(ticket, tuple(orders.get(ticket.event.customer_id, ())))
    return steps["DecideReturn"](ticket)


def judge_steps(labelled: Sequence[Labelled]) -> list[Share]:
    """The figures of the steps before the model."""
    orders: dict[str, list[Order]] = {}
    for order in read_orders():
        orders.setdefault(order.customer_id, []).append(order)
    parsed: list[tuple[str, bool]] = []
    tickets: list[tuple[Labelled, Ticket]] = []
    for one in labelled:
        try:
            ticket = ticket_of(one, orders)
        except BadEvent as error:
            parsed.append((one.id, one.labels.parse == error.kind))
        else:
            parsed.append((one.id, one.labels.parse == "ok"))
            tickets.append((one, ticket))
    return [
        share("parsed as labelled", parsed),
        share("language", [(one.id, ticket.language.code == one.labels.language) for one, ticket in tickets]),
        *_redaction(tickets),
        *_returns(tickets),
    ]


def _redaction(tickets: Sequence[tuple[Labelled, Ticket]]) -> list[Share]:
    found = [
        (one.id, (mark.kind, mark.value), one.labels.personal)
        for one, ticket in tickets
        for mark in ticket.placeholders
    ]
    wanted = [
        (one.id, kind, (kind, value) in {(mark.kind, mark.value) for mark in ticket.placeholders})
        for one, ticket in tickets
        for kind, value in one.labels.personal
    ]
    by_kind = [share(f"  recall of {kind}", [(one, good) for one, of, good in wanted if of == kind]) for kind in KINDS]
    return [
        share("redaction precision", [(one, pair in labels) for one, pair, labels in found]),
        share("redaction recall", [(one, good) for one, _, good in wanted]),
        *by_kind,
    ]


def _returns(tickets: Sequence[tuple[Labelled, Ticket]]) -> list[Share]:
    asked = [(one, ticket) for one, ticket in tickets if ticket.decision is not None]
    wanted = [(one, ticket) for one, ticket in tickets if one.labels.expected is not None]
    both = [(one, ticket) for one, ticket in wanted if ticket.decision is not None]
    return [
        share("return requests precision", [(one.id, one.labels.expected is not None) for one, _ in asked]),
        share("return requests recall", [(one.id, ticket.decision is not None) for one, ticket in wanted]),
        share("rule decisions", [(one.id, _is_right(one.labels.expected, ticket)) for one, ticket in both]),
    ]


def _is_right(expected: Expected | None, ticket: Ticket) -> bool:
    decision = ticket.decision
    if expected is None or decision is None:
        return False
    eligible = expected.reason in ("within-window", "fault")
    return (expected.reason, expected.order_id, eligible) == (decision.reason, decision.order_id, decision.eligible)


def judge_outputs(
    labelled: Sequence[Labelled], lines: Callable[[str], list[dict[str, Any]]], topics: Mapping[str, Any]
) -> list[Share]:
    """The figures of what a job wrote over the labelled events; `lines` gives the records of a topic."""
    schema = ReplySchema("output", orjson.loads(OUTPUT_SCHEMA.read_bytes()))
    replies = [record for topic in topics["replies"] for record in lines(topic)]
    escalations = lines(topics["escalations"])
    facts = {record["id"]: record for record in lines(topics["analytics"])}
    dead = {read_id(SourceRecord(value=str(letter.get("value") or "").encode())) for letter in lines(topics["dead"])}
    outcomes = Counter([record["id"] for record in (*replies, *escalations)]) + Counter(one for one in dead if one)
    good = [one for one in labelled if one.labels.parse == "ok"]
    person = {one.id: one.labels.person for one in labelled}
    expected = [(one.id, kind) for one in good for kind in one.labels.problems]
    clean = [one for one in good if not one.labels.problems]
    escalated = {record["id"] for record in escalations}
    return [
        share("one outcome for each event", [(one.id, outcomes[one.id] == 1) for one in labelled]),
        share("records that keep the schema", [(one["id"], _keeps(schema, one)) for one in (*replies, *escalations)]),
        share("violations caught", [(f"{one} {kind}", kind in facts[one]["problems"]) for one, kind in expected]),
        share(
            "  of them ungrounded",
            [(one, kind in facts[one]["problems"]) for one, kind in expected if kind == "ungrounded"],
        ),
        share("good replies left alone", [(one.id, not facts[one.id]["problems"]) for one in clean]),
        share(
            "nothing wrong reaches a customer", [(one["id"], not facts[one["id"]]["problems_left"]) for one in replies]
        ),
        share("escalation precision", [(one, person[one]) for one in sorted(escalated)]),
        share("escalation recall", [(one.id, one.id in escalated) for one in good if one.labels.person]),
    ]


def _keeps(schema: ReplySchema, record: Mapping[str, Any]) -> bool:
    try:
        schema.read(orjson.dumps(record).decode())
    except BadReply:
        return False
    return True
