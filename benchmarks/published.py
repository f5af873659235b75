"""What is published of each benchmark: one JSON file a program in `benchmarks/results`, from which `document.py` writes the page.

A file holds the date, the machine, the command that makes it, `figures` by name, and whatever else its program keeps.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from runners.local.artifacts import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def machine() -> str:
    """The machine in a few words."""
    version = ".".join(map(str, sys.version_info[:3]))
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {version}"


def result(command: str, figures: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """A result as it is published. `figures` are what targets are held against, `command` prints them again."""
    date = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return {"date": date, "machine": machine(), "command": command, "figures": dict(figures), **more}


def write(name: str, found: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write the result of the program `name`; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    return path


def read(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The published result of the program `name`; empty where there is none."""
    path = folder / f"{name}.json"
    if not path.exists():
        return {}
    found: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    return found
