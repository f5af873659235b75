"""The whole support job over the shipped samples, on each runner of a laptop: in = outcomes + repeats."""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import apache_beam as beam
import msgspec
import pytest

from pipeline import options, runs
from pipeline.build import Steps, build
from pipeline.cases.support.case import SAMPLES, SUPPORT
from pipeline.cases.support.events import read_id
from pipeline.cases.support.scripted import scripted_reply
from pipeline.outputs import FileWatch
from pipeline.summary import Summary, unaccounted
from runners import prism as prism_runner
from tests.flow.doubles import DIRECT, PRISM, beam_options, model, read_lines
from transforms import dead_letters, files
from transforms.ask.shard import Shard
from transforms.metrics import RECORDS_IN, REPEATS, counter
from transforms.records import SourceRecord
from transforms.remote.client import Call, Outcome
from transforms.remote.clock import Clock
from transforms.remote.model_double import Fault, ModelDouble
from transforms.remote.questions import Reply
from transforms.remote.settings import FixedReply, ModelSettings

EXPECTED = json.loads((SAMPLES.parent / "expected.json").read_bytes())
LINES = SAMPLES.read_bytes().split(b"\n")[:-1]
GOOD = sum(EXPECTED["good"].values())


@dataclass(frozen=True)
class Ran:
    """What a job wrote, and what it counted."""

    out: Path
    summary: Summary
    records: int
    repeats: int

    @property
    def unaccounted(self) -> int:
        """The promise, as the command line checks it: 0."""
        return unaccounted(self.summary, self.records, self.repeats)

    def replies(self) -> list[tuple[str, str]]:
        """(id, topic) of each reply."""
        return [(reply["id"], topic) for topic in SUPPORT.output_topics for reply in self.lines(topic)]

    def dead(self) -> list[dict[str, Any]]:
        """The dead letters."""
        return self.lines(SUPPORT.dead_letter_topic)

    def lines(self, topic: str) -> list[dict[str, Any]]:
        """What was written to a topic."""
        return read_lines(self.out / f"{topic}.jsonl")

    def outcomes(self) -> set[tuple[str, str]]:
        """(id, topic) of everything written; for a dead letter without an id the number of its line."""
        return {*self.replies(), *((f"{one['id']} {one['offset']}", one["stage"]) for one in self.dead())}


def run_job(
    runner: Mapping[str, Any],
    model_url: str,
    out: Path,
    source: Path = SAMPLES,
    fallback: ModelSettings | FixedReply | None = None,
    **steps: Any,
) -> Ran:
    """Runs the job over `source` to its end."""
    ask_options = {"end_slice_s": 0.25} if runner["runner"] == DIRECT else {}
    pipeline = beam.Pipeline(options=beam_options(**runner))
    orders = SUPPORT.make_orders(out.with_name(f"{out.name}-orders")) if SUPPORT.make_orders else None
    settings = Steps(
        model=model(model_url, fallback=fallback),
        dead_letter_record=dead_letters.to_json,
        ask_options=ask_options,
        orders=orders,
        **steps,
    )
    build(pipeline, SUPPORT, files.ReadLines([str(source)]), files.WriteLines(str(out)), settings)
    with prism_runner.Failures() as failures:
        result = pipeline.run()
        failures.wait(result)
    summary = Summary()
    watch = FileWatch(
        str(out), SUPPORT.output_topics, SUPPORT.dead_letter_topic, SUPPORT.side_topics, SUPPORT.escalation_topic
    )
    summary.add(watch.poll())
    return Ran(out, summary, counter(result, RECORDS_IN) or 0, counter(result, REPEATS) or 0)


@pytest.fixture(scope="module", params=[DIRECT, pytest.param(PRISM, marks=pytest.mark.prism)])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """The job over the samples, run once on each runner."""
    place = request.getfixturevalue("prism") if request.param == PRISM else None
    with ModelDouble(latency_ms=20.0, sigma=0.6) as double:
        yield run_job({"runner": request.param, "prism": place}, double.base_url, tmp_path_factory.mktemp("job"))


def test_every_event_has_one_outcome(ran: Ran) -> None:
    """In = outcomes + repeats, with nothing written twice, and each count is that of expected.json."""
    assert ran.unaccounted == 0
    assert ran.summary.copies == 0
    assert (ran.records, ran.repeats) == (EXPECTED["events"], EXPECTED["repeats"])
    assert Counter(channel_of(one_id) for one_id, _ in ran.replies()) == EXPECTED["good"]
    assert Counter(topic for _, topic in ran.replies())["support.escalations"] == ran.summary.escalations > 0
    assert ran.summary.side == {"support.analytics": GOOD}
    assert Counter((one["stage"], one["error_type"]) for one in ran.dead()) == {
        ("parse", kind): count for kind, count in EXPECTED["bad"].items()
    }


def test_every_good_event_has_a_reply_with_its_id(ran: Ran) -> None:
    """The ids of the outcomes are those of the good events, each on the topic of its channel, or with those for a person."""
    expected = {}
    bad = {one["offset"] for one in ran.dead()}
    for number, line in enumerate(LINES):
        if number not in bad:
            event = json.loads(line)
            expected[event["id"]] = f"support.{event['channel']}.replies"
    assert len(expected) == GOOD
    found = dict(ran.replies())
    assert len(found) == len(ran.replies())
    assert found.keys() == expected.keys()
    escalated = {one["id"]: one["reasons"] for one in ran.lines("support.escalations")}
    assert all(escalated.values())
    assert {one_id: topic for one_id, topic in found.items() if one_id not in escalated} == {
        one_id: topic for one_id, topic in expected.items() if one_id not in escalated
    }


def channel_of(event_id: str) -> str:
    """The channel of a sample, which its id names."""
    return event_id.split("-", maxsplit=1)[0]


def test_every_dead_letter_holds_the_untouched_bytes(ran: Ran) -> None:
    """The value of each dead letter is the line of the input at its offset, byte for byte."""
    dead = ran.dead()
    assert len(dead) == sum(EXPECTED["bad"].values())
    assert any("value_base64" in one for one in dead)
    for one in dead:
        value = one["value"].encode() if "value" in one else base64.b64decode(one["value_base64"])
        assert value == LINES[one["offset"]]
        assert (one["topic"], one["partition"], one["attempts"]) == (str(SAMPLES), 0, 0)


@pytest.mark.prism
def test_the_runners_agree(tmp_path: Path, prism: str) -> None:
    """The same input gives the same set of (id, topic) on both runners."""
    with ModelDouble(latency_ms=20.0, sigma=0.6) as double:
        found = [
            run_job({"runner": name, "prism": prism}, double.base_url, tmp_path / name, part_of_the_samples(tmp_path))
            for name in (DIRECT, PRISM)
        ]
    assert found[0].outcomes() == found[1].outcomes() != set()
    assert [one.unaccounted for one in found] == [0, 0]


def part_of_the_samples(folder: Path, every: int = 3) -> Path:
    """A third of the samples, for runs whose claim needs no more."""
    path = folder / "part.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in LINES[::every]))
    return path


def test_an_empty_input(runner: dict[str, Any], double: ModelDouble, tmp_path: Path) -> None:
    """An empty file ends the job well, with nothing in, nothing out and nothing asked."""
    (tmp_path / "empty.jsonl").touch()
    found = run_job(runner, double.base_url, tmp_path / "out", tmp_path / "empty.jsonl")
    assert (found.records, found.repeats, found.summary.outcomes, found.unaccounted) == (0, 0, 0, 0)
    assert not (tmp_path / "out").exists()
    assert double.requests == 0


def test_without_memory_repeats_are_answered_again(double: ModelDouble, tmp_path: Path) -> None:
    """The sibling: with the memory of repeats off, ids are answered twice, and none is counted."""
    found = run_job({"runner": DIRECT}, double.base_url, tmp_path, repeat_memory_s=0.0)
    assert found.repeats == 0
    assert len(found.replies()) == GOOD + EXPECTED["repeats"]
    assert found.summary.copies == EXPECTED["repeats"] == found.unaccounted


def test_a_step_that_does_not_wait_loses_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sibling: where the step's timers do not wait for what is under way, the job ends well and the count tells."""
    monkeypatch.setattr(Shard, "pending", property(lambda _: 0))
    with ModelDouble(latency_ms=2_000.0) as slow:
        found = run_job({"runner": DIRECT}, slow.base_url, tmp_path)
    assert found.unaccounted > 0


def test_a_reply_that_breaks_its_schema_twice_is_escalated(runner: dict[str, Any], tmp_path: Path) -> None:
    """An answer that is no JSON goes to no customer: the model is asked once more, and then a person answers."""
    source = part_of_the_samples(tmp_path, every=9)
    with ModelDouble(reply=lambda _: " … ") as wordless:
        found = run_job(runner, wordless.base_url, tmp_path / "out", source)
        asked = wordless.stats()
    escalated = found.lines("support.escalations")
    assert {topic for _, topic in found.replies()} == {"support.escalations"}
    assert {(one["reasons"][0], one["attempts"]) for one in escalated} == {("reply:not-json", 2)}
    assert sorted(asked.attempts) == sorted(f"{one['id']}{again}" for one in escalated for again in ("", "#repair"))
    assert found.unaccounted == 0


def test_a_reply_that_is_put_right_is_sent(tmp_path: Path) -> None:
    """Where the second answer keeps to the schema, the customer gets it."""
    source = part_of_the_samples(tmp_path, every=9)
    with ModelDouble(reply=lambda said: scripted_reply(said) if "cannot be used" in said else "well") as late:
        found = run_job({"runner": DIRECT}, late.base_url, tmp_path / "out", source)
    sent = [one for topic in SUPPORT.output_topics[:3] for one in found.lines(topic)]
    assert sent
    assert {one["attempts"] for one in sent} == {2}
    assert {tuple(one["problems"]) for one in found.lines("support.analytics")} == {("not-json",)}
    assert found.unaccounted == 0


def test_a_second_try_without_an_answer_is_escalated(tmp_path: Path) -> None:
    """A server that refuses the second call costs no event its outcome: a person answers."""
    source = part_of_the_samples(tmp_path, every=9)
    with ModelDouble(reply=lambda _: "well") as broken:
        broken.set_faults(*_refusals(source))
        found = run_job({"runner": DIRECT}, broken.base_url, tmp_path / "out", source)
    reasons = {tuple(one["reasons"][:2]) for one in found.lines("support.escalations")}
    assert reasons == {("reply:not-json", "reply:repair-failed")}
    assert found.unaccounted == 0


def test_a_fallback_answers_what_the_model_cannot(runner: dict[str, Any], tmp_path: Path) -> None:
    """Where both tries are no good, the model's fallback is asked once for each event, and the customer gets its reply."""
    source = part_of_the_samples(tmp_path, every=9)
    with ModelDouble(reply=lambda _: "well") as wordless, ModelDouble(reply=scripted_reply) as able:
        fallback = msgspec.structs.replace(model(able.base_url), role="able", timeout_s=10.0)
        found = run_job(runner, wordless.base_url, tmp_path / "out", source, fallback)
        asked = able.stats()
    facts = found.lines("support.analytics")
    assert {(one["role"], one["attempts"], one["repairs"], tuple(one["problems"])) for one in facts} == {
        ("able", 3, 1, ("not-json",))
    }
    assert all("gave no good reply (not-json)" in one["fallback_reason"] for one in facts)
    assert sorted(asked.attempts) == sorted(f"{one['id']}#fallback" for one in facts)
    assert any(topic != "support.escalations" for _, topic in found.replies())
    assert found.unaccounted == 0


def test_a_fixed_reply_is_for_calls_without_an_answer(tmp_path: Path) -> None:
    """A fallback that is a fixed value is not asked about replies: what is wrong twice goes to a person."""
    source = part_of_the_samples(tmp_path, every=9)
    with ModelDouble(reply=lambda _: "well") as wordless:
        found = run_job({"runner": DIRECT}, wordless.base_url, tmp_path / "out", source, FixedReply("Soon."))
    assert {(topic, one["attempts"]) for topic in SUPPORT.output_topics for one in found.lines(topic)} == {
        ("support.escalations", 2)
    }
    assert found.unaccounted == 0


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def run_records(records: list[SourceRecord], out: Path, settings: ModelSettings, **steps: Any) -> list[dict[str, Any]]:
    """Runs the job over records that are given; returns the replies to chats, in the order in which they were written."""
    pipeline = beam.Pipeline(options=beam_options(DIRECT))
    given = Steps(model=settings, dead_letter_record=dead_letters.to_json, ask_options={"end_slice_s": 0.25}, **steps)
    made = beam.Create(records).with_output_types(SourceRecord)
    build(pipeline, SUPPORT, made, files.WriteLines(str(out)), given)
    pipeline.run().wait_until_finish()
    return read_lines(out / "support.chat.replies.jsonl")


def chats(count: int, **fields: Any) -> list[SourceRecord]:
    """Chats of the samples, of one Kafka key."""
    lines = [line for line in LINES if b'"chat-en-' in line][:count]
    return [SourceRecord(value=line, key=b"one", topic="t", offset=n, **fields) for n, line in enumerate(lines)]


def first_is_wrong(tries: int) -> Callable[[str], str]:
    """What a model says that gets its first question wrong, and what is asked about that again, so many times in all."""
    lock, left = threading.Lock(), [tries]

    def reply(said: str) -> str:
        with lock:
            is_wrong = left[0] == tries or "cannot be used" in said
            if is_wrong and left[0]:
                left[0] -= 1
                return "well"
        return scripted_reply(said)

    return reply


@pytest.mark.parametrize("tries", [0, 1, 2])
@pytest.mark.parametrize("keeps_order", [True, False])
def test_order_holds_through_every_try(tries: int, keeps_order: bool, tmp_path: Path) -> None:
    """With an order to keep, a reply that needs further tries keeps its place in its key; without one, it leaves behind the others."""
    records = chats(6)
    with ModelDouble(latency_ms=30.0, reply=first_is_wrong(tries)) as double, ModelDouble(reply=scripted_reply) as able:
        fallback = msgspec.structs.replace(model(able.base_url), role="able", timeout_s=10.0)
        settings = model(double.base_url, fallback=fallback, max_in_flight=1)
        replies = run_records(records, tmp_path / "out", settings, keeps_order=keeps_order, repeat_memory_s=0)
        asked = sum(double.stats().attempts.values()), sum(able.stats().attempts.values())
    ids = [read_id(record) for record in records]
    assert asked == (6 + (tries > 0), tries == 2)
    found = [one["id"] for one in replies]
    assert sorted(found) == sorted(str(one) for one in ids)
    if keeps_order:
        assert found == ids
    elif tries == 2:
        assert found != ids


class Watching:
    """A model that follows a script, and keeps what traces it was given."""

    traces: ClassVar[set[str | None]] = set()

    def __init__(self, settings: ModelSettings, _: Clock) -> None:
        self._settings = settings

    async def call(self, call: Call) -> Outcome:
        self.traces.add(call.traceparent)
        reply = Reply(scripted_reply(str(call.question)), "stop", "scripted", 1, 1)
        return Outcome(call.id, reply, None, None, 1, 1.0, 1.0, "http://scripted", self._settings.role)

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ((("TraceParent", TRACE.encode()),), {TRACE}),
        ((("traceparent", TRACE.upper().encode()),), {None}),
        ((("traceparent", b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01"),), {None}),
        ((("traceparent", None),), {None}),
        ((), {None}),
    ],
)
def test_the_trace_of_a_record_reaches_the_model(
    headers: tuple[tuple[str, bytes | None], ...], wanted: set[str | None], tmp_path: Path
) -> None:
    """The header `traceparent` of a record goes with each of its calls, where it is one as W3C Trace Context has it."""
    Watching.traces.clear()
    run_records(chats(3, headers=headers), tmp_path / "out", model("http://none"), make_caller=Watching)
    assert Watching.traces == wanted


def _refusals(source: Path) -> Iterator[Fault]:
    for line in source.read_bytes().splitlines():
        event_id = read_id(SourceRecord(value=line))
        if event_id is not None:
            yield Fault("status", status=400, id=f"{event_id}#repair")


def test_an_event_without_an_answer_is_a_dead_letter(double: ModelDouble, tmp_path: Path) -> None:
    """A request that the model refuses is a dead letter of the stage ask with its id, and harms no other."""
    double.set_faults(Fault("status", status=400, id="chat-*"))
    found = run_job({"runner": DIRECT}, double.base_url, tmp_path / "out", part_of_the_samples(tmp_path))
    asked = [one for one in found.dead() if one["stage"] == "ask"]
    assert asked
    assert {(one["error_type"], one["attempts"], one["id"].split("-")[0]) for one in asked} == {("refused", 1, "chat")}
    assert {channel_of(one_id) for one_id, _ in found.replies()} == {"email", "call"}
    assert found.unaccounted == 0


def test_a_write_that_fails_is_done_again(double: ModelDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails once costs nothing: the bundle is done again, and every event is accounted for."""
    failed = once(monkeypatch, fail)
    found = run_job({"runner": DIRECT}, double.base_url, tmp_path / "out", part_of_the_samples(tmp_path))
    assert failed == [1]
    assert found.unaccounted == 0
    assert found.summary.outcomes > 0


def test_a_write_that_is_not_done_is_missed(
    double: ModelDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sibling: where the same failure is kept from the runner, the count says that events are missing."""
    failed = once(monkeypatch, lambda: None)
    found = run_job({"runner": DIRECT}, double.base_url, tmp_path / "out", part_of_the_samples(tmp_path))
    assert failed == [1]
    assert found.unaccounted > 0


def fail() -> None:
    raise OSError("no space left on device")


def once(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> list[int]:
    """Has the first write of replies do `action` instead; returns a list that then holds 1."""
    append = files._append
    done: list[int] = []

    def append_but_once(path: str, data: bytes) -> None:
        if not done and "replies" in path:
            done.append(1)
            action()
            return
        append(path, data)

    monkeypatch.setattr(files, "_append", append_but_once)
    return done


@pytest.mark.prism
def test_a_write_that_fails_on_prism_starts_the_run_again(
    double: ModelDouble, prism: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prism does no bundle again, so the run starts anew, and ends with status 0 and every event accounted for."""
    failed = once(monkeypatch, fail)
    source = part_of_the_samples(tmp_path)
    assert runs.run(prism_settings(double, prism, source, tmp_path)) == 0
    said = capsys.readouterr().out
    assert failed == [1]
    assert "no space left on device" in said
    assert "the run starts again" in said
    summary = Summary()
    summary.add(FileWatch(str(tmp_path / "out"), SUPPORT.output_topics, SUPPORT.dead_letter_topic).poll())
    # A bundle that the run before left behind may still write: a copy, which has the id of what it copies.
    assert summary.outcomes == len(source.read_bytes().splitlines())


def bundle(begun: threading.Event, go_on: threading.Event) -> threading.Thread:
    """A bundle of Beam's worker, as far as `Failures` sees it: it begins, and fails once it is told to go on."""
    names: dict[str, Any] = {"__name__": prism_runner.Failures._WORKER, "begun": begun, "go_on": go_on}
    log = "__import__('logging').getLogger(__name__).error('Error processing instruction %s. a stumble', 1)"
    exec(f"def _execute():\n  begun.set()\n  go_on.wait(10)\n  {log}", names)
    thread = threading.Thread(target=names["_execute"])
    thread.start()
    assert begun.wait(10)
    return thread


@pytest.mark.parametrize("earlier", [True, False])
def test_a_failure_is_that_of_its_own_run(earlier: bool) -> None:
    """A bundle that a cancelled run left behind fails late, and not the run that follows; one of that run does."""
    begun, go_on = threading.Event(), threading.Event()
    thread = bundle(begun, go_on) if earlier else None
    with prism_runner.Failures() as failures:
        thread = thread or bundle(begun, go_on)
        go_on.set()
        thread.join()
        assert failures._failed.is_set() == (not earlier)


@pytest.mark.prism
def test_on_prism_one_run_fails_with_the_write(
    double: ModelDouble, prism: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sibling: without a second run the failure ends the program, rather than being passed over."""
    once(monkeypatch, fail)
    monkeypatch.setattr(runs, "_PRISM_RUNS", 1)
    with pytest.raises(runs.StackError, match="no space left on device"):
        runs.run(prism_settings(double, prism, part_of_the_samples(tmp_path), tmp_path))


def prism_settings(double: ModelDouble, prism: str, source: Path, folder: Path) -> options.Settings:
    """What the command line makes of a run on Prism."""
    models = {"models": {"answer": {"endpoints": [double.base_url], "model": "double"}}}
    (folder / "models.yaml").write_text(json.dumps(models))
    return options.read(
        [
            "--runner=PrismRunner",
            f"--prism_location={prism}",
            f"--input={source}",
            f"--output={folder}/out",
            f"--models={folder}/models.yaml",
        ]
    )
