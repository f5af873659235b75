"""Where the secret of a model server is found, and the header that carries it. Never the secret itself.

The tokens of Google Cloud expire; `authorized` and `google_tokens` keep them.

Defaults: ``Authorization: Bearer {secret}``; of Google's tokens the scope of Google Cloud as a whole.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from transforms.errors import SettingsError

_OURS = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "idempotency-key",
        "te",
        "traceparent",
        "transfer-encoding",
    }
)
"""Headers that the client writes itself, in lower case."""

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)


class GoogleAuth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose tokens of Google Cloud are sent: those of the file `credentials_file`, or the application-default credentials.

    `scopes` are those of OAuth 2.0 that the token is for.
    """

    credentials_file: str | None = None
    scopes: tuple[str, ...] = ("https://www.googleapis.com/auth/cloud-platform",)


class Auth(msgspec.Struct, frozen=True):
    """Where the secret of a model server is found, and the header that carries it.

    Exactly one of `env` (the name of an environment variable), `file` (a path, such as of a mounted Kubernetes
    secret) and `google` (true, or a `GoogleAuth`: access tokens of Google Cloud). The header is
    ``{header}: {scheme} {secret}``, or ``{header}: {secret}`` where `scheme` is empty.
    """

    env: str | None = None
    file: str | None = None
    header: str = "Authorization"
    scheme: str = "Bearer"
    google: bool | GoogleAuth | None = None

    def __post_init__(self) -> None:
        """Raise SettingsError unless exactly one source is named, and the header is one and not the client's own."""
        if bool(self.env) + bool(self.file) + bool(self.google) != 1:
            raise SettingsError("auth needs exactly one of env (a variable's name), file (a path) and google.")
        if self.google and (self.header, self.scheme) != ("Authorization", "Bearer"):
            raise SettingsError("google's tokens are sent as Authorization: Bearer; leave header and scheme out.")
        if not _HEADER_NAME.fullmatch(self.header):
            raise SettingsError("header is not the name of an HTTP header.")
        if self.header.lower() in _OURS:
            raise SettingsError(
                f"header is {self.header}, which the client writes itself; name the one that the server reads."
            )

    @property
    def google_auth(self) -> GoogleAuth | None:
        """Whose tokens of Google Cloud are sent, None where others are."""
        if isinstance(self.google, GoogleAuth):
            return self.google
        return GoogleAuth() if self.google else None

    def read_secret(self) -> str | None:
        """Return the secret, without white space around it; None for Google's tokens. To be called on the worker.

        Raises:
            SettingsError: it is not there, empty, or cannot stand in a header. The sentence does not hold it.
        """
        if self.google:
            return None
        secret = self._raw().strip()
        if not secret:
            raise SettingsError(f"The secret in {self._source()} is empty.")
        if not secret.isascii() or not secret.isprintable():
            raise SettingsError(f"The secret in {self._source()} holds characters that no HTTP header may hold.")
        return secret

    def header_value(self, secret: str) -> str:
        """Return what the header carries for `secret`."""
        return f"{self.scheme} {secret}" if self.scheme else secret

    def _raw(self) -> str:
        if self.env:
            value = os.environ.get(self.env)
            if value is None:
                raise SettingsError(f"{self._source()} is not set on this worker; set it, or name another under auth.")
            return value
        try:
            return Path(str(self.file)).read_text(encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{self._source()} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise SettingsError(f"{self._source()} is not text in UTF-8.") from None

    def _source(self) -> str:
        return f"The environment variable {self.env}" if self.env else f"The file {self.file}"


def refuse_google(auth: Auth | None, what: str) -> None:
    """Raise SettingsError where `what`, which is no model server, is to be given a token of Google's."""
    if auth is not None and auth.google:
        raise SettingsError(f"google's tokens are for model servers; {what} needs env or file under auth.")
