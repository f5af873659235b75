"""A chain of fallbacks: where a model gave no reply, the next one is asked, and at the end a fixed value may stand.

Each model gives way early enough that those after it have their `timeout_s` within the event's deadline. What the first one
answers is an outcome without a `reason`; any other says why it is not from there. A fixed value is an answer like any other, so
that with one at its end a chain has no failures: the case tells them apart by `Outcome.source`.
"""

from __future__ import annotations

import msgspec

from transforms.remote import names
from transforms.remote.client import Client, Outcome, Source
from transforms.remote.clock import Clock, SystemClock
from transforms.remote.course import Call
from transforms.remote.questions import Reply
from transforms.remote.settings import FixedReply, ModelSettings
from transforms.remote.transport import Transport

_FIXED: Source = "fixed"


class Chain:
    """Calls a model, and its fallbacks. Make one per worker process, in `setup`; use it on one event loop.

    `clients` are the models' own, in order. A `transport` that is handed in stays the caller's to close.

    Raises:
        SettingsError: see `Client`.
    """

    def __init__(self, settings: ModelSettings, clock: Clock | None = None, transport: Transport | None = None) -> None:
        self._clock: Clock = clock or SystemClock()
        self.clients: list[Client] = []
        self._fixed: FixedReply | None = None
        link: ModelSettings | FixedReply | None = settings
        while isinstance(link, ModelSettings):
            self.clients.append(Client(link, self._clock, transport))
            link = link.fallback
        self._fixed = link
        self.telemetry = self.clients[0].telemetry
        for client in self.clients[1:]:
            self.telemetry.include(client.telemetry)

    async def call(self, call: Call) -> Outcome:
        """Return the first reply of the chain, or what became of its last call. Raises nothing but CancelledError."""
        began_s = self._clock.monotonic_s()
        attempts, reasons = call.attempts, list[str]()
        outcome: Outcome | None = None
        for number, client in enumerate(self.clients):
            deadline_ms = call.deadline_ms - round(client.settings.fallback_s * 1000.0)
            before = call.attempts if outcome is None else 0
            # What a call has used up is counted for the first model, which is asked first after a restore, too.
            told = call.on_spent if outcome is None else None
            outcome = await client.call(
                msgspec.structs.replace(call, deadline_ms=deadline_ms, attempts=before, on_spent=told)
            )
            attempts += outcome.attempts - before
            if outcome.reply is not None:
                break
            self._report_fallback(number, outcome)
            reasons.append(f"{outcome.role} gave no reply ({outcome.error_type}): {outcome.error_message}")
        assert outcome is not None, "a chain has a first model"  # noqa: S101 - the constructor sees to it
        total_ms = (self._clock.monotonic_s() - began_s) * 1000.0
        if outcome.reply is None and self._fixed is not None:
            return self._fixed_outcome(call.id, self._fixed, attempts, total_ms, " ".join(reasons))
        if outcome.reply is None:
            reasons.pop()  # which the outcome itself says
        return msgspec.structs.replace(outcome, attempts=attempts, total_ms=total_ms, reason=" ".join(reasons) or None)

    async def close(self) -> None:
        """Close the connections of every model."""
        for client in self.clients:
            await client.close()

    def _report_fallback(self, number: int, outcome: Outcome) -> None:
        """Count that a call goes on from this model to what comes after it, if anything does."""
        later = self.clients[number + 1 :]
        to = later[0].settings.role if later else _FIXED if self._fixed is not None else None
        if to is not None:
            self.telemetry.count(names.FALLBACKS, to=to, reason=outcome.error_type or "")

    @staticmethod
    def _fixed_outcome(key: str, fixed: FixedReply, attempts: int, total_ms: float, reason: str) -> Outcome:
        value = fixed.value
        reply = Reply(value if isinstance(value, str) else "", "stop", "fixed", 0, 0, value)
        return Outcome(key, reply, None, None, attempts, 0.0, total_ms, None, _FIXED, _FIXED, reason, _FIXED)
