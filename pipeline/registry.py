"""The cases, by name."""

from __future__ import annotations

import difflib

from pipeline.case import Case
from pipeline.cases.support.case import SUPPORT
from transforms.errors import SettingsError

CASES: dict[str, Case] = {case.name: case for case in (SUPPORT,)}


def case_named(name: str) -> Case:
    """The case of this name. Raises SettingsError, with the nearest name, where there is none."""
    if name in CASES:
        return CASES[name]
    near = difflib.get_close_matches(name, CASES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise SettingsError(f"--case={name}: there is no such case; there is {', '.join(CASES)}.{hint}")
