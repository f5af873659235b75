"""Server-Sent Events: what the standard says of lines, fields and ends, however the bytes are cut."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Literal

import pytest

from transforms.errors import BrokenReply
from transforms.remote.sse import Event, SseParser


def events_of(
    stream: bytes, cuts: list[int] | None = None, errors: Literal["strict", "replace"] = "replace"
) -> list[Event]:
    """The events of a stream that comes in pieces, cut at these places."""
    parser = SseParser(errors)
    places = [0, *sorted(cuts or []), len(stream)]
    return [event for begin, end in pairwise(places) for event in parser.feed(stream[begin:end])]


def data_of(stream: bytes) -> list[str]:
    return [event.data for event in events_of(stream)]


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data: one\n\n", ["one"]),
        (b"data:one\n\n", ["one"]),
        (b"data:  one\n\n", [" one"]),
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"]),
        (b": comment\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n", ["first", "second", " third"]),
        (b"data\n\ndata\ndata\n\ndata:", ["", "\n"]),
        (b"data:test\n\ndata: test\n\n", ["test", "test"]),
        (b"data: a: b\n\n", ["a: b"]),
        (b"unknown: x\nDATA: no\n data: no\ndata: yes\n\n", ["yes"]),
        (b"event: only\n\n\n\n", []),
        (b"data: cut\n", []),
        (b"data: cut", []),
        (b"", []),
    ],
)
def test_lines_and_fields_are_read_as_the_standard_says(stream: bytes, data: list[str]) -> None:
    """Data lines join, one space is dropped, comments and unknown fields say nothing, what is cut is no event."""
    assert data_of(stream) == data


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_each_kind_of_line_end_means_the_same(end: bytes) -> None:
    """CR, LF and CRLF give the same events."""
    stream = b"data: a\ndata: b\n\n: c\ndata: d\n\n".replace(b"\n", end)
    assert data_of(stream) == ["a\nb", "d"]


def test_line_ends_may_be_mixed() -> None:
    """A CR followed by LF is one end; LF followed by CR is two."""
    assert data_of(b"data: a\r\ndata: b\n\rdata: c\r\r\n") == ["a\nb", "c"]


def test_a_carriage_return_ends_its_line_at_once() -> None:
    """An event whose last byte so far is the CR of a CRLF does not wait for the LF, which then says nothing."""
    parser = SseParser()
    assert parser.feed(b"data: a\r\n\r") == [Event("a")]
    assert parser.feed(b"\n") == []
    assert parser.feed(b"data: b\r\r") == [Event("b")]


def test_only_the_first_byte_order_mark_is_dropped() -> None:
    """A byte order mark before the first line is dropped, also one cut in two; a later one belongs to its field."""
    assert events_of(b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\ndata: c\n\n", [1]) == [Event("a"), Event("c")]


def test_name_and_id_travel_with_the_event() -> None:
    """The type is the event's own, the id that of the last event that had one; an id with NUL is ignored."""
    stream = b"event: add\nid: 7\ndata: a\n\ndata: b\n\nid: 8\0\ndata: c\n\nid\ndata: d\n\n"
    assert events_of(stream) == [Event("a", "add", "7"), Event("b", id="7"), Event("c", id="7"), Event("d")]


@pytest.mark.parametrize(
    ("line", "retry_ms"), [(b"retry: 250", 250), (b"retry: 2.5", None), ("retry: ٣".encode(), None)]
)
def test_retry_takes_plain_digits_alone(line: bytes, retry_ms: int | None) -> None:
    """`retry_ms` is what the stream asked for in ASCII digits; anything else is ignored."""
    parser = SseParser()
    parser.feed(line + b"\n")
    assert parser.retry_ms == retry_ms


def random_stream(chance: random.Random) -> bytes:
    words = ["data: Grüße, 你好 🦆", "data", "data:x", ":ping", "event: e", "id: ü", "retry: 5", "junk", "", "", ""]
    lines = chance.choices(words, k=12)
    start = chance.choice(["", "\ufeff"])
    return (start + "".join(line + chance.choice(["\n", "\r", "\r\n"]) for line in lines)).encode()


@pytest.mark.parametrize("seed", range(200))
def test_cuts_make_no_difference(seed: int) -> None:
    """However a stream is cut, also inside of a character, its events are those of the whole."""
    chance = random.Random(seed)
    stream = random_stream(chance)
    whole = events_of(stream)
    assert events_of(stream, list(range(len(stream)))) == whole
    for _ in range(5):
        assert events_of(stream, [chance.randrange(len(stream)) for _ in range(4)]) == whole


def test_bytes_that_are_not_utf8_are_replaced_or_refused() -> None:
    """The standard's replacement is the default; strict refuses with a sentence."""
    assert data_of(b"data: \xff!\n\n") == ["\ufffd!"]
    with pytest.raises(BrokenReply, match="not UTF-8"):
        events_of(b"data: \xff!\n\n", errors="strict")


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 200, b"data: xxxxxxxx\n" * 20])
def test_an_event_without_end_is_refused(stream: bytes) -> None:
    """One line or many: an event larger than the bound is a BrokenReply, and nothing more is kept."""
    parser = SseParser(largest_event_bytes=100)
    with pytest.raises(BrokenReply, match="larger than 100 bytes"):
        parser.feed(stream)


def test_many_events_may_be_more_than_the_bound_together() -> None:
    """The bound is on one event, not on the stream."""
    assert len(SseParser(largest_event_bytes=100).feed(b"data: xxxxxxxx\n\n" * 50)) == 50
