"""``python -m benchmarks.limits``: adaptive concurrency limits beside the best fixed one, in virtual time.

A caller who always has something to send keeps as many requests in flight as a limit allows, to servers of many kinds
(`SERVERS`). For each kind a sweep of fixed limits says what is possible: the best throughput, and the p99 of the smallest
limit that gives 99 % of it. Each algorithm is shown as a ratio to these. Seeded: the same figures on every machine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Sequence

import msgspec

from transforms.errors import TimedOut, Unreachable
from transforms.remote.concurrency import Algorithm, ConcurrencySettings, Limit, Sample, Verdict, make_limit
from transforms.remote.fakes import VirtualClock
from transforms.remote.openai_chat import parse_reply
from transforms.remote.retry import parse_retry_after
from transforms.remote.simulated import Behaviour, Schedule, SimulatedServer
from transforms.remote.transport import NotConnected

URL = "http://simulated/v1"
MOST = 128
FIXED = (8, 16, 24, 32, 40, 48, 64, 128)
REFUSED_REST_S = 0.1
LOG_NORMAL = Behaviour(median_s=0.2, sigma=0.6)


def _with(**over: object) -> Behaviour:
    return msgspec.structs.replace(LOG_NORMAL, **over)


SERVERS: dict[str, Behaviour | Schedule] = {
    "healthy": LOG_NORMAL,
    "constant": Behaviour(median_s=0.2),
    "delay 100 ms, jitter 50 ms": _with(median_s=0.1, delay_s=0.1, jitter_s=0.05),
    "knee 32, shared": _with(knee=32),
    "knee 32, queue": _with(knee=32, discipline="queue"),
    "knee 8": _with(knee=8),
    "hard limit 40: 429": _with(most_in_flight=40),
    "hard limit 24: 503": _with(most_in_flight=24, overload_status=503),
    "quota 6000/min": _with(requests_per_min=6000.0, quota_window_s=1.0),
    "1 % silent": _with(knee=32, silent_rate=0.01),
    "latency × 3 from 10 s": [(0.0, LOG_NORMAL), (10.0, _with(median_s=0.6))],
    "knee 48, 16 from 10 s": [(0.0, _with(knee=48)), (10.0, _with(knee=16))],
    "knee 16, 48 from 10 s": [(0.0, _with(knee=16)), (10.0, _with(knee=48))],
    "outage 10 s to 15 s": _with(knee=48, outages=((10.0, 15.0),)),
    "10 % of 20 × length": Behaviour(median_s=0.05, sigma=0.3, s_per_token=0.005, long_share=0.1),
    "the same, knee 32": Behaviour(median_s=0.05, sigma=0.3, s_per_token=0.005, long_share=0.1, knee=32),
}
"""The kinds of servers. The others' latency is log-normal with median 0.2 s and σ 0.6, but where it says so."""


class Caller:
    """One caller with a limit: keeps as many requests in flight as it allows, and not more than `demand`.

    A request that is refused waits as long as the server asks (else `REFUSED_REST_S`) before its place is given to the next.
    """

    def __init__(
        self, clock: VirtualClock, server: SimulatedServer, limit: Limit, demand: int = MOST, timeout_s: float = 10.0
    ) -> None:
        self.limit = limit
        self.sent = self.refused = 0
        self.replies: list[tuple[float, float]] = []
        self.limits: list[tuple[float, int]] = []
        self._clock, self._server, self._demand, self._timeout_s = clock, server, demand, timeout_s
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, until_s: float) -> None:
        """Send until `until_s`, in seconds of the clock."""
        while (now_s := self._clock.monotonic_s()) < until_s:
            self.limits.append((now_s, self.limit.limit))
            self._fill(until_s)
            await self._clock.sleep(min(0.5, until_s - now_s))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def rate(self, from_s: float, to_s: float) -> float:
        """Replies per second between two moments."""
        return sum(from_s <= at_s < to_s for at_s, _ in self.replies) / (to_s - from_s)

    def p99_s(self, from_s: float) -> float:
        """The 99th percentile of the latencies of replies from `from_s` on."""
        latencies = [latency_s for at_s, latency_s in self.replies if at_s >= from_s]
        return statistics.quantiles(latencies, n=100)[98] if len(latencies) > 1 else float("nan")

    def average_limit(self, from_s: float) -> float:
        """The limit from `from_s` on, averaged over time."""
        return statistics.fmean(limit for at_s, limit in self.limits if at_s >= from_s)

    def _fill(self, until_s: float) -> None:
        while self._in_flight < min(self.limit.limit, self._demand) and self._clock.monotonic_s() < until_s:
            self._in_flight += 1
            task = asyncio.ensure_future(self._one(until_s, self._in_flight))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, until_s: float, in_flight: int) -> None:
        began_s = self._clock.monotonic_s()
        self.sent += 1
        verdict, tokens, rest_s = await self._post()
        now_s = self._clock.monotonic_s()
        if verdict == "ok":
            self.replies.append((now_s, now_s - began_s))
        self.limit.observe(Sample(now_s, now_s - began_s, in_flight, verdict, tokens))
        if rest_s:
            self.refused += 1
            await self._clock.sleep(rest_s * (0.75 + 0.5 * self._clock.random()))
        self._in_flight -= 1
        self._fill(until_s)

    async def _post(self) -> tuple[Verdict, int | None, float]:
        try:
            status, headers, body = await self._server.post(URL, b"x" * 200, {}, self._timeout_s)
        except (TimedOut, Unreachable, NotConnected):
            return "overloaded", None, REFUSED_REST_S
        if status == 200:
            return "ok", parse_reply(body).completion_tokens, 0.0
        rest_s = parse_retry_after(headers, 0) or REFUSED_REST_S
        return ("throttled" if status == 429 else "overloaded"), None, rest_s


class Figures(msgspec.Struct, frozen=True):
    """What one limit did on one kind of server: replies per second, p99, average limit, share of requests refused."""

    limit: str
    rate: float
    p99_s: float
    average_limit: float
    refused_share: float


def measure(
    server: Behaviour | Schedule, settings: ConcurrencySettings, seconds: float, warm_s: float, seed: int
) -> Figures:
    """Run one caller for `seconds` and return its figures after the first `warm_s`."""
    clock = VirtualClock(seed)
    caller = Caller(clock, SimulatedServer(clock, {URL: server}, seed), make_limit(settings))
    clock.run(caller.run(seconds))
    name = f"fixed {settings.initial}" if settings.algorithm == "fixed" else settings.algorithm
    share = caller.refused / max(1, caller.sent)
    rate, p99_s = caller.rate(warm_s, seconds), caller.p99_s(warm_s)
    return Figures(name, rate, p99_s, caller.average_limit(warm_s), share)


def fixed_limits(server: Behaviour | Schedule, seconds: float, warm_s: float, seed: int) -> list[Figures]:
    """Return the figures of each fixed limit."""
    settings = [ConcurrencySettings(algorithm="fixed", initial=limit, most=MOST) for limit in FIXED]
    return [measure(server, one, seconds, warm_s, seed) for one in settings]


def best_of(figures: Sequence[Figures]) -> tuple[float, Figures]:
    """Return the best throughput, and the figures of the smallest limit that comes within 1 % of it."""
    rate = max(one.rate for one in figures)
    return rate, next(one for one in figures if one.rate >= 0.99 * rate)


def adaptive(algorithm: Algorithm) -> ConcurrencySettings:
    """Return the settings of an algorithm as they are by default, with this benchmark's greatest limit."""
    return ConcurrencySettings(algorithm=algorithm, most=MOST)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="virtual seconds of each run")
    parser.add_argument("--warm_s", type=float, default=5.0, help="virtual seconds at the begin that do not count")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--algorithms", default="aimd,gradient")
    parser.add_argument("--only", default="", help="servers whose name contains this")
    given = parser.parse_args()
    print("| server | best fixed: limit, replies/s, p99 | aimd: throughput, p99, limit, refused | gradient: the same |")
    print("|---|---|---|---|")
    for name, server in SERVERS.items():
        if given.only not in name:
            continue
        run = (given.seconds, given.warm_s, given.seed)
        rate, best = best_of(fixed_limits(server, *run))
        cells = [f"{best.limit[6:]}, {rate:.0f}, {best.p99_s:.2f} s"]
        for algorithm in given.algorithms.split(","):
            figures = measure(server, adaptive(algorithm), *run)
            cells.append(
                f"{figures.rate / rate:.2f}, × {figures.p99_s / best.p99_s:.2f}, "
                f"{figures.average_limit:.0f}, {figures.refused_share:.1%}"
            )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
