"""A customer's orders in the shop's database: the query, and a small database that goes with the sample events."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import orjson

from pipeline.cases.support.ticket import Item, Order
from transforms.enrich.database import Database, DatabaseSettings
from transforms.enrich.lookups import Lookups, LookupSettings
from transforms.remote.clock import SystemClock

SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "orders.jsonl"
"""The orders of the sample events, one an line, in the form of `Order`."""

_COLUMNS = ("id", "customer_id", "status", "placed_on", "delivered_on", "total_cents", "currency")

MAX_ORDERS = 20
"""The newest orders of a customer that are kept."""

QUERY = """
SELECT o.id AS id, o.customer_id AS customer_id, o.status AS status, o.placed_on AS placed_on,
       o.delivered_on AS delivered_on, o.total_cents AS total_cents, o.currency AS currency,
       i.name AS name, i.category AS category, i.quantity AS quantity, i.price_cents AS price_cents
FROM orders o LEFT JOIN order_items i ON i.order_id = o.id
WHERE o.customer_id IN :customers
ORDER BY o.placed_on DESC, o.id, i.position
"""
"""The two tables, or views of these names, that the database must have."""

TABLES = """
CREATE TABLE IF NOT EXISTS orders (
    id TEXT PRIMARY KEY, customer_id TEXT NOT NULL, status TEXT NOT NULL, placed_on TEXT NOT NULL, delivered_on TEXT,
    total_cents INTEGER NOT NULL, currency TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS order_items (
    order_id TEXT NOT NULL REFERENCES orders, position INTEGER NOT NULL, name TEXT NOT NULL, category TEXT NOT NULL,
    quantity INTEGER NOT NULL, price_cents INTEGER NOT NULL, PRIMARY KEY (order_id, position));
CREATE INDEX IF NOT EXISTS orders_by_customer ON orders (customer_id);
"""
"""Their form, in SQL that SQLite and PostgreSQL read alike; days may be of the type DATE."""

INSERT_ORDER = """
INSERT INTO orders (id, customer_id, status, placed_on, delivered_on, total_cents, currency)
VALUES (:id, :customer_id, :status, :placed_on, :delivered_on, :total_cents, :currency) ON CONFLICT DO NOTHING
"""
INSERT_ITEM = """
INSERT INTO order_items (order_id, position, name, category, quantity, price_cents)
VALUES (:order_id, :position, :name, :category, :quantity, :price_cents) ON CONFLICT DO NOTHING
"""
"""A row of each. One that is there already stays as it is."""


class MakeOrders:
    """Makes the look-ups of orders by customer, on a worker. Holds the settings alone, and is pickled with the graph."""

    def __init__(self, database: DatabaseSettings, settings: LookupSettings) -> None:
        self._database = database
        self._settings = settings

    def __call__(self) -> Lookups[tuple[Order, ...]]:
        """The look-ups of this process. Raises SettingsError where the password is not there."""
        database = Database(self._database)

        async def fetch(customers: Sequence[str]) -> Mapping[str, tuple[Order, ...]]:
            return orders_of(await database.rows(QUERY, customers=customers))

        return Lookups(fetch, tuple[Order, ...], (), self._settings, SystemClock())


def orders_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Order, ...]]:
    """The orders of each customer in the rows of `QUERY`, newest first, at most `MAX_ORDERS`."""
    items: dict[str, list[Item]] = {}
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(row["id"], row)
        if row["name"] is not None:
            item = Item(row["name"], row["category"], int(row["quantity"]), int(row["price_cents"]))
            items.setdefault(row["id"], []).append(item)
    found: dict[str, list[Order]] = {}
    for order_id, row in first.items():
        order = Order(
            id=order_id,
            customer_id=row["customer_id"],
            status=row["status"],
            placed_on=str(row["placed_on"])[:10],
            delivered_on=None if row["delivered_on"] is None else str(row["delivered_on"])[:10],
            total_cents=int(row["total_cents"]),
            currency=row["currency"],
            items=tuple(items.get(order_id, ())),
        )
        found.setdefault(order.customer_id, []).append(order)
    return {customer: tuple(orders[:MAX_ORDERS]) for customer, orders in found.items()}


def read_orders(path: Path = SAMPLES) -> list[Order]:
    """The orders in a file of JSON Lines. Raises `msgspec.ValidationError` for one that is none."""
    return [order_from(orjson.loads(line)) for line in path.read_bytes().splitlines() if line.strip()]


def order_from(fields: Mapping[str, Any]) -> Order:
    """An order from its JSON object. Raises `msgspec.ValidationError`, TypeError or KeyError for one that is none."""
    items = tuple(Item(**item) for item in fields["items"])
    return msgspec.convert(msgspec.to_builtins(Order(**{**fields, "items": items})), Order)


def make_database(path: Path, orders: Sequence[Order]) -> DatabaseSettings:
    """Make an SQLite database of `orders` at `path`, in place of one that is there; return where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_suffix(".building")
    building.unlink(missing_ok=True)
    with closing(sqlite3.connect(building)) as connection, connection:
        connection.executescript(TABLES)
        connection.executemany(INSERT_ORDER, order_rows(orders))
        connection.executemany(INSERT_ITEM, item_rows(orders))
    building.replace(path)
    return DatabaseSettings(f"sqlite:///{path}")


async def fill_database(settings: DatabaseSettings, orders: Sequence[Order]) -> None:
    """Write `orders` into a database, with the tables where it has none; an order that it has already stays as it is.

    Raises SettingsError where the password is not there, and as `Database.write`.
    """
    database = Database(settings)
    tables = [(statement, None) for statement in TABLES.split(";") if statement.strip()]
    try:
        await database.write(*tables, (INSERT_ORDER, order_rows(orders)), (INSERT_ITEM, item_rows(orders)))
    finally:
        await database.close()


def order_rows(orders: Sequence[Order]) -> list[dict[str, Any]]:
    """The values of `INSERT_ORDER` for each order."""
    return [{name: getattr(order, name) for name in _COLUMNS} for order in orders]


def item_rows(orders: Sequence[Order]) -> list[dict[str, Any]]:
    """The values of `INSERT_ITEM` for each item of each order."""
    return [
        {"order_id": order.id, "position": at, **msgspec.structs.asdict(item)}
        for order in orders
        for at, item in enumerate(order.items)
    ]
