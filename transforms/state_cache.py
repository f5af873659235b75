"""What Beam's cache of state costs: it weighs each value that a bundle writes, to know when the cache is full.

Beam weighs with `objsize`, which by default collects the globals of every loaded module first, so as to leave them out, several
times a bundle, on the bundle's own path (docs/adr/0010 has figures). Beam already leaves modules, classes and functions out by
their types, and what is cached of our steps is bytes, from which no module can be reached.
"""

from __future__ import annotations

import objsize


def weigh_without_modules() -> None:
    """Let `objsize` skip the modules' globals, for this process (its documented `default_settings`). Gives the same weights.

    To be called in a stateful step's `setup`.
    """
    objsize.default_settings.exclude_modules_globals = False
