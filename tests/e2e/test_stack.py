"""The real local stack, with a home and ports of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource

from runners.local import llm, processes
from runners.local.part import StackError
from runners.local.parts import PARTS
from runners.local.ports import Ports, is_taken
from runners.local.processes import ProcessId
from runners.local.stack import Stack
from runners.local.supervisor import read_state
from runners.local.topics import create_topics

pytestmark = pytest.mark.e2e


def call(stack: Stack, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m runners.local`, as a person calls it."""
    ports = ",".join(f"{name.replace('_', '-')}={port}" for name, port in stack.place.ports.as_dict().items())
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "runners.local",
            words[0],
            "--home",
            str(stack.place.home),
            "--ports",
            ports,
            *words[1:],
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def reply(url: str, body: object = None) -> Any:
    request = urllib.request.Request(url, body and json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"), Ports.free())
    done = call(stack, "up")
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield stack
    finally:
        left = [
            facts.id
            for found in processes.marked(stack.place.home, processes.look_at_all()).values()
            for facts in found
        ]
        done = call(stack, "down", "--wipe")
        assert done.returncode == 0, done.stderr
        assert not any(process.alive() for process in left)
        assert not any(map(is_taken, stack.place.ports.as_dict().values()))


def test_status_shows_every_part_up_within_its_memory(stack: Stack) -> None:
    """After `up` every part is up but those that start on request, and all together use less than 5 GiB."""
    done = call(stack, "status", "--json")
    rows = json.loads(done.stdout)["parts"]
    assert done.returncode == 0, done.stdout
    on_request = {part.name for part in PARTS if part.on_request}
    assert {row["name"]: row["state"] for row in rows} == {
        row["name"]: "stopped" if row["name"] in on_request else "up" for row in rows
    }
    assert sum(row["rss_mib"] for row in rows) < 5 * 1024


def test_up_again_changes_nothing(stack: Stack) -> None:
    """A second `up` keeps every process."""
    before = [row.pid for row in stack.status()]
    assert call(stack, "up").returncode == 0
    assert [row.pid for row in stack.status()] == before


def test_topics_are_made_once(stack: Stack) -> None:
    """Topics are created where missing and left alone where they exist."""
    assert create_topics(stack.endpoints.kafka, ["a", "b", "a"], partitions=2) == ["a", "b"]
    assert create_topics(stack.endpoints.kafka, ["a", "b", "c"]) == ["c"]


def test_old_event_times_are_kept(stack: Stack) -> None:
    """Topics keep a record however old its event time is: Kafka would delete it by that, and the reply to it with it."""
    create_topics(stack.endpoints.kafka, ["old"])
    resource = ConfigResource(ConfigResource.Type.TOPIC, "old")
    client = AdminClient({"bootstrap.servers": stack.endpoints.kafka})
    assert client.describe_configs([resource])[resource].result(30)["retention.ms"].value == "-1"


def test_topics_without_a_broker_fail_soon() -> None:
    """Without a broker the error comes in less than ten seconds and names the address."""
    began = time.monotonic()
    with pytest.raises(StackError, match=r"127\.0\.0\.1:1 "):
        create_topics("127.0.0.1:1", ["a"])
    assert time.monotonic() - began < 10


def test_the_language_model_answers(stack: Stack) -> None:
    """The model server completes a chat over OpenAI's API."""
    body = {"model": llm.MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}
    assert reply(f"{stack.endpoints.llm}/chat/completions", body)["choices"][0]["message"]["content"]


def test_a_killed_task_manager_comes_back(stack: Stack) -> None:
    """A TaskManager killed with -9 has a successor within two seconds, which registers its slots by itself."""
    (row,) = (row for row in stack.status() if row.name == "taskmanager")
    killed = ProcessId.of(row.pid)
    os.kill(row.pid, signal.SIGKILL)
    assert processes.wait_ended([killed], 10) == []
    began = time.monotonic()
    while not (now := [each for each in stack_pids(stack) if each[0] == "taskmanager" and each[1] not in (0, row.pid)]):
        assert time.monotonic() - began < 2
        time.sleep(0.01)
    stack.up(["taskmanager"])
    (after,) = (each for each in stack.status() if each.name == "taskmanager")
    assert (after.state, after.pid, after.restarts) == ("up", now[0][1], row.restarts + 1)


def stack_pids(stack: Stack) -> list[tuple[str, int]]:
    return [(name, seen.pid) for name, seen in read_state(stack.place.run).parts.items()]


def test_a_part_that_cannot_start_is_shown_with_the_end_of_its_log(tmp_path: Path) -> None:
    """A Kafka whose data belongs to another cluster: `up` and `status` fail, name it and show the end of its log."""
    broken = Stack(tmp_path, Ports.free())
    (broken.place.data / "kafka").mkdir(parents=True)
    (broken.place.data / "kafka" / "meta.properties").write_text("version=1\nnode.id=77\ncluster.id=other\n")
    try:
        up = call(broken, "up", "kafka")
        assert up.returncode == 1
        assert "kafka ended while it was starting" in up.stderr
        assert "77" in up.stderr
        status = call(broken, "status")
        assert status.returncode == 1
        assert "kafka        dead" in status.stdout
        assert "the end of" in status.stdout
    finally:
        assert call(broken, "down", "--wipe").returncode == 0


def test_a_model_server_alone_ends_with_its_block() -> None:
    """`llm.serve` gives a base URL that answers inside the block and nothing after it."""
    with llm.serve() as server:
        assert reply(f"{server.base_url}/models")["data"][0]["id"] == llm.MODEL
        process = ProcessId.of(server.pid)
    assert not process.alive()
