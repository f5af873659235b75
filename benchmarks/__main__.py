"""``scripts/bench``: the contestants side by side, on one Kafka and one Flink, in one go."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import contestants, document, plan, published, report, rig
from benchmarks.figures import Figures
from benchmarks.plan import Run
from runners.local.ports import Ports
from runners.local.stack import Stack
from transforms.errors import FarcallError, SettingsError

FULL_RUNS = 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Asks a model server about each event of a topic in several ways, side by side, and compares latency and cost.",
        epilog=(
            "Words after -- are Beam's flags for the contestants that are Beam pipelines, such as --max_bundle_size=500. "
            "Without any word: all rates, faults and variants, three rounds of each; --plan says how long that takes. "
            "Other benchmarks, each with its own --help: scripts/bench followed by limits, checkpoints, in_flight, wire, formats, "
            "client, policies or telemetry_cost; "
            "scripts/bench document writes docs/benchmarks.md anew from what is published."
        ),
    )
    known = ", ".join(contestants.NAMES)
    parser.add_argument("--quick", action="store_true", help="each at 400 events a second, once: under ten minutes")
    parser.add_argument("--plan", action="store_true", help="say what would run and how long it takes, and do nothing")
    parser.add_argument("--only", type=_words, help=f"contestants, by comma, of {known}; the floor always runs")
    parser.add_argument("--without", type=_words, default=(), help="contestants to leave out, by comma")
    parser.add_argument(
        "--rate", type=_numbers, help="events a second, by comma (400 with --quick, else 100,200,400,1000)"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="measured seconds of each run")
    parser.add_argument(
        "--warm_s",
        type=float,
        help=f"seconds of load before them, not measured ({plan.WARM_S:g}; {plan.SHORT_WARM_S:g} for the floor and who falls behind)",
    )
    parser.add_argument(
        "--runs", type=int, help="runs of each, interleaved; the median is shown (1 with --quick or --only, else 3)"
    )
    parser.add_argument(
        "--scenarios", type=_words, help=f"of {', '.join(plan.SCENARIOS)} (all without --quick and --only)"
    )
    parser.add_argument("--poisson", action="store_true", help="exponential gaps between events instead of equal ones")
    parser.add_argument("--seed", type=int, default=0, help="seed of the gaps")
    parser.add_argument("--padding_bytes", type=int, default=0, help="length of each event's text")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="CONTESTANT.NAME=VALUE",
        help="a setting of a contestant, such as ours.tick_ms=10",
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write benchmarks/results and docs/benchmarks.md also with --only; published runs that are not done again stay",
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file as well")
    parser.add_argument("--keep", type=Path, help="keep the stack's logs and the samples in this folder")
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, _words(text)))


def _settings(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """CONTESTANT.NAME=VALUE by contestant; values of JSON, or as they stand where they are none."""
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        whole, equals, value = pair.partition("=")
        contestant, dot, name = whole.partition(".")
        if not equals or not dot:
            raise SettingsError(f"--set {pair}: is not CONTESTANT.NAME=VALUE, such as ours.tick_ms=10.")
        contestants.named(contestant)
        try:
            found.setdefault(contestant, {})[name] = json.loads(value)
        except ValueError:
            found.setdefault(contestant, {})[name] = value
    return found


def _say(text: str) -> None:
    print(text, flush=True)


class _Session:
    """All runs of one call of the command, on one stack."""

    def __init__(self, stack: Stack, folder: Path, settings: dict[str, dict[str, Any]], beam: tuple[str, ...]) -> None:
        self._stack = stack
        self._folder = folder
        self._settings = settings
        self._beam = beam
        self.runs: list[Figures] = []
        self.failures: list[str] = []

    def do(self, run: Run) -> None:
        """One run; what goes wrong in it is noted, and the others go on."""
        name, scenario = run.contestant, run.scenario
        try:
            contestant = None if name == plan.FLOOR else contestants.named(name)
            settings = {**run.settings, **self._settings.get(name, {})}
            beam = (*run.beam, *self._beam)
            found = rig.run(self._stack, contestant, scenario, self._folder, settings=settings, beam_arguments=beam)
        except Exception as error:  # noqa: BLE001 - a contestant that cannot run is a result
            sentence = f"{name}, {scenario.name}, {scenario.schedule.rate:g}/s: {type(error).__name__}: {error}"
            self.failures.append(sentence)
            _say(f"FAILED  {sentence}")
            traceback.print_exc()
        else:
            self.runs.append(found)
            _say(_line(found))


def _line(run: Figures) -> str:
    latency = "/".join(report.number(value) for value in (run.p50_ms, run.p95_ms, run.p99_ms))
    return (
        f"{run.contestant:20} {run.scenario:10} {run.offered_per_s:6g}/s  sustained {run.sustained_per_s:7.1f}/s  "
        f"p50/p95/p99 {latency} ms  missing {run.missing}  failed {run.failed}  repeated {run.repeated}  "
        f"cpu {run.cpu_ms_per_output:.2f} ms  requests {run.requests_per_output:.3f}  late {run.send_late_p99_ms:.1f} ms"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    beam = words[words.index("--") + 1 :] if "--" in words else []
    given = _parser().parse_args(words[: words.index("--")] if "--" in words else words)
    try:
        return _run(given, tuple(beam), _command(words))
    except FarcallError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1


def _run(given: argparse.Namespace, beam: tuple[str, ...], command: str) -> int:
    runs, rounds = _planned(given)
    minutes = plan.about_s(runs) * rounds / 60.0
    _say(f"{len(runs) * rounds} runs in {rounds} {'round' if rounds == 1 else 'rounds'}, about {minutes:.0f} minutes")
    if given.plan:
        for run in runs:
            _say(f"{run.contestant:20} {run.scenario.name:28} {run.scenario.schedule.rate:g}/s")
        return 0
    with tempfile.TemporaryDirectory(prefix="farcall-bench-") as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        stack = Stack(folder / "stack", Ports.free())
        session = _Session(stack, folder, _settings(given.set), beam)
        try:
            stack.up(rig.PARTS, report=_say)
            for run in runs * rounds:
                session.do(run)
        finally:
            stack.down()
    results = report.summaries(session.runs)
    _say(f"\n{report.tables(results)}\n{report.ratios(results)}\n{report.parts_table(session.runs)}")
    _write(given, command, session, publish=given.publish or given.only is None)
    return 1 if session.failures else 0


def _command(words: Sequence[str]) -> str:
    """What was typed, without the words that only say where something is written."""
    return " ".join(
        ["scripts/bench", *(word for word in words if not word.startswith(("--json", "--keep", "--publish")))]
    )


def _planned(given: argparse.Namespace) -> tuple[list[Run], int]:
    """The runs of one round, and how many rounds."""
    short = given.quick or given.only is not None
    without = {*given.without, *(plan.QUICK_LEAVES_OUT if given.quick and given.only is None else ())}
    names = [name for name in given.only or contestants.NAMES if name not in without]
    for name in names:
        contestants.named(name)
    rates = given.rate or ((plan.QUICK_RATE,) if short else plan.FULL_RATES)
    kinds = given.scenarios or (("steady",) if short else plan.SCENARIOS)
    load = plan.Load(given.seconds, given.warm_s, given.poisson, given.seed, given.padding_bytes)
    return plan.planned(kinds, rates, names, load, given.only is not None), given.runs or (1 if short else FULL_RUNS)


def _write(given: argparse.Namespace, command: str, session: _Session, *, publish: bool) -> None:
    found = published.result(command, {}, runs=session.runs, failures=session.failures)
    whole = msgspec.json.encode(found)
    if given.json:
        given.json.write_bytes(msgspec.json.format(whole))
    if publish:
        # Runs as they are read back: both sides of the merge have the same form.
        published.write("streams", document.merged(published.read("streams"), msgspec.json.decode(whole)))
        document.write()


if __name__ == "__main__":
    sys.exit(main())
