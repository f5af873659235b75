"""``scripts/bench document``: writes docs/benchmarks.md and its plots anew from the results that are published.

The streams' run calls it as well; nothing of the page is written by hand. The functions that make text are pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import client, published, report, targets, wire
from benchmarks.figures import Figures
from runners.local.artifacts import ROOT

DOCUMENT = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"
PLOTTED = ("p50_ms", "p99_ms")

_HEAD = """\
# Benchmarks

Written by `scripts/bench document` from [benchmarks/results](../benchmarks/results), where the figures of every run lie. All on one
machine that Kafka, Flink, the contestant, the model server and the load share: read ratios, not absolute rates.

`scripts/bench` without a word does everything beside the peers, three rounds, in about three hours; `--quick` does each at 400/s in
nine minutes; `--plan` says what would run. What is published stays until it is done again, so that parts can be renewed alone.
"""

_STREAMS = """\
## Beside its peers

`{command}`, {date}, {machine}.

Every contestant reads one topic and writes another, on the same Kafka and, but for those that say otherwise, the same Flink,
parallelism 2, checkpoints every 2 s. The model server takes a log-normal time, median 0.2 s, σ 0.6, which is a function of the
event's id: all contestants meet the same latencies. The load is open-loop, and latency counts from the moment an event should have
been sent; events that had no reply count as infinitely late ("grows"). The sustained rate is that of replies in the second half. The
floor is the same load straight to the model server, without Kafka and Flink. It does not try again: under a quota or an outage it
says what is lost without. "Added" is over the floor. CPU is that of all processes between the model server and the load, Kafka
included. The floor's CPU tells how fast the machine was when a table was measured: between days it changed by a factor of two, so
compare within a table.

- `java_async` is Flink's own asynchronous operator, the bar: unordered, capacity 2 000 for each subtask.
- `pyflink_async` (`AsyncDataStream`) and `ml_predict` (Flink SQL's `ML_PREDICT` with its OpenAI model) have a local cluster
  of Flink 2.2. The latter's HTTP client has at most five calls to one host under way, whatever Flink is told.
- `pathway` has an engine of its own and, as it runs here, keeps nothing over a failure.
- `ray_data` is for bounded sets: it cannot stand in a stream, so it gets as many events as five seconds of the load have, in a file
  and all at once. It has a throughput and a cost, and no latency; its start does not count.
- `runinference` is the documented form, `runinference_threads` the best we could make of it. The peers that are Beam pipelines read
  with KafkaIO as Flink's native source; ours reads with its own (ADR 0024). The steady rows at 100, 200 and 300 events/s are of the
  newest code, on a machine less than half as fast as the fastest (the floor's CPU says so). Ours at 400 and 1 000, and its faults,
  are of the day of ADR 0025, before those of ADR 0026 and of ADR 0028; those at 150, and the scaling, of a machine slower still,
  before ADR 0028.

{failures}### Ours against each

{ratios}
{plots}{tables}
{scaling}### Where the processor time went

Milliseconds per output.

{parts}"""

_SCALING = """\
### One thing changed

The first row of each is that of the steady run. All of it on the same cores: more processes share them.

{table}
"""

_CLIENT = """\
## The client beside plain aiohttp

`{command}`, {date}, {machine}. Processor time of the client's process per request, on the same server in the same go; medians of
{rounds} rounds (lowest–highest). Read the ratio: the target's microseconds are of a machine on which aiohttp alone takes 81 to 133.

{table}"""


def figures_of(found: Mapping[str, Any]) -> Figures:
    """The figures of a run as they were published: JSON has no infinity, and of a bounded set no latency is known."""
    unknown = math.nan if found.get("bounded") else math.inf
    return msgspec.convert({name: unknown if value is None else value for name, value in found.items()}, Figures)


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A streams' result with those runs of `old` that `new` did not do again, at their scenario, rate and contestant.

    What failed in `old` stays until it was tried again. The commands of both are named, as long as runs of theirs are there.
    """
    again = {_place(run) for run in new["runs"]} | {_place_of_failure(one) for one in new["failures"]}
    kept = [run for run in old.get("runs", []) if _place(run) not in again]
    failures = [one for one in old.get("failures", []) if _place_of_failure(one) not in again]
    commands = f"{old['command']}`, `{new['command']}" if kept and old["command"] != new["command"] else new["command"]
    return {**new, "command": commands, "runs": [*kept, *new["runs"]], "failures": [*failures, *new["failures"]]}


def _place(run: Mapping[str, Any]) -> str:
    return f"{run['contestant']}, {run['scenario']}, {run['offered_per_s']:g}/s"


def _place_of_failure(sentence: str) -> str:
    return "/s".join(sentence.split("/s")[:1]) + "/s"


def text(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, from the published result of each program by its name."""
    parts = [_HEAD]
    figures = {name: found.get("figures", {}) for name, found in results.items()}
    if results.get("streams"):
        runs = [figures_of(one) for one in results["streams"]["runs"]]
        parts.append(_streams(results["streams"], runs))
        figures["streams"] = targets.stream_figures(report.summaries(runs))
    if results.get("client"):
        by_load = {int(at_once): found for at_once, found in results["client"]["by_load"].items()}
        parts.append(_CLIENT.format(**{**results["client"], "table": client.table(by_load)}))
    if results.get("wire"):
        parts.append(wire.section(results["wire"]))
    parts.append(f"## Targets\n\n{targets.table(figures)}")
    return "\n".join(parts)


def _streams(found: Mapping[str, Any], runs: list[Figures]) -> str:
    results = report.summaries(runs)
    failures = found.get("failures", [])
    plots = [name.removesuffix("_ms") for name in PLOTTED if len({row.offered_per_s for row in results}) > 1]
    scaling = report.scaling_table(results)
    return _STREAMS.format(
        command=found.get("command", "scripts/bench"),
        date=found["date"][:10],
        machine=found["machine"],
        failures="### What did not run\n\n" + "".join(f"- {one}\n" for one in failures) + "\n" if failures else "",
        ratios=report.ratios(results) or "- Only one ran.\n",
        plots="".join(f"![{name} over rate](benchmarks/{name}.svg)\n\n" for name in plots),
        tables=report.tables(results),
        scaling=_SCALING.format(table=scaling) if scaling else "",
        parts=report.parts_table(runs),
    )


def write(path: Path = DOCUMENT, plots: Path = PLOTS) -> None:
    """Write the page and the plots."""
    results = {name: published.read(name) for name in targets.COMMANDS}
    path.write_text(text(results))
    plots.mkdir(parents=True, exist_ok=True)
    runs = report.summaries([figures_of(one) for one in results["streams"].get("runs", [])])
    for name in PLOTTED:
        if drawn := report.plot(runs, name):
            (plots / f"{name.removesuffix('_ms')}.svg").write_text(drawn)


if __name__ == "__main__":
    write()
