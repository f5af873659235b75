"""A caller that reports itself, for the tests of the road from a client's telemetry to those who read it."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam

from tests.flow.doubles import Item
from transforms.remote import loop, names
from transforms.remote.client import Call, Client, Outcome
from transforms.remote.clock import Clock
from transforms.remote.settings import ModelSettings
from transforms.remote.telemetry import Telemetry


class ReportingCaller:
    """A `Client` whose outcomes are counted around it."""

    def __init__(self, settings: ModelSettings, clock: Clock) -> None:
        self._client = Client(settings, clock)
        self.telemetry = Telemetry(settings.role, model=settings.model, soon=loop.soon)
        self._calls = 0
        self.telemetry.gauge(names.CALLS_IN_FLIGHT, lambda: self._calls)

    async def call(self, call: Call) -> Outcome:
        self._calls += 1
        try:
            outcome = await self._client.call(call)
        finally:
            self._calls -= 1
        self.telemetry.count(names.OUTCOMES, kind=outcome.error_type or "ok")
        self.telemetry.record(names.OPERATION_DURATION, outcome.total_ms / 1_000, error_type=outcome.error_type or "")
        if outcome.reply is not None:
            self.telemetry.record(names.TOKEN_USAGE, outcome.reply.completion_tokens or 0, gen_ai_token_type="output")
        return outcome

    async def close(self) -> None:
        await self._client.close()


def make(settings: ModelSettings, clock: Clock) -> ReportingCaller:
    """As `calls.make_client`."""
    return ReportingCaller(settings, clock)


class FirstItems(beam.DoFn):  # type: ignore[misc]
    """The first so many impulses as records; further ones are dropped, so the stream goes on without any."""

    def __init__(self, count: int) -> None:
        self._count = count

    def setup(self) -> None:
        self._passed = 0

    def process(self, _impulse: bytes) -> Iterator[Item]:
        if self._passed < self._count:
            yield Item(f"s{self._passed}")
            self._passed += 1
