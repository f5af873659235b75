"""What became of a call, as the record that leaves the step, and the road it leaves on."""

from __future__ import annotations

from transforms.records import Answer, CallFailure
from transforms.remote.client import Outcome, Reply

ANSWERED = "answered"
FAILED = "failed"


def to_record(outcome: Outcome, model: str, waited_ms: float) -> Answer | CallFailure:
    """An `Answer`, or a `CallFailure` where there is none.

    `model` is named where the outcome names none; `waited_ms` is the time since the step took the event.
    """
    reply = outcome.reply
    if reply is None:
        return CallFailure(outcome.error_type or "call", outcome.error_message or "", outcome.attempts)
    return Answer(
        text=reply.text,
        model=reply.model or outcome.model or model,
        endpoint=outcome.endpoint or "",
        finish_reason=reply.finish_reason,
        attempts=outcome.attempts,
        prompt_tokens=reply.prompt_tokens or 0,
        completion_tokens=reply.completion_tokens or 0,
        model_ms=outcome.model_ms,
        waited_ms=waited_ms,
        role=outcome.role,
        source=outcome.source,
        reason=outcome.reason,
        value=reply.value,
        first_token_ms=reply.first_token_ms,
    )


def prompt_failure(event_id: str, error: Exception, attempts: int = 0) -> Outcome:
    """The outcome of an event about which no question can be made."""
    sentence = f"The question about this record could not be made: {error!r}."
    return Outcome(event_id, None, "prompt", sentence, attempts, 0.0, 0.0, None)


def unasked(event_id: str) -> Outcome:
    """The outcome of an event about which there is nothing to ask: an empty reply, whose source is ``none``."""
    return Outcome(event_id, Reply(""), None, None, 0, 0.0, 0.0, None, source="none")
