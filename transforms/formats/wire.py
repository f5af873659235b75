"""How a record says which schema its value was written with: the prefixes and headers of Confluent and of Apicurio.

| form | where | what |
|---|---|---|
| Confluent, version 0 | value | ``00``, the id in 4 bytes, then the payload |
| Confluent, version 1 | value | ``01``, the GUID in 16 bytes, then the payload |
| Confluent | header ``__value_schema_id`` | either of the two prefixes; the value is the payload |
| Apicurio, 8 bytes | value | ``00``, the id in 8 bytes, then the payload |
| Apicurio | header ``apicurio.value.globalId``, ``…contentId`` | the id in 8 bytes; the value is the payload |

All numbers are big-endian. Sources: Confluent's "Wire format" and the classes of its Python client
(``confluent_kafka.schema_registry``); Apicurio's ``Legacy8ByteIdHandler``, ``Default4ByteIdHandler`` and ``SerdeHeaders``.

The 8-byte form is told from the 4-byte form by its first four bytes: they are zero as long as ids stay below 2³², and no registry
gives out the id 0.

In Protobuf the payload begins with the path of the message in its schema file, see `read_path`; in a header the path stands behind
the id.
"""

from __future__ import annotations

import struct
import uuid
from typing import Literal

import msgspec

from transforms.errors import BadEvent
from transforms.records import Headers

CONFLUENT_HEADER = "__value_schema_id"
APICURIO_HEADERS = {"apicurio.value.globalId": "global", "apicurio.value.contentId": "content"}
APICURIO_MESSAGE_HEADER = "apicurio.protobuf.type"

MAX_PATH = 32
"""The deepest path of a Protobuf message that is read; nothing real nests deeper."""

_ZEROS = bytes(4)


class SchemaId(msgspec.Struct, frozen=True):
    """A schema as a record names it.

    `kind` says whose number `value` is: ``id`` and ``guid`` of the Confluent interface, ``global`` and ``content`` of Apicurio's
    own, ``long`` the number of an 8-byte prefix, which is one of these two as the registry's settings say.
    """

    kind: Literal["id", "guid", "global", "content", "long"]
    value: int | str

    def __str__(self) -> str:
        """For sentences, such as ``id 7``."""
        words = {"global": "global id", "content": "content id", "long": "8-byte id", "guid": "GUID"}
        return f"{words.get(self.kind, self.kind)} {self.value}"


class Framed(msgspec.Struct, frozen=True):
    """A value taken apart. `schema_id` is None where the topic has no registry and the value is the payload.

    `path` holds the bytes of a Protobuf path that stood in a header; None where it stands at the start of the payload.
    `message` is the name of a Protobuf message that stood in a header of Apicurio's. `pathless`: the payload begins with no path.
    """

    schema_id: SchemaId | None
    payload: bytes
    path: bytes | None = None
    message: str | None = None
    pathless: bool = False


def unframe(value: bytes, headers: Headers) -> Framed:
    """Takes a value apart, headers before prefix, as Confluent's own readers do.

    Raises BadEvent ``format-prefix`` where neither names a schema.
    """
    found = {name: content for name, content in headers if content is not None}
    if CONFLUENT_HEADER in found:
        schema_id, path = _confluent(found[CONFLUENT_HEADER], f"The header {CONFLUENT_HEADER}")
        return Framed(schema_id, value, path=path)
    for name, kind in APICURIO_HEADERS.items():
        if name in found:
            return _apicurio(name, kind, found, value)
    schema_id, payload = _confluent(value, "The value")
    return Framed(schema_id, payload)


def _apicurio(name: str, kind: str, headers: dict[str, bytes], value: bytes) -> Framed:
    if len(headers[name]) != 8:
        raise BadEvent("format-prefix", f"The header {name} has {len(headers[name])} bytes; an id has 8.")
    message = headers.get(APICURIO_MESSAGE_HEADER)
    schema_id = msgspec.convert({"kind": kind, "value": int.from_bytes(headers[name])}, SchemaId)
    return Framed(
        schema_id, value, message=None if message is None else message.decode("utf-8", "replace"), pathless=True
    )


def _confluent(data: bytes, what: str) -> tuple[SchemaId, bytes]:
    """The id at the start of `data`, and what follows it."""
    magic = data[:1]
    if magic == b"\x01" and len(data) >= 17:
        return SchemaId("guid", str(uuid.UUID(bytes=data[1:17]))), data[17:]
    if magic == b"\x00" and data[1:5] == _ZEROS and len(data) >= 9:
        return SchemaId("long", int.from_bytes(data[1:9])), data[9:]
    if magic == b"\x00" and len(data) >= 5 and data[1:5] != _ZEROS:
        return SchemaId("id", int.from_bytes(data[1:5])), data[5:]
    if magic in {b"\x00", b"\x01"}:
        raise BadEvent("format-prefix", f"{what} has {len(data)} bytes, too few for the id of a schema.")
    begins = f"begins with {magic.hex()}" if magic else "is empty"
    raise BadEvent("format-prefix", f"{what} {begins}, which is no prefix of a schema registry (00 or 01).")


def frame(schema_id: int, payload: bytes, path: tuple[int, ...] | None = None) -> bytes:
    """A value with the prefix that every reader knows, version 0; `path` is that of a Protobuf message."""
    return struct.pack(">bI", 0, schema_id) + (b"" if path is None else write_path(path)) + payload


def write_path(path: tuple[int, ...]) -> bytes:
    """A path as Confluent writes it: its length and its numbers as zigzag varints; the first message of a file is one zero."""
    if path == (0,):
        return b"\x00"
    return b"".join(_varint(number << 1) for number in (len(path), *path))


def read_path(data: bytes) -> tuple[tuple[int, ...], bytes]:
    """A Protobuf message's path at the start of `data`, and what follows it: ``(1, 0)`` is the first message in the second.

    Raises BadEvent ``format-prefix`` for what is no path.
    """
    count, at = _read_varint(data, 0)
    count = _unzigzag(count)
    if count == 0:
        return (0,), data[at:]
    if not 0 < count <= MAX_PATH:
        raise BadEvent(
            "format-prefix", f"The payload begins with a message's path of {count} numbers, which cannot be."
        )
    numbers = []
    for _ in range(count):
        number, at = _read_varint(data, at)
        numbers.append(_unzigzag(number))
    return tuple(numbers), data[at:]


def read_ref(data: bytes) -> tuple[str, bytes] | None:
    """The message's name that Apicurio writes where Confluent writes a path, and what follows; None where there is none.

    It is a delimited Protobuf message whose field 1 is the name (``Ref`` of Apicurio's serialisers).
    """
    if len(data) < 3 or data[0] >= 0x80 or data[1] != 0x0A or data[2] != data[0] - 2 or len(data) <= data[0]:
        return None
    name = data[3 : 1 + data[0]]
    if not name.isascii() or not name.decode("ascii").replace(".", "_").isidentifier():
        return None
    return name.decode("ascii"), data[1 + data[0] :]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise BadEvent("format-prefix", "The payload does not begin with the path of a Protobuf message.")


def _unzigzag(number: int) -> int:
    return number >> 1 ^ -(number & 1)
