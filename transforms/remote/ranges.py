"""The ranges that values of settings must lie in: each function returns nothing, or raises with one sentence."""

from __future__ import annotations

import math
from itertools import pairwise

from transforms.errors import SettingsError


def positive(**values: float) -> None:
    """Raise SettingsError for the first value that is not a finite number above 0, under its name."""
    for name, value in values.items():
        if not math.isfinite(value) or value <= 0:
            raise SettingsError(f"{name} is {value:g}; it must be a number above 0.")


def not_negative(**values: float) -> None:
    """Raise SettingsError for the first value that is not a finite number, 0 or above, under its name."""
    for name, value in values.items():
        if not math.isfinite(value) or value < 0:
            raise SettingsError(f"{name} is {value:g}; it must be 0 or a number above it.")


def share(**values: float) -> None:
    """Raise SettingsError for the first value that is not above 0 and at most 1, under its name."""
    for name, value in values.items():
        if not 0 < value <= 1:
            raise SettingsError(f"{name} is {value:g}; it is a share and must be above 0 and at most 1.")


def rising(**values: float) -> None:
    """Raise SettingsError where a value is greater than the next one, under their names."""
    for (lower, low), (upper, high) in pairwise(values.items()):
        if low > high:
            raise SettingsError(f"{lower} ({low:g}) is greater than {upper} ({high:g}); make it smaller.")
