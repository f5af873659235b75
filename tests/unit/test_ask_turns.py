"""Whose turn it is among shards that listen on one thread."""

from __future__ import annotations

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
