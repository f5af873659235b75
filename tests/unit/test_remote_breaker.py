"""The circuit breaker: when it opens, how it finds out that a server works again, and that nothing gets stuck."""

from __future__ import annotations

import random

import pytest

from transforms.errors import SettingsError
from transforms.remote.breaker import PROBE_WAIT_S, Breaker, BreakerSettings


def fail(breaker: Breaker, now_s: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.on_result(now_s, ok=False, turn=breaker.on_start(now_s))


def succeed(breaker: Breaker, now_s: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.on_result(now_s, ok=True, turn=breaker.on_start(now_s))


@pytest.mark.parametrize("consecutive", [1, 2, 5, 9])
def test_failures_in_a_row_open_it(consecutive: int) -> None:
    """It is closed before the last failure of the row and open after it; a success begins a new row."""
    breaker = Breaker(BreakerSettings(consecutive=consecutive, least_volume=1000))
    fail(breaker, 0.0, consecutive - 1)
    succeed(breaker, 0.0)
    fail(breaker, 0.0, consecutive - 1)
    assert breaker.allows(0.0)
    fail(breaker, 0.0)
    assert (breaker.allows(0.0), breaker.state, breaker.wait_s(0.25)) == (False, "open", 0.75)


@pytest.mark.parametrize("seed", range(50))
def test_a_share_of_failures_opens_it(seed: int) -> None:
    """Failures that never come in a row open it as soon as their share and the volume are reached, and not before."""
    chance = random.Random(seed)
    settings = BreakerSettings(consecutive=10**6, failure_share=0.5, least_volume=20, window_s=1e6)
    breaker, results = Breaker(settings), list[bool]()
    while breaker.state == "closed":
        assert len(results) < 20 or results[-1] or results.count(False) < 0.5 * len(results)
        results.append(chance.random() < 0.5)
        (succeed if results[-1] else fail)(breaker, 0.01 * len(results))
    assert len(results) >= 20
    assert results.count(False) >= 0.5 * len(results)


def test_old_failures_do_not_count() -> None:
    """Failures that have left the window are no part of the share."""
    breaker = Breaker(BreakerSettings(consecutive=100, least_volume=20, window_s=10.0))
    fail(breaker, 0.0, 19)
    succeed(breaker, 12.0, 15)
    fail(breaker, 12.0, 5)
    assert breaker.state == "closed"


def test_the_back_off_doubles_up_to_its_cap() -> None:
    """Each failed probe doubles the time until the next one, up to the longest."""
    breaker, now_s, waits = Breaker(BreakerSettings(open_s=1.0, longest_open_s=10.0)), 0.0, list[float]()
    fail(breaker, now_s, 5)
    for _ in range(7):
        waits.append(breaker.wait_s(now_s))
        now_s += waits[-1]
        assert breaker.allows(now_s)
        fail(breaker, now_s)
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_a_server_that_held_for_a_window_begins_anew() -> None:
    """After a window of being closed the back-off is the first one again; opened sooner, it goes on doubling."""
    for held_s, wait_s in ((5.0, 2.0), (11.0, 1.0)):
        breaker = Breaker(BreakerSettings(open_s=1.0, window_s=10.0))
        fail(breaker, 0.0, 5)
        succeed(breaker, 1.0, 2)
        assert breaker.state == "closed"
        fail(breaker, 1.0 + held_s, 5)
        assert breaker.wait_s(1.0 + held_s) == wait_s


def test_half_open_lets_so_many_probes_through() -> None:
    """With two probes under way nothing more is sent; two successes close it."""
    breaker = Breaker(BreakerSettings(probes=2))
    fail(breaker, 0.0, 5)
    assert breaker.allows(1.0)
    first = breaker.on_start(1.0)
    second = breaker.on_start(1.0)
    assert (breaker.allows(1.0), breaker.wait_s(1.0), breaker.state) == (False, PROBE_WAIT_S, "half-open")
    breaker.on_result(2.0, ok=True, turn=first)
    assert (breaker.allows(2.0), breaker.state) == (True, "half-open")
    breaker.on_result(2.0, ok=True, turn=second)
    assert (breaker.allows(2.0), breaker.state) == (True, "closed")


def test_a_cancelled_probe_frees_its_place() -> None:
    """A probe that was given up neither opens nor closes, and another one may be sent."""
    breaker = Breaker(BreakerSettings(probes=1))
    fail(breaker, 0.0, 5)
    turn = breaker.on_start(1.0)
    assert not breaker.allows(1.0)
    breaker.on_cancel(1.5, turn)
    assert (breaker.allows(1.5), breaker.state) == (True, "half-open")


def test_probes_that_hang_give_up_their_places() -> None:
    """While probes have no answer, as many more may be sent each `longest_open_s`; their late failures say nothing."""
    breaker, old = Breaker(BreakerSettings(probes=2, longest_open_s=10.0)), list[int]()
    fail(breaker, 0.0, 5)
    for round_s in (1.0, 11.0, 21.0):
        assert not breaker.allows(round_s - 0.01)
        for _ in range(2):
            assert breaker.allows(round_s)
            old.append(breaker.on_start(round_s))
        assert not breaker.allows(round_s)
    for turn in old[:2]:
        breaker.on_result(31.0, ok=False, turn=turn)
    assert breaker.state == "half-open"
    succeed(breaker, 31.0, 2)
    assert breaker.state == "closed"
    breaker.on_result(41.0, ok=False, turn=old[-1])
    assert breaker.state == "closed"


def test_slow_probes_still_close_it() -> None:
    """Probes that are answered after others were sent beside them count as successes; the newest that fails opens it again."""
    breaker = Breaker(BreakerSettings(probes=2, longest_open_s=10.0))
    fail(breaker, 0.0, 5)
    slow = [breaker.on_start(1.0) for _ in range(2)]
    assert breaker.allows(11.0)
    new = breaker.on_start(11.0)
    breaker.on_result(15.0, ok=True, turn=slow[0])
    assert breaker.state == "half-open"
    breaker.on_result(15.0, ok=True, turn=slow[1])
    assert breaker.state == "closed"
    fail(breaker, 15.0, 5)
    breaker.on_result(16.0, ok=True, turn=new)
    assert breaker.state == "open"


@pytest.mark.parametrize("timeout_s", [30.0, 8.0])
def test_a_server_that_hung_is_found_as_soon_as_one_that_failed(timeout_s: float) -> None:
    """Whenever a hung server recovers, the next request to it leaves at most `longest_open_s` later."""
    for up_s in (45.0, 50.2, 53.3, 61.9, 77.7):
        breaker, now_s, under_way = Breaker(BreakerSettings()), 0.0, list[tuple[float, int]]()
        fail(breaker, now_s, 5)
        found_s = None
        while found_s is None:
            now_s += 0.1
            while under_way and under_way[0][0] <= now_s:
                breaker.on_result(now_s, ok=False, turn=under_way.pop(0)[1])
            if breaker.allows(now_s):
                under_way.append((now_s + timeout_s, breaker.on_start(now_s)))
                found_s = now_s if now_s >= up_s else None
        assert found_s - up_s <= 10.2


def late_failures(with_turn: bool) -> str:
    """The state after an outage whose hundred requests time out while the server is already well again."""
    breaker = Breaker(BreakerSettings(probes=2))
    turns = [breaker.on_start(0.0) for _ in range(100)]
    fail(breaker, 0.5, 5)
    succeed(breaker, 2.0, 2)
    for turn in turns:
        breaker.on_result(3.0, ok=False, turn=turn if with_turn else None)
    return breaker.state


def test_late_results_do_not_open_it_again() -> None:
    """Requests that were sent before it opened and time out after it closed are left out."""
    assert late_failures(with_turn=True) == "closed"


def test_without_turns_late_results_would_open_it() -> None:
    """The sibling: counted for the state of now, the same results open it again."""
    assert late_failures(with_turn=False) == "open"


def test_a_health_probe_ends_the_back_off() -> None:
    """`half_open` lets probes through at once; where it is closed it changes nothing."""
    breaker = Breaker(BreakerSettings())
    breaker.half_open(0.0)
    assert breaker.state == "closed"
    fail(breaker, 0.0, 5)
    breaker.half_open(0.1)
    assert breaker.allows(0.1)


@pytest.mark.parametrize("seed", range(200))
def test_what_holds_whatever_happens(seed: int) -> None:
    """Never more probes at once than allowed, nothing inside a back-off, and a way out of every state."""
    chance = random.Random(seed)
    settings = BreakerSettings(
        consecutive=chance.choice([1, 3, 5]), probes=chance.choice([1, 2, 4]), least_volume=chance.choice([2, 20])
    )
    breaker, now_s, under_way = Breaker(settings), 0.0, list[tuple[int, str]]()
    health = chance.random()
    for _ in range(300):
        now_s += chance.choice([0.0, 0.01, 0.5, 3.0]) * chance.random()
        if chance.random() < 0.02:
            health = chance.random()
        if chance.random() < 0.5 and breaker.allows(now_s):
            under_way.append((breaker.on_start(now_s), breaker.state))
            current = [turn for turn, state in under_way if state == "half-open" and turn == breaker._turn]
            assert len(current) <= settings.probes
            assert breaker.state != "open"
        elif under_way:
            turn, _ = under_way.pop(chance.randrange(len(under_way)))
            if chance.random() < 0.2:
                breaker.on_cancel(now_s, turn)
            else:
                breaker.on_result(now_s, chance.random() < health, turn)
        wait_s = breaker.wait_s(now_s)
        assert 0.0 <= wait_s <= settings.longest_open_s + 1e-9
        assert (wait_s == 0.0) == breaker.allows(now_s)
    for turn, _ in under_way:
        breaker.on_cancel(now_s, turn)
    now_s += breaker.wait_s(now_s) + 1e-9
    assert breaker.allows(now_s)
    succeed(breaker, now_s, settings.probes)
    assert breaker.state == "closed"


@pytest.mark.parametrize(
    "wrong",
    [{"consecutive": 0}, {"failure_share": 0.0}, {"probes": 0}, {"window_s": -1.0}, {"open_s": 11.0}],
)
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    """A value out of its range is named, and so is a back-off that begins above its cap."""
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        BreakerSettings(**wrong)
