"""The bound on calls in flight: its order, and that no permit is ever lost or made."""

from __future__ import annotations

import asyncio
import random

import pytest

from transforms.remote.fakes import VirtualClock
from transforms.remote.limiter import InFlightLimit


def test_permits_are_given_in_the_order_of_asking() -> None:
    """Those who wait get their permits first come, first served."""

    async def main() -> list[int]:
        limit, order = InFlightLimit(2), list[int]()

        async def hold(number: int) -> None:
            await limit.acquire(1000.0)
            order.append(number)
            await clock.sleep(1.0)
            limit.release()

        await asyncio.gather(*(hold(number) for number in range(50)))
        return order

    clock = VirtualClock()
    assert clock.run(main()) == list(range(50))


def test_waiting_ends_with_its_time() -> None:
    """Who waits longer than allowed gets TimeoutError, is no longer counted, and takes no permit with it."""

    async def main() -> None:
        limit = InFlightLimit(1)
        await limit.acquire(1.0)
        with pytest.raises(TimeoutError):
            await limit.acquire(5.0)
        assert clock.monotonic_s() == pytest.approx(5.0)
        assert (limit.in_flight, limit.waiting) == (1, 0)
        limit.release()
        assert limit.in_flight == 0

    clock = VirtualClock()
    clock.run(main())


def test_a_permit_given_to_one_who_just_left_is_not_lost() -> None:
    """A permit that comes in the same turn of the loop as the cancelling goes on to the next."""

    async def main() -> None:
        limit = InFlightLimit(1)
        await limit.acquire(1.0)
        first = asyncio.create_task(limit.acquire(100.0))
        second = asyncio.create_task(limit.acquire(100.0))
        await asyncio.sleep(0)
        limit.release()
        first.cancel()
        await second
        assert first.cancelled()
        assert (limit.in_flight, limit.waiting) == (1, 0)

    VirtualClock().run(main())


@pytest.mark.parametrize("seed", range(100))
def test_no_permit_is_lost_or_made(seed: int) -> None:
    """Under random holding, timeouts and cancelling, the bound holds, and in the end every permit is back."""

    async def main() -> None:
        limit = InFlightLimit(3)

        async def hold() -> None:
            await limit.acquire(chance.choice([0.1, 1.0, 10.0]))
            try:
                assert limit.in_flight <= limit.most
                await clock.sleep(chance.choice([0.0, 0.1, 1.0]))
            finally:
                limit.release()

        tasks = [asyncio.create_task(hold()) for _ in range(40)]
        for task in tasks:
            await clock.sleep(chance.choice([0.0, 0.0, 0.1]))
            if chance.random() < 0.3:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (limit.in_flight, limit.waiting) == (0, 0)

    chance, clock = random.Random(seed), VirtualClock(seed)
    clock.run(main())
