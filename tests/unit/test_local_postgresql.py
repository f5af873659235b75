"""PostgreSQL as a part of the stack: its password, who runs it, whether it answers. No server is started."""

from __future__ import annotations

import io
import json
import os
import platform
import pwd
import socket
import subprocess
import tarfile
import threading
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest

from runners.local import artifacts, postgresql, probes, workers
from runners.local.part import Command, Place
from runners.local.parts import PARTS
from runners.local.ports import Ports
from runners.local.supervisor import Planned
from transforms.errors import SettingsError

(PART,) = (part for part in PARTS if part.name == "postgresql")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARCALL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(postgresql.VARIABLE, raising=False)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "home", Ports())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_password_is_in_one_file_alone(place: Place) -> None:
    """It is made once, only this user may read it, and neither the plan of the supervisor nor the URL holds it."""
    command = PART.command(place)
    path = place.secrets / postgresql.VARIABLE
    password = path.read_text()
    assert (mode(path), mode(place.secrets)) == (0o600, 0o700)
    assert len(password) >= 32
    planned = json.dumps(asdict(Planned(command.words, dict(command.env), "log")))
    assert PART.url is not None
    assert password not in planned + PART.url(place)
    assert str(path) in command.words[-2]
    PART.command(place)
    assert path.read_text() == password


def test_a_password_that_the_variable_names_is_the_databases(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the variable holds at the first start is kept; another one later is refused, by a sentence without either."""
    monkeypatch.setenv(postgresql.VARIABLE, "first one")
    command = PART.command(place)
    assert (place.secrets / postgresql.VARIABLE).read_text() == "first one"
    assert "first one" not in json.dumps([command.words, dict(command.env)])
    PART.command(place)
    monkeypatch.setenv(postgresql.VARIABLE, "second one")
    with pytest.raises(SettingsError, match="down --wipe") as refused:
        PART.command(place)
    assert "one" not in str(refused.value).split()


def test_the_server_is_not_told_the_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment of PostgreSQL's own processes is without the variable."""
    monkeypatch.setenv(postgresql.VARIABLE, "secret")
    monkeypatch.setenv("OTHER", "kept")
    found = postgresql._as(None, tmp_path)["env"]
    assert postgresql.VARIABLE not in found
    assert found["OTHER"] == "kept"


def test_workers_have_the_password(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker's environment has what the stack's folder of secrets holds when it starts; the pool's own goes first."""
    assert f"--secrets={place.secrets}" in next(part for part in PARTS if part.name == "workers").command(place).words
    assert workers.read_secrets(place.secrets) == {}
    PART.command(place)
    (place.secrets / "OTHER").write_text("of the file")
    monkeypatch.setenv("OTHER", "of the pool")
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(workers.subprocess, "Popen", lambda *_, env, **__: seen.append(env))
    pool = workers.Pool(workers.PoolSettings(0, tmp_path, tmp_path / "workers.json", place.secrets))
    pool._spawn(workers._Start("1-1", "localhost:1"))
    assert seen[0][postgresql.VARIABLE] == (place.secrets / postgresql.VARIABLE).read_text()
    assert seen[0]["OTHER"] == "of the pool"


def test_root_does_not_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user is root another runs it, `postgres` before `nobody`; who is not root runs it as they are."""
    everyone = {name: pwd.struct_passwd((name, "x", uid, uid, "", "/", "")) for name, uid in (("nobody", 9), ("x", 7))}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert postgresql.server_user() is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwall", lambda: list(everyone.values()))
    assert postgresql.server_user() == everyone["nobody"]
    everyone["postgres"] = pwd.struct_passwd(("postgres", "x", 8, 8, "", "/", ""))
    assert postgresql.server_user() == everyone["postgres"]
    everyone.clear()
    with pytest.raises(SettingsError, match="no user postgres or nobody"):
        postgresql.server_user()


def test_a_folder_that_its_user_may_not_enter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first closed folder on the way is named, with what to do; who owns it may enter, and so may its group."""
    closed = tmp_path / "closed"
    (closed / "home").mkdir(parents=True)
    closed.chmod(0o700)
    mine = closed.stat()
    stranger = pwd.struct_passwd(("nobody", "x", mine.st_uid + 1, mine.st_gid + 1, "", "/", ""))
    monkeypatch.setattr(postgresql, "server_user", lambda: stranger)
    # A folder above may be closed to strangers already, as pytest's own are.
    assert postgresql.closed_to(stranger, closed / "home") in (closed, tmp_path, *tmp_path.parents)
    with pytest.raises(SettingsError, match=r"may not enter .*--home or FARCALL_HOME"):
        PART.check(Place(closed / "home", Ports()))
    owner = pwd.struct_passwd(("me", "x", mine.st_uid, mine.st_gid, "", "/", ""))
    assert postgresql.closed_to(owner, closed / "home") is None
    monkeypatch.setattr(postgresql, "server_user", lambda: None)
    PART.check(Place(closed / "home", Ports()))


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        (b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0", None),
        (b"E\0\0\0\x54SFATAL\0C57P03\0\0", "does not take connections yet"),
        (b"R\0\0\0\x08\0\0\0\0", "no answer of PostgreSQL's protocol"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no answer of PostgreSQL's protocol"),
        (b"", "no answer of PostgreSQL's protocol"),
    ],
    ids=["asks for the password", "starts", "lets anybody in", "is another server", "hangs up"],
)
def test_it_is_up_when_it_asks_for_a_password(answer: bytes, missing: str | None) -> None:
    """A server that asks for the password by SCRAM is up; one that starts, lets anybody in or is another is not."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reply() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        port = server.getsockname()[1]
        assert probes.postgresql("127.0.0.1", port, "me") == missing
        thread.join()
    assert (probes.postgresql("127.0.0.1", port, "me") or "").startswith("no answer (")


def test_the_archive_in_the_jar_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Maven fetched is unpacked into the entry, programs executable, and the jar does not stay."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        program = tarfile.TarInfo("bin/postgres")
        program.mode, program.size = 0o755, 2
        archive.addfile(program, io.BytesIO(b"it"))

    def run(_title: str, words: list[str]) -> None:
        assert any(word.startswith("-Dbuild=linux-") for word in words)
        (output,) = (word.removeprefix("-DoutputDirectory=") for word in words if "-DoutputDirectory=" in word)
        with zipfile.ZipFile(Path(output) / "postgresql.jar", "w") as jar:
            jar.writestr("postgres-linux-x86_64.txz", packed.getvalue())

    monkeypatch.setattr(artifacts, "_run", run)
    monkeypatch.setattr(artifacts, "check_tools", lambda _: None)
    entry = artifacts.postgresql()
    assert entry.tool == artifacts.MAVEN
    folder = artifacts.fetch(entry)
    assert [path.name for path in folder.iterdir()] == ["bin"]
    assert (folder / "bin" / "postgres").stat().st_mode & 0o111


def test_each_kind_of_machine_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds of machine have an entry each; on another the part is refused by a sentence."""
    keys = set()
    for kind in ("x86_64", "aarch64"):
        monkeypatch.setattr(platform, "machine", lambda kind=kind: kind)
        keys.add(artifacts.postgresql().key)
    assert len(keys) == 2
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(SettingsError, match="s390x"):
        artifacts.postgresql()


def test_a_database_that_cannot_be_made_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where initdb fails there is no database, no copy of the password stays, and the next start tries again."""
    (tmp_path / "password").write_text("secret")
    words = [f"--programs={tmp_path}", f"--data={tmp_path / 'data'}", f"--password={tmp_path / 'password'}", "--port=1"]
    seen: list[list[str]] = []

    def fail(command: list[str], **_: object) -> None:
        seen.append(command)
        (given,) = (Path(word.removeprefix("--pwfile=")) for word in command if word.startswith("--pwfile="))
        assert (given.read_text(), mode(given)) == ("secret", 0o600)
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(postgresql, "server_user", lambda: None)
    monkeypatch.setattr(subprocess, "run", fail)
    for _ in range(2):
        assert postgresql.main(words) == 1
    assert len(seen) == 2
    assert "initdb" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []
    assert "secret" not in " ".join(seen[0])


def test_it_has_a_url_of_its_own(place: Place) -> None:
    """`up` shows the database's URL as `--orders` takes it."""
    assert PART.url is not None
    assert PART.url(place) == f"postgresql://farcall:${{env:{postgresql.VARIABLE}}}@127.0.0.1:15432/postgres"
    assert isinstance(PART.command(place), Command)
