"""The client: one call in, exactly one outcome out.

Here is the only retry loop of the project, and the only place that counts attempts. For each attempt a call takes a
permit (`limiter`), takes an endpoint, waiting while none may be sent to (`pool`), sends (`transport`), reads
(`openai_chat`), and where that failed for a passing reason gives the permit back and waits (`retry`). The event's
deadline covers all of it. A repeat goes to another endpoint than the attempt before where there is one.

A permit is kept while no endpoint may be sent to: nothing could be sent then anyway, and the order of asking is kept.
It is given back before a back-off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import quote

import msgspec

from transforms.errors import CallError, DeadlineExceeded, Refused, TimedOut, Transient
from transforms.remote.clock import Clock, SystemClock
from transforms.remote.limiter import InFlightLimit
from transforms.remote.openai_chat import PATH, Message, Reply, parse_reply, request_body
from transforms.remote.outliers import Kind
from transforms.remote.pool import EndpointState, Pool
from transforms.remote.retry import error_of, full_jitter
from transforms.remote.settings import ModelSettings
from transforms.remote.transport import AiohttpTransport, NotConnected, Transport

__all__ = ["Call", "Client", "Message", "Outcome", "Reply"]

_VISIBLE = re.compile(r"[!-$&-~]+", re.ASCII)
_OVER_S = 0.001
_LEAST_WAIT_S = 0.001
_OK: Kind = "ok"
_CANCELLED: Kind = "cancelled"
_EXCERPT = 200
_LONGEST_MESSAGE = 1000


class Call(msgspec.Struct, frozen=True):
    """A question to a model.

    `id` is the event's; it is sent as ``Idempotency-Key`` with every attempt. `deadline_ms` is in Unix milliseconds of
    the wall clock. `attempts` were made before, by a process that did not live to tell. `params` override those of the
    settings.
    """

    id: str
    messages: tuple[Message, ...]
    deadline_ms: int
    attempts: int = 0
    traceparent: str | None = None
    params: Mapping[str, Any] = {}


class Outcome(msgspec.Struct, frozen=True):
    """What became of a call: either `reply`, or `error_type` (the error's `kind`) and `error_message` (a sentence).

    `attempts` are all that were made, those of `Call.attempts` included; one that found no server is not among them
    where `RetryPolicy.wait_for_server` says so (one cut off while it was connecting is). `model_ms` is how long the
    successful attempt took (0 without one), `total_ms` how long `Client.call` took. `endpoint` is the base URL of the
    last attempt, None where none was made.
    """

    id: str
    reply: Reply | None
    error_type: str | None
    error_message: str | None
    attempts: int
    model_ms: float
    total_ms: float
    endpoint: str | None


class Client:
    """Calls the model of one role. Make one per worker process, in `setup`; use it on one event loop.

    Making it reads the secret. It cannot be pickled. A `transport` that is handed in stays the caller's to close.

    Raises:
        SettingsError: the secret cannot be read.
    """

    def __init__(self, settings: ModelSettings, clock: Clock | None = None, transport: Transport | None = None) -> None:
        self.settings = settings
        self._clock: Clock = clock or SystemClock()
        self._own: AiohttpTransport | None = None
        if transport is None:
            transport = self._own = AiohttpTransport()
        self._transport = transport
        self._limit = InFlightLimit(settings.max_in_flight)
        self._pool = Pool(settings.endpoints, settings.pool)
        self._urls = {endpoint.url: endpoint.to(PATH) for endpoint in settings.endpoints}
        self._secret = settings.auth.read_secret() if settings.auth else None
        self._headers = {"Content-Type": "application/json"}
        if settings.auth and self._secret:
            self._headers[settings.auth.header] = settings.auth.header_value(self._secret)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a client holds a secret and connections."""
        raise TypeError("A Client cannot be pickled; pickle its settings and make one on the worker.")

    @property
    def in_flight(self) -> int:
        """The calls that hold a permit; readable from any thread."""
        return self._limit.in_flight

    @property
    def waiting(self) -> int:
        """The calls that wait for a permit; readable from any thread."""
        return self._limit.waiting

    async def call(self, call: Call) -> Outcome:
        """Return what became of `call`, at most 100 ms after its deadline. Raises nothing but CancelledError.

        A call whose attempts are used up already still gets one, if its deadline allows: the answers to the earlier
        ones are lost, and a dead letter is no substitute for an answer that is possible.
        """
        began_s = self._clock.monotonic_s()
        course = _Course(call, began_s + (call.deadline_ms - self._clock.now_ms()) / 1000.0)
        try:
            reply = await self._until_reply(course)
        except CallError as error:
            return self._outcome(course, began_s, None, error)
        except Exception as error:  # noqa: BLE001 - a defect must not cost an event its outcome
            defect = CallError(f"The client failed on this call: {type(error).__name__}: {error}.")
            return self._outcome(course, began_s, None, defect)
        return self._outcome(course, began_s, reply, None)

    async def close(self) -> None:
        """Close the connections, unless the transport was handed in."""
        if self._own is not None:
            await self._own.close()

    async def _until_reply(self, course: _Course) -> Reply:
        """The retry loop."""
        request = self._request(course.call)
        while True:
            try:
                return await self._attempt(course, request)
            except Transient as error:
                course.failed(error, self._counts(error))
                if course.rest_s(self._clock) > _OVER_S and self._used_up(course):
                    raise
            await self._back_off(course)

    async def _attempt(self, course: _Course, request: _Request) -> Reply:
        """One attempt: a permit, an open gate, one POST, one reply."""
        try:
            await self._limit.acquire(self._rest_s(course, "before it was sent"))
        except TimeoutError:
            raise course.exceeded(f"while all {self._limit.most} permits for calls in flight were taken") from None
        try:
            endpoint = await self._endpoint(course)
            return await self._exchange(course, request, endpoint)
        finally:
            self._limit.release()

    async def _endpoint(self, course: _Course) -> EndpointState:
        """An endpoint that may be sent to, another than the last where there is one; waits while there is none."""
        while True:
            now_s = self._clock.monotonic_s()
            endpoint = self._choose(now_s, course.endpoint)
            if endpoint is not None:
                return endpoint
            rest_s = self._rest_s(course, "while no endpoint could be sent to")
            await self._clock.sleep(min(max(self._pool.wait_s(now_s), _LEAST_WAIT_S), rest_s))

    def _choose(self, now_s: float, last: str | None) -> EndpointState | None:
        chances = self._clock.random(), self._clock.random()
        if last is not None and len(self._pool.endpoints) > 1:
            other = self._pool.choose(now_s, *chances, exclude={last})
            if other is not None:
                return other
        return self._pool.choose(now_s, *chances)

    async def _exchange(self, course: _Course, request: _Request, endpoint: EndpointState) -> Reply:
        """Send the request and read the answer. Tells the endpoint what became of it, whatever that is."""
        rest_s = self._rest_s(course, "before it was sent")
        course.endpoint = endpoint.url
        course.attempts += 1
        began_s = self._clock.monotonic_s()
        ticket, kind = endpoint.on_start(began_s), _CANCELLED
        try:
            reply = await self._post(course, request, endpoint, min(self.settings.timeout_s, rest_s))
        except CallError as error:
            # A time-out that the event's deadline cut short says nothing of the endpoint.
            kind = _CANCELLED if isinstance(error, TimedOut) and rest_s < self.settings.timeout_s else _kind(error)
            raise
        else:
            kind = _OK
            return reply
        finally:
            now_s = self._clock.monotonic_s()
            endpoint.on_end(now_s, kind, now_s - began_s, ticket)

    async def _post(self, course: _Course, request: _Request, endpoint: EndpointState, timeout_s: float) -> Reply:
        began_s = self._clock.monotonic_s()
        status, headers, body = await self._transport.post(
            self._urls[endpoint.url], request.body, request.headers, timeout_s
        )
        if 200 <= status < 300:
            reply = parse_reply(body)
            course.model_ms = (self._clock.monotonic_s() - began_s) * 1000.0
            return reply
        raise self._refusal(endpoint, status, headers, body)

    def _refusal(self, endpoint: EndpointState, status: int, headers: Mapping[str, str], body: bytes) -> CallError:
        """The error of an answer that is not of the 2xx kind. Leaves the endpoint alone where the server asks so."""
        text = self._without_secret(body.decode("utf-8", "replace")).strip()[:_EXCERPT]
        sentence = f"{endpoint.url} answered {status}" + (f": {text}" if text else "") + "."
        error = error_of(status, headers, sentence, self._clock.now_ms())
        if isinstance(error, Transient) and error.retry_after_s:
            endpoint.close_until(self._clock.monotonic_s() + error.retry_after_s)
        return error or CallError(sentence)

    async def _back_off(self, course: _Course) -> None:
        """Wait before the next attempt, but no longer than the deadline, which then has passed."""
        rest_s = self._rest_s(course, "")
        policy = self.settings.retry
        pause_s = full_jitter(course.failures - 1, policy.base_s, policy.cap_s, self._clock.random())
        await self._clock.sleep(min(pause_s, rest_s))
        if pause_s >= rest_s:
            raise course.exceeded("during a back-off")

    def _counts(self, error: Transient) -> bool:
        return not (self.settings.retry.wait_for_server and isinstance(error, NotConnected))

    def _used_up(self, course: _Course) -> bool:
        return course.counted and course.attempts >= self.settings.retry.max_attempts

    def _rest_s(self, course: _Course, phase: str) -> float:
        """The seconds left until the deadline. Raises DeadlineExceeded when there are none."""
        rest_s = course.rest_s(self._clock)
        if rest_s <= _OVER_S:
            raise course.exceeded(phase)
        return rest_s

    def _request(self, call: Call) -> _Request:
        params = {**self.settings.params, **call.params} if call.params else self.settings.params
        try:
            body = request_body(self.settings.model, call.messages, params)
        except (TypeError, ValueError) as error:
            raise Refused(f"The request has no JSON form: {error}.", 0) from None
        headers = {**self._headers, "Idempotency-Key": _visible(call.id)}
        if call.traceparent and _VISIBLE.fullmatch(call.traceparent):
            headers["traceparent"] = call.traceparent
        return _Request(body, headers)

    def _outcome(self, course: _Course, began_s: float, reply: Reply | None, error: CallError | None) -> Outcome:
        return Outcome(
            course.call.id,
            reply,
            error.kind if error else None,
            self._without_secret(str(error))[:_LONGEST_MESSAGE] if error else None,
            course.attempts,
            course.model_ms,
            (self._clock.monotonic_s() - began_s) * 1000.0,
            course.endpoint,
        )

    def _without_secret(self, text: str) -> str:
        """Blank the secret out. To be done before a text is cut, so that no half of one stays."""
        return text.replace(self._secret, "***") if self._secret else text


class _Request:
    """What every attempt of a call sends."""

    __slots__ = ("body", "headers")

    def __init__(self, body: bytes, headers: Mapping[str, str]) -> None:
        self.body = body
        self.headers = headers


class _Course:
    """How far a call has come.

    `deadline_s` is in seconds of the monotonic clock, so that a jump of the wall clock neither stretches nor cuts it.
    """

    __slots__ = ("attempts", "call", "counted", "deadline_s", "endpoint", "failures", "last_error", "model_ms")

    def __init__(self, call: Call, deadline_s: float) -> None:
        self.call = call
        self.deadline_s = deadline_s
        self.attempts = call.attempts
        self.failures = 0
        self.counted = False
        self.model_ms = 0.0
        self.endpoint: str | None = None
        self.last_error: CallError | None = None

    def rest_s(self, clock: Clock) -> float:
        return self.deadline_s - clock.monotonic_s()

    def failed(self, error: Transient, counts: bool) -> None:
        """Note a failed attempt; one that does not count is taken off the attempts again."""
        self.last_error = error
        self.failures += 1
        self.counted = counts
        if not counts:
            self.attempts -= 1

    def exceeded(self, phase: str) -> DeadlineExceeded:
        sentence = " ".join(part for part in ("The deadline of the event passed", phase) if part)
        number = f"{self.attempts} attempt" + ("" if self.attempts == 1 else "s")
        last = self.last_error
        cause = f"the last error was {last.kind}: {last}" if last else "no attempt failed before."
        return DeadlineExceeded(f"{sentence}, after {number}; {cause}")


def _kind(error: CallError) -> Kind:
    """What an endpoint is told about a failed attempt. A connection of a call that is refused is as healthy as any."""
    known: tuple[Kind, ...] = ("throttled", "server-error", "timeout", "unreachable", "broken-reply", "refused")
    return next((kind for kind in known if kind == error.kind), _CANCELLED)


def _visible(text: str) -> str:
    """`text` as the value of a header: as it is where it is plain visible ASCII, else percent-encoded (RFC 3986).

    No two texts give the same value: one that holds a per cent sign is encoded too.
    """
    return text if _VISIBLE.fullmatch(text) else quote(text, safe="", errors="surrogatepass")
