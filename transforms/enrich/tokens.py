"""How long a text is for a model, in tokens, without the model's own tokeniser; and how a text is cut to a budget.

Byte-pair tokenisers differ, and none of them is at hand for a model behind an API. What is counted here are pieces that such
tokenisers seldom split further: up to four letters of a word (three above ASCII), three digits, one sign, one character of a script
without spaces. docs/guide/support.md says how far this is from a real tokeniser.
"""

from __future__ import annotations

import re

GAP = " […] "
"""What stands where text was cut."""

_PIECE = re.compile(
    r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]|[A-Za-z]{1,4}|[0-9]{1,3}|[^\W\d_]{1,3}|\S",
    re.UNICODE,
)


def tokens_of(text: str) -> list[tuple[int, int]]:
    """Return where each token of `text` begins and ends. White space belongs to none."""
    return [match.span() for match in _PIECE.finditer(text)]


def count_tokens(text: str) -> int:
    """Return how many tokens `text` has, by the rule of this module."""
    return sum(1 for _ in _PIECE.finditer(text))


def cut_middle(text: str, most: int) -> str:
    """Return `text`, at most `most` tokens of it: its two ends around `GAP`.

    The middle goes, since a greeting with the matter stands at the beginning of a message and the question at its end. The end
    gets two thirds, for there the question stands. The gap is not counted. Raises ValueError for a negative `most`.
    """
    if most < 0:
        raise ValueError(f"most must not be negative, and is {most}.")
    spans = tokens_of(text)
    if len(spans) <= most:
        return text
    if most == 0:
        return ""
    head = most // 3
    tail = most - head
    first = text[: spans[head - 1][1]] if head else ""
    return f"{first}{GAP}{text[spans[-tail][0] :]}".strip()


def fit(parts: list[tuple[str, int]], most: int) -> list[int]:
    """Return how many tokens each part may keep, so that all together have at most `most`.

    `parts` are texts with their rank: what has the greatest rank gives way first, and wholly, before the next gives anything;
    of parts with one rank the last gives way first. What has rank 0 is never dropped, but cut to what is left.
    """
    counts = [count_tokens(text) for text, _ in parts]
    over = sum(counts) - most
    order = sorted(range(len(parts)), key=lambda at: (parts[at][1], at), reverse=True)
    for at in order:
        if over <= 0:
            break
        gives = counts[at] if parts[at][1] > 0 else min(over, counts[at])
        counts[at] -= gives
        over -= gives
    return counts
