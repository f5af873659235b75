"""The policies' benchmark: the worst of all counts, and a client without the policy fails what one with it meets."""

from __future__ import annotations

import math

import pytest

from benchmarks import policies, targets


def test_the_worst_is_the_farthest_from_the_target() -> None:
    """Of a figure that must be least the smallest counts, of one that must be most the greatest, and none hides a missing one."""
    found = policies.worst([{"quota_goodput": 0.99, "hedge_extra": 0.01}, {"quota_goodput": 0.96, "hedge_extra": 0.04}])
    assert found == {"quota_goodput": 0.96, "hedge_extra": 0.04}
    assert math.isnan(policies.worst([{"hedge_extra": math.nan}, {"hedge_extra": 0.01}])["hedge_extra"])


def test_every_target_of_the_policies_is_measured() -> None:
    """Each figure that a target asks of this program is one that it prints."""
    asked = {target.figure for target in targets.TARGETS if target.program == "policies"}
    quick = {**policies.outage(1), **policies.poison(3), **policies.quota("bucket", 1)}
    rest = {
        "hedge_p99_cut",
        "hedge_extra",
        "ejected_share",
        "healthy_share",
        "limited_share",
        "deadline_over_ms",
        "deadline_left_open",
    }
    assert asked <= quick.keys() | rest


@pytest.mark.parametrize("place", [0, 17, 63])
def test_a_poison_record_is_found_wherever_it_is(place: int) -> None:
    """All but the poison record are answered, in the calls that bisection takes."""
    assert policies.poison(place) == {"poison_extra_calls": 12.0, "poison_good": 63.0}


def test_an_endpoint_that_is_well_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sibling: where the endpoint does not go bad, its half of the traffic stays, and the figure says so."""
    monkeypatch.setitem(policies.BAD, "well", policies.LOG_NORMAL)
    assert policies.ejection("well", 1) < 0.2
    assert policies.ejection("errors", 1) > 0.9
