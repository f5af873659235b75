"""Which language a text is in: py3langid, a classifier over byte n-grams (Lui and Baldwin, 2012), among languages that are named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

UNKNOWN = "und"
"""The code of a language that could not be told (ISO 639-2)."""

LEAST_CONFIDENCE = 0.6
"""Below this probability a language is `UNKNOWN`."""

LEAST_LETTERS = 3
"""A text with fewer letters is in no language."""

_NO_WORDS = re.compile(r"\[[A-Z0-9_]+\]|https?://\S+|\b[A-Z]{2,}-?\d+\b|\d+")


class Language(msgspec.Struct, frozen=True, array_like=True):
    """A language by its code (ISO 639-1) and how likely it is, from 0 to 1, among those that were asked about."""

    code: str
    confidence: float


def detect_language(text: str, among: Sequence[str], least: float = LEAST_CONFIDENCE) -> Language:
    """Return the language of `text` among the codes `among`; `UNKNOWN` where it is below `least`, or there are no words.

    Placeholders, links, order numbers and digits are not looked at: they are in no language. Raises ValueError for a code that the
    classifier does not know.
    """
    words = _NO_WORDS.sub(" ", text)
    if sum(char.isalpha() for char in words) < LEAST_LETTERS:
        return Language(UNKNOWN, 0.0)
    code, confidence = _classifier(tuple(among)).classify(words)
    found = Language(str(code), round(float(confidence), 4))
    return found if found.confidence >= least else Language(UNKNOWN, found.confidence)


@lru_cache(maxsize=8)
def _classifier(among: tuple[str, ...]) -> Any:
    # Reading the model takes half a second: once in a process, and only in one that needs it.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415

    classifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    classifier.set_languages(list(among))
    return classifier
