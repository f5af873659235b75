"""The steps of the support case before the model: which enrichment reads what of a ticket, and where its finding goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import apache_beam as beam
import msgspec
import orjson

from pipeline.case import Resources, Step
from pipeline.cases.support import prompts
from pipeline.cases.support.answer import event_id, source_of
from pipeline.cases.support.checks import LANGUAGES
from pipeline.cases.support.events import SupportEvent
from pipeline.cases.support.orders import MakeOrders
from pipeline.cases.support.policy import policy
from pipeline.cases.support.returns import ORDER_NUMBER, day_of, decide_return
from pipeline.cases.support.ticket import Decision, Interaction, Order, Ticket
from transforms.ask import AskModel
from transforms.enrich.ask_also import AskAlso
from transforms.enrich.boilerplate import without_boilerplate
from transforms.enrich.language import Language, detect_language
from transforms.enrich.look_up import LookUp
from transforms.enrich.normalize import normalize
from transforms.enrich.redact import Redacted, redact
from transforms.enrich.sentiment import Sentiment, sentiment_of
from transforms.enrich.step import Composed, Enrich
from transforms.enrich.tokens import cut_middle
from transforms.enrich.urgency import Urgency, urgency_of
from transforms.history import RememberHistory
from transforms.records import Answer, traceparent_of

REGIONS = {
    "en": ("GB", "US"),
    "de": ("DE", "AT", "CH"),
    "fr": ("FR", "BE", "CH"),
    "es": ("ES",),
    "it": ("IT",),
    "nl": ("NL", "BE"),
    "pl": ("PL",),
    "pt": ("PT", "BR"),
    "ja": ("JP",),
}
"""The regions in which telephone numbers without a ``+`` are looked for, by language; `OTHER_REGIONS` for any other."""

OTHER_REGIONS = ("GB", "DE", "FR")

REMEMBERED_TOKENS = 40
"""How much of a text is kept in the customer's history."""


def opened(event: SupportEvent) -> Ticket:
    """A ticket for an event: its subject, unless it is all there is, and its text."""
    subject = event.subject if event.subject and event.subject != event.text else None
    text = f"{subject}\n\n{event.text}" if subject else event.text
    # In a call the shop speaks first.
    agent = event.turns[0].speaker if len({turn.speaker for turn in event.turns}) > 1 else ""
    return Ticket(event, text, agent)


def text_of(ticket: Ticket) -> tuple[str]:
    """The text."""
    return (ticket.text,)


def with_text(ticket: Ticket, text: str) -> Ticket:
    """The ticket with another text; the name of an agent changes with it."""
    return msgspec.structs.replace(ticket, text=text, agent=normalize(ticket.agent))


def words_of(ticket: Ticket) -> tuple[str]:
    """What the customer said."""
    return (ticket.words,)


def language_of(words: str) -> Language:
    """The language among those that are told apart."""
    return detect_language(words, LANGUAGES)


def with_language(ticket: Ticket, language: Language) -> Ticket:
    """The ticket with its language."""
    return msgspec.structs.replace(ticket, language=language)


def text_and_language(ticket: Ticket) -> tuple[str, str]:
    """The text and its language."""
    return ticket.text, ticket.language.code


def redacted(text: str, language: str) -> Redacted:
    """The text without personal data; order numbers stay."""
    return redact(text, REGIONS.get(language, OTHER_REGIONS), keep=ORDER_NUMBER)


def with_redacted(ticket: Ticket, found: Redacted) -> Ticket:
    """The ticket with its redacted text and what was taken out."""
    return msgspec.structs.replace(ticket, text=found.text, placeholders=found.placeholders)


def words_and_language(ticket: Ticket) -> tuple[str, str]:
    """What the customer said and in which language."""
    return ticket.words, ticket.language.code


def with_sentiment(ticket: Ticket, sentiment: Sentiment) -> Ticket:
    """The ticket with its sentiment."""
    return msgspec.structs.replace(ticket, sentiment=sentiment)


def with_model_sentiment(ticket: Ticket, answer: Answer) -> Ticket:
    """The ticket with the sentiment that a model gave. Raises ValueError where it gave none."""
    found = orjson.loads(answer.text)
    score = found.get("score") if isinstance(found, dict) else found
    if isinstance(score, bool) or not isinstance(score, int | float) or not -1 <= score <= 1:
        raise ValueError(f"{found!r} is no score from -1 to 1.")
    return with_sentiment(ticket, Sentiment(float(score), "model"))


def customer_of(ticket: Ticket) -> str:
    """The customer, whose history and orders belong to the ticket."""
    return ticket.event.customer_id


def interaction_of(ticket: Ticket) -> Interaction:
    """What is remembered of a ticket: redacted, the customer's own words, cut."""
    words = cut_middle(" ".join(ticket.words.split()), REMEMBERED_TOKENS)
    return Interaction(ticket.id, ticket.event.at_ms, ticket.event.channel, ticket.language.code, words)


def with_history(ticket: Ticket, history: tuple[Interaction, ...]) -> Ticket:
    """The ticket with the customer's earlier contacts."""
    return msgspec.structs.replace(ticket, history=history)


def with_orders(ticket: Ticket, orders: tuple[Order, ...] | None) -> Ticket:
    """The ticket with the customer's orders; None where they could not be looked up."""
    if orders is None:
        return msgspec.structs.replace(ticket, orders_known="failed")
    return msgspec.structs.replace(ticket, orders=orders, orders_known="found")


def signs_of(ticket: Ticket) -> tuple[str, str, float, int]:
    """What urgency is made of."""
    return ticket.words, ticket.language.code, ticket.sentiment.score, len(ticket.history)


def with_urgency(ticket: Ticket, urgency: Urgency) -> Ticket:
    """The ticket with its urgency."""
    return msgspec.structs.replace(ticket, urgency=urgency)


def itself(ticket: Ticket) -> tuple[Ticket]:
    """The ticket."""
    return (ticket,)


def decision_of(ticket: Ticket) -> Decision | None:
    """What the rule for returns says, on the day of the event."""
    shop = policy()
    today = day_of(ticket.event.at_ms, shop)
    request, text, language = ticket.request, ticket.words, ticket.language.code
    return decide_return(request, text, language, ticket.orders, ticket.orders_known, today, shop)


def with_decision(ticket: Ticket, decision: Decision | None) -> Ticket:
    """The ticket with what the rule says."""
    return msgspec.structs.replace(ticket, decision=decision)


PURE: tuple[tuple[str, Callable[..., Any], Callable[[Any], tuple[Any, ...]], Callable[[Any, Any], Any]], ...] = (
    ("NormalizeText", normalize, text_of, with_text),
    ("RemoveBoilerplate", without_boilerplate, text_of, with_text),
    ("DetectLanguage", language_of, words_of, with_language),
    ("RedactText", redacted, text_and_language, with_redacted),
    ("ScoreSentiment", sentiment_of, words_and_language, with_sentiment),
    ("RateUrgency", urgency_of, signs_of, with_urgency),
    ("DecideReturn", decision_of, itself, with_decision),
)
"""The pure enrichments by label: the function, what it reads of a ticket, and where its finding goes."""


def composed() -> dict[str, Callable[[Ticket], Ticket]]:
    """Each pure enrichment as a function of a ticket, for who runs them without Beam."""
    return {label: Composed(function, read, write) for label, function, read, write in PURE}


class _MakeEnrich:
    def __init__(
        self, function: Callable[..., Any], read: Callable[[Any], tuple[Any, ...]], write: Callable[[Any, Any], Any]
    ) -> None:
        self._parts = (function, read, write)

    def __call__(self, _: Resources) -> beam.PTransform:
        function, read, write = self._parts
        return Enrich(function, read=read, write=write, record_type=Ticket, source_of=source_of, id_of=event_id)


def _make_open(_: Resources) -> beam.PTransform:
    return Enrich(opened, read=itself, write=_second, record_type=Ticket, source_of=source_of, id_of=event_id)


def _second(_: SupportEvent, ticket: Ticket) -> Ticket:
    return ticket


def _make_history(_: Resources) -> beam.PTransform:
    return RememberHistory(
        key_of=customer_of, id_of=event_id, entry_of=interaction_of, entry_type=Interaction, write=with_history
    )


def _make_orders(resources: Resources) -> beam.PTransform | None:
    if resources.orders is None:
        return None
    return LookUp(
        MakeOrders(resources.orders, resources.lookups),
        resources.lookups,
        key_of=customer_of,
        write=with_orders,
        record_type=Ticket,
        source_of=source_of,
        id_of=event_id,
    )


def _kafka_key(ticket: Ticket) -> bytes | None:
    return source_of(ticket).key


def _traceparent(ticket: Ticket) -> str | None:
    return traceparent_of(source_of(ticket))


def _make_sentiment(resources: Resources) -> beam.PTransform | None:
    model = resources.models.get("sentiment")
    if model is None:
        return None
    ask = AskModel(
        model,
        prompts.sentiment_question,
        event_id,
        order_key_of=_kafka_key if resources.keeps_order else None,
        traceparent_of=_traceparent,
        make_caller=resources.make_caller,
        **resources.ask_options,
    )
    return AskAlso(ask, with_model_sentiment)


_ENRICH = {label: Step(label, _MakeEnrich(function, read, write)) for label, function, read, write in PURE}

BEFORE = (
    Step("OpenTickets", _make_open),
    _ENRICH["NormalizeText"],
    _ENRICH["RemoveBoilerplate"],
    _ENRICH["DetectLanguage"],
    _ENRICH["RedactText"],
    _ENRICH["ScoreSentiment"],
    Step("AskSentiment", _make_sentiment),
    Step("RememberHistory", _make_history),
    Step("LookUpOrders", _make_orders),
    _ENRICH["RateUrgency"],
    _ENRICH["DecideReturn"],
)
"""The steps before the model, in their order: redaction comes before anything is remembered or sent to another server."""
