"""What a client reports of its calls: the events of a call's life, each one method, as instruments of `names`.

The instruments are bound once for each endpoint and kind, so that each method is an addition or two. Use it on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, get_args

from transforms.remote import names
from transforms.remote.batcher import Batcher
from transforms.remote.hedge import HedgePolicy
from transforms.remote.outliers import Kind
from transforms.remote.questions import Reply
from transforms.remote.telemetry import Counter, Histogram, Telemetry

HedgeEvent = Literal["sent", "won", "withheld"]
"""A second request was sent; its reply was the first; it was not sent, since the budget is empty."""

CacheResult = Literal["hit", "miss", "shared"]
"""What became of a call that asked the cache."""

BATCH_REASONS = ("items", "bytes", "tokens", "age", "deadline", "idle", "split")
"""What closes a batch."""

_OK = "ok"


class Reports:
    """Counts what happens to the calls of one client; `urls` are its endpoints' base URLs. Times are seconds."""

    def __init__(self, telemetry: Telemetry, urls: Iterable[str]) -> None:
        self.telemetry = telemetry
        self.calls = 0
        telemetry.gauge(names.CALLS_IN_FLIGHT, lambda: self.calls)
        self._outcomes: dict[str, tuple[Counter, Histogram]] = {}
        self._attempts = {
            (url, kind): telemetry.counter(names.ATTEMPTS, endpoint=url, outcome=kind)
            for url in urls
            for kind in get_args(Kind)
        }
        self._durations = {
            url: telemetry.histogram(names.ATTEMPT_DURATION, endpoint=url) for url in {url for url, _ in self._attempts}
        }
        self._queue_wait = telemetry.histogram(names.QUEUE_WAIT)
        self._request_size = telemetry.histogram(names.REQUEST_SIZE)
        self._response_size = telemetry.histogram(names.RESPONSE_SIZE)
        self._input = telemetry.histogram(names.TOKEN_USAGE, gen_ai_token_type="input")  # noqa: S106 - no secret
        self._output = telemetry.histogram(names.TOKEN_USAGE, gen_ai_token_type="output")  # noqa: S106 - as above
        self._back_off = telemetry.histogram(names.BACK_OFF)

    def call_began(self) -> None:
        """A call came; `call_ended` follows."""
        self.calls += 1

    def call_ended(self, error_kind: str | None, took_s: float) -> None:
        """A call has its outcome: a reply, or an error of this kind."""
        self.calls -= 1
        kind = error_kind or _OK
        bound = self._outcomes.get(kind)
        if bound is None:
            bound = self._outcomes[kind] = (
                self.telemetry.counter(names.OUTCOMES, kind=kind),
                self.telemetry.histogram(names.OPERATION_DURATION, error_type=error_kind or ""),
            )
        bound[0].add()
        bound[1].record(took_s)

    def waited(self, seconds: float) -> None:
        """An attempt got its permit after so long."""
        self._queue_wait.record(seconds)

    def attempt_ended(self, url: str, kind: Kind, took_s: float) -> None:
        """A request to an endpoint came to this."""
        self._attempts[url, kind].add()
        self._durations[url].record(took_s)

    def sent(self, size_bytes: int) -> None:
        """A request body left."""
        self._request_size.record(size_bytes)

    def received(self, size_bytes: int) -> None:
        """The body of an answer came, whatever it says."""
        self._response_size.record(size_bytes)

    def replied(self, replies: Iterable[Reply]) -> None:
        """The replies of one request were read."""
        for reply in replies:
            if reply.prompt_tokens is not None:
                self._input.record(reply.prompt_tokens)
            if reply.completion_tokens is not None:
                self._output.record(reply.completion_tokens)
            if reply.first_token_ms is not None:
                self.telemetry.record(names.TIME_TO_FIRST_CHUNK, reply.first_token_ms / 1000.0)

    def chunk_came(self, after_s: float) -> None:
        """A further chunk of a stream came so long after the one before."""
        self.telemetry.record(names.TIME_PER_OUTPUT_CHUNK, after_s)

    def stalled(self) -> None:
        """A stream was cut, since no chunk came."""
        self.telemetry.count(names.STALLS)

    def repeats(self, reason: str, pause_s: float) -> None:
        """An attempt that ended for `reason` is repeated after a wait."""
        self.telemetry.count(names.RETRIES, reason=reason)
        self._back_off.record(pause_s)

    def hedged(self, event: HedgeEvent) -> None:
        """Something became of a second request."""
        self.telemetry.count(names.HEDGES, event=event)

    def asked_cache(self, result: CacheResult) -> None:
        """A call asked the cache."""
        self.telemetry.count(names.CACHE_REQUESTS, result=result)

    def waited_for_quota(self, seconds: float) -> None:
        """An attempt waited so long for its quota."""
        self.telemetry.record(names.QUOTA_WAIT, seconds)

    def refused_by_quota(self, url: str) -> None:
        """An endpoint answered that its quota is used up."""
        self.telemetry.count(names.QUOTA_REFUSALS, endpoint=url)

    def batched(self, items: int) -> None:
        """A batch of so many items is sent."""
        self.telemetry.record(names.BATCH_SIZE, items)

    def fell_back(self, to: str, reason: str) -> None:
        """A call went on to the role `to`, or ``fixed``, after an error of the kind `reason`."""
        self.telemetry.count(names.FALLBACKS, to=to, reason=reason)


def observe_hedging(telemetry: Telemetry, hedge: HedgePolicy, now: Callable[[], float]) -> None:
    """Report the budget and the delay of second requests. `now` is the monotonic clock in seconds."""
    telemetry.gauge(names.HEDGE_BUDGET, lambda: hedge.budget.available(now()))
    telemetry.gauge(names.HEDGE_DELAY, lambda: hedge.delay_s(now()) or 0.0)


def observe_batches(telemetry: Telemetry, batcher: Batcher[Any, Any]) -> None:
    """Report how many batches were closed for each reason, and how full they were."""
    for reason in BATCH_REASONS:
        telemetry.observed(names.BATCHES, partial(batcher.sent.__getitem__, reason), reason=reason)
    most = batcher.settings.max_items
    telemetry.gauge(names.BATCH_FILL, lambda: batcher.items_sent / max(1, batcher.sent.total()) / most)
