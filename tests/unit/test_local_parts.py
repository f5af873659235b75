"""The command lines and settings files of the real parts. Nothing is started."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Never

import pytest

from runners.local import __main__ as cli
from runners.local import artifacts, flinkconf, llm, workers
from runners.local.part import Command, Place
from runners.local.parts import GROUPS, PARTS
from runners.local.ports import Ports
from runners.local.stack import PartStatus


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("FARCALL_CACHE", str(tmp_path / "cache"))
    return Place(tmp_path / "home with blank", Ports())


def command(name: str, place: Place) -> Command:
    place.conf.mkdir(parents=True, exist_ok=True)
    (part,) = (part for part in PARTS if part.name == name)
    return part.command(place)


@pytest.mark.parametrize("name", [part.name for part in PARTS])
def test_each_part_renders_its_command_without_its_artifacts(name: str, place: Place) -> None:
    """Every part's command line is made of words, from a home whose path has a blank."""
    rendered = command(name, place)
    assert all(isinstance(word, str) and word for word in rendered.words)
    assert json.dumps(dict(rendered.env))


def test_all_parts_together_may_use_less_than_five_gib() -> None:
    """The bounds of the parts that are started together add up to less than 5 GiB, those on request to less than 6."""
    assert sum(part.memory_mib for part in PARTS if not part.on_request) < 5 * 1024
    assert sum(part.memory_mib for part in PARTS) < 6 * 1024


def test_every_port_belongs_to_one_part() -> None:
    """Each port of `Ports` is checked by exactly one part."""
    used = [name for part in PARTS for name in part.port_names]
    assert sorted(used) == sorted(field.name for field in dataclasses.fields(Ports))


def test_the_language_model_needs_python_alone() -> None:
    """`up llm` asks for no Java, no Maven, no Go and no other part."""
    (part,) = (part for part in PARTS if part.name == "llm")
    assert part.tools == part.requires == ()
    assert [artifact.tool for artifact in part.artifacts()] == [None]


def test_groups_name_parts_that_exist() -> None:
    """A group's members are parts."""
    assert {name for members in GROUPS.values() for name in members} <= {part.name for part in PARTS}


def test_nothing_travels_with_a_job(place: Place) -> None:
    """The job server has an empty class path beside its agent, and expansion hands out an empty jar."""
    job_server = command("jobserver", place)
    assert job_server.env["CLASSPATH"] == str(artifacts.empty_jar())
    assert any(word.startswith("-javaagent:") for word in job_server.words)
    assert f"--filesToStage={artifacts.empty_jar()}" in command("expansion", place).words


def test_kafka_prepares_its_folder_once(tmp_path: Path) -> None:
    """The broker's first start prepares the data folder, a later one does not; a failed preparation starts nothing."""
    words = command("kafka", Place(tmp_path, Ports())).words
    script = words[2]

    def run(marker: str, prepare: list[str], start: list[str]) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-c", script, "kafka", marker, str(len(prepare)), *prepare, *start],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    marker = str(tmp_path / "marker")
    assert run(marker, ["touch", marker], ["echo", "two words"]) == (0, "two words\n")
    assert run(marker, ["false"], ["echo", "again"]) == (0, "again\n")
    assert run(marker + "2", ["false"], ["echo", "never"]) == (1, "")


def test_settings_bind_to_this_machine_alone(place: Place) -> None:
    """Kafka and Flink listen on 127.0.0.1, at the ports given."""
    ports = Ports(kafka=1111, flink=2222)
    kafka = flinkconf.kafka_properties(ports, place.data)
    flink = flinkconf.flink_config(ports, place.data)
    assert "listeners=PLAINTEXT://127.0.0.1:1111,CONTROLLER://127.0.0.1:19093\n" in kafka
    assert "rest.port: 2222\n" in flink
    assert "rest.bind-address: 127.0.0.1\n" in flink
    assert "0.0.0.0" not in kafka + flink


def test_flink_keeps_its_checkpoints_at_home_and_never_gives_up(place: Place) -> None:
    """Checkpoints and savepoints are files under the home, and restarts are not bounded."""
    flink = flinkconf.flink_config(Ports(), place.data)
    assert f"execution.checkpointing.dir: {(place.data / 'checkpoints').as_uri()}\n" in flink
    assert "restart-strategy.fixed-delay.attempts: 2147483647\n" in flink


def test_the_task_managers_shares_add_up() -> None:
    """The JVM's bounds and Flink's shares describe the same memory."""
    memory = flinkconf.TaskManagerMemory()
    assert f"-Xmx{memory.heap_mib}m" in memory.jvm_words()
    assert memory.process_mib == 1536
    assert f"taskmanager.memory.managed.size={memory.managed_mib}m" in memory.flink_words()


def test_the_language_model_gets_room_for_long_prompts() -> None:
    """Each slot has room for a prompt of 1500 tokens and its reply."""
    words = llm.command(18088)
    assert "--port=18088" in words
    assert llm.SLOT_TOKENS >= 1500 + 256
    assert f"--slot-tokens={llm.SLOT_TOKENS}" in words


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[workers.Pool]:
    monkeypatch.setattr(workers, "_LOOK_EVERY_S", 0.005)
    made = workers.Pool(workers.PoolSettings(0, tmp_path, tmp_path / "workers.json"))

    def spawn(wish: workers._Start) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])

    monkeypatch.setattr(made, "_spawn", spawn)
    yield made
    made.close()


def started(pool: workers.Pool, name: str) -> int:
    wish = workers._Start(name, "localhost:1")
    pool._wishes.put(wish)
    pool.turn()
    return wish.started.result(timeout=0)


def test_a_killed_worker_is_collected_and_the_pool_goes_on(pool: workers.Pool, tmp_path: Path) -> None:
    """A worker killed with -9 leaves the list of pids; the pool starts the next one as before."""
    first, second = started(pool, "1-1"), started(pool, "1-2")
    assert workers.read_pids(tmp_path / "workers.json") == {"1-1": first, "1-2": second}
    killed = pool._workers["1-1"]
    killed.kill()
    killed.wait()
    pool.turn()
    assert workers.read_pids(tmp_path / "workers.json") == {"1-2": second}
    assert started(pool, "1-1") not in (first, second)


def test_a_worker_is_stopped_on_request_and_all_when_the_pool_closes(pool: workers.Pool, tmp_path: Path) -> None:
    """StopWorker ends that worker; closing ends the rest and empties the list."""
    started(pool, "a")
    started(pool, "b")
    stopped, other = pool._workers["a"], pool._workers["b"]
    pool.stop("a")
    pool.turn()
    assert stopped.wait(10)
    pool.close()
    assert other.poll() is not None
    assert workers.read_pids(tmp_path / "workers.json") == {}


def test_a_worker_that_cannot_be_started_is_the_callers_error(
    pool: workers.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error on starting goes to who asked, and the pool goes on."""

    def refuse(_wish: workers._Start) -> Never:
        raise OSError("no memory")

    with monkeypatch.context() as broken:
        broken.setattr(pool, "_spawn", refuse)
        with pytest.raises(OSError, match="no memory"):
            started(pool, "a")
    monkeypatch.undo()


def test_the_table_has_a_line_for_each_part_and_a_sum() -> None:
    """`status` shows each part by name and what all use together."""
    rows = [PartStatus("one", "up", pid=5, port=6, rss_mib=7, uptime_s=61, restarts=2), PartStatus("two", "stopped")]
    header, one, two, total = cli.table(rows)
    assert header.split()[0] == "part"
    assert one.split() == ["one", "up", "5", "6", "7", "1m01s", "2"]
    assert two.split()[:2] == ["two", "stopped"]
    assert total.split() == ["total", "7"]


def test_a_wrong_flag_ends_with_status_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong port, part or log name: one sentence on standard error, exit status 2."""
    home = ["--home", str(tmp_path)]
    for words in (["up", "--ports", "x=1"], ["up", "teapot"], ["logs", "teapot"], ["down", "--wipe", "kafka"]):
        assert cli.main([words[0], *home, *words[1:]]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.endswith(".\n")


def test_workers_find_what_the_caller_finds(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case of one's own is imported on the workers from the caller's PYTHONPATH, behind the project itself."""
    monkeypatch.setenv("PYTHONPATH", "/a/case")
    assert command("workers", place).env["PYTHONPATH"] == f"{artifacts.ROOT}:/a/case"
    monkeypatch.delenv("PYTHONPATH")
    assert command("workers", place).env["PYTHONPATH"] == str(artifacts.ROOT)
