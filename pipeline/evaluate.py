"""``scripts/evaluate``: a whole case over labelled events, and how good each step was; the support case with a scripted model."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import apache_beam as beam
import orjson
from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console
from rich.table import Table

from pipeline import evaluate_fraud
from pipeline.build import Steps, build
from pipeline.cases.support.answer import ANALYTICS, ESCALATIONS, TOPICS
from pipeline.cases.support.case import SUPPORT, sample_orders
from pipeline.cases.support.evaluation import LABELLED, Labelled, Share, judge_outputs, judge_steps, read_labelled
from pipeline.cases.support.scripted import MakeScripted
from transforms import dead_letters, files
from transforms.remote.settings import Endpoint, ModelSettings

WANTED = {
    "parsed as labelled": 1.0,
    "language": 0.97,
    "redaction precision": 0.95,
    "redaction recall": 0.98,
    "return requests precision": 0.9,
    "return requests recall": 0.85,
    "rule decisions": 1.0,
    "one outcome for each event": 1.0,
    "records that keep the schema": 1.0,
    "violations caught": 1.0,
    "good replies left alone": 0.98,
    "nothing wrong reaches a customer": 1.0,
    "escalation precision": 0.9,
    "escalation recall": 0.85,
}
"""The least share of each figure. Below one of them the program ends with status 1."""


def run_job(labelled: Sequence[Labelled], folder: Path) -> None:
    """Runs the job over the labelled events on DirectRunner; what it writes is in `folder`."""
    source = folder / "events.jsonl"
    source.write_bytes(b"".join(orjson.dumps(one.event) + b"\n" for one in labelled))
    steps = Steps(
        model=ModelSettings(role="answer", endpoints=(Endpoint("http://scripted.invalid/v1"),), model="scripted"),
        dead_letter_record=dead_letters.to_json,
        ask_options={"end_slice_s": 0.05},
        make_caller=MakeScripted({one.id: one.replies for one in labelled if one.replies}),
        orders=sample_orders(folder),
    )
    options = PipelineOptions(["--runner=BundleBasedDirectRunner"])
    with beam.Pipeline(options=options) as pipeline:
        build(pipeline, SUPPORT, files.ReadLines([str(source)]), files.WriteLines(str(folder / "out")), steps)


def evaluate(path: Path = LABELLED) -> list[Share]:
    """Every figure, of the steps alone and of the whole job."""
    labelled = read_labelled(path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_job(labelled, folder)

        def lines(topic: str) -> list[dict[str, object]]:
            file = folder / "out" / f"{topic}.jsonl"
            return [orjson.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []

        topics = {
            "replies": tuple(TOPICS.values()),
            "escalations": ESCALATIONS,
            "analytics": ANALYTICS,
            "dead": SUPPORT.dead_letter_topic,
        }
        return [*judge_steps(labelled), *judge_outputs(labelled, lines, topics)]


def below(figures: Sequence[Share]) -> list[Share]:
    """The figures that are less than is wanted."""
    return [one for one in figures if one.value < WANTED.get(one.name, 0.0)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns 0 where every figure is as wanted, else 1."""
    parser = argparse.ArgumentParser(prog="scripts/evaluate", description=__doc__)
    parser.add_argument(
        "--labelled", type=Path, default=LABELLED, metavar="FILE", help="labelled events (default: those that ship)"
    )
    parser.add_argument("--case", default="support", choices=("support", "fraud"), help="which case (default: support)")
    parser.add_argument("--wrong", action="store_true", help="name the events that a figure misses")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    console = Console(highlight=False)
    if given.case == "fraud":
        return evaluate_fraud.main(console)
    figures = evaluate(given.labelled)
    table = Table(title=f"{given.labelled.name}: {len(read_labelled(given.labelled))} events", title_justify="left")
    for name in ("what", "share", "of", "wanted"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for one in figures:
        wanted = WANTED.get(one.name)
        table.add_row(one.name, f"{one.value:.3f}", f"{one.good}/{one.of}", "" if wanted is None else f"≥ {wanted:g}")
    console.print(table)
    for one in figures if given.wrong else below(figures):
        if one.wrong:
            console.print(f"{one.name}: not {', '.join(one.wrong)}", soft_wrap=True)
    return 1 if below(figures) else 0


if __name__ == "__main__":
    sys.exit(main())
