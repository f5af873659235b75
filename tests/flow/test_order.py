"""Order in a job on a runner of a laptop: events of one key leave as they came, others do not wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flow import doubles
from tests.flow.doubles import DIRECT, beam_options, model, run_ask
from transforms.remote.model_double import Fault, ModelDouble

NAMES = [f"{letter}{number}" for number in range(20) for letter in "ab-"]


def letter_of(item: doubles.Item) -> bytes | None:
    return None if item.id[0] == "-" else item.id[:1].encode()


def in_order(ids: list[str], letter: str) -> bool:
    of_letter = [one for one in ids if one[0] == letter]
    return of_letter == [one for one in NAMES if one[0] == letter]


def test_events_of_a_key_leave_in_order(tmp_path: Path) -> None:
    """With an order key, events of a key leave as they came whatever their calls took; a failed one keeps its place."""
    refused = Fault("status", status=400, id="a7")
    with ModelDouble(0, latency_ms=40.0, sigma=1.0, faults=(refused,)) as double:
        settings = model(double.base_url, max_in_flight=64)
        out = run_ask(beam_options(DIRECT), tmp_path / "out", NAMES, settings, order_key_of=letter_of)
        assert double.stats().most_in_flight > 2, "calls of one key run side by side"
    answered = [record["id"] for record in out if record["road"] == "answered"]
    assert sorted(record["id"] for record in out) == sorted(NAMES)
    assert in_order([*answered[: answered.index("a6") + 1], "a7", *answered[answered.index("a6") + 1 :]], "a")
    assert in_order(answered, "b")


def test_without_a_key_events_leave_as_they_can(tmp_path: Path) -> None:
    """The sibling: without an order key the same events leave in the order in which their calls end."""
    with ModelDouble(0, latency_ms=40.0, sigma=1.0) as double:
        out = run_ask(beam_options(DIRECT), tmp_path / "out", NAMES, model(double.base_url, max_in_flight=64))
    answered = [record["id"] for record in out]
    assert not (in_order(answered, "a") and in_order(answered, "b"))


def test_one_key_that_waits_does_not_stop_others(tmp_path: Path) -> None:
    """While the first event of a key waits for its deadline, those of other keys leave; those behind it leave right after it."""
    with ModelDouble(0, latency_ms=20.0, faults=(Fault("hang", id="a0"),)) as double:
        settings = model(double.base_url, max_in_flight=64, timeout_s=1.5, deadline_s=1.5)
        out = run_ask(beam_options(DIRECT), tmp_path / "out", NAMES, settings, order_key_of=letter_of, end_slice_s=0.05)
    ids = [record["id"] for record in out if record["road"] == "answered"]
    assert [record["text"] for record in out if record["id"] == "a0"] == ["deadline"]
    assert {record["road"] for record in out if record["id"] != "a0"} == {"answered"}
    assert max(ids.index(one) for one in ids if one[0] != "a") < ids.index("a1")


def test_at_the_bound_order_does_not_block(tmp_path: Path) -> None:
    """With a bound of five and outcomes held behind a slow call, the step goes on when that call ends."""
    with ModelDouble(0, latency_ms=10.0, faults=(Fault("hang", id="a0"),)) as double:
        settings = model(double.base_url, max_in_flight=64, timeout_s=1.0, deadline_s=1.0)
        out = run_ask(
            beam_options(DIRECT), tmp_path / "out", NAMES, settings, order_key_of=lambda _: b"a", max_pending=5
        )
        assert double.stats().most_in_flight <= 5
    assert [record["id"] for record in out if record["road"] == "answered"] == NAMES[1:]


@pytest.mark.prism
def test_order_on_prism(prism: str, double: ModelDouble, tmp_path: Path) -> None:
    """Prism, too, gets every event of an ordered step out once."""
    options = beam_options("PrismRunner", prism)
    out = run_ask(options, tmp_path / "out", NAMES, model(double.base_url), order_key_of=letter_of)
    assert sorted(record["id"] for record in out) == sorted(NAMES)
