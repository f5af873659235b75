"""``scripts/evaluate --case=fraud``: the whole fraud case over its samples with the embedded model, judged by the labels."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console
from rich.table import Table

from pipeline import runs
from pipeline.build import Steps, build
from pipeline.cases.fraud.case import FRAUD, LABELS, SAMPLES
from pipeline.cases.fraud.quality import Counts, Judged, add, figures
from transforms import dead_letters, files

WANTED: Mapping[str, float] = {
    "blocked precision": 0.95,
    "blocked recall": 0.8,
    "flagged precision": 0.85,
    "flagged recall": 0.93,
    "one outcome for each good event": 1.0,
    "labels joined": 1.0,
}
"""The least that each share must be."""

WANTED_AT_MOST: Mapping[str, float] = {"brier": 0.07, "calibration_error": 0.06}
"""The most that each error may be."""


def run_job(base_url: str, folder: Path) -> None:
    """Runs the job over the samples and their labels on DirectRunner, with the model server at `base_url`."""
    steps = Steps(
        model=runs.embedded_model(FRAUD, base_url),
        dead_letter_record=dead_letters.to_json,
        # DirectRunner holds no watermark for calls under way, and labels are joined behind them.
        ask_options={"mode": "bundles"},
    )
    read, read_labels = files.ReadLines([str(SAMPLES)]), files.ReadLines([str(LABELS)])
    with beam.Pipeline(options=PipelineOptions(["--runner=BundleBasedDirectRunner"])) as pipeline:
        build(pipeline, FRAUD, read, files.WriteLines(str(folder)), steps, read_labels)


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON, those that are none left out; nothing where there is no file."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            found.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return found


def judge(folder: Path) -> dict[str, Any]:
    """Every figure of a run whose outputs are in `folder`: of the decisions, and of the figures that the job itself wrote."""
    labels = {one["id"]: one["label"] for one in lines(LABELS) if isinstance(one["label"], bool)}
    outputs = [one for topic in FRAUD.output_topics for one in lines(folder / f"{topic}.jsonl")]
    decisions, outcomes = {one["id"]: one for one in outputs}, Counter(one["id"] for one in outputs)
    counts = Counts()
    for event_id, one in decisions.items():
        counts = add(counts, Judged(0, one["score"], one["decision"], labels[event_id]))
    latest: dict[str, dict[str, Any]] = {}
    for one in lines(folder / "fraud.quality.jsonl"):
        before = latest.get(one["window_start"])
        if before is None or one["revision"] > before["revision"]:
            latest[one["window_start"]] = one
    good = {one["id"] for one in lines(SAMPLES) if one.get("id", "").startswith("page-")}
    found = figures(counts)
    return {
        "labelled": found["labelled"],
        "frauds": found["frauds"],
        **{f"{name} {rate}": found[name][rate] for name in ("blocked", "flagged") for rate in ("precision", "recall")},
        "brier": found["brier"],
        "calibration_error": found["calibration_error"],
        "one outcome for each good event": sum(outcomes[one] == 1 for one in good) / len(good),
        "labels joined": sum(one["labelled"] for one in latest.values()) / found["labelled"],
        "windows": [latest[start] for start in sorted(latest)],
    }


def wrong(found: Mapping[str, Any]) -> list[str]:
    """The names of the figures that are not as wanted."""
    low = [name for name, least in WANTED.items() if found[name] is None or found[name] < least]
    return low + [name for name, most in WANTED_AT_MOST.items() if found[name] is None or found[name] > most]


def print_figures(console: Console, found: Mapping[str, Any]) -> None:
    """Prints the figures of all, and those of each window as the job wrote them."""
    table = Table(title=f"{SAMPLES.name}: {found['labelled']} labelled, {found['frauds']} frauds", title_justify="left")
    for name in ("what", "figure", "wanted"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for name, least in WANTED.items():
        table.add_row(name, f"{found[name]:.3f}", f"≥ {least:g}")
    for name, most in WANTED_AT_MOST.items():
        table.add_row(name.replace("_", " "), f"{found[name]:.4f}", f"≤ {most:g}")
    console.print(table)
    windows = Table(
        title="by hour, as fraud.quality has it: precision and recall of blocked, and of flagged", title_justify="left"
    )
    columns: Sequence[str] = ("from", "labelled", "block p", "block r", "flag p", "flag r", "brier")
    for name in columns:
        windows.add_column(name, justify="right")
    for one in found["windows"]:
        rates = [one[kind][rate] for kind in ("blocked", "flagged") for rate in ("precision", "recall")]
        shown = ["–" if rate is None else f"{rate:.3f}" for rate in (*rates, one["brier"])]
        windows.add_row(one["window_start"][5:16].replace("T", " "), str(one["labelled"]), *shown)
    console.print(windows)


def main(console: Console) -> int:
    """Trains, serves, runs and prints; returns 0 where every figure is as wanted, else 1."""
    model = FRAUD.trained_model
    assert model is not None  # noqa: S101 - the case has one
    with tempfile.TemporaryDirectory() as name, runs.serve_trained(model, console) as base_url:
        run_job(base_url, Path(name))
        found = judge(Path(name))
    print_figures(console, found)
    for one in wrong(found):
        console.print(f"{one} is not as wanted")
    return 1 if wrong(found) else 0
