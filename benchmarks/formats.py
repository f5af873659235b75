"""``scripts/bench formats``: what JSON, Avro and Protobuf cost in bytes and in time, on the sample events.

Prints one Markdown table. Bytes are of one record's value with the prefix of a registry; "in a batch" is the same, without the
prefix, in a batch of at most 100 values compressed together by zstd, as a producer with ``compression.type=zstd`` sends them. Encode
is JSON to the format, decode the format to JSON: the steps the pipeline adds for such a topic. Parse is the case's own ``parse`` of
the JSON, for comparison. Times are of the CPU, medians over `RUNS` runs of all samples, per record, with the least and the greatest
run. With ``--publish`` the table takes the place of the one in docs/reference/formats.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import msgspec
import zstandard

from pipeline.case import Case
from pipeline.cases.fraud.case import FRAUD
from pipeline.cases.support import answer
from pipeline.cases.support.case import SUPPORT
from pipeline.cases.support.events import parse_event
from pipeline.cases.support.scripted import reply_json
from pipeline.cases.support.steps import opened
from runners.local.artifacts import ROOT
from transforms.errors import BadEvent, BadReply, SettingsError
from transforms.formats import protobuf
from transforms.formats.codec import Decode, Encode
from transforms.formats.registry import Schema
from transforms.formats.settings import TopicFormat
from transforms.formats.wire import frame
from transforms.records import Answer, SourceRecord

COMMAND = "scripts/bench formats"
PAGE = ROOT / "docs" / "reference" / "formats.md"
HEAD = "| records | format | bytes | of JSON | in a batch | encode, µs | decode, µs | parse, µs |"
RUNS = 15
BATCH = 100
_PREFIX = len(frame(1, b""))
_PIPELINE = ROOT / "pipeline"


@dataclass(frozen=True)
class Kind:
    """Records of one kind, as JSON, with the schemas of their other forms; and what parses one, where a case does."""

    name: str
    values: Sequence[bytes]
    forms: Sequence[TopicFormat]
    parse: Callable[[bytes], object] | None = None


def kinds() -> list[Kind]:
    """Support events by channel, replies to chats, and the fraud case's events of numbers."""
    support, fraud = forms("support", "event"), forms("fraud", "event")
    channels = [
        Kind(name, fitting(SUPPORT, support[0], _of(name)), support, _parse(SUPPORT))
        for name in ("chat", "email", "call")
    ]
    replies = [reply_to(value) for value in channels[0].values]
    return [
        *channels,
        Kind("reply", replies, forms("support", "reply")),
        Kind("fraud", fitting(FRAUD, fraud[0])[:BATCH], fraud, _parse(FRAUD)),
    ]


def _of(channel: str) -> Callable[[Any], bool]:
    return lambda event: bool(event.channel == channel)


def _parse(case: Case) -> Callable[[bytes], object]:
    return lambda value: case.parse(SourceRecord(value))


def forms(case: str, name: str) -> list[TopicFormat]:
    """The forms of a case's record, but JSON."""
    folder = _PIPELINE / "cases" / case / "schemas"
    avro = Schema("AVRO", (folder / f"{name}.avsc").read_text())
    proto = Schema("PROTOBUF", (folder / f"{name}.proto").read_text())
    return [
        TopicFormat(topic="t", format="avro", schema=avro),
        TopicFormat(topic="t", format="protobuf", schema=proto, descriptors=protobuf.compile_schema(proto)),
    ]


def fitting(case: Case, form: TopicFormat, chosen: Callable[[Any], bool] = lambda _: True) -> list[bytes]:
    """The good sample events of a case that fit the schema, and are among the chosen."""
    encode = Encode({"t": form})
    found = []
    for line in case.samples.read_bytes().splitlines():
        try:
            event = case.parse(SourceRecord(line))
            encode.value("t", line)
        except (BadEvent, BadReply):
            continue
        if chosen(event):
            found.append(line)
    return found


def reply_to(value: bytes) -> bytes:
    """A reply as the support case writes it, whatever its own rules would say of it."""
    ticket = opened(parse_event(SourceRecord(value)))
    text = reply_json("Thank you, we are looking into it.")
    given = Answer(text, "a-model", "http://llm.example.com:8000/v1", "stop", 1, 180, 24, 412.3, 430.8)
    reply = msgspec.structs.replace(answer.decide(answer.check((ticket, given))), reasons=())
    return answer.route(reply).value or b""


def timed(function: Callable[[bytes], object], values: Sequence[bytes]) -> str:
    """Microseconds per value: the median of the runs, and their range."""
    times = []
    for _ in range(RUNS + 1):
        began_s = time.thread_time()
        for value in values:
            function(value)
        times.append((time.thread_time() - began_s) / len(values) * 1e6)
    times = sorted(times[1:])  # the first warms up
    return f"{statistics.median(times):.1f} ({times[0]:.1f}–{times[-1]:.1f})"


def in_a_batch(values: Sequence[bytes]) -> float:
    """Bytes per value where `BATCH` of them, or all where there are fewer, are compressed together."""
    batch = values[:BATCH]
    return len(zstandard.ZstdCompressor(level=3).compress(b"".join(batch))) / len(batch)


def rows(kind: Kind) -> list[str]:
    """The rows of a kind, JSON first."""
    values = kind.values
    parse = "" if kind.parse is None else timed(kind.parse, values)
    size = statistics.mean(map(len, values))
    begin = f"| {kind.name} ({len(values)})"
    found = [f"{begin} | JSON | {size:,.0f} | 100 % | {in_a_batch(values):,.0f} | | | {parse} |"]
    for form in kind.forms:
        encode, decode = Encode({"t": form}), Decode({"t": form})
        encoded = [encode.value("t", value) for value in values]
        own = statistics.mean(map(len, encoded)) + _PREFIX + (form.format == "protobuf")
        times = timed(partial(encode.value, "t"), values), timed(partial(decode.value, "t"), encoded)
        name = form.format.capitalize()
        share = f"{100 * own / size:.0f} %"
        found.append(f"| | {name} | {own:,.0f} | {share} | {in_a_batch(encoded):,.0f} | {times[0]} | {times[1]} | |")
    return found


def table(every: Iterable[Kind]) -> str:
    """The Markdown table of these kinds."""
    return "\n".join([HEAD, "|---|---|---|---|---|---|---|---|", *(row for kind in every for row in rows(kind))]) + "\n"


def with_table(page: str, found: str) -> str:
    """The page with `found` in the place of the table that has the same head. Raises SettingsError where there is none."""
    begin = page.find(HEAD)
    if begin < 0:
        raise SettingsError(f"The page has no table that begins with {HEAD!r}; put its head where the table belongs.")
    rest = page[begin:]
    lines = rest.splitlines(keepends=True)
    length = sum(map(len, takewhile(lambda line: line.startswith("|"), lines)))
    return page[:begin] + found + rest[length:]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, and with ``--publish`` writes it into the page."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Bytes and time of JSON, Avro and Protobuf, on the samples."
    )
    parser.add_argument("--publish", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}")
    given = parser.parse_args(argv)
    found = table(kinds())
    print(found, end="")
    if given.publish:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
