"""Which model servers are called and how: frozen values. `models_file` reads them from `models.yaml`.

The values travel inside the pickled graph. A secret is never among them: `Auth` only names where it is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from transforms.errors import SettingsError
from transforms.remote import ranges
from transforms.remote.auth import Auth
from transforms.remote.batcher import BatchSettings
from transforms.remote.cache import CacheSettings
from transforms.remote.concurrency import ConcurrencySettings
from transforms.remote.connection import Compression, ProxySettings, TlsSettings
from transforms.remote.hedge import HedgeSettings
from transforms.remote.pool import Pool, PoolSettings
from transforms.remote.probes import ProbeSettings
from transforms.remote.protocols import ProtocolSettings, WireProtocol, asked_with, make_protocol
from transforms.remote.quota import QuotaSettings
from transforms.remote.quota_redis import SharedQuotaSettings
from transforms.remote.streams import StreamSettings

_GRPC = ("grpc", "grpcs")
_SCHEMES = ("http", "https", *_GRPC)
_OUTPUT_TOKENS = ("max_tokens", "max_completion_tokens", "maxOutputTokens")


class Endpoint(msgspec.Struct, frozen=True):
    """One base URL of a model server, ``/v1`` included for OpenAI's; a slash at its end makes no difference.

    `weight` is its share of the requests beside others; `region` a name, see `PoolSettings.regions`.
    """

    url: str
    weight: float = 1.0
    region: str = ""

    def __post_init__(self) -> None:
        """Raise SettingsError for a URL of no known scheme, without a host, or that holds more than a base."""
        parts = _split(self.url)
        if parts.username is not None or parts.password is not None:
            raise SettingsError("url holds a user name or password; name the secret under auth instead.")
        if parts.query or parts.fragment:
            raise SettingsError("url must be a base URL, without ? and #; put a key under auth, not into the URL.")
        ranges.positive(weight=self.weight)

    def to(self, path: str) -> str:
        """Return the URL of `path`, which begins with a slash, under this base."""
        return self.url.rstrip("/") + path


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often and how soon an attempt that failed for a passing reason is repeated.

    `max_attempts` counts the first one, and none that was throttled: a server that asks for fewer requests has not failed, and
    the event waits for its turn. The back-off before a repeat is random between 0 and min(`cap_s`, `base_s` · 2ⁿ) seconds, and
    ends when an endpoint is found to work again. Of the events of the last seconds the share `budget` may be repeated, and 10
    a second at least; other repeats wait. With `wait_for_server`, an attempt does not count that found no server (no
    connection could be made, nothing was sent), nor one that failed while no endpoint gave a reply to anybody: so an event
    waits for a server that comes up, or recovers, until its deadline. Without it such attempts count like any other.
    """

    max_attempts: int = 5
    base_s: float = 0.2
    cap_s: float = 10.0
    budget: float = 0.2
    wait_for_server: bool = True

    def __post_init__(self) -> None:
        """Raise SettingsError for values that are not positive, or a base above the cap."""
        ranges.positive(max_attempts=self.max_attempts, base_s=self.base_s, cap_s=self.cap_s)
        ranges.rising(base_s=self.base_s, cap_s=self.cap_s)
        ranges.share(budget=self.budget)


class FixedReply(msgspec.Struct, frozen=True):
    """The end of a chain of fallbacks: what is answered where no model could. `value` is text, or a value as JSON has it."""

    value: Any


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the model of one role is called.

    `timeout_s` bounds one attempt, `deadline_s` everything done for one event (who makes the calls turns it into
    `Call.deadline_ms`), `max_in_flight` the requests under way in one worker process; how many of them each endpoint bears is found
    out (`concurrency`). `quota` holds for each endpoint, and may be shared over a Redis (`shared_quota`).
    `params` are further fields of each
    request's body, such as ``max_tokens``; `options` are the protocol's own.

    Where `batch` is None each event is a request, where `stream` is None replies come as a whole, where `hedge` is None no
    request is sent a second time, where `cache` is None no reply is kept, where `probe` is None no endpoint is probed.
    `tls` and `proxy` say how connections are made, `compress` how bodies of requests are compressed. `fallback` is asked when
    this model gave no reply; it is left its `timeout_s` of the event's time.
    """

    role: str
    endpoints: tuple[Endpoint, ...]
    model: str
    protocol: str = "openai-chat"
    options: Mapping[str, Any] = {}
    timeout_s: float = 30.0
    deadline_s: float = 120.0
    max_in_flight: int = 256
    concurrency: ConcurrencySettings = ConcurrencySettings()
    quota: QuotaSettings = QuotaSettings()
    shared_quota: SharedQuotaSettings | None = None
    retry: RetryPolicy = RetryPolicy()
    pool: PoolSettings = PoolSettings()
    auth: Auth | None = None
    params: Mapping[str, Any] = {}
    batch: BatchSettings | None = None
    stream: StreamSettings | None = None
    hedge: HedgeSettings | None = None
    cache: CacheSettings | None = None
    probe: ProbeSettings | None = None
    tls: TlsSettings | None = None
    proxy: ProxySettings | None = None
    compress: Compression | None = None
    fallback: ModelSettings | FixedReply | None = None

    def __post_init__(self) -> None:
        """Raise SettingsError for values that are wrong or contradict one another."""
        if not self.endpoints:
            raise SettingsError("endpoints is empty; name at least one base URL.")
        Pool(self.endpoints, self.pool)
        if not self.model:
            raise SettingsError("model is empty; name the model as its server does.")
        ranges.positive(timeout_s=self.timeout_s, deadline_s=self.deadline_s, max_in_flight=self.max_in_flight)
        if self.shared_quota is not None and not (self.quota.requests_per_min or self.quota.tokens_per_min):
            raise SettingsError(
                "redis shares a quota, and none is given; add requests_per_min or tokens_per_min to quota."
            )
        if self.timeout_s > self.deadline_s:
            raise SettingsError(
                f"timeout_s ({self.timeout_s:g}, one attempt) is greater than deadline_s ({self.deadline_s:g}, all)."
            )
        protocol = self.make_protocol()
        self._check_schemes(protocol.schemes)
        if self.batch is not None and protocol.most_items == 1:
            raise SettingsError(f"protocol {self.protocol} takes one question in a request; leave batch out.")
        if self.probe is not None and self.probe.path is None and protocol.probe_path is None:
            raise SettingsError(f"protocol {self.protocol} has no health probe of its own; give probe a path.")
        if self.fallback_s >= self.deadline_s:
            raise SettingsError(
                f"the fallbacks are left {self.fallback_s:g} s (their timeout_s), and deadline_s is {self.deadline_s:g}; "
                "make the first shorter or the second longer."
            )
        self._check_hedge()
        self._check_batch()
        self._check_limits()
        self._check_fallbacks()
        self._check_cache()
        if self.stream is not None and self.timeout_s < self.stream.stall_s != StreamSettings().stall_s:
            raise SettingsError(
                f"stream.stall_s ({self.stream.stall_s:g}) is greater than timeout_s ({self.timeout_s:g}), which ends the attempt "
                "before; make it smaller."
            )

    def _check_hedge(self) -> None:
        """Refuse hedging that can never happen."""
        if self.hedge is None or not self.hedge.enabled:
            return
        if len(self.endpoints) == 1:
            raise SettingsError("hedge sends a second request to another endpoint, and there is one; leave hedge out.")
        if self.max_in_flight == 1:
            raise SettingsError(
                "hedge sends a second request beside the first, and max_in_flight is 1; make it greater."
            )
        if self.hedge.least_delay_s >= self.timeout_s:
            raise SettingsError(
                f"hedge.least_delay_s ({self.hedge.least_delay_s:g}) is not less than timeout_s ({self.timeout_s:g}), which ends "
                "the first request before there is a second; make it smaller."
            )

    def _check_batch(self) -> None:
        """Refuse batches that would leave too late, or that the quota never lets through."""
        if self.batch is None:
            return
        for name in ("max_wait_ms", "deadline_margin_ms"):
            value_ms = getattr(self.batch, name)
            if value_ms >= self.deadline_s * 1000.0:
                raise SettingsError(
                    f"batch.{name} ({value_ms:g}) is not less than deadline_s ({self.deadline_s:g} s), when an event ends; make it "
                    "smaller."
                )
        most = self.quota.tokens_per_min
        if most is not None and (self.batch.max_tokens or 0) > most:
            raise SettingsError(
                f"batch.max_tokens ({self.batch.max_tokens}) is greater than quota.tokens_per_min ({most:g}), so that such a batch "
                "never fits; make it smaller."
            )

    def _check_limits(self) -> None:
        """Refuse what the quota or `max_in_flight` contradicts, where it was given; defaults give way."""
        quota = self.quota
        for name in _OUTPUT_TOKENS:
            value = self.params.get(name)
            if quota.tokens_per_min is not None and _is_above(value, quota.tokens_per_min):
                raise SettingsError(
                    f"params.{name} ({value}) is greater than quota.tokens_per_min ({quota.tokens_per_min:g}); make it smaller."
                )
        # Limits that a server's headers name are shared as well, so that a share alone has its use where those are believed.
        if quota.part != 1.0 and not (quota.requests_per_min or quota.tokens_per_min or quota.learn):
            raise SettingsError(
                "quota.share is a part of a quota, and none is given or learnt; add requests_per_min or tokens_per_min."
            )
        for name in ("initial", "least"):
            value = getattr(self.concurrency, name)
            if value > self.max_in_flight and value != getattr(ConcurrencySettings(), name):
                raise SettingsError(
                    f"concurrency.{name} ({value}) is greater than max_in_flight ({self.max_in_flight}), which bounds it; make it "
                    "smaller."
                )

    def _check_fallbacks(self) -> None:
        """Refuse a fallback that has no form for any question that this model understands."""
        fallback, own = self.fallback, asked_with(self.protocol)
        while isinstance(fallback, ModelSettings):
            theirs = asked_with(fallback.protocol)
            if not set(own) & set(theirs):
                raise SettingsError(
                    f"the fallback {fallback.role} ({fallback.protocol}) is asked with {_named(theirs)}, and this model "
                    f"({self.protocol}) with {_named(own)}; name a fallback that understands the same questions."
                )
            fallback = fallback.fallback

    def _check_cache(self) -> None:
        """Refuse a cache that the params forbid (`cache.cacheable`). What they leave open a question may say for itself."""
        if self.cache is None or self.cache.always:
            return
        for name, most in (("temperature", 0), ("n", 1), ("best_of", 1)):
            if _is_above(self.params.get(name), most):
                raise SettingsError(
                    f"cache keeps replies that would come out the same again, and params.{name} is {self.params[name]}; set it to "
                    f"{most}, or give cache always: true."
                )

    def _check_schemes(self, schemes: tuple[str, ...]) -> None:
        """Refuse URLs that are not the protocol's, and what gRPC has not."""
        for endpoint in self.endpoints:
            if endpoint.url.partition(":")[0].lower() not in schemes:
                raise SettingsError(f"protocol {self.protocol} needs endpoints that begin with {schemes[0]}://.")
        if schemes == _GRPC and self.tls is not None and not self.tls.verify:
            raise SettingsError("verify: false is not to be had with gRPC; name the server's authority as ca_file.")
        if schemes == _GRPC and self.proxy is not None and self.proxy.url != "env":
            raise SettingsError("with gRPC proxy may only be env.")

    @property
    def urls(self) -> tuple[str, ...]:
        """The base URLs of the endpoints."""
        return tuple(endpoint.url for endpoint in self.endpoints)

    @property
    def endpoint_concurrency(self) -> ConcurrencySettings:
        """The limit of each endpoint, which is never above `max_in_flight`."""
        own, most = self.concurrency, self.max_in_flight
        return msgspec.structs.replace(
            own, most=min(own.most, most), initial=min(own.initial, most), least=min(own.least, most)
        )

    @property
    def endpoint_pool(self) -> PoolSettings:
        """The pool, whose breakers open for no longer than a quarter of the time that an event has here.

        Else an event that comes while its only server recovers would end before anyone looked whether the server is well.
        """
        longest_s = (self.deadline_s - self.fallback_s) / 4
        own = self.pool.breaker
        breaker = msgspec.structs.replace(
            own, open_s=min(own.open_s, longest_s), longest_open_s=min(own.longest_open_s, longest_s)
        )
        return msgspec.structs.replace(self.pool, breaker=breaker)

    @property
    def fallback_s(self) -> float:
        """The seconds before an event's deadline at which this model gives way to its fallbacks."""
        seconds, fallback = 0.0, self.fallback
        while isinstance(fallback, ModelSettings):
            seconds += fallback.timeout_s
            fallback = fallback.fallback
        return seconds

    def divided(self, processes: int) -> ModelSettings:
        """Return the settings for each of so many worker processes: a quota has its part, unless that is said or leased.

        Raises:
            SettingsError: a part is less than one request.
        """
        quota = self.quota if self.shared_quota is not None else self.quota.divided(processes)
        fallback = self.fallback.divided(processes) if isinstance(self.fallback, ModelSettings) else self.fallback
        return msgspec.structs.replace(self, quota=quota, fallback=fallback)

    def make_protocol(self) -> WireProtocol:
        """Return the protocol, made for this model.

        Raises:
            SettingsError: there is no such protocol, or params and options are not for it.
        """
        return make_protocol(
            self.protocol,
            ProtocolSettings(
                model=self.model, params=self.params, options=self.options, stream=self.stream is not None
            ),
        )


def _is_above(value: object, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > most


def _named(kinds: tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)


def _split(url: str) -> Any:
    """The parts of a URL that has a known scheme and a host, else SettingsError, which does not repeat it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise SettingsError("url is not a URL; write it like http://host:8000/v1.") from None
    if parts.scheme not in _SCHEMES or not parts.hostname or port == 0 or url != url.strip():
        raise SettingsError("url is not an http, https, grpc or grpcs URL; write it like http://host:8000/v1.")
    if parts.scheme in _GRPC and parts.path.strip("/"):
        raise SettingsError("url of a gRPC server is host and port alone, like grpc://host:8001.")
    return parts
