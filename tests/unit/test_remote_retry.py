"""Back-off, classes of answers, and what a server's request to wait means."""

from __future__ import annotations

import email.utils
import random

import msgspec
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
        ({"Retry-After": "3600"}, 3600.0),
        ({"Retry-After": "86400"}, 3600.0),
        ({"Retry-After": "9" * 15}, 3600.0),
        ({"Retry-After": date(7200)}, 3600.0),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 3600.0),
        ({"retry-after-ms": "9" * 12}, 3600.0),
        ({"Retry-After": str(NOW_MS // 1000 + 60)}, 60.0),
        ({"Retry-After": str(NOW_MS + 1500)}, 1.5),
        ({"retry-after-ms": str(NOW_MS + 1500)}, 1.5),
        ({"Retry-After": str(NOW_MS // 1000 + 7200)}, 3600.0),
        ({"Retry-After": str(NOW_MS // 1000 - 60)}, None),
        ({"Retry-After": str(NOW_MS - 1500)}, None),
        ({"Retry-After": "1000000000"}, 3600.0),
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
    """Seconds, fractions, dates, Unix times and milliseconds are read, an hour at most; what is past or garbage is not there."""
    assert parse_retry_after(headers, NOW_MS) == pytest.approx(seconds)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 415, 422, 451, 301, 302, 307, 308, 501, 505])
def test_permanent_answers_are_refusals(status: int) -> None:
    """A 4xx that no repeat can change, a redirect, 501 and 505 are Refused, with Retry-After too, and keep their status."""
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
        (503, {"Retry-After": "garbage"}, ServerFailed),
        (503, {"Retry-After": "-3"}, ServerFailed),
        (503, {"Retry-After": "0"}, ServerFailed),
        (503, {"Retry-After": date(-30)}, ServerFailed),
        (503, {"Retry-After": date(30)}, Throttled),
        (511, {}, ServerFailed),
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
    """429 and 503 that asks for time throttle; other 5xx, 408, 409 and 425 are failures of the server."""
    assert classify(status, headers, NOW_MS) is kind


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (429, "false", Refused),
        (500, "false", Refused),
        (503, "FALSE", Refused),
        (429, "true", Throttled),
        (400, "true", ServerFailed),
        (501, "true", ServerFailed),
        (400, "maybe", Refused),
        (500, "", ServerFailed),
        (200, "false", None),
    ],
)
def test_a_server_that_says_whether_to_repeat_is_obeyed(status: int, said: str, kind: type | None) -> None:
    """``x-should-retry`` goes over the status; another value is as if it were not there."""
    assert classify(status, {"X-Should-Retry": said}, NOW_MS) is kind


def test_a_quota_that_no_time_refills_is_a_refusal() -> None:
    """A 429 with OpenAI's ``insufficient_quota`` is Refused; one with another code, or no JSON, is Throttled."""
    for field in ("code", "type"):
        body = b'{"error": {"message": "You exceeded your quota.", "%s": "insufficient_quota"}}' % field.encode()
        assert classify(429, {}, NOW_MS, body) is Refused
        assert isinstance(error_of(429, {"Retry-After": "1"}, "No.", NOW_MS, body), Refused)
        assert classify(500, {}, NOW_MS, body) is ServerFailed
    others = [b"", b"{", b"[]", b"null", b"\xff", b'{"error": "insufficient_quota"}', b"[" * 60_000, b" " * 70_000]
    for body in [*others, b'{"error": {"code": "rate_limit_exceeded", "type": 7}}']:
        assert classify(429, {}, NOW_MS, body) is Throttled


def google(delay: object) -> bytes:
    details: list[object] = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure"}, None]
    details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    return msgspec.json.encode({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": details}})


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [("12s", 12.0), ("45.837906927s", 45.837906927), ("86400s", 3600.0), ("-3s", None), ("12", None), (12, None)],
)
def test_the_delay_in_googles_details_is_kept(delay: object, seconds: float | None) -> None:
    """A RetryInfo in the body of a 429 or 503 is a time to wait, an hour at most, where no header names one."""
    for body in (google(delay), b"[" + google(delay) + b"]"):
        throttled, failed = error_of(429, {}, "No.", NOW_MS, body), error_of(503, {}, "No.", NOW_MS, body)
        assert isinstance(throttled, Throttled)
        assert throttled.retry_after_s == pytest.approx(seconds)
        assert isinstance(failed, Throttled if seconds else ServerFailed)
    named = error_of(429, {"Retry-After": "2"}, "No.", NOW_MS, google(delay))
    assert isinstance(named, Throttled)
    assert named.retry_after_s == 2.0


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
