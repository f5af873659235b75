"""One request to one endpoint: what is sent, what comes back, and what the endpoint is told of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from urllib.parse import quote

import msgspec

from transforms.errors import CallError, TimedOut, Transient
from transforms.remote.admission import Admission, Permit
from transforms.remote.client_metrics import ClientMetrics
from transforms.remote.clock import Clock
from transforms.remote.connection import packed
from transforms.remote.course import OVER_S, Course, Sending
from transforms.remote.outliers import Kind
from transforms.remote.pool import EndpointState
from transforms.remote.protocols import StreamReader
from transforms.remote.questions import Reply
from transforms.remote.retry import error_of
from transforms.remote.settings import ModelSettings
from transforms.remote.streams import ChunkReader, read_stream
from transforms.remote.transport import NotConnected, Transport

_VISIBLE = re.compile(r"[!-$&-~]+", re.ASCII)
_EXCERPT = 200
_OK: Kind = "ok"
_CANCELLED: Kind = "cancelled"
_FAILURES: tuple[Kind, ...] = ("throttled", "server-error", "timeout", "unreachable", "broken-reply", "refused")


class Exchange:
    """Sends requests to the endpoints of one model and reads their answers. Use it on one event loop.

    Making it reads the secret.

    Raises:
        SettingsError: the secret cannot be read.
    """

    def __init__(
        self,
        settings: ModelSettings,
        clock: Clock,
        transport: Transport,
        admission: Admission,
        metrics: ClientMetrics,
    ) -> None:
        self.protocol = settings.make_protocol()
        self._clock = clock
        self._transport = transport
        self._admission = admission
        self._metrics = metrics
        self._asked = _asked(settings)
        # gRPC compresses below us.
        self._compress = None if "grpc" in self.protocol.schemes else settings.compress
        self._timeout_s = settings.timeout_s
        self._stream = settings.stream
        self._endpoints = {endpoint.url: endpoint for endpoint in settings.endpoints}
        self._secret = settings.auth.read_secret() if settings.auth else None
        self._headers = {"Content-Type": "application/json"}
        if settings.auth and self._secret:
            self._headers[settings.auth.header] = settings.auth.header_value(self._secret)

    def prepare(self, courses: Sequence[Course]) -> Sending:
        """Return the request that asks the questions of these calls, its body as it is sent: compressed here, once for all attempts.

        Raises:
            Refused: they have no form in the protocol. Its status is 0.
        """
        request = self.protocol.request([course.call.question for course in courses])
        headers = {**self._headers, **request.headers, "Idempotency-Key": f"{_key_of(courses)}:{self._asked}"}
        traces = {course.call.traceparent for course in courses}
        trace = next(iter(traces)) if len(traces) == 1 else None
        if trace and _VISIBLE.fullmatch(trace):
            headers["traceparent"] = trace
        if self._compress is None:
            return Sending(courses, request, headers)
        body, sent = packed(self._compress, request.body, headers)
        return Sending(courses, msgspec.structs.replace(request, body=body), sent)

    async def send(self, sending: Sending, permit: Permit) -> Sequence[Reply]:
        """Send a request and return the replies, one to each of its questions. Gives the permit back, whatever happens.

        Raises:
            CallError: what went wrong.
        """
        kind, sent = _CANCELLED, True
        tokens, retry_after_s = None, None
        try:
            rest_s = sending.rest_s(self._clock, "before it was sent")
        except CallError:
            self._admission.give_back(permit)
            raise
        try:
            sending.on_attempt(permit.endpoint.url, permit.began_s)
            replies = await self._replies(sending, permit, min(self._timeout_s, rest_s))
            tokens = _tokens(replies)
        except CallError as error:
            # What a time-out says of the endpoint, where the event's deadline cut it short, depends on how long it had.
            is_cut = isinstance(error, TimedOut) and sending.deadline_s - self._clock.monotonic_s() <= OVER_S
            kind = self._admission.cut(permit) if is_cut else _kind(error)
            sent = not isinstance(error, NotConnected)
            retry_after_s = error.retry_after_s if isinstance(error, Transient) else None
            raise
        else:
            kind = _OK
            return replies
        finally:
            self._admission.end(permit, kind, tokens=tokens, retry_after_s=retry_after_s, sent=sent)

    async def probe(self, url: str, path: str, timeout_s: float) -> bool:
        """Return whether the endpoint of this base URL answers a GET of `path` with 2xx. Heeds a wish to be left alone."""
        headers = {name: value for name, value in self._headers.items() if name != "Content-Type"}
        try:
            status, answered, _ = await self._transport.get(self._endpoints[url].to(path), headers, timeout_s)
        except CallError:
            return False
        error = error_of(status, answered, f"{url} answered {status} to a probe.", self._clock.now_ms())
        if isinstance(error, Transient) and error.retry_after_s:
            self._admission.close_until(url, self._clock.monotonic_s() + error.retry_after_s)
        return error is None

    def without_secret(self, text: str) -> str:
        """Blank the secret out. To be done before a text is cut, so that no half of one stays."""
        return text.replace(self._secret, "***") if self._secret else text

    async def _replies(self, sending: Sending, permit: Permit, timeout_s: float) -> Sequence[Reply]:
        began_s = self._clock.monotonic_s()
        url = self._endpoints[permit.endpoint.url].to(sending.request.path)
        reader = self.protocol.reader()
        if reader is not None:
            replies: Sequence[Reply] = (await self._streamed(sending, permit, url, timeout_s, reader),)
        else:
            status, headers, body = await self._transport.post(url, sending.request.body, sending.headers, timeout_s)
            self._admission.learn(permit, headers)
            self._metrics.on_sizes(len(sending.request.body), len(body))
            if not 200 <= status < 300:
                raise self._refusal(permit.endpoint, status, headers, body)
            replies = self.protocol.replies(sending.questions, headers, body)
            for reply in replies:
                self._metrics.on_reply(reply)
        sending.on_reply((self._clock.monotonic_s() - began_s) * 1000.0)
        return replies

    async def _streamed(
        self, sending: Sending, permit: Permit, url: str, timeout_s: float, reader: StreamReader
    ) -> Reply:
        began_s = self._clock.monotonic_s()
        stall_s = timeout_s if self._stream is None else min(timeout_s, self._stream.stall_s)
        opening = self._transport.stream(url, sending.request.body, sending.headers, timeout_s)
        async with opening as (status, headers, pieces):
            self._admission.learn(permit, headers)
            if not 200 <= status < 300:
                body = b"".join([piece async for piece in pieces])
                self._metrics.on_sizes(len(sending.request.body), len(body))
                raise self._refusal(permit.endpoint, status, headers, body)
            try:
                reply = await read_stream(pieces, self._clock, stall_s, reader, self._metrics)
            except Transient as error:
                self._heed(permit.endpoint, error)
                raise
        self._metrics.on_reply(reply)
        if isinstance(reader, ChunkReader):
            self._metrics.on_sizes(len(sending.request.body), reader.size)
            if reader.first_chunk_s is not None:
                self._metrics.on_first_chunk(reader.first_chunk_s - began_s)
        if reader.first_token_s is None:
            return reply
        return msgspec.structs.replace(reply, first_token_ms=(reader.first_token_s - began_s) * 1000.0)

    def _refusal(self, endpoint: EndpointState, status: int, headers: Mapping[str, str], body: bytes) -> CallError:
        """The error of an answer that is not of the 2xx kind."""
        text = self.without_secret(body.decode("utf-8", "replace")).strip()[:_EXCERPT]
        sentence = f"{endpoint.url} answered {status}" + (f": {text}" if text else "") + "."
        error = error_of(status, headers, sentence, self._clock.now_ms(), body) or CallError(sentence)
        self._heed(endpoint, error)
        return error

    def _heed(self, endpoint: EndpointState, error: CallError) -> None:
        """Leave the endpoint alone where the server asks so."""
        if isinstance(error, Transient) and error.retry_after_s:
            endpoint.close_until(self._clock.monotonic_s() + error.retry_after_s)


def _tokens(replies: Sequence[Reply]) -> tuple[int, int] | None:
    """The tokens of questions and replies, as the server reports them; None where it does not."""
    if any(reply.prompt_tokens is None for reply in replies):
        return None
    return sum(reply.prompt_tokens or 0 for reply in replies), sum(reply.completion_tokens or 0 for reply in replies)


def _kind(error: CallError) -> Kind:
    """What an endpoint is told about a failed attempt. A connection of a call that is refused is as healthy as any."""
    return next((kind for kind in _FAILURES if kind == error.kind), _CANCELLED)


def _asked(settings: ModelSettings) -> str:
    """The end of an idempotency key: the role, and a digest of what shapes its requests beside the question.

    A server may refuse a key that comes again with another body (IETF, draft-ietf-httpapi-idempotency-key-header, section 2.7), and
    the models of a chain, or of a job before and after its settings changed, are asked differently for the same event. There is no
    colon in it, so that what stands before the last one is the event's.
    """
    shape = (settings.protocol, settings.model, settings.params, settings.options, settings.stream is not None)
    try:
        text = msgspec.json.encode(shape, order="deterministic")
    except (TypeError, ValueError, RecursionError):
        text = b""  # no request of theirs has a JSON form either
    digest = blake2b(text, digest_size=4, person=b"farcall-model")
    return f"{_visible(settings.role).replace(':', '%3A')}-{digest.hexdigest()}"


def _key_of(courses: Sequence[Course]) -> str:
    """The begin of the idempotency key: the event's id; of several events what the same ones in the same order have again."""
    if len(courses) == 1:
        return _visible(courses[0].call.id)
    digest = blake2b(digest_size=16, person=b"farcall-batch")
    for course in courses:
        key = course.call.id.encode("utf-8", "surrogatepass")
        digest.update(len(key).to_bytes(8, "big"))
        digest.update(key)
    return f"batch-{digest.hexdigest()}"


def _visible(text: str) -> str:
    """`text` as the value of a header: as it is where it is plain visible ASCII, else percent-encoded (RFC 3986).

    No two texts give the same value: one that holds a per cent sign is encoded too.
    """
    return text if _VISIBLE.fullmatch(text) else quote(text, safe="", errors="surrogatepass")
