"""The wire for gRPC: one unary call, and what can go wrong with it in this project's terms.

A POST to ``grpc://host:port/package.Service/Method`` is a unary call of that method: the body is the request's message, serialized,
the headers are its metadata, the answer's body is the response's message. A status of gRPC is given as that of HTTP which means the
same to a client (`HTTP_STATUS`, after the mapping in google/rpc/code.proto), so that repeats, breakers and quotas work as they do for
HTTP. The deadline and a cancel are passed on to the server.

grpcio's own retries are off: there is one retry loop in this project. Its back-off between connections is short (0.1 to 1 s, where it
would grow to 2 minutes): how often a server is tried is the circuit breaker's to say.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import grpc
import grpc.aio

from transforms.errors import Refused, Unreachable
from transforms.remote.connection import Compression, ProxySettings, TlsSettings
from transforms.remote.transport import (
    LARGEST_REPLY_BYTES,
    Answer,
    NotConnected,
    Opened,
    broke_off,
    timed_out,
    too_large,
)

HTTP_STATUS: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 400,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 404,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
"""HTTP statuses of gRPC's. Two differ from code.proto: a method that is not there (501), and a thing that is (409), stay as they are
however often they are asked for, and are refusals. CANCELLED and DEADLINE_EXCEEDED are errors of their own."""

PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata with which a server asks for time (gRPC A6, client retries)."""

_RESERVED = frozenset({"content-type", "te", "user-agent"})
_TOO_LARGE = "larger than max"
_EXCERPT = 300


class GrpcTransport:
    """Calls over one HTTP/2 connection for each server, made at the first call; see `Transport`. Use it on one event loop.

    An answer may have `largest_reply_bytes`. Making it reads the files that `tls` names; `proxy` is that of the environment or none.

    Raises:
        SettingsError: a file cannot be read.
    """

    def __init__(
        self,
        largest_reply_bytes: int = LARGEST_REPLY_BYTES,
        tls: TlsSettings | None = None,
        proxy: ProxySettings | None = None,
        compress: Compression | None = None,
    ) -> None:
        self._largest = largest_reply_bytes
        self._compression = None if compress is None else grpc.Compression.Gzip
        self._options = (
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", int(proxy is not None)),
            ("grpc.max_receive_message_length", largest_reply_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.use_local_subchannel_pool", 1),
        )
        self._credentials = _credentials(tls)
        self._channels: dict[str, Any] = {}

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Make one unary call; see `Transport.post`."""
        parts = urlsplit(url)
        base = f"{parts.scheme}://{parts.netloc}"
        channel = self._channels.get(base) or self._open(base)
        try:
            async with asyncio.timeout(timeout_s):
                await _connected(channel, base)
                call = channel.unary_unary(parts.path)(
                    body, timeout=timeout_s, metadata=_metadata(headers), compression=self._compression
                )
                answer: bytes = await call
                return 200, _headers(await call.trailing_metadata()), answer
        except TimeoutError:
            raise timed_out(base, timeout_s) from None
        except grpc.aio.AioRpcError as error:
            return _answer(error, channel, base, timeout_s, self._largest)
        except grpc.aio.UsageError:
            raise Unreachable(f"The connection to {base} was closed.") from None

    async def get(self, url: str, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Make one unary call for a health probe, whose message stands behind ``?`` in base64 (RFC 4648, section 5; none: empty).

        Such methods answer with one bool, which is not on the wire where it is false: an empty answer is a 503.
        """
        path, _, message = url.partition("?")
        status, trailing, body = await self.post(path, base64.urlsafe_b64decode(message), headers, timeout_s)
        return (status if status != 200 or body else 503), trailing, body

    @contextlib.asynccontextmanager
    async def stream(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncIterator[Opened]:
        """Refuse: no protocol over gRPC here has streams."""
        raise Refused(f"{url} is not read as a stream.", 0)
        yield  # makes it a context

    async def close(self) -> None:
        """Close the connections."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    def _open(self, base: str) -> Any:
        parts = urlsplit(base)
        target = parts.netloc if parts.port else f"{parts.netloc}:{443 if parts.scheme == 'grpcs' else 80}"
        if parts.scheme == "grpcs":
            channel = grpc.aio.secure_channel(target, self._credentials, options=self._options)
        else:
            channel = grpc.aio.insecure_channel(target, options=self._options)
        self._channels[base] = channel
        return channel


def _credentials(tls: TlsSettings | None) -> Any:
    if tls is None:
        return grpc.ssl_channel_credentials()
    if tls.ca_file is not None or tls.cert_file is not None:
        tls.context()  # says what is wrong with the files; grpcio would only find no connection
    key, cert = tls.key_pair() or (None, None)
    return grpc.ssl_channel_credentials(tls.trusted(), key, cert)


async def _connected(channel: Any, base: str) -> None:
    """Return once there is a connection; until then nothing is sent."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            raise NotConnected(f"No connection to {base} could be made; is the server up?")
        if state is grpc.ChannelConnectivity.SHUTDOWN:
            raise Unreachable(f"The connection to {base} was closed.")
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


def _answer(error: Any, channel: Any, base: str, timeout_s: float, largest_bytes: int) -> Answer:
    """What a call that failed is in terms of HTTP."""
    code, details = error.code(), (error.details() or "")[:_EXCERPT]
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        raise timed_out(base, timeout_s)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details:
        if details.startswith("SERVER"):
            return 413, {}, details.encode()
        raise too_large(base, largest_bytes)
    gone = channel.get_state() is not grpc.ChannelConnectivity.READY
    if code is grpc.StatusCode.CANCELLED or (code is grpc.StatusCode.UNAVAILABLE and gone):
        raise broke_off(base, details)
    return HTTP_STATUS.get(code, 500), _headers(error.trailing_metadata()), details.encode()


def _metadata(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    lower = ((name.lower(), value) for name, value in headers.items())
    return [(name, value) for name, value in lower if name not in _RESERVED]


def _headers(metadata: Any) -> dict[str, str]:
    """The metadata that is text; a push-back under the name that asks for time in HTTP."""
    found = {name: value for name, value in metadata or () if isinstance(value, str)}
    if PUSHBACK in found:
        found["retry-after-ms"] = found[PUSHBACK]
    return found
