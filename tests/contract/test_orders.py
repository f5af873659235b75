"""Look-ups of orders: the same from SQLite, which is embedded, and from a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.cases.support.orders import MakeOrders, make_database, read_orders
from tests.contract import postgresql
from transforms.enrich.database import DatabaseSettings
from transforms.enrich.lookups import LookupSettings

ORDERS = read_orders()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.e2e)])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseSettings]:
    """The orders of the samples in a database of each kind."""
    if request.param == "sqlite":
        yield make_database(tmp_path_factory.mktemp("orders") / "orders.sqlite", ORDERS)
        return
    with postgresql.serve(ORDERS) as url:
        yield DatabaseSettings(url)


def found_in(database: DatabaseSettings, customers: list[str]) -> tuple[list[Any], int]:
    """What is looked up for customers at the same time, and in how many queries."""

    async def ask() -> tuple[list[Any], int]:
        lookups = MakeOrders(database, LookupSettings(timeout_s=30.0))()
        try:
            found = await asyncio.gather(*map(lookups.find, customers))
            await asyncio.gather(*map(lookups.find, customers))
            return list(found), lookups.fetches
        finally:
            await lookups.close()

    return asyncio.run(ask())


def test_every_customer_has_their_orders(database: DatabaseSettings) -> None:
    """Customers asked about at once have their own orders with all items, newest first, in one query; one who has none has none."""
    customers = sorted({order.customer_id for order in ORDERS})[:60]
    found, queries = found_in(database, [*customers, "CUST-nobody"])
    wanted = [
        sorted((o for o in ORDERS if o.customer_id == one), key=lambda o: (o.placed_on, o.id), reverse=True)
        for one in customers
    ]
    assert [{order.id: order for order in orders} for orders in found] == [
        {order.id: order for order in orders} for orders in [*wanted, []]
    ]
    assert all([o.placed_on for o in orders] == sorted((o.placed_on for o in orders), reverse=True) for orders in found)
    assert queries == 1


def test_a_key_is_data(database: DatabaseSettings) -> None:
    """A customer's id that is SQL is looked for as an id."""
    assert found_in(database, ["x'; DROP TABLE orders; --", "' OR '1'='1"])[0] == [(), ()]
    assert found_in(database, [ORDERS[0].customer_id])[0][0]
