"""The local stack with parts that are trivial programs: no JVM, no network beyond one port."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runners.local import processes, supervisor
from runners.local.part import Artifact, Command, Part, Place, StackError
from runners.local.ports import Ports
from runners.local.processes import ProcessId
from runners.local.stack import Stack
from transforms.errors import SettingsError

Make = Callable[..., Stack]

# Says that it is there by a file with its pid, then waits for a signal.
LIVES = "import os, signal, sys; open(sys.argv[1] + '.new', 'w').write(str(os.getpid())); "
LIVES += "os.rename(sys.argv[1] + '.new', sys.argv[1]); signal.pause()"
DIES = "import sys; print('first line'); print('the reason why'); sys.exit(3)"


def part(name: str, program: str = LIVES, **words: Any) -> Part:
    def sign(place: Place) -> Path:
        return place.home / f"{name}.pid"

    def command(place: Place) -> Command:
        return Command((sys.executable, "-S", "-c", program, str(sign(place))))

    def probe(place: Place) -> str | None:
        return None if sign(place).exists() else "no sign of it"

    return Part(name, command, probe, ready_within_s=20, **words)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made = []

    def make(*parts: Part, home: str = "home") -> Stack:
        # Free ones: a developer's own stack may be up.
        stack = Stack(tmp_path / home, Ports.free(), parts)
        made.append(stack)
        return stack

    yield make
    for stack in made:
        stack.down()


def pids(stack: Stack) -> dict[str, int | None]:
    return {row.name: row.pid for row in stack.status()}


def states(stack: Stack) -> dict[str, str]:
    return {row.name: row.state for row in stack.status()}


def wait_end(pid: int) -> None:
    """Until the kernel says that the process ended; it is not our child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], 20)[0], "it did not end"
    finally:
        os.close(handle)


def wait_sign(path: Path, other_than: str) -> str:
    """Until a new process has signed."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and (now := path.read_text()) != other_than:
            return now
        time.sleep(0.005)
    raise AssertionError("nobody signed")


def test_up_starts_all_and_down_leaves_nothing(make: Make) -> None:
    """After `up` every part is up with a line each, after `down` none of its processes runs and all are stopped."""
    stack, lines = make(part("one"), part("two")), []
    stack.up(report=lines.append)
    assert set(states(stack).values()) == {"up"}
    assert sorted(line.split()[0] for line in lines) == ["one", "two"]
    started = [ProcessId.of(pid) for pid in pids(stack).values()]
    assert len(started) == 3
    assert stack.down() == ["one", "two"]
    assert not any(process.alive() for process in started)
    assert set(states(stack).values()) == {"stopped"}
    assert processes.marked(stack.place.home, processes.look_at_all()) == {}


def test_up_again_starts_nothing_that_runs(make: Make) -> None:
    """A second `up` leaves what runs as it is and adds only what is missing."""
    stack = make(part("one"), part("two"))
    stack.up(["one"])
    before = pids(stack)
    assert before["two"] is None
    stack.up()
    after = pids(stack)
    assert (after["one"], after["supervisor"]) == (before["one"], before["supervisor"])
    assert after["two"]


def test_what_a_part_requires_comes_up_with_it(make: Make) -> None:
    """`up b` starts a too where b requires it, and not c."""
    stack = make(part("a"), part("b", requires=("a",)), part("c"))
    stack.up(["b"])
    assert states(stack) == {"a": "up", "b": "up", "c": "stopped", "supervisor": "up"}


def test_a_part_killed_comes_back_and_the_restart_is_counted(make: Make) -> None:
    """A part killed with -9 is started again by itself; status counts the restart and the signal."""
    stack = make(part("one"))
    stack.up()
    first = pids(stack)["one"]
    os.kill(first, signal.SIGKILL)
    second = int(wait_sign(stack.place.home / "one.pid", other_than=str(first)))
    stack.up()
    (row, _) = stack.status()
    assert (row.pid, row.restarts, row.exit_status) == (second, 1, -signal.SIGKILL)


def test_a_part_that_ends_while_starting_fails_up_by_name_with_its_log(make: Make) -> None:
    """`up` fails with the part's name, its status and the end of its log; status shows it dead; the others stay up."""
    stack = make(part("good"), part("bad", DIES))
    with pytest.raises(StackError, match=r"(?s)bad ended while it was starting, with status 3.*the reason why"):
        stack.up()
    rows = {row.name: row for row in stack.status()}
    assert rows["good"].state == "up"
    assert rows["bad"].state == "dead"
    assert "the reason why" in rows["bad"].log_tail


def test_a_part_that_is_never_ready_is_given_up_in_time(make: Make) -> None:
    """`up` waits no longer than the part's time, says what was missing, and leaves no process of it behind."""
    never = Part("never", part("never").command, lambda _: "no answer", ready_within_s=0.3)
    stack = make(never)
    with pytest.raises(StackError, match=r"never was not ready within 0 s: no answer"):
        stack.up()
    assert pids(stack)["never"] is None
    assert "never" not in processes.marked(stack.place.home, processes.look_at_all())


def test_parts_outlive_a_killed_supervisor_and_are_found_again(make: Make) -> None:
    """With the supervisor killed, the parts go on; `up` starts a new one that keeps them, and `down` still ends all."""
    stack = make(part("one"))
    stack.up()
    before = pids(stack)
    os.kill(before["supervisor"], signal.SIGKILL)
    wait_end(before["supervisor"])
    assert states(stack) == {"one": "up", "supervisor": "dead"}
    stack.up()
    assert pids(stack)["one"] == before["one"]
    assert states(stack)["supervisor"] == "up"


def test_down_ends_children_of_parts_too(make: Make) -> None:
    """Processes that a part started itself end with it."""
    program = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', 'import signal; signal.pause()']); "
    )
    stack = make(part("one", program + LIVES))
    stack.up()
    ours = [facts.id for facts in processes.marked(stack.place.home, processes.look_at_all())["one"]]
    assert len(ours) == 2
    stack.down()
    assert not any(process.alive() for process in ours)


def test_down_of_one_part_is_no_crash(make: Make) -> None:
    """A part ended on purpose is stopped, not dead, is not started again, and counts no restart when it comes back."""
    stack = make(part("one"), part("two"))
    stack.up()
    assert stack.down(["one"]) == ["one"]
    assert states(stack) == {"one": "stopped", "two": "up", "supervisor": "up"}
    stack.up()
    assert [row.restarts for row in stack.status()] == [0, 0, 0]


def test_two_stacks_do_not_touch_each_other(make: Make) -> None:
    """`down` of one home leaves the other's processes alone."""
    one, two = make(part("same"), home="1"), make(part("same"), home="2")
    one.up()
    two.up()
    one.down()
    assert states(two)["same"] == "up"


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """With a port taken by another, `up` starts no part and no supervisor."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = Ports(kafka=other.getsockname()[1])
        stack = Stack(tmp_path / "home", ports, [part("one"), part("broker", port_names=("kafka",))])
        with pytest.raises(SettingsError, match="--ports kafka=PORT"):
            stack.up()
    assert not stack.place.home.exists()


def test_a_part_that_cannot_run_here_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A part that refuses the place is refused before anything is fetched or started; where it is not asked for, it has no say."""

    def refuse(place: Place) -> None:
        raise SettingsError(f"not at {place.home}")

    fetched = Artifact("it", "it-1", lambda _: pytest.fail("fetched"))
    picky = part("picky", check=refuse, artifacts=lambda: (fetched,), on_request=True)
    stack = Stack(tmp_path / "home", Ports(), [part("one"), picky])
    with pytest.raises(SettingsError, match="not at"):
        stack.up(["one", "picky"])
    assert not stack.place.home.exists()
    stack.up()
    assert states(stack) == {"one": "up", "picky": "stopped", "supervisor": "up"}
    stack.down()


def test_a_part_with_a_url_shows_it(make: Make) -> None:
    """`up` names the URL of a part that has one in place of host and port."""
    lines: list[str] = []
    stack = make(part("one", port_names=("kafka",), url=lambda place: f"it://{place.ports.kafka}"))
    stack.up(report=lines.append)
    assert [line.rpartition(", ")[2] for line in lines] == [f"it://{stack.place.ports.kafka}"]


def test_an_unknown_part_is_refused_with_the_known_ones(make: Make) -> None:
    """A part that does not exist is refused with the names of those that do."""
    with pytest.raises(SettingsError, match=r"no part 'three'; it has one, two"):
        make(part("one"), part("two")).up(["three"])


def test_wipe_deletes_what_the_parts_stored(make: Make) -> None:
    """`down --wipe` deletes data and logs, `down` alone keeps them."""
    stack = make(part("one"))
    stack.up()
    (stack.place.data / "kept").touch()
    stack.down()
    assert (stack.place.data / "kept").exists()
    stack.down(wipe=True)
    assert not stack.place.data.exists()


def test_wipe_leaves_a_folder_alone_that_never_was_a_stack(make: Make) -> None:
    """`down --wipe` with a home where no stack ever ran deletes nothing."""
    stack = make(part("one"))
    stack.place.data.mkdir(parents=True)
    stack.down(wipe=True)
    assert stack.place.data.exists()


def test_restarts_wait_longer_each_time_up_to_a_bound() -> None:
    """The first restart comes within two seconds, each next one later, and never later than ten seconds."""
    delays = [supervisor.delay_s(deaths) for deaths in range(40)]
    assert delays[0] < 2
    assert delays == sorted(delays)
    assert delays[-1] == supervisor.LONGEST_DELAY_S == 10
