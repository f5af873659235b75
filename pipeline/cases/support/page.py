"""The text of an HTML page, as a reader of the e-mail saw it.

Not `html.parser`: in Python 3.11 its time grows with the square of the input for tags that are never closed (75 kB of
``<a `` took 90 s, CVE-2025-6069), and one such e-mail would hold up a stream. This reads each character once.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

_MARKUP = re.compile(
    r"""<(?:(?P<comment>!--)
          |(?P<end>/?)(?P<name>[a-z][^\s/<>]*)(?:[^<>"']|"[^"<]*"|'[^'<]*')*+>
          |(?P<other>[!?/][^<>]*+>))""",
    re.VERBOSE | re.IGNORECASE,
)
_DROPPED = frozenset({"script", "style", "title", "template"})
_PARAGRAPHS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "table", "blockquote", "pre", "hr"})
_LINES = frozenset(
    {"br", "div", "li", "tr", "dt", "dd", "dl", "section", "article", "header", "footer", "main", "address", "body"}
)
_SPACE = re.compile(r"[ \t\r\n\f\xa0]+")


def page_text(page: str) -> str:
    """Give the text of an HTML page: a line per block, a blank line between paragraphs, ``> `` before quotes.

    Scripts, styles, the title, comments and all tags are dropped, and character references resolved. White space runs
    are one space, also in `pre`. Markup that is broken is read as text.
    """
    writer = _Writer()
    for text, tag in _tokens(page):
        writer.write(text)
        if tag:
            writer.mark(tag)
    return writer.finish()


def _tokens(page: str) -> Iterator[tuple[str, str]]:
    """Cut a page at its markup: the text before each tag, and the tag as ``name`` or ``/name``, empty for a comment."""
    at = after = 0
    while match := _MARKUP.search(page, at):
        yield page[after : match.start()], _tag(match)
        at = after = _end(page, match)
    yield page[after:], ""


def _tag(match: re.Match[str]) -> str:
    return match["end"] + match["name"].lower() if match["name"] else ""


def _end(page: str, match: re.Match[str]) -> int:
    """Tell where the markup ends: a comment at ``-->``, a dropped element at its end tag, else at ``>``."""
    if match["comment"]:
        closed = page.find("-->", match.end())
        return closed + 3 if closed >= 0 else len(page)
    if _tag(match) in _DROPPED:
        closing = re.compile(rf"</{match['name']}[\s/>]", re.IGNORECASE).search(page, match.end())
        return closing.start() if closing else len(page)
    return match.end()


class _Writer:
    """Lines of text as they are found, with the depth of quotes."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._pieces: list[str] = []
        self._quotes = 0

    def write(self, text: str) -> None:
        """Add text to the current line."""
        self._pieces.append(text)

    def mark(self, tag: str) -> None:
        """Note a tag: where it ends a line or a paragraph, the current line ends."""
        name = tag.removeprefix("/")
        if name in _PARAGRAPHS:
            self._break(paragraph=True)
        elif name in _LINES:
            self._break(forced=name == "br")
        elif tag in ("/td", "/th"):
            self._pieces.append(" ")
        if name == "blockquote":
            self._quotes = max(0, self._quotes + (-1 if tag == "/blockquote" else 1))
        elif tag == "li":
            self._pieces.append("- ")

    def finish(self) -> str:
        """End the last line and give all of them, without more than one blank line in a row."""
        self._break()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines)).strip()

    def _break(self, *, paragraph: bool = False, forced: bool = False) -> None:
        line = _SPACE.sub(" ", html.unescape("".join(self._pieces))).strip()
        self._pieces.clear()
        if line:
            self._lines.append("> " + line if self._quotes else line)
        if paragraph or (forced and not line):
            self._lines.append("")
