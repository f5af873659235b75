"""The name of everything the client and the step report, in one table: no other file writes such a name.

Where OpenTelemetry's conventions for generative AI have a name, it is that, with its unit, labels and bucket bounds; the rest
begins with ``inference_``. Times of a stream carry the names of what a *client* sees (`time_to_first_chunk`,
`time_per_output_chunk`): those that begin with ``gen_ai.server`` are for the server's own measurements.

Each instrument has two further names, since neither side takes dots. In Prometheus: underscores, and the unit and ``_total`` as
its own conventions want them. In Beam, whose metrics have no labels: underscores, then the values of the labels; endpoints are
added up there, and times are whole milliseconds.

All bounds of a histogram are the least one times a power of two: there its buckets end (`telemetry`).

Source: OpenTelemetry semantic conventions 1.42.0, metrics of GenAI clients (status: development; they moved to the repository
semantic-conventions-genai with that version). Prometheus: "Metric and label naming", and OpenTelemetry's "Prometheus and
OpenMetrics compatibility" for the change of names.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["s", "By", "{token}", "{call}", "{request}", "{item}", "{endpoint}", "{entry}", "{lease}", "1", "1/min"]
Together = Literal["sum", "greatest", "state"]

ENDPOINT = "endpoint"
"""The label that Beam's names leave out: series that differ in it alone are added up there."""

QUANTILES = (0.5, 0.95, 0.99)
"""The quantiles that are shown of every histogram, as shares."""

TIME_BOUNDS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""The bounds of buckets for seconds, by the conventions."""

TOKEN_BOUNDS = tuple(float(4**power) for power in range(14))
"""The bounds of buckets for tokens, by the conventions."""

BYTE_BOUNDS = tuple(float(64 * 4**power) for power in range(10))
"""The bounds of buckets for bytes: 64 B to 16 MiB."""

ITEM_BOUNDS = tuple(float(2**power) for power in range(11))
"""The bounds of buckets for items of a batch: 1 to 1 024."""

_BOUNDS = {"s": TIME_BOUNDS_S, "{token}": TOKEN_BOUNDS, "By": BYTE_BOUNDS, "{item}": ITEM_BOUNDS}
_GEN_AI = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
_PROVIDERS = {
    "openai-chat": "openai",
    "openai-embeddings": "openai",
    "gemini": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
}
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9]+")


class Instrument(msgspec.Struct, frozen=True):
    """One thing that is reported.

    `labels` are given with each value; those in `constants` are the same for all that one client reports. `together` is what the
    values of a gauge make where several become one, as of two clients of a role: of numbers of things the ``sum``, of times and
    shares the ``greatest``. A ``state`` is 1 where any client says so; Beam, which has no endpoints, shows how many.
    """

    name: str
    kind: Kind
    unit: Unit
    labels: tuple[str, ...]
    description: str
    together: Together = "sum"

    @property
    def constants(self) -> tuple[str, ...]:
        """The labels that a client knows for all its values."""
        return ("role", *_GEN_AI) if self.name.startswith("gen_ai.") else ("role",)

    @property
    def all_labels(self) -> tuple[str, ...]:
        """Every label, in the order of a series' values."""
        return (*self.constants, *self.labels)

    @property
    def bounds(self) -> tuple[float, ...]:
        """The upper bounds of a histogram's buckets, in the instrument's unit; the last bucket has none."""
        return _BOUNDS[self.unit]

    @property
    def prometheus_name(self) -> str:
        """The name of the metric family in Prometheus, without the ``_total`` that a counter's samples end with."""
        unit = {"s": "_seconds", "By": "_bytes", "1": "_ratio", "1/min": "_per_minute"}.get(self.unit, "")
        return _underscored(self.name) + unit

    @property
    def beam_factor(self) -> int:
        """What a value is multiplied by for Beam, which takes whole numbers: milliseconds for seconds, per cent for shares."""
        return {"s": 1000, "1": 100}.get(self.unit, 1)

    def beam_name(self, values: tuple[str, ...], ending: str = "", *, unit: bool = True) -> str:
        """The name in Beam of the series with these `values` of `labels`: without the endpoint, with its unit or without.

        It has only what Flink's and Prometheus' names may have, so neither changes it.
        """
        shown = [value for label, value in zip(self.labels, values, strict=True) if label != ENDPOINT]
        last = {"s": "ms", "By": "bytes", "1": "percent"}.get(self.unit, "") if unit else ""
        return "_".join(_underscored(part) for part in (self.name, *shown, ending, last) if part)


def provider_of(protocol: str) -> str:
    """Return what the conventions call the provider of a wire protocol; where they have no name for it, the protocol's own.

    It says whose form the requests have, as the conventions want it, not who runs the server.
    """
    return _PROVIDERS.get(protocol, protocol)


def quantile_name(share: float) -> str:
    """``p95`` for 0.95."""
    return f"p{share * 100:g}"


def prometheus_label(label: str) -> str:
    """A label as Prometheus takes it."""
    return label.replace(".", "_")


def _underscored(text: str) -> str:
    return _NOT_IN_A_NAME.sub("_", text)


OPERATION_DURATION = Instrument(
    "gen_ai.client.operation.duration",
    "histogram",
    "s",
    ("error.type",),
    "One call, from the question to its outcome: waits, attempts and back-offs included. `error.type` is empty for a reply.",
)
TOKEN_USAGE = Instrument(
    "gen_ai.client.token.usage",
    "histogram",
    "{token}",
    ("gen_ai.token.type",),
    "Tokens of one request as the server reports them; the type is `input` or `output`.",
)
TIME_TO_FIRST_CHUNK = Instrument(
    "gen_ai.client.operation.time_to_first_chunk",
    "histogram",
    "s",
    (),
    "Of a streamed reply: from the request to the first chunk.",
)
TIME_PER_OUTPUT_CHUNK = Instrument(
    "gen_ai.client.operation.time_per_output_chunk",
    "histogram",
    "s",
    (),
    "Of a streamed reply: from one chunk to the next.",
)

CALLS_IN_FLIGHT = Instrument("inference_calls_in_flight", "gauge", "{call}", (), "Calls that have no outcome yet.")
CALLS_WAITING = Instrument("inference_calls_waiting", "gauge", "{call}", (), "Calls that wait for a permit.")
OUTCOMES = Instrument(
    "inference_outcomes",
    "counter",
    "{call}",
    ("kind",),
    "Calls with an outcome: `ok`, or the kind of the error that is in the dead letter.",
)
QUEUE_WAIT = Instrument(
    "inference_queue_wait", "histogram", "s", (), "How long an attempt waited for a permit and an endpoint."
)
LOOP_LAG = Instrument(
    "inference_loop_lag",
    "gauge",
    "s",
    (),
    "How long a reply waits for the client's own event loop and Python's interpreter.",
    together="greatest",
)

ATTEMPTS = Instrument(
    "inference_attempts",
    "counter",
    "{request}",
    ("endpoint", "outcome"),
    "Requests by how they ended: `ok`, `throttled`, `server-error`, `timeout`, `unreachable`, `broken-reply`, `refused`, `cancelled`.",
)
ATTEMPT_DURATION = Instrument(
    "inference_attempt_duration", "histogram", "s", ("endpoint",), "One request, from sending it to its end."
)
REQUEST_SIZE = Instrument("inference_request_size", "histogram", "By", (), "The body of one request as it is sent.")
RESPONSE_SIZE = Instrument("inference_response_size", "histogram", "By", (), "The body of one answer as it came.")
STALLS = Instrument(
    "inference_stream_stalls", "counter", "{request}", (), "Streams that were cut because no chunk came for too long."
)

RETRIES = Instrument(
    "inference_retries",
    "counter",
    "{request}",
    ("reason",),
    "Repeats of an attempt, by how the attempt before had ended.",
)
BACK_OFF = Instrument("inference_back_off", "histogram", "s", (), "The wait before a repeat.")
RETRY_BUDGET = Instrument("inference_retry_budget", "gauge", "{request}", (), "Repeats that may be sent now.")

HEDGES = Instrument(
    "inference_hedges",
    "counter",
    "{request}",
    ("event",),
    "Second requests: `sent`; of those `won` where theirs was the reply; `withheld` where the budget was empty.",
)
HEDGE_BUDGET = Instrument("inference_hedge_budget", "gauge", "{request}", (), "Second requests that may be sent now.")
HEDGE_DELAY = Instrument(
    "inference_hedge_delay",
    "gauge",
    "s",
    (),
    "After how long a second request is sent; 0 while none is.",
    together="greatest",
)

CONCURRENCY_LIMIT = Instrument(
    "inference_concurrency_limit", "gauge", "{request}", ("endpoint",), "Requests that may be in flight at once."
)
REQUESTS_IN_FLIGHT = Instrument(
    "inference_requests_in_flight", "gauge", "{request}", ("endpoint",), "Requests without an answer yet."
)
ENDPOINT_STATE = Instrument(
    "inference_endpoint_state",
    "gauge",
    "{endpoint}",
    ("endpoint", "state"),
    "1 for the state of the endpoint, 0 for the others: `ready`, `slow-start`, `waiting` (`Retry-After`), `ejected`, or `open`.",
    together="state",
)
BREAKER_STATE = Instrument(
    "inference_breaker_state",
    "gauge",
    "{endpoint}",
    ("endpoint", "state"),
    "1 for the state of the breaker: `closed`, `open`, `half-open`; 0 for the others.",
    together="state",
)
ENDPOINT_LATENCY = Instrument(
    "inference_endpoint_latency",
    "gauge",
    "s",
    ("endpoint",),
    "The peak-sensitive average of reply times that endpoints are chosen by; 0 before the first reply.",
    together="greatest",
)
EJECTIONS = Instrument(
    "inference_ejections",
    "counter",
    "{endpoint}",
    ("endpoint", "reason"),
    "Times that an endpoint was left out: for `errors`, `broken-replies`, or for being `slow`, `silent` or `refusing`.",
)
PROBES = Instrument(
    "inference_probes",
    "counter",
    "{request}",
    ("endpoint", "result"),
    "Health probes of endpoints that are left out, by what they found: `up` or `down`.",
)

BATCH_SIZE = Instrument("inference_batch_size", "histogram", "{item}", (), "Items in one request.")
BATCH_FILL = Instrument(
    "inference_batch_fill",
    "gauge",
    "1",
    (),
    "Items of the batches sent so far, as a share of the most that fit.",
    together="greatest",
)
BATCHES = Instrument("inference_batches", "counter", "{request}", ("reason",), "Batches by what closed them.")
CACHE_REQUESTS = Instrument(
    "inference_cache_requests",
    "counter",
    "{call}",
    ("result",),
    "Calls that asked the cache: `hit`, `miss`, or `shared` with an equal call under way.",
)
CACHE_SIZE = Instrument("inference_cache_size", "gauge", "By", (), "What the cache holds in this process.")
CACHE_EVICTIONS = Instrument(
    "inference_cache_evictions",
    "counter",
    "{entry}",
    (),
    "Replies that the cache in this process dropped before their time, for want of room.",
)
CACHE_FAILURES = Instrument(
    "inference_cache_failures",
    "counter",
    "{request}",
    (),
    "Requests to the shared cache that failed or took too long; a call goes on as if nothing were cached.",
)
FALLBACKS = Instrument(
    "inference_fallbacks",
    "counter",
    "{call}",
    ("to", "reason"),
    "Calls that went on to another role or a fixed value, by the kind of the error before.",
)
QUOTA_WAIT = Instrument("inference_quota_wait", "histogram", "s", (), "How long an attempt waited for its quota.")
QUOTA_RATE = Instrument(
    "inference_quota_rate", "gauge", "1/min", ("of",), "What the quota allows a minute, of `requests` and of `tokens`."
)
QUOTA_REFUSALS = Instrument(
    "inference_quota_refusals", "counter", "{request}", ("endpoint",), "Answers that said the quota is used up (429)."
)
QUOTA_LEASES_LOST = Instrument(
    "inference_quota_leases_lost",
    "counter",
    "{lease}",
    ("endpoint",),
    "Times that a shared quota could not be leased any more, and the share of the settings took over.",
)

INSTRUMENTS = tuple(value for value in list(globals().values()) if isinstance(value, Instrument))
"""Every instrument, in the order of this file."""

NOT_ADDED_UP = frozenset(one.name for one in INSTRUMENTS if one.together != "sum")
"""The names of the gauges of which the greatest value is shown where series have equal labels."""
