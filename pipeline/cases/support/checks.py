"""What a reply of the model must keep to before a customer may see it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec

from pipeline.cases.support.grounding import ungrounded
from pipeline.cases.support.phrases import languages, phrases_for
from pipeline.cases.support.policy import Policy
from pipeline.cases.support.prompts import ANSWER, BRIEF, FOLDER, facts_of
from pipeline.cases.support.ticket import Ticket
from transforms.enrich.language import UNKNOWN, detect_language
from transforms.enrich.redact import placeholders_in
from transforms.prompts import render

LANGUAGES = (
    "en",
    "de",
    "fr",
    "es",
    "it",
    "nl",
    "pl",
    "pt",
    "ja",
    "sv",
    "da",
    "no",
    "fi",
    "cs",
    "tr",
    "ru",
    "uk",
    "zh",
    "ko",
    "ar",
)
"""The languages that are told apart; the first nine have phrases, and are answered."""

REPAIRABLE = frozenset(
    {"not-json", "schema", "blank", "control-characters", "too-long", "wrong-language", "ungrounded"}
)
"""Kinds of problems that the model gets one chance to put right; with any other kind a person answers."""

LEAST_CONFIDENCE = 0.9
LEAST_LETTERS = 20
"""A reply is in another language only where that is so likely, and so many letters were looked at."""

LEAKED_WORDS = 6
"""So many words in a row of the rules for the model are a leak."""

_LINK = re.compile(
    r"\b(?:https?://|www\.)\S+|\b(?:[\w-]+\.)+(?:com|org|net|io|co|shop|info|example)(?:/\S*)?", re.IGNORECASE
)
_HOST = re.compile(r"https://([\w.-]+)(?:[/?#].*)?", re.IGNORECASE | re.DOTALL)
_BRACKETED = re.compile(r"\[[A-Z]+(?:_[A-Z]+)*_?\d*\]|\{\{|\}\}|<[a-z_]+>", re.ASCII)
_FENCE = re.compile(r"={4,}")


class Problem(msgspec.Struct, frozen=True, array_like=True):
    """One thing that is wrong with a reply: a short stable word, and a sentence that the model can follow."""

    kind: str
    message: str


def problems_of(ticket: Ticket, fields: dict[str, Any], shop: Policy) -> tuple[Problem, ...]:
    """Everything that is wrong with a reply that keeps to its schema."""
    return tuple(
        _problems(ticket, fields["reply"].strip(), [str(one["value"]) for one in fields.get("claims", ())], shop)
    )


def _problems(ticket: Ticket, text: str, claims: list[str], shop: Policy) -> Iterator[Problem]:
    if not any(char.isalnum() for char in text):
        yield Problem("blank", "It answers without a word.")
        return
    if any(ord(char) < ord(" ") and char not in "\n\t\r" for char in text):
        yield Problem("control-characters", "It has control characters in it.")
    most = shop.reply_characters[ticket.event.channel]
    if len(text) > most:
        yield Problem("too-long", f"It has {len(text)} characters, and {most} are allowed.")
    yield from _language(ticket, text)
    wrong = ungrounded("\n".join((text, *claims)), facts_of(ticket))
    if wrong:
        yield Problem("ungrounded", f"It names what is not among the facts: {', '.join(wrong[:5])}.")
    yield from _leaks(ticket, text, shop)
    yield from _promises(ticket, text)
    yield from _links(text, shop)


def _language(ticket: Ticket, text: str) -> Iterator[Problem]:
    wanted = ticket.language.code
    if wanted == UNKNOWN or sum(char.isalpha() for char in text) < (
        LEAST_LETTERS if text.isascii() else LEAST_LETTERS // 2
    ):
        return
    found = detect_language(text, LANGUAGES, LEAST_CONFIDENCE)
    if found.code not in (UNKNOWN, wanted):
        yield Problem("wrong-language", f"It is not in {phrases_for(wanted).name}, the customer's language.")


def _leaks(ticket: Ticket, text: str, shop: Policy) -> Iterator[Problem]:
    allowed = {one.name for one in ticket.placeholders if one.kind in shop.restore[ticket.event.channel]}
    strange = [name for name in placeholders_in(text) if name not in allowed]
    left = _BRACKETED.sub(lambda match: "" if match[0] in allowed else match[0], text)
    if strange or _BRACKETED.search(left):
        yield Problem("leaked-placeholder", "It shows a placeholder that may not be shown.")
    if _FENCE.search(text) or any(run in _words(text) for run in _rules()):
        yield Problem("leaked-prompt", "It repeats the rules for the model.")


def _promises(ticket: Ticket, text: str) -> Iterator[Problem]:
    allowed = ticket.decision is not None and ticket.decision.eligible
    known = [phrases for code, phrases in languages().items() if code in {ticket.language.code, "en"}]
    for phrases in known:
        found = phrases.promise(text.lower(), refund_allowed=allowed)
        if found:
            yield Problem("forbidden-promise", f"It promises what may not be promised: {found}.")
            return


def _links(text: str, shop: Policy) -> Iterator[Problem]:
    for match in _LINK.finditer(text):
        if "@" in text[max(0, match.start() - 1) : match.start()]:
            continue
        host = _HOST.fullmatch(match[0].rstrip(".,;:!?)»”"))
        if host is None or host[1].lower() not in shop.link_hosts:
            yield Problem("foreign-link", "It has a link that is not on the list of allowed hosts.")
            return


def _words(text: str) -> str:
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "


@lru_cache(maxsize=1)
def _rules() -> tuple[str, ...]:
    """Every run of `LEAKED_WORDS` words of the rules."""
    both = [_words(render(FOLDER, f"{version}.system", {})).split() for version in (ANSWER, BRIEF)]
    return tuple(
        f" {' '.join(words[at : at + LEAKED_WORDS])} " for words in both for at in range(len(words) - LEAKED_WORDS + 1)
    )
