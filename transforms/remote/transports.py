"""Which transport the settings of a model ask for."""

from __future__ import annotations

from transforms.remote.authorized import AuthorizedTransport, TokenAuthorizer
from transforms.remote.clock import Clock
from transforms.remote.google_tokens import GoogleTokens
from transforms.remote.grpc_transport import GrpcTransport
from transforms.remote.http1_transport import Http1Transport
from transforms.remote.settings import ModelSettings
from transforms.remote.transport import AiohttpTransport, Transport


class OpenTransport:
    """A transport with what has to be closed behind it. One that was handed in stays its owner's to close.

    Making it reads the files and secrets that the settings name.

    Raises:
        SettingsError: one cannot be read, or is not what it should be.
    """

    def __init__(self, settings: ModelSettings, clock: Clock, given: Transport | None = None) -> None:
        self._own: AiohttpTransport | GrpcTransport | Http1Transport | None = None
        if given is None:
            given = self._own = _direct(settings)
        self.transport: Transport = given
        self._tokens: GoogleTokens | None = None
        google = settings.auth.google_auth if settings.auth is not None else None
        if google is not None:
            self._tokens = GoogleTokens(google)
            self._authorizer = TokenAuthorizer(self._tokens.fetch, clock)
            self.transport = AuthorizedTransport(self.transport, self._authorizer, clock)

    async def close(self) -> None:
        """Close the connections."""
        if self._tokens is not None:
            await self._authorizer.close()
            self._tokens.close()
        if self._own is not None:
            await self._own.close()


def _direct(settings: ModelSettings) -> AiohttpTransport | GrpcTransport | Http1Transport:
    if "grpc" in settings.make_protocol().schemes:
        return GrpcTransport(tls=settings.tls, proxy=settings.proxy, compress=settings.compress)
    if settings.proxy is not None:
        return AiohttpTransport(tls=settings.tls, proxy=settings.proxy, compress=settings.compress)
    return Http1Transport(tls=settings.tls, compress=settings.compress)
