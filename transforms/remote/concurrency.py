"""How many requests may be in flight to one endpoint: limits that find it out, and one that is told.

``aimd``, the default, after Vector's adaptive request concurrency. Results are gathered into rounds. A round ends once
`round_rtts` typical round-trip times have passed and it holds as many replies as the limit is high (5 to 100). It has
a mean m of the logarithms of comparable round-trip times (`reply_length.py`), and there is a reference r with a
deviation s of single ones::

    threshold = max(log(tolerance), deviation_scale · s / √replies)
    slower    = m > r + threshold
    pressed   = a 429, or `overloaded_share` or more of the results (two at least) were timeouts or 5xx
    pressed or slower                                 limit · decrease_ratio, rounded down
    m < r + threshold / 2, and the limit was reached  limit + step

The step is as large as the limit until the first decrease (slow start, RFC 5681), and after an outage up to where it was;
then 1, and more the longer nothing spoke against it (doubled every `patience` increases, an eighth of the limit at
most; the convex part of CUBIC, RFC 9438).

What differs from Vector's, and why. (1) Logarithms: one straggler of 50 times the median moves no mean. (2) Vector's
reference follows the last few rounds, so it follows a load that grows slowly, and the limit never ends to rise. Here r falls
with every faster round, and rises only in rounds whose limit is not above the one at which it was found: with more
in flight a longer time may be load. (3) A reference that stays makes a server that has become slower for another reason
look loaded for ever. So a decrease is proved: once the limit was cut to `proof_ratio` of where it began, and the time fell by
less than half of what load would explain, the decrease is undone and r set anew (as a spurious timeout is undone by
Eifel, RFC 4015). (4) So is the end of a slow start by a reference of fewer than 100 replies, where one of 100 would not have ended
it: the first replies of all are the quick ones. (5) What was sent before the last decrease does not press for another one. (6) The
share of timeouts: a server that loses one request in a hundred is not overloaded.

``gradient``, after Gradient2 of Netflix's concurrency-limits (defaults: smoothing 0.2, queue 4, long window 600, tolerance
1.5), once a round, and only where half of the limit was used::

    gradient = clamp(tolerance · long / m, 0.5, 1)        (long: average over `long_window` replies, fading)
    limit    = (1 - smoothing) · limit + smoothing · (limit · gradient + queue)

Netflix's averages are arithmetic; ours are of logarithms. Netflix's ignores drops; here a pressed round multiplies the limit by
`decrease_ratio`. Slow start as above.

``fixed`` stays at `initial`.

A server whose replies take half a minute says nothing for so long, and a start by rounds would take minutes. So before the first
result a limit is doubled each second in which somebody waits for it (`press`): a slow server begins with `most` at worst.

A round-trip time is the server's and the network's: what the client's own event loop adds is taken off before (`loop_lag.py`).

Results that are cancelled, or failed for their content, say nothing. The limit is never below `least` or above `most`, and
where callers do not reach it, it does not grow. Rounds need no timer: a limit moves with the next result.

Defaults: ``aimd`` from 8, 1 to 256; decrease 0.9, tolerance 1.3, deviation scale 2.5, proof 0.7, overloaded share 0.1, rounds of 1.5
round-trip times, patience 3.

The default was chosen by ``python -m benchmarks.limits`` (docs/adr/0012-concurrency-limits.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from transforms.errors import SettingsError
from transforms.remote import ranges
from transforms.remote.reply_length import ReplyLength

Algorithm = Literal["aimd", "gradient", "fixed"]
"""How a limit is found; see the module."""

Verdict = Literal["ok", "throttled", "overloaded", "failed", "cancelled"]
"""How a request ended: ``throttled`` is 429, ``overloaded`` a timeout or 5xx, ``failed`` a fault of its own content."""

_OF_ONE: Mapping[Algorithm, tuple[str, ...]] = {
    "aimd": ("tolerance", "deviation_scale", "proof_ratio", "patience"),
    "gradient": ("gradient_tolerance", "smoothing", "queue", "long_window"),
}
"""The settings that one algorithm alone uses."""

_OF_ROUNDS = ("decrease_ratio", "overloaded_share", "round_rtts")
"""Those that all but ``fixed`` use."""

_FEWEST, _ENOUGH, _HEAVIEST = 5, 100, 500
_FOLLOW = 0.3
_START_S = 1.0
_ESTABLISHED = 300
_TRUSTED = 100
_GREATEST_SHARE_OF_STEP = 8


class ConcurrencySettings(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of a limit and how it is found; see the module for the formulas. Only `fixed` uses `initial` alone."""

    algorithm: Algorithm = "aimd"
    initial: int = 8
    least: int = 1
    most: int = 256
    decrease_ratio: float = 0.9
    tolerance: float = 1.3
    deviation_scale: float = 2.5
    proof_ratio: float = 0.7
    overloaded_share: float = 0.1
    round_rtts: float = 1.5
    patience: int = 3
    gradient_tolerance: float = 1.5
    smoothing: float = 0.2
    queue: int = 4
    long_window: int = 600

    def __post_init__(self) -> None:
        """Raise SettingsError for a number out of its range or of another algorithm, or bounds that are in no order."""
        ranges.positive(least=self.least, initial=self.initial, most=self.most)
        ranges.rising(least=self.least, initial=self.initial, most=self.most)
        ranges.positive(deviation_scale=self.deviation_scale, round_rtts=self.round_rtts, patience=self.patience)
        ranges.positive(queue=self.queue, long_window=self.long_window)
        ranges.share(overloaded_share=self.overloaded_share, smoothing=self.smoothing)
        for name in ("decrease_ratio", "proof_ratio"):
            value = getattr(self, name)
            if not 0.0 < value < 1.0:
                raise SettingsError(
                    f"{name} is {value:g}; a limit is cut to that share, so it must lie between 0 and 1."
                )
        if self.algorithm == "aimd":
            ranges.rising(proof_ratio=self.proof_ratio, decrease_ratio=self.decrease_ratio)
        for name in ("tolerance", "gradient_tolerance"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 1.0):
                raise SettingsError(
                    f"{name} is {value:g}; at the usual latency it must not act, so it must be 1 or more."
                )
        self._check_algorithm()

    def _check_algorithm(self) -> None:
        """Refuse what is set and has no effect. The bounds are for all: those of ``fixed`` may be needed for its `initial`."""
        without: dict[str, str] = {
            name: other for other, names in _OF_ONE.items() if other != self.algorithm for name in names
        }
        if self.algorithm == "fixed":
            without |= dict.fromkeys(_OF_ROUNDS, "aimd and gradient")
        for field in msgspec.structs.fields(self):
            if field.name in without and getattr(self, field.name) != field.default:
                raise SettingsError(
                    f"{field.name} is of the algorithm {without[field.name]}, and this is {self.algorithm}; leave it out."
                )


class Sample(msgspec.Struct, frozen=True):
    """What one request said. `in_flight` is counted when it was started, itself included; times are seconds."""

    now_s: float
    rtt_s: float
    in_flight: int
    verdict: Verdict
    output_tokens: int | None = None


class Limit(Protocol):
    """How many requests may be in flight at present."""

    @property
    def limit(self) -> int:
        """The present bound; 1 or more."""

    def press(self, now_s: float) -> None:
        """Learn that somebody waits because as many requests are in flight as may be."""

    def observe(self, sample: Sample) -> None:
        """Learn from the end of one request."""


class FixedLimit:
    """A limit that is told."""

    def __init__(self, settings: ConcurrencySettings) -> None:
        self._limit = settings.initial

    @property
    def limit(self) -> int:
        """The bound, always the same."""
        return self._limit

    def press(self, now_s: float) -> None:
        """Learn nothing."""

    def observe(self, sample: Sample) -> None:
        """Learn nothing."""


class AimdLimit:
    """Additive increase, multiplicative decrease by round-trip times and refusals; see the module."""

    def __init__(self, settings: ConcurrencySettings) -> None:
        self._settings = settings
        self._limit = settings.initial
        self._round = _Round(settings)
        self._reference = _Reference()
        self._growth = _Growth(settings)
        self._proof: _Proof | None = None
        self._suspicious = False
        self._start = _Start()
        self._ended_start: _Proof | None = None

    @property
    def limit(self) -> int:
        """The present bound."""
        return self._limit

    def press(self, now_s: float) -> None:
        """Before the first result, double the limit each second."""
        if self._start.doubles(now_s):
            self._limit = min(self._settings.most, 2 * self._limit)

    def observe(self, sample: Sample) -> None:
        """Add a result to the round; at its end, move the limit."""
        self._start.end(sample.verdict)
        if self._round.add(sample, self._limit):
            self._move(sample.now_s)
            self._round.begin(sample.now_s)

    def _move(self, now_s: float) -> None:
        ended, reference = self._round, self._reference
        if ended.pressed():
            self._proof = self._ended_start = None
            self._cut(now_s)
            return
        if not ended.replies:
            return
        mean = ended.mean
        threshold = ended.threshold(reference.weight)
        if reference.weight and mean > reference.log_s + threshold:
            self._slower(now_s, mean)
            return
        reference.follow(mean, ended.replies, self._limit)
        self._proof = None
        self._suspicious = False
        if self._ended_start is not None and reference.weight >= _TRUSTED:
            self._judge_start(self._ended_start, threshold)
        if ended.reached and mean < reference.log_s + threshold / 2.0:
            self._limit = min(self._settings.most, self._limit + self._growth.step(self._limit))

    def _slower(self, now_s: float, mean: float) -> None:
        if not self._suspicious:
            self._suspicious = True
            return
        if self._proof is None:
            self._proof = _Proof(self._limit, mean, self._growth.state)
            if self._growth.slow_start(self._limit) and self._reference.weight < _TRUSTED:
                self._ended_start = _Proof(self._limit, mean, self._growth.state)
        if not self._proof.settled:
            self._proof.mean = max(self._proof.mean, mean)  # what a change did may still be on its way
        if self._limit > max(self._settings.least, int(self._proof.limit * self._settings.proof_ratio)):
            self._cut(now_s)
        elif not self._proof.settled:
            self._proof.settled = True  # what ended in this round was in part sent under the higher limit
        elif self._proof.helped(self._limit, mean):
            self._proof = _Proof(self._limit, mean, self._growth.state)
            self._cut(now_s)
        else:
            self._reference.set(mean, self._round.replies, self._proof.limit)
            self._limit, self._growth.state = self._proof.limit, self._proof.growth
            self._proof = None

    def _judge_start(self, ended: _Proof, threshold: float) -> None:
        """Take slow start up again where what ended it is not slower than the reference that is known by now."""
        self._ended_start = None
        if ended.mean <= self._reference.log_s + threshold and self._limit < ended.limit:
            self._limit, self._growth.state = ended.limit, ended.growth

    def _cut(self, now_s: float) -> None:
        fallen = min(self._growth.end(self._limit), int(self._limit * self._settings.decrease_ratio))
        self._limit = max(self._settings.least, fallen)
        self._round.ignore_before_s = now_s


class GradientLimit:
    """The limit follows the ratio of usual to present round-trip times; see the module."""

    def __init__(self, settings: ConcurrencySettings) -> None:
        self._settings = settings
        self._estimate = float(settings.initial)
        self._round = _Round(settings)
        self._growth = _Growth(settings)
        self._long: float | None = None
        self._start = _Start()

    @property
    def limit(self) -> int:
        """The present bound."""
        return int(self._estimate)

    def press(self, now_s: float) -> None:
        """Before the first result, double the limit each second."""
        if self._start.doubles(now_s):
            self._set(2.0 * self._estimate)

    def observe(self, sample: Sample) -> None:
        """Add a result to the round; at its end, move the limit."""
        self._start.end(sample.verdict)
        if self._round.add(sample, self.limit):
            self._move(sample.now_s)
            self._round.begin(sample.now_s)

    def _move(self, now_s: float) -> None:
        settings, ended = self._settings, self._round
        if ended.pressed():
            ended.ignore_before_s = now_s
            self._set(min(self._growth.end(self.limit), self._estimate * settings.decrease_ratio))
            return
        if not ended.replies:
            return
        long = self._follow(ended.mean, ended.replies)
        if ended.most_in_flight < self._estimate / 2.0:
            return
        gradient = max(0.5, min(1.0, settings.gradient_tolerance * math.exp(long - ended.mean)))
        if gradient < 1.0:
            self._growth.end(self.limit)
        elif self._growth.slow_start(self.limit):
            self._set(self._estimate + (self._growth.step(self.limit) if ended.reached else 0))
            return
        wanted = self._estimate * gradient + settings.queue
        self._set(self._estimate * (1.0 - settings.smoothing) + wanted * settings.smoothing)

    def _follow(self, mean: float, replies: int) -> float:
        if self._long is None:
            self._long = mean
        self._long += min(1.0, replies * 2.0 / (self._settings.long_window + 1.0)) * (mean - self._long)
        if self._long - mean > math.log(2.0):
            self._long += math.log(0.95)
        return self._long

    def _set(self, estimate: float) -> None:
        self._estimate = max(float(self._settings.least), min(float(self._settings.most), estimate))


def make_limit(settings: ConcurrencySettings) -> Limit:
    """Return a new limit of the algorithm that `settings` names."""
    made: dict[Algorithm, type[AimdLimit | GradientLimit | FixedLimit]] = {
        "aimd": AimdLimit,
        "gradient": GradientLimit,
        "fixed": FixedLimit,
    }
    return made[settings.algorithm](settings)


class _Start:
    """The time before the first result, in which nothing is known and a limit is doubled each second that somebody waits for it."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._over = False

    def doubles(self, now_s: float) -> bool:
        if self._over:
            return False
        if self._since_s is not None and now_s - self._since_s < _START_S:
            return False
        first, self._since_s = self._since_s is None, now_s
        return not first

    def end(self, verdict: Verdict) -> None:
        self._over = self._over or verdict not in ("cancelled", "failed")


class _Round:
    """The results since the last move of the limit. `mean` and `deviation` are of logarithms of seconds."""

    def __init__(self, settings: ConcurrencySettings) -> None:
        self._settings = settings
        self._length = ReplyLength()
        self._rtt_s = 0.0
        self._variance = 0.0
        self.ignore_before_s = -math.inf
        self.begin(-math.inf)

    def begin(self, now_s: float) -> None:
        """Forget the results."""
        self._began_s = now_s
        self._sum = self._squares = 0.0
        self.replies = 0
        self.most_in_flight = 0
        self.reached = False
        self._results = self._overloaded = 0
        self._throttled = False

    @property
    def mean(self) -> float:
        """The mean of the replies, of which there must be one."""
        return self._sum / self.replies

    def threshold(self, weight: int) -> float:
        """How far above a reference that rests on `weight` replies a mean is no chance; learns the deviation."""
        mean = self.mean
        self._variance += _FOLLOW * (max(0.0, self._squares / self.replies - mean * mean) - self._variance)
        by_chance = self._settings.deviation_scale * math.sqrt(
            self._variance * (1.0 / self.replies + 1.0 / max(1, weight))
        )
        return max(math.log(self._settings.tolerance), by_chance)

    def pressed(self) -> bool:
        """Whether the server refused, or gave up, too much."""
        many = max(2.0, self._settings.overloaded_share * self._results)
        return self._throttled or self._overloaded >= many

    def add(self, sample: Sample, limit: int) -> bool:
        """Add a result. Return whether the round is over."""
        verdict = sample.verdict
        if verdict in ("cancelled", "failed"):
            return False
        if self._began_s == -math.inf:
            self._began_s = sample.now_s
        self.most_in_flight = max(self.most_in_flight, sample.in_flight)
        self.reached = self.reached or sample.in_flight >= limit
        if verdict == "ok":
            self._add_reply(sample)
        elif sample.now_s - sample.rtt_s >= self.ignore_before_s:
            self._throttled = self._throttled or verdict == "throttled"
            self._overloaded += verdict == "overloaded"
        self._results += 1
        enough = self._results >= min(_ENOUGH, max(_FEWEST, limit))
        return enough and sample.now_s - self._began_s >= self._settings.round_rtts * self._rtt_s

    def _add_reply(self, sample: Sample) -> None:
        log_s = math.log(max(1e-6, self._length.comparable_s(sample.rtt_s, sample.output_tokens)))
        self._sum += log_s
        self._squares += log_s * log_s
        self.replies += 1
        self._rtt_s += (sample.rtt_s - self._rtt_s) * (0.05 if self._rtt_s else 1.0)


class _Reference:
    """The round-trip time without queues as far as known, as a logarithm, and the limit at which it was found.

    `weight` is the number of replies that it rests on, 0 where nothing is known.
    """

    def __init__(self) -> None:
        self.log_s = 0.0
        self.weight = 0
        self._found_at = 0

    def set(self, log_s: float, replies: int, limit: int) -> None:
        self.log_s, self.weight, self._found_at = log_s, min(_HEAVIEST, replies), limit

    def follow(self, log_s: float, replies: int, limit: int) -> None:
        if log_s < self.log_s or limit <= self._found_at or self.weight < _ESTABLISHED:
            weight = self.weight + replies
            self.set(self.log_s + replies / weight * (log_s - self.log_s), weight, limit)


class _Growth:
    """How much a limit grows at once. Its `state` is doubles_below, in_a_row, declines."""

    def __init__(self, settings: ConcurrencySettings) -> None:
        self._patience = settings.patience
        self._decrease_ratio = settings.decrease_ratio
        self.state: tuple[float, int, bool] = (math.inf, 0, False)

    def slow_start(self, limit: int) -> bool:
        return limit < self.state[0]

    def step(self, limit: int) -> int:
        """Return by how much a limit grows now."""
        doubles_below, in_a_row, _ = self.state
        if limit < doubles_below:
            self.state = (doubles_below, in_a_row, False)
            return int(min(limit, doubles_below - limit))
        self.state = (doubles_below, in_a_row + 1, False)
        step = 2.0 ** min(20, in_a_row // self._patience)
        return max(1, int(min(step, limit / _GREATEST_SHARE_OF_STEP)))

    def end(self, limit: int) -> int:
        """Something spoke against growing at `limit`. Return what to fall back to at once."""
        doubles_below, _, declines = self.state
        if declines:
            return limit
        first = doubles_below == math.inf
        doubles_below = limit // 2 if first else int(limit * self._decrease_ratio)
        self.state = (doubles_below, 0, True)
        return doubles_below if first else limit


class _Proof:
    """Where a decrease began: the limit, the mean logarithm of round-trip times, and how the limit grew."""

    def __init__(self, limit: int, mean: float, growth: tuple[float, int, bool]) -> None:
        self.limit = limit
        self.mean = mean
        self.growth = growth
        self.settled = False

    def helped(self, limit: int, mean: float) -> bool:
        """Whether the times fell by half or more of what load explains."""
        return self.mean - mean >= 0.5 * math.log(self.limit / max(1, limit))
