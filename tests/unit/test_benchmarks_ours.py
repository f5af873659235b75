"""Our own contestant's limit: whatever algorithm is asked for may reach the capacity that the others have."""

from __future__ import annotations

import pytest

from benchmarks.contestants.ours import CAPACITY, limit


@pytest.mark.parametrize("most", [1, 5, 64, CAPACITY])
def test_every_limit_may_grow_to_what_is_asked(most: int) -> None:
    """A limit that is found out begins low and may reach the bound; a fixed one is the bound."""
    for algorithm in ("aimd", "gradient"):
        found = limit(algorithm, most)
        assert (found.algorithm, found.most) == (algorithm, most)
        assert found.initial <= min(8, most)
    assert limit("fixed", most).initial == most
