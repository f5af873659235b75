"""Workers that share a quota over a real Redis: what is granted, what is used, and what happens when the Redis goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.contract.redis_server import RedisServer
from transforms.errors import SettingsError
from transforms.remote.clock import SystemClock
from transforms.remote.fakes import VirtualClock
from transforms.remote.quota import Quota, QuotaSettings, Reservation
from transforms.remote.quota_redis import LEASE, SharedQuota, SharedQuotaSettings, open_shared_quota

CLOCK = SystemClock()


def shared(url: str, name: str, process: str, workers: int, period_s: float = 0.1) -> tuple[SharedQuota, Quota]:
    """One worker of so many on a quota of 6 000 requests a minute."""
    quota = Quota(QuotaSettings(requests_per_min=6000.0, share=1.0 / workers, burst_s=0.02))
    settings = SharedQuotaSettings(url=url, name=name, period_s=period_s, timeout_ms=80.0, fallback_s=3 * period_s)
    return open_shared_quota(settings, quota, process, CLOCK), quota


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not condition():
            await CLOCK.sleep(0.01)


async def consume(quota: Quota) -> None:
    """Use all that is given."""
    while True:
        got = quota.try_reserve(CLOCK.monotonic_s(), 1.0)
        if isinstance(got, Reservation):
            quota.settle(got, CLOCK.monotonic_s(), 1.0)
        else:
            await CLOCK.sleep(min(got, 0.02))


def test_grants_of_a_period_never_exceed_the_whole(redis_url: str) -> None:
    """Ten processes ask at the same time, ever again, with wishes of all sizes: the sum of each period is at most 1."""

    async def main() -> None:
        import redis.asyncio

        async with redis.asyncio.Redis.from_url(redis_url) as client:
            for round_ in range(40):
                wishes = [((7 * worker + 3 * round_) % 11) / 10 for worker in range(10)]
                keys = ["farcall:quota:{grants}"]
                await asyncio.gather(
                    *(client.eval(LEASE, 1, *keys, f"w{worker}", 20_000, wish) for worker, wish in enumerate(wishes))
                )
                await CLOCK.sleep(0.004)
            periods = [key async for key in client.scan_iter("farcall:quota:{grants}:*")]
            sums = []
            for key in periods:
                grants = await client.hgetall(key)
                sums.append(sum(float(grant) for name, grant in grants.items() if name.startswith(b"g")))
            assert sums
            assert max(sums) <= 1.0
            assert max([await client.pttl(key) for key in periods]) <= 60

    asyncio.run(main())


def test_one_alone_gets_all_and_two_that_want_all_get_half(redis_url: str) -> None:
    """A process alone leases the whole; a second one that wants as much brings both to half; when it ends, all comes back."""

    async def main() -> None:
        (first, quota), (second, other) = (shared(redis_url, "halves", name, 2) for name in ("a", "b"))
        work = [asyncio.create_task(first.run()), asyncio.create_task(consume(quota))]
        await until(lambda: quota.share > 0.9)
        more = [asyncio.create_task(second.run()), asyncio.create_task(consume(other))]
        await until(lambda: 0.4 <= quota.share <= 0.5 and 0.4 <= other.share <= 0.5)
        for task in more:
            task.cancel()
        await until(lambda: quota.share > 0.9)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, *more, return_exceptions=True)
        assert first.state == "kept"
        await asyncio.gather(first.close(), second.close())

    asyncio.run(main())


def test_an_idle_process_leaves_its_part_to_the_others(redis_url: str) -> None:
    """Of two processes the one that does nothing keeps a small part, so that it can begin; the other has the rest."""

    async def main() -> None:
        (busy, quota), (idle, unused) = (shared(redis_url, "idle", name, 2) for name in ("a", "b"))
        tasks = [asyncio.create_task(work) for work in (busy.run(), idle.run(), consume(quota))]
        await until(lambda: quota.share > 0.7 and 0.0 < unused.share < 0.2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(busy.close(), idle.close())

    asyncio.run(main())


def test_without_its_redis_what_was_leased_is_kept(own_redis: RedisServer) -> None:
    """When the Redis goes what was granted last is kept, and failures are counted; when it is there again, shares are leased again."""

    async def main() -> None:
        worker, quota = shared(own_redis.url, "away", "a", 4)
        tasks = [asyncio.create_task(worker.run()), asyncio.create_task(consume(quota))]
        await until(lambda: worker.state == "leased" and worker.leases > 2 and quota.share > 0.9)
        await asyncio.to_thread(own_redis.stop)
        await until(lambda: worker.state == "kept")
        assert quota.share > 0.9
        assert worker.failures > 0
        assert isinstance(quota.try_reserve(CLOCK.monotonic_s(), 1.0), Reservation | float)
        await asyncio.to_thread(own_redis.start)
        await until(lambda: worker.state == "leased" and quota.share > 0.9)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await worker.close()

    asyncio.run(main())


def test_without_their_redis_several_spend_the_whole_together_and_no_more(own_redis: RedisServer) -> None:
    """Four processes with the default share of 1 whose Redis goes keep shares above 0 that add up to 1 at most."""

    async def main() -> None:
        made = [shared(own_redis.url, "together", name, 1) for name in "abcd"]
        tasks = [asyncio.create_task(worker.run()) for worker, _ in made]
        tasks += [asyncio.create_task(consume(quota)) for _, quota in made]
        await until(lambda: all(quota.share > 0.15 for _, quota in made))
        await asyncio.to_thread(own_redis.stop)
        await until(lambda: all(worker.state == "kept" for worker, _ in made))
        assert 0.5 < sum(quota.share for _, quota in made) <= 1.0
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker, _ in made:
            await worker.close()

    asyncio.run(main())


class Scripted:
    """A Redis that grants what it is told, and then is away."""

    def __init__(self, *grants: tuple[str, float, int]) -> None:
        self._grants = list(grants)

    async def eval(self, script: str, numkeys: int, *keys_and_args: object) -> tuple[str, float, int]:
        if not self._grants:
            raise ConnectionError
        return self._grants.pop(0)

    async def aclose(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("grants", "state", "share"),
    [
        ((), "static", 1.0),
        (("0.5",), "kept", 0.5),
        (("0.2", "0.8"), "kept", 0.2),
        (("0.8", "0.2"), "kept", 0.2),
        (("0.9", "0.6", "0.7"), "kept", 0.6),
        (("0.0",), "kept", 0.0625),
        (("0.0", "0.5"), "kept", 0.0625),
    ],
)
def test_the_smaller_of_the_last_two_grants_is_kept(grants: tuple[str, ...], state: str, share: float) -> None:
    """So that all keep at most what one period granted; a floor for one that had next to nothing, the settings' before any."""
    clock = VirtualClock(0)
    quota = Quota(QuotaSettings(requests_per_min=6000.0))
    settings = SharedQuotaSettings(url="redis://127.0.0.1:1/0", name="q")
    worker = SharedQuota(settings, quota, "a", clock, Scripted(*((grant, 5e5, 4) for grant in grants)))

    async def main() -> None:
        for _ in range(len(grants) + 10):
            await worker.lease()

    clock.run(main())
    assert worker.state == state
    assert quota.share == pytest.approx(share * (60.0 / 61.0 if grants else 1.0))


@pytest.mark.parametrize(
    "over", [{"url": "http://somewhere"}, {"name": ""}, {"name": "a{b}"}, {"period_s": 0.0}, {"fallback_s": 0.5}]
)
def test_contradictions_are_refused(over: dict[str, object]) -> None:
    """A URL that is no Redis, a name that is none, and times that contradict each other are refused."""
    with pytest.raises(SettingsError):
        SharedQuotaSettings(**({"url": "redis://127.0.0.1:1/0", "name": "q"} | over))
