"""The PostgreSQL of the local stack, for as long as a block runs."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from pipeline.cases.support.orders import fill_database
from pipeline.cases.support.ticket import Order
from runners.local.ports import Ports
from runners.local.postgresql import VARIABLE
from runners.local.stack import Stack
from transforms.enrich.database import DatabaseSettings

PASSWORD_NAME = VARIABLE
PASSWORD = "only for tests"


@contextmanager
def serve(orders: Sequence[Order]) -> Iterator[str]:
    """A database of `orders`, as the support case wants its tables; gives its URL, with the password named in it.

    The variable holds the password inside the block.
    """
    # Not one of pytest's folders, which root's unprivileged user, who runs the server then, may not enter.
    with tempfile.TemporaryDirectory(prefix="farcall-pg-") as folder, patch.dict(os.environ, {PASSWORD_NAME: PASSWORD}):
        Path(folder).chmod(0o755)
        stack = Stack(Path(folder), Ports.free())
        try:
            stack.up(["postgresql"])
            url = stack.endpoints.postgresql
            asyncio.run(fill_database(DatabaseSettings(url), orders))
            yield url
        finally:
            stack.down(wipe=True)
