"""Personal data is found by kind, leaves a placeholder, and comes back only where that is allowed."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from transforms.enrich.redact import (
    KINDS,
    PLACEHOLDER,
    find_personal_data,
    iban_is_valid,
    luhn,
    placeholders_in,
    redact,
    restore,
)

REGIONS = ("GB", "US")
ORDER = re.compile(r"\bORD-\d+\b")


def kinds(text: str, *regions: str) -> list[tuple[str, str]]:
    """What was found, with its kind."""
    return [(kind, text[start:end]) for start, end, kind in find_personal_data(text, regions or REGIONS, ORDER)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("write to amelia.hart+shop@mail.example.com.", [("EMAIL", "amelia.hart+shop@mail.example.com")]),
        ("(o'neil@example.co.uk)", [("EMAIL", "o'neil@example.co.uk")]),
        ("müller@example.de", [("EMAIL", "müller@example.de")]),
        ("at@home, @you, a@b", []),
        ("DE89 3704 0044 0532 0130 00 please", [("IBAN", "DE89 3704 0044 0532 0130 00")]),
        ("iban gb29nwbk60161331926819", [("IBAN", "gb29nwbk60161331926819")]),
        ("FR14 2004 1010 0505 0001 3M02 606 or later", [("IBAN", "FR14 2004 1010 0505 0001 3M02 606")]),
        ("DE88 3704 0044 0532 0130 00", []),
        ("card 4111 1111 1111 1111, thanks", [("CARD", "4111 1111 1111 1111")]),
        ("378282246310005", [("CARD", "378282246310005")]),
        ("5555-5555-5555-4444", [("CARD", "5555-5555-5555-4444")]),
        ("4111 1111 1111 1112", []),
        (
            "00:1A:2b:3C:4d:5E and 00-1a-2b-3c-4d-5e, 001a.2b3c.4d5e",
            [("MAC", "00:1A:2b:3C:4d:5E"), ("MAC", "00-1a-2b-3c-4d-5e"), ("MAC", "001a.2b3c.4d5e")],
        ),
        ("from 2001:db8::1, or fe80::1:2", [("IPV6", "2001:db8::1"), ("IPV6", "fe80::1:2")]),
        ("at 10:30:15 or a::b", []),
        ("192.0.2.17.", [("IPV4", "192.0.2.17")]),
        ("version 1.2.3.4.5, 1.2.3 or 300.1.1.1", []),
        ("call +44 20 7946 0958", [("PHONE", "+44 20 7946 0958")]),
        ("call (202) 555-0143 or 07700 900123", [("PHONE", "(202) 555-0143"), ("PHONE", "07700 900123")]),
        ("ORD-48213, on 01.03.2026, for 1,234.50 EUR, 2 of 12345678", []),
        ("ORD-4111111111111111", []),
    ],
)
def test_what_is_found(text: str, found: list[tuple[str, str]]) -> None:
    """Each kind is found by its form and its check digits, and what only looks like it is not."""
    assert kinds(text) == found


@pytest.mark.parametrize(
    ("text", "region", "number"),
    [
        ("unter 030 23125 014 zu erreichen", "DE", "030 23125 014"),
        ("au 01 99 00 12 34", "FR", "01 99 00 12 34"),
        ("al 612 34 56 78", "ES", "612 34 56 78"),
        ("op 020-1234567", "NL", "020-1234567"),
        ("03-1234-5678 に", "JP", "03-1234-5678"),
        ("pod 512 345 678", "PL", "512 345 678"),
    ],
)
def test_telephone_numbers_of_a_region(text: str, region: str, number: str) -> None:
    """A number without a plus is found where its region is named."""
    assert kinds(text, region) == [("PHONE", number)]


def test_the_earlier_kind_takes_the_place() -> None:
    """Digits in an address or an IBAN are no card and no telephone number."""
    text = "4111111111111111@example.com, GB29 NWBK 6016 1331 9268 19"
    assert [kind for kind, _ in kinds(text)] == ["EMAIL", "IBAN"]


def test_equal_values_share_a_placeholder() -> None:
    """The same address twice is one placeholder; another one is the next."""
    found = redact("a@example.com b@example.com a@example.com", REGIONS)
    assert found.text == "[EMAIL_1] [EMAIL_2] [EMAIL_1]"
    assert [one.value for one in found.placeholders] == ["a@example.com", "b@example.com"]


def test_a_customer_cannot_write_a_placeholder() -> None:
    """Text in the form of a placeholder is no placeholder, so that what was taken out cannot be asked for."""
    found = redact("my card 4111 1111 1111 1111, say [CARD_1] and [email_1]", REGIONS)
    assert found.text == "my card [CARD_1], say (CARD_1] and (email_1]"
    assert placeholders_in(found.text) == ["[CARD_1]"]


def test_restore_follows_the_rule() -> None:
    """Only the kinds that are allowed come back; unknown placeholders stay."""
    found = redact("a@example.com 4111 1111 1111 1111", REGIONS)
    reply = "We write to [EMAIL_1] about [CARD_1], not to [EMAIL_2]."
    assert (
        restore(reply, found.placeholders, {"EMAIL"}) == "We write to a@example.com about [CARD_1], not to [EMAIL_2]."
    )
    assert restore(reply, found.placeholders, ()) == reply


def number_with_luhn(chance: random.Random) -> str:
    body = str(chance.randrange(2, 7)) + "".join(str(chance.randrange(10)) for _ in range(chance.randrange(11, 18)))
    return next(body + str(digit) for digit in range(10) if luhn(body + str(digit)))


def iban_of(chance: random.Random, country: str, length: int) -> str:
    body = "".join(str(chance.randrange(10)) for _ in range(length - 4))
    digits = int("".join(str(int(char, 36)) for char in f"{body}{country}00"))
    return f"{country}{98 - digits % 97:02d}{body}"


def one_of_each(chance: random.Random) -> list[tuple[str, str]]:
    hexes = ["".join(chance.choices("0123456789abcdef", k=2)) for _ in range(6)]
    return [
        ("EMAIL", f"user{chance.randrange(10**6)}@mail{chance.randrange(99)}.example.org"),
        ("IBAN", iban_of(chance, *chance.choice([("DE", 22), ("NL", 18), ("ES", 24), ("PL", 28)]))),
        ("CARD", number_with_luhn(chance)),
        ("MAC", chance.choice(":-").join(hexes)),
        ("IPV6", f"2001:db8:{chance.randrange(1, 65536):x}::{chance.randrange(1, 65536):x}"),
        ("IPV4", ".".join(str(chance.randrange(256)) for _ in range(4))),
        ("PHONE", f"+4420794{chance.randrange(60000, 61000):05d}"),
    ]


@pytest.mark.parametrize("seed", range(8))
def test_made_up_data_is_found_and_comes_back(seed: int) -> None:
    """Of a hundred texts with one value of each kind, every value leaves, and restoring all kinds gives the text again."""
    chance = random.Random(seed)
    for _ in range(100):
        parts = one_of_each(chance)
        chance.shuffle(parts)
        text = " and ".join(value for _, value in parts)
        found = redact(text, REGIONS)
        assert [(one.kind, one.value) for one in found.placeholders] == parts, text
        assert restore(found.text, found.placeholders, KINDS) == text


@pytest.mark.parametrize("seed", range(4))
def test_any_text_comes_back(seed: int) -> None:
    """Whatever the text, spans are in order and apart, and restoring gives the text but for look-alikes of placeholders."""
    chance = random.Random(seed)
    for _ in range(300):
        text = "".join(chance.choices("ab@.:-+ 0123456789DEF[]_/ü", k=chance.randrange(80)))
        spans = find_personal_data(text, REGIONS)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
        found = redact(text, REGIONS)
        assert restore(found.text, found.placeholders, KINDS) == text
        assert len(PLACEHOLDER.findall(found.text)) == len(spans)


@pytest.mark.parametrize(
    ("number", "valid"), [("79927398713", True), ("79927398710", False), ("4111111111111111", True), ("0", True)]
)
def test_luhn(number: str, valid: bool) -> None:
    """The check digit of the standard's own example is right, and its neighbours are wrong."""
    assert luhn(number) is valid


@pytest.mark.parametrize(
    ("iban", "valid"),
    [
        ("DE89370400440532013000", True),
        ("DE8937040044053201300", False),
        ("GB29NWBK60161331926819", True),
        ("GB28NWBK60161331926819", False),
    ],
)
def test_iban(iban: str, valid: bool) -> None:
    """The registry's examples are valid; another check digit or length is not."""
    assert iban_is_valid(iban) is valid
