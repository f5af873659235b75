"""Call transcripts: WebVTT, read as the W3C recommendation describes it (https://www.w3.org/TR/webvtt1/).

A player forgives what it cannot read; here a broken transcript is rejected with the number of the line, since an answer
to half a conversation would be wrong.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any

import msgspec

from pipeline.cases.support.wording import excerpt, is_blank
from transforms.errors import BadEvent

_TIME = r"(?:([0-9]{1,4}):)?([0-5][0-9]):([0-5][0-9])\.([0-9]{3})"
_TIMING = re.compile(rf"[ \t]*{_TIME}[ \t]*-->[ \t]*{_TIME}(?:[ \t]+.*)?")
_LINE_END = re.compile(r"\r\n|\n|\r")
_TAG = re.compile(r"<([^>]*)>?")
_VOICE = re.compile(r"v(?:\.[^\s]*)?(?:\s+(.*))?", re.DOTALL)
_NOTE = re.compile(r"NOTE(?:[ \t].*)?")
_DEFINITION = re.compile(r"(?:STYLE|REGION)[ \t]*")

_Lines = list[tuple[int, str]]
"""Lines of the file with their numbers, from 1."""


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """What one speaker said until another spoke.

    `speaker` is the name in the voice tag, empty where the transcript names none. `start_ms` and `end_ms` are
    milliseconds from the start of the call.
    """

    speaker: str
    text: str
    start_ms: int
    end_ms: int


def read_transcript(vtt: str) -> tuple[Turn, ...]:
    """Read a WebVTT file into the turns of its speakers, in the order of the file.

    Cues of one speaker that follow each other are one turn. Identifiers, settings, comments, styles, regions and all
    tags but voices are dropped. Raises `BadEvent` of the kind ``bad-vtt``, with the line number, where there is no
    header, a block is neither a cue nor a comment, a timing cannot be read, ends before it starts or starts before the
    cue above it, or where the file has no cue.
    """
    return tuple(_merged(_spoken(vtt)))


def read_segments(segments: Any) -> tuple[Turn, ...]:
    """Read a transcript in JSON into the turns of its speakers, in the order of the array.

    A segment is an object with `text`, `start_ms` and `end_ms` (integers, from the start of the call) and, where it is known,
    `speaker`; further members are not looked at. Runs of white space are one space, segments without a word are dropped, and
    those of one speaker that follow each other are one turn. Raises `BadEvent` of the kind ``bad-segments``, with the number of the
    segment from 1, for what is none, ends before it starts, or starts before the one above it.
    """
    if not isinstance(segments, list) or not segments:
        raise BadEvent("bad-segments", "The event's `segments` must be an array of one segment or more.")
    turns, earliest = [], 0
    for number, segment in enumerate(segments, start=1):
        turn = _segment(number, segment)
        if turn.start_ms < earliest:
            raise _bad_segment(number, "starts before the one above it")
        earliest = turn.start_ms
        if not is_blank(turn.text):
            turns.append(turn)
    return tuple(_merged(turns))


def _segment(number: int, segment: Any) -> Turn:
    if not isinstance(segment, dict):
        raise _bad_segment(number, "is no object")
    text, speaker = segment.get("text"), segment.get("speaker", "")
    if not isinstance(text, str) or not isinstance(speaker, str):
        raise _bad_segment(number, "needs `text`, a string, and `speaker`, where there is one, too")
    times = [segment.get("start_ms"), segment.get("end_ms")]
    start, end = (time if isinstance(time, int) and not isinstance(time, bool) else -1 for time in times)
    if start < 0 or end <= start:
        raise _bad_segment(number, "needs `start_ms` and `end_ms`, integers, the second one greater")
    return Turn(" ".join(speaker.split()), " ".join(text.split()), start, end)


def _bad_segment(number: int, wrong: str) -> BadEvent:
    return BadEvent("bad-segments", f"Segment {number} of the transcript in `segments` {wrong}.")


def as_text(turns: Iterable[Turn]) -> str:
    """Write turns as a dialogue: a line ``Speaker: what was said`` per turn, without a name where none is known."""
    return "\n".join(f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text for turn in turns)


def _spoken(vtt: str) -> Iterator[Turn]:
    cues, last_start = 0, 0
    for block in _blocks(_body(vtt)):
        if _is_comment(block, before_cues=cues == 0):
            continue
        number, start, end, payload = _cue(block)
        if start < last_start:
            raise _bad(number, "starts before the cue above it; put the cues in the order in which they were spoken")
        cues, last_start = cues + 1, start
        for speaker, text in _voices("\n".join(payload)):
            yield Turn(speaker, text, start, end)
    if not cues:
        raise BadEvent("bad-vtt", "The transcript in `vtt` has no cue: nothing that was said, at any time.")


def _body(vtt: str) -> _Lines:
    """Give the lines under the header block, which is the line ``WEBVTT`` and what follows up to a blank line."""
    lines = list(enumerate(_LINE_END.split(vtt.removeprefix("\ufeff").replace("\0", "\ufffd")), start=1))
    if not re.fullmatch(r"WEBVTT(?:[ \t].*)?", lines[0][1]):
        raise _bad(1, f"must be `WEBVTT`, not {excerpt(lines[0][1])}")
    for index, (_, line) in enumerate(lines):
        if "-->" in line:
            return lines[index:]
        if not line:
            return lines[index + 1 :]
    return []


def _blocks(lines: _Lines) -> Iterator[_Lines]:
    block: _Lines = []
    for number, line in [*lines, (0, "")]:
        if line:
            block.append((number, line))
        elif block:
            yield block
            block = []


def _is_comment(block: _Lines, *, before_cues: bool) -> bool:
    first = block[0][1]
    if len(block) > 1 and "-->" in block[1][1]:
        return False
    return bool(_NOTE.fullmatch(first) or (before_cues and _DEFINITION.fullmatch(first)))


def _cue(block: _Lines) -> tuple[int, int, int, list[str]]:
    """Give the number of the timing's line, start and end in milliseconds, and the lines of the payload."""
    at = 0 if "-->" in block[0][1] else 1
    if at == len(block) or "-->" not in block[at][1]:
        raise _bad(block[0][0], f"begins a block that is neither a cue nor a comment: {excerpt(block[0][1])}")
    number, timing = block[at]
    match = _TIMING.fullmatch(timing)
    if not match:
        raise _bad(number, f"needs a timing such as `00:01.000 --> 00:04.000`, not {excerpt(timing)}")
    start, end = _milliseconds(match.groups()[:4]), _milliseconds(match.groups()[4:])
    if end <= start:
        raise _bad(number, f"has a cue that does not end after it starts: {excerpt(timing)}")
    payload = block[at + 1 :]
    for within, line in payload:
        if "-->" in line:
            raise _bad(within, "has a timing inside a cue; put a blank line between two cues")
    return number, start, end, [line for _, line in payload]


def _milliseconds(parts: tuple[str | None, ...]) -> int:
    hours, minutes, seconds, thousandths = (int(part or 0) for part in parts)
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + thousandths


def _voices(payload: str) -> Iterator[tuple[str, str]]:
    """Give the speakers of one cue and their words, tags and character references resolved."""
    for speaker, pieces in groupby(_pieces(payload), key=itemgetter(0)):
        words = _plain("".join(piece for _, piece in pieces))
        if not is_blank(words):
            yield speaker, words


def _pieces(payload: str) -> Iterator[tuple[str, str]]:
    """Cut a cue's payload at its tags. A voice holds until its end tag or the end of the cue."""
    speakers, after = [""], 0
    for tag in _TAG.finditer(payload):
        yield speakers[-1], payload[after : tag.start()]
        after = tag.end()
        voice = _VOICE.fullmatch(tag[1])
        if voice:
            speakers.append(_plain(voice[1] or ""))
        elif tag[1] == "/v" and len(speakers) > 1:
            speakers.pop()
    yield speakers[-1], payload[after:]


def _plain(text: str) -> str:
    """Resolve character references and make each run of white space one space."""
    return " ".join(html.unescape(text).split())


def _merged(turns: Iterable[Turn]) -> Iterator[Turn]:
    """Join the turns of one speaker that follow each other."""
    for speaker, run in groupby(turns, key=attrgetter("speaker")):
        said = list(run)
        yield Turn(speaker, " ".join(turn.text for turn in said), said[0].start_ms, said[-1].end_ms)


def _bad(number: int, wrong: str) -> BadEvent:
    return BadEvent("bad-vtt", f"Line {number} of the transcript in `vtt` {wrong}.")
