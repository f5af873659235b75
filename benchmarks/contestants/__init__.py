"""The contestants, by name. Each is imported when it is asked for: not every one is installed everywhere."""

from __future__ import annotations

import importlib

from benchmarks.rig import Contestant
from transforms.errors import SettingsError

NAMES = (
    "ours",
    "java_async",
    "pyflink_async",
    "asyncwrapper",
    "runinference",
    "runinference_threads",
    "ml_predict",
    "pathway",
    "ray_data",
)
"""In the order in which they run and are shown. The floor is no contestant: it is what they are compared with."""


def named(name: str) -> Contestant:
    """The contestant with this name. Raises SettingsError where there is none."""
    if name not in NAMES:
        raise SettingsError(f"There is no contestant {name!r}; there are {', '.join(NAMES)}.")
    module = importlib.import_module(f"benchmarks.contestants.{name.removesuffix('_threads')}")
    found: Contestant = module.CONTESTANTS[name]
    return found
