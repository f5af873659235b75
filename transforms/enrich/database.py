"""A database by its URL, asynchronously: SQLAlchemy over SQLite (`aiosqlite`) or PostgreSQL (`asyncpg`).

A password is named, not written.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import bindparam, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from transforms.errors import SettingsError

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
_SECRET = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_POOL = 4


class DatabaseSettings(msgspec.Struct, frozen=True):
    """Where a database is: ``sqlite:///path`` or ``postgresql://user:${env:NAME}@host:port/name``.

    The value travels in the pickled graph: a password stands in the environment variable that the URL names.
    """

    url: str

    def __post_init__(self) -> None:
        """Raise SettingsError for a URL of another kind, one with a password in it, or a driver that is not installed."""
        parts = _parsed(self.url)
        if parts.drivername not in _DRIVERS:
            raise SettingsError(f"the database {parts.drivername} is not known; write sqlite:///PATH or postgresql://…")
        if parts.password and not _SECRET.fullmatch(str(parts.password)):
            raise SettingsError("the URL holds a password; write ${env:NAME} in its place and set NAME on the workers.")
        if parts.drivername == "postgresql" and importlib.util.find_spec("asyncpg") is None:
            raise SettingsError("PostgreSQL needs the package asyncpg; install farcall[postgresql].")


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise SettingsError(
            "this is no URL of a database; write sqlite:///PATH or postgresql://user@host/name."
        ) from None


class Database:
    """A database that is open. Made on the worker, where it reads the password; used on one event loop.

    Raises:
        SettingsError: the variable that the URL names is not set. The sentence does not hold the password.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        url = _parsed(settings.url)
        if url.password:
            url = url.set(password=_secret(str(url.password)))
        url = url.set(drivername=_DRIVERS[url.drivername])
        # A connection of aiosqlite is a thread, which would outlive the loop; opening a file costs less than a millisecond.
        pool: dict[str, Any] = (
            {"poolclass": NullPool} if "sqlite" in url.drivername else {"pool_size": _POOL, "pool_pre_ping": True}
        )
        self._engine: AsyncEngine = create_async_engine(url, hide_parameters=True, **pool)

    async def rows(self, query: str, **values: Sequence[str]) -> list[Mapping[str, Any]]:
        """Return the rows that `query` gives. Each of `values` is a list, for ``IN :name``.

        Raises `sqlalchemy.exc.SQLAlchemyError`, or the driver's own error, where the database fails.
        """
        statement = text(query).bindparams(*(bindparam(name, expanding=True) for name in values))
        async with self._engine.connect() as connection:
            found = await connection.execute(statement, {name: list(value) for name, value in values.items()})
            return [dict(row) for row in found.mappings()]

    async def write(self, *statements: tuple[str, Sequence[Mapping[str, Any]] | None]) -> None:
        """Run the statements in one transaction: each once for every one of its rows, or once where it has None.

        Raises as `rows`; nothing is written then.
        """
        async with self._engine.begin() as connection:
            for statement, rows in statements:
                if rows is None:
                    await connection.execute(text(statement))
                elif rows:
                    await connection.execute(text(statement), list(rows))

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.dispose()


def _secret(reference: str) -> str:
    found = _SECRET.fullmatch(reference)
    value = os.environ.get(found[1]) if found else None
    if not value:
        raise SettingsError(
            f"The environment variable {found[1] if found else ''} for the database is not set on this worker."
        )
    return value
