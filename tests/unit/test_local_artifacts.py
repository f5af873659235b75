"""What is fetched into the cache."""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path
from typing import Never

import pytest

from runners.local import artifacts
from runners.local.part import Artifact, StackError, Tool
from transforms.errors import SettingsError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FARCALL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_two_at_once_fetch_once() -> None:
    """Two that want the same entry at the same time: one fetches, both get it."""
    fills, inside, go_on = [], threading.Event(), threading.Event()

    def fill(folder: Path) -> None:
        fills.append(folder)
        inside.set()
        assert go_on.wait(10)
        (folder / "it").touch()

    artifact, found = Artifact("it", "it-1", fill), []
    threads = [threading.Thread(target=lambda: found.append(artifacts.fetch(artifact))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(fills) == 1
    assert found[0] == found[1]
    assert (found[0] / "it").exists()


def test_a_fetch_that_failed_leaves_nothing_to_trust(cache: Path) -> None:
    """After a failed fetch the next one starts from nothing and succeeds, over a killed one's leftovers too."""

    def broken(folder: Path) -> Never:
        (folder / "half").touch()
        raise StackError("the line broke")

    with pytest.raises(StackError):
        artifacts.fetch(Artifact("it", "it-1", broken))
    (cache / ".partial-it-1").mkdir()
    (cache / ".partial-it-1" / "half").touch()
    path = artifacts.fetch(Artifact("it", "it-1", lambda folder: (folder / "whole").touch()))
    assert [each.name for each in path.iterdir()] == ["whole"]


def test_a_missing_program_is_named_with_its_purpose_and_how_to_get_it() -> None:
    """A missing tool is one sentence: which, what for, how to get it; and nothing is fetched."""
    tool = Tool("no-such-program", "it makes tea", "install a kettle")
    with pytest.raises(SettingsError, match=r"no-such-program.*makes tea.*install a kettle"):
        artifacts.fetch(Artifact("it", "it-1", lambda _: pytest.fail("fetched"), tool))


def test_a_tool_is_not_asked_for_what_is_in_the_cache() -> None:
    """Maven is needed only where jars are still missing."""
    tool = Tool("no-such-program", "it makes tea", "install a kettle")
    artifact = Artifact("it", "it-1", lambda _: None, tool)
    assert artifacts.missing_tools([artifact]) == [tool]
    artifacts.path_of(artifact).mkdir(parents=True)
    assert artifacts.missing_tools([artifact]) == []
    assert artifacts.fetch(artifact) == artifacts.path_of(artifact)


def test_an_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Java older than 17 is refused by its version."""
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match="Java 11 is too old"):
        artifacts.check_tools([artifacts.JAVA])


def test_another_pom_is_another_entry() -> None:
    """The jars' cache entry is keyed by the content of its pom, and the two poms have an entry each."""
    assert artifacts.beam_jars().key.startswith("engine-")
    assert artifacts.kafka_jars().key.startswith("kafka-")
    assert artifacts.beam_jars().key == artifacts.beam_jars().key


def test_the_agent_jar_names_every_jar_in_lines_a_manifest_may_have(tmp_path: Path) -> None:
    """The manifest lists all jars, in order, in lines of at most 72 bytes."""
    jars = [tmp_path / f"a-rather-long-name-of-a-jar-{number:03}.jar" for number in range(30)]
    for jar in jars:
        jar.touch()
    with zipfile.ZipFile(artifacts.agent_jar([tmp_path], tmp_path / "agent.zip")) as jar:
        text = jar.read("META-INF/MANIFEST.MF").decode()
    assert max(map(len, text.splitlines())) <= 72
    assert text.replace("\r\n ", "").splitlines()[2] == "Class-Path: " + " ".join(jar.as_uri() for jar in jars)
