"""How soon somebody must look at a message: a sum of plain signs, each named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import msgspec
import yaml

LEVELS = ("low", "normal", "high")
"""From which score on: 0, 0.25, 0.6."""

_BOUNDS = ((0.6, "high"), (0.25, "normal"), (0.0, "low"))


class Urgency(msgspec.Struct, frozen=True, array_like=True):
    """A level, the score from 0 to 1 that it comes from, and the signs that made it."""

    level: str
    score: float
    signs: tuple[str, ...]


def urgency_of(text: str, language: str, sentiment: float, contacts: int) -> Urgency:
    """Return how urgent a message is.

    The signs: ``words`` (0.35, and 0.15 more for a second word of the language's list), ``negative`` (0.25 for a `sentiment` of -0.5
    or below), ``contacts`` (0.1 for each of the customer's earlier `contacts` that are remembered, 0.3 at most), ``shouting`` (0.1
    for three exclamation marks or a text in capitals). English words count in every language: people mix them in.
    """
    found = _words(text, language)
    parts = {
        "words": min(0.5, 0.35 + 0.15 * (found - 1)) if found else 0.0,
        "negative": 0.25 if sentiment <= -0.5 else 0.0,
        "contacts": min(0.3, 0.1 * contacts),
        "shouting": 0.1 if text.count("!") >= 3 or _in_capitals(text) else 0.0,
    }
    score = round(min(1.0, sum(parts.values())), 4)
    level = next(level for bound, level in _BOUNDS if score >= bound)
    return Urgency(level, score, tuple(name for name, value in parts.items() if value))


def _words(text: str, language: str) -> int:
    lower = text.lower()
    patterns = _patterns()
    return max((len(set(patterns[code].findall(lower))) for code in {language, "en"} if code in patterns), default=0)


def _in_capitals(text: str) -> bool:
    letters = [char for char in text if char.isalpha()]
    return len(letters) >= 20 and sum(char.isupper() for char in letters) > 0.7 * len(letters)


@lru_cache(maxsize=1)
def _patterns() -> Mapping[str, re.Pattern[str]]:
    read = yaml.safe_load(Path(__file__).with_name("urgency.yaml").read_text(encoding="utf-8"))
    return {
        code: re.compile(("" if code == "ja" else r"\b") + f"(?:{'|'.join(map(re.escape, words))})")
        for code, words in read.items()
    }
