"""What a client reports of its calls: the instruments of `names`, each bound once, and the events that move them."""

from __future__ import annotations

from collections.abc import Callable

from transforms.remote import names
from transforms.remote.cache import MemoryCache, ResponseCache
from transforms.remote.cache_redis import RedisCache
from transforms.remote.outliers import Kind
from transforms.remote.questions import Reply
from transforms.remote.telemetry import Counter, Histogram, Telemetry

_OK = "ok"


class ClientMetrics:
    """The instruments of one client; the event loop alone writes to them."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self._calls_in_flight = 0
        telemetry.gauge(names.CALLS_IN_FLIGHT, lambda: self._calls_in_flight)
        self._ends: dict[str, tuple[Histogram, Counter]] = {}
        self._attempts: dict[tuple[str, str], Counter] = {}
        self._durations: dict[str, Histogram] = {}
        self._retries: dict[str, Counter] = {}
        self._queue_wait = telemetry.histogram(names.QUEUE_WAIT)
        self._quota_wait = telemetry.histogram(names.QUOTA_WAIT)
        self._request_size = telemetry.histogram(names.REQUEST_SIZE)
        self._response_size = telemetry.histogram(names.RESPONSE_SIZE)
        self._input_tokens = telemetry.histogram(names.TOKEN_USAGE, gen_ai_token_type="input")
        self._output_tokens = telemetry.histogram(names.TOKEN_USAGE, gen_ai_token_type="output")
        self._first_chunk = telemetry.histogram(names.TIME_TO_FIRST_CHUNK)
        self._output_chunk = telemetry.histogram(names.TIME_PER_OUTPUT_CHUNK)
        self._back_off = telemetry.histogram(names.BACK_OFF)

    def on_call(self) -> None:
        """A call has come."""
        self._calls_in_flight += 1

    def on_outcome(self, error_type: str | None, took_s: float) -> None:
        """A call has its outcome: the kind of its error, or None for a reply."""
        self._calls_in_flight -= 1
        self._end(error_type, took_s)

    def on_cancelled(self) -> None:
        """A call was given up."""
        self._calls_in_flight -= 1

    def on_permit(self, waited_s: float, quota_s: float) -> None:
        """A request has waited for its permit, `quota_s` of it for the quota alone."""
        self._queue_wait.record(waited_s)
        if quota_s > 0.0:
            self._quota_wait.record(quota_s)

    def on_attempt(self, url: str, kind: Kind, took_s: float) -> None:
        """A request to this endpoint has ended."""
        attempts = self._attempts.get((url, kind))
        if attempts is None:
            attempts = self.telemetry.counter(names.ATTEMPTS, endpoint=url, outcome=kind)
            self._attempts[url, kind] = attempts
        attempts.add()
        durations = self._durations.get(url)
        if durations is None:
            durations = self._durations[url] = self.telemetry.histogram(names.ATTEMPT_DURATION, endpoint=url)
        durations.record(took_s)

    def on_sizes(self, request_bytes: int, response_bytes: int) -> None:
        """A request was answered."""
        self._request_size.record(request_bytes)
        self._response_size.record(response_bytes)

    def on_reply(self, reply: Reply) -> None:
        """A reply has come."""
        if reply.prompt_tokens is not None:
            self._input_tokens.record(reply.prompt_tokens)
        if reply.completion_tokens is not None:
            self._output_tokens.record(reply.completion_tokens)

    def on_first_chunk(self, after_s: float) -> None:
        """The first chunk of a stream has come, so long after the request was sent."""
        self._first_chunk.record(after_s)

    def on_chunk(self, after_s: float) -> None:
        """A chunk of a stream has come, so long after the one before."""
        self._output_chunk.record(after_s)

    def on_stall(self) -> None:
        """A stream was cut for its silence."""
        self.telemetry.count(names.STALLS)

    def on_retry(self, reason: str, pause_s: float) -> None:
        """A request is to be repeated, because of an error of this kind, after a back-off."""
        retries = self._retries.get(reason)
        if retries is None:
            retries = self._retries[reason] = self.telemetry.counter(names.RETRIES, reason=reason)
        retries.add()
        self._back_off.record(pause_s)

    def on_hedge(self, event: str) -> None:
        """Of a second request: ``sent``, ``won``, ``withheld``."""
        self.telemetry.count(names.HEDGES, event=event)

    def on_batch(self, items: int) -> None:
        """A batch of so many items is sent."""
        self.telemetry.record(names.BATCH_SIZE, items)

    def on_cache(self, source: str) -> None:
        """A call that asked the cache has its reply from ``cache``, ``shared``, or its own ``call``."""
        result = {"cache": "hit", "shared": "shared"}.get(source, "miss")
        self.telemetry.count(names.CACHE_REQUESTS, result=result)

    def on_probe(self, url: str, up: bool) -> None:
        """A health probe of this endpoint has found out whether it is up."""
        self.telemetry.count(names.PROBES, endpoint=url, result="up" if up else "down")

    def show_cache(self, cache: ResponseCache) -> None:
        """Show what a cache knows of itself, whenever somebody looks."""
        if isinstance(cache, MemoryCache):
            self.show(names.CACHE_SIZE, lambda: cache.size_bytes)
            self.observe(names.CACHE_EVICTIONS, lambda: cache.evicted)
        elif isinstance(cache, RedisCache):
            self.observe(names.CACHE_FAILURES, lambda: cache.failures)

    def show(self, name: names.Instrument, read: Callable[[], float], **labels: str) -> None:
        """Show a number that a policy keeps."""
        self.telemetry.gauge(name, read, **labels)

    def observe(self, name: names.Instrument, read: Callable[[], float], **labels: str) -> None:
        """Show a count that a policy keeps, which never becomes less."""
        self.telemetry.observed(name, read, **labels)

    def _end(self, error_type: str | None, took_s: float) -> None:
        kind = error_type or _OK
        end = self._ends.get(kind)
        if end is None:
            end = self._ends[kind] = (
                self.telemetry.histogram(names.OPERATION_DURATION, error_type=error_type or ""),
                self.telemetry.counter(names.OUTCOMES, kind=kind),
            )
        end[0].record(took_s)
        end[1].add()
