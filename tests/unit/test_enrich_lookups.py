"""Values by key: cached, fetched together, once; and a database behind it that is real."""

from __future__ import annotations

import asyncio
import pickle
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from transforms.enrich.database import Database, DatabaseSettings
from transforms.enrich.lookups import Lookups, LookupSettings
from transforms.errors import DeadlineExceeded, SettingsError, Unreachable
from transforms.remote.clock import Clock
from transforms.remote.fakes import VirtualClock


class Source:
    """A source that is slow, and fails while `broken`."""

    def __init__(self, clock: Clock, takes_s: float = 0.1) -> None:
        self.clock = clock
        self.takes_s = takes_s
        self.broken = False
        self.asked: list[list[str]] = []

    async def __call__(self, keys: Sequence[str]) -> Mapping[str, int]:
        self.asked.append(list(keys))
        await self.clock.sleep(self.takes_s)
        if self.broken:
            raise OSError("password=hunter2")
        return {key: len(key) for key in keys if key != "none"}


def lookups(source: Source, **settings: float) -> Lookups[int]:
    return Lookups(source, int, 0, LookupSettings(**settings), source.clock)  # type: ignore[arg-type]


def test_equal_keys_are_fetched_once_and_different_ones_together() -> None:
    """Ten look-ups of two keys at once are one fetch of two keys; later ones are fetched no more, also one without a value."""
    clock = VirtualClock()
    source = Source(clock)

    async def main() -> list[int]:
        found = lookups(source)
        first = await asyncio.gather(*(found.find(key) for key in ["a", "none"] * 5))
        return [*first, await found.find("a"), await found.find("none")]

    assert clock.run(main()) == [1, 0] * 6
    assert source.asked == [["a", "none"]]


def test_a_value_is_forgotten_after_its_time() -> None:
    """After `memory_s` a key is fetched again, and not before."""
    clock = VirtualClock()
    source = Source(clock)

    async def main() -> None:
        found = lookups(source, memory_s=10.0)
        for pause_s in (0.0, 9.0, 2.0):
            await clock.sleep(pause_s)
            await found.find("a")

    clock.run(main())
    assert len(source.asked) == 2


def test_a_failure_is_told_without_its_secret_and_is_not_kept() -> None:
    """A source that fails raises Unreachable, whose sentence holds nothing of the driver's; the next look-up asks again."""
    clock = VirtualClock()
    source = Source(clock)

    async def main() -> int:
        found = lookups(source)
        source.broken = True
        with pytest.raises(Unreachable) as caught:
            await found.find("abc")
        assert "hunter2" not in str(caught.value)
        source.broken = False
        return await found.find("abc")

    assert clock.run(main()) == 3


def test_a_slow_source_is_waited_for_only_so_long() -> None:
    """A look-up that is not done in time raises DeadlineExceeded at that time."""
    clock = VirtualClock()
    source = Source(clock, takes_s=60.0)

    async def main() -> float:
        with pytest.raises(DeadlineExceeded):
            await lookups(source, timeout_s=2.0).find("a")
        return clock.monotonic_s()

    assert clock.run(main()) == pytest.approx(2.0)


@pytest.mark.parametrize("settings", [{"timeout_s": 0}, {"memory_s": -1}, {"max_keys": 0}, {"on_failure": "ignore"}])
def test_settings_that_make_no_sense(settings: dict[str, object]) -> None:
    """Numbers that are not above 0, and a rule that is not known, are refused."""
    with pytest.raises(SettingsError):
        LookupSettings(**settings)  # type: ignore[arg-type]


def test_a_real_database(tmp_path: Path) -> None:
    """Rows come from SQLite through SQLAlchemy, for a list of keys in one query; words in a key are no SQL."""
    with sqlite3.connect(tmp_path / "orders.sqlite") as connection:
        connection.execute("create table orders (id text, customer_id text)")
        connection.executemany("insert into orders values (?, ?)", [("1", "a"), ("2", "b"), ("3", "c")])

    async def main() -> list[Mapping[str, object]]:
        database = Database(DatabaseSettings(f"sqlite:///{tmp_path}/orders.sqlite"))
        try:
            query = "select id from orders where customer_id in :keys order by id"
            return await database.rows(query, keys=["a", "c", "b') or 1=1 --"])
        finally:
            await database.close()

    assert asyncio.run(main()) == [{"id": "1"}, {"id": "3"}]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://x/y", "mysql"),
        ("nonsense", "no URL"),
        ("postgresql://me:hunter2@db/orders", "password"),
        ("postgresql://me:x${env:A}@db/orders", "password"),
    ],
)
def test_urls_that_are_refused(url: str, words: str) -> None:
    """Another database, no URL, and a password in the URL are refused by a sentence that does not hold it."""
    with pytest.raises(SettingsError, match=words) as caught:
        DatabaseSettings(url)
    assert "hunter2" not in str(caught.value)


def test_a_password_is_read_on_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings hold the variable's name alone, pickled too; without the variable the database is not opened."""
    settings = DatabaseSettings("postgresql://me:${env:FARCALL_TEST_PASSWORD}@db/orders")
    monkeypatch.setenv("FARCALL_TEST_PASSWORD", "hunter2")
    assert b"hunter2" not in pickle.dumps(settings)
    assert Database(settings)._engine.url.password == "hunter2"
    monkeypatch.delenv("FARCALL_TEST_PASSWORD")
    with pytest.raises(SettingsError, match="FARCALL_TEST_PASSWORD"):
        Database(settings)
