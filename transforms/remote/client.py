"""The client: one call in, exactly one outcome out.

Here is the only retry loop of the project, and the only place that counts attempts. For each attempt a call takes a
permit (`limiter`), waits while every endpoint has asked to be left alone (`gate`), sends (`transport`), reads
(`openai_chat`), and where that failed for a passing reason gives the permit back and waits (`retry`). The event's
deadline covers all of it.

A permit is kept while all gates are closed: nothing could be sent then anyway, and the order of asking is kept. It
is given back before a back-off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import quote

import msgspec

from transforms.errors import CallError, DeadlineExceeded, Refused, Transient
from transforms.remote.clock import Clock, SystemClock
from transforms.remote.gate import EndpointGate
from transforms.remote.limiter import InFlightLimit
from transforms.remote.openai_chat import PATH, Message, Reply, parse_reply, request_body
from transforms.remote.retry import error_of, full_jitter
from transforms.remote.settings import ModelSettings
from transforms.remote.transport import AiohttpTransport, NotConnected, Transport

__all__ = ["Call", "Client", "Message", "Outcome", "Reply"]

_VISIBLE = re.compile(r"[!-$&-~]+", re.ASCII)
_OVER_S = 0.001
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
        self._gates = tuple(EndpointGate(endpoint.url) for endpoint in settings.endpoints)
        self._urls = {endpoint.url: endpoint.to(PATH) for endpoint in settings.endpoints}
        self._turn = 0
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
        course = _Course(call, began_s + (call.deadline_ms - self._clock.now_ms()) / 1000.0, self._turn)
        self._turn += 1
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
            gate = await self._open_gate(course)
            return await self._exchange(course, request, gate)
        finally:
            self._limit.release()

    async def _open_gate(self, course: _Course) -> EndpointGate:
        """The endpoint whose turn it is among those that may be sent to; waits while there is none."""
        count = len(self._gates)
        while True:
            now_s = self._clock.monotonic_s()
            shortest_s = float("inf")
            for step in range(count):
                gate = self._gates[(course.turn + step) % count]
                wait_s = gate.wait_s(now_s)
                if wait_s <= 0.0:
                    course.turn += step + 1
                    return gate
                shortest_s = min(shortest_s, wait_s)
            rest_s = self._rest_s(course, "while the server asked to be left alone")
            await self._clock.sleep(min(shortest_s, rest_s))

    async def _exchange(self, course: _Course, request: _Request, gate: EndpointGate) -> Reply:
        """Send the request and read the answer."""
        timeout_s = min(self.settings.timeout_s, self._rest_s(course, "before it was sent"))
        course.endpoint = gate.url
        course.attempts += 1
        began_s = self._clock.monotonic_s()
        status, headers, body = await self._transport.post(
            self._urls[gate.url], request.body, request.headers, timeout_s
        )
        if 200 <= status < 300:
            reply = parse_reply(body)
            course.model_ms = (self._clock.monotonic_s() - began_s) * 1000.0
            return reply
        raise self._refusal(gate, status, headers, body)

    def _refusal(self, gate: EndpointGate, status: int, headers: Mapping[str, str], body: bytes) -> CallError:
        """The error of an answer that is not of the 2xx kind. Closes the endpoint's gate where the server asks so."""
        text = self._without_secret(body.decode("utf-8", "replace")).strip()[:_EXCERPT]
        sentence = f"{gate.url} answered {status}" + (f": {text}" if text else "") + "."
        error = error_of(status, headers, sentence, self._clock.now_ms())
        if isinstance(error, Transient) and error.retry_after_s:
            gate.close_until(self._clock.monotonic_s() + error.retry_after_s)
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

    __slots__ = ("attempts", "call", "counted", "deadline_s", "endpoint", "failures", "last_error", "model_ms", "turn")

    def __init__(self, call: Call, deadline_s: float, turn: int) -> None:
        self.call = call
        self.deadline_s = deadline_s
        self.turn = turn
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


def _visible(text: str) -> str:
    """`text` as the value of a header: as it is where it is plain visible ASCII, else percent-encoded (RFC 3986).

    No two texts give the same value: one that holds a per cent sign is encoded too.
    """
    return text if _VISIBLE.fullmatch(text) else quote(text, safe="", errors="surrogatepass")
