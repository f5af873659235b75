"""Beam's own `AsyncWrapper` (apache_beam.transforms.async_dofn), tuned, around an asyncio DoFn with an aiohttp session.

Best settings found: `callback_frequency` 50 ms, asyncio, a buffer of 2 000. Its timer is set again by each element of a key, always
to the next round moment, so that a busy key never commits: hence 128 keys, each of which sees an event less often than that. It
logs at each firing, to Flink; that is turned off.
Settings: ``callback_s``, ``keys``, ``buffer``.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import aiohttp
import apache_beam as beam
import msgspec
from apache_beam.transforms.async_dofn import AsyncWrapper

from benchmarks import records
from benchmarks.contestants import beam_job
from benchmarks.rig import Place
from transforms.records import OutputRecord, SourceRecord
from transforms.remote.openai_chat import Message, parse_reply, request_body

Keyed = tuple[str, tuple[str, bytes]]


class Key(beam.DoFn):  # type: ignore[misc]
    """Keys each event by one of a fixed number of keys; its value is its id and its record's value."""

    def __init__(self, keys: int) -> None:
        self._keys = keys

    def process(self, record: SourceRecord) -> Iterator[Keyed]:
        """Yields one pair."""
        identity = (record.key or b"").decode()
        # The wrapper compares keys as text.
        yield str(zlib.crc32(identity.encode()) % self._keys), (identity, record.value or b"")


class Ask(beam.DoFn):  # type: ignore[misc]
    """One call to the model server."""

    def __init__(self, url: str, topic: str) -> None:
        self._url = f"{url}/chat/completions"
        self._topic = topic
        self._session: aiohttp.ClientSession | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    async def process(self, element: Keyed) -> list[OutputRecord]:
        """Gives one output."""
        event = records.read_event(element[1][1])
        # A session belongs to the loop it is made on.
        session = self._session = self._session or aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = request_body("bench", (Message("user", event.text),), {})
        headers = {"Content-Type": "application/json", "Idempotency-Key": event.id}
        async with session.post(self._url, data=body, headers=headers) as answer:
            answer.raise_for_status()
            reply = parse_reply(await answer.read())
        value = records.output(event.id, event.due_us, reply.text)
        return [OutputRecord(self._topic, value, key=event.id.encode(), id=event.id)]


def id_of(value: tuple[str, bytes]) -> str:
    """The id by which the wrapper knows an event."""
    return value[0]


def steps(source: beam.PCollection, place: Place) -> beam.PCollection:
    """Keys, then the wrapper."""
    settings = place.settings
    wrapper = AsyncWrapper(
        Ask(place.url, place.topic_out),
        parallelism=settings.get("buffer", 2_000),
        callback_frequency=settings.get("callback_s", 0.05),
        max_items_to_buffer=settings.get("buffer", 2_000),
        id_fn=id_of,
        use_asyncio=True,
    )
    keyed = source | "Key" >> beam.ParDo(Key(settings.get("keys", 128))).with_output_types(
        beam.typehints.Tuple[str, beam.typehints.Tuple[str, bytes]]
    )
    return keyed | "Ask" >> beam.ParDo(wrapper).with_output_types(OutputRecord)


class Wrapped:
    """`AsyncWrapper` on the stack."""

    name = "asyncwrapper"

    def running(self, place: Place) -> contextlib.AbstractContextManager[None]:
        """Submit, and cancel after the body."""
        quiet = (*place.beam_arguments, "--default_sdk_harness_log_level=WARN")
        return beam_job.running(msgspec.structs.replace(place, beam_arguments=quiet), steps)


CONTESTANTS = {"asyncwrapper": Wrapped()}
