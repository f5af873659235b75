"""How records are encoded between steps and in state: MessagePack by `msgspec` (docs/adr/0006)."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import msgspec
from apache_beam import coders
from apache_beam.coders import coder_impl
from apache_beam.coders.coders import FastCoder
from apache_beam.typehints import typehints

from transforms.records import Answer, CallFailure, DeadLetter, OutputRecord, SourceRecord


class RecordCoder(FastCoder):  # type: ignore[misc]
    """Encodes one `msgspec.Struct` type as MessagePack, and gives back that very type in any process.

    A record that does not decode raises `msgspec.DecodeError`: state or data written by another version of the record
    is an error, never a guess. Fields may be added at the end of a record with a default; none may be moved or removed.
    """

    def __init__(self, record_type: type) -> None:
        self.record_type = record_type

    def _create_impl(self) -> coder_impl.CoderImpl:
        encoder = msgspec.msgpack.Encoder(order="deterministic")
        decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(self.record_type)
        return coder_impl.CallbackCoderImpl(encoder.encode, decoder.decode)

    def is_deterministic(self) -> bool:
        """Equal records have equal encodings."""
        return True

    def to_type_hint(self) -> type:
        """The record's type."""
        return self.record_type

    @classmethod
    def from_type_hint(cls, typehint: Any, _registry: Any) -> RecordCoder:
        """The coder of the record type `typehint`; Beam's registry calls this."""
        return cls(typehint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RecordCoder) and self.record_type is other.record_type

    def __hash__(self) -> int:
        return hash((RecordCoder, self.record_type))

    def __repr__(self) -> str:
        return f"RecordCoder({self.record_type.__qualname__})"


def register(*record_types: type) -> None:
    """Makes `RecordCoder` the coder of these types in Beam's registry. May be called again."""
    for record_type in record_types:
        beam.coders.registry.register_coder(record_type, RecordCoder)


def coder_of(element_type: Any) -> coders.Coder:
    """The coder Beam would choose for `element_type`; `Any` gets Beam's pickling fallback."""
    return beam.coders.registry.get_coder(typehints.normalize(element_type))


register(SourceRecord, DeadLetter, OutputRecord, Answer, CallFailure)
