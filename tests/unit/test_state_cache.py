"""What a cached value of state weighs, and what is looked at for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import objsize
import pytest

from transforms.state_cache import weigh_without_modules


class Watched(ModuleType):
    """A module that counts how often its globals are looked at."""

    looks = 0

    @property
    def __dict__(self) -> dict[str, object]:  # type: ignore[override]
        Watched.looks += 1
        return {}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Watched]]:
    """A loaded module whose globals count who looks at them; objsize's settings are put back."""
    before = objsize.default_settings.exclude_modules_globals
    monkeypatch.setitem(sys.modules, "farcall_watched", Watched("farcall_watched"))
    Watched.looks = 0
    yield Watched
    objsize.default_settings.exclude_modules_globals = before


def test_a_value_of_state_is_weighed_without_a_look_at_the_modules(watched: type[Watched]) -> None:
    """What a step keeps weighs the same as before, and no module's globals are gone through for it."""
    kept = [b"an event" * 40 + bytes([number]) for number in range(20)]
    weight = objsize.get_deep_size(kept)
    assert watched.looks
    watched.looks = 0
    weigh_without_modules()
    assert objsize.get_deep_size(kept) == weight
    assert not watched.looks
