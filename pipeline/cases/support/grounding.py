"""Is what a reply states among the facts? Order numbers, amounts of money, dates and periods of time, in nine languages.

A weekday, a name or a plain number is not looked at: they have no one form, and a wrong alarm costs a person's time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from pipeline.cases.support.returns import order_numbers

_CURRENCY = (
    r"(?:€|£|\$|¥|\uffe5|EUR\b|GBP\b|USD\b|PLN\b|JPY\b|zł|円"
    r"|euros?\b|pounds?\b|pfund\b|livres?\b|libras?\b|sterline\b|dollars?\b|dólares\b)"
)
_NUMBER = r"\d{1,3}(?:[ .,\u00a0\u202f]\d{3})+(?:[.,]\d{1,2})?|\d+(?:[.,]\d{1,2})?"
_AMOUNT = re.compile(
    rf"{_CURRENCY}\s?({_NUMBER})(?!\d)|(?<![\d.,])({_NUMBER})\s?{_CURRENCY}|(?<![\d.,])(\d+[.,]\d{{2}})(?![\d.,]?\d)",
    re.IGNORECASE,
)

_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan januar janvier enero gennaio januari stycznia styczeń janeiro",
            "february feb februar février febrero febbraio februari lutego luty fevereiro",
            "march mar märz mars marzo maart marca marzec março",
            "april apr avril abril aprile kwietnia kwiecień",
            "may mai mayo maggio mei maja maj maio",
            "june jun juni juin junio giugno czerwca czerwiec junho",
            "july jul juli juillet julio luglio lipca lipiec julho",
            "august aug août agosto augustus sierpnia sierpień",
            "september sep sept septembre septiembre settembre września wrzesień setembro",
            "october oct oktober octobre octubre ottobre października październik outubro",
            "november nov novembre noviembre listopada listopad novembro",
            "december dec dezember décembre diciembre dicembre grudnia grudzień dezembro",
        ),
        start=1,
    )
    for name in names.split()
}
_MONTH = "|".join(sorted(map(re.escape, _MONTHS), key=len, reverse=True))
_ISO = re.compile(r"(?<!\d)(\d{4})-(\d{2})-(\d{2})(?!\d)")
_DOTTED = re.compile(r"(?<![\d.,/])(\d{1,2})([./])(\d{1,2})(?:\2(\d{4}|\d{2})(?!\d)|(?:(?<=\.\d)|(?<=\.\d\d))\.(?!\d))")
_DAY_MONTH = re.compile(
    rf"(?<!\d)(\d{{1,2}})(?:st|nd|rd|th|er|º|°)?\.?\s(?:of\s|de\s)?({_MONTH})\b\.?(?:,?\s(?:de\s)?(\d{{4}}))?",
    re.IGNORECASE,
)
_MONTH_DAY = re.compile(
    rf"\b({_MONTH})\.?\s(\d{{1,2}})(?:st|nd|rd|th)?\b(?!\s?[:.]\d)(?:,?\s(\d{{4}}))?", re.IGNORECASE
)
_JAPANESE = re.compile(r"(?:(\d{4})年)?(\d{1,2})月(\d{1,2})日")
_UNITS = {
    "hour": r"hours?|stunden?|heures?|horas?|or[ae]|uur|uren|godzin\w*|時間",
    "day": r"(?:business |working )?days?|(?:werk|arbeits)?tage?n?|jours?|días?|giorn[oi]|(?:werk)?dag(?:en)?|dni|dzień|dias?"
    r"|営業日|日(?:間|以内)",
    "week": r"weeks?|wochen?|semaines?|semanas?|settiman[ae]|we(?:ek|ken)|tydzień|tygodni\w*|週間",
    "month": r"months?|monate?n?|mois|meses|mes|mes[ei]|maand(?:en)?|miesi\w+|m[eê]s(?:es)?|(?:か|ヶ)月",
    "year": r"years?|jahre?n?|ans?|años?|ann[oi]|jaar|jaren|lat|roku|anos?|年間",
}
_PERIOD = re.compile(
    r"(?<![\d.,])(\d{1,3})(?:\s?(?:-|–|to|bis|à|a)\s?\d{1,3})?[\s-]?(?:"
    + "|".join(f"(?P<{unit}>{words})" for unit, words in _UNITS.items())
    + r")(?![A-Za-z\u00c0-\u024f])",
    re.IGNORECASE,
)

Date = tuple[int | None, int, int]
"""Year, where one is named, month and day."""


class Facts(msgspec.Struct, frozen=True):
    """What a text states: order numbers, amounts in cents, dates, periods such as ``3 day``."""

    orders: frozenset[str]
    amounts: frozenset[int]
    dates: frozenset[Date]
    periods: frozenset[str]


def facts_in(text: str) -> Facts:
    """What a text states."""
    dates: set[Date] = set()
    for pattern, read in ((_ISO, _ymd), (_JAPANESE, _ymd), (_DAY_MONTH, _dmy), (_MONTH_DAY, _mdy), (_DOTTED, _dotted)):
        for match in pattern.finditer(text):
            dates.update(date for date in read(match) if _is_date(date))
        # What has the form of a date and is none may be an amount at the end of a sentence: 49.90.
        text = pattern.sub(partial(_blanked, read), text)
    periods = {f"{int(match[1])} {match.lastgroup}" for match in _PERIOD.finditer(text)}
    return Facts(frozenset(order_numbers(text)), frozenset(_amounts(text)), frozenset(dates), frozenset(periods))


def _blanked(read: Callable[[re.Match[str]], Iterator[Date]], match: re.Match[str]) -> str:
    return " " if any(map(_is_date, read(match))) else match[0]


def _is_date(date: Date) -> bool:
    return 1 <= date[1] <= 12 and 1 <= date[2] <= 31


def ungrounded(reply: str, context: str) -> list[str]:
    """What `reply` states and `context` does not, in words for a sentence; nothing where all is grounded.

    A date without a year agrees with one of any year; ``03/04/2026`` is read both ways, and one that is known is enough.
    """
    said, known = facts_in(reply), facts_in(context)
    wrong = [f"the order {order}" for order in sorted(said.orders - known.orders)]
    wrong += [f"the amount {cents / 100:.2f}" for cents in sorted(said.amounts - known.amounts)]
    wrong += [
        f"the date {_shown(date)}"
        for date in sorted(said.dates, key=str)
        if not _is_known(date, said.dates, known.dates)
    ]
    return wrong + [f"the period of {period}s" for period in sorted(said.periods - known.periods)]


def _is_known(date: Date, said: frozenset[Date], known: frozenset[Date]) -> bool:
    swapped = (date[0], date[2], date[1])
    readings = [date, swapped] if swapped in said else [date]
    return any(
        one[1:] == other[1:] and (one[0] is None or other[0] is None or one[0] == other[0])
        for one in readings
        for other in known
    )


def _shown(date: Date) -> str:
    year, month, day = date
    return f"{day}.{month}." if year is None else f"{year:04d}-{month:02d}-{day:02d}"


def _ymd(match: re.Match[str]) -> Iterator[Date]:
    yield (int(match[1]) if match[1] else None, int(match[2]), int(match[3]))


def _dmy(match: re.Match[str]) -> Iterator[Date]:
    yield (int(match[3]) if match[3] else None, _MONTHS[match[2].lower()], int(match[1]))


def _mdy(match: re.Match[str]) -> Iterator[Date]:
    yield (int(match[3]) if match[3] else None, _MONTHS[match[1].lower()], int(match[2]))


def _dotted(match: re.Match[str]) -> Iterator[Date]:
    year = int(match[4]) if match[4] else None
    year = year + 2000 if year is not None and year < 100 else year
    yield (year, int(match[3]), int(match[1]))
    if match[2] == "/":
        yield (year, int(match[1]), int(match[3]))


def _amounts(text: str) -> Iterator[int]:
    for match in _AMOUNT.finditer(text):
        number = next(group for group in match.groups() if group)
        digits = re.sub(r"[ \u00a0\u202f]", "", number)
        head, _, cents = re.sub(r",", ".", digits).rpartition(".")
        if not head or len(cents) > 2:
            yield int(re.sub(r"\D", "", digits)) * 100
        else:
            yield int(re.sub(r"\D", "", head)) * 100 + int(cents.ljust(2, "0"))
