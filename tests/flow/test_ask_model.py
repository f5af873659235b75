"""`AskModel` in small pipelines, on each runner of a laptop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms.window import FixedWindows, Sessions, SlidingWindows, TimestampedValue, WindowFn
from apache_beam.utils.timestamp import Timestamp

from runners.prism import BundleFailed, serve
from tests.flow import doubles
from tests.flow.doubles import DIRECT, PRISM, beam_options, ids_of, model, run_ask
from transforms.ask import step
from transforms.ask.shard import Shard
from transforms.remote.model_double import Fault, ModelDouble
from transforms.remote.settings import RetryPolicy


def names(count: int) -> list[str]:
    return [f"e{number}" for number in range(count)]


def test_every_record_comes_out_once(runner: dict[str, Any], double: ModelDouble, tmp_path: Path) -> None:
    """Each record leaves with the answer to its own question, and is asked about once."""
    out = run_ask(beam_options(**runner), tmp_path / "out", names(60), model(double.base_url))
    assert ids_of(out) == dict.fromkeys(names(60), 1)
    assert all(record["road"] == "answered" and record["text"].endswith(f": {record['id']}") for record in out)
    assert double.requests == 60


def test_no_input_no_output(runner: dict[str, Any], double: ModelDouble, tmp_path: Path) -> None:
    """An empty input ends the job with nothing out."""
    assert run_ask(beam_options(**runner), tmp_path / "out", [], model(double.base_url)) == []


def test_without_the_end_timer_all_is_lost_and_the_job_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sibling: with a timer in processing time alone, the run loses what is under way at its end, and nobody is told."""
    monkeypatch.setattr(Shard, "end_set", property(lambda _: True))
    monkeypatch.setattr(step._Ask, "_set_tick", in_a_minute)
    with ModelDouble(0, latency_ms=2_000.0) as slow:
        assert run_ask(beam_options(DIRECT), tmp_path / "out", names(20), model(slow.base_url)) == []


def in_a_minute(self: Any, _shard: Shard, _cell: Any, tick: Any, _watchdog: Any) -> None:
    # DirectRunner fires what is due when it looks, so that a timer of the next milliseconds is a race with the machine.
    tick.set(Timestamp(micros=self._calls.clock.now_ms() * 1_000 + 60_000_000))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault("status", status=400), "refused"),
        (Fault("not-json"), "broken-reply"),
        (Fault("status", status=503), "server-error"),
    ],
)
def test_a_failure_takes_the_other_road(double: ModelDouble, tmp_path: Path, fault: Fault, kind: str) -> None:
    """A call that fails for good gives the record and the reason on `failed`, with the attempts that were made."""
    double.set_faults(fault)
    settings = model(double.base_url, retry=RetryPolicy(max_attempts=3, base_s=0.01, cap_s=0.02, wait_for_server=False))
    out = run_ask(beam_options(DIRECT), tmp_path / "out", names(3), settings)
    assert ids_of(out) == dict.fromkeys(names(3), 1)
    attempts = 1 if kind == "refused" else 3
    assert {(record["road"], record["text"], record["attempts"]) for record in out} == {("failed", kind, attempts)}


def test_the_deadline_ends_a_call_that_hangs(double: ModelDouble, tmp_path: Path) -> None:
    """A server that never answers costs an event its deadline, and no more."""
    double.set_faults(Fault(kind="hang"))
    settings = model(double.base_url, timeout_s=0.5, deadline_s=0.5)
    out = run_ask(beam_options(DIRECT), tmp_path / "out", names(3), settings)
    assert ids_of(out) == dict.fromkeys(names(3), 1)
    assert {record["road"] for record in out} == {"failed"}


def test_an_exception_after_outcomes_were_taken(
    double: ModelDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that fails after outcomes were taken from memory is done again, and each record still comes out once."""
    monkeypatch.setenv("FARCALL_TEST_FUSES", str(tmp_path / "fuses"))
    list(doubles.light(tmp_path / "fuses", ["e3", "e11"]))
    out = run_ask(beam_options(DIRECT), tmp_path / "out", names(20), model(double.base_url))
    assert ids_of(out) == dict.fromkeys(names(20), 1)
    assert not os.listdir(tmp_path / "fuses")
    assert double.requests == 20


def test_memory_that_is_believed_loses_events(
    double: ModelDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sibling: where outcomes are dropped from this process as they are taken, the same exception loses events or asks twice."""
    monkeypatch.setenv("FARCALL_TEST_FUSES", str(tmp_path / "fuses"))
    list(doubles.light(tmp_path / "fuses", ["e3", "e11"]))
    kept = Shard.hand_out

    def forgetful(self: Shard, cell: Any, bag: Any) -> Any:
        out = kept(self, cell, bag)
        for leaving in out:
            self._calls.drop(self.key, leaving.id)
        return out

    monkeypatch.setattr(Shard, "hand_out", forgetful)
    out = run_ask(beam_options(DIRECT), tmp_path / "out", names(20), model(double.base_url))
    assert ids_of(out) != dict.fromkeys(names(20), 1) or double.requests > 20


@pytest.mark.prism
def test_prism_fails_the_job_rather_than_lose(
    double: ModelDouble, prism: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prism does not do bundles again: there the exception fails the job loudly, instead of ending it with less."""
    monkeypatch.setenv("FARCALL_TEST_FUSES", str(tmp_path / "fuses"))
    list(doubles.light(tmp_path / "fuses", ["e3"]))
    with serve(prism) as endpoint, pytest.raises(BundleFailed, match="e3"):
        run_ask(beam_options(PRISM, endpoint), tmp_path / "out", names(20), model(double.base_url))


def test_event_times_and_windows_survive(runner: dict[str, Any], double: ModelDouble, tmp_path: Path) -> None:
    """Records keep their event time through the step, and fall into the windows of the caller again."""

    def windowed(items: beam.PCollection) -> beam.PCollection:
        stamped = items | beam.Map(stamp).with_output_types(doubles.Item)
        return stamped | beam.WindowInto(FixedWindows(10))

    out = run_ask(beam_options(**runner), tmp_path / "out", names(30), model(double.base_url), before=windowed)
    assert {record["id"]: record["at"] for record in out} == {f"e{n}": n * 1_000_000 for n in range(30)}
    assert {record["window"] for record in out} == {"[0.0, 10.0)", "[10.0, 20.0)", "[20.0, 30.0)"}


WINDOWS: dict[str, Any] = {
    "fixed": FixedWindows(10),
    "sliding": SlidingWindows(10, 5),
    "sessions": Sessions(3),
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_windows_are_kept(runner: dict[str, Any], double: ModelDouble, tmp_path: Path, kind: str) -> None:
    """A record comes back in the very windows it came in, is asked about once, and no more records come than came."""

    def windowed(items: beam.PCollection) -> beam.PCollection:
        return items | beam.Map(stamp).with_output_types(doubles.Item) | beam.WindowInto(WINDOWS[kind])

    out = run_ask(beam_options(**runner), tmp_path / "out", names(12), model(double.base_url), before=windowed)
    wanted = {
        (f"e{n}", n * 1_000_000, str(window))
        for n in range(12)
        for window in WINDOWS[kind].assign(WindowFn.AssignContext(Timestamp(n)))
    }
    assert sorted((record["id"], record["at"], record["window"]) for record in out) == sorted(wanted)
    assert double.requests == 12


def test_windows_that_were_merged_are_kept(runner: dict[str, Any], double: ModelDouble, tmp_path: Path) -> None:
    """Records of a session that was merged, and has the time of its end, come back in that session, not in one of their own."""

    def grouped(items: beam.PCollection) -> beam.PCollection:
        stamped = items | beam.Map(stamp).with_output_types(doubles.Item) | beam.WindowInto(Sessions(3))
        groups = stamped | beam.WithKeys(session_key) | beam.GroupByKey()
        return groups | beam.Map(join).with_output_types(doubles.Item)

    out = run_ask(beam_options(**runner), tmp_path / "out", names(8), model(double.base_url), before=grouped)
    # Prism keeps milliseconds of the time at which the window ends.
    assert [(record["id"], record["window"], record["at"] // 1_000) for record in out] == [
        ("e0+e1+e2+e3+e4+e5+e6+e7", "[0.0, 10.0)", 9_999)
    ]


def session_key(_item: doubles.Item) -> bytes:
    return b"all"


def join(group: Any) -> doubles.Item:
    return doubles.Item("+".join(sorted(item.id for item in group[1])))


def stamp(item: doubles.Item) -> Any:
    return TimestampedValue(item, int(item.id[1:]))


def test_a_question_that_cannot_be_made(double: ModelDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record about which no question can be made fails alone, and says so."""
    monkeypatch.setattr(doubles, "ask", choosy)
    out = run_ask(beam_options(DIRECT), tmp_path / "out", names(5), model(double.base_url))
    assert {record["id"]: record["text"] for record in out if record["road"] == "failed"} == {"e3": "prompt"}
    assert len(out) == 5


def choosy(item: doubles.Item) -> Any:
    if item.id == "e3":
        raise ValueError("no words")
    return doubles.Chat((doubles.Message("user", item.id),))


def test_the_bound_holds(double: ModelDouble, tmp_path: Path) -> None:
    """With `max_pending` events under way the step takes no more, and still all come out."""
    settings = model(double.base_url, max_in_flight=64)
    out = run_ask(beam_options(DIRECT), tmp_path / "out", names(100), settings, max_pending=5)
    assert ids_of(out) == dict.fromkeys(names(100), 1)
    assert double.stats().most_in_flight <= 5


def test_a_model_that_is_down_at_the_start(runner: dict[str, Any], tmp_path: Path) -> None:
    """Events wait for a server that comes up within their deadline, and all are answered."""
    with ModelDouble(0, latency_ms=5.0) as double:
        double.set_down(True)
        import threading

        timer = threading.Timer(3.0, double.set_down, [False])
        timer.start()
        out = run_ask(beam_options(**runner), tmp_path / "out", names(10), model(double.base_url, deadline_s=60.0))
        timer.join()
    assert ids_of(out) == dict.fromkeys(names(10), 1)
    assert {record["road"] for record in out} == {"answered"}


def test_a_server_that_is_not_waited_for(tmp_path: Path) -> None:
    """The sibling: without `wait_for_server`, a server that is down uses up the attempts, and the events fail with it."""
    with ModelDouble(0) as double:
        double.set_down(True)
        impatient = RetryPolicy(max_attempts=2, base_s=0.01, cap_s=0.02, wait_for_server=False)
        out = run_ask(beam_options(DIRECT), tmp_path / "out", names(4), model(double.base_url, retry=impatient))
    assert {(record["road"], record["text"]) for record in out} == {("failed", "unreachable")}


def test_a_model_that_stays_down(runner: dict[str, Any], tmp_path: Path) -> None:
    """Events whose deadline passes while the server is down fail with it, and the job ends well."""
    with ModelDouble(0) as double:
        double.set_down(True)
        settings = model(double.base_url, timeout_s=0.5, deadline_s=1.0)
        out = run_ask(beam_options(**runner), tmp_path / "out", names(10), settings)
    assert ids_of(out) == dict.fromkeys(names(10), 1)
    assert {(record["road"], record["text"]) for record in out} == {("failed", "deadline")}
