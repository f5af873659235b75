"""Which model servers are called and how: frozen values, and the file `models.yaml` they are read from.

The values travel inside the pickled graph. A secret is never among them: `Auth` only names where it is found.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import yaml

from transforms.errors import SettingsError
from transforms.remote.openai_chat import RESERVED_PARAMS
from transforms.remote.pool import Pool, PoolSettings

ROLES = ("answer", "sentiment", "score")
"""The roles a model can have in the cases that ship."""

PROTOCOLS = ("openai-chat",)
"""The wire protocols that this version speaks."""

_LATER_PROTOCOLS = (
    "openai-embeddings",
    "open-inference",
    "open-inference-grpc",
    "vertex",
    "gemini",
    "tensorflow-serving",
    "http-json",
)
_LATER_KEYS = ("fallback", "batch", "hedge")
_LATER_AUTH = ("google",)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)


def _positive(name: str, value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise SettingsError(f"{name} is {value:g}; it must be a number above 0.")


class Endpoint(msgspec.Struct, frozen=True):
    """One base URL of a model server, ``/v1`` included for OpenAI's; a slash at its end makes no difference.

    `weight` is its share of the requests beside others; `region` a name, see `PoolSettings.regions`.
    """

    url: str
    weight: float = 1.0
    region: str = ""

    def __post_init__(self) -> None:
        """Raise SettingsError for a URL that is not http or https, has no host, or holds more than a base."""
        parts = _split(self.url)
        if parts.username is not None or parts.password is not None:
            raise SettingsError("url holds a user name or password; name the secret under auth instead.")
        if parts.query or parts.fragment:
            raise SettingsError("url must be a base URL, without ? and #; put a key under auth, not into the URL.")
        _positive("weight", self.weight)

    def to(self, path: str) -> str:
        """Return the URL of `path`, which begins with a slash, under this base."""
        return self.url.rstrip("/") + path


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often and how soon an attempt that failed for a passing reason is repeated.

    `max_attempts` counts the first one. The back-off before a repeat is random between 0 and
    min(`cap_s`, `base_s` · 2ⁿ) seconds. With `wait_for_server`, an attempt that found no server (no connection could be
    made, nothing was sent) does not count, so that an event waits for a server that comes up, until its deadline;
    without it such an attempt counts like any other.
    """

    max_attempts: int = 5
    base_s: float = 0.2
    cap_s: float = 10.0
    wait_for_server: bool = True

    def __post_init__(self) -> None:
        """Raise SettingsError for values that are not positive, or a base above the cap."""
        _positive("max_attempts", self.max_attempts)
        _positive("base_s", self.base_s)
        _positive("cap_s", self.cap_s)
        if self.base_s > self.cap_s:
            raise SettingsError(f"base_s ({self.base_s:g}) is greater than cap_s ({self.cap_s:g}); make it smaller.")


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


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the model of one role is called.

    `timeout_s` bounds one attempt, `deadline_s` everything done for one event (who makes the calls turns it into
    `Call.deadline_ms`), `max_in_flight` the calls under way in one worker process. `params` are further fields of each
    request's body, such as ``max_tokens``.
    """

    role: str
    endpoints: tuple[Endpoint, ...]
    model: str
    protocol: str = "openai-chat"
    timeout_s: float = 30.0
    deadline_s: float = 120.0
    max_in_flight: int = 64
    retry: RetryPolicy = RetryPolicy()
    pool: PoolSettings = PoolSettings()
    auth: Auth | None = None
    params: Mapping[str, Any] = {}

    def __post_init__(self) -> None:
        """Raise SettingsError for values that are wrong or contradict one another."""
        _known_protocol(self.protocol)
        if not self.endpoints:
            raise SettingsError("endpoints is empty; name at least one base URL.")
        Pool(self.endpoints, self.pool)
        if not self.model:
            raise SettingsError("model is empty; name the model as its server does.")
        _positive("timeout_s", self.timeout_s)
        _positive("deadline_s", self.deadline_s)
        _positive("max_in_flight", self.max_in_flight)
        if self.timeout_s > self.deadline_s:
            raise SettingsError(
                f"timeout_s ({self.timeout_s:g}, one attempt) is greater than deadline_s ({self.deadline_s:g}, all)."
            )
        reserved = sorted(RESERVED_PARAMS.intersection(self.params))
        if reserved:
            raise SettingsError(f"params may not set {reserved[0]}; the client does.")


class _Limits(msgspec.Struct, frozen=True):
    """The section `limits` of a model in the file."""

    max_in_flight: int = 64

    def __post_init__(self) -> None:
        _positive("max_in_flight", self.max_in_flight)


class _ModelKeys(msgspec.Struct, frozen=True):
    """The keys of a model in the file, its sections not yet read."""

    endpoints: Any
    model: str
    protocol: str = "openai-chat"
    timeout_s: float = 30.0
    deadline_s: float = 120.0
    limits: Any = None
    retry: Any = None
    auth: Any = None
    regions: tuple[str, ...] = ()
    params: dict[str, Any] = {}


def read_models(path: str | Path, roles: Collection[str] = ROLES) -> dict[str, ModelSettings]:
    """Return the settings of each role that the file `path` (`models.yaml`) names.

    Raises:
        SettingsError: the file cannot be read, or holds an unknown key (the sentence names the nearest known one),
            a key that is not supported yet, a value of the wrong type, or a contradiction. The sentence begins with
            the file and the path of the key, such as ``models.answer.retry.max_attempts``.
    """
    place = _Place(str(path))
    content = _keys(_load(Path(path), place), ("models",), place)
    models = place.at("models")
    by_role = _keys(content.get("models"), roles, models)
    if not by_role:
        raise models.error("names no model; give at least one role.")
    return {role: _model(role, value, models.at(role)) for role, value in by_role.items()}


class _Place:
    """A place in a file, for sentences about it."""

    def __init__(self, file: str, path: str = "") -> None:
        self._file = file
        self._path = path

    def at(self, key: object) -> _Place:
        step = f"[{key}]" if isinstance(key, int) else f".{key}"
        return _Place(self._file, (self._path + step).lstrip("."))

    def error(self, sentence: str) -> SettingsError:
        """The error that says `sentence` of this place."""
        where = f"{self._file}: {self._path}" if self._path else self._file
        return SettingsError(f"{where}: {sentence}")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which besides refuses a key that is written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                sentence = f"the key {key} is written twice"
                raise yaml.constructor.ConstructorError(None, None, sentence, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _load(path: Path, place: _Place) -> object:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise place.error(f"the file cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise place.error("the file is not text in UTF-8.") from None
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
    except (yaml.YAMLError, RecursionError) as error:
        raise place.error(f"the file is not YAML: {' '.join(str(error).split())}.") from None


def _keys(value: object, known: Iterable[str], place: _Place, later: Collection[str] = ()) -> dict[str, Any]:
    """`value` as a mapping whose keys are all among `known`, else the error of its place."""
    if not isinstance(value, dict):
        raise place.error(f"must be a mapping of keys to values, not {_kind(value)}.")
    known = tuple(known)
    for key in value:
        if key in later:
            raise place.at(key).error("this key is not supported yet; leave it out.")
        if key not in known:
            raise place.at(key).error(f"is not a known key; {_nearest(str(key), known)}")
    return value


def _nearest(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


S = TypeVar("S", bound=msgspec.Struct)


def _section(kind: type[S], value: object, place: _Place, later: Collection[str] = ()) -> S:
    """The section at `place` as a value of `kind`."""
    keys = _keys(value, kind.__struct_fields__, place, later)
    try:
        return msgspec.convert(keys, kind)
    except msgspec.ValidationError as error:
        sentence, _, where = str(error).partition(" - at `$.")
        at = place.at(where.rstrip("`")) if where else place
        raise at.error(f"{sentence[0].lower()}{sentence[1:]}.") from None
    except SettingsError as error:
        raise place.error(str(error)) from None


def _model(role: str, value: object, place: _Place) -> ModelSettings:
    keys = _section(_ModelKeys, value, place, _LATER_KEYS)
    limits = _Limits() if keys.limits is None else _section(_Limits, keys.limits, place.at("limits"))
    retry = RetryPolicy() if keys.retry is None else _section(RetryPolicy, keys.retry, place.at("retry"))
    auth = None if keys.auth is None else _section(Auth, keys.auth, place.at("auth"), _LATER_AUTH)
    endpoints = _endpoints(keys.endpoints, place.at("endpoints"))
    try:
        return ModelSettings(
            role=role,
            endpoints=endpoints,
            model=keys.model,
            protocol=keys.protocol,
            timeout_s=keys.timeout_s,
            deadline_s=keys.deadline_s,
            max_in_flight=limits.max_in_flight,
            retry=retry,
            pool=PoolSettings(regions=keys.regions),
            auth=auth,
            params=keys.params,
        )
    except SettingsError as error:
        raise place.error(str(error)) from None


def _endpoints(value: object, place: _Place) -> tuple[Endpoint, ...]:
    if not isinstance(value, list):
        raise place.error(f"must be a list of base URLs, not {_kind(value)}.")
    return tuple(_endpoint(item, place.at(index)) for index, item in enumerate(value))


def _endpoint(value: object, place: _Place) -> Endpoint:
    return _section(Endpoint, {"url": value} if isinstance(value, str) else value, place)


def _split(url: str) -> Any:
    """The parts of a URL that is http or https and has a host, else SettingsError, which does not repeat it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise SettingsError("url is not a URL; write it like http://host:8000/v1.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or url != url.strip():
        raise SettingsError("url is not an http or https URL; write it like http://host:8000/v1.")
    return parts


def _known_protocol(protocol: str) -> None:
    if protocol in PROTOCOLS:
        return
    if protocol in _LATER_PROTOCOLS:
        raise SettingsError(f"protocol {protocol} is not supported yet; this version speaks {', '.join(PROTOCOLS)}.")
    raise SettingsError(f"protocol {protocol} is not known; {_nearest(protocol, PROTOCOLS + _LATER_PROTOCOLS)}")
