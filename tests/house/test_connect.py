"""The guide to Kafka Connect names what ships, and what ships holds no secret."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "runners" / "engine" / "connect").glob("*.json"))
GUIDE = (ROOT / "docs" / "guide" / "connect.md").read_text(encoding="utf-8")
JAVA = ROOT / "runners" / "engine" / "connect" / "src" / "main"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_configuration_is_in_the_guide_with_its_variables(path: Path) -> None:
    """Each configuration is named as its file, uses classes that are there, and the guide's row has its variables."""
    content = json.loads(path.read_bytes())
    assert content["name"] == path.stem
    (row,) = re.findall(rf"^\| `runners/engine/connect/{path.name}` \|.*$", GUIDE, re.MULTILINE)
    variables = set(re.findall(r"\$\{env:(\w+)\}", path.read_text()))
    assert variables
    assert set(re.findall(r"`(FARCALL_\w+)`", row)) == variables
    for name in re.findall(r"farcall\.connect\.(\w+)", path.read_text()):
        assert (JAVA / "java" / "farcall" / "connect" / f"{name}.java").exists()


def test_every_class_says_that_it_is_there() -> None:
    """A connector or transform that is not in META-INF/services is not found, as the worker searches no jars."""
    named = "".join(path.read_text() for path in (JAVA / "resources" / "META-INF" / "services").iterdir()).split()
    kinds = ("extends SourceConnector", "extends SinkConnector", "implements Transformation")
    classes = [
        path.stem
        for path in (JAVA / "java" / "farcall" / "connect").glob("*.java")
        if any(kind in path.read_text() for kind in kinds)
    ]
    assert sorted(named) == sorted(f"farcall.connect.{name}" for name in classes)
