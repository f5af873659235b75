"""A real PostgreSQL of this machine's own programs, for as long as a block runs."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from pipeline.cases.support.orders import TABLES
from pipeline.cases.support.ticket import Order

PASSWORD_NAME = "FARCALL_TEST_PG_PASSWORD"
PASSWORD = "only for tests"
_READY_WITHIN_S = 60.0


def missing() -> str | None:
    """Why PostgreSQL cannot run here; None where it can."""
    if shutil.which("initdb") is None or shutil.which("postgres") is None:
        return "initdb and postgres are not on the PATH; install PostgreSQL's server"
    if os.geteuid() == 0 and "postgres" not in {one.pw_name for one in pwd.getpwall()}:
        return "PostgreSQL does not run as root, and there is no user postgres"
    return None


@contextmanager
def serve(orders: Sequence[Order]) -> Iterator[str]:
    """A database of `orders`, as the support case wants its tables; gives its URL, with the password named in it."""
    folder = Path(tempfile.mkdtemp(prefix="farcall-pg-"))
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        who = {"user": "postgres", "group": "postgres"}
        shutil.chown(folder, "postgres", "postgres")
    secret = folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    data, port = folder / "data", _free_port()
    quiet = {"stdout": subprocess.DEVNULL, "cwd": folder, **who}
    words = ["initdb", "-D", str(data), "-U", "farcall", "-A", "scram-sha-256", f"--pwfile={secret}", "-N"]
    subprocess.run([*words, "-E", "UTF8", "--locale=C"], check=True, **quiet)
    settings = ("listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off")
    server = subprocess.Popen(
        ["postgres", "-D", str(data), "-p", str(port), *(word for one in settings for word in ("-c", one))],
        stderr=(folder / "log").open("wb"),
        **quiet,
    )
    try:
        asyncio.run(_fill(port, orders))
        yield f"postgresql://farcall:${{env:{PASSWORD_NAME}}}@127.0.0.1:{port}/postgres"
    finally:
        # Its fast shutdown: SIGTERM would wait for who is connected.
        server.send_signal(signal.SIGINT)
        server.wait(20)
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def _fill(port: int, orders: Sequence[Order]) -> None:
    until_s = time.monotonic() + _READY_WITHIN_S
    while True:
        try:
            to = await asyncpg.connect(
                host="127.0.0.1", port=port, user="farcall", password=PASSWORD, database="postgres"
            )
            break
        except (OSError, asyncpg.CannotConnectNowError):
            assert time.monotonic() < until_s, "PostgreSQL does not answer"
            await asyncio.sleep(0.1)
    try:
        await to.execute(TABLES)
        await to.executemany(
            "INSERT INTO orders VALUES ($1, $2, $3, $4, $5, $6, $7)",
            [(o.id, o.customer_id, o.status, o.placed_on, o.delivered_on, o.total_cents, o.currency) for o in orders],
        )
        await to.executemany(
            "INSERT INTO order_items VALUES ($1, $2, $3, $4, $5, $6)",
            [
                (order.id, at, item.name, item.category, item.quantity, item.price_cents)
                for order in orders
                for at, item in enumerate(order.items)
            ],
        )
    finally:
        await to.close()
