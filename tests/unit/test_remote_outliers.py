"""Which endpoint is an outlier, and how long it is left out."""

from __future__ import annotations

import random

import pytest

from transforms.errors import SettingsError
from transforms.remote.outliers import FAILURES, Ejection, OutlierSettings, Refusals, Results, is_slow, silence_s

SETTINGS = OutlierSettings()


@pytest.mark.parametrize("seed", range(150))
def test_suspicion_is_by_its_formula(seed: int) -> None:
    """Beside a plain list of the last results, suspicion comes exactly when a row or a share is reached."""
    chance = random.Random(seed)
    settings = OutlierSettings(window_s=1e9, consecutive=chance.choice([3, 5, 50]))
    results, kinds, row = Results(settings), list[str](), 0
    pool = ["ok"] * chance.choice([1, 2, 6]) + [
        "refused",
        "server-error",
        "timeout",
        "broken-reply",
        "throttled",
        "cancelled",
    ]
    for _ in range(100):
        kind = chance.choice(pool)
        results.add(1.0, kind)
        if kind not in ("throttled", "cancelled"):
            kinds.append(kind)
            row = row + 1 if kind in FAILURES else 0
        enough = len(kinds) >= settings.least_volume
        failed = sum(kind in FAILURES for kind in kinds)
        expected = None
        if enough and kinds.count("broken-reply") >= settings.broken_share * len(kinds):
            expected = "broken-replies"
        if row >= settings.consecutive or (enough and failed >= settings.error_share * len(kinds)):
            expected = "errors"
        assert results.suspicion(1.0) == expected


@pytest.mark.parametrize("seed", range(100))
def test_refusals_speak_against_by_their_formula(seed: int) -> None:
    """Beside a plain list of all results, a row speaks against an endpoint exactly when q^k is small enough."""
    chance = random.Random(seed)
    settings = OutlierSettings(window_s=1e9)
    one, other = Refusals(settings), Refusals(settings)
    row, since, ever = 0, list[str](), list[str]()
    shares = {one: chance.choice([0.3, 0.9, 1.0]), other: chance.choice([0.0, 0.02, 0.3])}
    for _ in range(300):
        who = chance.choice([one, other])
        kind = "refused" if chance.random() < shares[who] else chance.choice(["ok", "ok", "throttled", "timeout"])
        who.add(1.0, kind, (one, other))
        if who is other and kind in ("ok", "refused"):
            ever.append(kind)
            since = [*since, kind] if row else []
        elif who is one and kind in ("ok", "refused"):
            row = row + 1 if kind == "refused" else 0
            since = since if row > 1 else []
        q = max((kinds.count("refused") + 0.5) / (len(kinds) + 1.0) for kinds in (since, ever))
        expected = row >= 5 and "ok" in since and q**row <= 1e-9
        assert one.speak_against(1.0, (other,)) == expected
        assert not one.speak_against(1.0, ())


def test_slow_is_beside_the_others() -> None:
    """Slow means far above the median of the others; alone, or a constant 100 ms away, nobody is slow."""
    assert is_slow(2.0, [0.2, 0.3, 5.0], SETTINGS)
    assert not is_slow(1.0, [0.2, 0.3, 5.0], SETTINGS)
    assert not is_slow(100.0, [], SETTINGS)
    assert not is_slow(0.12, [0.005], SETTINGS)


def test_silence_grows_with_latency() -> None:
    """Where replies are fast silence begins after the least time, where they are slow after some times of theirs."""
    assert silence_s(0.1, 0.2, SETTINGS) == 2.0
    assert silence_s(3.0, 4.0, SETTINGS) == 15.0
    assert silence_s(1.0, 9.0, SETTINGS) == 18.0


def test_an_ejection_lasts_longer_each_time() -> None:
    """The time grows with each ejection up to the longest, and is forgiven by being back."""
    ejection, now_s, lasted = (
        Ejection(OutlierSettings(base_ejection_s=5.0, longest_ejection_s=12.0)),
        0.0,
        list[float](),
    )
    for back_s in (1.0, 1.0, 1.0, 130.0, 1.0):
        ejection.begin(now_s, "errors")
        lasted.append(ejection.wait_s(now_s))
        now_s = ejection.returned_s + back_s
    assert lasted == [5.0, 10.0, 12.0, 12.0, 10.0]
    assert (ejection.number, ejection.wait_s(now_s)) == (5, 0.0)


def test_an_ejection_can_end_sooner_or_later() -> None:
    """`end` takes an endpoint back at once, `prolong` keeps it out; neither makes it return earlier than it did."""
    ejection = Ejection(SETTINGS)
    ejection.begin(0.0, "silent")
    ejection.prolong(20.0)
    assert ejection.wait_s(0.0) == 20.0
    ejection.end(3.0)
    ejection.end(4.0)
    assert (ejection.wait_s(3.0), ejection.returned_s) == (0.0, 3.0)


@pytest.mark.parametrize(("endpoints", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)])
def test_so_many_may_be_ejected(endpoints: int, most: int) -> None:
    """Half of them by default, one at least, and never all."""
    assert SETTINGS.most_ejected(endpoints) == most
    assert OutlierSettings(most_ejected_share=1.0).most_ejected(endpoints) == endpoints - 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"consecutive": 0},
        {"error_share": 0.0},
        {"broken_share": 0.8},
        {"slow_times": 0.0},
        {"slow_extra_s": -1.0},
        {"base_ejection_s": 90.0},
        {"most_ejected_share": 0.0},
        {"forgive_s": 0.0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    """A value out of its range is named, and so is a contradiction."""
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        OutlierSettings(**wrong)
