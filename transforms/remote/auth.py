"""Where the secret of a model server is found, and the header that carries it. Never the secret itself."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from transforms.errors import SettingsError

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)


class Auth(msgspec.Struct, frozen=True):
    """Where the secret of a model server is found, and the header that carries it.

    Exactly one of `env` (the name of an environment variable) and `file` (a path, such as of a mounted Kubernetes
    secret). The header is ``{header}: {scheme} {secret}``, or ``{header}: {secret}`` where `scheme` is empty.
    """

    env: str | None = None
    file: str | None = None
    header: str = "Authorization"
    scheme: str = "Bearer"

    def __post_init__(self) -> None:
        """Raise SettingsError unless exactly one source is named and the header is one."""
        if bool(self.env) == bool(self.file):
            raise SettingsError("auth needs exactly one of env (a variable's name) and file (a path).")
        if not _HEADER_NAME.fullmatch(self.header):
            raise SettingsError("header is not the name of an HTTP header.")

    def read_secret(self) -> str:
        """Return the secret, without white space around it. To be called on the worker.

        Raises:
            SettingsError: it is not there, empty, or cannot stand in a header. The sentence does not hold it.
        """
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
