"""The rules of the house that no other tool holds."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from transforms.ask.shards import MAX_PARALLELISM, key_group, shard_keys

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("pipeline", "transforms", "runners")

# What reads a clock or chance by a module of this name; `clock.py` is for that.
UNSTEADY = {"time", "random", "secrets", "uuid"}
NOW = {"now", "utcnow", "today"}

ALLOWED = {
    # The tokens of state must differ between processes and restarts, and nothing depends on their value (docs/adr/0003); so must
    # the tickets of records on their way (docs/adr/0027).
    "transforms/ask/shard.py": {"os.urandom"},
    "transforms/ask/calls.py": {"os.urandom"},
    # The name of a step, drawn once when the graph is built, tells two steps of one process apart.
    "transforms/ask/step.py": {"uuid.uuid4"},
    # The virtual clock itself: its chance is seeded, and it sleeps on a loop whose time is virtual.
    "transforms/remote/fakes.py": {"random.Random", "asyncio.sleep"},
}


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """The path, relative to the repository, and the tree of each Python file."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_bytes())


def imported(tree: ast.Module) -> set[str]:
    """The modules that a tree imports anywhere, with those it takes names from."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return found


def test_the_contracts_between_rooms_hold() -> None:
    """Import-linter finds every contract of pyproject.toml kept."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


def test_no_room_needs_a_step_in_java() -> None:
    """Beam's KafkaIO and its other cross-language transforms, which need an expansion service, are in no room."""
    known = {
        path
        for path, tree in sources(*ROOMS)
        if any(name.startswith(("apache_beam.io.kafka", "apache_beam.transforms.external")) for name in imported(tree))
    }
    assert not known


def test_the_client_needs_no_beam() -> None:
    """Every module of transforms/remote imports in a fresh interpreter without Beam."""
    modules = [f"transforms.remote.{path.stem}" for path in sorted((ROOT / "transforms/remote").glob("[!_]*.py"))]
    program = (
        "import importlib, sys\n"
        f"for name in {['transforms.remote', *modules]!r}: importlib.import_module(name)\n"
        "print([name for name in sys.modules if name.startswith('apache_beam')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def unsteady(tree: ast.Module) -> set[str]:
    """What a tree reads of clocks and chance, as module.name; a module imported by name counts whole."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            read = (node.value.id, node.attr)
            named = read in {("os", "urandom"), ("asyncio", "sleep")} or (read[0].startswith("date") and read[1] in NOW)
            if named or node.value.id in UNSTEADY:
                found.add(".".join(read))
        elif isinstance(node, ast.ImportFrom) and node.module in UNSTEADY:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(
                f"{alias.name} as {alias.asname}" for alias in node.names if alias.name in UNSTEADY and alias.asname
            )
    return found


def test_one_file_reads_time_and_chance() -> None:
    """In the client and the asynchronous step only clock.py reads a clock, sleeps or draws a number, but for what is allowed."""
    found = {path: names for path, tree in sources("transforms/remote", "transforms/ask") if (names := unsteady(tree))}
    assert found.pop("transforms/remote/clock.py") == {
        "time.time_ns",
        "time.monotonic",
        "asyncio.sleep",
        "random.random",
    }
    assert found == ALLOWED, "what is no longer read need not be allowed"


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.time()",
        "from time import monotonic",
        "import random\nx = random.random()",
        "import os\nos.urandom(3)",
        "import asyncio\nasyncio.sleep(1)",
        "import time as clock",
        "from datetime import datetime\ndef f():\n  datetime.now()",
    ],
)
def test_reading_time_or_chance_is_found(source: str) -> None:
    """The sibling: each way around the clock is found by the same scan."""
    assert unsteady(ast.parse(source))


def test_every_test_states_its_claim() -> None:
    """Every test function has a docstring."""
    silent = [
        f"{path}:{node.name}"
        for path, tree in sources("tests")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


# Beam's own names: they do what Beam says (pyproject.toml says the same to ruff).
BEAM_METHODS = {"process", "setup", "teardown", "start_bundle", "finish_bundle"}


def silent(path: str, tree: ast.Module) -> Iterator[str]:
    """The public module, classes and functions of a file, and public methods of public classes, that have no docstring."""
    if not ast.get_docstring(tree) and tree.body and path != "pipeline/__main__.py":
        yield path
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"{path}:{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from silent_methods(path, node)


def silent_methods(path: str, node: ast.ClassDef) -> Iterator[str]:
    """The public methods of a class without a docstring."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
            public = not method.name.startswith("_") and method.name not in BEAM_METHODS
            if public and not ast.get_docstring(method):
                yield f"{path}:{node.name}.{method.name}"


def test_every_public_name_is_explained() -> None:
    """Every public module, class, function and method of the three rooms has a docstring."""
    found = [name for path, tree in sources(*ROOMS) for name in silent(path, tree)]
    assert found == []


def test_no_two_labels_are_equal() -> None:
    """Within one module no two steps of one scope have the same label: labels are names of state."""
    for path, tree in sources("pipeline", "transforms"):
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            labels = [
                node.left.value
                for node in ast.walk(function)
                if isinstance(node, ast.BinOp)
                and isinstance(node.op, ast.RShift)
                and isinstance(node.left, ast.Constant)
                and isinstance(node.left.value, str)
            ]
            twice = [label for label, count in Counter(labels).items() if count > 1]
            assert twice == [], f"{path}:{function.name}"


def test_nothing_for_workers_is_in_main() -> None:
    """No `__main__` module but for a few lines that call another; nothing that is pickled could come from one."""
    tree = ast.parse((ROOT / "pipeline" / "__main__.py").read_bytes())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
    assert len(tree.body) == 2


@pytest.mark.parametrize("shards", [1, 2, 4, 7, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_shards_spread_evenly(shards: int, parallelism: int) -> None:
    """Each subtask gets as many shards as any other, or one more."""
    counts = Counter(key_group(key) * parallelism // MAX_PARALLELISM for key in shard_keys(shards))
    load = [counts[subtask] for subtask in range(parallelism)]
    assert sum(load) == shards
    assert max(load) - min(load) <= 1


JAVA = """
import java.nio.ByteBuffer;
import org.apache.beam.runners.flink.translation.wrappers.streaming.FlinkKeyUtils;
import org.apache.beam.sdk.coders.ByteArrayCoder;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;

public class Groups {
  public static void main(String[] words) {
    for (String word : words) {
      byte[] key = java.util.HexFormat.of().parseHex(word);
      ByteBuffer buffer = FlinkKeyUtils.encodeKey(key, ByteArrayCoder.of());
      int group = KeyGroupRangeAssignment.assignToKeyGroup(buffer, 128);
      StringBuilder line = new StringBuilder(word + " " + group);
      for (int parallelism : new int[] {1, 2, 4}) {
        line.append(" ").append(
            KeyGroupRangeAssignment.computeOperatorIndexForKeyGroup(128, parallelism, group));
      }
      System.out.println(line);
    }
  }
}
"""


@pytest.mark.e2e
def test_key_groups_are_flinks_own(tmp_path: Path) -> None:
    """Flink's own class, asked in Java, puts each shard key where `key_group` says, and spreads the shards evenly."""
    from runners.local import artifacts

    keys = {shards: shard_keys(shards) for shards in (8, 16)}
    others = [b"", b"\x00", b"\xff" * 3, b"a key of some length, to be sure", bytes(range(100, 227))]
    (tmp_path / "Groups.java").write_text(JAVA)
    flink = artifacts.fetch(artifacts.flink())
    jars = artifacts.class_path(artifacts.fetch(artifacts.beam_jars()), flink / "lib")
    words = [key.hex() for key in (*keys[8], *keys[16], *others)]
    java = artifacts.find_tool(artifacts.JAVA)
    assert java
    done = subprocess.run(
        [java, "-cp", jars, str(tmp_path / "Groups.java"), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "JAVA_TOOL_OPTIONS": ""},
    )
    assert done.returncode == 0, done.stderr
    said = {line.split(" ")[0]: [int(number) for number in line.split(" ")[1:]] for line in done.stdout.splitlines()}
    assert {word: numbers[0] for word, numbers in said.items()} == {
        word: key_group(bytes.fromhex(word)) for word in words
    }
    for shards, own in keys.items():
        for place, parallelism in enumerate((1, 2, 4), start=1):
            load = Counter(said[key.hex()][place] for key in own)
            assert set(load.values()) == {shards // parallelism}, json.dumps(said)
