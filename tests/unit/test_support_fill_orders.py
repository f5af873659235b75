"""Orders are written into a database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pipeline.cases.support import fill_orders
from pipeline.cases.support.orders import read_orders


def count(path: Path, table: str) -> int:
    with sqlite3.connect(path) as connection:
        return int(connection.execute(f"select count(*) from {table}").fetchone()[0])


def test_orders_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The samples' orders with their items get into an empty database; a second time changes nothing, also what was changed."""
    path, orders = tmp_path / "orders.sqlite", read_orders()
    words = ["--orders", f"sqlite:///{path}"]
    assert fill_orders.main(words) == 0
    with sqlite3.connect(path) as connection:
        connection.execute("update orders set status = 'refunded' where id = ?", (orders[0].id,))
    assert fill_orders.main(words) == 0
    assert str(len(orders)) in capsys.readouterr().out
    assert (count(path, "orders"), count(path, "order_items")) == (len(orders), sum(len(o.items) for o in orders))
    with sqlite3.connect(path) as connection:
        found = connection.execute("select status from orders where id = ?", (orders[0].id,)).fetchone()
    assert found == ("refunded",)


@pytest.mark.parametrize(
    ("url", "file", "status", "words"),
    [
        ("mysql://x/y", None, 2, "mysql"),
        ("postgresql://me:${env:FARCALL_TEST_UNSET}@127.0.0.1:1/db", None, 2, "FARCALL_TEST_UNSET"),
        ("sqlite:///{tmp}/orders.sqlite", '{"id": 1}', 2, "no file of orders"),
        ("postgresql://me@127.0.0.1:1/db", None, 1, "could not be written"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    url: str, file: str | None, status: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was given wrong ends with 2, a database that fails with 1; either is one line on standard error."""
    given = ["--orders", url.replace("{tmp}", str(tmp_path))]
    if file is not None:
        (tmp_path / "orders.jsonl").write_text(file)
        given += ["--file", str(tmp_path / "orders.jsonl")]
    assert fill_orders.main(given) == status
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
