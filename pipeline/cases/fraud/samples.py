"""``python -m pipeline.cases.fraud.samples``: writes the samples of the fraud case from river's phishing data set.

The data set (1 250 web pages, 9 features, a label; Mohammad, Thabtah, McCluskey: "Phishing Websites Features", UCI, 2015; it ships
inside river) has neither entities nor times. Both are drawn here by a seed and know nothing of the label, so what the windows of an
entity come to shows that the step works, not that it helps. The first 800 pages are the training data, with the figures that their
windows have in that order; the rest is the stream, with repeats and malformed events put in, and its labels.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from pipeline.cases.fraud.case import LABELS, SAMPLES, TRAINING
from pipeline.cases.fraud.events import FEATURES, rfc_3339
from pipeline.cases.fraud.score import INPUTS, WINDOWS, counted_values, inputs
from transforms.panes import Panes, add, recent

SEED = 20_261_101
TRAINING_ROWS = 800
HOSTS = 40
START_MS = 1_793_523_600_000
"""2026-11-01T09:00:00Z, the time of the first page."""

MEAN_GAP_MS = 12_000.0
LABEL_DELAYS_MS = (60_000, 86_400_000)
"""A label is known between a minute and a day after its event."""

Page = tuple[str, int, str, tuple[float, ...], bool]
"""Id, time in Unix milliseconds, entity, features, label."""


def pages(rows: Iterator[tuple[dict[str, float], bool]], chance: random.Random) -> Iterator[Page]:
    """The rows of the data set with ids, times and entities; a few entities have many pages, most few (Pareto's law)."""
    weights = [1.0 / (rank + 1) for rank in range(HOSTS)]
    at_ms = START_MS
    for number, (features, label) in enumerate(rows):
        at_ms += round(chance.expovariate(1.0 / MEAN_GAP_MS))
        entity = f"host-{chance.choices(range(HOSTS), weights)[0]:02d}"
        yield f"page-{number:04d}", at_ms, entity, tuple(float(features[name]) for name in FEATURES), bool(label)


def training_lines(found: list[Page]) -> Iterator[str]:
    """The training data as lines of CSV, with a heading."""
    yield ",".join((*INPUTS, "label"))
    kept: dict[str, Panes] = {}
    for _, at_ms, entity, features, label in found:
        values = counted_values(features)
        figures = recent(kept.get(entity, ()), at_ms, values, WINDOWS)
        kept[entity] = add(kept.get(entity, ()), at_ms, values, WINDOWS)
        yield ",".join(f"{value:.6g}" for value in (*inputs(features, figures[0]), float(label)))


def event_of(page: Page) -> dict[str, Any]:
    """A page as an event."""
    page_id, at_ms, entity, features, _ = page
    return {
        "id": page_id,
        "at": rfc_3339(at_ms),
        "entity": entity,
        "features": dict(zip(FEATURES, features, strict=True)),
    }


def malformed(page: Page) -> tuple[bytes, ...]:
    """One event for each way to be wrong, made of a good one."""
    good = event_of(page)
    features = good["features"]
    changed: tuple[dict[str, Any], ...] = (
        {**good, "id": "bad-missing", "features": {name: features[name] for name in FEATURES[1:]}},
        {**good, "id": "bad-unknown", "features": {**features, "htps": 1.0}},
        {**good, "id": "bad-range", "features": {**features, "https": 7.0}},
        {**good, "id": "bad-text", "features": {**features, "https": "yes"}},
        {**good, "id": "bad-time", "at": "2026-11-01 09:00"},
        {name: value for name, value in good.items() if name != "id"},
    )
    return (*(orjson.dumps(one) for one in changed), b'{"id": "bad-json", ', b'{"id": "bad-utf8\xff"}')


def stream_lines(found: list[Page], chance: random.Random) -> list[bytes]:
    """The stream as lines of JSON: every page, two of them twice, and the malformed events, spread through it."""
    lines = [orjson.dumps(event_of(page)) for page in found]
    for number in (100, 300):
        lines.insert(number + 20, lines[number])
    for line in malformed(found[0]):
        lines.insert(chance.randrange(len(lines)), line)
    return lines


def label_lines(found: list[Page], chance: random.Random) -> list[bytes]:
    """The labels in the order in which they are known, and two that are of no use: of an unknown event, and malformed."""
    labels = [(at_ms + chance.randint(*LABEL_DELAYS_MS), page_id, label) for page_id, at_ms, _, _, label in found]
    lines = [
        orjson.dumps({"id": page_id, "at": rfc_3339(at_ms), "label": label}) for at_ms, page_id, label in sorted(labels)
    ]
    lines.insert(10, orjson.dumps({"id": "page-unknown", "at": rfc_3339(START_MS), "label": True}))
    lines.insert(20, orjson.dumps({"id": found[0][0], "at": rfc_3339(START_MS), "label": "phishing"}))
    return lines


def write_samples(folder: Path) -> None:
    """Writes the three files into `folder`. Needs `river`, which the extra `test` brings."""
    from river import datasets  # noqa: PLC0415 - nothing else needs it

    chance = random.Random(SEED)  # noqa: S311 - samples, not secrets
    found = list(pages(iter(datasets.Phishing()), chance))
    training, stream = found[:TRAINING_ROWS], found[TRAINING_ROWS:]
    (folder / TRAINING.name).write_text("\n".join(training_lines(training)) + "\n", encoding="utf-8")
    (folder / SAMPLES.name).write_bytes(b"".join(line + b"\n" for line in stream_lines(stream, chance)))
    (folder / LABELS.name).write_bytes(b"".join(line + b"\n" for line in label_lines(stream, chance)))


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLES.parent)
