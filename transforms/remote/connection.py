"""How connections are made: certificates, a proxy, compression. Frozen values, whose files and secrets are read on the worker."""

from __future__ import annotations

import gzip
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from transforms.errors import SettingsError
from transforms.remote.auth import Auth, refuse_google

Compression = Literal["gzip"]
"""How the bodies of requests are compressed."""

COMPRESSED_FROM_BYTES = 1024
"""Smaller bodies are not worth the time, and fit into one packet anyway."""


def packed(how: Compression | None, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
    """The body and the headers of a request as they are sent: the same for the same body. What is compressed stays as it is."""
    if how is None or len(body) < COMPRESSED_FROM_BYTES or "Content-Encoding" in headers:
        return body, headers
    return gzip.compress(body, compresslevel=6, mtime=0), {**headers, "Content-Encoding": how}


class TlsSettings(msgspec.Struct, frozen=True):
    """Whom to trust, and who we are.

    `ca_file` holds the certificates that are trusted, instead of the system's; `cert_file` and `key_file` are our own, which the
    server asks for (mutual TLS), all in PEM; the key may stand in `cert_file` too, and has no passphrase. With `verify` false any
    server is believed: for tests alone.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        """Raise SettingsError for a key without a certificate, and for a CA beside verify: false."""
        if self.key_file is not None and self.cert_file is None:
            raise SettingsError("key_file needs cert_file, the certificate that it belongs to.")
        if self.ca_file is not None and not self.verify:
            raise SettingsError("ca_file has no meaning with verify: false; leave one of the two out.")

    def context(self) -> ssl.SSLContext:
        """Return the context of connections. To be called on the worker.

        Raises:
            SettingsError: a file cannot be read, or is not what it should be.
        """
        ca = None if self.ca_file is None else self._pem("ca_file", self.ca_file).decode("ascii", "replace")
        try:
            context = ssl.create_default_context(cadata=ca)
        except (ssl.SSLError, ValueError):
            raise SettingsError(f"The file {self.ca_file} (ca_file) holds no certificates in PEM.") from None
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert_file is not None:
            self.key_pair()
            try:
                context.load_cert_chain(self.cert_file, self.key_file, password=_no_passphrase)
            except (ssl.SSLError, ValueError):
                files = " and ".join(name for name in (self.cert_file, self.key_file) if name)
                raise SettingsError(f"{files} (cert_file, key_file) are no certificate and its key in PEM.") from None
        return context

    def trusted(self) -> bytes | None:
        """Return the trusted certificates in PEM, None for the system's. To be called on the worker; raises SettingsError."""
        return None if self.ca_file is None else self._pem("ca_file", self.ca_file)

    def key_pair(self) -> tuple[bytes, bytes] | None:
        """Return our key and certificate in PEM, None without. To be called on the worker; raises SettingsError."""
        if self.cert_file is None:
            return None
        cert = self._pem("cert_file", self.cert_file)
        return (cert if self.key_file is None else self._pem("key_file", self.key_file)), cert

    def _pem(self, key: str, name: str) -> bytes:
        try:
            return Path(name).read_bytes()
        except OSError as error:
            raise SettingsError(f"The file {name} ({key}) cannot be read: {error.strerror}.") from None


class ProxySettings(msgspec.Struct, frozen=True):
    """The HTTP proxy that requests go through.

    `url` is like ``http://proxy:3128``, or ``env``: what HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the worker say. `user` and the
    password that `auth` finds are sent as basic authentication.
    """

    url: str
    user: str = ""
    auth: Auth | None = None

    def __post_init__(self) -> None:
        """Raise SettingsError for a URL that is none or holds a secret, and for a user without password."""
        if self.url == "env":
            if self.user or self.auth is not None:
                raise SettingsError("a proxy of the environment brings its own user; leave user and auth out.")
            return
        _check_url(self.url)
        if bool(self.user) != (self.auth is not None):
            raise SettingsError("a proxy's user and auth (where its password is found) belong together.")
        refuse_google(self.auth, "a proxy")


def _check_url(url: str) -> None:
    """Refuse what is no URL of a proxy, or holds a secret; the sentence does not repeat it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise SettingsError("the proxy's url is not a URL; write it like http://proxy:3128, or env.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise SettingsError("the proxy's url is not an http or https URL; write it like http://proxy:3128, or env.")
    if parts.username is not None or parts.password is not None:
        raise SettingsError("the proxy's url holds a user name or password; put them under user and auth.")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise SettingsError("the proxy's url must be host and port alone.")


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")
