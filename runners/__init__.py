"""Where it runs: one module per runner, which checks and completes the options of that runner. Knows no case."""

from __future__ import annotations

import difflib

from runners import dataflow, direct, flink, portable, prism
from runners.runner import Runner
from transforms.errors import SettingsError

_ALL = {runner.name: runner for runner in (direct.RUNNER, prism.RUNNER, flink.RUNNER, dataflow.RUNNER, portable.RUNNER)}

NAMES = tuple(_ALL)
"""The runners by name."""


def named(name: str) -> Runner:
    """The runner of this name. Raises SettingsError, with the nearest name, where there is none."""
    if name in _ALL:
        return _ALL[name]
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise SettingsError(f"--runner={name}: there is no such runner; there is {', '.join(NAMES)}.{hint}")


def java_flags(name: str) -> tuple[str, ...]:
    """The flags of the Java job server behind a runner; none for an unknown runner."""
    return _ALL[name].java_flags if name in _ALL else ()
