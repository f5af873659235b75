"""The keys of shards, chosen so that Flink spreads them evenly.

Flink puts a key into the key group ``murmur(hash(key)) mod max_parallelism`` and gives each subtask a contiguous range of groups
(`org.apache.flink.runtime.state.KeyGroupRangeAssignment`). A handful of arbitrary keys spreads badly: eight one-byte keys over
four subtasks gave 4, 0, 2 and 2. So shard s of S gets a key that lies in the middle of its share of the groups. On other runners
these keys are as good as any.
"""

from __future__ import annotations

import functools
import itertools
import zlib

MAX_PARALLELISM = 128
"""Flink's number of key groups; the job must run with ``--max_parallelism=128``."""

_MASK = 0xFFFFFFFF


def _signed(value: int) -> int:
    value &= _MASK
    return value - 0x100000000 if value & 0x80000000 else value


def _rotate_left(value: int, bits: int) -> int:
    value &= _MASK
    return ((value << bits) | (value >> (32 - bits))) & _MASK


def _murmur(code: int) -> int:
    """Flink's `MathUtils.murmurHash(int)`: MurmurHash3 of four bytes, made non-negative."""
    code = (code * 0xCC9E2D51) & _MASK
    code = _rotate_left(code, 15)
    code = (code * 0x1B873593) & _MASK
    code = _rotate_left(code, 13)
    code = (code * 5 + 0xE6546B64) & _MASK
    code ^= 4
    code ^= code >> 16
    code = (code * 0x85EBCA6B) & _MASK
    code ^= code >> 13
    code = (code * 0xC2B2AE35) & _MASK
    code ^= code >> 16
    signed = _signed(code)
    if signed >= 0:
        return signed
    return 0 if signed == -0x80000000 else -signed


def _buffer_hash(data: bytes) -> int:
    """Java's `ByteBuffer.hashCode()` over the whole of `data`; Beam's Flink runner keys by such buffers."""
    value = 1
    for byte in reversed(data):
        value = (31 * value + (byte - 256 if byte > 127 else byte)) & _MASK
    return _signed(value)


def key_group(key: bytes) -> int:
    """Flink's key group of a Beam key of type bytes, whose encoding is its length and then itself (below 128 bytes)."""
    return _murmur(_buffer_hash(bytes([len(key)]) + key)) % MAX_PARALLELISM


@functools.cache
def shard_keys(shards: int) -> tuple[bytes, ...]:
    """One key for each of `shards` shards (1 to 128), the same in every process.

    Raises ValueError outside that range.
    """
    if not 1 <= shards <= MAX_PARALLELISM:
        raise ValueError(f"The number of shards must lie between 1 and {MAX_PARALLELISM}, and is {shards}.")
    wanted = {(shard * MAX_PARALLELISM + MAX_PARALLELISM // 2) // shards: shard for shard in range(shards)}
    found: dict[int, bytes] = {}
    for number in itertools.count():
        key = number.to_bytes(2, "big")
        shard = wanted.get(key_group(key))
        if shard is not None and shard not in found:
            found[shard] = key
            if len(found) == shards:
                return tuple(found[shard] for shard in range(shards))
    raise AssertionError


def shard_of(event_id: str, shards: int) -> bytes:
    """The shard of an event, the same in every process."""
    return shard_of_key(event_id.encode(), shards)


def shard_of_key(key: bytes, shards: int) -> bytes:
    """The shard of an order key, the same in every process."""
    return shard_keys(shards)[zlib.crc32(key) % shards]
