"""How a customer feels, from a lexicon: VADER for English (Hutto and Gilbert, 2014), a short list of words for eight other languages.

A lexicon sees words, not irony. Where a model server has the role ``sentiment`` the model's score takes this one's place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import yaml

NEGATIVE = -0.05
POSITIVE = 0.05
"""VADER's own bounds for its compound score: below the first a text is negative, above the second positive."""

_ALPHA = 15.0  # VADER's normalisation: sum / sqrt(sum² + 15)
_WEIGHT = 1.9  # the median strength of the words in VADER's lexicon
_WORDS = re.compile(r"\w+", re.UNICODE)


class Sentiment(msgspec.Struct, frozen=True, array_like=True):
    """A score from -1 (very negative) to 1 (very positive), and where it is from: ``vader``, ``lexicon``, ``model`` or ``none``."""

    score: float
    source: str


def sentiment_of(text: str, language: str) -> Sentiment:
    """Return the sentiment of `text`.

    English: VADER's compound score. A language of the list: each word that begins with one of its stems counts as strong as the
    median word of VADER's, exclamation marks make it stronger as they do there (0.292 each, four at most), and the sum is brought
    between -1 and 1 by the same formula. Any other language: 0 from ``none``, for silence is no sign of contentment.
    """
    if language == "en":
        return Sentiment(float(_vader().polarity_scores(text)["compound"]), "vader")
    stems = _lexicon().get(language)
    if stems is None:
        return Sentiment(0.0, "none")
    total = _WEIGHT * (_count(text, stems["positive"]) - _count(text, stems["negative"]))
    if total:
        total += math.copysign(0.292 * min(4, text.count("!") + text.count("\uff01")), total)
    return Sentiment(round(total / math.sqrt(total * total + _ALPHA), 4), "lexicon")


def _count(text: str, stems: tuple[str, ...]) -> int:
    """How many of the stems begin a word of `text`; those of a script without spaces stand anywhere."""
    lower = text.lower()
    starts = {match.start() for match in _WORDS.finditer(lower)}
    return sum(
        any(
            match.start() in starts or (not stem.isascii() and stem[0] > "\u2e80")
            for match in re.finditer(re.escape(stem), lower)
        )
        for stem in stems
    )


@lru_cache(maxsize=1)
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # noqa: PLC0415 - it reads its lexicon, once in a process

    return SentimentIntensityAnalyzer()


@lru_cache(maxsize=1)
def _lexicon() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    read = yaml.safe_load(Path(__file__).with_name("lexicon.yaml").read_text(encoding="utf-8"))
    return {code: {sign: tuple(stems) for sign, stems in signs.items()} for code, signs in read.items()}
