"""The client: one call in, exactly one outcome out.

A call goes through these, each of which may be left out by the settings: the cache and single flight (`cache`), the batcher
(`batcher`), the retry loop with hedging (`attempts`), the door (`admission`), and the request itself (`exchange`). The event's
deadline covers all of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NoReturn

import msgspec

from transforms.errors import CallError, DeadlineExceeded
from transforms.remote import loop, names
from transforms.remote.admission import Admission
from transforms.remote.attempts import Attempts
from transforms.remote.batcher import CLOSED_BY, Batcher
from transforms.remote.cache import CachedCalls, cacheable, content_key, open_cache
from transforms.remote.client_metrics import ClientMetrics
from transforms.remote.clock import Clock, SystemClock
from transforms.remote.concurrency import make_limit
from transforms.remote.course import OVER_S, Call, Course
from transforms.remote.exchange import Exchange
from transforms.remote.hedge import HedgePolicy
from transforms.remote.pool import Pool
from transforms.remote.probing import Probing
from transforms.remote.protocols import operation_of
from transforms.remote.questions import Chat, Message, Reply
from transforms.remote.quota import Quota
from transforms.remote.settings import ModelSettings
from transforms.remote.shared_quotas import SharedQuotas
from transforms.remote.telemetry import Telemetry, observe_pool
from transforms.remote.transport import Transport
from transforms.remote.transports import OpenTransport

__all__ = ["Call", "Chat", "Client", "Message", "Outcome", "Reply", "Source"]

_LONGEST_MESSAGE = 1000

Source = Literal["call", "cache", "shared", "fixed", "none"]
"""Where a reply came from: a request of its own, the cache, the request of an equal call under way, the settings, or nowhere,
where nothing was asked."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of a call: either `reply`, or `error_type` (the error's `kind`) and `error_message` (a sentence).

    `attempts` are all that were made, those of `Call.attempts` included; one that found no server is not among them
    where `RetryPolicy.wait_for_server` says so (one cut off while it was connecting is). `model_ms` is how long the
    successful attempt took (0 without one), `total_ms` how long `Client.call` took. `endpoint` is the base URL of the
    last attempt, None where none was made. `role` is that of the model which answered, or was asked last, and `model` its name;
    `reason` says why each before it in a chain of fallbacks did not answer, None where it was the first.
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
    model: str = ""


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
        self.pool = Pool(settings.endpoints, settings.endpoint_pool)
        own_loop = isinstance(self._clock, SystemClock)
        self.telemetry = Telemetry(
            settings.role,
            operation=operation_of(settings.protocol),
            model=settings.model,
            provider=names.provider_of(settings.protocol),
            soon=loop.soon if own_loop else None,
        )
        self._metrics = ClientMetrics(self.telemetry)
        self._limits = {url: make_limit(settings.endpoint_concurrency) for url in settings.urls}
        self._quotas = {url: Quota(settings.quota) for url in settings.urls}
        self._leases = SharedQuotas(settings.shared_quota, self._quotas, self._clock)
        self._admission = Admission(
            self._clock,
            self.pool,
            settings.max_in_flight,
            self._limits,
            self._quotas,
            self._metrics,
            settings.timeout_s,
        )
        self._exchange = Exchange(settings, self._clock, self._open.transport, self._admission, self._metrics)
        self._protocol = self._exchange.protocol
        self._hedge = HedgePolicy(settings.hedge) if settings.hedge is not None else None
        self._attempts = Attempts(
            settings.retry, self._clock, self._admission, self._exchange, self._metrics, self._hedge
        )
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
                self._metrics.on_probe,
            )
        self._show_policies()

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
        deadline_s = began_s + (call.deadline_ms - self._clock.now_ms()) / 1000.0
        course = Course(call, deadline_s, next(self._turns), began_s)
        source: Source = "call"
        reply, failure = None, None
        self._leases.start()
        self._metrics.on_call()
        try:
            if self._cached is None:
                reply = await self._ask(course)
            else:
                reply, source = await self._ask_or_find(course, self._cached)
        except CallError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a defect must not cost an event its outcome
            failure = CallError(f"The client failed on this call: {type(error).__name__}: {error}.")
        except BaseException:
            self._metrics.on_cancelled()
            raise
        self._metrics.on_outcome(failure.kind if failure else None, self._clock.monotonic_s() - began_s)
        return self._outcome(course, began_s, reply, failure, source)

    async def close(self) -> None:
        """Close the connections, unless the transport was handed in."""
        await self._leases.close()
        if self._probing is not None:
            await self._probing.close()
        if self._batcher is not None:
            await self._batcher.close()
        if self._cached is not None:
            await self._cached.close()
        await self._open.close()
        self.telemetry.close()

    def _make_batcher(self) -> Batcher[Course, Reply] | None:
        settings = self.settings.batch
        if settings is None:
            return None
        most = self._protocol.most_items
        if most is not None and most < settings.max_items:
            settings = msgspec.structs.replace(settings, max_items=most)
        most_requests = min(settings.max_in_flight, self.settings.max_in_flight)
        return Batcher(
            settings, self._send_all, self._clock, estimate=self._admission.estimate, limit=lambda: most_requests
        )

    def _show_policies(self) -> None:
        """Show what the policies know of themselves, whenever somebody looks."""
        show = self._metrics.show
        observe_pool(self.telemetry, self.pool, self._clock.monotonic_s)
        show(names.CALLS_WAITING, lambda: self._admission.waiting)
        show(names.LOOP_LAG, lambda: self._admission.lag.lag_s)
        show(names.RETRY_BUDGET, lambda: self._attempts.budget.available(self._clock.monotonic_s()))
        for url, limit in self._limits.items():
            show(names.CONCURRENCY_LIMIT, partial(getattr, limit, "limit"), endpoint=url)
        self._show_quotas()
        if self._hedge is not None:
            hedge = self._hedge
            show(names.HEDGE_BUDGET, lambda: hedge.budget.available(self._clock.monotonic_s()))
            show(names.HEDGE_DELAY, lambda: hedge.delay_s(self._clock.monotonic_s()) or 0.0)
        if self._batcher is not None:
            self._show_batches(self._batcher)
        if self._cache is not None:
            self._metrics.show_cache(self._cache)

    def _show_quotas(self) -> None:
        for url, quota in self._quotas.items():
            self.telemetry.observed(names.QUOTA_REFUSALS, partial(_throttled, quota), endpoint=url)
        for url, lease in zip(self._quotas, self._leases.shared, strict=False):
            self._metrics.observe(names.QUOTA_LEASES_LOST, partial(getattr, lease, "lost"), endpoint=url)
        for of in ("requests", "tokens"):
            per_min = getattr(self.settings.quota, f"{of}_per_min")
            if per_min is not None:
                self._metrics.show(names.QUOTA_RATE, partial(_allowed_per_min, self._quotas, per_min), of=of)

    def _show_batches(self, batcher: Batcher[Course, Reply]) -> None:
        self._metrics.show(names.BATCH_FILL, partial(_fill, batcher))
        for reason in CLOSED_BY:
            self.telemetry.observed(names.BATCHES, partial(batcher.sent.__getitem__, reason), reason=reason)

    async def _ask_or_find(self, course: Course, cached: CachedCalls[Reply]) -> tuple[Reply, Source]:
        question = course.call.question
        params = self._protocol.params(question)
        always = self.settings.cache is not None and self.settings.cache.always
        if not cacheable(params, samples=self._protocol.samples, always=always):
            return await self._ask(course), "call"
        model = self.settings
        try:
            key = content_key(model.protocol, model.model, _content(question), params, model.options)
        except (TypeError, ValueError, OverflowError):
            # What has no key, such as a number of more than 64 bits, is asked each time.
            return await self._ask(course), "call"
        is_worn = course.call.attempts > 0
        try:
            answered = await cached.run(key, lambda: self._ask(course), course.deadline_s, is_worn=is_worn)
        except DeadlineExceeded:
            raise course.exceeded("while it waited for its reply") from None
        self._metrics.on_cache(answered.source)
        if answered.source == "call" or answered.value.first_token_ms is None:
            return answered.value, answered.source
        return msgspec.structs.replace(answered.value, first_token_ms=None), answered.source

    async def _ask(self, course: Course) -> Reply:
        if self._batcher is None:
            replies = await self._attempts.replies(self._exchange.prepare((course,)))
            return replies[0]
        # As it is before compression, of which a server's bound knows nothing.
        alone = self._protocol.request([course.call.question])
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
        self._metrics.on_batch(len(courses))
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
            model=(reply.model if reply else None) or self.settings.model,
        )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


def _content(question: object) -> object:
    """What of a question its key depends on, besides the params, which hold the question's own."""
    if isinstance(question, Chat):
        return (question.messages, question.schema)
    return question


def _throttled(quota: Quota) -> float:
    return quota.counts.throttled


def _allowed_per_min(quotas: Mapping[str, Quota], per_min: float) -> float:
    """What this process may spend a minute, over all endpoints."""
    return sum(quota.share * per_min for quota in quotas.values())


def _fill(batcher: Batcher[Course, Reply]) -> float:
    """Items of the batches sent so far, as a share of the most that fit."""
    batches = batcher.sent.total()
    return batcher.items_sent / (batches * batcher.settings.max_items) if batches else 0.0
