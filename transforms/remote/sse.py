"""Server-Sent Events, read piece by piece as the bytes come in.

Source: the HTML Living Standard of WHATWG, section 9.2 (parsing and interpreting an event stream). A line ends with CR,
LF or CRLF; a byte order mark before the first line is dropped; a line that begins with a colon is a comment; the lines
of one event's `data` are joined by LF; a blank line sends the event off, if it has data. What stands behind the last
blank line is no event, so a stream that was cut never gives half of one.

Two things go beyond the standard, and both bound trust rather than meaning: `errors="strict"` refuses bytes that are
not UTF-8 where the standard puts U+FFFD in their place, and an event may have `largest_event_bytes` (default 1 MiB).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from transforms.errors import BrokenReply

LARGEST_EVENT_BYTES = 1024 * 1024

_BOM = b"\xef\xbb\xbf"


class Event(msgspec.Struct, frozen=True):
    """One event of a stream: its `data`, its type `name`, and the last `id` that the stream gave (empty: none)."""

    data: str
    name: str = "message"
    id: str = ""


class SseParser:
    """Turns the bytes of one stream, cut anywhere, into events. Make one per stream.

    `retry_ms` is the last reconnection time that the stream asked for, or None.
    """

    def __init__(
        self, errors: Literal["strict", "replace"] = "replace", largest_event_bytes: int = LARGEST_EVENT_BYTES
    ) -> None:
        self.retry_ms: int | None = None
        self._errors = errors
        self._largest = largest_event_bytes
        self._rest = b""
        self._after_cr = False
        self._first = True
        self._data: list[str] = []
        self._size = 0
        self._name = ""
        self._id = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that `chunk`, the next bytes of the stream, completes.

        Raises:
            BrokenReply: an event is larger than the bound or, with `errors="strict"`, not UTF-8.
        """
        events: list[Event] = []
        for line in self._lines(chunk):
            event = self._take(line)
            if event is not None:
                events.append(event)
        return events

    def _lines(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` ends, without their ends. A CR ends its line at once: an LF after it says nothing."""
        if not chunk:
            return []
        begins = 1 if self._after_cr and chunk[:1] == b"\n" else 0
        self._after_cr = chunk[-1:] == b"\r"
        lines = (self._rest + chunk[begins:]).splitlines(keepends=True)
        self._rest = lines.pop() if lines and not lines[-1].endswith((b"\r", b"\n")) else b""
        self._check_size(len(self._rest))
        return [line.rstrip(b"\r\n") for line in lines]

    def _take(self, line: bytes) -> Event | None:
        """Note what a line says; the event, when it is the blank line behind one with data."""
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        if not line.startswith(b":"):
            self._note(self._text(line))
        return None

    def _note(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._size += len(value) + 1
            self._check_size(0)
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value[:18])

    def _dispatch(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._name, self._size = [], "", 0
        return Event("\n".join(data), name or "message", self._id) if data else None

    def _text(self, line: bytes) -> str:
        try:
            return line.decode("utf-8", self._errors)
        except UnicodeDecodeError as error:
            raise BrokenReply(f"The stream is not UTF-8: {error}.") from None

    def _check_size(self, more: int) -> None:
        if self._size + more > self._largest:
            raise BrokenReply(f"An event of the stream is larger than {self._largest} bytes.")
