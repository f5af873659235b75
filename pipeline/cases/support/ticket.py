"""A support event with everything that was found out about it, and the records of that. Fields are added at the end (ADR 0006)."""

from __future__ import annotations

import re

import msgspec

from pipeline.cases.support.events import SupportEvent
from transforms.enrich.language import UNKNOWN, Language
from transforms.enrich.redact import Placeholder
from transforms.enrich.sentiment import Sentiment
from transforms.enrich.urgency import Urgency
from transforms.records import SourceRecord

REPLY_PREFIX = re.compile(
    r"(?:(?:re|aw|antw|sv|rif|odp|res|ref|wg|fw|fwd|tr)(?:\[\d+\])?\s?[:\uff1a]\s*)+", re.IGNORECASE
)
"""What mail programs write before the subject of an answer, or of a message that is passed on."""


class Interaction(msgspec.Struct, frozen=True, array_like=True):
    """An earlier event of the customer, as much of it as is remembered: redacted, and cut."""

    id: str
    at_ms: int
    channel: str
    language: str
    text: str


class Item(msgspec.Struct, frozen=True, array_like=True):
    """One line of an order; the price is of all its pieces, in cents."""

    name: str
    category: str
    quantity: int
    price_cents: int


class Order(msgspec.Struct, frozen=True, array_like=True):
    """An order as the database has it.

    Days are ``YYYY-MM-DD``; `status` is placed, shipped, delivered, cancelled, returned or refunded.
    """

    id: str
    customer_id: str
    status: str
    placed_on: str
    delivered_on: str | None
    total_cents: int
    currency: str
    items: tuple[Item, ...] = ()


class Decision(msgspec.Struct, frozen=True, array_like=True):
    """What the rule for returns says: `reason` is its word, `until` the last day (``YYYY-MM-DD``) where there is one."""

    eligible: bool
    reason: str
    order_id: str | None = None
    until: str | None = None
    fault: bool = False


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """An event on its way to the model.

    `text` is what the customer said as far as it was worked on: subject first, then the message or the dialogue. `agent` is who
    spoke first in a call. `orders_known` says whether `orders` can be relied on: ``off`` without a database, ``found``, or ``failed``.
    """

    event: SupportEvent
    text: str
    agent: str = ""
    language: Language = Language(UNKNOWN, 0.0)
    placeholders: tuple[Placeholder, ...] = ()
    sentiment: Sentiment = Sentiment(0.0, "none")
    history: tuple[Interaction, ...] = ()
    orders: tuple[Order, ...] = ()
    orders_known: str = "off"
    urgency: Urgency = Urgency("low", 0.0, ())
    decision: Decision | None = None

    @property
    def id(self) -> str:
        """The event's id."""
        return self.event.id

    @property
    def source(self) -> SourceRecord:
        """The record the event came from."""
        return self.event.source

    @property
    def request(self) -> str:
        """What the customer said, without the subject of an answer (``Re: …``): that was written for an earlier message."""
        subject, _, rest = self.words.partition("\n\n")
        return rest if rest and self.event.subject and REPLY_PREFIX.match(subject) else self.words

    @property
    def words(self) -> str:
        """What the customer said, without the turns of the agent in a call."""
        if not self.agent:
            return self.text
        own = [line for line in self.text.split("\n") if not line.startswith(f"{self.agent}:")]
        return "\n".join(line.partition(": ")[2] or line for line in own) or self.text
