"""``python -m pipeline.cases.support.fill_orders``: write the orders of the samples, or of a file, into a database."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pipeline.cases.support.orders import SAMPLES, fill_database, read_orders
from pipeline.cases.support.ticket import Order
from transforms.enrich.database import DatabaseSettings
from transforms.errors import SettingsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill one database; returns the exit status: 2 where what was given is wrong, 1 where the database fails."""
    given = _parser().parse_args(arguments)
    try:
        orders = _orders_of(given.file)
        asyncio.run(fill_database(DatabaseSettings(given.orders), orders))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001 - drivers raise their own, which have no base in common
        # The first line is what the database answered; the statement is in those that follow.
        said = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"The orders could not be written, and none was: {said}", file=sys.stderr)
        return 1
    print(f"{len(orders)} orders are in {given.orders}; those that were there already stayed as they were.")
    return 0


def _orders_of(path: Path) -> list[Order]:
    try:
        return read_orders(path)
    except (OSError, ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise SettingsError(f"{path} is no file of orders in JSON Lines: {error}.") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.cases.support.fill_orders", description=__doc__)
    parser.add_argument("--orders", metavar="URL", required=True, help="the database, as `python -m pipeline` takes it")
    parser.add_argument(
        "--file", type=Path, default=SAMPLES, help="orders in JSON Lines (default: those of the samples)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
