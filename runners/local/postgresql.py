"""PostgreSQL as a part of the local stack: its password, who runs it, and the process that looks after it.

`python -m runners.local.postgresql` makes the database at its first start and then serves it. It stands between the
supervisor and the server for two reasons: PostgreSQL refuses to run as root, and it takes SIGTERM as a wish to wait
until every client has gone. Standard library alone, and Linux alone.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.local.ports import HOST
from transforms.errors import SettingsError

VARIABLE = "FARCALL_POSTGRESQL_PASSWORD"
"""The variable that the URL names, and the name of the file that holds the password."""

USER = "farcall"
DATABASE = "postgres"

_PR_SET_PDEATHSIG = 1
_UNPRIVILEGED = ("postgres", "nobody")
# For a few workers' pools of connections on a laptop; the defaults are for a server.
_SETTINGS = (
    f"listen_addresses={HOST}",
    "unix_socket_directories=",
    "shared_buffers=16MB",
    "max_connections=40",
    "max_wal_size=128MB",
)


@dataclass(frozen=True)
class Server:
    """What the server needs to know: the folder of its programs, that of its data, the file of the password, the port."""

    programs: Path
    data: Path
    password: Path
    port: int

    def words(self) -> tuple[str, ...]:
        """The command line that serves it. No secret is in it."""
        given = (f"--programs={self.programs}", f"--data={self.data}", f"--password={self.password}")
        return (sys.executable, "-m", "runners.local.postgresql", *given, f"--port={self.port}")


def url(port: int) -> str:
    """The database's URL as `--orders` takes it: the password is named in it, not written."""
    return f"postgresql://{USER}:${{env:{VARIABLE}}}@{HOST}:{port}/{DATABASE}"


def keep_password(folder: Path) -> Path:
    """The file of the password in `folder`, which only this user may read.

    Made once: what $FARCALL_POSTGRESQL_PASSWORD holds then, else 24 random bytes. Raises SettingsError where the
    variable holds another one later: the database knows the first.
    """
    path, named = folder / VARIABLE, os.environ.get(VARIABLE)
    if path.exists():
        if named and named != path.read_text():
            raise SettingsError(
                f"${VARIABLE} is not the password that the database was made with, which {path} holds; "
                "unset the variable, or delete the database with `down --wipe`."
            )
        return path
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(named or secrets.token_urlsafe(24))
    return path


def server_user() -> pwd.struct_passwd | None:
    """Who the server runs as where this user is root: ``postgres`` if there is one, else ``nobody``; else None.

    Raises SettingsError where the machine has neither.
    """
    if os.geteuid() != 0:
        return None
    known = {each.pw_name: each for each in pwd.getpwall()}
    for name in _UNPRIVILEGED:
        if name in known:
            return known[name]
    raise SettingsError(
        "PostgreSQL refuses to run as root, and this machine has no user postgres or nobody; run the stack as another user."
    )


def check_home(home: Path) -> None:
    """Raise SettingsError where the server's user may not enter the stack's folder, or that user is not there."""
    who = server_user()
    closed = None if who is None else closed_to(who, home)
    if who is not None and closed is not None:
        raise SettingsError(
            f"PostgreSQL refuses to run as root, and the user {who.pw_name}, who runs it then, may not enter {closed}; "
            "name a stack's folder that others may enter with --home or FARCALL_HOME, or run the stack as another user."
        )


def closed_to(who: pwd.struct_passwd, path: Path) -> Path | None:
    """The first folder on the way to `path`, itself included, that `who` may not enter; None where the way is open."""
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            return None
        found = folder.stat()
        needed = 0o100 if found.st_uid == who.pw_uid else 0o010 if found.st_gid == who.pw_gid else 0o001
        if not found.st_mode & needed:
            return folder
    return None


def serve(server: Server) -> int:
    """Serve until SIGTERM, then end the server by its fast shutdown. Returns its exit status.

    Must be called on the main thread: the kernel ends the server when the thread that started it ends.
    """
    who = server_user()
    server.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if who is not None:
        os.chown(server.data, who.pw_uid, who.pw_gid)
    programs = _programs_for(who, server)
    cluster = server.data / "cluster"
    if not cluster.exists():
        _make(who, programs, server, cluster)
    options = [word for setting in _SETTINGS for word in ("-c", setting)]
    words = [str(programs / "bin" / "postgres"), "-D", str(cluster), "-p", str(server.port), *options]
    running = subprocess.Popen(words, **_as(who, server.data))
    signal.signal(signal.SIGTERM, lambda *_: running.send_signal(signal.SIGINT))
    status = running.wait()
    return status if status >= 0 else 128 - status


def _programs_for(who: pwd.struct_passwd | None, server: Server) -> Path:
    """The programs' folder; a copy beside the data where `who` may not enter the cache, such as root's own."""
    if who is None or closed_to(who, server.programs / "bin") is None:
        return server.programs
    copy = server.data / server.programs.name
    if not copy.exists():
        partial = server.data / ".partial-programs"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(server.programs, partial, symlinks=True)
        for path in (partial, *partial.rglob("*")):
            os.chown(path, who.pw_uid, who.pw_gid, follow_symlinks=False)
        partial.rename(copy)
    return copy


def _make(who: pwd.struct_passwd | None, programs: Path, server: Server, cluster: Path) -> None:
    """Make the database. It has its name only when it is complete: what was interrupted is made again."""
    partial, password = server.data / ".partial-cluster", server.data / ".password"
    shutil.rmtree(partial, ignore_errors=True)
    password.unlink(missing_ok=True)
    # A copy for the server's user, who may not read the file itself, for as long as initdb runs.
    with os.fdopen(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(server.password.read_text())
    if who is not None:
        os.chown(password, who.pw_uid, who.pw_gid)
    try:
        subprocess.run(
            [
                *(str(programs / "bin" / "initdb"), "-D", str(partial), "-U", USER, f"--pwfile={password}"),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"),
            ],
            check=True,
            **_as(who, server.data),
        )
    finally:
        password.unlink()
    partial.rename(cluster)


def _as(who: pwd.struct_passwd | None, folder: Path) -> dict[str, Any]:
    """How `subprocess` starts a program as `who`, that ends in good order when this process is killed."""
    words: dict[str, Any] = {
        "cwd": folder,
        "stdin": subprocess.DEVNULL,
        "env": {name: value for name, value in os.environ.items() if name != VARIABLE},
        "preexec_fn": _ends_with(os.getpid()),
    }
    if who is not None:
        words |= {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
    return words


def _ends_with(parent: int) -> Callable[[], None]:
    """For a child, before its program: SIGINT when its parent ends. Called after the change of user, which would undo it."""
    library = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def main(arguments: list[str] | None = None) -> int:
    """Serve what the flags name."""
    parser = argparse.ArgumentParser(prog="python -m runners.local.postgresql", description=__doc__)
    for name in ("programs", "data", "password"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args(arguments)
    try:
        return serve(Server(given.programs, given.data, given.password, given.port))
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - its standard error is its log
        return 2
    except subprocess.CalledProcessError as error:
        print(f"initdb ended with status {error.returncode}; its lines above say why.", file=sys.stderr)  # noqa: T201 - as above
        return 1


if __name__ == "__main__":
    sys.exit(main())
