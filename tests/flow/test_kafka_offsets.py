"""Offsets of the Kafka source as they lie in state."""

from __future__ import annotations

import msgspec

from transforms.kafka_read import Offsets, decode, encode


def test_offsets_in_state_keep_the_number_of_readers() -> None:
    """What a shard writes is what it reads again."""
    offsets = Offsets({("t", 3): 7, ("a", 0): 1}, final=False, readers=2)
    assert decode(encode(offsets)) == offsets


def test_state_of_before_there_were_readers_is_read() -> None:
    """A savepoint from before has no number: its partitions lie on all shards, and new ones go on there."""
    assert decode(msgspec.msgpack.encode((True, [("t", 3, 7)]))) == Offsets({("t", 3): 7}, final=True, readers=0)
