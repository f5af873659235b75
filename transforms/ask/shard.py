"""What a step remembers of one shard: events without an outcome yet. State is the truth, memory a cache of it.

A shard's state is a bag of items (events taken, and the numbers of those that are done) and a cell with a token. Every bundle
that changes the shard writes a new token. The first touch of a shard in a bundle reads the cell: where its token is not the one
that memory wrote last, then the bundle that wrote it failed, or another instance of the step changed the shard since, and
memory is built again from the bag. An outcome that was handed out stays in this process until a later bundle sees the token
written with it; until then it can be handed out again. docs/adr/0003 has the reasons and what loses events without this.

An event whose outcome leaves ahead of its record never comes into state: until the record arrives, it is the runner that keeps it
(docs/adr/0027). The token is written for it all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import msgspec

from transforms.ask.calls import ANY, Calls
from transforms.ask.outcomes import prompt_failure, unasked
from transforms.remote.client import Call, Outcome
from transforms.remote.questions import Question

# The bag is written anew when this many done numbers lie in it and they outnumber the events that are not done.
COMPACT_AT = 32

# How far past its deadline an event's call must be before the shard looks whether it still exists.
OVERDUE_MS = 1_000


class Cell(Protocol):
    """A cell of keyed state; Beam's `ReadModifyWriteRuntimeState` is one."""

    def read(self) -> bytes | None:
        """What was written last, or None."""

    def write(self, value: bytes) -> None:
        """Replaces what the cell holds."""


class Bag(Protocol):
    """A bag of keyed state; Beam's `BagRuntimeState` is one. Its order means nothing."""

    def read(self) -> Iterable[bytes]:
        """All items."""

    def add(self, value: bytes) -> None:
        """Adds an item."""

    def clear(self) -> None:
        """Removes all items."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """An event that the step took and that has no outcome yet.

    `number` is its own within the shard, `key` the event's id, with a suffix where that id is under way already; `attempts` is
    how many calls are known to have been made, `payload` the encoded event. `queue` is the event's order key, None for one that
    leaves as soon as it can.
    """

    number: int
    key: str
    id: str
    event_time_us: int
    taken_ms: int
    deadline_ms: int
    attempts: int
    payload: bytes
    queue: bytes | None = None


class Leaving(NamedTuple):
    """An event that leaves with its outcome.

    Its record is `payload`, encoded, as it was in state; or `record` itself, where that is still on its way, and `payload` None.
    `started_ms` is when the event was taken, or its call started, whichever came first.
    """

    id: str
    event_time_us: int
    started_ms: int
    outcome: Outcome
    payload: bytes | None
    record: Any = None


class _Item(msgspec.Struct, array_like=True):
    """An item of the bag: an event taken, the numbers of events that are done, or the attempts that events have used up by number."""

    entry: Entry | None = None
    done: tuple[int, ...] = ()
    spent: tuple[tuple[int, int], ...] = ()


class _Head(msgspec.Struct, array_like=True):
    """What the cell holds. `next_number` never goes back, so that a done number can never mean a later event.

    `tick_us` is when the timer that hands out outcomes fires, `hold_us` the event time at which it holds the watermark,
    `watchdog_us` when the one fires that stands in for it.
    """

    token: bytes = b""
    next_number: int = 0
    tick_set: bool = False
    end_set: bool = False
    tick_us: int = 0
    hold_us: int = 0
    watchdog_us: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(_Head).decode
_decode_item = msgspec.msgpack.Decoder(_Item).decode


class MakeCall(Protocol):
    """Makes the call for an event of the step, after a restart too."""

    def __call__(self, entry: Entry) -> Call | None:
        """The call for this entry, None where nothing is asked. What it raises becomes the event's outcome, of type ``prompt``."""


class Shard:
    """The memory of one shard in one instance of a step, which has a number in its process. Call `touch` first in each bundle."""

    def __init__(self, key: bytes, calls: Calls, make_call: MakeCall, instance: int | None = None) -> None:
        self.key = key
        self._instance = calls.new_instance() if instance is None else instance
        self._calls = calls
        self._make_call = make_call
        self._head = _Head()
        self._entries: dict[str, Entry] = {}
        self._spare_in_bag = 0
        self._unconfirmed: set[str] = set()
        self._is_new = True
        self._wrote_token = False
        self._quiet_since_ms = calls.clock.now_ms()

    def touch(self, cell: Cell, bag: Bag) -> None:
        """Begins a bundle: believes memory where state has the token that memory wrote last, and else builds it from state."""
        self._wrote_token = False
        stored = cell.read()
        head = _decode_head(stored) if stored else _Head()
        was_last = self._calls.touch(self.key, self._instance)
        if was_last and not self._is_new and head.token == self._head.token:
            for key in self._unconfirmed:
                self._calls.drop(self.key, key)
            self._unconfirmed.clear()
            return
        self._head = head
        self._rebuild(cell, bag, follows=self._calls.follows(self.key, head.token))
        self._is_new = False

    @property
    def pending(self) -> int:
        """How many events have not been handed out."""
        return len(self._entries)

    @property
    def awaits(self) -> bool:
        """Whether an outcome may come: of an event that has not been handed out, or of one whose record is on its way."""
        return bool(self._entries) or self._calls.expects(self.key)

    @property
    def quiet_ms(self) -> int:
        """How long ago the last outcome was handed out, or the first event was taken since nothing was under way."""
        return self._calls.clock.now_ms() - self._quiet_since_ms

    @property
    def tick_set(self) -> bool:
        """Whether the timer that hands out outcomes is set."""
        return self._head.tick_set

    @property
    def end_set(self) -> bool:
        """Whether the timer of the end of the window is set."""
        return self._head.end_set

    @property
    def tick_us(self) -> int:
        """When that timer fires, where it is set, in Unix microseconds."""
        return self._head.tick_us

    @property
    def hold_us(self) -> int:
        """The event time at which that timer holds the watermark, where it is set, in Unix microseconds."""
        return self._head.hold_us

    @property
    def watchdog_us(self) -> int:
        """When the timer that stands in for a tick that does not come fires, in Unix microseconds; 0 where it was never set."""
        return self._head.watchdog_us

    @property
    def oldest_us(self) -> int | None:
        """The earliest event time of what is pending, in Unix microseconds; None where nothing is."""
        return min((entry.event_time_us for entry in self._entries.values()), default=None)

    def mark_tick(self, cell: Cell, tick_us: int, hold_us: int) -> None:
        """Remembers, with the bundle, that the timer that hands out outcomes is set, for when, and what it holds."""
        self._head.tick_set, self._head.tick_us, self._head.hold_us = True, tick_us, hold_us
        self._write_head(cell)

    def mark_watchdog(self, cell: Cell, fire_us: int) -> None:
        """Remembers, with the bundle, for when the timer is set that stands in for a tick that does not come."""
        self._head.watchdog_us = fire_us
        self._write_head(cell)

    def mark_no_tick(self, cell: Cell) -> None:
        """Remembers, with the bundle, that the timer that hands out outcomes is not set."""
        if self._head.tick_set:
            self._head.tick_set = False
            self._write_head(cell)

    def mark_end(self, cell: Cell, *, is_set: bool) -> None:
        """Remembers, with the bundle, whether the timer of the end of the window is set."""
        if self._head.end_set != is_set:
            self._head.end_set = is_set
            self._write_head(cell)

    def _is_used(self, key: str) -> bool:
        # A call whose outcome was handed out is dropped once that is confirmed: it must not serve another event meanwhile.
        return key in self._entries or key in self._unconfirmed

    def take(
        self,
        cell: Cell,
        bag: Bag,
        event_id: str,
        event_time_us: int,
        deadline_ms: int,
        encode: Callable[[], bytes],
        make_call: MakeCall,
        queue: bytes | None = None,
        ticket: int = ANY,
        *,
        asked: Callable[[], Question | None],
    ) -> None:
        """Takes an event into state and starts its call, or finds the call that was started for it, by its `ticket`.

        An event whose outcome has left ahead is not taken. The time of any other, and its deadline, began with the call that was
        found. `encode` gives what is kept of the record, `asked` the question about it, which tells records of one id apart.
        `make_call` is used this once; a call that must be made again comes from the shard's own. With a `queue` the event leaves
        after those that were taken into it before.
        """
        key, occurrence = event_id, 1
        while self._is_used(key) or self._calls.is_anothers(self.key, key, ticket, asked):
            key, occurrence = f"{event_id}\x00{occurrence}", occurrence + 1
        now_ms = self._calls.clock.now_ms()
        found = self._calls.claim(self.key, key, queue)
        if found is not None and found.has_left_ahead:
            return
        early_ms = 0 if found is None else max(0, deadline_ms - found.deadline_ms)
        entry = Entry(
            number=self._head.next_number,
            key=key,
            id=event_id,
            event_time_us=event_time_us,
            taken_ms=now_ms - early_ms,
            deadline_ms=deadline_ms - early_ms,
            attempts=0,
            payload=encode(),
            queue=queue,
        )
        self._head.next_number += 1
        if not self._entries:
            self._quiet_since_ms = now_ms
        self._entries[key] = entry
        bag.add(_encode(_Item(entry=entry)))
        self._write_head(cell)
        if found is None:
            self._start(entry, make_call)

    def hand_out(self, cell: Cell, bag: Bag) -> list[Leaving]:
        """What can leave now. With this bundle it is out of the shard's state, or never comes into it.

        What attempts were used up since comes into state too: a call that is made again after a restore has that many less.
        """
        self._note_spent(cell, bag)
        leaving, entries, keys = [], [], []
        for key, call in self._calls.ready(self.key):
            entry, early = self._entries.get(key), call.early
            if entry is not None:
                entries.append(entry)
                outcome = call.future.result()
                leaving.append(Leaving(entry.id, entry.event_time_us, entry.taken_ms, outcome, entry.payload))
            elif early is not None:
                outcome = call.future.result()
                leaving.append(Leaving(key, early.event_time_us, early.started_ms, outcome, None, early.record))
            else:
                continue
            keys.append(key)
        if leaving:
            self._calls.take(self.key, keys)
            self._quiet_since_ms = self._calls.clock.now_ms()
            self._remove(entries, bag)
            self._write_head(cell)
        self._call_overdue()
        return leaving

    def _note_spent(self, cell: Cell, bag: Bag) -> None:
        spent = self._calls.spent(self.key, self._entries)
        if not spent:
            return
        for key, attempts in spent.items():
            self._entries[key] = msgspec.structs.replace(self._entries[key], attempts=attempts)
        self._spare_in_bag += len(spent)
        if self._spare_in_bag >= max(COMPACT_AT, len(self._entries)):
            self._write_bag(bag)
        else:
            bag.add(_encode(_Item(spent=tuple((self._entries[key].number, spent[key]) for key in spent))))
        self._write_head(cell)

    def _call_overdue(self) -> None:
        """Calls again for an event long past its deadline whose call this process forgot.

        Only an instance of the step that outlived its time can make that happen. The client then answers with the deadline.
        """
        entry = next(iter(self._entries.values()), None)
        if entry is not None and entry.deadline_ms + OVERDUE_MS < self._calls.clock.now_ms():
            self._start(entry, self._make_call)

    def _start(self, entry: Entry, make_call: MakeCall) -> None:
        if self._calls.find(self.key, entry.key) is not None:
            return
        try:
            call = make_call(entry)
        except Exception as error:  # noqa: BLE001 - one event that cannot be asked about must not stop the stream
            outcome = prompt_failure(entry.id, error, entry.attempts)
        else:
            if call is not None:
                self._calls.start(self.key, entry.key, call, queue=entry.queue)
                return
            outcome = unasked(entry.id)
        self._calls.settle(self.key, entry.key, outcome, entry.deadline_ms, entry.queue)

    def _remove(self, entries: list[Entry], bag: Bag) -> None:
        if not entries:
            return
        for entry in entries:
            del self._entries[entry.key]
            self._unconfirmed.add(entry.key)
        self._spare_in_bag += len(entries)
        if not self._entries or self._spare_in_bag >= max(COMPACT_AT, len(self._entries)):
            self._write_bag(bag)
        else:
            bag.add(_encode(_Item(done=tuple(entry.number for entry in entries))))

    def _rebuild(self, cell: Cell, bag: Bag, *, follows: bool) -> None:
        """Memory from state. Calls of this process are found again; the others start again, one more attempt used up."""
        items = [_decode_item(item) for item in bag.read()]
        done = {number for item in items for number in item.done}
        entries = [item.entry for item in items if item.entry is not None and item.entry.number not in done]
        self._spare_in_bag = len(done)
        self._unconfirmed.clear()
        spent: dict[int, int] = {}
        for number, attempts in (pair for item in items for pair in item.spent):
            spent[number] = max(spent.get(number, 0), attempts)
            self._spare_in_bag += 1
        self._entries = {
            entry.key: msgspec.structs.replace(entry, attempts=max(entry.attempts, spent.get(entry.number, 0)))
            for entry in sorted(entries, key=lambda entry: entry.number)
        }
        if not follows:
            self._drop_others()
        queues = {key: entry.queue for key, entry in self._entries.items()}
        lost = self._calls.reattach(self.key, queues, follows=follows)
        for key in lost:
            entry = self._entries[key]
            entry = self._entries[key] = msgspec.structs.replace(entry, attempts=entry.attempts + 1)
            self._start(entry, self._make_call)
        if lost:
            self._write_bag(bag)
            self._write_head(cell)

    def _drop_others(self) -> None:
        """Forgets calls of other records with ids of those in state: a bundle that failed may have mixed which record was which."""
        for key, entry in self._entries.items():
            call = self._calls.find(self.key, key)
            if call is not None and call.question != self._question(entry):
                self._calls.drop(self.key, key)

    def _question(self, entry: Entry) -> Question | None:
        try:
            call = self._make_call(entry)
        except Exception:  # noqa: BLE001 - it becomes an outcome where the call is made
            return None
        return None if call is None else call.question

    def _write_bag(self, bag: Bag) -> None:
        bag.clear()
        for entry in self._entries.values():
            bag.add(_encode(_Item(entry=entry)))
        self._spare_in_bag = 0

    def _write_head(self, cell: Cell) -> None:
        if not self._wrote_token:
            self._head.token = os.urandom(8)
            self._wrote_token = True
            self._calls.wrote(self.key, self._head.token)
        cell.write(_encode(self._head))
