"""The client: one call in, exactly one outcome out.

A call goes through these, each of which may be left out by the settings: the cache and single flight (`cache`), the batcher
(`batcher`), the retry loop with hedging (`attempts`), the door (`admission`), and the request itself (`exchange`). The event's
deadline covers all of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NoReturn

import msgspec

from transforms.errors import CallError, DeadlineExceeded
from transforms.remote.admission import Admission
from transforms.remote.attempts import Attempts
from transforms.remote.batcher import Batcher
from transforms.remote.cache import CachedCalls, cacheable, content_key, open_cache
from transforms.remote.clock import Clock, SystemClock
from transforms.remote.course import OVER_S, Call, Course
from transforms.remote.exchange import Exchange
from transforms.remote.hedge import HedgePolicy
from transforms.remote.pool import Pool
from transforms.remote.probing import Probing
from transforms.remote.questions import Chat, Message, Reply
from transforms.remote.settings import ModelSettings
from transforms.remote.transport import Transport
from transforms.remote.transports import OpenTransport

__all__ = ["Call", "Chat", "Client", "Message", "Outcome", "Reply", "Source"]

_LONGEST_MESSAGE = 1000

Source = Literal["call", "cache", "shared", "fixed"]
"""Where a reply came from: a request of its own, the cache, the request of an equal call under way, or the settings."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of a call: either `reply`, or `error_type` (the error's `kind`) and `error_message` (a sentence).

    `attempts` are all that were made, those of `Call.attempts` included; one that found no server is not among them
    where `RetryPolicy.wait_for_server` says so (one cut off while it was connecting is). `model_ms` is how long the
    successful attempt took (0 without one), `total_ms` how long `Client.call` took. `endpoint` is the base URL of the
    last attempt, None where none was made. `role` is that of the model which answered, or was asked last; `reason` says why it
    was not the first one of a chain of fallbacks, None where it was.
    """

    id: str
    reply: Reply | None
    error_type: str | None
    error_message: str | None
    attempts: int
    model_ms: float
    total_ms: float
    endpoint: str | None
    role: str = ""
    source: Source = "call"
    reason: str | None = None


class Client:
    """Calls the model of one role. Make one per worker process, in `setup`; use it on one event loop.

    Making it reads the secret. It cannot be pickled. A `transport` that is handed in stays the caller's to close. Fallbacks are
    not its business (`chain`).

    Raises:
        SettingsError: the secret cannot be read, or the package that a Redis needs is not there.
    """

    def __init__(self, settings: ModelSettings, clock: Clock | None = None, transport: Transport | None = None) -> None:
        self.settings = settings
        self._clock: Clock = clock or SystemClock()
        self._open = OpenTransport(settings, self._clock, transport)
        self._turns = itertools.count()
        self.pool = Pool(settings.endpoints, settings.pool)
        self._admission = Admission(self._clock, self.pool, settings.max_in_flight)
        self._exchange = Exchange(settings, self._clock, self._open.transport, self._admission)
        self._protocol = self._exchange.protocol
        self._hedge = HedgePolicy(settings.hedge) if settings.hedge is not None else None
        self._attempts = Attempts(settings.retry, self._clock, self._admission, self._exchange, self._hedge)
        self._batcher = self._make_batcher()
        self._cache = None if settings.cache is None else open_cache(settings.cache, self._clock)
        self._cached: CachedCalls[Reply] | None = None
        if self._cache is not None:
            self._cached = CachedCalls(self._cache, self._clock, _encode, _decode)
        self._probing: Probing | None = None
        if settings.probe is not None:
            path = settings.probe.path or self._protocol.probe_path or ""
            self._probing = Probing(
                self.pool,
                settings.probe,
                self._clock,
                lambda url, s: self._exchange.probe(url, path, s),
                self._admission,
            )

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a client holds a secret and connections."""
        raise TypeError("A Client cannot be pickled; pickle its settings and make one on the worker.")

    @property
    def in_flight(self) -> int:
        """The requests that hold a permit; readable from any thread."""
        return self._admission.in_flight

    @property
    def waiting(self) -> int:
        """The requests that wait for a permit; readable from any thread."""
        return self._admission.waiting

    async def call(self, call: Call) -> Outcome:
        """Return what became of `call`, at most 100 ms after its deadline. Raises nothing but CancelledError.

        A call whose attempts are used up already still gets one, if its deadline allows: the answers to the earlier
        ones are lost, and a dead letter is no substitute for an answer that is possible.
        """
        began_s = self._clock.monotonic_s()
        course = Course(call, began_s + (call.deadline_ms - self._clock.now_ms()) / 1000.0, next(self._turns))
        source: Source = "call"
        reply, failure = None, None
        try:
            if self._cached is None:
                reply = await self._ask(course)
            else:
                reply, source = await self._ask_or_find(course, self._cached)
        except CallError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a defect must not cost an event its outcome
            failure = CallError(f"The client failed on this call: {type(error).__name__}: {error}.")
        return self._outcome(course, began_s, reply, failure, source)

    async def close(self) -> None:
        """Close the connections, unless the transport was handed in."""
        if self._probing is not None:
            await self._probing.close()
        if self._batcher is not None:
            await self._batcher.close()
        if self._cache is not None:
            await self._cache.close()
        await self._open.close()

    def _make_batcher(self) -> Batcher[Course, Reply] | None:
        settings = self.settings.batch
        if settings is None:
            return None
        most = self._protocol.most_items
        if most is not None and most < settings.max_items:
            settings = msgspec.structs.replace(settings, max_items=most)
        return Batcher(
            settings, self._send_all, self._clock, limit=lambda: min(settings.max_in_flight, self._admission.most)
        )

    async def _ask_or_find(self, course: Course, cached: CachedCalls[Reply]) -> tuple[Reply, Source]:
        question = course.call.question
        params = self._protocol.params(question)
        always = self.settings.cache is not None and self.settings.cache.always
        if not cacheable(params, samples=self._protocol.samples, always=always):
            return await self._ask(course), "call"
        key = content_key(self.settings.protocol, self.settings.model, _content(question), params)
        try:
            answered = await cached.run(key, lambda: self._ask(course), course.deadline_s)
        except DeadlineExceeded:
            raise course.exceeded("while it waited for its reply") from None
        return answered.value, answered.source

    async def _ask(self, course: Course) -> Reply:
        if self._batcher is None:
            replies = await self._attempts.replies(self._exchange.prepare((course,)))
            return replies[0]
        alone = self._exchange.prepare((course,)).request
        if course.deadline_s - self._clock.monotonic_s() <= OVER_S:
            raise course.exceeded("before it was sent")
        try:
            return await self._batcher.submit(
                course, tokens=alone.tokens, size_bytes=len(alone.body), deadline_s=course.deadline_s
            )
        except DeadlineExceeded:
            raise course.exceeded("while it waited for the reply to its batch") from None

    async def _send_all(self, courses: list[Course]) -> Sequence[Reply]:
        """Send the calls of one batch in one request."""
        return await self._attempts.replies(self._exchange.prepare(tuple(courses)))

    def _outcome(
        self, course: Course, began_s: float, reply: Reply | None, error: CallError | None, source: Source
    ) -> Outcome:
        return Outcome(
            course.call.id,
            reply,
            error.kind if error else None,
            self._exchange.without_secret(str(error))[:_LONGEST_MESSAGE] if error else None,
            course.attempts,
            course.model_ms,
            (self._clock.monotonic_s() - began_s) * 1000.0,
            course.endpoint,
            self.settings.role,
            source,
        )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


def _content(question: object) -> object:
    """What of a question its key depends on, besides the params, which hold the question's own."""
    if isinstance(question, Chat):
        return (question.messages, question.schema)
    return question
