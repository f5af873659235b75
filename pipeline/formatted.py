"""A case whose topics are in other formats than JSON: the same case, with what it reads decoded and what it writes encoded.

A case's functions know JSON alone. The record that travels with an event is the one that came in, byte for byte, so that a dead
letter holds that and not its JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from pipeline.case import Case
from transforms.errors import BadEvent
from transforms.formats.codec import Decode, Encode
from transforms.formats.settings import TopicFormat
from transforms.records import OutputRecord, SourceRecord


def formatted(
    case: Case, formats: Mapping[str, TopicFormat], topics: Mapping[str, str], written: tuple[str, ...]
) -> Case:
    """The case with what it parses and routes in the formats of their topics; the case itself where all of them are JSON.

    `topics` are output topics renamed: a format is that of the new name. `written` are the topics that are encoded; a registry has
    been asked for the ids of their schemas.
    """
    if not formats:
        return case
    decode = Decode(formats)
    encode = Encode({topic: found for topic, found in formats.items() if topic in written})
    feedback = case.feedback
    return dataclasses.replace(
        case,
        parse=Parse(case.parse, decode),
        read_id=ReadId(case.read_id, decode),
        route=Route(case.route, encode, topics),
        feedback=None
        if feedback is None
        else dataclasses.replace(
            feedback, parse=Parse(feedback.parse, decode), read_id=ReadId(feedback.read_id, decode)
        ),
    )


class Parse:
    """A case's `parse`, of a record that is decoded first. The event, or feedback, keeps the record that came in.

    Cases keep it in the field `source` of both.
    """

    def __init__(self, parse: Callable[[SourceRecord], Any], decode: Decode) -> None:
        self._parse = parse
        self._decode = decode

    def setup(self) -> None:
        """Makes the decoder ready on the worker."""
        self._decode.setup()

    def __call__(self, record: SourceRecord) -> Any:
        """Raises BadEvent where the record cannot be decoded or parsed."""
        decoded = self._decode(record)
        event = self._parse(decoded)
        return event if decoded is record else msgspec.structs.replace(event, source=record)


class ReadId:
    """A case's `read_id`, of a record that is decoded first; None where it cannot be decoded."""

    def __init__(self, read_id: Callable[[SourceRecord], str | None], decode: Decode) -> None:
        self._read_id = read_id
        self._decode = decode

    def __call__(self, record: SourceRecord) -> str | None:
        """Never raises for what a record holds."""
        try:
            return self._read_id(self._decode(record))
        except BadEvent:
            return None


class Route:
    """A case's `route`, whose record is then encoded as the format of its topic says."""

    def __init__(self, route: Callable[[Any], OutputRecord], encode: Encode, topics: Mapping[str, str]) -> None:
        self._route = route
        self._encode = encode
        self._topics = dict(topics)

    def setup(self) -> None:
        """Makes the encoder ready on the worker."""
        self._encode.setup()

    def __call__(self, output: Any) -> OutputRecord:
        """Raises BadReply where the record does not fit its topic's schema."""
        record = self._route(output)
        if record.value is None:
            return record
        value = self._encode.value(self._topics.get(record.topic, record.topic), record.value)
        return msgspec.structs.replace(record, value=value)
