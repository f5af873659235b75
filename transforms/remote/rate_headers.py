"""What a server says of its quotas in the headers of an answer: limit, what remains, and when it begins anew.

Understood, with names in any case:

- ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` (OpenAI and those who follow it: the limit is per minute, the reset
  the time until all of it is there again);
- ``anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}`` (per minute, the reset as an
  RFC 3339 time). Tokens of prompts (``input-tokens``) and of replies (``output-tokens``) are quotas of their own, which hold beside
  that of ``tokens``, their sum;
- the IETF draft "RateLimit header fields for HTTP" in its forms: ``RateLimit: "name";r=50;t=30`` with ``RateLimit-Policy:
  "name";q=100;w=60`` (-08 and later; the unit is requests, and others than requests are left out), ``RateLimit: limit=100,
  remaining=50, reset=30`` (-07), and the three fields ``RateLimit-Limit``, ``-Remaining`` and ``-Reset`` (-06 and before),
  also with ``X-``. Without a window in seconds (``w=``) such a limit says nothing about a minute and is left out.

A reset is seconds (``30``, ``1.5``), a Go duration (``6m0s``, ``20ms``, ``1h2m3.5s``), an RFC 3339 time, or a Unix time in seconds or
milliseconds. The last two need the wall clock. What is not understood is as if it were not there: a header never makes a call
fail. Groq writes a limit per day into ``x-ratelimit-limit-requests``; that is too high for a minute, and does no harm.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

Unit = Literal["requests", "tokens", "input-tokens", "output-tokens"]
"""What a quota counts: ``tokens`` are those of prompts and replies together."""

_FORMS: Mapping[Unit, tuple[str, ...]] = {
    "requests": ("x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}"),
    "tokens": ("x-ratelimit-{}-tokens", "anthropic-ratelimit-tokens-{}"),
    "input-tokens": ("anthropic-ratelimit-input-tokens-{}",),
    "output-tokens": ("anthropic-ratelimit-output-tokens-{}",),
}
_NUMBER = re.compile(r"\d{1,15}(\.\d{0,12})?", re.ASCII)
_DURATION = re.compile(
    r"(?:(\d{1,9}(?:\.\d{0,9})?)h)?(?:(\d{1,9}(?:\.\d{0,9})?)m(?!s))?(?:(\d{1,9}(?:\.\d{0,9})?)s)?", re.ASCII
)
_SMALL = re.compile(r"(\d{1,12}(?:\.\d{0,9})?)(ms|us|µs|ns)", re.ASCII)
_SMALL_S = {"ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PARAMETER = re.compile(r"([a-z]+)\s*=\s*\"?([^\";,]+)\"?", re.ASCII)
_EPOCH_S, _EPOCH_MS = 1e9, 1e12


class RateStatus(msgspec.Struct, frozen=True):
    """What was said of one quota. `limit_per_min` and `remaining` count its unit; each is None where it was not said."""

    limit_per_min: float | None = None
    remaining: float | None = None
    reset_s: float | None = None


def parse_rate_headers(headers: Mapping[str, str], now_ms: int | None = None) -> dict[Unit, RateStatus]:
    """Return what the headers say of each quota; one of which they say nothing is left out.

    `now_ms` is the wall clock's Unix time; without it, times of day are left out.
    """
    lower = {name.lower(): value.strip() for name, value in headers.items() if "ratelimit" in name.lower()}
    if not lower:
        return {}
    found = {unit: _by_unit(lower, forms, now_ms) for unit, forms in _FORMS.items()}
    if found["requests"] is None:
        found["requests"] = _draft(lower, now_ms)
    return {unit: status for unit, status in found.items() if status is not None}


def parse_reset(value: str | None, now_ms: int | None = None) -> float | None:
    """Return the seconds until a reset, 0 or more, or None where `value` is not understood; see the module for the forms."""
    if not value:
        return None
    number = _number(value)
    if number is None:
        return _duration(value) if not value[:1].isdigit() or "T" not in value else _until(value, now_ms)
    if number < _EPOCH_S:
        return number
    if now_ms is None:
        return None
    at_ms = number if number >= _EPOCH_MS else number * 1000.0
    return max(0.0, (at_ms - now_ms) / 1000.0)


def _by_unit(headers: Mapping[str, str], forms: Iterable[str], now_ms: int | None) -> RateStatus | None:
    """What headers of these forms say; where a gateway adds its own, the quota of which the smaller share remains speaks."""
    statuses = [status for form in forms if (status := _three(headers, form, now_ms)) is not None]
    return min(statuses, key=_left, default=None)


def _left(status: RateStatus) -> float:
    if status.remaining is None or not status.limit_per_min:
        return 1.0
    return status.remaining / status.limit_per_min


def _three(headers: Mapping[str, str], name: str, now_ms: int | None) -> RateStatus | None:
    limit, remaining, reset = (headers.get(name.format(field)) for field in ("limit", "remaining", "reset"))
    return _status(RateStatus(_positive(limit), _number(remaining), parse_reset(reset, now_ms)))


def _draft(headers: Mapping[str, str], now_ms: int | None) -> RateStatus | None:
    policy = _parameters(headers.get("ratelimit-policy", ""))
    whole = _parameters(headers.get("ratelimit", ""))
    if policy.get("qu", "requests") != "requests" or whole.get("qu", "requests") != "requests":
        return None

    def field(name: str, *parameters: str) -> str | None:
        named = next((whole[parameter] for parameter in parameters if parameter in whole), None)
        return named or headers.get(f"ratelimit-{name}") or headers.get(f"x-ratelimit-{name}")

    limit = _positive(policy.get("q")) or _positive(field("limit", "limit"))
    window_s = _positive(policy.get("w"))
    per_min = limit * 60.0 / window_s if limit and window_s else None
    remaining, reset = _number(field("remaining", "r", "remaining")), field("reset", "t", "reset")
    return _status(RateStatus(per_min, remaining, parse_reset(reset, now_ms)))


def _status(status: RateStatus) -> RateStatus | None:
    return None if status == RateStatus() else status


def _parameters(value: str) -> dict[str, str]:
    """The parameters of the first item of a structured field, or the members of a dictionary."""
    return {name: text.strip() for name, text in reversed(_PARAMETER.findall(value.lower()))}


def _number(value: str | None) -> float | None:
    return float(value) if value and _NUMBER.fullmatch(value) else None


def _positive(value: str | None) -> float | None:
    number = _number(value)
    return number or None


def _duration(value: str) -> float | None:
    """A Go duration in seconds."""
    small = _SMALL.fullmatch(value)
    if small:
        return float(small[1]) * _SMALL_S[small[2]]
    parts = _DURATION.fullmatch(value)
    if not parts or not value:
        return None
    hours, minutes, seconds = (float(part or 0.0) for part in parts.groups())
    return hours * 3600.0 + minutes * 60.0 + seconds


def _until(value: str, now_ms: int | None) -> float | None:
    """The seconds to an RFC 3339 time."""
    if now_ms is None:
        return None
    try:
        at = dt.datetime.fromisoformat(value)
    except ValueError:
        return None
    if at.tzinfo is None:
        return None
    seconds = at.timestamp() - now_ms / 1000.0
    return max(0.0, seconds) if math.isfinite(seconds) else None
