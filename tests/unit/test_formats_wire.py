"""The prefixes and headers that name a record's schema (`transforms.formats.wire`)."""

from __future__ import annotations

import pytest

from transforms.errors import BadEvent
from transforms.formats.wire import Framed, SchemaId, frame, read_path, read_ref, unframe, write_path

# The bytes of Confluent's own test of its GUID prefix.
GUID_PREFIX = bytes.fromhex("01 89791762 2336 4186 9674 299b90a802e2".replace(" ", ""))
GUID = SchemaId("guid", "89791762-2336-4186-9674-299b90a802e2")


@pytest.mark.parametrize(
    ("value", "schema_id"),
    [
        (b"\x00\x00\x00\x00\x01load", SchemaId("id", 1)),
        (b"\x00\xff\xff\xff\xffload", SchemaId("id", 2**32 - 1)),
        (GUID_PREFIX + b"load", GUID),
        (b"\x00\x00\x00\x00\x00\x00\x00\x01\x02load", SchemaId("long", 258)),
    ],
)
def test_each_prefix_is_read(value: bytes, schema_id: SchemaId) -> None:
    """Four bytes, a GUID, and eight bytes are told apart, and the payload is what follows."""
    assert unframe(value, ()) == Framed(schema_id, b"load")


@pytest.mark.parametrize(
    ("headers", "framed"),
    [
        ((("__value_schema_id", GUID_PREFIX),), Framed(GUID, b"load", path=b"")),
        ((("__value_schema_id", GUID_PREFIX + b"\x02\x02"),), Framed(GUID, b"load", path=b"\x02\x02")),
        ((("__value_schema_id", b"\x00\x00\x00\x00\x07"),), Framed(SchemaId("id", 7), b"load", path=b"")),
        ((("apicurio.value.globalId", bytes(7) + b"\x05"),), Framed(SchemaId("global", 5), b"load", pathless=True)),
        (
            (("apicurio.value.contentId", bytes(7) + b"\x05"), ("apicurio.protobuf.type", b"Two")),
            Framed(SchemaId("content", 5), b"load", message="Two", pathless=True),
        ),
    ],
)
def test_each_header_is_read(headers: tuple[tuple[str, bytes], ...], framed: Framed) -> None:
    """A header of Confluent's or Apicurio's names the schema, and the value is the payload alone."""
    assert unframe(b"load", (("other", None), *headers)) == framed


@pytest.mark.parametrize(
    ("value", "headers", "words"),
    [
        (b"", (), "is empty"),
        (b'{"id": 1}', (), "begins with 7b"),
        (b"\x00\x00\x00\x01", (), "has 4 bytes"),
        (b"\x00\x00\x00\x00\x00\x00\x00\x01", (), "has 8 bytes"),
        (GUID_PREFIX[:-1], (), "has 16 bytes"),
        (b"load", (("apicurio.value.globalId", b"\x01"),), "an id has 8"),
        (b"load", (("__value_schema_id", b"\x02"),), "The header __value_schema_id begins with 02"),
    ],
)
def test_what_names_no_schema_is_refused(value: bytes, headers: tuple[tuple[str, bytes], ...], words: str) -> None:
    """A value without a prefix that is known is bad, and the sentence says what it begins with."""
    with pytest.raises(BadEvent, match=words) as caught:
        unframe(value, headers)
    assert caught.value.kind == "format-prefix"


@pytest.mark.parametrize("path", [(0,), (1,), (0, 0), (2, 1, 3), (100, 3)])
def test_a_path_survives(path: tuple[int, ...]) -> None:
    """What `write_path` writes, `read_path` reads, and leaves the rest."""
    assert read_path(write_path(path) + b"rest") == (path, b"rest")


def test_the_first_message_is_one_zero() -> None:
    """The path [0] is a single zero byte, and others are zigzag varints, as Confluent writes them."""
    assert write_path((0,)) == b"\x00"
    assert write_path((1, 0)) == b"\x04\x02\x00"
    assert read_path(b"\x02\x00rest") == ((0,), b"rest"), "the long form of the first message"


@pytest.mark.parametrize("data", [b"", b"\x04\x02", b"\x01", b"\xff\xff\xff\xff\xff\xff", b"\x7e"])
def test_what_is_no_path_is_refused(data: bytes) -> None:
    """A path that is cut off, negative or longer than any is bad."""
    with pytest.raises(BadEvent, match="path"):
        read_path(data)


def test_the_name_that_apicurio_writes_is_read() -> None:
    """Apicurio's delimited name is read; a path, or bytes that only begin like it, are not."""
    assert read_ref(b"\x07\x0a\x05Eventrest") == ("Event", b"rest")
    for data in (
        b"\x00rest",
        b"\x04\x02\x00rest",
        b"\x07\x0a\x06Eventrest",
        b"\x07\x0a\x05E v!trest",
        b"\x07\x0a\x05Ev",
    ):
        assert read_ref(data) is None


def test_a_frame_is_version_0() -> None:
    """What is written has the prefix of version 0, and is read again."""
    assert frame(7, b"load") == b"\x00\x00\x00\x00\x07load"
    assert unframe(frame(7, b"load", (1,)), ()) == Framed(SchemaId("id", 7), b"\x02\x02load")
