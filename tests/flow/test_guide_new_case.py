"""docs/guide/new-case.md is followed to the letter: its files are written, its commands run, and what it says comes out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guide" / "new-case.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """The files of the guide by their names, which stand in their first lines."""
    blocks = [match[2] for match in BLOCK.finditer(GUIDE) if match[1] != "sh"]
    return {block.splitlines()[0].removeprefix("# "): block for block in blocks}


def commands() -> list[str]:
    """The blocks of commands, in their order."""
    return [match[2] for match in BLOCK.finditer(GUIDE) if match[1] == "sh"]


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_the_guide_gives_what_it_says(tmp_path: Path) -> None:
    """The guide's files and commands alone make a case that gives each of 301 readings its outcome, and tests that pass."""
    assert sorted(files()) == [
        "maintenance.py",
        "model_server.py",
        "models.yaml",
        "readings.py",
        "test_maintenance.py",
    ]
    for name, content in files().items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    script = "set -e\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "".join(commands())
    folder = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    out = tmp_path / "out"
    orders, fine = (lines(out / f"maintenance.{name}.jsonl") for name in ("work-orders", "fine"))
    (broken,) = lines(out / "maintenance.dead-letters.jsonl")
    assert len(orders) + len(fine) == 300
    assert len(orders) > 5
    assert {one["machine"] for one in orders} == {"m3"}
    assert (broken["id"], broken["stage"], broken["error_type"]) == ("m9-00", "parse", "bad-field")
