"""When to try again, and when not: pure functions of an answer, a number and a moment."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from datetime import UTC

from transforms.errors import CallError, Refused, ServerFailed, Throttled

_MILLISECONDS = ("retry-after-ms", "x-ms-retry-after-ms")
_SECONDS = "retry-after"
_NUMBER = re.compile(r"\d{1,12}(\.\d{0,12})?", re.ASCII)
_FAILED_4XX = frozenset({408, 409, 425})
_GREATEST_POWER = 60


def full_jitter(retry: int, base_s: float, cap_s: float, random: float) -> float:
    """Return the seconds of back-off before retry number `retry` (the first is 0).

    `random` is a number in [0, 1). The formula is "full jitter" of Marc Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015: ``sleep = random_between(0, min(cap, base * 2 ** attempt))``.
    """
    return random * min(cap_s, base_s * 2.0 ** min(retry, _GREATEST_POWER))


def classify(status: int, headers: Mapping[str, str]) -> type[CallError] | None:
    """Return the class of error that an HTTP answer stands for, or None for the 2xx kind.

    A redirect counts as `Refused`: it is not followed, since a second host would be sent the secret and the event.
    """
    if 200 <= status < 300:
        return None
    if status == 429 or (status == 503 and _asks_to_wait(headers)):
        return Throttled
    if status >= 500 or status in _FAILED_4XX:
        return ServerFailed
    return Refused


def error_of(status: int, headers: Mapping[str, str], sentence: str, now_ms: int) -> CallError | None:
    """Return the error that an HTTP answer stands for, with `sentence` as its message; None for the 2xx kind."""
    kind = classify(status, headers)
    if kind is None:
        return None
    if kind is Throttled:
        return Throttled(sentence, parse_retry_after(headers, now_ms))
    if kind is ServerFailed:
        return ServerFailed(sentence, parse_retry_after(headers, now_ms))
    return Refused(sentence, status)


def parse_retry_after(headers: Mapping[str, str], now_ms: int) -> float | None:
    """Return for how many seconds a server asks to be left alone, or None where it does not say so.

    Understands ``Retry-After`` as whole seconds or an HTTP date (RFC 9110, section 10.2.3) and, beyond the RFC, as a
    fraction; and ``retry-after-ms`` and ``x-ms-retry-after-ms`` (OpenAI's and Azure's), which come first because they
    are finer. Names in any case. What is negative, in the past or not understood is as if it were not there.
    """
    found = _named(headers)
    for name in _MILLISECONDS:
        milliseconds = _number(found.get(name))
        if milliseconds is not None:
            return milliseconds / 1000.0
    value = found.get(_SECONDS)
    seconds = _number(value)
    return _until(value, now_ms) if seconds is None else seconds


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that ask to wait, by their names in lower case."""
    wanted = (*_MILLISECONDS, _SECONDS)
    return {name.lower(): value for name, value in headers.items() if name.lower() in wanted}


def _asks_to_wait(headers: Mapping[str, str]) -> bool:
    return bool(_named(headers))


def _number(value: str | None) -> float | None:
    """The number, not below 0, that `value` writes in plain digits, or None."""
    if value is None or not _NUMBER.fullmatch(value.strip()):
        return None
    return float(value.strip())


def _until(value: str | None, now_ms: int) -> float | None:
    """The seconds from `now_ms` to the HTTP date `value`, or None where it is none or in the past."""
    if value is None:
        return None
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    seconds = date.timestamp() - now_ms / 1000.0
    return seconds if seconds >= 0 else None
