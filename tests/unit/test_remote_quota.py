"""Quotas: what is reserved, corrected and given back, what is learnt, and what that makes of a server with a quota."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque

import pytest

from transforms.errors import SettingsError
from transforms.remote.fakes import VirtualClock
from transforms.remote.openai_chat import parse_reply
from transforms.remote.quota import Quota, QuotaSettings, Reservation
from transforms.remote.retry import parse_retry_after
from transforms.remote.simulated import Behaviour, Counts, SimulatedServer

URL = "http://one/v1"
PROMPT = b"x" * 400
PROMPT_TOKENS = 100


class Worker:
    """A worker process that always has something to send, or `per_s` requests a second, in order."""

    def __init__(self, clock: VirtualClock, server: SimulatedServer, quota: Quota, guess: float = 120.0) -> None:
        self.clock, self.server, self.quota, self.guess = clock, server, quota, guess
        self.refused_before_s: list[float] = []
        self.tokens = 0

    async def run(self, until_s: float, per_s: float = math.inf) -> None:
        async with asyncio.TaskGroup() as group:
            sent = 0
            while self.clock.monotonic_s() < until_s:
                if sent >= per_s * self.clock.monotonic_s():
                    await self.clock.sleep(1.0 / per_s)
                    continue
                got = self.quota.try_reserve(self.clock.monotonic_s(), self.guess)
                if isinstance(got, float):
                    assert got > 0.0
                    await self.clock.sleep(got)
                    continue
                sent += 1
                group.create_task(self.send(got))

    async def send(self, reserved: Reservation) -> None:
        status, headers, body = await self.server.post(URL, PROMPT, {}, 100.0)
        now_s = self.clock.monotonic_s()
        self.quota.learn(now_s, headers, None, reserved)
        if status == 429:
            self.quota.refund(reserved, now_s, refused=True)
            self.quota.on_throttled(now_s, parse_retry_after(headers, 0))
            return
        reply = parse_reply(body)
        used = (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
        self.tokens += used
        self.quota.settle(reserved, now_s, used)


def run(
    behaviour: Behaviour,
    settings: QuotaSettings,
    seconds: float,
    workers: int = 1,
    seed: int = 0,
    per_s: float = math.inf,
    guess: float = 120.0,
) -> tuple[Counts, list[Worker]]:
    """Run so many workers for so long against a server; return what it saw, and the workers."""
    clock = VirtualClock(seed)
    server = SimulatedServer(clock, {URL: behaviour}, seed)
    made = [Worker(clock, server, Quota(settings), guess) for _ in range(workers)]

    async def main() -> None:
        await asyncio.gather(*(worker.run(seconds, per_s) for worker in made))

    clock.run(main())
    return server.counts(URL), made


WINDOWS = ["bucket", "sliding", "fixed"]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("seed", range(2))
def test_two_workers_use_a_request_quota_whole_and_break_nothing(window: str, seed: int) -> None:
    """Half a share each: goodput 95 % of the quota or more, at most 0.5 % 429s, nothing inside a Retry-After window."""
    server = Behaviour(sigma=0.6, jitter_s=0.05, requests_per_min=600.0, quota_window=window)
    counts, _ = run(server, QuotaSettings(requests_per_min=600.0, share=0.5), 200.0, workers=2, seed=seed)
    assert counts.answered >= 0.95 * 600 * 200 / 60
    assert counts.throttled <= 0.005 * counts.sent
    assert counts.inside_windows == 0


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("guess", [130.0, 300.0, 520.0])
def test_two_workers_use_a_token_quota_whole_and_break_nothing(window: str, guess: float) -> None:
    """The same for tokens, of which a tenth of the replies uses four times more, whatever was guessed above the usual."""
    server = Behaviour(sigma=0.6, tokens_per_min=240_000.0, quota_window=window, long_share=0.1)
    counts, workers = run(server, QuotaSettings(tokens_per_min=240_000.0, share=0.5), 100.0, workers=2, guess=guess)
    assert sum(worker.tokens for worker in workers) >= 0.95 * 240_000 * 100 / 60
    assert counts.throttled <= 0.005 * counts.sent
    assert counts.inside_windows == 0 or guess < 300.0  # what one worker is told, the other cannot know


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("limit", [2.0, 7.0, 20.0, 59.0])
def test_small_quotas_are_not_lost_to_rounding(window: str, limit: float) -> None:
    """A few requests a minute: no 429, and all but what the slices cost is used."""
    server = Behaviour(requests_per_min=limit, quota_window=window, jitter_s=0.2)
    counts, _ = run(server, QuotaSettings(requests_per_min=limit), 1200.0)
    assert counts.throttled == 0
    assert counts.answered >= 0.95 * limit * 20


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("retry_after", [True, False])
@pytest.mark.parametrize("quota_window_s", [1.0, 10.0, 60.0])
def test_a_quota_storm_is_learnt_from_refusals(window: str, retry_after: bool, quota_window_s: float) -> None:
    """Twice what is allowed is offered and no limit is known: 95 % of the quota, or 92 % where the server names no
    Retry-After, with two and a half requests in a hundred refused at most."""
    server = Behaviour(
        sigma=0.6,
        requests_per_min=600.0,
        quota_window=window,
        quota_window_s=quota_window_s,
        retry_after=retry_after,
    )
    counts, _ = run(server, QuotaSettings(), 300.0, per_s=20.0)
    assert counts.answered >= (0.95 if retry_after else 0.92) * 600 * 5
    assert counts.throttled <= 0.025 * counts.sent
    assert counts.inside_windows == 0


@pytest.mark.parametrize("window", WINDOWS)
def test_a_limit_that_headers_name_needs_no_refusals(window: str) -> None:
    """Where answers name the limit and nothing is configured, hardly anything is refused after the first answers."""
    server = Behaviour(sigma=0.6, requests_per_min=600.0, quota_window=window, rate_headers=True)
    counts, _ = run(server, QuotaSettings(), 180.0, per_s=20.0)
    assert counts.answered >= 0.95 * 600 * 3
    assert counts.throttled <= 0.002 * counts.sent


def test_a_limit_configured_too_high_is_learnt() -> None:
    """With three times the true quota configured, refusals bring the rate down to it."""
    server = Behaviour(sigma=0.6, requests_per_min=600.0, quota_window_s=10.0)
    counts, _ = run(server, QuotaSettings(requests_per_min=1800.0), 400.0)
    assert counts.answered >= 0.95 * 600 * 400 / 60
    assert counts.throttled <= 0.04 * counts.sent


def random_use(seed: int) -> tuple[Quota, list[tuple[float, float]], float]:
    """A quota used at random for some minutes; with it what was spent when, and its limit of tokens."""
    chance = random.Random(seed)
    limit = chance.choice([100.0, 1000.0, 60_000.0])
    quota = Quota(QuotaSettings(tokens_per_min=limit, requests_per_min=chance.choice([None, 90.0]), learn=False))
    now_s, spent, open_ones = chance.random() * 100.0, list[tuple[float, float]](), deque[Reservation]()
    for _ in range(250):
        got = quota.try_reserve(now_s, limit * chance.choice([0.001, 0.01, 0.1, 0.4]))
        if isinstance(got, float):
            assert got > 0.0
            now_s += got
        else:
            open_ones.append(got)
        now_s += chance.choice([0.0, 0.0, 0.1, 2.0])
        while open_ones and chance.random() < 0.5:
            one = open_ones.popleft()
            if chance.random() < 0.2:
                quota.refund(one, now_s, refused=chance.random() < 0.5)
            else:
                used = one.tokens * chance.random()
                spent.append((one.at_s, used))
                quota.settle(one, now_s, used)
            quota.settle(one, now_s, 1e9)  # a second end does nothing
        counts = quota.counts
        for place in range(2):
            ended = counts.settled[place] + counts.refunded[place] + counts.outstanding[place]
            assert counts.reserved[place] == pytest.approx(ended)
        assert counts.outstanding[0] == len(open_ones)
    spent.extend((one.at_s, one.tokens) for one in open_ones)
    return quota, sorted(spent), limit


@pytest.mark.parametrize("block", range(20))
def test_nothing_is_lost_and_no_minute_is_overspent(block: int) -> None:
    """In 1 000 random uses: reserved = settled + refunded + outstanding, and no 60 s hold more than the limit."""
    for seed in range(block * 50, block * 50 + 50):
        _, spent, limit = random_use(seed)
        start, total = 0, 0.0
        for at_s, tokens in spent:
            total += tokens
            while spent[start][0] <= at_s - 60.0:
                total -= spent[start][1]
                start += 1
            assert total <= limit * (1.0 + 1e-6)


def wait_for(quota: Quota, now_s: float, tokens: float) -> float:
    """When so many tokens are given, asked again as told."""
    for _ in range(100_000):
        got = quota.try_reserve(now_s, tokens)
        if isinstance(got, Reservation):
            return now_s
        now_s += got
    raise AssertionError("never")


def test_a_request_larger_than_the_quota_passes_alone() -> None:
    """It waits for an empty minute, passes, and those behind it wait for the minute after it."""
    quota = Quota(QuotaSettings(tokens_per_min=1000.0))
    assert isinstance(quota.try_reserve(0.0, 10.0), Reservation)
    at_s = wait_for(quota, 0.1, 5000.0)
    assert 60.0 <= at_s <= 62.0
    assert wait_for(quota, at_s, 1.0) >= at_s + 60.0


def test_more_was_used_than_reserved() -> None:
    """What a reply used beyond its reservation is charged to those that follow; what it did not use comes back."""
    quota = Quota(QuotaSettings(tokens_per_min=6000.0))
    first = quota.try_reserve(0.0, 100.0)
    assert isinstance(first, Reservation)
    assert not isinstance(quota.try_reserve(0.0, 100.0), Reservation)
    quota.settle(first, 0.0, 10.0)
    assert isinstance(quota.try_reserve(0.0, 90.0), Reservation)
    greedy = quota.try_reserve(2.0, 100.0)
    assert isinstance(greedy, Reservation)
    quota.settle(greedy, 2.0, 1100.0)
    assert 12.0 <= wait_for(quota, 2.0, 100.0) <= 13.1


def test_retry_after_is_kept_whatever_is_known() -> None:
    """After a 429 with Retry-After nothing is reserved until then; a refusal gives the request back, or not if it counts."""
    for counted in (False, True):
        quota = Quota(QuotaSettings(requests_per_min=60.0, refusals_count=counted))
        one = quota.try_reserve(0.0, 1.0)
        assert isinstance(one, Reservation)
        quota.refund(one, 0.1, refused=True)
        quota.on_throttled(0.1, 0.4)
        assert quota.try_reserve(0.2, 1.0) == pytest.approx(0.8 if counted else 0.3)
        assert wait_for(quota, 0.2, 1.0) == pytest.approx(1.0 if counted else 0.5, abs=0.002)


def test_an_empty_quota_that_headers_name_holds_back() -> None:
    """While nothing remains, nothing is sent until the pace would have brought one, or the reset."""
    quota = Quota(QuotaSettings(requests_per_min=60.0))
    quota.learn(0.0, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "60s"})
    assert quota.try_reserve(0.0, 1.0) == pytest.approx(1.0)
    quota.learn(0.0, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "100ms"})
    assert quota.try_reserve(0.0, 1.0) == pytest.approx(0.1)


TOKENS = {"x-ratelimit-limit-tokens": "60000", "x-ratelimit-reset-tokens": "60s"}


@pytest.mark.parametrize(
    ("remaining", "need", "reset", "waits_s"),
    [
        ("0", 900.0, "60s", 0.9),
        ("10", 900.0, "60s", 0.89),
        ("0", 900.0, "200ms", 0.2),
        ("900", 900.0, "60s", 0.0),
        ("59000", 90_000.0, "60s", 1.0),
        ("60000", 90_000.0, "60s", 0.0),
    ],
)
def test_less_tokens_than_a_request_needs_hold_it_back(remaining: str, need: float, reset: str, waits_s: float) -> None:
    """It waits until the pace has brought what lacks, or the reset; one that is larger than the limit waits for all of it."""
    quota = Quota(QuotaSettings(burst_s=60.0))
    headers = {**TOKENS, "x-ratelimit-remaining-tokens": remaining, "x-ratelimit-reset-tokens": reset}
    quota.learn(5.0, headers)
    got = quota.try_reserve(5.0, need)
    assert (got if isinstance(got, float) else 0.0) == pytest.approx(waits_s)
    if isinstance(got, float):
        assert isinstance(quota.try_reserve(5.0 + 0.9 * got, need), float)
        assert isinstance(quota.try_reserve(5.001 + got, need), Reservation)


def test_what_was_reserved_since_is_taken_off_what_remains() -> None:
    """What remains is that of when the answered request was sent: those sent later are in it no more, the pace since then is."""
    quota = Quota(QuotaSettings(burst_s=60.0))
    answered, later = quota.try_reserve(0.0, 500.0), quota.try_reserve(1.0, 4000.0)
    assert isinstance(answered, Reservation)
    assert isinstance(later, Reservation)
    quota.learn(2.0, {**TOKENS, "x-ratelimit-remaining-tokens": "3000"}, None, answered)
    # 3000 - 4000 + 2 s of 1000 a second
    assert isinstance(quota.try_reserve(2.0, 1000.0), Reservation)
    assert isinstance(quota.try_reserve(2.0, 1000.0), float)
    quota.settle(later, 2.0, 0.0)  # the server may have known of it
    assert isinstance(quota.try_reserve(2.0, 1000.0), float)
    assert wait_for(quota, 2.0, 1000.0) == pytest.approx(3.0, abs=0.002)


def test_what_was_reserved_after_the_word_comes_back_when_it_is_not_used() -> None:
    """A reservation made after the header was read gives back what it does not use."""
    quota = Quota(QuotaSettings(burst_s=60.0))
    quota.learn(0.0, {**TOKENS, "x-ratelimit-remaining-tokens": "1000"})
    later = quota.try_reserve(0.0, 1000.0)
    assert isinstance(later, Reservation)
    assert isinstance(quota.try_reserve(0.0, 900.0), float)
    quota.settle(later, 0.0, 100.0)
    assert isinstance(quota.try_reserve(0.0, 900.0), Reservation)


def test_an_old_word_holds_nothing_back() -> None:
    """With a pace that would take a quarter of an hour, a header is believed for a minute, and the window alone holds then."""
    quota = Quota(QuotaSettings(share=0.01, burst_s=60.0))
    quota.learn(0.0, {"x-ratelimit-limit-tokens": "60000", "x-ratelimit-remaining-tokens": "0"})
    assert wait_for(quota, 0.0, 9000.0) == pytest.approx(60.0, abs=0.01)


@pytest.mark.parametrize(
    ("headers", "waits_s"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"}, 30.0),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "30s"}, 0.0),
        ({"x-ratelimit-remaining-tokens": "10", "x-ratelimit-reset-tokens": "30s"}, 30.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "99999h"}, 3600.0),
        ({"x-ratelimit-remaining-requests": "0"}, 0.0),
    ],
)
def test_without_a_limit_the_reset_is_waited_for(headers: dict[str, str], waits_s: float) -> None:
    """Where no limit is known, what remains and the reset hold back, for an hour at most; no reset says nothing."""
    quota = Quota(QuotaSettings())
    quota.learn(0.0, headers)
    assert wait_for(quota, 0.0, 900.0) == pytest.approx(waits_s)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("limit", [6.0, 60.0])
def test_what_remains_costs_nothing_where_nobody_else_spends(window: str, limit: float) -> None:
    """Replies that take 8 s and say that next to nothing remains leave 95 % of a small quota or more, and nothing is refused."""
    server = Behaviour(median_s=8.0, requests_per_min=limit, quota_window=window, rate_headers=True)
    counts, _ = run(server, QuotaSettings(requests_per_min=limit), 600.0)
    assert counts.throttled == 0
    assert counts.answered >= 0.95 * limit * 10


class TwoLimits:
    """A server that counts tokens of prompts and replies apart in buckets of a minute, and says so as Anthropic does."""

    def __init__(self, prompt_per_min: float, reply_per_min: float) -> None:
        self.limits = (prompt_per_min, reply_per_min)
        self.levels = [prompt_per_min, reply_per_min]
        self.at_s = 0.0

    def post(self, now_s: float, prompt: float, reply: float) -> tuple[bool, dict[str, str]]:
        for place, limit in enumerate(self.limits):
            self.levels[place] = min(limit, self.levels[place] + (now_s - self.at_s) * limit / 60.0)
        self.at_s = now_s
        is_let_in = prompt <= self.levels[0] and reply <= self.levels[1]
        if is_let_in:
            self.levels = [self.levels[0] - prompt, self.levels[1] - reply]
        headers = dict[str, str]()
        for word, limit, level in zip(("input", "output"), self.limits, self.levels, strict=True):
            headers[f"anthropic-ratelimit-{word}-tokens-limit"] = f"{limit:.0f}"
            headers[f"anthropic-ratelimit-{word}-tokens-remaining"] = f"{round(level, -3):.0f}"
        headers["anthropic-ratelimit-tokens-limit"] = f"{sum(self.limits):.0f}"
        headers["anthropic-ratelimit-tokens-remaining"] = f"{round(sum(self.levels), -3):.0f}"
        return is_let_in, headers


def share_used(prompt: float, reply: float, *, is_told: bool = True) -> tuple[float, int]:
    """What of the limit that binds is used in 15 minutes after the first one, and how many are refused; replies take 3 to 9 s."""
    server, quota, chance = TwoLimits(400_000.0, 80_000.0), Quota(QuotaSettings()), random.Random(0)
    now_s, refused, used = 0.0, 0, [0.0, 0.0]
    under_way: deque[tuple[float, Reservation, float, dict[str, str]]] = deque()
    while now_s < 960.0:
        # one at first, as nothing is known before its reply
        got = quota.try_reserve(now_s, prompt + reply) if quota.known or not under_way else 1.0
        if isinstance(got, Reservation):
            length = reply * chance.choice([0.5, 1.0, 1.5])
            is_let_in, headers = server.post(now_s, prompt, length)
            assert is_let_in or now_s < 60.0
            refused += not is_let_in
            if now_s >= 60.0:
                used = [used[0] + prompt, used[1] + length]
            at_s = max(now_s + chance.uniform(3.0, 9.0), under_way[-1][0] if under_way else 0.0)
            under_way.append((at_s, got, length, headers))
            continue
        now_s = min(now_s + got, under_way[0][0] if under_way else math.inf)
        while under_way and under_way[0][0] <= now_s:
            _, one, length, headers = under_way.popleft()
            quota.learn(now_s, headers, None, one)
            quota.settle(one, now_s, prompt + length, (prompt, length) if is_told else None)
    return max(spent / limit / 15.0 for spent, limit in zip(used, server.limits, strict=True)), refused


@pytest.mark.parametrize(("prompt", "reply"), [(1000.0, 50.0), (200.0, 400.0), (500.0, 100.0)])
def test_tokens_of_prompts_and_replies_have_quotas_of_their_own(prompt: float, reply: float) -> None:
    """Of whichever limit binds, that of prompts or that of replies, 95 % or more are used, and nothing is refused."""
    used, refused = share_used(prompt, reply)
    assert used >= 0.95
    assert refused == 0


def test_tokens_that_are_not_told_apart_count_as_both() -> None:
    """The sibling: where replies report their sum alone, it is charged to both limits, and most of that of prompts is not used."""
    used, refused = share_used(1000.0, 50.0, is_told=False)
    assert used < 0.3
    assert refused == 0


def test_a_share_may_change() -> None:
    """A share that is leased paces from the moment on; none at all lets nothing through until there is one."""
    quota = Quota(QuotaSettings(requests_per_min=6000.0, burst_s=0.01))
    quota.set_share(0.0, 0.0)
    assert isinstance(quota.try_reserve(0.0, 1.0), float)
    assert isinstance(quota.try_reserve(9.0, 1.0), float)
    quota.set_share(10.0, 0.1)
    times = [wait_for(quota, 10.0, 1.0) for _ in range(11)]
    assert times[-1] - times[0] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"requests_per_min": 0.0}, "requests_per_min"),
        ({"tokens_per_min": math.nan}, "tokens_per_min"),
        ({"share": 1.5}, "share"),
        ({"burst_s": 61.0}, "burst_s"),
        ({"requests_per_min": 3.0, "share": 0.25}, "share"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, float], word: str) -> None:
    """Settings that could let nothing through are refused with a sentence that names them."""
    with pytest.raises(SettingsError, match=word):
        QuotaSettings(**settings)
