"""What formats cost: the table, and its place in the page (`benchmarks.formats`)."""

from __future__ import annotations

import re

import pytest

from benchmarks import formats
from transforms.errors import SettingsError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "RUNS", 1)


def test_bytes_are_those_of_what_is_sent(quick: None) -> None:
    """A row says the mean length of a value with its prefix, and what it is of JSON's."""
    avro, protobuf = formats.forms("support", "event")
    value = formats.fitting(formats.SUPPORT, avro)[0]
    kind = formats.Kind("chat", [value], [avro, protobuf])
    json_row, avro_row, protobuf_row = formats.rows(kind)
    assert json_row.startswith(f"| chat (1) | JSON | {len(value)} | 100 % |")
    for row, form, prefix in ((avro_row, avro, 5), (protobuf_row, protobuf, 6)):
        size = len(formats.Encode({"t": form}).value("t", value)) + prefix
        assert row.startswith(f"| | {form.format.capitalize()} | {size} | {100 * size / len(value):.0f} % |")
        assert len(re.findall(r"[0-9.]+ \([0-9.]+–[0-9.]+\)", row)) == 2, "encode and decode, each with its range"


def test_every_sample_kind_has_records() -> None:
    """The kinds are those that the cases have, none of them empty."""
    assert {kind.name: bool(kind.values) for kind in formats.kinds()} == dict.fromkeys(
        ("chat", "email", "call", "reply", "fraud"), True
    )


def test_a_table_takes_the_place_of_the_last_one() -> None:
    """What stands before and after it stays; a page without its head is refused."""
    page = f"before\n\n{formats.HEAD}\n|---|\n| old |\n\nafter | it\n"
    assert (
        formats.with_table(page, f"{formats.HEAD}\n| new |\n") == f"before\n\n{formats.HEAD}\n| new |\n\nafter | it\n"
    )
    with pytest.raises(SettingsError, match="no table"):
        formats.with_table("nothing", "")


def test_the_page_has_the_table() -> None:
    """The reference has the table's head, so that it can be published."""
    assert formats.HEAD in formats.PAGE.read_text(encoding="utf-8")
