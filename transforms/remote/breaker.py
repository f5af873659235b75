"""The circuit breaker of one endpoint: it stops sending to a server that fails, and finds out when it works again.

Closed: everything may be sent. It opens when `consecutive` results in a row are failures, or when of the results of the
last `window_s` seconds, `least_volume` or more, the share `failure_share` or more are failures.

Open: nothing may be sent for ``min(longest_open_s, open_s · 2ⁿ)`` seconds, n being how often it had opened before since it
was last closed for a whole `window_s`. Both times are shortened to a quarter of an event's `deadline_s` where that is less
(`ModelSettings.endpoint_pool`).

Half-open, after that: `probes` requests at once may be sent. When so many have succeeded it is closed; at the first
failure it is open again, for longer, counted from when the latest probe was sent. Probes that have had no answer for
`longest_open_s` give up their places, and as many more may be sent: a server that hangs and then recovers is looked at as often as
one that fails. A late success of theirs still counts; a late failure says nothing of the server that the newer ones ask.

The result of a request that was sent before the latest change of state says nothing about the server of now, and is left
out: else the late timeouts of one outage would open the breaker again and again after it.

Source: Michael Nygard, "Release It!" (the pattern and its three states); Netflix's Hystrix and resilience4j (share over a
window with a least volume, several probes). The doubling is that of exponential back-off. There is no jitter: a probe is so
little traffic that it does no harm when many processes send theirs at once. New places for probes that hang are this project's.

Defaults: 5 failures in a row, or half of 20 results in 10 s; open for 1 s, 10 s at the longest; 2 probes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from transforms.remote import ranges
from transforms.remote.window import SlidingCount

BreakerState = Literal["closed", "open", "half-open"]

PROBE_WAIT_S = 0.1
"""After how many seconds to look again while every probe of a half-open breaker is under way: nobody knows its end."""

_GREATEST_POWER = 60


class BreakerSettings(msgspec.Struct, frozen=True):
    """When a breaker opens and closes; see the module for the formula. Times are seconds."""

    consecutive: int = 5
    failure_share: float = 0.5
    window_s: float = 10.0
    least_volume: int = 20
    open_s: float = 1.0
    longest_open_s: float = 10.0
    probes: int = 2

    def __post_init__(self) -> None:
        """Raise SettingsError for a number out of its range, or a back-off that begins above its cap."""
        ranges.positive(consecutive=self.consecutive, least_volume=self.least_volume, probes=self.probes)
        ranges.positive(window_s=self.window_s, open_s=self.open_s)
        ranges.share(failure_share=self.failure_share)
        ranges.rising(open_s=self.open_s, longest_open_s=self.longest_open_s)


class Breaker:
    """The breaker of one endpoint. Times are monotonic seconds.

    Ask `allows` before a request; then call `on_start`, and exactly once `on_result` or `on_cancel`, with the turn that
    `on_start` gave. Without a turn they count for the state of now, whenever the request was sent.
    """

    def __init__(self, settings: BreakerSettings) -> None:
        self.settings = settings
        self._state: BreakerState = "closed"
        self._turn = 0
        self._first_turn = 0  # of the present state, which has more than one where probes hang
        self._probed_s = 0.0
        self._failures = SlidingCount(settings.window_s)
        self._results = SlidingCount(settings.window_s)
        self._in_a_row = 0
        self._openings = 0
        self._opens_s = 0.0
        self._closed_s = float("-inf")
        self._under_way = 0
        self._succeeded = 0

    @property
    def state(self) -> BreakerState:
        """The state at the time that any method was last told."""
        return self._state

    def allows(self, now_s: float) -> bool:
        """Return whether a request may be sent now."""
        self._advance(now_s)
        return self._state == "closed" or (self._state == "half-open" and self._under_way < self.settings.probes)

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until a request may be sent, 0 where it may now; `PROBE_WAIT_S` where nobody can know."""
        if self.allows(now_s):
            return 0.0
        return self._opens_s - now_s if self._state == "open" else PROBE_WAIT_S

    def on_start(self, now_s: float) -> int:
        """Note that a request is sent, and return the turn of the breaker that it belongs to."""
        self._advance(now_s)
        self._under_way += 1
        self._probed_s = now_s
        return self._turn

    def on_result(self, now_s: float, ok: bool, turn: int | None = None) -> None:
        """Note what became of a request: `ok` where the server did its work."""
        if not self._ended(now_s, turn):
            return
        if self._state == "half-open":
            self._judge_probe(now_s, ok, is_late=turn is not None and turn != self._turn)
        elif self._state == "closed":
            self._judge(now_s, ok)

    def on_cancel(self, now_s: float, turn: int | None = None) -> None:
        """Note that a request ended without a word about the server: it frees its place among the probes."""
        self._ended(now_s, turn)

    def half_open(self, now_s: float) -> None:
        """End the back-off now: something else, such as a health probe, has found the server well."""
        self._advance(now_s)
        if self._state == "open":
            self._change("half-open")

    def _advance(self, now_s: float) -> None:
        """Become half-open when the back-off is over; there, give the places of probes that hang to others."""
        if self._state == "open" and now_s >= self._opens_s:
            self._change("half-open")
        elif self._state == "half-open" and self._under_way >= self.settings.probes and self._hangs(now_s):
            self._turn += 1
            self._under_way = 0

    def _hangs(self, now_s: float) -> bool:
        """Whether the latest probe was sent so long ago that another look is due."""
        return now_s - self._probed_s >= self.settings.longest_open_s

    def _ended(self, now_s: float, turn: int | None) -> bool:
        """Take a request off those under way; whether it was sent in the present state."""
        self._advance(now_s)
        if turn is not None and turn < self._first_turn:
            return False
        if turn is None or turn == self._turn:
            self._under_way = max(0, self._under_way - 1)
        return True

    def _judge(self, now_s: float, ok: bool) -> None:
        self._results.add(now_s)
        self._in_a_row = 0 if ok else self._in_a_row + 1
        if ok:
            return
        self._failures.add(now_s)
        if self._in_a_row >= self.settings.consecutive or self._share_reached(now_s):
            self._open(now_s, now_s)

    def _share_reached(self, now_s: float) -> bool:
        results = self._results.total(now_s)
        share = self.settings.failure_share
        return results >= self.settings.least_volume and self._failures.total(now_s) >= share * results

    def _judge_probe(self, now_s: float, ok: bool, *, is_late: bool) -> None:
        if not ok:
            if not is_late:
                self._open(now_s, self._probed_s)
            return
        self._succeeded += 1
        if self._succeeded >= self.settings.probes:
            self._closed_s = now_s
            self._change("closed")

    def _open(self, now_s: float, since_s: float) -> None:
        """Open for a back-off that began at `since_s`; one that is over by now lets probes through at once."""
        if self._state == "closed" and now_s - self._closed_s > self.settings.window_s:
            self._openings = 0
        back_off_s = self.settings.open_s * 2.0 ** min(self._openings, _GREATEST_POWER)
        self._opens_s = since_s + min(self.settings.longest_open_s, back_off_s)
        self._openings += 1
        self._change("open")

    def _change(self, state: BreakerState) -> None:
        """Enter a state; what was counted in the last one is forgotten."""
        self._state = state
        self._turn += 1
        self._first_turn = self._turn
        self._in_a_row = self._under_way = self._succeeded = 0
        self._results.clear()
        self._failures.clear()
