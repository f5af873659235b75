"""What the model is asked: versioned templates, the facts that go into them, and the budget they keep."""

from __future__ import annotations

from pathlib import Path

from pipeline.cases.support.phrases import phrases_for
from pipeline.cases.support.policy import Policy, policy
from pipeline.cases.support.returns import day_of, order_numbers
from pipeline.cases.support.ticket import Order, Ticket
from transforms.enrich.language import UNKNOWN
from transforms.enrich.tokens import cut_middle, fit
from transforms.prompts import fence_of, render, without_fences
from transforms.remote.questions import Chat, Message

FOLDER = Path(__file__).with_name("prompts")

ANSWER = "answer-v1"
"""The version of the prompt for answers; a file of it is never changed, but followed by the next version."""

BRIEF = "brief-v1"
"""The version of the prompt for a small model, which reads slowly and is soon confused: few words, few facts."""

REPAIR = "repair-v1"
SENTIMENT = "sentiment-v1"

SENTENCES = {"chat": 2, "email": 4, "call": 3}
"""How many sentences a reply may have, at most, as the model is asked."""

SENTIMENT_SCHEMA = {
    "title": "sentiment",
    "type": "object",
    "additionalProperties": False,
    "required": ["score"],
    "properties": {"score": {"type": "number", "minimum": -1, "maximum": 1}},
}

MAX_REPAIR_TOKENS = 300
"""As much of a reply that cannot be used is shown to the model again."""


def answer_messages(ticket: Ticket, version: str = ANSWER) -> tuple[Message, ...]:
    """The messages for the model: its rules, and the customer's message with the facts.

    The user's part has at most `prompt.tokens` tokens of the policy in message and facts, `brief.tokens` with the version `BRIEF`.
    Where they are more, earlier contacts go first, from the oldest; then orders, those the customer does not name before those he
    does; then the middle of the message.
    """
    shop = policy()
    budget = shop.brief if version == BRIEF else shop.prompt
    orders = order_lines(ticket, shop)[: budget.orders]
    if version == BRIEF:
        orders = [(order, f"order {order.id}: {order.status}") for order, _ in orders]
    history = history_lines(ticket, shop)[: budget.history]
    text = without_fences(ticket.text)
    named = set(order_numbers(ticket.text))
    parts = [(text, 0)]
    parts += [(line, 1 if order.id in named else 2) for order, line in orders]
    parts += [(line, 3) for line in history]
    kept = fit(parts, budget.tokens)
    values = {
        "fence": fence_of(ticket.id, ticket.text, digest_bytes=3 if version == BRIEF else 6),
        "text": cut_middle(text, kept[0]),
        "today": day_of(ticket.event.at_ms, shop).isoformat(),
        "channel": ticket.event.channel,
        "orders": [line for (_, line), count in zip(orders, kept[1:], strict=False) if count],
        "no_orders": no_orders(ticket),
        "history": [line for line, count in zip(history, kept[1 + len(orders) :], strict=True) if count][::-1],
        "decision": decision_line(ticket),
        "language": language_name(ticket),
        "sentences": SENTENCES[ticket.event.channel],
    }
    return (
        Message("system", render(FOLDER, f"{version}.system", {})),
        Message("user", render(FOLDER, f"{version}.user", values)),
    )


def repair_messages(ticket: Ticket, reply: str, problems: list[str]) -> tuple[Message, ...]:
    """The messages for the second and last try: the first ones, the reply, and what is wrong with it."""
    said = cut_middle(reply, MAX_REPAIR_TOKENS) or "(nothing)"
    asked = render(FOLDER, f"{REPAIR}.user", {"problems": problems, "language": language_name(ticket)})
    return (*answer_messages(ticket), Message("assistant", said), Message("user", asked))


def sentiment_question(ticket: Ticket) -> Chat:
    """The question to a model of the role ``sentiment``."""
    text = cut_middle(without_fences(ticket.words), policy().prompt.tokens)
    values = {"fence": fence_of(ticket.id, ticket.text), "text": text}
    return Chat((Message("user", render(FOLDER, f"{SENTIMENT}.user", values)),), schema=SENTIMENT_SCHEMA)


def facts_of(ticket: Ticket) -> str:
    """All that a reply may repeat: the customer's message, the facts of the prompt, and what the rule for returns says."""
    shop = policy()
    lines = [ticket.text, day_of(ticket.event.at_ms, shop).isoformat()]
    lines += [line for _, line in order_lines(ticket, shop)]
    lines += [*history_lines(ticket, shop), decision_line(ticket)]
    return "\n".join(lines)


def order_lines(ticket: Ticket, shop: Policy) -> list[tuple[Order, str]]:
    """The orders that a prompt may hold, those that are named first, each with its line."""
    named = order_numbers(ticket.text)
    first = sorted(ticket.orders, key=lambda order: order.id not in named)
    return [(order, order_line(order)) for order in first[: shop.prompt.orders]]


def order_line(order: Order) -> str:
    """An order as one line of facts."""
    items = ", ".join(f"{item.quantity} × {item.name}" for item in order.items) or "no items"
    delivered = f", delivered {order.delivered_on}" if order.delivered_on else ""
    amount = f"{order.total_cents // 100}.{order.total_cents % 100:02d} {order.currency}"
    return f"order {order.id}: {order.status}, placed {order.placed_on}{delivered}, {items}, {amount}"


def history_lines(ticket: Ticket, shop: Policy) -> list[str]:
    """Earlier contacts, the youngest first, as lines of facts."""
    young = ticket.history[-shop.prompt.history :][::-1]
    return [f"{day_of(one.at_ms, shop).isoformat()} by {one.channel}: {without_fences(one.text)}" for one in young]


def decision_line(ticket: Ticket) -> str:
    """What the rule for returns says, in English; nothing where it was not asked."""
    decision = ticket.decision
    if decision is None:
        return ""
    sentence = phrases_for("en").reasons[decision.reason]
    return sentence.format(order=decision.order_id or "", until=decision.until or "")


def no_orders(ticket: Ticket) -> str:
    """What stands in a prompt without orders."""
    if ticket.orders_known == "found":
        return "the customer has no orders"
    return "nothing is known of the customer's orders"


def language_name(ticket: Ticket) -> str:
    """The customer's language in English words."""
    if ticket.language.code == UNKNOWN:
        return "the customer's language"
    return phrases_for(ticket.language.code).name
