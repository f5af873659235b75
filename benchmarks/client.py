"""``scripts/bench client``: what a request costs through our client, beside plain aiohttp on the same server in the same go.

The processor time of this process alone counts, all threads of it, per request; the model server is another process. Rounds of
both take turns, and a round of each is one measurement: what else happens on the machine hits both alike, and the ratio of a round
is worth more than its figures. Both have the same number of requests under way, from as many tasks, on the same kind of event loop,
and an answer is read whole. Plain aiohttp sends bytes that are ready and takes its answer as bytes; the client
also encodes the question, decodes the reply, and runs all of its policies.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import aiohttp

from benchmarks import published, records
from benchmarks.profile import Profile
from benchmarks.rig import model_server
from transforms.remote.client import Call, Client
from transforms.remote.loop import new_event_loop
from transforms.remote.openai_chat import request_body
from transforms.remote.questions import Chat, Message
from transforms.remote.settings import Endpoint, ModelSettings

COMMAND = "scripts/bench client"
_DEADLINE_S = 120.0
Ask = Callable[[str], Awaitable[None]]
"""One request, for the event with this id."""


def plain(session: aiohttp.ClientSession, url: str) -> Ask:
    """A request by aiohttp alone."""

    async def ask(identity: str) -> None:
        headers = {"Content-Type": "application/json", "Idempotency-Key": identity}
        async with session.post(f"{url}/chat/completions", data=body, headers=headers) as answer:
            await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"The model server answered {answer.status}.")

    body = request_body("bench", (Message("user", records.text_of("q0")),), {})
    return ask


def through(client: Client) -> Ask:
    """A request by our client."""

    async def ask(identity: str) -> None:
        deadline_ms = round((time.time() + _DEADLINE_S) * 1_000)
        outcome = await client.call(Call(identity, Chat((Message("user", records.text_of(identity)),)), deadline_ms))
        if outcome.reply is None:
            raise RuntimeError(f"The client gave no reply: {outcome.error_message}")

    return ask


async def cost_us(ask: Ask, requests: int, at_once: int) -> float:
    """The microseconds of this process's processor time per request, `at_once` of them under way all the time."""
    numbers = iter(range(requests))

    async def work() -> None:
        for number in numbers:
            await ask(records.id_of(number))

    gc.collect()
    before_s = time.process_time()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return (time.process_time() - before_s) * 1e6 / requests


async def measured(url: str, requests: int, at_once: int, rounds: int) -> tuple[list[float], list[float]]:
    """The cost of plain aiohttp and of our client in each round, after one that does not count."""
    settings = ModelSettings(role="answer", endpoints=(Endpoint(url),), model="bench", max_in_flight=at_once)
    client = Client(settings)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        ways = plain(session, url), through(client)
        columns: tuple[list[float], list[float]] = ([], [])
        try:
            for number in range(rounds + 1):
                costs = [await cost_us(ask, requests, at_once) for ask in ways]
                if number:
                    for column, cost in zip(columns, costs, strict=True):
                        column.append(cost)
        finally:
            await client.close()
    return columns


def figures(alone_us: Sequence[float], ours_us: Sequence[float]) -> dict[str, float]:
    """The medians of all rounds, and the median of the rounds' ratios, with its least and greatest."""
    ratios = [ours / alone for alone, ours in zip(alone_us, ours_us, strict=True)]
    return {
        "aiohttp_us": median(alone_us),
        "client_us": median(ours_us),
        "ratio": median(ratios),
        "ratio_least": min(ratios),
        "ratio_greatest": max(ratios),
        "client_least_us": min(ours_us),
        "client_greatest_us": max(ours_us),
        "aiohttp_least_us": min(alone_us),
        "aiohttp_greatest_us": max(alone_us),
    }


def table(by_load: dict[int, dict[str, float]]) -> str:
    """A Markdown table, a row for each number of requests under way."""
    lines = ["| under way | aiohttp alone, µs | our client, µs | ratio |", "|---:|---:|---:|---:|"]
    for at_once, found in by_load.items():
        alone = f"{found['aiohttp_us']:.0f} ({found['aiohttp_least_us']:.0f}–{found['aiohttp_greatest_us']:.0f})"
        ours = f"{found['client_us']:.0f} ({found['client_least_us']:.0f}–{found['client_greatest_us']:.0f})"
        ratio = f"{found['ratio']:.2f} ({found['ratio_least']:.2f}–{found['ratio_greatest']:.2f})"
        lines.append(f"| {at_once} | {alone} | {ours} | {ratio} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and with ``--publish`` write the result."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="CPU per request: our client beside plain aiohttp.")
    parser.add_argument("--requests", type=int, default=10_000, help="requests of each in a round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count; the median is shown")
    parser.add_argument("--at_once", default="16,64,256", help="requests under way, by comma")
    parser.add_argument("--latency_s", type=float, default=0.02, help="what the model server takes, the median")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write benchmarks/results/client.json; scripts/bench document then writes the page",
    )
    given = parser.parse_args(argv)
    by_load = {}
    with _loop() as loop, model_server(Profile(median_s=given.latency_s, sigma=0.0)) as (url, _):
        for at_once in map(int, given.at_once.split(",")):
            by_load[at_once] = figures(*loop.run_until_complete(measured(url, given.requests, at_once, given.rounds)))
    print(table(by_load))
    middle = by_load.get(64) or next(iter(by_load.values()))
    if given.publish:
        shown = {str(at_once): found for at_once, found in by_load.items()}
        published.write("client", published.result(COMMAND, middle, by_load=shown, rounds=given.rounds))


@contextmanager
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = new_event_loop()
    try:
        yield loop
    finally:
        loop.close()


if __name__ == "__main__":
    main()
