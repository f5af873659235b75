"""The asynchronous step's memory against its state: what is lost, what is kept, what is done twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any

import pytest

from transforms.ask.calls import UNCLAIMED_S, Calls, Homes
from transforms.ask.shard import COMPACT_AT, Entry, Shard
from transforms.remote.client import Call, Outcome
from transforms.remote.fakes import VirtualClock
from transforms.remote.questions import Chat


class Store:
    """Keyed state of one shard with bundles that commit or are undone, as a runner keeps it."""

    def __init__(self) -> None:
        self.committed_cell: bytes | None = None
        self.committed_bag: list[bytes] = []
        self.begin()

    def begin(self) -> None:
        self._cell, self._bag = self.committed_cell, list(self.committed_bag)

    def commit(self) -> None:
        self.committed_cell, self.committed_bag = self._cell, list(self._bag)

    @property
    def cell(self) -> Any:
        store = self

        class Cell:
            def read(self) -> bytes | None:
                return store._cell

            def write(self, value: bytes) -> None:
                store._cell = value

        return Cell()

    @property
    def bag(self) -> Any:
        store = self

        class Bag:
            def read(self) -> Iterable[bytes]:
                shuffled = list(store._bag)  # a bag has no order
                random.Random(len(shuffled)).shuffle(shuffled)
                return shuffled

            def add(self, value: bytes) -> None:
                store._bag.append(value)

            def clear(self) -> None:
                store._bag.clear()

        return Bag()


class Server:
    """Calls that end when the test says so."""

    def __init__(self) -> None:
        self.started: list[Call] = []
        self._open: list[tuple[Call, Future[Outcome]]] = []
        self.calls = Calls(self, VirtualClock(), run=self._run)

    async def call(self, call: Call) -> Outcome:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    def _run(self, coroutine: Coroutine[Any, Any, Outcome]) -> Future[Outcome]:
        assert coroutine.cr_frame is not None  # type: ignore[attr-defined]
        call = coroutine.cr_frame.f_locals["call"]  # type: ignore[attr-defined]
        coroutine.close()
        future: Future[Outcome] = Future()
        self.started.append(call)
        self._open.append((call, future))
        return future

    def finish(self, *ids: str) -> None:
        """Ends the calls of these events, or all."""
        for call, future in list(self._open):
            if not ids or call.id in ids:
                self._open.remove((call, future))
                future.set_result(Outcome(call.id, None, "x", f"reply to {call.id}", call.attempts + 1, 0.0, 0.0, None))


def make_call(entry: Entry) -> Call:
    return Call(id=entry.id, question=Chat(()), deadline_ms=entry.deadline_ms, attempts=entry.attempts)


class Step:
    """One instance of the step for one shard, driven bundle by bundle."""

    def __init__(self, store: Store, server: Server, queue_of: Callable[[str], bytes | None] = lambda _: None) -> None:
        self.store, self.server, self.queue_of = store, server, queue_of
        self.shard = Shard(b"s", server.calls, make_call)

    def bundle(self, take: Iterable[str] = (), hand_out: bool = False, fail: bool = False) -> list[str]:
        """Runs a bundle; returns the ids it emitted, which count only where it did not fail."""
        self.store.begin()
        cell, bag = self.store.cell, self.store.bag
        self.shard.touch(cell, bag)
        for event_id in take:
            payload, queue = b"payload of " + event_id.encode(), self.queue_of(event_id)
            self.shard.take(cell, bag, event_id, 0, 10**15, payload, make_call, queue)
        out = self.shard.hand_out(cell, bag) if hand_out else []
        if fail:
            return []
        self.store.commit()
        return [entry.id for entry, _ in out]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def step(server: Server) -> Step:
    return Step(Store(), server)


def test_outcomes_leave_once_and_state_empties(step: Step, server: Server) -> None:
    """What is taken leaves once when its call ends, and nothing of it stays in state."""
    step.bundle(take=["a", "b"])
    assert step.bundle(hand_out=True) == []
    server.finish("a")
    assert step.bundle(hand_out=True) == ["a"]
    server.finish("b")
    assert step.bundle(hand_out=True) == ["b"]
    assert step.bundle(hand_out=True) == []
    assert step.store.committed_bag == []


def test_an_undone_bundle_hands_out_again(step: Step, server: Server) -> None:
    """A bundle that fails after it took outcomes from memory loses none: the next hands them out, without a second call."""
    step.bundle(take=["a", "b"])
    server.finish()
    step.bundle(hand_out=True, fail=True)
    assert sorted(step.bundle(hand_out=True)) == ["a", "b"]
    assert len(server.started) == 2


def test_an_undone_take_finds_its_call_again(step: Step, server: Server) -> None:
    """A bundle that fails after it started a call does not cause a second one when it is done again."""
    step.bundle(take=["a"], fail=True)
    step.bundle(take=["a"])
    server.finish()
    assert step.bundle(hand_out=True) == ["a"]
    assert len(server.started) == 1


def test_another_instance_takes_over(step: Step, server: Server) -> None:
    """A new instance of the step in the same process finds the running calls; one left behind believes state again."""
    step.bundle(take=["a", "b", "c"])
    other = Step(step.store, server)
    server.finish("a")
    assert other.bundle(hand_out=True) == ["a"]
    server.finish("b")
    assert step.bundle(hand_out=True) == ["b"]
    server.finish("c")
    assert other.bundle(hand_out=True) == ["c"]
    assert len(server.started) == 3


def test_another_process_calls_again_with_the_attempt_counted(step: Step) -> None:
    """After a restart in a new process the calls are made again, the lost attempt counted, the deadline unchanged."""
    step.bundle(take=["a"])
    elsewhere = Server()
    moved = Step(step.store, elsewhere)
    moved.bundle()
    assert [(call.id, call.attempts, call.deadline_ms) for call in elsewhere.started] == [("a", 1, 10**15)]
    elsewhere.finish()
    assert moved.bundle(hand_out=True) == ["a"]


def test_a_shard_that_moves_away_and_back(step: Step, server: Server) -> None:
    """What another process handed out meanwhile is not handed out again by the one the shard comes back to."""
    step.bundle(take=["a", "b"])
    elsewhere = Server()
    moved = Step(step.store, elsewhere)
    moved.bundle()
    elsewhere.finish("a")
    assert moved.bundle(hand_out=True) == ["a"]
    server.finish()
    assert step.bundle(hand_out=True) == ["b"]


def test_equal_ids_under_way_are_two_events(step: Step, server: Server) -> None:
    """Two events with one id at the same time are asked about separately, and both leave."""
    step.bundle(take=["a", "a"])
    server.finish()
    assert step.bundle(hand_out=True) == ["a", "a"]
    assert len(server.started) == 2


def test_an_id_that_comes_back_is_a_new_event(step: Step, server: Server) -> None:
    """An id whose outcome has left is called again when it comes again, whatever instance handled the first."""
    step.bundle(take=["a"])
    server.finish()
    assert step.bundle(hand_out=True) == ["a"]
    other = Step(step.store, server)
    other.bundle(take=["a"])
    assert other.bundle(hand_out=True) == []
    server.finish()
    assert other.bundle(hand_out=True) == ["a"]
    assert len(server.started) == 2


def test_an_id_that_comes_back_within_the_bundle_is_a_new_event(step: Step, server: Server) -> None:
    """An id that comes again in the very bundle that handed out its outcome is asked about again, and leaves."""
    step.bundle(take=["a"])
    server.finish()
    cell, bag = step.store.cell, step.store.bag
    step.shard.touch(cell, bag)
    assert [entry.id for entry, _ in step.shard.hand_out(cell, bag)] == ["a"]
    step.shard.take(cell, bag, "a", 0, 10**15, b"again", make_call)
    step.store.commit()
    assert step.bundle(hand_out=True) == []
    server.finish()
    assert step.bundle(hand_out=True) == ["a"]
    assert len(server.started) == 2


def test_the_bag_is_compacted(step: Step, server: Server) -> None:
    """The bag stays about as large as what is under way, however many events passed."""
    step.bundle(take=["stays"])
    for number in range(10 * COMPACT_AT):
        step.bundle(take=[f"e{number}"])
        server.finish(f"e{number}")
        step.bundle(hand_out=True)
        assert len(step.store.committed_bag) <= 2 * COMPACT_AT + 3


@pytest.mark.parametrize("seed", range(200))
def test_nothing_is_lost_whatever_fails(seed: int) -> None:
    """Over random bundles, failures, instances and processes: every event taken leaves, at least once, at most once per process."""
    dice = random.Random(seed)
    store = Store()
    servers = [Server(), Server()]
    steps = [Step(store, server) for server in servers for _ in range(2)]
    wanted: list[str] = []
    emitted: list[str] = []
    for number in range(60):
        step = dice.choice(steps)
        fail = dice.random() < 0.25
        take = [f"{number}-{index}" for index in range(dice.randrange(4))]
        emitted += step.bundle(take, hand_out=dice.random() < 0.7, fail=fail)
        if not fail:
            wanted += take
        for server in servers:
            open_ids = [call.id for call, _ in server._open]
            server.finish(*dice.sample(open_ids, dice.randrange(len(open_ids) + 1)) or ["none"])
    for _ in range(3):
        for server in servers:
            server.finish()
        emitted += steps[0].bundle(hand_out=True)
    assert sorted(emitted) == sorted(wanted)
    assert store.committed_bag == []


def by_letter(event_id: str) -> bytes | None:
    """The order key of an event: its first letter; none for those that begin with a dash."""
    return None if event_id[0] == "-" else event_id[:1].encode()


def test_outcomes_of_a_key_leave_in_order(step: Step, server: Server) -> None:
    """An outcome waits for those of its key that were taken before it; other keys, and events without one, do not wait."""
    step.queue_of = by_letter
    step.bundle(take=["a1", "b1", "a2", "-1", "a3"])
    assert len(server.started) == 5, "calls of one key run side by side"
    server.finish("a3", "b1", "-1")
    assert step.bundle(hand_out=True) == ["b1", "-1"]
    server.finish("a1")
    assert step.bundle(hand_out=True) == ["a1"]
    server.finish("a2")
    assert step.bundle(hand_out=True) == ["a2", "a3"]
    assert step.store.committed_bag == []


def test_a_held_outcome_wakes_nobody_and_counts_as_open(step: Step, server: Server) -> None:
    """An outcome behind another is not ready, so that a step that listens does not spin on it, and counts against the bound.

    When the call before it ends it counts no more, before anyone hands it out: a step that waits at the bound waits for calls alone.
    """
    step.queue_of = by_letter
    step.bundle(take=["a1", "a2", "a3"])
    server.finish("a2", "a3")
    assert step.bundle(hand_out=True) == []
    assert not server.calls.wait_for_ready(b"s", (), timeout_s=0.0)
    assert (server.calls.running, server.calls.open) == (1, 3)
    server.finish("a1")
    assert server.calls.open == 0
    assert server.calls.wait_for_ready(b"s", (), timeout_s=0.0)


def test_an_event_that_cannot_be_asked_about_keeps_its_place(step: Step, server: Server) -> None:
    """An event about which no question can be made has its outcome at once, and leaves in its turn."""
    step.queue_of = by_letter
    step.bundle(take=["a1"])
    cell, bag = step.store.cell, step.store.bag
    step.shard.touch(cell, bag)
    step.shard.take(cell, bag, "a2", 0, 10**15, b"", speechless, b"a")
    assert step.shard.hand_out(cell, bag) == []
    server.finish("a1")
    out = step.shard.hand_out(cell, bag)
    step.store.commit()
    assert [(entry.id, outcome.error_type, outcome.attempts) for entry, outcome in out] == [
        ("a1", "x", 1),
        ("a2", "prompt", 0),
    ]


def speechless(_entry: Entry) -> Call:
    raise ValueError("no words")


def test_a_question_that_fails_after_a_restore_is_an_outcome(step: Step) -> None:
    """Where the question of an event in state can no longer be made, the event fails; the restored job does not."""
    step.bundle(take=["a"])
    moved = Step(step.store, Server())
    moved.shard = Shard(b"s", moved.server.calls, speechless)
    assert moved.bundle(hand_out=True) == ["a"]


def test_an_early_call_takes_its_place_when_its_event_comes(step: Step, server: Server) -> None:
    """The order is that in which events are taken, whatever order their calls were started in."""
    step.queue_of = by_letter
    for event_id in ("a2", "a1"):
        server.calls.start_early(b"s", event_id, Call(id=event_id, question=Chat(()), deadline_ms=10**15))
    server.finish("a2")
    step.bundle(take=["a1", "a2"])
    assert step.bundle(hand_out=True) == []
    server.finish("a1")
    assert step.bundle(hand_out=True) == ["a1", "a2"]


@pytest.mark.parametrize("seed", range(200))
def test_order_holds_whatever_fails(seed: int) -> None:
    """Over random bundles, failures, instances, processes and restores: events of a key leave in the order they were taken."""
    dice = random.Random(seed)
    store = Store()
    servers = [Server(), Server()]
    steps = [Step(store, server, by_letter) for server in servers for _ in range(2)]
    taken: list[str] = []
    emitted: list[str] = []
    for number in range(60):
        if dice.random() < 0.05:
            # A restore: a process that knows nothing, in place of one that may have known.
            servers[0] = Server()
            steps[:2] = [Step(store, servers[0], by_letter) for _ in range(2)]
        step = dice.choice(steps)
        fail = dice.random() < 0.25
        take = [f"{dice.choice('ab-')}{number}-{index}" for index in range(dice.randrange(4))]
        emitted += step.bundle(take, hand_out=dice.random() < 0.7, fail=fail)
        if not fail:
            taken += take
        for server in servers:
            open_ids = [call.id for call, _ in server._open]
            server.finish(*dice.sample(open_ids, dice.randrange(len(open_ids) + 1)) or ["none"])
    for _ in range(3):
        for server in servers:
            server.finish()
        emitted += steps[0].bundle(hand_out=True)
    assert sorted(emitted) == sorted(taken)
    for letter in "ab":
        assert [one for one in emitted if one[0] == letter] == [one for one in taken if one[0] == letter]
    assert all(server.calls.open == 0 for server in servers)


@pytest.mark.parametrize("queue_of", [lambda _: None, by_letter])
def test_memory_is_flat_at_the_bound(server: Server, queue_of: Callable[[str], bytes | None]) -> None:
    """At the bound nothing is taken until a call ends; however many events pass, what is remembered is that of the bound."""
    bound, dice = 50, random.Random(0)
    step = Step(Store(), server, queue_of)
    emitted = 0
    for number in range(5_000):
        while server.calls.open >= bound:
            open_ids = [call.id for call, _ in server._open]
            server.finish(*dice.sample(open_ids, min(10, len(open_ids))))
            emitted += len(step.bundle(hand_out=True))
        step.bundle(take=[f"{'ab-'[number % 3]}{number}"])
        assert len(server._open) <= bound
        assert step.shard.pending <= 2 * bound
        assert sizes(server.calls) <= 5 * bound
        assert len(step.store.committed_bag) <= 4 * bound
    assert emitted >= 5_000 - 2 * bound


def sizes(calls: Calls) -> int:
    """How many things the table of calls holds."""
    places = sum(len(queues._places) + len(queues._queues) for queues in calls._queues.values())
    return sum(map(len, calls._shards.values())) + sum(map(len, calls._ready.values())) + places


def test_an_early_call_is_claimed_by_its_event(step: Step, server: Server) -> None:
    """A call that was started before its event arrived is found when it does, and its outcome leaves once."""
    server.calls.start_early(b"s", "a", Call(id="a", question=Chat(()), deadline_ms=10**15))
    server.finish()
    assert step.bundle(hand_out=True) == []
    assert step.bundle(take=["a"], hand_out=True) == ["a"]
    assert len(server.started) == 1
    assert step.bundle(hand_out=True) == []


def test_the_time_of_an_event_begins_with_its_early_call(server: Server) -> None:
    """What an event waited, and its deadline, count from the start of its call, also where its record comes later."""
    step = Step(Store(), server)
    store, clock = step.store, server.calls.clock
    assert isinstance(clock, VirtualClock)

    def take(event_id: str) -> Entry:
        step.shard.touch(store.cell, store.bag)
        step.shard.take(store.cell, store.bag, event_id, 0, clock.now_ms() + 5_000, b"", make_call)
        server.finish(event_id)
        ((entry, _),) = step.shard.hand_out(store.cell, store.bag)
        return entry

    began_ms = clock.now_ms()
    server.calls.start_early(b"s", "a", Call(id="a", question=Chat(()), deadline_ms=began_ms + 5_000))
    clock.advance(0.3)
    early = take("a")
    assert (early.taken_ms, early.deadline_ms) == (began_ms, began_ms + 5_000)
    late = take("b")
    assert (late.taken_ms, late.deadline_ms) == (began_ms + 300, began_ms + 5_300)


def test_an_early_call_that_ends_before_its_event_arrives_wakes_nobody(server: Server) -> None:
    """An outcome nobody can hand out yet is not ready: a step that listens does not spin on it."""
    server.calls.start_early(b"s", "a", Call(id="a", question=Chat(()), deadline_ms=10**15))
    server.finish()
    assert not server.calls.wait_for_ready(b"s", (), timeout_s=0.0)
    server.calls.claim(b"s", "a")
    assert server.calls.wait_for_ready(b"s", (), timeout_s=0.0)


def test_an_outcome_ahead_of_its_record_ends_the_wait(server: Server) -> None:
    """A step that listens while a reply waits for its own record, which this thread has to take, stops at once; then listens again.

    Time stands still here: a wait that did not give up would not end.
    """
    server.calls.start_early(b"s", "a", Call(id="a", question=Chat(()), deadline_ms=10**15))
    server.calls.start_early(b"t", "b", Call(id="b", question=Chat(()), deadline_ms=10**15))
    server.finish("a")
    assert not server.calls.wait_for_ready(b"s", (), timeout_s=float("inf"))
    assert server.calls._homes.is_ahead(b"s")
    assert not server.calls._homes.is_ahead(b"t"), "its call has no outcome yet"
    server.calls.claim(b"s", "a")
    assert not server.calls._homes.is_ahead(b"s")
    server.calls.claim(b"t", "b")
    server.finish("b")
    assert not server.calls._homes.is_ahead(b"t"), "its record came first"


def test_an_outcome_ahead_of_its_record_is_waited_out_where_nobody_else_would_listen(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that is to listen on all the same does, and has the outcome of the record that comes meanwhile."""
    server.calls.start_early(b"s", "a", Call(id="a", question=Chat(()), deadline_ms=10**15))
    server.finish("a")
    monkeypatch.setattr(server.calls._lock, "wait", lambda _timeout_s: server.calls.claim(b"s", "a"))
    assert not server.calls.has_ready(b"s")
    assert server.calls.wait_for_ready(b"s", (), timeout_s=float("inf"), till_ahead=False)
    assert server.calls.has_ready(b"s")


def test_a_shard_that_waits_gives_way(server: Server) -> None:
    """A step that listens for one shard gives way as soon as another of its thread has an outcome, and says it has none itself."""
    server.calls.start(b"other", "a", Call(id="a", question=Chat(()), deadline_ms=10**15))
    server.finish()
    assert not server.calls.wait_for_ready(b"s", (b"other",), timeout_s=float("inf"))


def test_an_undone_claim_is_made_again(step: Step, server: Server) -> None:
    """A bundle that took an event with an early call and failed: the event comes again, and its call is not made twice."""
    server.calls.start_early(b"s", "a", Call(id="a", question=Chat(()), deadline_ms=10**15))
    step.bundle(take=["a"], fail=True)
    server.finish()
    assert step.bundle(hand_out=True) == []
    assert step.bundle(take=["a"], hand_out=True) == ["a"]
    assert len(server.started) == 1


def test_one_shard_for_each_instance_is_at_home() -> None:
    """Records are spread over the instances of this process, by one shard each; without any, none is at home."""
    homes = Homes()
    assert homes.pick(0, 0.0) is None
    for shard in (b"d", b"c", b"b", b"a"):
        homes.touch(shard, 1 if shard in {b"a", b"b"} else 2)
    assert {homes.pick(number, 0.0) for number in range(10)} == {b"a", b"c"}
    homes.leave(1)
    assert {homes.pick(number, 0.0) for number in range(10)} == {b"c"}


def test_any_shard_that_is_handled_here_is_at_home() -> None:
    """With an order to keep, the order key chooses the shard: its calls start early where that one is handled in this process."""
    homes = Homes()
    homes.touch(b"a", 1)
    homes.touch(b"b", 1)
    assert [homes.has(shard, 0.0) for shard in (b"a", b"b", b"c")] == [True, True, False]
    homes.started(b"b", "lost", 0.0)
    assert [homes.has(shard, UNCLAIMED_S + 1.0) for shard in (b"a", b"b")] == [True, False]


def test_a_shard_that_moved_away_is_found_out() -> None:
    """Early calls whose records do not arrive show that a shard is handled elsewhere; it is at home again when it is touched."""
    homes = Homes()
    homes.touch(b"a", 1)
    homes.started(b"a", "claimed", 0.0)
    homes.claim(b"a", "claimed")
    assert homes.pick(0, UNCLAIMED_S + 1.0) == b"a"
    homes.started(b"a", "lost", 0.0)
    assert homes.pick(0, UNCLAIMED_S - 1.0) == b"a"
    assert homes.pick(0, UNCLAIMED_S + 1.0) is None
    homes.touch(b"a", 1)
    assert homes.pick(0, UNCLAIMED_S + 1.0) == b"a"
