"""One event loop per process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import threading

import pytest

from transforms.remote import loop


async def _where() -> tuple[int, int]:
    return id(asyncio.get_running_loop()), threading.get_ident()


def test_all_threads_share_one_loop() -> None:
    """Coroutines started from many threads run on one loop in one other thread."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: loop.run(_where()).result(10), range(50)))
    assert len(found) == 1
    assert found.pop()[1] != threading.get_ident()


def test_an_exception_comes_back() -> None:
    """What a coroutine raises, its future raises."""

    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        loop.run(fail()).result(10)


def test_cancelling_the_future_cancels_the_coroutine() -> None:
    """A cancelled future cancels what it stands for."""
    began, ended = threading.Event(), threading.Event()

    async def wait() -> None:
        try:
            began.set()
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    future = loop.run(wait())
    assert began.wait(10)
    future.cancel()
    assert ended.wait(10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_its_own_loop() -> None:
    """In a child forked after first use, a coroutine still runs, though the parent's thread is not there."""
    loop.run(_where()).result(10)
    child = os.fork()
    if child == 0:
        try:
            loop.run(_where()).result(10)
        except BaseException:  # noqa: BLE001 - a child must end here
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_function_is_called_on_the_loop() -> None:
    """`soon` returns at once, and the function is called on the thread of the loop."""
    called: concurrent.futures.Future[threading.Thread] = concurrent.futures.Future()
    loop.soon(lambda: called.set_result(threading.current_thread()))
    assert called.result(timeout=10).name == "farcall-loop"


def test_what_was_started_tells_when_it_has_ended() -> None:
    """Its result or its error is there, and whoever wanted to know is called once, whether asked for before the end or behind it."""

    async def give(value: int) -> int:
        if value < 0:
            raise ValueError("no")
        return value

    for value in (3, -1):
        ended = threading.Event()
        seen: list[loop.Started[int]] = []
        started = loop.start(give(value))
        started.add_done_callback(lambda one, seen=seen, ended=ended: (seen.append(one), ended.set()))
        assert ended.wait(10.0)
        assert seen == [started]
        assert started.done()
        if value < 0:
            with pytest.raises(ValueError, match="no"):
                started.result()
        else:
            assert started.result() == value
        started.add_done_callback(seen.append)
        assert seen == [started] * 2


def test_what_was_started_lives_until_it_has_ended() -> None:
    """A task that nothing else refers to is not collected; and what has not ended has no result."""
    gate: list[asyncio.Future[None]] = []
    begun, ended = threading.Event(), threading.Event()

    async def wait() -> None:
        gate.append(asyncio.get_running_loop().create_future())
        begun.set()
        await gate[0]

    started = loop.start(wait())
    started.add_done_callback(lambda _: ended.set())
    assert begun.wait(10.0)
    with pytest.raises(asyncio.InvalidStateError):
        started.result()
    gc.collect()
    assert not started.done()
    loop.soon(lambda: gate[0].set_result(None))
    assert ended.wait(10.0)
    assert started.result() is None
