"""The asynchronous step's memory against its state: what is lost, what is kept, what is done twice."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from transforms.ask.calls import ANY, ORPHAN_GRACE_MS, UNCLAIMED_S, WANTED_GRACE_MS, Calls, Early, Homes
from transforms.ask.shard import COMPACT_AT, Entry, Shard
from transforms.remote.client import Call, Outcome
from transforms.remote.fakes import VirtualClock
from transforms.remote.questions import Chat, Message


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

    def spend(self, event_id: str, attempts: int) -> None:
        """So many attempts of an event's call have failed, those before this process included."""
        for call, _ in self._open:
            if call.id == event_id and call.on_spent is not None:
                call.on_spent(attempts)

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


def nothing_else() -> Chat:
    """All records here have the same question."""
    return Chat(())


class Step:
    """One instance of the step for one shard, driven bundle by bundle."""

    def __init__(self, store: Store, server: Server, queue_of: Callable[[str], bytes | None] = lambda _: None) -> None:
        self.store, self.server, self.queue_of = store, server, queue_of
        self.shard = Shard(b"s", server.calls, make_call)
        self.tickets: dict[str, int] = {}

    def bundle(self, take: Iterable[str] = (), hand_out: bool = False, fail: bool = False) -> list[str]:
        """Runs a bundle; returns the ids it emitted, which count only where it did not fail."""
        self.store.begin()
        cell, bag = self.store.cell, self.store.bag
        self.shard.touch(cell, bag)
        for event_id in take:
            encode, queue = (b"payload of " + event_id.encode()).strip, self.queue_of(event_id)
            ticket = self.tickets.get(event_id, ANY)
            self.shard.take(cell, bag, event_id, 0, 10**15, encode, make_call, queue, ticket, asked=nothing_else)
        out = self.shard.hand_out(cell, bag) if hand_out else []
        if fail:
            return []
        self.store.commit()
        return [leaving.id for leaving in out]

    def start_early(self, event_id: str, deadline_ms: int = 10**15, *, ahead: bool = False) -> None:
        """Starts the call of an event whose record is on its way, and whose outcome may leave `ahead` of it."""
        call = Call(id=event_id, question=Chat(()), deadline_ms=deadline_ms)
        early = Early(f"record of {event_id}", 7, 0) if ahead else None
        self.tickets[event_id] = self.server.calls.start_early(b"s", event_id, call, early)


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
    assert [leaving.id for leaving in step.shard.hand_out(cell, bag)] == ["a"]
    step.shard.take(cell, bag, "a", 0, 10**15, b"again".strip, make_call, asked=nothing_else)
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
    step.shard.take(cell, bag, "a2", 0, 10**15, b"".strip, speechless, b"a", asked=nothing_else)
    assert step.shard.hand_out(cell, bag) == []
    server.finish("a1")
    out = step.shard.hand_out(cell, bag)
    step.store.commit()
    assert [(leaving.id, leaving.outcome.error_type, leaving.outcome.attempts) for leaving in out] == [
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
        step.start_early(event_id)
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
    step.start_early("a")
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

    def take(event_id: str) -> tuple[int, int]:
        step.shard.touch(store.cell, store.bag)
        ticket = step.tickets.get(event_id, ANY)
        deadline_ms = clock.now_ms() + 5_000
        step.shard.take(
            store.cell, store.bag, event_id, 0, deadline_ms, b"".strip, make_call, ticket=ticket, asked=nothing_else
        )
        (deadline_ms,) = (entry.deadline_ms for entry in step.shard._entries.values())
        server.finish(event_id)
        (leaving,) = step.shard.hand_out(store.cell, store.bag)
        return leaving.started_ms, deadline_ms

    began_ms = clock.now_ms()
    step.start_early("a", began_ms + 5_000)
    clock.advance(0.3)
    assert take("a") == (began_ms, began_ms + 5_000)
    assert take("b") == (began_ms + 300, began_ms + 5_300)


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


def test_an_outcome_leaves_ahead_of_its_record(step: Step, server: Server) -> None:
    """An outcome that is there first does not wait for its record, which goes no further; nothing of it comes into state."""
    step.bundle()
    step.start_early("a", ahead=True)
    assert step.bundle(hand_out=True) == []
    server.finish()
    assert server.calls.wait_for_ready(b"s", (), timeout_s=0.0)
    step.shard.touch(step.store.cell, step.store.bag)
    (leaving,) = step.shard.hand_out(step.store.cell, step.store.bag)
    step.store.commit()
    assert (leaving.record, leaving.event_time_us, leaving.payload) == ("record of a", 7, None)
    assert step.bundle(take=["a"], hand_out=True) == []
    assert (step.store.committed_bag, sizes(server.calls), len(server.started)) == ([], 0, 1)


def test_the_shard_awaits_a_record_that_is_on_its_way(step: Step, server: Server) -> None:
    """A step listens on for the outcome of a record that has not arrived, and no longer than such records take to arrive."""
    step.bundle(take=["z"])
    server.finish()
    step.bundle(hand_out=True)
    assert not step.shard.awaits
    step.start_early("a", ahead=True)
    assert step.shard.awaits
    step.bundle(take=["a"])
    server.finish()
    step.bundle(hand_out=True)
    assert not step.shard.awaits
    step.start_early("lost", ahead=True)
    clock = server.calls.clock
    assert isinstance(clock, VirtualClock)
    clock.advance(UNCLAIMED_S + 1.0)
    assert not step.shard.awaits


def test_what_left_ahead_in_vain_leaves_with_its_record(step: Step, server: Server) -> None:
    """A bundle that handed out an outcome ahead of its record and failed: it leaves once the record is there, without a call."""
    step.bundle(take=["z"])
    step.start_early("a", ahead=True)
    server.finish("a")
    step.bundle(hand_out=True, fail=True)
    assert step.bundle(hand_out=True) == [], "after a failure the record may come anew: it is waited for"
    assert step.bundle(take=["a"], hand_out=True) == ["a"]
    assert len(server.started) == 2


def test_what_left_ahead_before_a_restore_leaves_again(step: Step, server: Server) -> None:
    """Where state goes back to before an outcome left ahead, in a process that lives on, the record that comes anew is answered."""
    step.bundle(take=["z"])
    checkpoint = (step.store.committed_cell, list(step.store.committed_bag))
    step.start_early("a", ahead=True)
    server.finish("a")
    assert step.bundle(hand_out=True) == ["a"]
    step.bundle()
    step.store.committed_cell, step.store.committed_bag = checkpoint
    assert Step(step.store, server).bundle(take=["a"], hand_out=True) == ["a"]


def test_another_instance_knows_what_left_ahead(step: Step, server: Server) -> None:
    """An outcome that one instance handed out ahead of its record is not given again by another that takes the record."""
    step.bundle(take=["z"])
    step.start_early("a", ahead=True)
    server.finish("a")
    assert step.bundle(hand_out=True) == ["a"]
    other = Step(step.store, server)
    other.tickets = step.tickets
    assert other.bundle(take=["a"], hand_out=True) == []
    assert step.bundle(hand_out=True) == []


def test_records_of_one_id_are_told_apart(step: Step, server: Server) -> None:
    """Of two records with one id, the one that comes first does not take the outcome of the other; each leaves with its own."""
    step.bundle(take=["z"])
    step.start_early("a", ahead=True)
    ticket = step.tickets.pop("a")
    step.bundle(take=["a"])
    step.tickets["a"] = ticket
    assert [call.id for call in server.started] == ["z", "a", "a"]
    server.finish("a")
    assert step.bundle(hand_out=True) == ["a", "a"]
    assert step.bundle(take=["a"], hand_out=True) == []


def test_what_left_ahead_is_remembered_longer(step: Step, server: Server) -> None:
    """A record that arrives minutes after its outcome left ahead goes no further; one that never does is forgotten at last."""
    clock = server.calls.clock
    assert isinstance(clock, VirtualClock)
    step.bundle(take=["z"])
    for event_id in ("a", "b"):
        step.start_early(event_id, clock.now_ms() + 1_000, ahead=True)
    server.finish("a", "b")
    assert step.bundle(hand_out=True) == ["a", "b"]
    clock.advance(ORPHAN_GRACE_MS / 1_000 + 2.0)
    step.bundle(take=["y"])
    assert step.bundle(take=["a"], hand_out=True) == []
    clock.advance(WANTED_GRACE_MS / 1_000)
    step.bundle(take=["x"])
    assert server.calls.find(b"s", "b") is None


class History:
    """A random history of one step: records that travel, bundles, failures, instances, two processes, checkpoints and restores.

    A `calm` one has no failure, and stays in one process. What is emitted counts only as far as a checkpoint has it, as if whatever
    is behind the step went back with it.
    """

    def __init__(self, seed: int, *, calm: bool) -> None:
        self.dice = random.Random(seed)
        self.calm = calm
        self.store = Store()
        self.servers = [Server(), Server()]
        self.steps = [Step(self.store, server) for server in self.servers for _ in range(2)]
        self.step = self.steps[0]
        self.travelling: list[tuple[str, Server, int]] = []
        self.emitted: list[str] = []
        self.read = 0
        self._checkpoint()

    def _checkpoint(self) -> None:
        kept = (self.store.committed_cell, self.store.committed_bag, self.travelling, self.emitted, self.read)
        self._kept = copy.deepcopy(kept[:2]) + tuple(map(copy.copy, kept[2:]))

    def _restore(self) -> None:
        self.store.committed_cell, self.store.committed_bag, self.travelling, self.emitted, self.read = map(
            copy.copy, self._kept
        )

    def _read(self) -> None:
        """The source reads some records, and starts the calls of most."""
        for _ in range(self.dice.randrange(4)):
            event_id, self.read = str(self.read), self.read + 1
            if self.dice.random() < 0.8:
                self.step.start_early(event_id, ahead=self.dice.random() < 0.9)
            self.travelling.append((event_id, self.step.server, self.step.tickets.pop(event_id, ANY)))

    def bundle(self, most: int, *, may_fail: bool = True) -> None:
        """A bundle of the step, with so many of the records that travel."""
        arrived, self.travelling = self.travelling[:most], self.travelling[most:]
        self.step.tickets = {event_id: ticket for event_id, server, ticket in arrived if server is self.step.server}
        fail = may_fail and not self.calm and self.dice.random() < 0.1
        ids = [event_id for event_id, *_ in arrived]
        self.emitted += self.step.bundle(ids, hand_out=self.dice.random() < 0.7, fail=fail)
        if fail:
            self._restore()

    def go_on(self) -> None:
        """A while of it."""
        if self.dice.random() < 0.1:
            self.step = self.dice.choice(self.steps[:2] if self.calm else self.steps)
        self._read()
        self.bundle(0)
        self.bundle(self.dice.randrange(5))
        if self.dice.random() < 0.2:
            self._checkpoint()
        if not self.calm and self.dice.random() < 0.05:
            self.servers[0] = Server()
            self.steps[:2] = [Step(self.store, self.servers[0]) for _ in range(2)]
            self.step = self.steps[0]
            self._restore()
        for server in self.servers:
            open_ids = [call.id for call, _ in server._open]
            server.finish(*self.dice.sample(open_ids, self.dice.randrange(len(open_ids) + 1)) or ["none"])

    def end(self) -> None:
        """Whatever travels arrives, and all calls end."""
        while self.travelling or self.store.committed_bag:
            for server in self.servers:
                server.finish()
            self.bundle(len(self.travelling), may_fail=False)
        for server in self.servers:
            server.finish()


@pytest.mark.parametrize("seed", range(300))
def test_no_record_is_lost_whatever_leaves_ahead(seed: int) -> None:
    """Over random histories each record leaves; once, and with one call, where nothing fails."""
    history = History(seed, calm=seed % 3 == 0)
    for _ in range(80):
        history.go_on()
    history.end()
    # A process that lives on may give what the restored source has yet to read again.
    assert set(history.emitted) >= set(map(str, range(history.read)))
    if history.calm:
        assert len(history.emitted) == len(history.servers[0].started) == history.read
    assert all(server.calls.open == 0 for server in history.servers)


def test_a_shard_that_waits_gives_way(server: Server) -> None:
    """A step that listens for one shard gives way as soon as another of its thread has an outcome, and says it has none itself."""
    server.calls.start(b"other", "a", Call(id="a", question=Chat(()), deadline_ms=10**15))
    server.finish()
    assert not server.calls.wait_for_ready(b"s", (b"other",), timeout_s=float("inf"))


def test_an_undone_claim_is_made_again(step: Step, server: Server) -> None:
    """A bundle that took an event with an early call and failed: the event comes again, and its call is not made twice."""
    step.start_early("a")
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


def made_again(step: Step) -> list[Call]:
    """The calls that another process makes after a restore of the step's state."""
    elsewhere = Server()
    Step(step.store, elsewhere).bundle()
    return elsewhere.started


def test_used_up_attempts_go_on_after_a_restore(step: Step, server: Server) -> None:
    """What a call has used up is in state by the next turn: made again elsewhere, it has that many less, and the one that was lost."""
    step.bundle(take=["a", "b"])
    server.spend("a", 2)
    step.bundle(hand_out=True)
    server.spend("a", 3)
    step.bundle(hand_out=True)
    assert {call.id: call.attempts for call in made_again(step)} == {"a": 4, "b": 1}


def test_used_up_attempts_survive_a_bundle_that_fails(step: Step, server: Server) -> None:
    """What a bundle that failed was to write of used up attempts, the next one writes."""
    step.bundle(take=["a"])
    server.spend("a", 3)
    step.bundle(hand_out=True, fail=True)
    step.bundle(hand_out=True)
    assert [call.attempts for call in made_again(step)] == [4]


def test_the_bag_is_compacted_where_attempts_fail(step: Step, server: Server) -> None:
    """However many attempts fail, the bag stays about as large as what is under way."""
    step.bundle(take=["a"])
    for attempts in range(1, 10 * COMPACT_AT):
        server.spend("a", attempts)
        step.bundle(hand_out=True)
        assert len(step.store.committed_bag) <= COMPACT_AT + 1
    assert [call.attempts for call in made_again(step)] == [10 * COMPACT_AT]


def test_an_answer_is_kept_while_its_shard_is_here(server: Server) -> None:
    """An outcome that could not be handed out for long after its deadline leaves all the same; no second call is made."""
    clock = server.calls.clock
    assert isinstance(clock, VirtualClock)
    step = Step(Store(), server)
    step.bundle(take=["a"])
    (running,) = (call for call in [server.calls.find(b"s", "a")] if call)
    running.deadline_ms = clock.now_ms() + 5_000
    server.finish("a")
    clock.advance(3_600.0)
    server.calls.start(b"other", "x", Call(id="x", question=Chat(()), deadline_ms=10**15))
    assert step.bundle(hand_out=True) == ["a"]
    assert [call.id for call in server.started] == ["a", "x"]


def test_an_answer_whose_shard_has_gone_is_forgotten_in_the_end(server: Server) -> None:
    """Where no instance has the shard any more, a wanted outcome is kept for ten minutes after its deadline, and no longer."""
    clock = server.calls.clock
    assert isinstance(clock, VirtualClock)
    instance = server.calls.new_instance()
    server.calls.touch(b"s", instance)
    server.calls.start(b"s", "a", Call(id="a", question=Chat(()), deadline_ms=clock.now_ms()))
    server.finish("a")
    server.calls.leave(instance)
    found = []
    for after_s in (WANTED_GRACE_MS / 1_000 - 1.0, ORPHAN_GRACE_MS / 1_000 + 1.0):
        clock.advance(after_s)
        server.calls.start(b"other", str(after_s), Call(id="x", question=Chat(()), deadline_ms=10**15))
        found.append(server.calls.find(b"s", "a") is not None)
    assert found == [True, False]


def test_what_waits_for_its_record_has_a_bound(step: Step, server: Server) -> None:
    """However many records are on their way, no more calls than the bound are remembered for them."""
    step.bundle(take=["z"])
    server.finish()
    step.bundle(hand_out=True)
    for number in range(500):
        call = Call(id=str(number), question=Chat(()), deadline_ms=10**15)
        early = Early(number, 0, 0)
        assert (server.calls.start_early(b"s", str(number), call, early, most=50) == ANY) is (number >= 50)
        server.finish()
        step.bundle(hand_out=True)
    assert len(server.started) == 51


class Late:
    """A future whose callbacks come later than its end."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.callbacks: list[Callable[[Any], object]] = []

    def done(self) -> bool:
        return self.outcome is not None

    def result(self) -> Outcome:
        assert self.outcome is not None
        return self.outcome

    def add_done_callback(self, function: Callable[[Any], object], /) -> None:
        self.callbacks.append(function)


def test_a_record_that_arrives_as_its_call_ends_is_counted_once(server: Server) -> None:
    """Where a record comes between the end of its call and the word of it, nothing stays open once its outcome may leave."""
    late = Late()

    def run(coroutine: Coroutine[Any, Any, Outcome]) -> Late:
        coroutine.close()
        return late

    server.calls = Calls(server, VirtualClock(), run=run)
    step = Step(Store(), server, lambda _: b"k")
    step.start_early("a")
    late.outcome = Outcome("a", None, "x", "m", 1, 0.0, 0.0, None)
    step.bundle(take=["a"])
    for callback in late.callbacks:
        callback(late)
    assert server.calls.open == 0
    assert step.bundle(hand_out=True) == ["a"]


class Asking:
    """A step whose records say what they ask; it emits pairs of what was asked and what was answered."""

    def __init__(self, server: Server) -> None:
        self.store, self.server = Store(), server
        self.shard = Shard(b"s", server.calls, self._make_call)

    def bundle(self, *records: tuple[str, str, int], fail: bool = False) -> list[tuple[str, str]]:
        """Takes records (id, text, ticket) and hands out what may leave."""
        self.store.begin()
        cell, bag = self.store.cell, self.store.bag
        self.shard.touch(cell, bag)
        for event_id, text, ticket in records:
            asked = partial(question_of, text)
            self.shard.take(cell, bag, event_id, 0, 10**15, text.encode, self._make_call, None, ticket, asked=asked)
        left = self.shard.hand_out(cell, bag)
        if fail:
            return []
        self.store.commit()
        return [
            (one.record if one.payload is None else one.payload.decode(), str(one.outcome.error_message))
            for one in left
        ]

    def start_early(self, event_id: str, text: str) -> int:
        call = Call(id=event_id, question=question_of(text), deadline_ms=10**15)
        return self.server.calls.start_early(b"s", event_id, call, Early(text, 0, 0))

    @staticmethod
    def _make_call(entry: Entry) -> Call:
        return Call(id=entry.id, question=question_of(entry.payload.decode()), deadline_ms=entry.deadline_ms)


def question_of(text: str) -> Chat:
    return Chat((Message("user", text),))


class Echo(Server):
    """Answers with what was asked."""

    def finish(self, *ids: str) -> None:
        for call, future in list(self._open):
            if not ids or call.id in ids:
                self._open.remove((call, future))
                assert isinstance(call.question, Chat)
                text = call.question.messages[0].content
                future.set_result(Outcome(call.id, None, "x", text, 1, 0.0, 0.0, None))


def test_after_a_failure_records_of_one_id_get_their_own_answers() -> None:
    """A bundle that failed makes tickets worthless; what is asked still tells two records of one id apart."""
    server = Echo()
    step = Asking(server)
    step.bundle(("z", "z", ANY))
    server.finish()
    step.bundle()
    ticket = step.start_early("7", "refund order 1")
    step.bundle(("y", "y", ANY), fail=True)
    step.bundle(("y", "y", ANY))
    left = step.bundle(("7", "cancel order 2", ANY))
    server.finish()
    left += step.bundle()
    left += step.bundle(("7", "refund order 1", ticket))
    server.finish()
    assert sorted(left + step.bundle()) == [
        ("cancel order 2", "cancel order 2"),
        ("refund order 1", "refund order 1"),
        ("y", "y"),
    ]


@pytest.mark.parametrize("seed", range(100))
def test_no_record_gets_anothers_answer_whatever_fails(seed: int) -> None:
    """Over random bundles, failures and early calls of few ids: what leaves always has the answer to its own question."""
    dice = random.Random(seed)
    server = Echo()
    step = Asking(server)
    step.bundle(("z", "z", ANY))
    todo: list[tuple[str, str, int]] = []
    left: list[tuple[str, str]] = []
    for number in range(60):
        event_id, text = str(dice.randrange(3)), f"text {number}"
        todo.append((event_id, text, step.start_early(event_id, text) if dice.random() < 0.6 else ANY))
        if dice.random() < 0.5:
            server.finish(str(dice.randrange(3)))
        if dice.random() < 0.6:
            dice.shuffle(todo)
            some = todo[: dice.randrange(len(todo) + 1)]
            fails = dice.random() < 0.3
            left += step.bundle(*some, fail=fails)
            if not fails:
                del todo[: len(some)]
    left += step.bundle(*todo)
    for _ in range(3):
        server.finish()
        left += step.bundle()
    assert all(asked == answered for asked, answered in left)
    assert {asked for asked, _ in left} >= {f"text {number}" for number in range(60)}


def test_attempts_of_a_call_whose_record_comes_anew_count(step: Step, server: Server) -> None:
    """What a call used up while its bundle failed and its record was on its way again comes into state with that record."""
    step.bundle(take=["z"])
    step.bundle(take=["a"], fail=True)
    server.spend("a", 2)
    step.bundle(hand_out=True)
    step.bundle(take=["a"])
    step.bundle(hand_out=True)
    assert {call.id: call.attempts for call in made_again(step)} == {"z": 1, "a": 3}


def test_attempts_of_a_call_that_was_dropped_are_not_anothers(step: Step, server: Server) -> None:
    """A call whose place another has taken goes on in vain: what it uses up is not counted for the other."""
    step.bundle(take=["a"])
    (old,) = server.started
    server.calls.drop(b"s", "a")
    server.calls.start(b"s", "a", Call(id="a", question=Chat(()), deadline_ms=10**15))
    assert old.on_spent is not None
    old.on_spent(4)
    step.bundle(hand_out=True)
    assert [call.attempts for call in made_again(step)] == [1]
