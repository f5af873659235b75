"""What the model is asked about a ticket, which replies are let through, when a person answers, and where everything goes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import orjson

from pipeline.cases.support import prompts
from pipeline.cases.support.channels import reply_for
from pipeline.cases.support.checks import REPAIRABLE, Problem, problems_of
from pipeline.cases.support.phrases import languages
from pipeline.cases.support.policy import Policy, policy
from pipeline.cases.support.ticket import Ticket
from transforms.enrich.language import UNKNOWN
from transforms.errors import BadReply
from transforms.records import Answer, CallFailure, OutputRecord, SourceRecord, output_for
from transforms.remote.questions import Chat
from transforms.replies import ReplySchema, read_schema

TOPICS = {"chat": "support.chat.replies", "email": "support.email.replies", "call": "support.call.replies"}
"""The topic of each channel's replies."""

ESCALATIONS = "support.escalations"
ANALYTICS = "support.analytics"

SCHEMA = read_schema(Path(__file__).with_name("reply.schema.json"))
"""What the model must answer: sent to servers that keep to a schema, and checked here in any case."""

BRIEF_SCHEMA = read_schema(Path(__file__).with_name("brief.schema.json"))
"""What a small model must answer: less, since each word of it takes its time."""


class SupportReply(msgspec.Struct, frozen=True, array_like=True):
    """A reply of the model with the ticket it answers, and what was found wrong with it.

    `answer` is the last one, with the attempts and tokens of all where it was asked for again. `first_problems` are those of the first
    answer, `problems` those that are left. `reasons` say why a person answers; without any, the customer gets `text`. `prompt` is the
    version that was asked; `confidence` is None where the model did not say.
    """

    ticket: Ticket
    answer: Answer
    text: str = ""
    language: str = UNKNOWN
    intent: str = "other"
    needs_human: bool = False
    confidence: float | None = None
    problems: tuple[Problem, ...] = ()
    first_problems: tuple[Problem, ...] = ()
    repairs: int = 0
    reasons: tuple[str, ...] = ()
    prompt: str = prompts.ANSWER


def event_id(record: Any) -> str:
    """The id of an event or ticket."""
    return str(record.id)


def source_of(record: Any) -> SourceRecord:
    """The record an event or ticket came from."""
    source: SourceRecord = record.source
    return source


def output_id(reply: SupportReply) -> str:
    """The id of the event that is answered."""
    return reply.ticket.id


def output_source(reply: SupportReply) -> SourceRecord:
    """The record the answered event came from."""
    return reply.ticket.source


def ask(ticket: Ticket) -> Chat:
    """The question to the model, with the schema of its reply."""
    return Chat(prompts.answer_messages(ticket), schema=SCHEMA.schema)


def ask_briefly(ticket: Ticket) -> Chat:
    """The question to a small model, with the schema of its reply."""
    return Chat(prompts.answer_messages(ticket, prompts.BRIEF), schema=BRIEF_SCHEMA.schema)


def check(answered: tuple[Ticket, Answer]) -> SupportReply:
    """The reply, with everything that is wrong with it. Raises nothing: what is wrong decides what becomes of it."""
    return _checked(answered, SCHEMA, prompts.ANSWER)


def check_brief(answered: tuple[Ticket, Answer]) -> SupportReply:
    """The same of a reply to `ask_briefly`, whose language and claims are read from its text in any case."""
    return _checked(answered, BRIEF_SCHEMA, prompts.BRIEF)


def _checked(answered: tuple[Ticket, Answer], schema: ReplySchema, prompt: str) -> SupportReply:
    ticket, answer = answered
    try:
        fields = schema.read(answer.text)
    except BadReply as error:
        cut = " It was cut off at the limit of tokens: be shorter." if answer.finish_reason == "length" else ""
        return SupportReply(ticket, answer, problems=(Problem(error.kind, f"{error}{cut}"),), prompt=prompt)
    return SupportReply(
        ticket,
        answer,
        text=fields["reply"].strip(),
        language=fields.get("language", UNKNOWN),
        intent=fields["intent"],
        needs_human=fields.get("needs_human", False),
        confidence=float(fields["confidence"]) if "confidence" in fields else None,
        problems=problems_of(ticket, fields, policy()),
        prompt=prompt,
    )


def needs_repair(reply: SupportReply) -> bool:
    """Whether the model gets a second try: something is wrong, and all of it can be put right."""
    return bool(reply.problems) and all(problem.kind in REPAIRABLE for problem in reply.problems)


def repair_id(reply: SupportReply) -> str:
    """The id of the second call: another than that of the first, whose answer a server may have kept."""
    return f"{reply.ticket.id}#repair"


def ask_repair(reply: SupportReply) -> Chat:
    """The question of the second try."""
    problems = [one.message for one in reply.problems]
    return Chat(prompts.repair_messages(reply.ticket, reply.answer.text, problems), schema=SCHEMA.schema)


def check_repair(answered: tuple[SupportReply, Answer]) -> SupportReply:
    """The reply of the second try, with what is still wrong with it."""
    before, answer = answered
    found = check((before.ticket, _added(before.answer, answer)))
    return msgspec.structs.replace(found, first_problems=before.problems, repairs=1)


def give_up_repair(failed: tuple[SupportReply, CallFailure]) -> SupportReply:
    """The first reply, where the second call failed: a person answers, which is better than a dead letter."""
    before, failure = failed
    return msgspec.structs.replace(
        _given_up(before, failure, "repair-failed"), first_problems=before.problems, repairs=1
    )


def needs_fallback(reply: SupportReply) -> bool:
    """Whether the model's fallback is asked: what the model was told about is still wrong, and it was the model that answered."""
    return needs_repair(reply) and reply.answer.reason is None


def fallback_id(reply: SupportReply) -> str:
    """The id of the call to the fallback."""
    return f"{reply.ticket.id}#fallback"


def ask_fallback(reply: SupportReply) -> Chat:
    """The question to the fallback: that of the first try. It has seen none of it, and is not led by another's mistakes."""
    return ask(reply.ticket)


def check_fallback(answered: tuple[SupportReply, Answer]) -> SupportReply:
    """The reply of the fallback, with what is wrong with it, and why it was asked."""
    before, answer = answered
    kinds = ", ".join(one.kind for one in before.problems)
    reasons = [f"{before.answer.role} gave no good reply ({kinds}): {before.problems[0].message}", answer.reason]
    reason = " ".join(filter(None, reasons))
    found = check((before.ticket, msgspec.structs.replace(_added(before.answer, answer), reason=reason)))
    return msgspec.structs.replace(found, first_problems=before.first_problems, repairs=before.repairs)


def give_up_fallback(failed: tuple[SupportReply, CallFailure]) -> SupportReply:
    """The reply as it was, where the fallback had no answer: a person answers."""
    return _given_up(*failed, "fallback-failed")


def _added(before: Answer, answer: Answer) -> Answer:
    """An answer with the attempts, tokens and times of the one before it."""
    return msgspec.structs.replace(
        answer,
        attempts=before.attempts + answer.attempts,
        prompt_tokens=before.prompt_tokens + answer.prompt_tokens,
        completion_tokens=before.completion_tokens + answer.completion_tokens,
        model_ms=before.model_ms + answer.model_ms,
        waited_ms=before.waited_ms + answer.waited_ms,
    )


def _given_up(reply: SupportReply, failure: CallFailure, kind: str) -> SupportReply:
    """A reply whose further try had no answer."""
    answer = msgspec.structs.replace(reply.answer, attempts=reply.answer.attempts + failure.attempts)
    problem = Problem(kind, f"A further try had no answer: {failure.error_type}.")
    return msgspec.structs.replace(reply, answer=answer, problems=(*reply.problems, problem))


def decide(reply: SupportReply) -> SupportReply:
    """The reply with the reasons why a person must answer, if there are any."""
    return msgspec.structs.replace(reply, reasons=tuple(reasons_for(reply, policy())))


def reasons_for(reply: SupportReply, shop: Policy) -> list[str]:
    """Why a person must answer: what is wrong with the reply, the model's doubt, the rule, the mood, a danger, the language."""
    ticket, rules = reply.ticket, shop.escalation
    reasons = [f"reply:{problem.kind}" for problem in reply.problems]
    unsure = reply.confidence is not None and reply.confidence < rules.confidence
    if not reply.problems and (reply.needs_human or unsure):
        reasons.append("doubt")
    if ticket.decision is not None and ticket.decision.reason in rules.decisions:
        reasons.append(f"rule:{ticket.decision.reason}")
    score = ticket.sentiment.score
    if score <= rules.sentiment or (score <= rules.sentiment_again and len(ticket.history) >= rules.contacts_again):
        reasons.append("sentiment")
    lower = ticket.words.lower()
    if any(one.needs_person(lower) for code, one in languages().items() if code in {ticket.language.code, "en"}):
        reasons.append("danger-or-law")
    if ticket.language.code not in (*languages(), UNKNOWN):
        reasons.append("language")
    return reasons


def route(reply: SupportReply) -> OutputRecord:
    """The outcome as JSON: a reply on the topic of its channel, or an escalation; key, headers and event time are the event's."""
    value = _escalation(reply) if reply.reasons else _reply(reply)
    topic = ESCALATIONS if reply.reasons else TOPICS[reply.ticket.event.channel]
    return _record(reply, topic, value)


def side_outputs(reply: SupportReply) -> tuple[OutputRecord, ...]:
    """The facts of an event that was answered or escalated, for the analytics topic. It is no outcome and counts for nothing."""
    ticket = reply.ticket
    value = {
        **_facts(reply),
        "outcome": "escalation" if reply.reasons else "reply",
        "reasons": reply.reasons,
        "problems": [one.kind for one in reply.first_problems or reply.problems],
        "problems_left": [one.kind for one in reply.problems],
        "repairs": reply.repairs,
        "language_confidence": ticket.language.confidence,
        "sentiment_source": ticket.sentiment.source,
        "urgency_signs": ticket.urgency.signs,
        "contacts": len(ticket.history),
        "orders_known": ticket.orders_known,
        "personal_data": dict(Counter(one.kind for one in ticket.placeholders)),
        "attachments": len(ticket.event.attachments),
        "event_time_ms": ticket.event.at_ms,
    }
    return (_record(reply, ANALYTICS, value),)


def _reply(reply: SupportReply) -> dict[str, Any]:
    return {**_facts(reply), **reply_for(reply.ticket, reply.text, policy())}


def _escalation(reply: SupportReply) -> dict[str, Any]:
    ticket = reply.ticket
    return {
        **_facts(reply),
        "reasons": reply.reasons,
        "problems": [{"kind": one.kind, "message": one.message} for one in reply.problems],
        "text": ticket.text,
        "draft": reply.text,
        "orders": [order.id for order in ticket.orders],
        "attachments": [msgspec.structs.asdict(one) for one in ticket.event.attachments],
        "history": [{"id": one.id, "channel": one.channel, "text": one.text} for one in ticket.history],
    }


def _facts(reply: SupportReply) -> dict[str, Any]:
    """The fields that all outputs share."""
    ticket, answer = reply.ticket, reply.answer
    decision = ticket.decision
    return {
        "id": ticket.id,
        "channel": ticket.event.channel,
        "customer_id": ticket.event.customer_id,
        "language": ticket.language.code,
        "intent": reply.intent,
        "sentiment": ticket.sentiment.score,
        "urgency": ticket.urgency.level,
        "decision": None if decision is None else msgspec.structs.asdict(decision),
        "confidence": reply.confidence,
        "truncated": answer.finish_reason == "length",
        "prompt_version": reply.prompt,
        "policy_version": policy().version,
        "model": answer.model,
        "role": answer.role,
        "fallback_reason": answer.reason,
        "endpoint": answer.endpoint,
        "attempts": answer.attempts,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "model_ms": round(answer.model_ms, 1),
        "latency_ms": round(answer.waited_ms, 1),
    }


def _record(reply: SupportReply, topic: str, value: dict[str, Any]) -> OutputRecord:
    return output_for(reply.ticket.source, topic, orjson.dumps(value), reply.ticket.id)
