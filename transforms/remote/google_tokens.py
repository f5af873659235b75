"""Access tokens of Google Cloud, fetched by the library google-auth in a thread of their own.

Source: Google's "Application Default Credentials": the file that GOOGLE_APPLICATION_CREDENTIALS names, those of gcloud, the
metadata server of the machine (service account, GKE's workload identity); or a file that is named here, of a service account, of
workload identity federation (``external_account``), of a user, or of impersonation. google-auth reads all of these.
"""

from __future__ import annotations

import asyncio
import calendar
import functools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transforms.errors import Refused, SettingsError
from transforms.remote.auth import GoogleAuth
from transforms.remote.authorized import AccessToken
from transforms.remote.transport import NotConnected

_FETCH_TIMEOUT_S = 20.0


class GoogleTokens:
    """Fetches tokens with one set of credentials. Making it checks that the file and the library are there.

    Raises:
        SettingsError: they are not.
    """

    def __init__(self, settings: GoogleAuth) -> None:
        try:
            import google.auth  # noqa: F401, PLC0415 - an extra
        except ImportError:
            raise SettingsError("auth: google needs the package google-auth; install farcall[google].") from None
        if settings.credentials_file is not None:
            _check_file(settings.credentials_file)
        self._settings = settings
        self._credentials: Any = None
        self._executor = ThreadPoolExecutor(1, "google-auth")

    async def fetch(self) -> AccessToken:
        """Return a new token.

        Raises:
            NotConnected: the token's server could not be asked, or failed.
            Refused: there are no credentials, or they are not taken.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._fetch)

    def close(self) -> None:
        """Let the thread end, once what it fetches is there."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _fetch(self) -> AccessToken:
        from google.auth import exceptions  # noqa: PLC0415 - an extra
        from google.auth.transport.requests import Request  # noqa: PLC0415

        try:
            if self._credentials is None:
                self._credentials = self._load()
            self._credentials.refresh(functools.partial(Request(), timeout=_FETCH_TIMEOUT_S))
        except exceptions.DefaultCredentialsError as error:
            raise Refused(f"There are no credentials of Google's: {_first_line(error)}.", 401) from None
        except exceptions.GoogleAuthError as error:
            sentence = f"Google gave no access token: {_first_line(error)}."
            if error.retryable or isinstance(error, exceptions.TransportError):
                raise NotConnected(sentence) from None
            raise Refused(sentence, 401) from None
        expiry = self._credentials.expiry
        expires_ms = None if expiry is None else calendar.timegm(expiry.utctimetuple()) * 1000
        return AccessToken(self._credentials.token, expires_ms)

    def _load(self) -> Any:
        import google.auth  # noqa: PLC0415 - an extra

        scopes = list(self._settings.scopes)
        named = self._settings.credentials_file or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        if not named:
            return google.auth.default(scopes=scopes)[0]
        return _federated(named, scopes) or google.auth.load_credentials_from_file(named, scopes=scopes)[0]


def _federated(name: str, scopes: list[str]) -> Any:
    """The credentials of workload identity federation in a file, None where it holds others.

    The library's general way also asks Google for the name of the project, which nobody here needs, and fails without it.
    """
    from google.auth import aws, exceptions, identity_pool, pluggable  # noqa: PLC0415 - an extra

    try:
        info = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise exceptions.DefaultCredentialsError(f"The file {name} cannot be read: {error}") from None
    if info.get("type") != "external_account":
        return None
    if info.get("subject_token_type") == "urn:ietf:params:aws:token-type:aws4_request":
        return aws.Credentials.from_info(info, scopes=scopes)
    kind = pluggable if "executable" in info.get("credential_source", {}) else identity_pool
    return kind.Credentials.from_info(info, scopes=scopes)


def _check_file(name: str) -> None:
    """Raise SettingsError for a file that cannot be one of credentials; the sentence holds nothing of it."""
    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The file {name} with Google's credentials cannot be read: {error.strerror}.") from None
    except ValueError:
        raise SettingsError(f"The file {name} with Google's credentials is not JSON.") from None
    if not isinstance(content, dict) or not isinstance(content.get("type"), str):
        raise SettingsError(f"The file {name} is not one of Google's credentials: it has no type.")


def _first_line(error: Exception) -> str:
    """What the library says, without the objects that it adds."""
    text = str(error.args[0]) if error.args else type(error).__name__
    return (text.splitlines() or [""])[0].rstrip(".")
