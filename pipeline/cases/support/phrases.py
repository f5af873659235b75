"""What customers say and what the shop answers, by language: `phrases.yaml`, read once and compiled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import msgspec

from transforms.errors import SettingsError

FILE = Path(__file__).with_name("phrases.yaml")
DEFAULT = "en"
"""The language of what the shop says where the customer's is not among those of the file."""


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A language in the file."""

    name: str
    returns: tuple[str, ...]
    fault: tuple[str, ...]
    person: tuple[str, ...]
    promise: tuple[str, ...]
    refund: tuple[str, ...]
    greeting: str
    greeting_unnamed: str
    closing: str
    reasons: Mapping[str, str]
    steps: tuple[str, ...]


class Phrases:
    """A language's phrases: questions about a text in lower case, and sentences to say."""

    def __init__(self, entry: _Entry) -> None:
        self.name = entry.name
        self.greeting = entry.greeting
        self.greeting_unnamed = entry.greeting_unnamed
        self.closing = entry.closing
        self.reasons = entry.reasons
        self.steps = entry.steps
        self._returns = _any_of(entry.returns)
        self._fault = _any_of(entry.fault)
        self._person = _any_of(entry.person)
        self._promise = _any_of(entry.promise)
        self._refund = _any_of(entry.refund)

    def asks_return(self, lower: str) -> bool:
        """Whether a customer asks to give something back or exchange it."""
        return bool(self._returns.search(lower))

    def names_fault(self, lower: str) -> bool:
        """Whether a customer names a fault, or goods that were not ordered."""
        return bool(self._fault.search(lower))

    def needs_person(self, lower: str) -> bool:
        """Whether a customer tells of a danger or a lawyer."""
        return bool(self._person.search(lower))

    def promise(self, lower: str, *, refund_allowed: bool) -> str | None:
        """The words of a reply that promise what may not be promised, or None."""
        found = self._promise.search(lower) or (None if refund_allowed else self._refund.search(lower))
        return found[0] if found else None


def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


@lru_cache(maxsize=1)
def languages() -> Mapping[str, Phrases]:
    """The phrases of each language by its code. Raises SettingsError for a file that is not as it should be."""
    try:
        entries = msgspec.yaml.decode(FILE.read_bytes(), type=dict[str, _Entry])
        return {code: Phrases(entry) for code, entry in entries.items()}
    except (msgspec.DecodeError, re.error) as error:
        raise SettingsError(f"{FILE}: {error}") from None


def phrases_for(code: str) -> Phrases:
    """The phrases of a language, or those of `DEFAULT`."""
    return languages().get(code) or languages()[DEFAULT]
