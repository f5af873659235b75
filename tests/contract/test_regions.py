"""A model in two regions on real sockets: a near one, and a far one whose replies take 100 ms more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.contract.link_double import LinkDouble
from transforms.remote import loop
from transforms.remote.breaker import BreakerSettings
from transforms.remote.client import Call, Chat, Client, Message, Outcome
from transforms.remote.clock import SystemClock
from transforms.remote.model_double import ModelDouble
from transforms.remote.pool import PoolSettings
from transforms.remote.settings import Endpoint, ModelSettings

POOL = PoolSettings(
    regions=("near", "far"), slow_start_s=0.5, breaker=BreakerSettings(open_s=0.1, longest_open_s=0.2, window_s=1.0)
)
ROUNDS = 200


class Places:
    """A client, and its links to the model in both regions. `asked` counts its calls."""

    def __init__(self, near: LinkDouble, far: LinkDouble, pool: PoolSettings) -> None:
        self.near, self.far = near, far
        endpoints = (Endpoint(near.url, region="near"), Endpoint(far.url, region="far"))
        self.client = Client(ModelSettings(role="answer", endpoints=endpoints, model="double", pool=pool))
        self.asked = 0

    def ask(self, count: int) -> list[Outcome]:
        """The outcomes of so many calls at once."""
        deadline_ms = SystemClock().now_ms() + 30_000
        numbers = range(self.asked, self.asked + count)
        self.asked += count

        async def main() -> list[Outcome]:
            calls = [Call(f"e{number}", Chat((Message("user", "Hello."),)), deadline_ms) for number in numbers]
            return list(await asyncio.gather(*map(self.client.call, calls)))

        return loop.run(main()).result(60.0)

    def near_share(self, outcomes: list[Outcome]) -> float:
        """The share of them that the near region answered."""
        assert all(outcome.reply is not None for outcome in outcomes)
        return sum(outcome.endpoint == self.near.url for outcome in outcomes) / len(outcomes)


@pytest.fixture
def links() -> Iterator[tuple[LinkDouble, LinkDouble]]:
    """Links to the same model, of which the second takes 100 ms more."""
    with (
        ModelDouble(latency_ms=5.0) as model,
        LinkDouble(model.base_url) as near,
        LinkDouble(model.base_url, delay_s=0.1) as far,
    ):
        yield near, far


@pytest.fixture
def places(links: tuple[LinkDouble, LinkDouble]) -> Iterator[Places]:
    """A client that knows which is near."""
    found = Places(*links, POOL)
    yield found
    loop.run(found.client.close()).result(10.0)


def test_the_near_region_answers_while_it_is_well(places: Places) -> None:
    """Nothing goes far that the near endpoint's limit, 8 at first, lets through."""
    assert [places.near_share(places.ask(8)) for _ in range(5)] == [1.0] * 5


def test_a_cut_link_costs_no_event_its_answer(places: Places) -> None:
    """While the near link is cut the far region answers all; when it is back, all is near again."""
    places.ask(10)
    places.near.cut()
    assert [places.near_share(places.ask(10)) for _ in range(5)] == [0.0] * 5
    places.near.restore()
    for _ in range(ROUNDS):
        if places.near_share(places.ask(10)) == 1.0:
            return
    pytest.fail(f"after {ROUNDS} rounds of calls some still go far")


def test_without_regions_some_goes_far(links: tuple[LinkDouble, LinkDouble]) -> None:
    """The sibling: where regions make no difference, the far model is asked too."""
    found = Places(*links, PoolSettings())
    shares = [found.near_share(found.ask(10)) for _ in range(5)]
    loop.run(found.client.close()).result(10.0)
    assert min(shares) < 1.0
