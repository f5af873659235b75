"""Round-trip times made comparable between short and long replies: a load index that the number of tokens does not move.

A language model server reads the prompt once and then makes the reply token by token, so for one load::

    rtt ≈ a + b · output tokens           (a: network, queue and prefill; b: time per output token)

Load multiplies both (continuous batching shares one machine among all). What is learnt here is only their proportion. With
T the tokens of the first reply, and f the share of a in a + b·T::

    comparable(rtt, tokens) = rtt / (f + (1 - f) · tokens / T)

that is: what a reply of T tokens would have taken. T never changes, or a change of the mix of lengths would look like load.
f follows from least squares over about the last `memory` replies, older ones fading (exponential weights); it is 0.5 until
two lengths were seen, which bounds the error of the guess.

Limits: load that lengthens a alone (a queue before the server) or b alone (decoding) is seen in proportion to its share.
Prompts of very different lengths are part of the noise. A reply without a number of tokens is taken as it is.

Source: this project's. The linear model is the usual one of serving benchmarks, time to first token + tokens · time per
output token (Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", OSDI 2024).
"""

from __future__ import annotations

_MEMORY = 300
_GUESS = 0.5
_LEAST_SPREAD = 0.01
"""Below this variance of tokens / T all replies are as long as each other, and f does not matter."""


class ReplyLength:
    """The proportion of fixed time to time per token, learnt from replies; see the module for the formula."""

    __slots__ = ("_count", "_fade", "_rtt", "_rtt_tokens", "_share", "_tokens", "_tokens_squared", "_typical")

    def __init__(self, memory: int = _MEMORY) -> None:
        self._fade = 1.0 - 1.0 / memory
        self._typical = 0.0
        self._share = _GUESS
        self._count = self._tokens = self._rtt = self._tokens_squared = self._rtt_tokens = 0.0

    @property
    def fixed_share(self) -> float:
        """f: the share of a reply of typical length that does not depend on its length."""
        return self._share

    def comparable_s(self, rtt_s: float, output_tokens: int | None) -> float:
        """Return the seconds that a reply of typical length would have taken in the same load, and learn from this one."""
        if output_tokens is None or output_tokens <= 0:
            return rtt_s
        if not self._typical:
            self._typical = float(output_tokens)
        length = output_tokens / self._typical
        self._learn(rtt_s, length)
        return rtt_s / (self._share + (1.0 - self._share) * length)

    def _learn(self, rtt_s: float, length: float) -> None:
        fade = self._fade
        self._count = count = self._count * fade + 1.0
        self._tokens = self._tokens * fade + length
        self._rtt = self._rtt * fade + rtt_s
        self._tokens_squared = self._tokens_squared * fade + length * length
        self._rtt_tokens = self._rtt_tokens * fade + rtt_s * length
        mean_length, mean_rtt = self._tokens / count, self._rtt / count
        spread = self._tokens_squared / count - mean_length * mean_length
        if spread < _LEAST_SPREAD or mean_rtt <= 0.0:
            return
        per_length = max(0.0, (self._rtt_tokens / count - mean_length * mean_rtt) / spread)
        fixed = max(0.0, mean_rtt - per_length * mean_length)
        self._share = fixed / (fixed + per_length) if fixed + per_length > 0.0 else 1.0
