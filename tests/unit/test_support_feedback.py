"""What agents made of replies: read, kept, counted."""

from __future__ import annotations

import json

import msgspec
import pytest

from pipeline.cases.support import feedback
from pipeline.cases.support.answer import SupportReply
from tests.unit.test_support_rules import ticket
from transforms.errors import BadEvent
from transforms.records import Answer, SourceRecord
from transforms.tally import Window


def test_feedback_is_read_and_refused() -> None:
    """There are three verdicts, and no other."""
    good = {"id": "c1", "at": "2026-11-01T10:00:00Z", "verdict": "edited"}
    assert feedback.parse(SourceRecord(value=json.dumps(good).encode())).verdict == "edited"
    for wrong in ("Edited", "", None):
        with pytest.raises(BadEvent):
            feedback.parse(SourceRecord(value=json.dumps({**good, "verdict": wrong}).encode()))


def test_a_reply_is_kept_and_an_escalation_is_not() -> None:
    """What a person answers has no reply that an agent could judge."""
    reply = SupportReply(ticket(), Answer("", "m", "http://127.0.0.1"))
    (kept,) = feedback.outcomes(reply)
    assert (kept.id, kept.channel) == (reply.ticket.id, reply.ticket.event.channel)
    assert feedback.outcomes(msgspec.structs.replace(reply, reasons=("angry",))) == ()


def test_the_shares_of_a_window() -> None:
    """Three of four replies of a channel were of use."""
    counts = feedback.Counts()
    for verdict in ("accepted", "accepted", "edited", "rejected"):
        counts = feedback.add(counts, feedback.Judged(0, "chat", verdict))
    written = feedback.to_record(Window("chat", 0, 3_600_000, 2), counts)
    facts = json.loads(written.value or b"")
    assert (facts["channel"], facts["revision"], facts["feedback"]) == ("chat", 2, 4)
    assert [facts[f"{verdict}_share"] for verdict in feedback.VERDICTS] == [0.5, 0.25, 0.25]
    assert (written.topic, written.key) == ("support.quality", b"chat/1970-01-01T00:00:00+00:00")
