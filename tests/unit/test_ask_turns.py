"""Whose turn it is among shards that listen on one thread."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from transforms.ask.turns import Turns
from transforms.remote.fakes import VirtualClock


def test_nobody_gives_way_to_a_shard_that_had_its_turn_while_the_bundle_is_young() -> None:
    """A shard's turn is spent until the bundle is as old as the runner lets it get, or the next one begins."""
    clock = VirtualClock()
    turns = Turns(clock, patience_s=0.02)
    turns.start_bundle()
    turns.begin(b"a")
    assert turns.spent == {b"a"}
    clock.advance(0.019)
    turns.begin(b"b")
    assert turns.spent == {b"a", b"b"}
    assert turns.patience_s > 0.0
    clock.advance(0.001)
    assert not turns.spent
    assert turns.patience_s <= 0.0
    turns.start_bundle()
    assert not turns.spent
    assert turns.patience_s > 0.0


def test_a_step_without_bundles_has_no_patience() -> None:
    """Where no bundle was begun, way is given at once."""
    turns = Turns(VirtualClock())
    turns.begin(b"a")
    assert not turns.spent


@pytest.mark.parametrize(
    ("lasts", "timeout_s", "expected"),
    [
        (True, 0.05, [({b"a"}, 0.02), (set(), 0.03)]),
        (True, 0.01, [({b"a"}, 0.01)]),
        (False, 0.05, [({b"a"}, 0.02)]),
    ],
)
def test_a_wait_goes_on_after_the_patience_and_ends_where_way_is_given(
    lasts: bool, timeout_s: float, expected: list[tuple[set[bytes], float]]
) -> None:
    """The first part of a wait leaves the spent shards aside, the rest nobody; one that gave way before its time is over."""
    clock = VirtualClock()
    turns = Turns(clock, patience_s=0.02)
    asked: list[tuple[set[bytes], float]] = []

    def wait(spent: Collection[bytes], wait_s: float) -> bool:
        asked.append((set(spent), pytest.approx(wait_s)))
        clock.advance(wait_s if lasts else 0.0)
        return False

    turns.start_bundle()
    turns.begin(b"a")
    assert not turns.wait(timeout_s, wait)
    assert asked == expected
    assert turns.wait(timeout_s, lambda *_: True)
