"""Personal data that has a form: found, taken out for placeholders such as ``[EMAIL_1]``, and put back where a rule allows it.

Kinds in the order of precedence, where two overlap the earlier takes the place:

1. ``EMAIL``: an address as RFC 5322's dot-atom, with a domain (RFC 1035 labels, two at least).
2. ``IBAN``: ISO 13616: two letters, two check digits, up to 30 further characters, groups of four allowed; the number, rearranged,
   is 1 modulo 97 (ISO 7064). Where the country is known its length must be right.
3. ``CARD``: 13 to 19 digits, single spaces or dashes between them, whose Luhn sum (ISO/IEC 7812-1, annex B) is 0 modulo 10,
   that begin like a card's issuer does (2 to 6).
4. ``MAC``: six pairs of hexadecimal digits (IEEE 802), with colons or dashes throughout, or three groups of four with dots.
5. ``IPV6``: an address that Python's `ipaddress` reads (RFC 4291), with two colons at least and a digit.
6. ``IPV4``: four numbers up to 255 with dots, not part of a longer number such as a version with five.
7. ``PHONE``: what `phonenumbers` (Google's libphonenumber) takes for a valid number of a region; also a possible one of nine
   digits at least that begins with ``+``, ``0`` or ``(``, and no date.

What has no form, names and postal addresses, is not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec
import phonenumbers

KINDS = ("EMAIL", "IBAN", "CARD", "MAC", "IPV6", "IPV4", "PHONE")
"""Every kind, in the order of precedence."""

PLACEHOLDER = re.compile(r"\[(" + "|".join(KINDS) + r")_([1-9][0-9]*)\]")
"""The form of a placeholder."""

_LOOKALIKE = re.compile(r"\[(?=(?:" + "|".join(KINDS) + r")_[0-9])", re.IGNORECASE)
_EMAIL = re.compile(
    r"(?<![\w.+-])[\w.!#$%&'*+/=?^`{|}~-]*[\w+](?<!\.)@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,63}(?![\w-])",
    re.UNICODE,
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,30}(?![A-Za-z0-9])")
_IBAN_HEAD = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}")
_CARD = re.compile(r"(?<![\d-])[2-6][0-9](?:[ -]?[0-9]){11,17}(?![\d]|-\d)")
_MAC = re.compile(
    r"(?<![0-9A-Za-z:.-])(?:(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}|(?:[0-9A-Fa-f]{2}-){5}[0-9A-Fa-f]{2}"
    r"|(?:[0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4})(?![0-9A-Za-z:-])"
)
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])[0-9A-Fa-f:]{2,39}(?:(?<=:)[0-9]{1,3}(?:\.[0-9]{1,3}){3})?(?![0-9A-Za-z:])")
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9])")
_AFTER_DIGITS = re.compile(r"[0-9][ -]?$")
_DATE = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}")

# ISO 13616 registry: the lengths of the countries that use the euro and some neighbours.
_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        r"([A-Z]{2})(\d\d)",
        "AT20 BE16 BG22 CH21 CY28 CZ24 DE22 DK18 EE20 ES24 FI18 FR27 GB22 GR27 HR21 HU28 IE22 IS26 IT27 LI21 LT20 LU20 LV21 MC27 "
        "MT31 NL18 NO15 PL28 PT25 RO24 SE24 SI19 SK24 SM27 TR26",
    )
}

Span = tuple[int, int, str]
"""Where something begins and ends in a text, and its kind."""


class Placeholder(msgspec.Struct, frozen=True, array_like=True):
    """What stands in the text instead (``[EMAIL_1]``), the kind, and what stood there."""

    name: str
    kind: str
    value: str


class Redacted(msgspec.Struct, frozen=True, array_like=True):
    """A text without personal data of the kinds of this module, and what was taken out, in the order of the text."""

    text: str
    placeholders: tuple[Placeholder, ...]


def find_personal_data(text: str, regions: Sequence[str], keep: re.Pattern[str] | None = None) -> list[Span]:
    """Return what is personal in `text`, in order, without overlaps. `regions` are those of telephone numbers without a ``+``.

    What `keep` matches is left alone whatever it looks like: order numbers.
    """
    taken: list[Span] = [(*match.span(), "") for match in keep.finditer(text)] if keep else []
    for kind, spans in (
        ("EMAIL", (match.span() for match in _EMAIL.finditer(text))),
        ("IBAN", _ibans(text)),
        ("CARD", _cards(text)),
        ("MAC", (match.span() for match in _MAC.finditer(text))),
        ("IPV6", _ipv6s(text)),
        ("IPV4", _ipv4s(text)),
        ("PHONE", _phones(text, regions)),
    ):
        for start, end in spans:
            if all(end <= other[0] or other[1] <= start for other in taken):
                taken.append((start, end, kind))
    return sorted(span for span in taken if span[2])


def redact(text: str, regions: Sequence[str], keep: re.Pattern[str] | None = None) -> Redacted:
    """Return `text` with a placeholder for each piece of personal data; equal pieces share one.

    Text of the customer's that has the form of a placeholder loses its bracket first, so that nobody can ask for what was
    taken out. With its placeholders put back, what stays is the text.
    """
    text = _LOOKALIKE.sub("(", text)
    pieces: list[str] = []
    known: dict[tuple[str, str], Placeholder] = {}
    counts = dict.fromkeys(KINDS, 0)
    after = 0
    for start, end, kind in find_personal_data(text, regions, keep):
        value = text[start:end]
        if (kind, value) not in known:
            counts[kind] += 1
            known[kind, value] = Placeholder(f"[{kind}_{counts[kind]}]", kind, value)
        pieces += (text[after:start], known[kind, value].name)
        after = end
    return Redacted("".join((*pieces, text[after:])), tuple(known.values()))


def restore(text: str, placeholders: Collection[Placeholder], kinds: Collection[str]) -> str:
    """Return `text` with the values of those `placeholders` whose kind is among `kinds`; the others stay as they are."""
    values: Mapping[str, str] = {one.name: one.value for one in placeholders if one.kind in kinds}
    return PLACEHOLDER.sub(lambda match: values.get(match[0], match[0]), text)


def luhn(digits: str) -> bool:
    """Tell whether the last of `digits` is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (int(digit) * (2 if at % 2 else 1) for at, digit in enumerate(reversed(digits)))
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def iban_is_valid(iban: str) -> bool:
    """Tell whether `iban`, without spaces, has the right length for its country and the remainder 1 (ISO 7064, MOD 97-10)."""
    iban = iban.upper()
    if not 15 <= len(iban) <= 34 or len(iban) != _IBAN_LENGTHS.get(iban[:2], len(iban)):
        return False
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    """Those that are valid; of one that runs on into the next word the longest part that is."""
    for head in _IBAN_HEAD.finditer(text):
        match = _IBAN.match(text, head.start()) or re.compile(r"[A-Za-z0-9](?:[ -]?[A-Za-z0-9])*").match(
            text, head.start()
        )
        if match is None:
            continue
        ends = [at for at in range(match.end(), match.start() + 14, -1) if at == len(text) or not text[at].isalnum()]
        for end in ends:
            compact = re.sub("[ -]", "", text[match.start() : end])
            if compact.isalnum() and compact.isascii() and iban_is_valid(compact):
                yield match.start(), end
                break


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        if luhn(re.sub("[ -]", "", match[0])):
            yield match.span()


def _ipv4s(text: str) -> Iterator[tuple[int, int]]:
    for match in _IPV4.finditer(text):
        if all(int(part) <= 255 for part in match[0].split(".")):
            yield match.span()


def _ipv6s(text: str) -> Iterator[tuple[int, int]]:
    for match in _IPV6.finditer(text):
        found = match[0].rstrip(":") if match[0].endswith(":") and not match[0].endswith("::") else match[0]
        if found.count(":") < 2 or not any(char.isdigit() for char in found):
            continue
        try:
            ipaddress.IPv6Address(found)
        except ValueError:
            continue
        yield match.start(), match.start() + len(found)


def _phones(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    if sum(char.isdigit() for char in text) < 7:
        return
    for region in regions or (None,):
        for match in phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.VALID):
            if not _DATE.match(match.raw_string):
                yield match.start, match.end
    for region in regions or (None,):
        for match in phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.POSSIBLE):
            digits = sum(char.isdigit() for char in match.raw_string)
            begins = match.raw_string[0] in "+0(" and not _AFTER_DIGITS.search(text, 0, match.start)
            if begins and digits >= 9 and not _DATE.match(match.raw_string):
                yield match.start, match.end


def placeholders_in(text: str) -> list[str]:
    """Return the placeholders that stand in `text`, each once, in order."""
    return list(dict.fromkeys(match[0] for match in PLACEHOLDER.finditer(text)))
