"""Two questions about a text: is there anything to read in it, and how is it quoted in an error."""

from __future__ import annotations

import re
import unicodedata

EXCERPT_CHARS = 40
"""The most of a customer's text that an error quotes, in characters."""

_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def is_blank(text: str) -> bool:
    """Tell whether `text` shows nothing: only spaces, line breaks, control and zero-width characters."""
    return not any(unicodedata.category(char) not in _INVISIBLE for char in text)


def excerpt(text: str) -> str:
    """Quote the start of `text`, at most `EXCERPT_CHARS` characters of it, control characters written as escapes."""
    if len(text) <= EXCERPT_CHARS:
        return repr(text)
    return repr(text[:EXCERPT_CHARS]) + "…"


def encodable(text: str) -> str:
    """Give `text` with each lone surrogate replaced by U+FFFD, so that it can be written as UTF-8."""
    return _LONE_SURROGATE.sub("\ufffd", text)
