"""What the flow tests share: records, a coder with a fuse, and runs of small pipelines on a runner."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.coders.coders import Coder
from apache_beam.options.pipeline_options import PipelineOptions

from runners import prism
from transforms.ask import AskModel
from transforms.remote.questions import Chat, Message
from transforms.remote.settings import Endpoint, ModelSettings, RetryPolicy

DIRECT = "BundleBasedDirectRunner"
PRISM = "PrismRunner"


class Item(msgspec.Struct, frozen=True, array_like=True):
    """A record whose coder burns a fuse: see `FusedCoder`."""

    id: str


class FusedCoder(Coder):  # type: ignore[misc]
    """Encodes `Item`. Raises once for each id with a fuse, when the step decodes it to emit its outcome.

    That is after the outcome was taken from memory, and before the bundle ends. A fuse is a file, so that it burns once
    whichever process, and however often, the bundle is done.
    """

    def encode(self, value: Item) -> bytes:
        return value.id.encode()

    def decode(self, encoded: bytes) -> Item:
        fuse = Path(os.environ.get("FARCALL_TEST_FUSES", "/nonexistent")) / encoded.decode()
        if _emitting():
            try:
                fuse.unlink()
            except FileNotFoundError:
                pass
            else:
                raise RuntimeError(f"the fuse of {encoded.decode()} burnt")
        return Item(encoded.decode())

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> Any:
        return Item


def _emitting() -> bool:
    frame = sys._getframe(2)
    return frame.f_code.co_name == "_emit"


beam.coders.registry.register_coder(Item, FusedCoder)


def ask(item: Item) -> Chat:
    return Chat((Message("user", item.id),))


def id_of(item: Item) -> str:
    return item.id


def to_item(text: str) -> Item:
    return Item(text)


class Append(beam.DoFn):  # type: ignore[misc]
    """Appends what comes to a file, when its bundle ends."""

    def __init__(self, path: Path, road: str) -> None:
        self._path, self._road = str(path), road

    def start_bundle(self) -> None:
        self._lines: list[str] = []

    def process(
        self, element: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterable[None]:
        record, outcome = element
        facts = {"id": record.id, "road": self._road, "at": timestamp.micros, "window": str(window)}
        facts["text"] = outcome.text if self._road == "answered" else outcome.error_type
        facts["attempts"] = outcome.attempts
        self._lines.append(json.dumps(facts) + "\n")
        return ()

    def finish_bundle(self) -> None:
        with open(self._path, "a") as file:
            file.write("".join(self._lines))


def model(*urls: str, **settings: Any) -> ModelSettings:
    """A model that is quick to give up, unless told otherwise."""
    settings.setdefault("retry", RetryPolicy(base_s=0.01, cap_s=0.1))
    return ModelSettings(role="answer", endpoints=tuple(Endpoint(url) for url in urls), model="double", **settings)


def beam_options(runner: str, prism: str | None = None, *more: str) -> PipelineOptions:
    """Beam's options for a runner by its name."""
    arguments = [f"--runner={runner}", *more]
    if runner == PRISM:
        # A path is the program, to be shared by the tests of this process; an address is one that runs.
        place = "prism_location" if os.sep in str(prism) else "job_endpoint"
        arguments += [f"--{place}={prism}", "--environment_type=LOOPBACK", "--prism_log_level=error"]
    return PipelineOptions(arguments)


def run_ask(
    options: PipelineOptions,
    out: Path,
    ids: Iterable[str],
    settings: ModelSettings,
    before: Callable[[beam.PCollection], beam.PCollection] = lambda items: items,
    **ask_options: Any,
) -> list[dict[str, Any]]:
    """Asks about each id; returns what came out, in no order."""
    pipeline = beam.Pipeline(options=options)
    items = pipeline | beam.Create(list(ids)) | beam.Map(to_item).with_output_types(Item)
    asked = before(items) | AskModel(settings, ask, id_of, **ask_options)
    _ = asked.answered | "KeepAnswered" >> beam.ParDo(Append(out, "answered"))
    _ = asked.failed | "KeepFailed" >> beam.ParDo(Append(out, "failed"))
    with prism.Failures() as failures:
        failures.wait(pipeline.run())
    return read_lines(out)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; none where it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ids_of(records: Iterable[dict[str, Any]]) -> Counter[str]:
    """How often each id came out."""
    return Counter(record["id"] for record in records)


def light(folder: Path, ids: Iterable[str]) -> Iterator[str]:
    """Lays a fuse for each id."""
    folder.mkdir(exist_ok=True)
    for event_id in ids:
        (folder / event_id).touch()
        yield event_id


class Cell:
    """A cell of state."""

    value: bytes | None = None

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value

    def clear(self) -> None:
        self.value = None
