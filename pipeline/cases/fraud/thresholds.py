"""From which score on an event is reviewed or blocked: a frozen value, read from the versioned file `thresholds.yaml`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import msgspec

from transforms.errors import SettingsError

FILE = Path(__file__).with_name("thresholds.yaml")


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything in the file. Raises SettingsError where it contradicts itself."""

    version: str
    review_from: float
    block_from: float
    burst_events: int

    def __post_init__(self) -> None:
        if not 0 < self.review_from <= self.block_from <= 1:
            raise SettingsError("thresholds: 0 < review_from ≤ block_from ≤ 1 must hold.")
        if self.burst_events < 1:
            raise SettingsError("thresholds: burst_events must be at least 1.")


def read_thresholds(path: Path) -> Thresholds:
    """The thresholds in a file. Raises SettingsError for what is wrong in it."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=Thresholds)
    except msgspec.DecodeError as error:
        raise SettingsError(f"{path}: {error}.") from None


@lru_cache(maxsize=1)
def thresholds() -> Thresholds:
    """Those that ship; read once in a process."""
    return read_thresholds(FILE)


def decide(score: float, entity_events: int, limits: Thresholds) -> tuple[str, tuple[str, ...]]:
    """The decision, ``approve``, ``review`` or ``block``, and the reasons for it; an approval has none.

    `score` is the model's, `entity_events` how many events of its entity the last hour had, this one included.
    """
    if score >= limits.block_from:
        return "block", ("score",)
    reasons = []
    if score >= limits.review_from:
        reasons.append("score")
    if entity_events > limits.burst_events:
        reasons.append("burst")
    return ("review", tuple(reasons)) if reasons else ("approve", ())
