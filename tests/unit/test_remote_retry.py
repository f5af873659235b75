"""Back-off, classes of answers, and what a server's request to wait means."""

from __future__ import annotations

import email.utils
import random

import pytest

from transforms.errors import Refused, ServerFailed, Throttled
from transforms.remote.retry import classify, error_of, full_jitter, parse_retry_after

NOW_MS = 1_750_000_000_000


def date(seconds: float) -> str:
    return email.utils.formatdate(NOW_MS / 1000 + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3.0),
        ({"retry-after": "0"}, 0.0),
        ({"RETRY-AFTER": " 7 "}, 7.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "2."}, 2.0),
        ({"Retry-After": date(30)}, 30.0),
        ({"Retry-After": date(0)}, 0.0),
        ({"Retry-After": date(-30)}, None),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, None),
        ({"Retry-After": "Tue, 31 Dec 9999 99:99:99 GMT"}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "-0.5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "1e3"}, None),
        ({"Retry-After": "1_000"}, None),
        ({"Retry-After": "٣"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"Retry-After-Ms": "12.5"}, 0.0125),
        ({"x-ms-retry-after-ms": "1500"}, 1.5),
        ({"X-MS-Retry-After-Ms": "0"}, 0.0),
        ({"retry-after-ms": "-1"}, None),
        ({"retry-after-ms": "250", "Retry-After": "1"}, 0.25),
        ({"retry-after-ms": "junk", "x-ms-retry-after-ms": "40"}, 0.04),
        ({"retry-after-ms": "junk", "Retry-After": "2"}, 2.0),
    ],
)
def test_retry_after_is_understood_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, fractions, dates and milliseconds are read; what is negative, past or garbage is as if not there."""
    assert parse_retry_after(headers, NOW_MS) == pytest.approx(seconds)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 415, 422, 451, 301, 302, 307, 308])
def test_permanent_answers_are_refusals(status: int) -> None:
    """A 4xx that no repeat can change, and a redirect, are Refused and keep their status."""
    error = error_of(status, {"Retry-After": "1"}, "No.", NOW_MS)
    assert isinstance(error, Refused)
    assert error.status == status


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (200, {}, None),
        (204, {}, None),
        (429, {}, Throttled),
        (503, {"retry-after": "1"}, Throttled),
        (503, {"x-ms-retry-after-ms": "1"}, Throttled),
        (503, {}, ServerFailed),
        (500, {"Retry-After": "1"}, ServerFailed),
        (502, {}, ServerFailed),
        (504, {}, ServerFailed),
        (599, {}, ServerFailed),
        (408, {}, ServerFailed),
        (409, {}, ServerFailed),
        (425, {}, ServerFailed),
    ],
)
def test_other_answers_have_their_class(status: int, headers: dict[str, str], kind: type | None) -> None:
    """429 and 503 with Retry-After throttle; other 5xx, 408, 409 and 425 are failures of the server."""
    assert classify(status, headers) is kind


def test_an_error_carries_the_time_to_wait() -> None:
    """A transient error of an answer knows for how long the server asked to be left alone."""
    error = error_of(500, {"Retry-After": "2.5"}, "Down.", NOW_MS)
    assert isinstance(error, ServerFailed)
    assert error.retry_after_s == 2.5


@pytest.mark.parametrize("retry", [0, 1, 2, 5, 10, 100, 5000])
def test_back_off_is_full_jitter(retry: int) -> None:
    """The back-off is the random share of min(cap, base·2ⁿ), for any n."""
    bound = min(10.0, 0.2 * 2.0 ** min(retry, 60))
    assert full_jitter(retry, 0.2, 10.0, 0.0) == 0.0
    assert full_jitter(retry, 0.2, 10.0, 0.5) == pytest.approx(bound / 2)
    chance = random.Random(retry)
    assert all(0.0 <= full_jitter(retry, 0.2, 10.0, chance.random()) < bound for _ in range(200))
