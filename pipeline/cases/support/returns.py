"""May these goods come back? A pure function of what was asked, the orders, the policy and the day."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from pipeline.cases.support.phrases import Phrases, phrases_for
from pipeline.cases.support.policy import Policy
from pipeline.cases.support.ticket import Decision, Order

ORDER_NUMBER = re.compile(r"\bORD-\d{4,12}\b", re.IGNORECASE)

REASONS = (
    "within-window",
    "fault",
    "window-over",
    "warranty-over",
    "final-sale",
    "not-delivered",
    "already-returned",
    "cancelled",
    "high-value",
    "which-order",
    "unknown-order",
    "orders-unavailable",
)
"""Every reason of a decision; the first two are eligible."""


def order_numbers(text: str) -> list[str]:
    """The order numbers in a text, in capitals, each once, in order."""
    return list(dict.fromkeys(match[0].upper() for match in ORDER_NUMBER.finditer(text)))


def day_of(at_ms: int, policy: Policy) -> date:
    """The day of a moment in the shop's time zone."""
    return datetime.fromtimestamp(at_ms / 1_000, UTC).astimezone(ZoneInfo(policy.time_zone)).date()


def asks_return(words: str, language: str) -> tuple[bool, bool]:
    """Whether the customer asks to give something back, and whether for a fault; by the phrases of the language and English."""
    known: list[Phrases] = [phrases_for(code) for code in dict.fromkeys((language, "en"))]
    lower = words.lower()
    return any(one.asks_return(lower) for one in known), any(one.names_fault(lower) for one in known)


def decide_return(
    words: str, text: str, language: str, orders: Sequence[Order], orders_known: str, today: date, policy: Policy
) -> Decision | None:
    """What the rule says to a message; None where it does not ask for a return, or there is no database to ask.

    `words` are those in which a request is looked for, `text` that in which an order is named. Where none is, and one order alone
    was delivered, it is that one.
    """
    asked, fault = asks_return(words, language)
    if not asked or orders_known == "off":
        return None
    if orders_known == "failed":
        return Decision(eligible=False, reason="orders-unavailable", fault=fault)
    named = order_numbers(text)
    own = {order.id: order for order in orders}
    if named:
        order = next((own[number] for number in named if number in own), None)
        if order is None:
            return Decision(eligible=False, reason="unknown-order", order_id=named[0], fault=fault)
        return decide(order, fault=fault, today=today, policy=policy)
    delivered = [order for order in orders if order.status == "delivered"]
    if len(delivered) != 1:
        return Decision(eligible=False, reason="which-order", fault=fault)
    return decide(delivered[0], fault=fault, today=today, policy=policy)


def decide(order: Order, *, fault: bool, today: date, policy: Policy) -> Decision:
    """What the rule says of one order.

    In this order: one that was cancelled, came back already or has not arrived cannot be returned. A value from
    `person_from_cents` on is a person's to decide. A fault may be reported for `fault_days` after the delivery, and goods in final
    categories come back for nothing else. All others have the days of the strictest category among the items. The day of
    the delivery is day 0, and the last day counts.
    """
    refused = _refused(order, today, policy)
    if refused is not None:
        return Decision(eligible=False, reason=refused, order_id=order.id, fault=fault)
    rules = policy.returns
    delivered = date.fromisoformat(order.delivered_on or "")
    categories = [item.category for item in order.items]
    if fault:
        last, good, late = delivered + timedelta(days=rules.fault_days), "fault", "warranty-over"
    elif any(category in rules.final_categories for category in categories):
        return Decision(eligible=False, reason="final-sale", order_id=order.id, fault=fault)
    else:
        days = min((rules.days_by_category.get(category, rules.days) for category in categories), default=rules.days)
        last, good, late = delivered + timedelta(days=days), "within-window", "window-over"
    return Decision(today <= last, good if today <= last else late, order.id, last.isoformat(), fault)


def _refused(order: Order, today: date, policy: Policy) -> str | None:
    """Why an order cannot be returned whatever is wrong with it, or None."""
    delivered = date.fromisoformat(order.delivered_on) if order.delivered_on else None
    if order.status == "cancelled":
        return "cancelled"
    if order.status in ("returned", "refunded"):
        return "already-returned"
    if order.status != "delivered" or delivered is None or delivered > today:
        return "not-delivered"
    return "high-value" if order.total_cents >= policy.returns.person_from_cents.get(order.currency, 0) else None
