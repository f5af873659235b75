"""What agents made of the replies: which were sent as they were, which were changed, which were thrown away, by channel and hour."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, get_args

import msgspec
import orjson

from pipeline.case import Feedback
from pipeline.cases.support.answer import SupportReply
from transforms.read_json import EventId, Instant, read_id, read_json, unix_ms
from transforms.records import OutputRecord, SourceRecord
from transforms.tally import Tally, Window

QUALITY = "support.quality"

Verdict = Literal["accepted", "edited", "rejected"]
"""A reply was sent as it was, changed first, or not sent."""

VERDICTS: tuple[str, ...] = get_args(Verdict)


class AgentFeedback(msgspec.Struct, frozen=True, array_like=True):
    """What an agent made of the reply to the event `id`, and when, in Unix milliseconds."""

    id: str
    at_ms: int
    verdict: str
    source: SourceRecord


class Replied(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of a reply until its feedback comes; `at_ms` is the event's time."""

    id: str
    at_ms: int
    channel: str


class Judged(msgspec.Struct, frozen=True, array_like=True):
    """A reply with what became of it."""

    at_ms: int
    channel: str
    verdict: str


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """How many replies of a window had each verdict."""

    by_verdict: dict[str, int] = {}


class _Feedback(msgspec.Struct):
    id: EventId
    at: Instant
    verdict: Verdict


_feedback: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Feedback)


def parse(record: SourceRecord) -> AgentFeedback:
    """The feedback in a record. Raises BadEvent, of one of the kinds of `read_json`."""
    found = read_json(record, _feedback)
    return AgentFeedback(found.id, unix_ms(found.at), found.verdict, record)


def feedback_id(feedback: AgentFeedback | Replied) -> str:
    """The id of the event that was answered."""
    return feedback.id


def source_of(feedback: AgentFeedback) -> SourceRecord:
    """The record that it came from."""
    return feedback.source


def outcomes(reply: SupportReply) -> tuple[Replied, ...]:
    """What is kept of a reply; nothing of an escalation, which a person answers."""
    event = reply.ticket.event
    return () if reply.reasons else (Replied(event.id, event.at_ms, event.channel),)


def combine(replied: Replied, feedback: AgentFeedback) -> Judged:
    """The two together."""
    return Judged(replied.at_ms, replied.channel, feedback.verdict)


def group_of(judged: Judged) -> str:
    """Figures are by channel."""
    return judged.channel


def time_of(judged: Judged) -> int:
    """The event's time."""
    return judged.at_ms


def add(counts: Counts, judged: Judged) -> Counts:
    """The counts with a verdict more."""
    before = counts.by_verdict.get(judged.verdict, 0)
    return Counts({**counts.by_verdict, judged.verdict: before + 1})


def to_record(window: Window, counts: Counts) -> OutputRecord:
    """The figures of a channel in a window, keyed by both: how many had feedback, and the share of each verdict."""
    start, end = (datetime.fromtimestamp(ms / 1_000, UTC).isoformat() for ms in (window.start_ms, window.end_ms))
    total = sum(counts.by_verdict.values())
    facts = {
        "id": f"{window.group}/{start}/{window.revision}",
        "channel": window.group,
        "window_start": start,
        "window_end": end,
        "revision": window.revision,
        "feedback": total,
        **{verdict: counts.by_verdict.get(verdict, 0) for verdict in VERDICTS},
        **{f"{verdict}_share": round(counts.by_verdict.get(verdict, 0) / total, 6) for verdict in VERDICTS},
    }
    return OutputRecord(
        QUALITY,
        orjson.dumps(facts),
        key=f"{window.group}/{start}".encode(),
        event_time_ms=window.start_ms,
        id=str(facts["id"]),
    )


FEEDBACK = Feedback(
    topic="support.feedback",
    parse=parse,
    read_id=read_id,
    feedback_type=AgentFeedback,
    feedback_id=feedback_id,
    source_of=source_of,
    outcome_type=Replied,
    outcomes=outcomes,
    outcome_id=feedback_id,
    combine=combine,
    pair_type=Judged,
    tally=Tally(group_of, time_of, Counts, add, to_record),
    quality_topic=QUALITY,
    dead_letter_topic="support.feedback.dead-letters",
)
