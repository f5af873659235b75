"""Reads `models.yaml`: a role for each model, and how it is called. An error names the file and the path of the key."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from transforms.errors import SettingsError
from transforms.remote import ranges
from transforms.remote.auth import Auth
from transforms.remote.batcher import BatchSettings
from transforms.remote.breaker import BreakerSettings
from transforms.remote.cache import CacheSettings
from transforms.remote.concurrency import ConcurrencySettings
from transforms.remote.connection import Compression, ProxySettings, TlsSettings
from transforms.remote.hedge import HedgeSettings
from transforms.remote.outliers import OutlierSettings
from transforms.remote.pool import PoolSettings
from transforms.remote.probes import ProbeSettings
from transforms.remote.protocols import nearest
from transforms.remote.quota import QuotaSettings
from transforms.remote.quota_redis import SharedQuotaSettings
from transforms.remote.settings import Endpoint, FixedReply, ModelSettings, RetryPolicy
from transforms.remote.streams import StreamSettings

ROLES = ("answer", "sentiment", "score")
"""The roles a model can have in the cases that ship. A model that is another's fallback has any name besides."""


class Limits(msgspec.Struct, frozen=True):
    """The section `limits` of a model in the file."""

    max_in_flight: int = 256
    concurrency: Any = None
    quota: Any = None
    redis: Any = None

    def __post_init__(self) -> None:
        """Raise SettingsError for a number out of its range."""
        ranges.positive(max_in_flight=self.max_in_flight)


class ModelKeys(msgspec.Struct, frozen=True):
    """The keys of a model in the file, its sections not yet read."""

    endpoints: Any
    model: str
    protocol: str = "openai-chat"
    options: dict[str, Any] = {}
    timeout_s: float = 30.0
    deadline_s: float = 120.0
    limits: Any = None
    retry: Any = None
    auth: Any = None
    regions: tuple[str, ...] = ()
    pool: Any = None
    params: dict[str, Any] = {}
    batch: Any = None
    stream: Any = None
    hedge: Any = None
    cache: Any = None
    probe: Any = None
    tls: Any = None
    proxy: Any = None
    compress: Compression | None = None
    fallback: Any = None


def read_models(path: str | Path, roles: Collection[str] = ROLES) -> dict[str, ModelSettings]:
    """Return the settings of each role that the file `path` (`models.yaml`) names.

    A model that only serves as a fallback is in the settings of those whose fallback it is, and not in the result.

    Raises:
        SettingsError: the file cannot be read, or holds an unknown key (the sentence names the nearest known one),
            a value of the wrong type, or a contradiction. The sentence begins with
            the file and the path of the key, such as ``models.answer.retry.max_attempts``.
    """
    place = _Place(str(path))
    content = _keys(_load(Path(path), place), ("models",), place)
    models = place.at("models")
    named = _named_as_fallback(content.get("models"))
    by_role = _keys(content.get("models"), (*roles, *(name for name in named if name not in roles)), models)
    if not by_role:
        raise models.error("names no model; give at least one role.")
    read = {role: _model(role, by_role, models, ()) for role in by_role}
    wanted = {role: settings for role, settings in read.items() if role in roles}
    if not wanted:
        raise models.error(f"names only fallbacks; give at least one of the roles {', '.join(roles)}.")
    return wanted


def _named_as_fallback(models: object) -> list[str]:
    """The names of models that others name as their fallback; what is not well formed is told later."""
    found = models.values() if isinstance(models, dict) else ()
    names = [keys.get("fallback") for keys in found if isinstance(keys, dict)]
    return [name for name in names if isinstance(name, str)]


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


def _keys(value: object, known: Iterable[str], place: _Place) -> dict[str, Any]:
    """`value` as a mapping whose keys are all among `known`, else the error of its place."""
    if not isinstance(value, dict):
        raise place.error(f"must be a mapping of keys to values, not {_kind(value)}.")
    known = tuple(known)
    for key in value:
        if key not in known:
            raise place.at(key).error(f"is not a known key; {nearest(str(key), known)}")
    return value


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


S = TypeVar("S", bound=msgspec.Struct)


def _section(kind: type[S], value: object, place: _Place) -> S:
    """The section at `place` as a value of `kind`."""
    keys = _keys(value, kind.__struct_fields__, place)
    try:
        return msgspec.convert(keys, kind)
    except msgspec.ValidationError as error:
        sentence, _, where = str(error).partition(" - at `$.")
        at = place.at(where.rstrip("`")) if where else place
        raise at.error(f"{sentence[0].lower()}{sentence[1:]}.") from None
    except SettingsError as error:
        raise place.error(str(error)) from None


def _model(role: str, by_role: Mapping[str, Any], models: _Place, chain: tuple[str, ...]) -> ModelSettings:
    """The model of a role, its fallbacks in it; `chain` are those whose fallback it is."""
    place = models.at(role)
    keys = _section(ModelKeys, by_role[role], place)
    limits = Limits() if keys.limits is None else _section(Limits, keys.limits, place.at("limits"))
    endpoints = _endpoints(keys.endpoints, place.at("endpoints"))
    sections: dict[str, Any] = {
        name: _section(kind, value, place.at(name))
        for name, kind in _SECTIONS.items()
        if (value := getattr(keys, name)) is not None
    }
    fallback = _fallback(keys.fallback, place.at("fallback"), by_role, models, (*chain, role))
    # Outside of the block below: their errors name their own place.
    pool = _pool(keys.pool, place.at("pool"))
    proxy = _proxy(keys.proxy, place.at("proxy"))
    bounds = _limits(limits, place.at("limits"))
    try:
        return ModelSettings(
            role=role,
            endpoints=endpoints,
            model=keys.model,
            protocol=keys.protocol,
            options=keys.options,
            timeout_s=keys.timeout_s,
            deadline_s=keys.deadline_s,
            max_in_flight=limits.max_in_flight,
            **bounds,
            pool=msgspec.structs.replace(pool, regions=keys.regions),
            params=keys.params,
            proxy=proxy,
            compress=keys.compress,
            fallback=fallback,
            **sections,
        )
    except SettingsError as error:
        raise place.error(str(error)) from None


def _limits(limits: Limits, place: _Place) -> dict[str, Any]:
    """What the section `limits` says beside `max_in_flight`, as settings of a model."""
    kinds: Mapping[str, tuple[str, type[msgspec.Struct]]] = {
        "concurrency": ("concurrency", ConcurrencySettings),
        "quota": ("quota", QuotaSettings),
        "redis": ("shared_quota", SharedQuotaSettings),
    }
    return {
        setting: _section(kind, value, place.at(name))
        for name, (setting, kind) in kinds.items()
        if (value := getattr(limits, name)) is not None
    }


def _pool(value: object, place: _Place) -> PoolSettings:
    """The section `pool`: the numbers of a pool, without its regions."""
    if value is None:
        return PoolSettings()
    if isinstance(value, dict) and "regions" in value:
        raise place.at("regions").error("regions stands beside pool, not in it; move it there.")
    known = [name for name in PoolSettings.__struct_fields__ if name != "regions"]
    keys = dict(_keys(value, known, place))
    for name, kind in (("breaker", BreakerSettings), ("outliers", OutlierSettings)):
        if name in keys:
            keys[name] = _section(kind, keys[name], place.at(name))
    return _section(PoolSettings, keys, place)


_SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    "retry": RetryPolicy,
    "auth": Auth,
    "batch": BatchSettings,
    "stream": StreamSettings,
    "hedge": HedgeSettings,
    "cache": CacheSettings,
    "probe": ProbeSettings,
    "tls": TlsSettings,
}


def _fallback(
    value: object, place: _Place, by_role: Mapping[str, Any], models: _Place, chain: tuple[str, ...]
) -> ModelSettings | FixedReply | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return _section(FixedReply, value, place)
    if not isinstance(value, str):
        raise place.error("must be the name of a model in this file, or a mapping with the fixed value: {value: …}.")
    if value not in by_role:
        raise place.error(f"names {value}, which is no model in this file; {nearest(value, tuple(by_role))}")
    if value in chain:
        raise place.error(f"names {value}, which falls back to this one; a chain of fallbacks must end.")
    return _model(value, by_role, models, chain)


def _proxy(value: object, place: _Place) -> ProxySettings | None:
    return (
        None if value is None else _section(ProxySettings, {"url": value} if isinstance(value, str) else value, place)
    )


def _endpoints(value: object, place: _Place) -> tuple[Endpoint, ...]:
    if not isinstance(value, list):
        raise place.error(f"must be a list of base URLs, not {_kind(value)}.")
    return tuple(_endpoint(item, place.at(index)) for index, item in enumerate(value))


def _endpoint(value: object, place: _Place) -> Endpoint:
    return _section(Endpoint, {"url": value} if isinstance(value, str) else value, place)
