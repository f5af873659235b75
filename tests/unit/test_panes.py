"""Windows in panes: what they count, what is late, and how much is kept."""

from __future__ import annotations

import random

import pytest

from transforms.errors import SettingsError
from transforms.panes import Panes, Recent, WindowSettings, add, is_late, recent

HOUR = WindowSettings(windows_s=(600.0, 3_600.0), pane_s=60.0, lateness_s=600.0)
MINUTE_MS = 60_000


def filled(times_ms: list[int], settings: WindowSettings = HOUR) -> Panes:
    panes: Panes = ()
    for at_ms in times_ms:
        panes = add(panes, at_ms, (1.0, at_ms / 1_000), settings)
    return panes


def counts(panes: Panes, at_ms: int, settings: WindowSettings = HOUR) -> list[int]:
    return [one.count for one in recent(panes, at_ms, (1.0, at_ms / 1_000), settings)]


def test_a_first_record_sees_itself() -> None:
    """Without anything before it, each window holds the record alone."""
    assert recent((), 5, (2.0,), HOUR) == (Recent(600.0, 1, (2.0,)), Recent(3_600.0, 1, (2.0,)))


def test_a_window_ends_with_the_pane_of_its_record_and_begins_a_length_before() -> None:
    """A record ten minutes older than another's pane is out of its ten minutes, one a pane younger is in."""
    assert counts(filled([0]), 9 * MINUTE_MS + 59_999) == [2, 2]
    assert counts(filled([0]), 10 * MINUTE_MS) == [1, 2]
    assert counts(filled([0]), 60 * MINUTE_MS) == [1, 1]


def test_figures_are_those_of_the_records_themselves() -> None:
    """Over seeded times, also out of order, count and sums are what counting the records pane by pane gives."""
    chance = random.Random(5)
    seen: list[int] = []
    panes: Panes = ()
    for step in range(400):
        at_ms = 10_000_000 + step * 5_000 - chance.randrange(0, 500_000)
        found = recent(panes, at_ms, (1.0, at_ms / 1_000), HOUR)
        last = at_ms // MINUTE_MS
        for one, minutes in zip(found, (10, 60), strict=True):
            inside = [other for other in seen if last - minutes < other // MINUTE_MS <= last] + [at_ms]
            assert one.count == len(inside)
            assert one.sums == pytest.approx((len(inside), sum(inside) / 1_000))
            assert one.mean(0) == 1.0
        panes = add(panes, at_ms, (1.0, at_ms / 1_000), HOUR)
        seen.append(at_ms)


def test_later_records_are_not_seen_by_an_earlier_one() -> None:
    """A record that comes out of order sees what is before it in event time, and not what came before it in the stream."""
    assert counts(filled([20 * MINUTE_MS]), 15 * MINUTE_MS) == [1, 1]


def test_a_record_in_time_counts_where_it_belongs() -> None:
    """A record that is late by less than windows and lateness is seen by one that comes after it."""
    panes = filled([40 * MINUTE_MS, 35 * MINUTE_MS])
    assert counts(panes, 41 * MINUTE_MS) == [3, 3]


def test_a_late_record_changes_nothing() -> None:
    """One that is later than the longest window and the lateness is late; the panes stay, and it sees itself."""
    panes = filled([200 * MINUTE_MS])
    late_ms = (200 - 70) * MINUTE_MS
    assert is_late(panes, late_ms, HOUR)
    assert not is_late(panes, late_ms + MINUTE_MS, HOUR)
    assert add(panes, late_ms, (1.0, 0.0), HOUR) == panes
    assert counts(panes, late_ms) == [1, 1]


def test_what_is_kept_is_bounded() -> None:
    """A key with a record a second keeps a pane for each minute of its longest window and lateness, and no more."""
    panes = filled([second * 1_000 for second in range(20_000)])
    assert len(panes) == 70


@pytest.mark.parametrize(
    "wrong",
    [
        {"windows_s": ()},
        {"windows_s": (0.0,)},
        {"pane_s": 0.0},
        {"lateness_s": -1.0},
        {"windows_s": (90.0,), "pane_s": 60.0},
    ],
)
def test_windows_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    """No window, no length, or a window that is no whole number of panes."""
    with pytest.raises(SettingsError):
        WindowSettings(**wrong)
