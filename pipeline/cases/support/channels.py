"""A reply in the form of its channel: short for chat, a letter with threading headers for e-mail, a note for the agent of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.cases.support.phrases import Phrases, phrases_for
from pipeline.cases.support.policy import Policy
from pipeline.cases.support.prompts import order_line
from pipeline.cases.support.ticket import REPLY_PREFIX, Decision, Ticket
from transforms.enrich.redact import restore

MAX_REFERENCES = 20
"""How many message ids stand in a References field; the first and the youngest stay, as RFC 5537, section 3.4.4, allows."""


def reply_for(ticket: Ticket, text: str, shop: Policy) -> dict[str, Any]:
    """The fields of a reply that depend on the channel: ``reply``, and ``headers`` for e-mail or ``note`` for a call."""
    channel = ticket.event.channel
    phrases = phrases_for(ticket.language.code)
    text = restore(text, ticket.placeholders, shop.restore[channel])
    if channel == "chat":
        return {"reply": " ".join([*text.split(), *rule_lines(ticket.decision, phrases, shop, steps=False)])}
    if channel == "email":
        return {"reply": _letter(ticket, text, phrases, shop), "headers": mail_headers(ticket)}
    return {"reply": text, "note": call_note(ticket, text, shop)}


def rule_lines(decision: Decision | None, phrases: Phrases, shop: Policy, *, steps: bool) -> list[str]:
    """What the rule for returns says to the customer: its reason, and for a return that is allowed the steps or the link alone."""
    if decision is None:
        return []
    reason = phrases.reasons[decision.reason].format(order=decision.order_id or "", until=decision.until or "")
    if not decision.eligible:
        return [reason]
    link = shop.returns.link.format(order=decision.order_id)
    if not steps:
        return [reason, link]
    return [reason, *(f"{at}. {step.format(link=link)}" for at, step in enumerate(phrases.steps, start=1))]


def _letter(ticket: Ticket, text: str, phrases: Phrases, shop: Policy) -> str:
    name = ticket.event.sender_name
    greeting = phrases.greeting.format(name=name) if name else phrases.greeting_unnamed
    lines = rule_lines(ticket.decision, phrases, shop, steps=True)
    parts = [greeting, text, *(["\n".join(lines)] if lines else []), phrases.closing]
    return "\n\n".join(parts)


def mail_headers(ticket: Ticket) -> Mapping[str, str]:
    """The header fields that put a reply into its thread (RFC 5322, section 3.6.4), for whoever sends it.

    In-Reply-To is the message's own id, References its References (or In-Reply-To) with that id behind; both are left out where
    the message has none. The subject is the message's with one ``Re:``.
    """
    event = ticket.event
    subject = REPLY_PREFIX.sub("", event.subject or "", count=1).strip()
    headers = {"Subject": f"Re: {subject}".strip()}
    if event.sender:
        headers["To"] = event.sender
    if event.message_id:
        references = [one for one in event.references if one != event.message_id]
        if len(references) >= MAX_REFERENCES:
            references = [references[0], *references[-(MAX_REFERENCES - 2) :]]
        headers["In-Reply-To"] = event.message_id
        headers["References"] = " ".join((*references, event.message_id))
    return headers


def call_note(ticket: Ticket, text: str, shop: Policy) -> str:
    """A note for the agent who called: what to say, what the rule says, and what is known."""
    english = phrases_for("en")
    lines = [f"Suggested answer ({ticket.language.code}): {text}"]
    lines += [f"Rule: {line}" for line in rule_lines(ticket.decision, english, shop, steps=False)]
    lines += [f"Known: {order_line(order)}" for order in ticket.orders[: shop.prompt.orders]]
    lines.append(f"Mood: {ticket.sentiment.score:+.2f} ({ticket.sentiment.source}); urgency: {ticket.urgency.level}")
    if ticket.history:
        lines.append(f"Earlier contacts: {len(ticket.history)}")
    return "\n".join(lines)
