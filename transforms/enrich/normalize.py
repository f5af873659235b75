"""One text, one form: Unicode's NFC, no characters that hide, plain white space."""

from __future__ import annotations

import re
import unicodedata

_JOINERS = "\u200c\u200d"
_LINE_ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_BLANKS = re.compile(r"[^\S\n]+")
_AROUND_LINES = re.compile(r" ?\n ?")
_EMPTY_LINES = re.compile(r"\n{3,}")


def normalize(text: str) -> str:
    """Return `text` in NFC (Unicode Standard Annex 15), without characters that cannot be seen, with plain white space.

    Control and format characters go: zero-width spaces, soft hyphens, marks of direction, and the tag characters in which
    text for a model can be hidden. The joiners U+200C and U+200D stay between two characters above ASCII, where emoji and some
    scripts need them. Each line end becomes a line feed, each run of other white space one space; no line begins or ends
    with one, and no more than one line is empty in a row. Applied twice it changes nothing more.
    """
    visible = _without_hidden(_LINE_ENDS.sub("\n", unicodedata.normalize("NFC", text)))
    # What stood between two characters may be gone now, and the two become one.
    text = unicodedata.normalize("NFC", visible)
    return _EMPTY_LINES.sub("\n\n", _AROUND_LINES.sub("\n", _BLANKS.sub(" ", text))).strip()


def _without_hidden(text: str) -> str:
    shown = [
        char for char in text if char in "\n\t" or char in _JOINERS or unicodedata.category(char) not in {"Cc", "Cf"}
    ]
    kept: list[str] = []
    for at, char in enumerate(shown):
        if char not in _JOINERS or (_is_foreign(kept[-1:]) and _is_foreign(shown[at + 1 : at + 2])):
            kept.append(char)
    return "".join(kept)


def _is_foreign(char: list[str]) -> bool:
    """Whether there is a character, above ASCII, that shows something, and no joiner."""
    return bool(char) and ord(char[0]) > 127 and char[0] not in _JOINERS and not char[0].isspace()
