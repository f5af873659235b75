"""A job whose windows show whether the watermark waits for what is under way. Importable on workers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import Timestamp

from runners.prism import Failures
from tests.flow import doubles
from tests.flow.doubles import Item, model, read_lines
from transforms.ask import AskModel
from transforms.remote.model_double import Fault

EVENTS = 40
EVERY_S = 0.1
SLOW = "e3"
SLOWLY = Fault("status", 503, SLOW, (1,), after_ms=2_500.0)
"""The first attempt takes 2.5 s and fails, the second is answered."""
ALL = sorted(f"e{number}" for number in range(EVENTS))


class Number(beam.DoFn):  # type: ignore[misc]
    """Names each event by the time it is due."""

    def __init__(self, began: Timestamp) -> None:
        self._began = began

    def process(self, _: Any, timestamp: Any = beam.DoFn.TimestampParam) -> Iterable[Item]:
        yield Item(f"e{round(float(timestamp - self._began) / EVERY_S)}")


class Windows(beam.DoFn):  # type: ignore[misc]
    """Writes each group with its window."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def process(self, group: Any, window: Any = beam.DoFn.WindowParam) -> Iterable[None]:
        with open(self._path, "a") as file:
            file.write(json.dumps({"window": str(window), "ids": sorted(group[1])}) + "\n")
        return ()


def to_pair(answered: Any) -> tuple[bytes, str]:
    return b"all", answered[0].id


def run(options: PipelineOptions, url: str, out: Path, lead_s: float = 1.0) -> list[dict[str, Any]]:
    """Events every 100 ms, all but one answered soon, grouped by the second of their event time."""
    began = Timestamp.now() + lead_s
    pipeline = beam.Pipeline(options=options)
    items = (
        pipeline
        | PeriodicImpulse(began, began + EVENTS * EVERY_S, EVERY_S)
        | beam.ParDo(Number(began)).with_output_types(Item)
        | beam.WindowInto(FixedWindows(1))
    )
    asked = items | AskModel(model(url), doubles.ask, doubles.id_of)
    _ = (
        asked.answered
        | beam.Map(to_pair).with_output_types(tuple[bytes, str])
        | beam.GroupByKey()
        | beam.ParDo(Windows(out))
    )
    with Failures() as failures:
        failures.wait(pipeline.run())
    return read_lines(out)


def ids(groups: list[dict[str, Any]]) -> list[str]:
    """All that came out, sorted."""
    return sorted(one for group in groups for one in group["ids"])
