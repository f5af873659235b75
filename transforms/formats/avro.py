"""Avro (specification 1.12) as JSON and back, by `fastavro`."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import fastavro
import msgspec

from transforms.errors import BadEvent, BadReply, SettingsError
from transforms.formats.registry import Schema


def parse(schema: Schema) -> Any:
    """The schema as `fastavro` takes it, with the named types that it refers to.

    Raises SettingsError where it is none, and where a record of it may hold itself: such records nest as deep as their bytes say, and
    `fastavro` reads them on the stack of the process, which a malicious one would end.
    """
    named: dict[str, Any] = {}
    try:
        for text in _texts(schema):
            parsed = fastavro.parse_schema(msgspec.json.decode(text), named_schemas=named)
        recursive = _recursive(parsed, named, {})
    except Exception as error:  # noqa: BLE001 - fastavro raises what the schema makes it stumble over
        raise SettingsError(f"The schema is no Avro: {_words(error)}") from None
    if recursive:
        raise SettingsError(f"The schema is recursive: {recursive} may hold itself, and such records are not read.")
    return parsed


def _recursive(schema: Any, named: Mapping[str, Any], seen: dict[str, bool]) -> str | None:
    """The name of a type that may hold itself. `seen` says of each name whether all below it was looked at."""
    if isinstance(schema, list):
        return next(filter(None, (_recursive(one, named, seen) for one in schema)), None)
    name = schema if isinstance(schema, str) else schema.get("name")
    if isinstance(schema, str) and schema not in named:
        return None
    if name in seen:
        return None if seen[name] else name
    found: Mapping[str, Any] = named[schema] if isinstance(schema, str) else schema
    if name is not None:
        seen[name] = False
    inner = [field["type"] for field in found.get("fields", ())]
    inner += [found[key] for key in ("items", "values") if key in found]
    below = _recursive(inner, named, seen)
    if name is not None:
        seen[name] = True
    return below


def _texts(schema: Schema) -> Iterable[str]:
    """What it refers to first, the schema itself last."""
    for _, below in schema.references:
        yield from _texts(below)
    yield schema.text


def record_name(schema: Schema) -> str:
    """The full name of the schema's record. Raises SettingsError where the schema is no record."""
    parsed = parse(schema)
    if not isinstance(parsed, dict) or parsed.get("type") != "record":
        raise SettingsError("The schema is Avro, but not of a record; an event or reply is one.")
    return str(parsed["name"])


class AvroReader:
    """Reads payloads with the schemas they were written with, seen through the reader's own where there is one.

    Resolution is Avro's ("Schema Resolution"): what the writer has and the reader has not is skipped, what the writer lacks takes
    the reader's default.
    """

    def __init__(self, reader: Schema | None) -> None:
        self._reader = None if reader is None else parse(reader)
        self._parsed: dict[Schema, Any] = {}

    def read(self, payload: bytes, writer: Schema | None) -> Any:
        """The payload, ready for `msgspec.json`, which writes bytes as base64, times as RFC 3339, decimals and UUIDs as strings.

        A name whose value is null is left out. Without `writer` it was written with the reader's schema.

        Raises BadEvent: ``format-schema`` where the writer's schema is no Avro, ``format-resolution`` where the reader cannot read
        what it writes, ``format-data`` where the payload is not as the schema says.
        """
        written: Any
        written, read_as = (self._reader, None) if writer is None else (self._writer(writer), self._reader)
        data = io.BytesIO(payload)
        try:
            value = _without_nulls(fastavro.schemaless_reader(data, written, read_as))
        except fastavro.read.SchemaResolutionError as error:
            raise BadEvent(
                "format-resolution", f"The reader's schema cannot read what the writer's schema wrote: {_words(error)}"
            ) from None
        except Exception as error:  # noqa: BLE001 - fastavro raises what the bytes make it stumble over
            raise BadEvent(
                "format-data", f"The payload is not the Avro that its schema says: {_words(error)}"
            ) from None
        if data.tell() != len(payload):
            raise BadEvent("format-data", f"{len(payload) - data.tell()} bytes are left behind the Avro payload.")
        return value

    def _writer(self, schema: Schema) -> Any:
        if schema not in self._parsed:
            if schema.type != "AVRO":
                raise BadEvent("format-schema", f"The topic is Avro, but the record's schema is {schema.type}.")
            try:
                self._parsed[schema] = parse(schema)
            except SettingsError as error:
                raise BadEvent("format-schema", str(error)) from None
        return self._parsed[schema]


class AvroWriter:
    """Writes payloads with one schema. A field that the schema does not have is refused, not dropped."""

    def __init__(self, schema: Schema) -> None:
        self._schema = parse(schema)

    def write(self, value: Any) -> bytes:
        """The payload. Raises BadReply ``format-data`` for a value that is not as the schema says."""
        data = io.BytesIO()
        try:
            fastavro.schemaless_writer(data, self._schema, value, strict_allow_default=True)
        except Exception as error:  # noqa: BLE001 - as above
            raise BadReply("format-data", f"The record does not fit the topic's Avro schema: {_words(error)}") from None
        return data.getvalue()


def _without_nulls(value: Any) -> Any:
    """What `fastavro` gives, without names whose value is null: Avro's way to say that a field is not there."""
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{': ' + text if text else ''}."
