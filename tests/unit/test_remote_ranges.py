"""The ranges of settings."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from transforms.errors import SettingsError
from transforms.remote import ranges

WRONG: list[tuple[Callable[..., None], dict[str, float], str]] = [
    (ranges.positive, {"a": 1, "b": 0}, "b is 0"),
    (ranges.positive, {"a": math.nan}, "a is nan"),
    (ranges.positive, {"a": math.inf}, "a is inf"),
    (ranges.not_negative, {"a": 0, "b": -0.5}, "b is -0.5"),
    (ranges.not_negative, {"a": math.nan}, "a is nan"),
    (ranges.share, {"a": 0}, "a is 0"),
    (ranges.share, {"a": 1.01}, "a is 1.01"),
    (ranges.share, {"a": math.nan}, "a is nan"),
    (ranges.rising, {"a": 1, "b": 3, "c": 2}, r"b \(3\) is greater than c \(2\)"),
]


@pytest.mark.parametrize(("check", "values", "sentence"), WRONG)
def test_a_value_out_of_its_range_is_refused(
    check: Callable[..., None], values: dict[str, float], sentence: str
) -> None:
    """The sentence names the value that is wrong."""
    with pytest.raises(SettingsError, match=sentence):
        check(**values)


def test_values_in_their_ranges_pass() -> None:
    """The bounds themselves are among the values that are taken."""
    ranges.positive(a=1e-9)
    ranges.not_negative(a=0)
    ranges.share(a=1, b=1e-9)
    ranges.rising(a=1, b=1, c=2)
