"""``scripts/bench policies``: the client's policies held against their targets, through its public face alone.

In virtual time, seeded, so that the figures are the same on every machine: hedging, leaving a bad endpoint, quotas, outages,
batches with a poison record, and adaptive limits beside the best fixed one (`limits.py`). The deadline alone is measured on a
real socket, where time is real. For each figure the worst of the seeds and kinds counts.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from benchmarks import limits, published, targets
from benchmarks.figures import percentile
from benchmarks.profile import Profile
from benchmarks.rig import model_server, stats
from transforms.remote.batcher import BatchSettings
from transforms.remote.client import Call, Client, Outcome
from transforms.remote.concurrency import ConcurrencySettings
from transforms.remote.fakes import VirtualClock
from transforms.remote.hedge import HedgeSettings
from transforms.remote.loop import new_event_loop
from transforms.remote.openai_chat import parse_reply
from transforms.remote.questions import Chat, Message, Text
from transforms.remote.quota import Quota, QuotaSettings
from transforms.remote.retry import parse_retry_after
from transforms.remote.settings import Endpoint, ModelSettings
from transforms.remote.simulated import Behaviour, Schedule, SimulatedServer
from transforms.remote.transport import Answer

COMMAND = "scripts/bench policies"
ONE, OTHER = "http://one/v1", "http://other/v1"
SEEDS = (1, 2, 3)
LOG_NORMAL = Behaviour(median_s=0.2, sigma=0.6)
DEADLINE_S = 60.0
_DEFAULT_LIMIT = ConcurrencySettings().algorithm


class Course(NamedTuple):
    """What came of a load: each event's outcome and how long it took, in the order of asking, and the server."""

    outcomes: list[Outcome]
    server: SimulatedServer


def load(
    settings: ModelSettings, sites: Mapping[str, Behaviour | Schedule], rate: float, seconds: float, seed: int
) -> Course:
    """Ask at `rate` for `seconds`, each event when it is due, through a client of its own in virtual time."""
    clock = VirtualClock(seed)
    server = SimulatedServer(clock, sites, seed)
    client = Client(settings, clock, server)

    async def one(number: int) -> Outcome:
        await clock.sleep(number / rate)
        return await client.call(_call(number, clock.now_ms()))

    async def all_of_them() -> list[Outcome]:
        return await asyncio.gather(*(one(number) for number in range(round(rate * seconds))))

    return Course(clock.run(all_of_them()), server)


def _call(number: int, now_ms: int) -> Call:
    return Call(f"q{number}", Chat((Message("user", f"q{number} where is it?"),)), now_ms + round(DEADLINE_S * 1e3))


def _settings(*urls: str, **more: Any) -> ModelSettings:
    endpoints = tuple(Endpoint(url) for url in urls)
    return ModelSettings(role="answer", endpoints=endpoints, model="bench", max_in_flight=1_000, **more)


def hedging(seed: int) -> dict[str, float]:
    """5 % of the calls are 20 times slower, on two endpoints, 100/s: what hedging cuts of the p99, and what it sends for that."""
    slow = Behaviour(median_s=0.0, s_per_token=0.01, jitter_s=0.05, short_tokens=20, long_tokens=400, long_share=0.05)
    sites = {ONE: slow, OTHER: slow}
    seconds, rate = 120.0, 100.0
    without = load(_settings(ONE, OTHER), sites, rate, seconds, seed)
    hedged = load(_settings(ONE, OTHER, hedge=HedgeSettings()), sites, rate, seconds, seed)
    sent = sum(hedged.server.counts(url).sent for url in sites)
    return {
        "hedge_p99_cut": 1.0 - _p99_ms(hedged) / _p99_ms(without),
        "hedge_extra": sent / len(hedged.outcomes) - 1.0,
    }


def _p99_ms(course: Course) -> float:
    known = sorted(outcome.total_ms for outcome in course.outcomes if outcome.reply is not None)
    return percentile(known, 0.99, len(course.outcomes))


BAD = {
    "errors": Behaviour(error_rate=1.0, delay_s=0.01),
    "garbage": Behaviour(median_s=0.05, garbage_rate=1.0),
    "overload": Behaviour(median_s=0.05, most_in_flight=1, overload_status=503),
    "20 times slower": Behaviour(median_s=4.0, sigma=0.6),
}
"""How an endpoint goes bad."""


def ejection(kind: str, seed: int) -> float:
    """One of two endpoints goes bad in second 20: the share of its half of the traffic that is off it from 2 s later on, at 200/s."""
    begin_s, end_s, rate = 20.0, 60.0, 200.0
    clock = VirtualClock(seed)
    server = SimulatedServer(clock, {ONE: [(0.0, LOG_NORMAL), (begin_s, BAD[kind])], OTHER: LOG_NORMAL}, seed)
    client = Client(_settings(ONE, OTHER), clock, server)
    sent_before = 0

    async def one(number: int) -> Outcome:
        await clock.sleep(number / rate)
        return await client.call(_call(number, clock.now_ms()))

    async def look() -> None:
        nonlocal sent_before
        await clock.sleep(begin_s + 2.0)
        sent_before = server.counts(ONE).sent

    async def all_of_them() -> None:
        await asyncio.gather(look(), *(one(number) for number in range(round(rate * end_s))))

    clock.run(all_of_them())
    its_half = rate * (end_s - begin_s - 2.0) / 2.0
    return 1.0 - (server.counts(ONE).sent - sent_before) / its_half


def outage(seed: int) -> dict[str, float]:
    """200/s for 40 s, nobody listens or all fail from second 10 to 20: requests per event, and events without a reply."""
    failing: Schedule = [(0.0, LOG_NORMAL), (10.0, Behaviour(error_rate=1.0, delay_s=0.01)), (20.0, LOG_NORMAL)]
    gone = msgspec.structs.replace(LOG_NORMAL, outages=((10.0, 20.0),))
    courses = [load(_settings(ONE), {ONE: site}, 200.0, 40.0, seed) for site in (failing, gone)]
    return {
        "outage_requests": max(course.server.counts(ONE).sent / len(course.outcomes) for course in courses),
        "outage_lost": float(max(sum(outcome.reply is None for outcome in course.outcomes) for course in courses)),
    }


def quota(window: str, seed: int) -> dict[str, float]:
    """Two worker processes with half of the quota each and always something to send: the goodput, and the share of 429s."""
    per_min, seconds = 600.0, 200.0
    behaviour = Behaviour(sigma=0.6, jitter_s=0.05, requests_per_min=per_min, quota_window=window)  # type: ignore[arg-type]
    clock = VirtualClock(seed)
    server = SimulatedServer(clock, {ONE: behaviour}, seed)

    async def worker(allowed: Quota) -> None:
        async with asyncio.TaskGroup() as group:
            while clock.monotonic_s() < seconds:
                got = allowed.try_reserve(clock.monotonic_s(), 120.0)
                if isinstance(got, float):
                    await clock.sleep(got)
                else:
                    group.create_task(_sent(clock, server, allowed, got))

    async def both() -> None:
        allowed = QuotaSettings(requests_per_min=per_min, share=0.5)
        await asyncio.gather(worker(Quota(allowed)), worker(Quota(allowed)))

    clock.run(both())
    counts = server.counts(ONE)
    return {
        "quota_goodput": counts.answered / (per_min * seconds / 60.0),
        "quota_429_share": counts.throttled / counts.sent,
        "inside_retry_after": float(counts.inside_windows),
    }


async def _sent(clock: VirtualClock, server: SimulatedServer, allowed: Quota, reserved: Any) -> None:
    status, headers, body = await server.post(ONE, b"x" * 400, {}, 100.0)
    now_s = clock.monotonic_s()
    allowed.learn(now_s, headers)
    if status == 429:
        allowed.refund(reserved, now_s, refused=True)
        allowed.on_throttled(now_s, parse_retry_after(headers, 0))
        return
    reply = parse_reply(body)
    allowed.settle(reserved, now_s, (reply.prompt_tokens or 0) + (reply.completion_tokens or 0))


class _PoisonServer:
    """A `Transport` that answers embeddings, and refuses every batch with a poison record in it (400)."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.requests = 0

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Answer after 50 ms."""
        del url, headers, timeout_s
        self.requests += 1
        await self._clock.sleep(0.05)
        asked = msgspec.json.decode(body)["input"]
        texts = [asked] if isinstance(asked, str) else asked
        if any("poison" in text for text in texts):
            return 400, {}, b'{"error": {"message": "a bad record"}}'
        data = [{"object": "embedding", "index": number, "embedding": [0.0]} for number in range(len(texts))]
        return 200, {}, msgspec.json.encode({"object": "list", "data": data, "model": "bench"})

    def stream(self, *_: Any) -> Any:
        """There are no streams here."""
        raise NotImplementedError

    async def get(self, *_: Any) -> Answer:
        """There are no probes here."""
        raise NotImplementedError


def poison(place: int) -> dict[str, float]:
    """A batch of 64 with one poison record at `place`: calls beyond the first, and good replies."""
    clock = VirtualClock(place)
    server = _PoisonServer(clock)
    # None goes alone because nothing else is under way: all wait for the batch to fill.
    batch = BatchSettings(max_items=64, max_wait_ms=50.0, idle_below=0)
    settings = _settings(ONE, protocol="openai-embeddings", batch=batch)
    client = Client(settings, clock, server)  # type: ignore[arg-type]

    async def all_of_them() -> list[Outcome]:
        until_ms = clock.now_ms() + round(DEADLINE_S * 1e3)
        texts = ["poison" if number == place else f"text {number}" for number in range(64)]
        calls = [Call(f"q{number}", Text(text), until_ms) for number, text in enumerate(texts)]
        return await asyncio.gather(*(client.call(call) for call in calls))

    outcomes = clock.run(all_of_them())
    good = sum(outcome.reply is not None for outcome in outcomes)
    return {"poison_extra_calls": float(server.requests - 1), "poison_good": float(good)}


def deadline(calls: int = 200, deadline_s: float = 0.5) -> dict[str, float]:
    """Calls to a server that does not answer, on real sockets: how far beyond its deadline the last outcome came, and cut calls."""

    async def asked(url: str) -> float:
        client = Client(_settings(url, timeout_s=30.0))

        async def one(number: int) -> float:
            began_s = time.monotonic()
            call = _call(number, round(time.time() * 1e3))
            await client.call(msgspec.structs.replace(call, deadline_ms=round((time.time() + deadline_s) * 1e3)))
            return time.monotonic() - began_s

        try:
            return max(await asyncio.gather(*(one(number) for number in range(calls))))
        finally:
            await client.close()

    loop = new_event_loop()
    with model_server(Profile(median_s=60.0, sigma=0.0)) as (url, _):
        longest_s = loop.run_until_complete(asked(url))
        time.sleep(0.2)
        still = stats(url)["in_flight"]
    loop.close()
    return {"deadline_over_ms": max(0.0, longest_s - deadline_s) * 1e3, "deadline_left_open": float(still)}


HEALTHY = ("healthy", "constant", "delay 100 ms, jitter 50 ms")
LIMITED = ("knee 32, shared", "knee 32, queue", "knee 8", "hard limit 40: 429", "hard limit 24: 503")


def own_limit(servers: Sequence[str], algorithm: Any, seed: int) -> float:
    """The least share of the best fixed limit's throughput that an adaptive limit reaches on one of these servers."""
    shares = []
    for name in servers:
        best, _ = limits.best_of(limits.fixed_limits(limits.SERVERS[name], 40.0, 5.0, seed))
        found = limits.measure(limits.SERVERS[name], limits.adaptive(algorithm), 40.0, 5.0, seed)
        shares.append(found.rate / best)
    return min(shares)


Measure = Callable[[], Mapping[str, float]]


def measures(algorithm: Any, seeds: Sequence[int]) -> dict[str, list[Measure]]:
    """All measurements by name; each of a list gives the same figures, of which the worst counts."""
    return {
        "hedging": [lambda seed=seed: hedging(seed) for seed in seeds],  # type: ignore[misc]
        "ejection": [
            lambda kind=kind, seed=seed: {"ejected_share": ejection(kind, seed)}  # type: ignore[misc]
            for kind in BAD
            for seed in seeds
        ],
        "outage": [lambda seed=seed: outage(seed) for seed in seeds],  # type: ignore[misc]
        "quota": [
            lambda window=window, seed=seed: quota(window, seed)  # type: ignore[misc]
            for window in ("bucket", "sliding", "fixed")
            for seed in seeds
        ],
        "poison": [lambda place=place: poison(place) for place in (0, 1, 31, 32, 63)],  # type: ignore[misc]
        "limits": [
            lambda seed=seed: {  # type: ignore[misc]
                "healthy_share": own_limit(HEALTHY, algorithm, seed),
                "limited_share": own_limit(LIMITED, algorithm, seed),
            }
            for seed in seeds
        ],
        "deadline": [deadline],
    }


def worst(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure the value that is farthest from its target; of one without a target the greatest."""
    at = {target.figure: target.at for target in targets.TARGETS if target.program == "policies"}
    names = {name for one in found for name in one}
    picked = {}
    for name in sorted(names):
        values = [one[name] for one in found if name in one]
        pick = min if at.get(name) == "least" else max
        picked[name] = math.nan if any(math.isnan(value) for value in values) else pick(values)
    return picked


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and with ``--publish`` write the result."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="The client's policies held against their targets.")
    parser.add_argument("--only", default="", help="measurements whose name contains this")
    parser.add_argument(
        "--algorithm", default=_DEFAULT_LIMIT, help=f"adaptive limit: aimd or gradient ({_DEFAULT_LIMIT})"
    )
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds")
    parser.add_argument("--publish", action="store_true", help="write benchmarks/results/policies.json")
    given = parser.parse_args(argv)
    figures: dict[str, float] = {}
    for name, each in measures(given.algorithm, range(1, given.seeds + 1)).items():
        if given.only in name:
            found = worst([measure() for measure in each])
            figures |= found
            print(name, " ".join(f"{figure}={value:.4g}" for figure, value in found.items()), flush=True)
    if given.publish:
        published.write("policies", published.result(COMMAND, figures, algorithm=given.algorithm))


if __name__ == "__main__":
    main()
