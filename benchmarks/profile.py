"""How the benchmark's model server behaves: pure functions of a request's key and of the time that is passed in.

Latency. Log-normal, median · exp(σ · z), where z, standard normal, is a hash of seed and key, so that every contestant meets the
same latency for the same event. Defaults: 0.2 s and 0.6, which gives a p99 of four times the median, as hosted language models have.

Stragglers. A share of the keys, picked by a hash, takes `straggler_s` instead.

Quota. A token bucket of `quota_per_s` tokens a second that holds those of one second; a request without a token is refused (429)
and told to come back after a second.

Outage. From `outage_at_s` after the first request, for `outage_for_s`, nobody listens, and every connection is cut.
"""

from __future__ import annotations

import math

import msgspec

from transforms.errors import SettingsError
from transforms.remote.model_double import latency_s


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The behaviour of the model server. A `quota_per_s` of 0 is no quota, an `outage_for_s` of 0 no outage.

    Raises SettingsError for values that make no sense.
    """

    seed: int = 0
    median_s: float = 0.2
    sigma: float = 0.6
    straggler_share: float = 0.0
    straggler_s: float = 10.0
    quota_per_s: float = 0.0
    outage_at_s: float = 0.0
    outage_for_s: float = 0.0

    def __post_init__(self) -> None:
        """Raise SettingsError for values that make no sense."""
        for name in ("median_s", "sigma", "straggler_s", "quota_per_s", "outage_at_s", "outage_for_s"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0.0:
                raise SettingsError(f"{name} is {value:g}; it must be a number from 0 up.")
        if not 0.0 <= self.straggler_share < 1.0:
            raise SettingsError(f"straggler_share is {self.straggler_share:g}; it must be from 0 up and below 1.")

    def straggles(self, key: str) -> bool:
        """Whether the request with this key is one of the slow ones."""
        # A latency's own hash, of a key that no request has: above the quantile lie exactly the share.
        return self.straggler_share > 0.0 and latency_s(self.seed, f"straggler {key}", 1_000.0, 1.0) > self._bound()

    def latency_s(self, key: str) -> float:
        """How long the model takes for the request with this key, in seconds."""
        if self.straggles(key):
            return self.straggler_s
        return latency_s(self.seed, key, self.median_s * 1_000.0, self.sigma)

    def is_out(self, since_first_s: float) -> bool:
        """Whether nobody listens, so many seconds after the first request."""
        return self.outage_at_s <= since_first_s < self.outage_at_s + self.outage_for_s

    def _bound(self) -> float:
        from statistics import NormalDist  # noqa: PLC0415 - only where stragglers were asked for

        return math.exp(NormalDist().inv_cdf(1.0 - self.straggler_share))


class Quota:
    """A token bucket of `per_s` tokens a second that holds those of one second, full at first."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._tokens = per_s
        self._at_s: float | None = None

    def take(self, now_s: float) -> bool:
        """Take a token; False where there is none. Without a rate there always is one."""
        if not self._per_s:
            return True
        passed_s = 0.0 if self._at_s is None else now_s - self._at_s
        self._at_s = now_s
        self._tokens = min(self._per_s, self._tokens + passed_s * self._per_s)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
