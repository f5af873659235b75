"""Records between steps: MessagePack that gives back the very type, in any process."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from apache_beam import coders as beam_coders
from apache_beam.coders.coders import Coder, FastPrimitivesCoder
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.typehints import Tuple

from pipeline.cases.support.answer import SupportReply
from pipeline.cases.support.case import SUPPORT
from pipeline.cases.support.events import SupportEvent
from pipeline.cases.support.ticket import Ticket
from transforms.coders import RecordCoder, coder_of, register
from transforms.records import Answer, CallFailure, DeadLetter, OutputRecord, SourceRecord

ROOT = Path(__file__).resolve().parents[2]
SOURCE = SourceRecord(b"\xff", b"k", (("h", b"1"), ("h", None)), "t", 3, 2**40, 1_700_000_000_123)
EVENT = SUPPORT.parse(SourceRecord(SUPPORT.samples.read_bytes().split(b"\n")[0], topic="t"))
TICKET = Ticket(EVENT, EVENT.text)
ANSWER = Answer("Ja – „gut“.", "m", "http://h/v1", "stop", 2, 3, 4, 5.5, 6.5)
RECORDS = [
    SOURCE,
    SourceRecord(None),
    DeadLetter(SOURCE, "ask", "timeout", "Zu spät.", 5, None),
    OutputRecord("t", None, b"", (("a", b""),), -1, "id"),
    ANSWER,
    CallFailure("timeout", "", 1),
    EVENT,
    TICKET,
    SupportReply(TICKET, ANSWER, "Ja."),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_equal(record: Any) -> None:
    """A record decodes to an equal one of the same type, with its parts of their types."""
    coder = RecordCoder(type(record))
    back = coder.decode(coder.encode(record))
    assert back == record
    assert type(back) is type(record)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_equal_records_have_equal_bytes(record: Any) -> None:
    """The encoding is deterministic: a copy has the same bytes, and so has what was decoded."""
    coder = RecordCoder(type(record))
    first = coder.encode(record)
    assert coder.encode(msgspec.structs.replace(record)) == coder.encode(coder.decode(first)) == first
    assert coder.is_deterministic()


def test_a_fresh_process_gives_the_same_type() -> None:
    """A process that knows the graph alone decodes the very type, and calls its methods."""
    proto = RecordCoder(SupportEvent).to_runner_api(PipelineContext()).SerializeToString()
    program = (
        "import base64, sys\n"
        "from apache_beam.coders.coders import Coder\n"
        "from apache_beam.portability.api import beam_runner_api_pb2 as api\n"
        "from apache_beam.runners.pipeline_context import PipelineContext\n"
        "coder = Coder.from_runner_api(api.Coder.FromString(base64.b64decode(sys.argv[1])), PipelineContext())\n"
        "record = coder.decode(base64.b64decode(sys.argv[2]))\n"
        "from pipeline.cases.support.events import SupportEvent, SupportEvent as Expected\n"
        "assert type(record) is Expected and type(coder).__name__ == 'RecordCoder'\n"
        "assert type(record.source).__name__ == 'SourceRecord'\n"
        "from pipeline.cases.support.case import SUPPORT\n"
        "from pipeline.cases.support.ticket import Ticket\n"
        "assert SUPPORT.ask(Ticket(record, record.text)).messages[1].content\n"
        "print(base64.b64encode(coder.encode(record)).decode())\n"
    )
    encoded = base64.b64encode(RecordCoder(SupportEvent).encode(EVENT)).decode()
    done = subprocess.run(
        [sys.executable, "-c", program, base64.b64encode(proto).decode(), encoded],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == encoded


class Newer(msgspec.Struct, frozen=True, array_like=True):
    """A record of a later version: one field more, with a default."""

    value: bytes
    more: str = "default"


class Older(msgspec.Struct, frozen=True, array_like=True):
    """The same record before."""

    value: bytes


class Other(msgspec.Struct, frozen=True, array_like=True):
    """A record whose first field changed its type."""

    value: int


def test_a_field_may_be_added_at_the_end() -> None:
    """State of the version before decodes, the new field having its default."""
    assert RecordCoder(Newer).decode(RecordCoder(Older).encode(Older(b"a"))) == Newer(b"a", "default")


@pytest.mark.parametrize("encoded", [b"", b"\xc1", b"\x90", b"\x91\xa1a\x00", b"\x81\xa5value\x01", b"pickle"])
def test_what_is_not_the_record_raises(encoded: bytes) -> None:
    """Bytes of another version, or none, are an error and never a guess."""
    with pytest.raises(msgspec.DecodeError):
        RecordCoder(Other).decode(encoded)
    with pytest.raises(msgspec.DecodeError):
        RecordCoder(Other).decode(RecordCoder(Older).encode(Older(b"a")))


def test_coders_of_one_type_are_equal() -> None:
    """Coders compare by their record type, so that Beam makes one of them per type."""
    assert RecordCoder(Older) == RecordCoder(Older) != RecordCoder(Newer)
    assert hash(RecordCoder(Older)) == hash(RecordCoder(Older))
    assert RecordCoder(Older) != beam_coders.BytesCoder()
    assert repr(RecordCoder(Older)) == "RecordCoder(Older)"
    assert RecordCoder(Older).to_type_hint() is Older


def test_registered_types_are_found_in_pairs() -> None:
    """Beam finds our coder for a registered type, and for a pair that holds one; for others it falls back to pickling."""
    assert isinstance(coder_of(Older), FastPrimitivesCoder)
    register(Older)
    register(Older)
    assert coder_of(Older) == RecordCoder(Older)
    assert coder_of(Tuple[bytes, Older]) == beam_coders.TupleCoder([beam_coders.BytesCoder(), RecordCoder(Older)])
    assert isinstance(coder_of(Older), Coder)
