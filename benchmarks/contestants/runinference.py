"""Beam's `RunInference` with a `RemoteModelHandler`, in two forms.

`runinference` is the form that the documentation shows: `request` makes a call for each example of its batch, one after another.
`runinference_threads` is the best we could make of it: batches of up to 64 whose calls run side by side on threads, and bundles of
200 ms so that there is something to batch; the whole batch waits for its slowest call.
Settings: ``batch`` (64), and for both Beam's flags.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import apache_beam as beam
import msgspec
import requests
from apache_beam.ml.inference.base import PredictionResult, RemoteModelHandler, RunInference

from benchmarks import records
from benchmarks.contestants import beam_job
from benchmarks.rig import Place
from transforms.records import OutputRecord, SourceRecord
from transforms.remote.openai_chat import Message, parse_reply, request_body

_TIMEOUT_S = 30.0


class Connections:
    """What a handler calls with. A class of its own, as Beam keeps weak references to it."""

    def __init__(self, threads: int) -> None:
        self.session = requests.Session()
        self.session.mount("http://", requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=threads))
        self.threads = ThreadPoolExecutor(threads) if threads > 1 else None


class Handler(RemoteModelHandler):  # type: ignore[misc]
    """Calls the model server for each `SourceRecord`, `threads` at a time."""

    def __init__(self, url: str, batch: int, threads: int) -> None:
        super().__init__(namespace="bench", num_retries=5)
        self._url = f"{url}/chat/completions"
        self._batch = batch
        self._threads = threads

    def batch_elements_kwargs(self) -> dict[str, Any]:
        """The greatest batch."""
        return {"min_batch_size": 1, "max_batch_size": self._batch}

    def create_client(self) -> Connections:
        """A session with a connection for each thread, and the threads."""
        return Connections(self._threads)

    def request(
        self, batch: Sequence[SourceRecord], model: Connections, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """The replies, in the order of the batch."""
        del inference_args
        ask = partial(self._ask, model.session)
        replies = model.threads.map(ask, batch) if model.threads else map(ask, batch)
        return [PredictionResult(record, reply) for record, reply in zip(batch, replies, strict=True)]

    def _ask(self, session: requests.Session, record: SourceRecord) -> str:
        event = records.read_event(record.value or b"")
        body = request_body("bench", (Message("user", event.text),), {})
        headers = {"Content-Type": "application/json", "Idempotency-Key": event.id}
        answer = session.post(self._url, data=body, headers=headers, timeout=_TIMEOUT_S)
        answer.raise_for_status()
        return parse_reply(answer.content).text


class ToOutput(beam.DoFn):  # type: ignore[misc]
    """Makes the output of a prediction."""

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def process(self, result: PredictionResult) -> Iterator[OutputRecord]:
        """Yields one output."""
        event = records.read_event(result.example.value)
        value = records.output(event.id, event.due_us, result.inference)
        yield OutputRecord(self._topic, value, key=event.id.encode(), id=event.id)


def steps(source: beam.PCollection, place: Place, threads: int) -> beam.PCollection:
    """`RunInference`, then outputs."""
    handler = Handler(place.url, place.settings.get("batch", 64), threads)
    results = source | "RunInference" >> RunInference(handler)
    return results | "Outputs" >> beam.ParDo(ToOutput(place.topic_out)).with_output_types(OutputRecord)


class Stock:
    """`RunInference` as it is documented."""

    name = "runinference"

    def running(self, place: Place) -> contextlib.AbstractContextManager[None]:
        """Submit, and cancel after the body."""
        return beam_job.running(place, partial(steps, threads=1))


class Threads:
    """`RunInference` whose handler runs a batch's calls side by side."""

    name = "runinference_threads"

    def running(self, place: Place) -> contextlib.AbstractContextManager[None]:
        """Submit with longer bundles, and cancel after the body."""
        arguments = (*place.beam_arguments, "--max_bundle_time_mills=200")
        longer = msgspec.structs.replace(place, beam_arguments=arguments)
        return beam_job.running(longer, partial(steps, threads=64))


CONTESTANTS = {"runinference": Stock(), "runinference_threads": Threads()}
