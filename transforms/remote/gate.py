"""The gate of an endpoint: closed while its server asked to be left alone (``Retry-After``)."""

from __future__ import annotations


class EndpointGate:
    """Says when requests may be sent to one endpoint. Times are seconds of the client's monotonic clock."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opens_s = 0.0

    def close_until(self, opens_s: float) -> None:
        """Send nothing before `opens_s`. A gate already closed for longer stays so."""
        self._opens_s = max(self._opens_s, opens_s)

    def wait_s(self, now_s: float) -> float:
        """Return for how many seconds from `now_s` the gate is still closed; 0 when it is open."""
        return max(0.0, self._opens_s - now_s)
