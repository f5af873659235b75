"""`AskModel` without state and timers: each bundle ends with the last of its calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms.window import SlidingWindows, TimestampedValue, WindowFn
from apache_beam.utils.timestamp import Timestamp

from pipeline import options
from tests.flow import doubles
from tests.flow.doubles import DIRECT, beam_options, ids_of, model, run_ask
from transforms.ask import AskModel
from transforms.ask.bundlewise import AskInBundles
from transforms.ask.calls import make_client
from transforms.remote.model_double import Fault, ModelDouble

BUNDLES = {"mode": "bundles"}


def names(count: int) -> list[str]:
    return [f"e{number}" for number in range(count)]


def test_every_record_comes_out_once(runner: dict[str, Any], double: ModelDouble, tmp_path: Path) -> None:
    """Each record leaves with the answer to its own question, and is asked about once; calls run side by side."""
    settings = model(double.base_url, max_in_flight=64)
    out = run_ask(beam_options(**runner), tmp_path / "out", names(60), settings, **BUNDLES)
    assert ids_of(out) == dict.fromkeys(names(60), 1)
    assert all(record["road"] == "answered" and record["text"].endswith(f": {record['id']}") for record in out)
    assert double.requests == 60
    assert double.stats().most_in_flight > 10


def test_the_bound_holds(double: ModelDouble, tmp_path: Path) -> None:
    """With `max_pending` calls under way the step takes no more, and still all come out."""
    settings = model(double.base_url, max_in_flight=64)
    out = run_ask(beam_options(DIRECT), tmp_path / "out", names(60), settings, max_pending=5, **BUNDLES)
    assert ids_of(out) == dict.fromkeys(names(60), 1)
    assert 1 < double.stats().most_in_flight <= 5


def test_failures_take_the_other_road(double: ModelDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused call, a deadline and a question that cannot be made each fail their own record."""
    monkeypatch.setattr(doubles, "ask", choosy)
    double.set_faults(Fault("status", 400, "e1"), Fault("hang", id="e2"))
    settings = model(double.base_url, timeout_s=0.5, deadline_s=0.5)
    out = run_ask(beam_options(DIRECT), tmp_path / "out", names(6), settings, **BUNDLES)
    failed = {record["id"]: record["text"] for record in out if record["road"] == "failed"}
    assert failed == {"e1": "refused", "e2": "deadline", "e3": "prompt"}
    assert ids_of(out) == dict.fromkeys(names(6), 1)


def choosy(item: doubles.Item) -> Any:
    if item.id == "e3":
        raise ValueError("no words")
    return doubles.Chat((doubles.Message("user", item.id),))


def test_event_times_and_windows_are_kept(runner: dict[str, Any], double: ModelDouble, tmp_path: Path) -> None:
    """Records keep their event time and their windows, and are asked about once whatever number of windows they are in."""

    def windowed(items: beam.PCollection) -> beam.PCollection:
        return items | beam.Map(stamp).with_output_types(doubles.Item) | beam.WindowInto(SlidingWindows(10, 5))

    settings = model(double.base_url)
    out = run_ask(beam_options(**runner), tmp_path / "out", names(12), settings, before=windowed, **BUNDLES)
    wanted = {
        (f"e{n}", n * 1_000_000, str(window))
        for n in range(12)
        for window in SlidingWindows(10, 5).assign(WindowFn.AssignContext(Timestamp(n)))
    }
    assert sorted((record["id"], record["at"], record["window"]) for record in out) == sorted(wanted)
    assert double.requests == 12


def stamp(item: doubles.Item) -> Any:
    return TimestampedValue(item, int(item.id[1:]))


def test_a_bundle_that_failed_leaves_nothing_behind(double: ModelDouble) -> None:
    """After a bundle that did not end, the next gives the outcomes of its own records alone, each once."""
    step = AskInBundles(
        step="bundles",
        model=model(double.base_url),
        ask=doubles.ask,
        id_of=doubles.id_of,
        traceparent_of=None,
        max_pending=100,
        make_caller=make_client,
    )
    step.setup()
    try:
        step.start_bundle()
        for name in names(3):
            list(step.process(doubles.Item(name), Timestamp(0)))
        double.wait_until(lambda stats: stats.answered == 3)
        step.start_bundle()
        out = [*step.process(doubles.Item("e2"), Timestamp(0)), *step.finish_bundle()]
    finally:
        step.teardown()
    assert [value.value[0].id for value in out] == ["e2"]


def test_it_needs_nothing_of_a_runner(double: ModelDouble) -> None:
    """The graph of the step in bundles requires no state and no timers; with timers it requires both."""
    assert requirements(double, "bundles") == set()
    assert requirements(double, "timers") == {"beam:requirement:pardo:stateful:v1"}


def requirements(double: ModelDouble, mode: str) -> set[str]:
    pipeline = beam.Pipeline(options=beam_options(DIRECT))
    items = pipeline | beam.Create(["e1"]) | beam.Map(doubles.to_item).with_output_types(doubles.Item)
    _ = items | AskModel(model(double.base_url), doubles.ask, doubles.id_of, mode=mode)
    return set(pipeline.to_runner_api().requirements)


def test_the_runner_chooses_unless_it_is_said() -> None:
    """Runners with timers use them, a portable endpoint of which nothing is known gets bundles, and the flag has the last word."""
    spark = ["--runner=PortableRunner", "--job_endpoint=127.0.0.1:1"]
    assert options.read([]).ask_mode == "timers"
    assert options.read(["--runner=FlinkRunner"]).ask_mode == "timers"
    assert options.read(["--runner=PrismRunner"]).ask_mode == "bundles"
    assert options.read(spark).ask_mode == "bundles"
    assert options.read([*spark, "--ask_mode=timers"]).ask_mode == "timers"
    assert options.read(["--ask_mode=bundles"]).ask_mode == "bundles"


def test_order_is_refused(double: ModelDouble) -> None:
    """A step without state cannot keep an order, and says so."""
    with pytest.raises(ValueError, match="mode bundles keeps no order"):
        AskModel(model(double.base_url), doubles.ask, doubles.id_of, mode="bundles", order_key_of=doubles.id_of)
    with pytest.raises(ValueError, match="mode must be one of timers, bundles"):
        AskModel(model(double.base_url), doubles.ask, doubles.id_of, mode="ticks")
