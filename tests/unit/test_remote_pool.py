"""The pool in virtual time: who gets the traffic, who is left out, and that something may always be sent again."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from transforms.errors import SettingsError
from transforms.remote.breaker import BreakerSettings
from transforms.remote.outliers import Kind, OutlierSettings, Refusals
from transforms.remote.pool import EndpointState, Pool, PoolSettings, Ticket
from transforms.remote.settings import Endpoint

Server = Callable[[float, random.Random], tuple[Kind, float]]
"""What a server does with a request at a time: how it ends, and after how many seconds."""

CAREFREE = PoolSettings(
    outliers=OutlierSettings(
        consecutive=10**9, least_volume=10**9, least_silent_s=1e9, slow_times=1e9, broken_share=1.0, error_share=1.0
    ),
    breaker=BreakerSettings(consecutive=10**9, least_volume=10**9),
)
"""A pool that balances, but leaves nobody out."""


def healthy(median_s: float = 0.2, spread: float = 0.3) -> Server:
    return lambda _, chance: ("ok", median_s * math.exp(chance.gauss(0.0, spread)))


def bad_from(at_s: float, kind: Kind, latency_s: float, until_s: float = math.inf) -> Server:
    """A server that is healthy but for a time."""
    well = healthy()
    return lambda now_s, chance: (kind, latency_s) if at_s <= now_s < until_s else well(now_s, chance)


class Traffic:
    """Requests at random moments to a pool of servers, each named by one letter.

    `sent` are the requests (time, letter), `failed` the times at which one failed, `held` those with no endpoint.
    """

    def __init__(
        self, servers: dict[str, Server], seed: int, settings: PoolSettings | None = None, **over: float
    ) -> None:
        self.chance = random.Random(seed)
        self.servers = servers
        endpoints = [Endpoint(f"http://{letter}", over.get(letter, 1.0)) for letter in servers]
        self.pool = Pool(endpoints, settings or PoolSettings())
        self.now_s = 0.0
        self.sent: list[tuple[float, str]] = []
        self.failed: list[tuple[float, str]] = []
        self.held: list[float] = []
        self._ends: list[tuple[float, int, EndpointState, Kind, float, Ticket]] = []

    def run(self, rate: float, until_s: float) -> Traffic:
        while self.now_s < until_s:
            self.now_s += self.chance.expovariate(rate)
            self._end_until(self.now_s)
            self._send()
        return self

    def finish(self) -> None:
        self._end_until(math.inf)

    def shares(self, from_s: float = 0.0, to_s: float = math.inf) -> dict[str, float]:
        counts = Counter(letter for at_s, letter in self.sent if from_s <= at_s < to_s)
        return {letter: counts[letter] / max(1, counts.total()) for letter in self.servers}

    def state(self, letter: str) -> EndpointState:
        return next(state for state in self.pool.endpoints if letter_of(state) == letter)

    def _send(self) -> None:
        state = self.pool.choose(self.now_s, self.chance.random(), self.chance.random())
        if state is None:
            self.held.append(self.now_s)
            return
        self.sent.append((self.now_s, letter_of(state)))
        kind, latency_s = self.servers[letter_of(state)](self.now_s, self.chance)
        ticket = state.on_start(self.now_s)
        heapq.heappush(self._ends, (self.now_s + latency_s, len(self.sent), state, kind, latency_s, ticket))

    def _end_until(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            at_s, _, state, kind, latency_s, ticket = heapq.heappop(self._ends)
            state.on_end(at_s, kind, latency_s, ticket)
            if kind != "ok":
                self.failed.append((at_s, letter_of(state)))


def letter_of(state: EndpointState) -> str:
    return state.url.removeprefix("http://")


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize(("rate", "seconds"), [(1.0, 2000.0), (20.0, 120.0), (300.0, 8.0)])
def test_equal_endpoints_get_equal_traffic(count: int, rate: float, seconds: float) -> None:
    """Whether calls are few or many, each of n equal endpoints gets its n-th of the traffic, to within 8 % of it."""
    traffic = Traffic(dict.fromkeys("abcdefgh"[:count], healthy()), count).run(rate, seconds)
    assert all(share == pytest.approx(1 / count, rel=0.08) for share in traffic.shares().values())


@pytest.mark.parametrize(("rate", "seconds"), [(15.0, 200.0), (50.0, 60.0), (300.0, 10.0)])
@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 2.0, "c": 5.0}])
def test_traffic_follows_weights(weights: dict[str, float], rate: float, seconds: float) -> None:
    """Where latencies are alike, each endpoint gets its weight's share of the traffic, to within 15 % of it."""
    traffic = Traffic(dict.fromkeys(weights, healthy()), 1, None, **weights).run(rate, seconds)
    shares, total = traffic.shares(), sum(weights.values())
    assert all(shares[letter] == pytest.approx(weight / total, rel=0.15) for letter, weight in weights.items())


def test_a_slower_endpoint_gets_less() -> None:
    """Of two endpoints the one that is three times slower, which is no outlier, gets far less and is never left out."""
    traffic = Traffic({"a": healthy(0.2), "b": healthy(0.6)}, 1).run(100.0, 60.0)
    assert 0.02 < traffic.shares(5.0)["b"] < 0.3
    assert traffic.state("b").ejection.number == 0


BAD: dict[str, tuple[Kind, float]] = {
    "errors at once": ("server-error", 0.001),
    "errors as slow as replies": ("server-error", 0.2),
    "no connection": ("unreachable", 0.0),
    "garbage": ("broken-reply", 0.05),
    "timeouts": ("timeout", 3.0),
    "slow": ("ok", 20.0),
    "hung": ("timeout", 30.0),
    "refusals at once": ("refused", 0.005),
    "refusals as slow as replies": ("refused", 0.2),
}


def off(name: str, rate: float, count: int, settings: PoolSettings | None = None, seed: int = 0) -> float:
    """Which share of all traffic still goes to a bad endpoint in the 10 s after 5 failures or 2 s."""
    servers = {"a": bad_from(15.0, *BAD[name])} | dict.fromkeys("bcde"[: count - 1], healthy())
    traffic = Traffic(servers, seed, settings).run(rate, 28.0)
    failures = [at_s for at_s, letter in traffic.failed if letter == "a"]
    from_s = min(17.0, failures[4] if len(failures) > 4 else 17.0)
    return traffic.shares(from_s, from_s + 10.0)["a"]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("rate", "count"), [(20.0, 2), (60.0, 3), (120.0, 2)])
@pytest.mark.parametrize("name", BAD)
def test_traffic_leaves_a_bad_endpoint(name: str, rate: float, count: int, seed: int) -> None:
    """Within 5 failures or 2 s, 95 % of the traffic or more is off an endpoint that fails, hangs or is 100 times slower.

    The requests that try it again after its returns are counted too.
    """
    assert off(name, rate, count, seed=seed) <= 0.05


@pytest.mark.parametrize("name", ["refusals at once", "refusals as slow as replies"])
def test_without_comparison_refusals_keep_their_traffic(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The sibling: judged by itself, an endpoint that refuses everything keeps its traffic."""
    monkeypatch.setattr(Refusals, "speak_against", lambda *_: False)
    assert off(name, 60.0, 3) > 0.25


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [2, 3])
def test_an_endpoint_that_refuses_from_the_start_costs_a_score_of_events(seed: int, count: int) -> None:
    """Of 2,000 events an endpoint that refuses everything, faster than the others answer, has less than 20."""
    servers: dict[str, Server] = {"a": bad_from(0.0, "refused", 0.005)} | dict.fromkeys("bc"[: count - 1], healthy())
    traffic = Traffic(servers, seed).run(50.0, 40.0)
    assert len(traffic.sent) > 1900
    assert len(traffic.failed) < 20
    assert traffic.state("a").ejection.reason == "refusing"


def test_all_endpoints_that_refuse_are_left_out_but_none_that_answers() -> None:
    """Of three endpoints two refuse everything: both are left out, though half of them would be one, and the third is not."""
    bad = bad_from(5.0, "refused", 0.005)
    traffic = Traffic({"a": bad, "b": bad, "c": healthy()}, 1).run(60.0, 9.0)
    assert [state.state(9.0) for state in traffic.pool.endpoints] == ["ejected", "ejected", "ready"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.95])
def test_poison_records_eject_nobody(seed: int, share: float) -> None:
    """Where a share of the records is refused by whatever endpoint has them, however large it is, none is left out."""
    well = healthy()

    def server(now_s: float, chance: random.Random) -> tuple[Kind, float]:
        return ("refused", 0.005) if chance.random() < share else well(now_s, chance)

    traffic = Traffic(dict.fromkeys("abc", server), seed).run(100.0, 60.0)
    assert [state.ejection.number for state in traffic.pool.endpoints] == [0, 0, 0]


@pytest.mark.parametrize("seed", range(10))
def test_a_run_of_poison_records_ejects_nobody(seed: int) -> None:
    """Neither does one second in every five in which all records are poison, after an hour's worth of good ones or not."""
    well = healthy()

    def server(now_s: float, chance: random.Random) -> tuple[Kind, float]:
        return ("refused", 0.005) if now_s % 5.0 < 1.0 else well(now_s, chance)

    traffic = Traffic(dict.fromkeys("ab", server), seed).run(50.0, 60.0)
    assert [state.ejection.number for state in traffic.pool.endpoints] == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_endpoints_that_all_refuse_stay(seed: int) -> None:
    """Where none answers, refusals say nothing of an endpoint, and events go on being refused."""
    traffic = Traffic(dict.fromkeys("ab", bad_from(5.0, "refused", 0.005)), seed).run(50.0, 60.0)
    late = [state.ejection.wait_s(traffic.now_s) for state in traffic.pool.endpoints]
    assert late == [0.0, 0.0]
    assert traffic.held == []


@pytest.mark.parametrize("settings", [None, PoolSettings(slow_start_s=0.0)])
def test_a_row_of_refusals_outlasts_the_ejection(settings: PoolSettings | None) -> None:
    """After its return one more refusal ejects the endpoint again, for longer; after an answer it takes a row anew."""
    _, a, b = pair(settings)
    give(b, 0.0, "ok", 40)
    give(a, 0.0, "refused")
    give(b, 0.0, "ok", 40)
    give(a, 0.0, "refused", 3)
    assert a.ejection.number == 0
    give(a, 0.0, "refused")
    assert (a.ejection.reason, a.ejection.wait_s(0.0)) == ("refusing", 5.0)
    give(a, 5.0, "refused")
    assert (a.ejection.number, a.ejection.wait_s(5.0)) == (2, 10.0)
    give(a, 15.0, "ok")
    give(a, 15.0, "refused", 4)
    assert a.ejection.number == 2


def test_one_that_refuses_is_recalled_last() -> None:
    """Where the endpoint in use asks to be left alone, one that failed is taken back before one that refuses everything."""
    settings = PoolSettings(
        breaker=BreakerSettings(consecutive=100), outliers=OutlierSettings(most_ejected_share=1.0, base_ejection_s=9.0)
    )
    pool = Pool([Endpoint(f"http://{letter}") for letter in "abc"], settings)
    a, b, c = pool.endpoints
    give(c, 0.0, "ok", 40)
    give(a, 0.0, "refused")
    give(c, 0.0, "ok", 40)
    give(a, 0.0, "refused", 4)
    give(b, 1.0, "server-error", 5)
    assert [a.ejection.reason, b.ejection.reason] == ["refusing", "errors"]
    c.close_until(60.0)
    assert pool.choose(1.0, 0.5, 0.5) is b


@pytest.mark.parametrize(("rate", "count"), [(20.0, 2), (60.0, 3), (120.0, 2)])
def test_a_slow_endpoint_gets_little_and_is_ejected(rate: float, count: int) -> None:
    """Ten times slower than the others, an endpoint gets a tenth of all traffic at most after 2 s, and then is ejected."""
    servers = {"a": bad_from(12.0, "ok", 2.0)} | dict.fromkeys("bcde"[: count - 1], healthy())
    traffic = Traffic(servers, 1).run(rate, 60.0)
    assert traffic.shares(14.0, 24.0)["a"] <= 0.1
    assert traffic.state("a").ejection.reason == "slow"


@pytest.mark.parametrize("seed", range(5))
def test_replies_of_two_lengths_eject_nobody(seed: int) -> None:
    """Where half of the replies take 20 times as long, or one in a hundred does, no endpoint is an outlier."""
    for share in (0.5, 0.01):
        server: Server = lambda _, chance, share=share: ("ok", 4.0 if chance.random() < share else 0.2)  # noqa: E731
        traffic = Traffic(dict.fromkeys("abc", server), seed).run(50.0, 45.0)
        assert [state.ejection.number for state in traffic.pool.endpoints] == [0, 0, 0]


@pytest.mark.parametrize("name", ["errors at once", "no connection", "garbage"])
def test_without_ejection_traffic_stays(name: str) -> None:
    """The sibling: balanced alone, an endpoint that fails fast keeps its traffic."""
    assert off(name, 100.0, 3, CAREFREE) > 0.25


def test_an_endpoint_returns_slowly() -> None:
    """After an ejection the traffic of an endpoint grows over the slow start, and then is its fair share."""
    early, middle, late = Counter[str](), Counter[str](), Counter[str]()
    for seed in range(6):
        traffic = Traffic({"a": bad_from(10.0, "server-error", 0.01, 11.0), "b": healthy()}, seed).run(50.0, 45.0)
        back_s = traffic.state("a").ejection.returned_s
        assert traffic.state("a").ejection.number == 1
        for counts, from_s, to_s in ((early, 0.0, 2.0), (middle, 4.0, 7.0), (late, 12.0, 25.0)):
            counts.update(letter for at_s, letter in traffic.sent if from_s <= at_s - back_s < to_s)
    early_share, middle_share, late_share = (counts["a"] / counts.total() for counts in (early, middle, late))
    assert 0.02 < early_share < 0.25
    assert early_share < middle_share < late_share
    assert late_share == pytest.approx(0.5, abs=0.04)


def test_without_slow_start_an_endpoint_returns_at_once() -> None:
    """The sibling: with no slow start its first two seconds carry its full share, or more."""
    settings = PoolSettings(slow_start_s=0.0, slow_start_least=1.0)
    traffic = Traffic({"a": bad_from(10.0, "server-error", 0.01, 11.0), "b": healthy()}, 1, settings).run(50.0, 25.0)
    back_s = traffic.state("a").ejection.returned_s
    assert traffic.shares(back_s, back_s + 2.0)["a"] > 0.4


KINDS: tuple[Kind, ...] = (
    "ok", "throttled", "server-error", "timeout", "unreachable", "broken-reply", "refused", "cancelled",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(200))
def test_what_holds_whatever_happens(seed: int) -> None:
    """Over any history: one endpoint at least is not ejected, no wish to be left alone is ignored, nothing is lost.

    And where nothing may be sent, every endpoint has such a wish or an open breaker, and the wait said leads out of it.
    """
    chance = random.Random(seed)
    regions = ("near", "far") if chance.random() < 0.5 else ()
    count = chance.choice([1, 2, 2, 3, 6]) if not regions else chance.choice([2, 3, 6])
    endpoints = [
        Endpoint(f"http://{number}", chance.choice([1.0, 1.0, 4.0]), ("near", "far")[number % 2])
        for number in range(count)
    ]
    pool = Pool(endpoints, PoolSettings(regions=regions))
    weights = {state.url: [chance.random() ** 3 for _ in KINDS] for state in pool.endpoints}
    opens_s = dict.fromkeys(weights, 0.0)
    under_way, now_s = list[tuple[EndpointState, float, Ticket]](), chance.choice([0.0, 1e6])
    for _ in range(250):
        now_s += chance.choice([0.0, 0.01, 0.1, 2.0]) * chance.random()
        if chance.random() < 0.02:
            weights = {url: [chance.random() ** 3 for _ in KINDS] for url in weights}
        if chance.random() < 0.55:
            exclude = {chance.choice(list(weights))} if chance.random() < 0.2 else set[str]()
            state = pool.choose(now_s, chance.random(), chance.random(), exclude)
            if state is None:
                check_none(pool, now_s, exclude, opens_s)
                continue
            assert state.url not in exclude
            assert opens_s[state.url] <= now_s
            assert state.state(now_s) in ("ready", "slow-start", "open")
            assert state.breaker.state != "open"
            under_way.append((state, now_s, state.on_start(now_s)))
        elif under_way:
            state, began_s, ticket = under_way.pop(chance.randrange(len(under_way)))
            kind = chance.choices(KINDS, weights[state.url])[0]
            state.on_end(now_s, kind, now_s - began_s, ticket if chance.random() < 0.9 else None)
            if kind == "throttled" and chance.random() < 0.5:
                opens_s[state.url] = max(opens_s[state.url], now_s + chance.choice([0.2, 3.0]))
                state.close_until(opens_s[state.url])
        assert any(state.ejection.wait_s(now_s) == 0.0 for state in pool.endpoints)
        assert sum(state.outstanding for state in pool.endpoints) == len(under_way)
        assert all(state.outstanding >= 0 for state in pool.endpoints)
    for state, began_s, ticket in under_way:
        state.on_end(now_s, "cancelled", now_s - began_s, ticket)
    assert [state.outstanding for state in pool.endpoints] == [0] * count
    assert waits(pool, now_s) <= 10


def check_none(pool: Pool, now_s: float, exclude: set[str], opens_s: dict[str, float]) -> None:
    """Nothing may be sent: those that are not excluded are all held, or another will be usable in a moment."""
    rest = [state for state in pool.endpoints if state.url not in exclude]
    if exclude:
        assert not any(state.usable(now_s) for state in rest)
        return
    assert pool.wait_s(now_s) > 0.0
    soon = [
        state
        for state in rest
        if state.ejection.wait_s(now_s) == 0.0 and opens_s[state.url] - now_s <= pool.settings.patience_s
    ]
    assert soon or all(opens_s[state.url] > now_s or not state.breaker.allows(now_s) for state in rest)


def waits(pool: Pool, now_s: float) -> int:
    """How often one must wait, as long as the pool says each time, until something may be sent."""
    for number in range(20):
        wait_s = pool.wait_s(now_s)
        assert wait_s >= 0.0
        chosen = pool.choose(now_s, 0.5, 0.5)
        assert (chosen is None) == (wait_s > 0.0)
        if chosen:
            return number
        now_s += wait_s + 1e-9
    return 20


@pytest.mark.parametrize("seed", range(10))
def test_the_last_endpoint_is_never_ejected(seed: int) -> None:
    """When every endpoint fails for ever, one is never left out; the breakers alone hold requests back."""
    servers: dict[str, Server] = dict.fromkeys("abc", bad_from(5.0, "server-error", 0.05))
    traffic = Traffic(servers, seed).run(50.0, 120.0)
    assert any(state.ejection.wait_s(traffic.now_s) == 0.0 for state in traffic.pool.endpoints)
    late = [at_s for at_s, _ in traffic.sent if at_s > 60.0]
    assert 0 < len(late) < 0.05 * 50.0 * 60.0
    assert max(later - sooner for sooner, later in pairwise(late)) < 12.0


def test_without_the_rule_the_last_endpoint_is_ejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sibling: ejected by their results alone, endpoints that all fail are all left out."""
    monkeypatch.setattr(Pool, "_may_eject", lambda *_: True)
    pool, a, b = pair(PoolSettings(breaker=BreakerSettings(consecutive=100)))
    give(a, 0.0, "server-error", 5)
    give(b, 0.0, "server-error", 5)
    assert [state.state(0.0) for state in pool.endpoints] == ["ejected", "ejected"]


def test_a_lone_endpoint_is_never_ejected() -> None:
    """A pool of one endpoint goes on with it, within its breaker, and is answered as soon as it works again."""
    traffic = Traffic({"a": bad_from(5.0, "server-error", 0.05, 60.0)}, 1).run(20.0, 90.0)
    assert traffic.state("a").ejection.number == 0
    assert len([at_s for at_s, _ in traffic.sent if 6.0 < at_s < 60.0]) < 20
    assert not [at_s for at_s in traffic.held if at_s > 71.0]


def pair(settings: PoolSettings | None = None) -> tuple[Pool, EndpointState, EndpointState]:
    pool = Pool([Endpoint("http://a"), Endpoint("http://b")], settings or PoolSettings())
    return pool, pool.endpoints[0], pool.endpoints[1]


def give(state: EndpointState, now_s: float, kind: Kind, times: int = 1, latency_s: float = 0.1) -> None:
    for _ in range(times):
        state.on_end(now_s, kind, latency_s, state.on_start(now_s))


def test_no_request_goes_into_a_window() -> None:
    """An endpoint that asked to be left alone gets nothing until then; a shorter wish does not shorten a longer one."""
    pool, a, b = pair()
    a.close_until(10.0)
    a.close_until(5.0)
    assert {pool.choose(at_s, number / 50, 0.5) for number in range(50) for at_s in (0.0, 9.99)} == {b}
    b.close_until(20.0)
    assert pool.choose(3.0, 0.5, 0.5) is None
    assert pool.wait_s(3.0) == 7.0
    assert (a.state(3.0), a.state(10.0)) == ("waiting", "ready")
    assert pool.choose(10.0, 0.5, 0.5) is a


@pytest.mark.parametrize("kind", ["throttled", "refused", "cancelled", "ok"])
def test_what_is_no_failure_never_ejects(kind: Kind) -> None:
    """Throttling, refusals and cancelling neither eject an endpoint nor open its breaker, however many there are."""
    _, a, _ = pair()
    give(a, 1.0, kind, 500)
    assert a.state(1.0) == "ready"


@pytest.mark.parametrize("kind", ["server-error", "timeout", "unreachable", "broken-reply"])
def test_five_failures_in_a_row_eject(kind: Kind) -> None:
    """The fifth failure in a row ejects, and not the fourth; a good answer begins a new row."""
    _, a, _ = pair()
    give(a, 1.0, kind, 4)
    give(a, 1.0, "ok")
    give(a, 1.0, kind, 4)
    assert a.ejection.number == 0
    give(a, 1.0, kind)
    assert (a.state(1.0), a.ejection.reason, a.last_failure) == ("ejected", "errors", kind)


def test_half_of_the_endpoints_at_most_are_ejected() -> None:
    """Of six endpoints three are ejected; the others that fail are held by their breakers."""
    pool = Pool([Endpoint(f"http://{number}") for number in range(6)], PoolSettings())
    for state in pool.endpoints[:5]:
        give(state, 1.0, "server-error", 5)
    assert [state.state(1.0) for state in pool.endpoints] == ["ejected"] * 3 + ["open"] * 2 + ["ready"]
    assert {pool.choose(1.0, number / 50, 0.5) for number in range(50)} == {pool.endpoints[5]}


def test_an_ejected_endpoint_is_recalled_when_no_other_can_be_used() -> None:
    """When the last usable endpoint asks for a long time alone the ejected one is taken back; for a moment it is not."""
    pool, a, b = pair(PoolSettings(breaker=BreakerSettings(consecutive=100)))
    give(a, 0.0, "server-error", 5)
    assert a.state(0.0) == "ejected"
    b.close_until(0.5)
    assert pool.choose(0.0, 0.5, 0.5) is None
    assert pool.wait_s(0.0) == 0.5
    b.close_until(30.0)
    assert pool.wait_s(0.0) == 0.0
    assert pool.choose(0.0, 0.5, 0.5, exclude={"http://b"}) is None
    assert pool.choose(0.0, 0.5, 0.5) is a
    assert a.state(0.0) == "slow-start"


def test_late_results_do_not_eject_again() -> None:
    """Requests sent before an ejection that fail after the return are left out; without tickets they would count."""
    for with_ticket, state_name in ((True, "slow-start"), (False, "ejected")):
        _, a, _ = pair(PoolSettings(breaker=BreakerSettings(consecutive=100, least_volume=1000)))
        tickets = [a.on_start(0.0) for _ in range(20)]
        give(a, 0.0, "server-error", 5)
        for ticket in tickets:
            a.on_end(6.0, "timeout", 6.0, ticket if with_ticket else None)
        assert a.state(6.0) == state_name


def test_garbage_ejects_sooner_than_errors() -> None:
    """A quarter of broken replies ejects, where a quarter of errors does not."""
    for kind, number in (("broken-reply", 1), ("server-error", 0)):
        _, a, _ = pair()
        for _ in range(20):
            give(a, 1.0, "ok", 2)
            give(a, 1.0, kind)  # type: ignore[arg-type]
        assert a.ejection.number == number


def test_hedges_go_elsewhere() -> None:
    """An excluded endpoint is never chosen, and with all of them excluded nothing is."""
    pool, _, b = pair()
    assert {pool.choose(0.0, number / 50, 0.5, {"http://a"}) for number in range(50)} == {b}
    assert pool.choose(0.0, 0.5, 0.5, {"http://a", "http://b"}) is None


def test_a_breaker_lets_probes_through_and_then_starts_slowly() -> None:
    """After the back-off two requests at once may be sent; when both succeeded the endpoint starts slowly."""
    pool = Pool([Endpoint("http://a")], PoolSettings())
    (a,) = pool.endpoints
    give(a, 0.0, "server-error", 5)
    assert (a.state(0.0), pool.choose(0.0, 0.5, 0.5), pool.wait_s(0.0)) == ("open", None, 1.0)
    tickets = []
    for _ in range(2):
        assert pool.choose(1.0, 0.5, 0.5) is a
        tickets.append(a.on_start(1.0))
    assert pool.choose(1.0, 0.5, 0.5) is None
    for ticket in tickets:
        a.on_end(1.5, "ok", 0.5, ticket)
    assert a.state(1.5) == "slow-start"
    assert a.state(12.0) == "ready"


def test_a_throttled_probe_shows_a_server_that_lives() -> None:
    """While half-open, being asked to slow down counts as a sign of life; nothing gets stuck."""
    pool = Pool([Endpoint("http://a")], PoolSettings())
    (a,) = pool.endpoints
    give(a, 0.0, "unreachable", 5)
    give(a, 1.0, "throttled", 2)
    assert a.breaker.state == "closed"


class Regions(Traffic):
    """Traffic to two near servers, and to a far one whose replies take 100 ms more."""

    def __init__(self, near: Server, seed: int, near_too: Server | None = None) -> None:
        servers = {"n": near, "m": near_too or near, "f": healthy(0.3)}
        super().__init__(servers, seed)
        endpoints = [Endpoint(f"http://{letter}", 1.0, "far" if letter == "f" else "near") for letter in servers]
        self.pool = Pool(endpoints, PoolSettings(regions=("near", "far")))


@pytest.mark.parametrize("seed", range(3))
def test_the_far_region_is_used_while_the_near_one_is_cut(seed: int) -> None:
    """Near alone while it is healthy; far alone within 2 s of the cut; near again, gradually, after it."""
    traffic = Regions(bad_from(20.0, "unreachable", 0.0, 40.0), seed).run(50.0, 100.0)
    assert traffic.shares(0.0, 20.0)["f"] == 0.0
    assert traffic.shares(22.0, 40.0)["f"] > 0.95
    assert traffic.shares(85.0, 100.0)["f"] == 0.0
    by_second = [traffic.shares(at_s, at_s + 1.0)["f"] for at_s in range(40, 85)]
    assert any(0.2 < share < 0.8 for share in by_second)
    assert traffic.state("f").ejection.number == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_link_that_hangs_is_a_cut_one(seed: int) -> None:
    """When near requests hang until their timeout, 90 % of the traffic is far within 5 s."""
    traffic = Regions(bad_from(20.0, "timeout", 10.0), seed).run(100.0, 45.0)
    assert traffic.shares(0.0, 20.0)["f"] == 0.0
    assert traffic.shares(25.0, 45.0)["f"] > 0.9


def test_a_region_spills_over_below_its_healthy_share() -> None:
    """With one of two near endpoints out, 5/7 of the traffic stay near and the rest goes far; the sibling spills nothing."""
    traffic = Regions(healthy(), 1, bad_from(0.0, "server-error", 0.01)).run(100.0, 5.0)
    assert traffic.shares(1.0, 5.0)["n"] == pytest.approx(5 / 7, abs=0.06)
    assert traffic.shares(1.0, 5.0)["f"] == pytest.approx(2 / 7, abs=0.06)
    pool = Pool(
        [Endpoint(f"http://{letter}", 1.0, "far" if letter == "f" else "near") for letter in "nmf"],
        PoolSettings(regions=("near", "far"), healthy_share=0.5),
    )
    give(pool.endpoints[1], 0.0, "server-error", 5)
    assert {pool.choose(0.0, number / 50, 0.5) for number in range(50)} == {pool.endpoints[0]}


def test_without_regions_the_far_endpoint_gets_traffic() -> None:
    """The sibling: where regions make no difference, the far endpoint gets its part by its latency."""
    traffic = Traffic({"n": healthy(0.2), "f": healthy(0.3)}, 1).run(100.0, 30.0)
    assert 0.15 < traffic.shares()["f"] < 0.45


def test_a_far_endpoint_is_no_outlier() -> None:
    """100 ms more beside replies of 20 ms are distance, not slowness."""
    traffic = Traffic({"n": healthy(0.02, 0.1), "f": healthy(0.12, 0.1)}, 1).run(100.0, 30.0)
    assert traffic.state("f").ejection.number == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_same_numbers_give_the_same_choices(seed: int) -> None:
    """A pool draws nothing itself: two of them that are told the same choose the same."""
    servers = {"a": healthy(), "b": bad_from(3.0, "server-error", 0.1), "c": healthy(0.5)}
    assert Traffic(servers, seed).run(20.0, 10.0).sent == Traffic(servers, seed).run(20.0, 10.0).sent


@pytest.mark.parametrize(
    ("endpoints", "settings", "sentence"),
    [
        ([], {}, "endpoints is empty"),
        ([Endpoint("http://a"), Endpoint("http://a")], {}, "a URL twice"),
        ([Endpoint("http://a", 1.0, "x")], {"regions": ("y",)}, "'x' of an endpoint is not in regions"),
        ([Endpoint("http://a", 1.0, "x")], {"regions": ("x", "y")}, "names 'y', where no endpoint is"),
        ([Endpoint("http://a", 1.0, "x")], {"regions": ("x", "x")}, "names a region twice"),
        ([Endpoint("http://a")], {"healthy_share": 0.0}, "healthy_share is 0"),
        ([Endpoint("http://a")], {"slow_start_least": 0.0}, "slow_start_least is 0"),
        ([Endpoint("http://a")], {"slow_start_s": -1.0}, "slow_start_s is -1"),
    ],
)
def test_contradictions_are_refused(endpoints: list[Endpoint], settings: dict[str, object], sentence: str) -> None:
    """Endpoints and settings that do not fit each other are refused with a sentence."""
    with pytest.raises(SettingsError, match=sentence):
        Pool(endpoints, PoolSettings(**settings))  # type: ignore[arg-type]
