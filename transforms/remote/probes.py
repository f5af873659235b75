"""Health probes: endpoints that are not usable are asked whether they are up, beside the events.

An endpoint that is ejected or whose breaker is open is due every `every_s` seconds, and not while a probe of it is under way
or its server has asked to be left alone. After `successes` good probes in a row its breaker becomes half-open, and an ejection
for failures that were no connection or no answer ends: a probe can tell that these have passed. It cannot tell for
errors, broken replies, slowness and refusals, so their ejections run to their end. A bad probe keeps an ejected endpoint out for
two more times of `every_s`, so until the next one has had time to end. An answer to a probe that asks to be left alone holds like
that to any request: who sends the probe closes the endpoint for so long.

Defaults: every second, 2 good probes; the path is the protocol's own.

Source: active health checking beside outlier detection as in Envoy; here only those endpoints are probed of which the
events themselves do not tell.
"""

from __future__ import annotations

import msgspec

from transforms.errors import SettingsError
from transforms.remote import ranges
from transforms.remote.pool import EndpointState, Pool

_SHOWN_BY_A_PROBE = frozenset({"unreachable", "timeout"})


class ProbeSettings(msgspec.Struct, frozen=True):
    """How often an endpoint is probed, in seconds, and after how many good probes it is taken back.

    `path`, under the endpoint's base URL, answers 2xx to GET while it works; None is the protocol's own.
    """

    every_s: float = 1.0
    successes: int = 2
    path: str | None = None

    def __post_init__(self) -> None:
        """Raise SettingsError for a number that is not above 0."""
        ranges.positive(every_s=self.every_s, successes=self.successes)
        if self.path is not None and not self.path.startswith("/"):
            raise SettingsError(f"path is {self.path}; it must begin with a slash, as in /health.")


class ProbeSchedule:
    """Says which endpoints of a pool are to be probed, and tells the pool what came of it. Times are monotonic seconds."""

    def __init__(self, pool: Pool, settings: ProbeSettings) -> None:
        self.settings = settings
        self._pool = pool
        self._next_s: dict[str, float] = {}
        self._under_way: set[str] = set()
        self._successes: dict[str, int] = {}

    def due(self, now_s: float) -> list[EndpointState]:
        """Return the endpoints to probe now; each is not due again until its `on_result`."""
        unusable = [state for state in self._pool.endpoints if state.state(now_s) in ("ejected", "open")]
        self._forget_others({state.url for state in unusable})
        found = [state for state in unusable if self._is_due(state, now_s)]
        self._under_way.update(state.url for state in found)
        return found

    def wait_s(self, now_s: float) -> float:
        """Return after how many seconds to ask `due` again: at the next probe, and after `every_s` at the latest."""
        times = [next_s for url, next_s in self._next_s.items() if url not in self._under_way]
        return max(0.0, min([self.settings.every_s, *(next_s - now_s for next_s in times)]))

    def on_result(self, now_s: float, state: EndpointState, ok: bool) -> None:
        """Note what a probe of `state` found; to be called exactly once for each one that was due."""
        self._under_way.discard(state.url)
        self._next_s[state.url] = now_s + self.settings.every_s
        self._successes[state.url] = self._successes.get(state.url, 0) + 1 if ok else 0
        if self._successes[state.url] >= self.settings.successes:
            self._take_back(now_s, state)
        elif not ok and state.ejection.wait_s(now_s) > 0.0:
            state.ejection.prolong(now_s + 2.0 * self.settings.every_s)

    def _is_due(self, state: EndpointState, now_s: float) -> bool:
        return state.url not in self._under_way and self._next_s.get(state.url, now_s) <= now_s

    def _forget_others(self, urls: set[str]) -> None:
        """Endpoints that are usable again begin anew at their next trouble."""
        for url in [url for url in self._next_s if url not in urls]:
            del self._next_s[url]
            self._successes.pop(url, None)

    def _take_back(self, now_s: float, state: EndpointState) -> None:
        self._successes[state.url] = 0
        state.breaker.half_open(now_s)
        reason = state.ejection.reason
        if reason == "silent" or (reason == "errors" and state.last_failure in _SHOWN_BY_A_PROBE):
            state.recall(now_s)
