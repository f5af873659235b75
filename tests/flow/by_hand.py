"""The step driven by hand, bundle by bundle, where a test wants what no runner does on request."""

from __future__ import annotations

from typing import Any

from apache_beam.utils.timestamp import Timestamp

from tests.flow import doubles
from tests.flow.doubles import Cell, Item, model
from transforms.ask import step
from transforms.ask.calls import ANY, make_client
from transforms.coders import coder_of


class Bag:
    """A bag of state."""

    def __init__(self) -> None:
        self.items: list[bytes] = []

    def read(self) -> list[bytes]:
        return list(self.items)

    def add(self, value: bytes) -> None:
        self.items.append(value)

    def clear(self) -> None:
        self.items.clear()


class Timer:
    """Keeps when it fires; `_input_timestamp` as Beam's own has it."""

    def __init__(self) -> None:
        self._input_timestamp = Timestamp(0)
        self.fires: Timestamp | None = None
        self.times_set = 0
        self.tag = ""

    def set(self, at: Timestamp, dynamic_timer_tag: str = "") -> None:
        self.fires, self.times_set, self.tag = at, self.times_set + 1, dynamic_timer_tag

    def clear(self, dynamic_timer_tag: str = "") -> None:
        if dynamic_timer_tag == self.tag:
            self.fires = None


class Runner:
    """State and timers of one shard, and one instance of the step at a time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.cell, self.bag = Cell(), Bag()
        self.tick, self.watchdog, self.end = Timer(), Timer(), Timer()
        self.begin("first")

    def begin(self, process: str) -> None:
        """A new instance, in another process where `process` is another."""
        self.step = step._Ask(
            step=f"{process} process of {self._url}",
            model=model(self._url),
            ask=doubles.ask,
            id_of=doubles.id_of,
            order_key_of=None,
            traceparent_of=None,
            coder=coder_of(Item),
            tick_ms=20,
            listen_ms=0,
            max_pending=10,
            end_slice_s=None,
            make_caller=make_client,
        )
        self.step.setup()

    def take(self, name: str, at_s: float, ticket: int = ANY) -> list[Any]:
        """A bundle with one record."""
        self.step.start_bundle()
        timers = (self.tick, self.watchdog, self.end)
        return list(self.step.process((b"s", (ticket, Item(name))), Timestamp(at_s), self.cell, self.bag, *timers))

    def fire(self, name: str) -> list[Any]:
        """A bundle with one timer."""
        self.step.start_bundle()
        return list(getattr(self.step, f"on_{name}")(b"s", self.cell, self.bag, self.tick, self.watchdog))

    def finish(self) -> list[Any]:
        """A bundle with the timer of the end."""
        self.step.start_bundle()
        return list(self.step.on_end(b"s", self.cell, self.bag, self.tick, self.watchdog, self.end))
