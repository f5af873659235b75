"""What headers say of quotas."""

from __future__ import annotations

import pytest

from transforms.remote.rate_headers import RateStatus, parse_rate_headers, parse_reset
from transforms.remote.simulated import duration_text

NOW_MS = 1_750_000_000_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("2m59.56s", 179.56),
        ("1h2m3.5s", 3723.5),
        ("17µs", 17e-6),
        ("1h", 3600.0),
        ("1750000010", 10.0),
        ("1750000010000", 10.0),
        ("1740000000", 0.0),
        ("2025-06-15T15:06:50Z", 10.0),
        ("2025-06-15T17:06:50+02:00", 10.0),
    ],
)
def test_a_reset_is_read_in_each_form(text: str, seconds: float) -> None:
    """Seconds, Go's durations, Unix times and RFC 3339 times."""
    assert parse_reset(text, NOW_MS) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "-1", "s", "ms", "1e9", "NaN", "1s1h", "6 m", "2025-99-15T00:00:00Z", "2025-06-15T15:06:50", "٣"],
)
def test_what_is_no_reset_is_as_if_it_were_not_there(text: str) -> None:
    """Nothing is raised and nothing is read."""
    assert parse_reset(text, NOW_MS) is None


@pytest.mark.parametrize("text", ["1750000010", "2025-06-15T15:06:50Z"])
def test_times_of_day_need_a_clock(text: str) -> None:
    """Without the wall clock a time says nothing."""
    assert parse_reset(text) is None


@pytest.mark.parametrize("milliseconds", [1, 20, 999, 1000, 1500, 59_999, 60_000, 360_000, 3_600_000, 7_261_003])
def test_durations_are_read_as_they_are_written(milliseconds: int) -> None:
    """What the simulated server writes is read back."""
    assert parse_reset(duration_text(milliseconds / 1000.0)) == pytest.approx(milliseconds / 1000.0)


OPENAI = {
    "X-RateLimit-Limit-Requests": "600",
    "x-ratelimit-remaining-requests": "599",
    "x-ratelimit-reset-requests": "100ms",
    "x-ratelimit-limit-tokens": "40000",
    "x-ratelimit-remaining-tokens": "39000",
    "x-ratelimit-reset-tokens": "1.5s",
}
ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2025-06-15T15:06:41Z",
    "anthropic-ratelimit-input-tokens-limit": "40000",
    "anthropic-ratelimit-input-tokens-remaining": "40000",
    "anthropic-ratelimit-output-tokens-limit": "8000",
    "anthropic-ratelimit-output-tokens-remaining": "1000",
}


@pytest.mark.parametrize(
    ("headers", "requests", "tokens"),
    [
        (OPENAI, RateStatus(600.0, 599.0, 0.1), RateStatus(40_000.0, 39_000.0, 1.5)),
        (ANTHROPIC, RateStatus(50.0, 49.0, 1.0), None),
        (
            {"RateLimit": '"default";r=50;t=30', "RateLimit-Policy": '"default";q=100;w=30,"day";q=5000;w=86400'},
            RateStatus(200.0, 50.0, 30.0),
            None,
        ),
        ({"RateLimit": "limit=100, remaining=50, reset=5"}, RateStatus(None, 50.0, 5.0), None),
        (
            {
                "RateLimit-Limit": "100",
                "RateLimit-Policy": "100;w=60",
                "RateLimit-Remaining": "7",
                "RateLimit-Reset": "9",
            },
            RateStatus(100.0, 7.0, 9.0),
            None,
        ),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1750000010"}, RateStatus(None, 0.0, 10.0), None),
        ({"RateLimit": '"bytes";r=50;t=30', "RateLimit-Policy": '"bytes";q=100;qu="content-bytes";w=60'}, None, None),
        ({"x-ratelimit-limit-requests": "many", "content-type": "application/json"}, None, None),
        ({}, None, None),
    ],
)
def test_each_dialect_is_read(headers: dict[str, str], requests: RateStatus | None, tokens: RateStatus | None) -> None:
    """OpenAI's, Anthropic's and the drafts' headers give limit, rest and reset; others nothing."""
    found = parse_rate_headers(headers, NOW_MS)
    assert (found.get("requests"), found.get("tokens")) == (requests, tokens)


def test_tokens_of_prompts_and_replies_are_quotas_of_their_own() -> None:
    """Anthropic's limits for input and output tokens are told apart, and the sum stands beside them."""
    found = parse_rate_headers(ANTHROPIC | {"anthropic-ratelimit-tokens-limit": "48000"}, NOW_MS)
    assert found["input-tokens"] == RateStatus(40_000.0, 40_000.0, None)
    assert found["output-tokens"] == RateStatus(8000.0, 1000.0, None)
    assert found["tokens"] == RateStatus(48_000.0, None, None)
