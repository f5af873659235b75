"""``scripts/bench``: the contestants side by side, on one Kafka and one Flink, in one go."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import contestants, report, rig
from benchmarks.figures import Figures
from benchmarks.load import Schedule
from benchmarks.profile import Profile
from benchmarks.rig import Scenario
from runners.local.artifacts import ROOT
from runners.local.ports import Ports
from runners.local.stack import Stack
from transforms.errors import FarcallError, SettingsError

QUICK_RATES, FULL_RATES = (400.0,), (100.0, 200.0, 400.0, 1_000.0)
FULL_RUNS = 3
FAULTS_RATE = 200.0
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"


def scenarios(rates: Sequence[float], names: Sequence[str], given: argparse.Namespace) -> list[Scenario]:
    """The scenarios asked for. Those with faults run at one rate, the lowest of `rates` that is not below 200/s."""
    made = [Scenario("steady", _schedule(rate, given), padding_bytes=given.padding_bytes) for rate in rates]
    faults_rate = min((rate for rate in rates if rate >= FAULTS_RATE), default=rates[-1])
    found = made if "steady" in names else []
    return [*found, *(faulty(name, _schedule(faults_rate, given)) for name in names if name != "steady")]


def faulty(name: str, schedule: Schedule) -> Scenario:
    """A scenario in which the model server is not well. Raises SettingsError where there is none of this name."""
    profiles = {
        # 1 % of the calls take 10 s; those that are due last need as long after the end.
        "stragglers": (Profile(straggler_share=0.01), 25.0),
        # Half of what is offered is allowed: the backlog grows for as long as the load lasts.
        "quota": (Profile(quota_per_s=schedule.rate / 2), 20.0),
        "outage": (Profile(outage_at_s=schedule.warm_s + schedule.seconds / 3, outage_for_s=5.0), 45.0),
    }
    if name not in profiles:
        raise SettingsError(f"There is no scenario {name!r}; there are steady, {', '.join(profiles)}.")
    profile, drain_s = profiles[name]
    return Scenario(name, schedule, profile, drain_s=drain_s)


def _schedule(rate: float, given: argparse.Namespace) -> Schedule:
    return Schedule(rate, given.warm_s, given.seconds, given.poisson, given.seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Asks a model server about each event of a topic in several ways, side by side, and compares latency and cost.",
        epilog="Words after -- are Beam's flags for the contestants that are Beam pipelines, such as --max_bundle_size=500.",
    )
    known = ", ".join(contestants.NAMES)
    parser.add_argument("--quick", action="store_true", help="each at 400 events a second, once: under ten minutes")
    parser.add_argument("--only", type=_words, help=f"contestants, by comma, of {known}; the floor always runs")
    parser.add_argument("--without", type=_words, default=(), help="contestants to leave out, by comma")
    parser.add_argument(
        "--rate", type=_numbers, help="events a second, by comma (400 with --quick, else 100,200,400,1000)"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="measured seconds of each run")
    parser.add_argument(
        "--warm_s", type=float, default=10.0, help="seconds of load before them, which are not measured"
    )
    parser.add_argument(
        "--runs", type=int, help="runs of each, interleaved; the median is shown (1 with --quick or --only, else 3)"
    )
    parser.add_argument(
        "--scenarios", type=_words, help="of steady, stragglers, quota, outage (all without --quick and --only)"
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
        "--publish", action="store_true", help="write benchmarks/results and docs/benchmarks.md also with --only"
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


def _order(names: Sequence[str], planned: Sequence[Scenario], runs: int) -> Iterator[tuple[Scenario, str]]:
    """Round by round, so that what else happens on the machine hits all alike."""
    for _ in range(runs):
        for scenario in planned:
            yield from ((scenario, name) for name in (report.FLOOR, *names))


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

    def do(self, scenario: Scenario, name: str) -> None:
        """One run; what goes wrong in it is noted, and the others go on."""
        try:
            contestant = None if name == report.FLOOR else contestants.named(name)
            settings = self._settings.get(name, {})
            found = rig.run(
                self._stack, contestant, scenario, self._folder, settings=settings, beam_arguments=self._beam
            )
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
        return _run(given, tuple(beam))
    except FarcallError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1


def _run(given: argparse.Namespace, beam: tuple[str, ...]) -> int:
    short = given.quick or given.only is not None
    names = [name for name in given.only or contestants.NAMES if name not in given.without]
    for name in names:
        contestants.named(name)
    rates = given.rate or (QUICK_RATES if short else FULL_RATES)
    wanted = given.scenarios or (("steady",) if short else ("steady", "stragglers", "quota", "outage"))
    planned = scenarios(rates, wanted, given)
    runs = given.runs or (1 if short else FULL_RUNS)
    with tempfile.TemporaryDirectory(prefix="farcall-bench-") as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        stack = Stack(folder / "stack", Ports.free())
        session = _Session(stack, folder, _settings(given.set), beam)
        try:
            stack.up(rig.PARTS, report=_say)
            for scenario, name in _order(names, planned, runs):
                session.do(scenario, name)
        finally:
            stack.down()
    results = report.summaries(session.runs)
    _say(f"\n{report.tables(results)}\n{report.ratios(results)}\n{report.parts_table(session.runs)}")
    _write(given, session, publish=given.publish or given.only is None)
    return 1 if session.failures else 0


def _machine() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {version}"


def _write(given: argparse.Namespace, session: _Session, *, publish: bool) -> None:
    now = dt.datetime.now(dt.UTC)
    whole = msgspec.json.format(
        msgspec.json.encode(
            {
                "date": now.isoformat(timespec="seconds"),
                "machine": _machine(),
                "runs": session.runs,
                "failures": session.failures,
            }
        )
    )
    if given.json:
        given.json.write_bytes(whole)
    if not publish:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{now:%Y-%m-%d}.json").write_bytes(whole)
    results = report.summaries(session.runs)
    PLOTS.mkdir(parents=True, exist_ok=True)
    for name in ("p50_ms", "p99_ms"):
        drawn = report.plot(results, name)
        if drawn:
            (PLOTS / f"{name.removesuffix('_ms')}.svg").write_text(drawn)
    DOCUMENT.write_text(report.document(session.runs, session.failures, f"{now:%Y-%m-%d}", _machine()))


if __name__ == "__main__":
    sys.exit(main())
