"""Runners and a model for the flow tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.flow.doubles import DIRECT, PRISM
from transforms.remote.model_double import ModelDouble


@pytest.fixture
def double() -> Iterator[ModelDouble]:
    """A model server on a real socket, with replies that depend on the question alone."""
    with ModelDouble(0, latency_ms=20.0, sigma=0.6) as server:
        yield server


@pytest.fixture(scope="session")
def prism() -> str:
    """The path of Beam's Prism, built once."""
    from runners.local import artifacts

    return str(artifacts.prism_path())


@pytest.fixture(params=[DIRECT, pytest.param(PRISM, marks=pytest.mark.prism)])
def runner(request: Any) -> dict[str, Any]:
    """Each runner that a laptop has, by name, and where Prism lies."""
    name = request.param
    return {"runner": name, "prism": request.getfixturevalue("prism") if name == PRISM else None}
