"""``scripts/bench wire``: what a question weighs on the wire and how long it takes there, for each form that a kind of server speaks.

One request at a time, the forms in turn, in rounds; the median of the rounds' medians is shown, with the lowest and the highest. A
round trip counts from the question in memory to the answer in memory: encoding, packing, the way there and back, the server and
reading are all in it. The processor time is this process's own. Bytes are those of bodies: HTTP's headers come on top (about 200 bytes
each way), over gRPC five bytes and a frame of HTTP/2. On one machine bytes cost no time on the way; the column "at 10 Mbit/s" is
computed, not measured: what both bodies would take on a link of that rate.

The first server is one of our own with one cheap model behind every form, so that the forms alone differ. The second is a real
MLServer with scikit-learn.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import grpc.aio
import msgspec

from benchmarks import published, wire_mlserver
from benchmarks.rig import program, said
from benchmarks.wire_forms import Form, Question, chat, records, text_of, unpacked
from runners.local.artifacts import ROOT
from runners.local.part import StackError
from transforms.remote.loop import new_event_loop

COMMAND = "scripts/bench wire"
FEATURES = (30, 1_000)
BATCHES = (1, 16, 64)
TEXT_BYTES = (300, 2_000, 8_000)
LINK_BITS_PER_S = 10e6
LARGEST_BYTES = 64 << 20
_LONGEST_SAMPLE = 4_000
_SAMPLES = ROOT / "pipeline" / "samples" / "support.jsonl"

Send = Callable[[Form, bytes, Mapping[str, str]], Awaitable[tuple[bytes, Mapping[str, str]]]]
"""Sends a request's body; gives the answer's, as it came, and its headers."""


class _Written(msgspec.Struct):
    text: str = ""
    raw: str = ""
    vtt: str = ""


_written = msgspec.json.Decoder(_Written)


class Measured(msgspec.Struct, frozen=True):
    """A form's figures: bytes of the bodies, milliseconds of a round trip, microseconds of our processor time per request."""

    question: str
    form: str
    request_bytes: int
    answer_bytes: int
    round_trip_ms: float
    least_ms: float
    greatest_ms: float
    cpu_us: float


@contextmanager
def _own_server() -> Iterator[tuple[str, str]]:
    with program("benchmarks.wire_server") as process:
        found = said(process)
        yield found["http"], found["grpc"]


async def measured(http: str, address: str, asked: Sequence[Question], requests: int, rounds: int) -> list[Measured]:
    """All forms of all questions, on a server at two addresses."""
    options = [("grpc.max_send_message_length", LARGEST_BYTES), ("grpc.max_receive_message_length", LARGEST_BYTES)]
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        grpc.aio.insecure_channel(address, options=options) as channel,
    ):
        methods: dict[str, Any] = {}

        async def send(form: Form, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
            if form.grpc:
                call = methods.get(form.path) or methods.setdefault(form.path, channel.unary_unary(form.path))
                return await call(body), {}
            async with session.post(http + form.path, data=body, headers=headers) as answer:
                whole = await answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{form.path} as {form.name} gave {answer.status}: {whole[:300]!r}")
                return whole, answer.headers

        return [one for question in asked for one in await _question(send, question, requests, rounds)]


async def _question(send: Send, question: Question, requests: int, rounds: int) -> list[Measured]:
    times: dict[str, list[float]] = {form.name: [] for form in question.forms}
    cpus: dict[str, list[float]] = {form.name: [] for form in question.forms}
    sizes: dict[str, tuple[int, int]] = {}
    # The first round warms connections and caches, and does not count.
    for number in range(rounds + 1):
        for form in question.forms:
            trips_s, cpu_s, sizes[form.name] = await _round(send, form, requests)
            if number:
                times[form.name].append(median(trips_s) * 1e3)
                cpus[form.name].append(cpu_s * 1e6 / requests)
    return [
        Measured(question.title, name, *sizes[name], median(found), min(found), max(found), median(cpus[name]))
        for name, found in times.items()
    ]


async def _round(send: Send, form: Form, requests: int) -> tuple[list[float], float, tuple[int, int]]:
    trips_s = []
    size = (0, 0)
    before_s = time.process_time()
    for _ in range(requests):
        began_s = time.perf_counter()
        body, headers = form.make()
        answer, answered = await send(form, body, headers)
        form.read(unpacked(answer, answered), answered)
        trips_s.append(time.perf_counter() - began_s)
        size = (len(body), len(answer))
    return trips_s, time.process_time() - before_s, size


def table(found: Sequence[Measured]) -> str:
    """A Markdown table. "Of JSON" is the request's share of the bytes of the same question as JSON."""
    lines = [
        "| question | form | request bytes | of JSON | answer bytes | round trip ms | CPU µs | at 10 Mbit/s, ms |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    plain = {one.question: one.request_bytes for one in found if one.form == "JSON"}
    for one in found:
        on_link_ms = (one.request_bytes + one.answer_bytes) * 8.0 / LINK_BITS_PER_S * 1e3
        share = f"{one.request_bytes / plain[one.question]:.0%}" if plain.get(one.question) else ""
        trip = f"{one.round_trip_ms:.2f} ({one.least_ms:.2f}–{one.greatest_ms:.2f})"
        cells = [
            f"{one.request_bytes:,}",
            share,
            f"{one.answer_bytes:,}",
            trip,
            f"{one.cpu_us:.0f}",
            f"{on_link_ms:.1f}",
        ]
        lines.append(f"| {one.question} | {one.form} | {' | '.join(cells).replace(',', ' ')} |")
    return "\n".join(lines) + "\n"


_SECTION = """\
## What goes over the wire

`{command}`, {date}, {machine}. One request at a time; medians of {rounds} rounds (lowest–highest). A round trip counts from the
question in memory to the answer in memory, and the processor time is the caller's. Bytes are those of bodies. On one machine bytes
cost no time on the way; the last column is computed: what both bodies would take on a link of 10 Mbit/s.

One server of our own with one cheap model behind every form, so that the forms alone differ:

{own}
{mlserver}"""


def section(found: Mapping[str, Any]) -> str:
    """The page's section from a published result."""
    own, real = (msgspec.convert(found.get(name, []), list[Measured]) for name in ("own", "mlserver"))
    note = f"MLServer did not run: {found['mlserver_failure']}\n" if found.get("mlserver_failure") else ""
    if real:
        note = (
            "A real MLServer with scikit-learn. Over HTTP it does not know binary tensors, and packs answers from 1 000 bytes on:"
            f"\n\n{table(real)}"
        )
    return _SECTION.format(**{**found, "own": table(own), "mlserver": note})


def samples(path: Path = _SAMPLES) -> list[str]:
    """What people wrote, from the sample events; some of those are broken or huge on purpose, and are left out."""
    found = []
    for line in path.read_bytes().splitlines():
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            event = _written.decode(line)
            found.append(event.text or event.raw or event.vtt)
    return [text for text in found if 0 < len(text) <= _LONGEST_SAMPLE]


def figures(found: Sequence[Measured]) -> dict[str, float]:
    """The share of JSON's request bytes that each other form takes, over all questions together."""
    total: dict[str, int] = {}
    plain: dict[str, int] = {}
    by_question = {one.question: one.request_bytes for one in found if one.form == "JSON"}
    for one in found:
        name = f"{'chat' if one.question.startswith('chat') else 'v2'}_{one.form}"
        total[name] = total.get(name, 0) + one.request_bytes
        plain[name] = plain.get(name, 0) + by_question[one.question]
    return {name: size / plain[name] for name, size in total.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and with ``--publish`` write the result."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Bytes and round trips as JSON, gzip, binary tensors and gRPC."
    )
    parser.add_argument("--requests", type=int, default=50, help="requests of each form in a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count; the median is shown")
    parser.add_argument("--without_mlserver", action="store_true", help="our own server alone")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write benchmarks/results/wire.json; scripts/bench document then writes the page",
    )
    given = parser.parse_args(argv)
    loop = new_event_loop()
    chats = [chat(text_of(samples(), size)) for size in TEXT_BYTES]
    batches = [records(features, rows) for features in FEATURES for rows in BATCHES]
    with _own_server() as (http, address):
        own = loop.run_until_complete(measured(http, address, [*chats, *batches], given.requests, given.rounds))
    print(table(own))
    real, failure = ([], "") if given.without_mlserver else _real(loop, given.requests, given.rounds)
    print(table(real) if real else f"no MLServer: {failure or 'not asked for'}")
    if given.publish:
        more = {"own": own, "mlserver": real, "mlserver_failure": failure, "rounds": given.rounds}
        published.write("wire", published.result(COMMAND, figures(own), **more))
    loop.close()


def _real(loop: asyncio.AbstractEventLoop, requests: int, rounds: int) -> tuple[list[Measured], str]:
    """The same on MLServer, or why not: one that cannot be installed is a result."""
    asked = [
        records(features, rows, wire_mlserver.model_name(features), with_binary=False)
        for features in FEATURES
        for rows in BATCHES
    ]
    try:
        with (
            tempfile.TemporaryDirectory(prefix="farcall-mlserver-") as folder,
            wire_mlserver.running(Path(folder), FEATURES) as (http, address),
        ):
            return loop.run_until_complete(measured(http, address, asked, requests, rounds)), ""
    except (StackError, RuntimeError, grpc.aio.AioRpcError, aiohttp.ClientError) as error:
        return [], f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
