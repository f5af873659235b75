"""The fakes that ship: virtual time, scripted answers, and the pure parts of the model double."""

from __future__ import annotations

import asyncio
import statistics

import pytest

from transforms.errors import TimedOut
from transforms.remote.fakes import FakeTransport, VirtualClock, answered, hung, replied
from transforms.remote.model_double import Fault, latency_s, reply_text


def test_virtual_time_passes_only_by_waiting() -> None:
    """A day of sleep takes no time, and wall clock and monotonic clock agree on it."""
    clock = VirtualClock(start_ms=1000)
    clock.run(clock.sleep(86_400.0))
    assert (clock.monotonic_s(), clock.now_ms()) == (86_400.0, 86_401_000)


def test_sleepers_wake_in_the_order_of_their_times() -> None:
    """Whoever sleeps for less wakes first, whatever the order of going to sleep."""

    async def main() -> list[float]:
        woken = list[float]()

        async def sleeper(seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append(seconds)

        await asyncio.gather(*(sleeper(seconds) for seconds in (3.0, 1.0, 2.0, 0.0)))
        return woken

    clock = VirtualClock()
    assert clock.run(main()) == [0.0, 1.0, 2.0, 3.0]


def test_waiting_for_ever_is_an_error() -> None:
    """A program that waits for what can never come fails instead of hanging."""

    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="waits for ever"):
        VirtualClock().run(main())


def test_the_same_seed_gives_the_same_numbers() -> None:
    """Two clocks of one seed give one series of numbers in [0, 1), and one of another seed another."""
    first, second, other = (VirtualClock(seed) for seed in (7, 7, 8))
    series = [first.random() for _ in range(50)]
    assert series == [second.random() for _ in range(50)]
    assert series != [other.random() for _ in range(50)]
    assert all(0.0 <= number < 1.0 for number in series)


def test_a_virtual_sleep_outside_its_loop_is_an_error() -> None:
    """A virtual clock does not sleep on a real event loop, where its time would stand still."""
    with pytest.raises(RuntimeError, match="own run"):
        asyncio.run(VirtualClock().sleep(1.0))


def test_a_script_is_followed_and_its_last_answer_repeated() -> None:
    """Answers come one after the other, and the last for ever; requests are counted by their key."""

    async def main() -> list[int]:
        headers = {"Idempotency-Key": "a"}
        return [(await transport.post("u", b"", headers, 1.0))[0] for _ in range(4)]

    clock = VirtualClock()
    transport = FakeTransport(clock, [answered(500), answered(429, retry_after="1"), replied()])
    assert clock.run(main()) == [500, 429, 200, 200]
    assert [sent.attempt for sent in transport.sent] == [1, 2, 3, 4]


def test_a_fake_that_hangs_ends_with_the_timeout() -> None:
    """A request that is never answered raises TimedOut exactly at its timeout, and counts as cut off."""
    clock = VirtualClock()
    transport = FakeTransport(clock, [hung()])
    with pytest.raises(TimedOut):
        clock.run(transport.post("u", b"", {}, 2.5))
    assert (clock.monotonic_s(), transport.open, transport.cancelled) == (2.5, 0, 1)


def test_the_doubles_reply_depends_on_the_message_alone() -> None:
    """The same message gives the same text, another message another."""
    assert reply_text("Where is it?") == reply_text("Where is it?")
    assert reply_text("Where is it?") != reply_text("Where was it?")


def test_the_doubles_latency_is_log_normal_and_fixed_by_the_id() -> None:
    """Over many ids the logarithm of the latency has the median's logarithm as its mean, and sigma."""
    taken = [latency_s(1, str(number), 200.0, 0.6) for number in range(4000)]
    assert taken == [latency_s(1, str(number), 200.0, 0.6) for number in range(4000)]
    assert statistics.median(taken) == pytest.approx(0.2, rel=0.05)
    quantiles = statistics.quantiles(taken, n=1000)
    assert quantiles[841] / statistics.median(taken) == pytest.approx(2.718281828**0.6, rel=0.08)


@pytest.mark.parametrize(
    ("fault", "key", "attempt", "fits"),
    [
        (Fault("drop"), "a", 9, True),
        (Fault("drop", id="a"), "a", 1, True),
        (Fault("drop", id="a"), "ab", 1, False),
        (Fault("drop", id="a*"), "ab", 1, True),
        (Fault("drop", attempts=(1, 2)), "a", 2, True),
        (Fault("drop", attempts=(1, 2)), "a", 3, False),
        (Fault("drop", fraction=0.0), "a", 1, False),
    ],
)
def test_a_fault_befalls_whom_it_names(fault: Fault, key: str, attempt: int, fits: bool) -> None:
    """A fault fits by id, prefix and attempt."""
    assert fault.fits(0, key, attempt) is fits


def test_a_fraction_of_the_ids_is_hit() -> None:
    """A fraction hits about so many ids, and the same ones each time."""
    fault = Fault("drop", fraction=0.1)
    hit = [number for number in range(5000) if fault.fits(3, str(number), 1)]
    assert hit == [number for number in range(5000) if fault.fits(3, str(number), 1)]
    assert 400 < len(hit) < 600
