"""The cases: by name, or where they are from elsewhere, by module."""

from __future__ import annotations

import difflib
import importlib

from pipeline.case import Case
from pipeline.cases.fraud.case import FRAUD
from pipeline.cases.support.case import SUPPORT
from transforms.errors import SettingsError

CASES: dict[str, Case] = {case.name: case for case in (SUPPORT, FRAUD)}


def case_named(name: str) -> Case:
    """The case of this name, or for ``MODULE:NAME`` the one that a module of one's own holds under a name.

    Raises SettingsError where there is none, with the nearest name. The module must be importable on the workers too.
    """
    if name in CASES:
        return CASES[name]
    if ":" in name:
        return _imported(name)
    near = difflib.get_close_matches(name, CASES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise SettingsError(f"--case={name}: there is no such case; there is {', '.join(CASES)}, or MODULE:NAME.{hint}")


def _imported(name: str) -> Case:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError) as error:
        raise SettingsError(
            f"--case={name}: {module} cannot be imported: {error}. Is its folder on PYTHONPATH?"
        ) from None
    if not isinstance(found, Case):
        raise SettingsError(f"--case={name}: {module} has no Case of the name {attribute or 'that is left out'}.")
    return found
