"""Where the history of an e-mail conversation begins, so that only what is new goes to the model.

There is no standard for it: these are the lines that mail programs write above what they quote, in the languages of the
shop's customers.
"""

from __future__ import annotations

import re

_QUOTED = re.compile(r" ?>(?!:)")  # not the angry face >:(
_ATTRIBUTION = re.compile(
    r"""(?:On|W\sdniu|Dnia)\b.*\bwrote\s?:
      | Am\b.*\bschrieb\b.*:     | .*\bschrieb\sam\b.*:
      | Le\b.*\ba\sécrit\s?:     | El\b.*\bescribió\s?:
      | Il\b.*\bha\sscritto\s?:  | Op\b.*\b(?:schreef|geschreven)\b.*:
      | (?:Em|No\sdia|A)\b.*\bescreveu\s?:
      | .*\b(?:napisał|napisała|napisał\(a\)|pisze)\s?:
      | \d{4}年.*[:\uff1a]
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ATTRIBUTION_LINES = 3
_ATTRIBUTION_CHARS = 300
_SEPARATOR = re.compile(
    r"""-{2,}\s*(?:original\smessage|ursprüngliche\snachricht|original-?nachricht|message\sd['\u2019]origine
      |message\soriginal|mensaje\soriginal|messaggio\soriginale|oorspronkelijk\sbericht|mensagem\soriginal
      |(?:oryginalna\swiadomość|wiadomość\soryginalna)|元のメッセージ)\s*-{2,}""",
    re.VERBOSE | re.IGNORECASE,
)
_FORWARDED = re.compile(r"-{2,}\s*\w.*-{2,}|Begin forwarded message:", re.IGNORECASE)
_FROM = re.compile(r"\*?(?:From|Von|De|Da|Van|Od|差出人)\s?:\*?\s", re.IGNORECASE)
_SENT = re.compile(
    r"""\*?(?:Sent|Date|Gesendet|Datum|Envoyé|Enviado(?:\sel|\sem)?|Fecha|Inviato|Data
      |Verzonden|Wysłano|送信日時)\s?:\*?\s""",
    re.VERBOSE | re.IGNORECASE,
)


def without_history(text: str) -> str:
    """Drop what an e-mail quotes of earlier ones: lines behind ``>``, and everything under a line that announces it.

    Answers written between or under quoted lines stay. A line such as ``On … wrote:`` counts only with a date in it.
    History without marks stays where nothing stands above it, and so does a message that the customer forwards.
    """
    lines, kept, at, forwarded = text.split("\n"), _Kept(), 0, False
    while at < len(lines):
        announced = _announcement(lines, at, forwarded=forwarded)
        if announced and _is_quoted_next(lines, at + announced):
            at += announced
        elif announced and kept.visible:
            break
        else:
            forwarded = forwarded or bool(_FORWARDED.fullmatch(lines[at].strip()))
            if not _QUOTED.match(lines[at]):
                kept.add(lines[at])
            at += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept.lines)).strip()


class _Kept:
    """The lines that stay, and whether one of them shows anything."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.visible = False

    def add(self, line: str) -> None:
        self.lines.append(line)
        self.visible = self.visible or bool(line.strip())


def _announcement(lines: list[str], at: int, *, forwarded: bool) -> int:
    """Count the lines from `at` on that announce quoted history, 0 where they do not."""
    line = lines[at].strip()
    if not line:
        return 0
    if line.startswith("-") and _SEPARATOR.fullmatch(line):
        return 1
    if (
        not forwarded
        and ":" in line
        and _FROM.match(line)
        and any(_SENT.match(below.strip()) for below in lines[at + 1 : at + 3])
    ):
        return 1
    joined = ""
    for count, below in enumerate(lines[at : at + _ATTRIBUTION_LINES], start=1):
        joined = f"{joined} {below.strip()}".strip()
        if not below.strip() or len(joined) > _ATTRIBUTION_CHARS:
            break
        if joined.endswith((":", "\uff1a")) and _ATTRIBUTION.fullmatch(joined) and re.search(r"\d", joined):
            return count
    return 0


def _is_quoted_next(lines: list[str], at: int) -> bool:
    """Tell whether the next line that is not blank is behind ``>``."""
    below = next((line for line in lines[at:] if line.strip()), "")
    return bool(_QUOTED.match(below))
