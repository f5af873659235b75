"""``python -m pipeline`` without the option that ends bundles before a checkpoint, to show what it is for."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.app import main
from runners import flink

_with_defaults = flink.with_defaults


def without(arguments: Sequence[str], defaults: Sequence[str]) -> list[str]:
    """The defaults but for that one."""
    return _with_defaults(arguments, [one for one in defaults if one != flink.FINISH_BUNDLES])


if __name__ == "__main__":
    flink.with_defaults = without
    raise SystemExit(main())
