"""How far a call has come, and what is sent for one or several of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from transforms.errors import CallError, DeadlineExceeded
from transforms.remote.clock import Clock
from transforms.remote.protocols import Request
from transforms.remote.questions import Question

OVER_S = 0.001
"""With less time than this until its deadline, nothing is begun for an event any more."""


class Call(msgspec.Struct, frozen=True):
    """A question to a model, for one event.

    `id` is the event's; every attempt has it in its ``Idempotency-Key``. `deadline_ms` is in Unix milliseconds of
    the wall clock. `attempts` were made before, by a process that did not live to tell. `on_spent` is told how many attempts have
    been used up, those included, whenever one more is, on the event loop's thread. `traceparent` is W3C's header, passed on.
    """

    id: str
    question: Question
    deadline_ms: int
    attempts: int = 0
    traceparent: str | None = None
    on_spent: Callable[[int], None] | None = None


class Course:
    """How far one call has come.

    `began_s` and `deadline_s` are in seconds of the monotonic clock, so that a jump of the wall clock neither stretches nor cuts
    it. `turn` is its place in the order of asking. `attempts` are all that were made, `spent` those that use up what it is allowed.
    """

    __slots__ = ("attempts", "began_s", "call", "deadline_s", "endpoint", "last_error", "model_ms", "spent", "turn")

    def __init__(self, call: Call, deadline_s: float, turn: int, began_s: float = float("-inf")) -> None:
        self.call = call
        self.deadline_s = deadline_s
        self.turn = turn
        self.began_s = began_s
        self.attempts = call.attempts
        self.spent = call.attempts
        self.model_ms = 0.0
        self.endpoint: str | None = None
        self.last_error: CallError | None = None

    def exceeded(self, phase: str) -> DeadlineExceeded:
        """The error of a deadline that passed in this phase, with what was wrong before."""
        sentence = " ".join(part for part in ("The deadline of the event passed", phase) if part)
        number = f"{self.attempts} attempt" + ("" if self.attempts == 1 else "s")
        last = self.last_error
        cause = f"the last error was {last.kind}: {last}" if last else "no attempt failed before."
        return DeadlineExceeded(f"{sentence}, after {number}; {cause}")


class Sending:
    """One request, sent as often as it must be, for the calls whose questions it holds. The latest of their deadlines is its own.

    It is sent in rounds, in each of which a hedge may follow the first request. `whole_s` is the time that it had in all, and
    `is_spared` says that it was repeated once without the budget.
    """

    __slots__ = (
        "counted",
        "courses",
        "deadline_s",
        "failures",
        "headers",
        "is_spared",
        "previous_s",
        "request",
        "round",
        "since_s",
        "turn",
        "whole_s",
    )

    def __init__(self, courses: Sequence[Course], request: Request, headers: Mapping[str, str]) -> None:
        self.courses = courses
        self.request = request
        self.headers = headers
        self.deadline_s = max(course.deadline_s for course in courses)
        self.whole_s = self.deadline_s - min(course.began_s for course in courses)
        self.turn = min(course.turn for course in courses)
        self.is_spared = False
        self.round = 0
        self.failures = 0
        self.counted = False
        self.since_s = float("inf")
        self.previous_s = float("inf")

    @property
    def questions(self) -> list[Question]:
        """The questions, in order."""
        return [course.call.question for course in self.courses]

    @property
    def last_endpoint(self) -> str | None:
        """The base URL of the latest attempt."""
        return self.courses[0].endpoint

    def rest_s(self, clock: Clock, phase: str) -> float:
        """Return the seconds left until the deadline.

        Raises:
            DeadlineExceeded: there are none; it passed in this phase.
        """
        rest_s = self.deadline_s - clock.monotonic_s()
        if rest_s <= OVER_S:
            raise self.courses[0].exceeded(phase)
        return rest_s

    def on_attempt(self, endpoint: str, now_s: float) -> None:
        """Note that it is sent. `since_s` is then when its round before this one began, or this one where it is the first."""
        if not self.round:
            self.since_s = min(self.previous_s, now_s)
            self.previous_s = now_s
        self.round += 1
        for course in self.courses:
            course.attempts += 1
            course.spent += 1
            course.endpoint = endpoint

    def on_failure(self, error: CallError, *, counts: bool, happened: bool) -> None:
        """Note a failed round, which may not use up what the calls are allowed; its last attempt may not be one at all."""
        made, self.round = self.round, 0
        self.failures += 1
        self.counted = counts
        for course in self.courses:
            course.last_error = error
            course.spent -= 0 if counts else made
            course.attempts -= not happened
            if counts and course.call.on_spent is not None:
                course.call.on_spent(course.spent)

    def on_absent(self) -> None:
        """Note that a request of this round was no attempt: nothing of it was sent."""
        self.round -= 1
        for course in self.courses:
            course.attempts -= 1
            course.spent -= 1

    def used_up(self, most: int) -> bool:
        """Whether no call of it may be attempted again. A call that was used up before it came here gets one more attempt."""
        return self.counted and all(course.spent >= most for course in self.courses)

    def on_reply(self, took_ms: float) -> None:
        """Note the reply, which took so long."""
        for course in self.courses:
            course.model_ms = took_ms
