"""When to try again, and when not: pure functions of an answer, a number and a moment."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from datetime import UTC
from typing import Any

import msgspec

from transforms.errors import CallError, Refused, ServerFailed, Throttled

LONGEST_WAIT_S = 3600.0
"""The longest time for which a server is left alone because it asks so; see `parse_retry_after`."""

_MILLISECONDS = ("retry-after-ms", "x-ms-retry-after-ms")
_SECONDS = "retry-after"
_NUMBER = re.compile(r"\d{1,15}(\.\d{0,12})?", re.ASCII)
_DELAY = re.compile(r"(\d{1,12}(?:\.\d{0,9})?)s", re.ASCII)
_FAILED_4XX = frozenset({408, 409, 425})
_REFUSED_5XX = frozenset({501, 505})
_SHOULD_RETRY = "x-should-retry"
_NO_QUOTA = "insufficient_quota"
_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
_GREATEST_POWER = 60
_NEAR_S = 86_400.0
_LARGEST_BODY = 65_536


def full_jitter(retry: int, base_s: float, cap_s: float, random: float) -> float:
    """Return the seconds of back-off before retry number `retry` (the first is 0).

    `random` is a number in [0, 1). The formula is "full jitter" of Marc Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015: ``sleep = random_between(0, min(cap, base * 2 ** attempt))``.
    """
    return random * min(cap_s, base_s * 2.0 ** min(retry, _GREATEST_POWER))


def classify(status: int, headers: Mapping[str, str], now_ms: int, body: bytes = b"") -> type[CallError] | None:
    """Return the class of error that an HTTP answer stands for, or None for the 2xx kind.

    - What the server says itself holds: ``x-should-retry: false`` is `Refused`, ``true`` is `Throttled` for 429 and 503 that
      asks for time, and `ServerFailed` for any other. OpenAI and Anthropic send it, and their clients obey it (openai-python,
      `_base_client.py`, `_should_retry`); it is no standard. Another value is as if it were not there.
    - A 429 whose body says ``insufficient_quota`` as the error's ``code`` or ``type`` (OpenAI: no credit is left) is `Refused`,
      as time alone does not help; any other 429 is `Throttled`.
    - A 503 is `Throttled` where it asks for a time above 0 (`parse_retry_after`, or its body, see `error_of`). One that asks for
      none has failed, or a server that is broken would pass for a busy one.
    - Any other 5xx is `ServerFailed`, and so are 408, 409 and 425; but 501 and 505 are `Refused`: the server does not support what is
      asked, "for any resource" (RFC 9110, sections 15.6.2 and 15.6.6), as UNIMPLEMENTED of gRPC. 511 comes from a network that wants a
      login (RFC 6585, section 6) and says nothing of the request: it may pass.
    - Any other 4xx is `Refused`, with ``Retry-After`` or without: RFC 9110 gives it no meaning there, and a 403 that names one is
      sent for bans as well as for limits. A redirect is `Refused` too: it is not followed, since a second host would be sent the
      secret and the event.
    """
    if 200 <= status < 300:
        return None
    return _kind(status, headers, _asked_s(status, headers, now_ms, body), body)


def error_of(
    status: int, headers: Mapping[str, str], sentence: str, now_ms: int, body: bytes = b""
) -> CallError | None:
    """Return the error that an HTTP answer stands for, with `sentence` as its message; None for the 2xx kind.

    Where no header of a 429 or 503 asks for time, the ``retryDelay`` of a ``google.rpc.RetryInfo`` among the error's ``details`` in
    the `body` does, bounded as `parse_retry_after` is: Gemini and Vertex AI name it nowhere else. A body that is no JSON, or
    larger than 64 KB, says nothing.
    """
    if 200 <= status < 300:
        return None
    asked_s = _asked_s(status, headers, now_ms, body)
    kind = _kind(status, headers, asked_s, body)
    if kind is Throttled:
        return Throttled(sentence, asked_s)
    if kind is ServerFailed:
        return ServerFailed(sentence, asked_s)
    return Refused(sentence, status)


def parse_retry_after(headers: Mapping[str, str], now_ms: int) -> float | None:
    """Return for how many seconds a server asks to be left alone, or None where it does not say so.

    Understands ``Retry-After`` as whole seconds or an HTTP date (RFC 9110, section 10.2.3) and, beyond the RFC, as a
    fraction; and ``retry-after-ms`` and ``x-ms-retry-after-ms`` (OpenAI's and Azure's), which come first because they
    are finer. Names in any case. What is negative, in the past or not understood is as if it were not there.

    A number within a day of `now_ms` as Unix seconds or milliseconds is that moment: some servers write the time of the reset
    (Cloud Foundry's, cloud_controller_ng #2544; clawhub #407), and nobody asks for 56 years.

    An hour (`LONGEST_WAIT_S`) is the most that comes back. A wrong number or date would otherwise shut an endpoint for the
    life of the process, and after an hour one refused request more costs nothing. What is allowed anew once a day is asked for
    once an hour then. OpenAI's own client believes two minutes.
    """
    found = {name.lower(): value for name, value in headers.items()}
    for name in _MILLISECONDS:
        milliseconds = _number(found.get(name))
        if milliseconds is not None:
            return _bounded(milliseconds / 1000.0, now_ms)
    value = found.get(_SECONDS)
    seconds = _number(value)
    return _until(value, now_ms) if seconds is None else _bounded(seconds, now_ms)


def _kind(status: int, headers: Mapping[str, str], asked_s: float | None, body: bytes) -> type[CallError]:
    should_retry = _should_retry(headers)
    if should_retry is False:
        return Refused
    if status == 429:
        return Refused if should_retry is None and _has_no_quota(body) else Throttled
    if status == 503 and asked_s:
        return Throttled
    if should_retry or status in _FAILED_4XX or (status >= 500 and status not in _REFUSED_5XX):
        return ServerFailed
    return Refused


def _should_retry(headers: Mapping[str, str]) -> bool | None:
    said = next((value for name, value in headers.items() if name.lower() == _SHOULD_RETRY), "")
    return {"true": True, "false": False}.get(said.strip().lower())


def _asked_s(status: int, headers: Mapping[str, str], now_ms: int, body: bytes) -> float | None:
    """For how many seconds an answer asks to be left alone, in a header or in its body."""
    seconds = parse_retry_after(headers, now_ms)
    if seconds is not None or status not in (429, 503):
        return seconds
    details = _error(body).get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and detail.get("@type") == _RETRY_INFO:
            delay = _DELAY.fullmatch(str(detail.get("retryDelay")))
            return min(float(delay[1]), LONGEST_WAIT_S) if delay else None
    return None


def _has_no_quota(body: bytes) -> bool:
    error = _error(body)
    return _NO_QUOTA in (error.get("code"), error.get("type"))


def _error(body: bytes) -> Mapping[str, Any]:
    """The object `error` of a body in JSON; empty where there is none. Google writes it in a list for streams."""
    if not body or len(body) > _LARGEST_BODY:
        return {}
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
    if isinstance(found, list) and found:
        found = found[0]
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {}


def _number(value: str | None) -> float | None:
    """The number, not below 0, that `value` writes in plain digits, or None."""
    if value is None or not _NUMBER.fullmatch(value.strip()):
        return None
    return float(value.strip())


def _bounded(seconds: float, now_ms: int) -> float | None:
    """So many seconds, an hour at most; or those to the moment that the number is, None where that is past."""
    now_s = now_ms / 1000.0
    for at_s in (seconds, seconds / 1000.0):
        if abs(at_s - now_s) <= _NEAR_S < now_s:
            return min(at_s - now_s, LONGEST_WAIT_S) if at_s >= now_s else None
    return min(seconds, LONGEST_WAIT_S)


def _until(value: str | None, now_ms: int) -> float | None:
    """The seconds from `now_ms` to the HTTP date `value`, an hour at most, or None where it is none or in the past."""
    if value is None:
        return None
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    seconds = date.timestamp() - now_ms / 1000.0
    return min(seconds, LONGEST_WAIT_S) if seconds >= 0 else None
