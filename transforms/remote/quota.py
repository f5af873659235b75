"""Request and token quotas of one endpoint: reserve before sending, settle by what was used, refund what was not sent.

A quota is a limit L per minute. A process may spend ``share · L``. Two bounds hold together, for requests and for tokens:

- *pace*: a bucket that refills at ``share · L / window_s`` (L being per window) and holds `burst_s` seconds of that, one
  request at least. A request larger than the bucket passes when the bucket is full, and leaves a debt.
- *window*: what was reserved within the last `window_s`, counted in slices of a hundredth and one slice more, is at most
  ``share · L``. A request larger than all of that passes alone, when the window is empty.

The second is the strictest way in which a server can count a period of `window_s`, so a server that counts by
a sliding window, by fixed windows from any moment, or by a bucket that holds a window's worth never refuses, as long as reservations
are not below what it charges; the slice more absorbs way times that vary by up to that. It costs 1 % of the quota.
The default of 60 s is not safe for a server that enforces a minute's quota by the second (OpenAI says that it may): there,
give ``window_s=1`` and ``burst_s=0.1``.

Tokens are reserved by estimate and corrected by the usage that the reply reports, in both directions and in the slice in which
they were reserved. What is given back may fill the bucket above its size, or it would be lost where much is under way.

*Refusals.* A 429 is refunded whole: most servers do not count what they refuse. OpenAI counts it as a request;
`refusals_count` keeps the request (not the tokens) charged.

*Learning* (`learn`). A limit that the server's headers name (`rate_headers.py`) bounds what is configured, and stands for it
where nothing is. While the server says that less remains than a request needs, nothing is sent until the pace would have
brought it, or the reset, whichever is sooner; what other users of the same quota spend is seen only in this way. What it says is
taken for the moment at which the request was sent that it answered, as limits are counted at the door: what was reserved since is
taken off, and what the pace has brought since is added. A request larger than the whole limit waits for all of it. After a minute
without another word it says nothing any more; where no limit is known, and so no pace, the reset alone ends it, or an hour.
429s without a configured or named limit set a rate (`learnt_rate.py`); so they do with one, where more than one in fifty requests of
the last minute was refused, for ten minutes: then the limit is wrong, or others use it too. ``Retry-After`` is kept in any case:
until then nothing is reserved.

*Tokens apart.* Limits for the tokens of prompts and of replies, which headers alone can name (Anthropic's), hold beside that for their
sum. A reservation is parted as the usage of the last fifty or so replies was; before the first one is reported, each may be all of it.

*Order.* `try_reserve` knows no queue. Ask in the order of waiting: who was told to wait stays first, and those behind do not
ask. Else small requests could keep a large one from ever finding a full bucket.

Every reservation ends once, by `settle` or `refund`, so at any time ``reserved = settled + refunded + outstanding`` in
`counts`. Times are monotonic seconds. Not for several threads.

Source: token bucket and sliding window are the field's common ones (the pace is GCRA, ITU-T I.371, with debt); reserve and settle
are this project's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import msgspec

from transforms.errors import SettingsError
from transforms.remote import ranges
from transforms.remote.learnt_rate import LearntRate
from transforms.remote.rate_headers import RateStatus, Unit, parse_rate_headers
from transforms.remote.window import SlidingCount

_SLICES = 100
_LEAST_WAIT_S = 1e-3
_ROUNDING = 1e-9
_DOUBT_SHARE, _DOUBT_S = 0.02, 600.0
_LEARNT_BURST_S = 0.1
_HEARD_S, _LONGEST_S = 60.0, 3600.0
_MEMORY = 0.98
_NO_SHARE_S = 0.1
_SETTLES_SOON_S = 0.02


class QuotaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The quotas of an endpoint and how they are kept; see the module. None: no such quota is known.

    `share` is this process's part of the job's quota, such as 0.25 for each of four worker processes. None is all of it, unless
    the job says into how many parts it is to be divided (`divided`).
    """

    requests_per_min: float | None = None
    tokens_per_min: float | None = None
    burst_s: float = 1.0
    window_s: float = 60.0
    share: float | None = None
    learn: bool = True
    refusals_count: bool = False

    def __post_init__(self) -> None:
        """Raise SettingsError for a quota that lets nothing through, a share that is none, or a burst beyond the window."""
        given = {"requests_per_min": self.requests_per_min, "tokens_per_min": self.tokens_per_min}
        ranges.positive(**{name: value for name, value in given.items() if value is not None})
        ranges.positive(burst_s=self.burst_s, window_s=self.window_s)
        ranges.rising(burst_s=self.burst_s, window_s=self.window_s)
        ranges.share(share=self.part)
        if self.requests_per_min is not None and self.requests_per_min * self.window_s * self.part < 60.0:
            raise SettingsError(
                f"requests_per_min ({self.requests_per_min:g}) times share ({self.part:g}) is less than one request in "
                f"window_s ({self.window_s:g}); use fewer worker processes, or a longer window."
            )

    @property
    def part(self) -> float:
        """This process's part of the quota, above 0 and at most 1."""
        return 1.0 if self.share is None else self.share

    def divided(self, processes: int) -> QuotaSettings:
        """Return the quota of one of so many processes, unless its part is said. Raises SettingsError where that is too little."""
        has_any = self.requests_per_min or self.tokens_per_min or self.learn
        if self.share is not None or processes <= 1 or not has_any:
            return self
        return msgspec.structs.replace(self, share=1 / processes)


class Reservation:
    """What one request may spend; made by `Quota.try_reserve`, ended by `settle` or `refund`."""

    __slots__ = ("amounts", "at_s", "mark", "marks", "number", "open")

    def __init__(
        self, at_s: float, amounts: tuple[float, ...], marks: tuple[float, ...], number: int, mark: int
    ) -> None:
        self.at_s = at_s
        self.amounts = amounts
        self.marks = marks
        self.number = number
        self.mark = mark
        self.open = True

    @property
    def tokens(self) -> float:
        """The tokens reserved, of prompt and reply."""
        return self.amounts[1]


class QuotaCounts(msgspec.Struct):
    """What became of reservations: each number is (requests, tokens). `corrected` is what settling added to what was reserved."""

    reserved: tuple[int, float] = (0, 0.0)
    settled: tuple[int, float] = (0, 0.0)
    refunded: tuple[int, float] = (0, 0.0)
    outstanding: tuple[int, float] = (0, 0.0)
    corrected: float = 0.0
    throttled: int = 0


class Quota:
    """The quotas of one endpoint, as one process keeps them; see the module."""

    def __init__(self, settings: QuotaSettings) -> None:
        self.settings = settings
        self.counts = QuotaCounts()
        self._share = settings.part
        self._bounds: Mapping[Unit, _Bound] = {
            "requests": _Bound(settings, settings.requests_per_min),
            "tokens": _Bound(settings, settings.tokens_per_min),
            "input-tokens": _Bound(settings, None),
            "output-tokens": _Bound(settings, None),
        }
        # Those that are counted at all, and their places; all of them once a server has named limits for parts of the tokens.
        self._counted = tuple(enumerate(list(self._bounds.values())[:2]))
        self._parts = _Parts()
        self._rate = LearntRate()
        self._learnt = _Bucket()
        self._closed_until_s = -math.inf
        self._doubt_until_s = -math.inf
        self._asked_s = -math.inf
        self._throttled, self._sent = SlidingCount(60.0), SlidingCount(60.0)

    @property
    def share(self) -> float:
        """This process's part of the quota."""
        return self._share

    @property
    def known(self) -> bool:
        """Whether a limit is configured, or the server has named one."""
        return any(bound.known for bound in self._bounds.values())

    def set_share(self, now_s: float, share: float) -> None:
        """Have another part of the quota from now on, 0 to 1, as one that is leased from time to time.

        The window bound is then that of the whole quota: the pace alone keeps the share, and who hands out shares sees to
        their sum.
        """
        self._share = share
        for bound in self._bounds.values():
            bound.set_share(now_s, share)

    def wanted_share(self, now_s: float) -> float:
        """Return the share that this process needs, 0 to 1, by its use since the last time this was asked.

        1 where it had to wait for its share, or nothing is known; else a quarter more than what it used.
        """
        elapsed_s, self._asked_s = now_s - self._asked_s, now_s
        shares = [bound.used_share(elapsed_s) for bound in self._bounds.values() if bound.known]
        return min(1.0, 1.25 * max(shares, default=1.0))

    def try_reserve(self, now_s: float, tokens: float) -> Reservation | float:
        """Reserve one request of so many tokens, or return after how many seconds, above 0, to ask again."""
        parts = self._parts.of(tokens) if len(self._counted) > 2 else (0.0, 0.0)
        amounts = (1.0, tokens, *parts)
        wait_s = max(self._closed_until_s - now_s, self._wait_s(now_s, amounts), self._learnt_wait_s(now_s))
        if wait_s > 0.0:
            return max(_LEAST_WAIT_S, wait_s)
        marks = tuple([bound.take(now_s, amounts[place]) for place, bound in self._counted])
        self._learnt.level -= 1.0
        self._sent.add(now_s)
        self.counts.reserved = _plus(self.counts.reserved, 1, tokens)
        self.counts.outstanding = _plus(self.counts.outstanding, 1, tokens)
        return Reservation(now_s, amounts, marks, self.counts.reserved[0], self._rate.sent(now_s))

    def settle(
        self, reservation: Reservation, now_s: float, tokens_used: float, usage: tuple[float, float] | None = None
    ) -> None:
        """End a reservation whose request was let in, with the tokens that the reply reports. A second end does nothing.

        `usage` are those of the prompt and of the reply apart, where it reports them.
        """
        if not self._close(reservation):
            return
        if usage is not None:
            self._parts.observe(*usage)
        parts = usage if usage is not None else self._parts.of(tokens_used) if len(self._counted) > 2 else (0.0, 0.0)
        used = (1.0, tokens_used, *parts)
        self.counts.settled = _plus(self.counts.settled, 1, reservation.tokens)
        self.counts.corrected += tokens_used - reservation.tokens
        self._correct(now_s, reservation, used)

    def refund(self, reservation: Reservation, now_s: float, *, refused: bool = False) -> None:
        """End a reservation whose request was never sent, or was `refused` (429). A second end does nothing."""
        if not self._close(reservation):
            return
        self.counts.refunded = _plus(self.counts.refunded, 1, reservation.tokens)
        self._rate.unsent(reservation.mark)
        requests = 1.0 if refused and self.settings.refusals_count else 0.0
        self._correct(now_s, reservation, (requests, 0.0, 0.0, 0.0))

    def learn(
        self,
        now_s: float,
        headers: Mapping[str, str],
        now_ms: int | None = None,
        reservation: Reservation | None = None,
    ) -> None:
        """Learn from the headers of any answer. `now_ms` is the wall clock's Unix time, for resets that are times.

        `reservation` is that of the request which was answered. Without it, what remains is taken for that of now.
        """
        if not self.settings.learn:
            return
        said = parse_rate_headers(headers, now_ms)
        for place, (unit, bound) in enumerate(self._bounds.items()):
            if unit in said:
                mark = None if reservation is None or place >= len(reservation.marks) else reservation.marks[place]
                sent = None if reservation is None or mark is None else (reservation.at_s, mark)
                bound.learn(now_s, said[unit], sent, self.counts.reserved[0])
                if place > 1 and bound.known:
                    self._counted = tuple(enumerate(self._bounds.values()))

    def on_throttled(self, now_s: float, retry_after_s: float | None) -> None:
        """Learn from a 429, after its reservation was refunded: keep away as long as it asks, and go slower afterwards."""
        self.counts.throttled += 1
        self._throttled.add(now_s)
        pause_s = retry_after_s or 0.0
        if self.settings.learn and self._doubts(now_s):
            pause_s = max(pause_s, self._rate.refused(now_s, retry_after_s))
            self._learnt.hold(now_s + pause_s, 0.0)
        self._closed_until_s = max(self._closed_until_s, now_s + pause_s)

    def _doubts(self, now_s: float) -> bool:
        """Whether 429s say more than the limits that are known: there is none, or it lets too much through."""
        if not self.known:
            return True
        if self._throttled.total(now_s) > max(2.0, _DOUBT_SHARE * self._sent.total(now_s)):
            self._doubt_until_s = now_s + _DOUBT_S
        return now_s < self._doubt_until_s

    def _wait_s(self, now_s: float, amounts: tuple[float, ...]) -> float:
        """The wait for requests and tokens; a short one for tokens while requests are under way, which may need less than reserved."""
        waits = [bound.wait_s(now_s, amounts[place]) for place, bound in self._counted]
        tokens_s = max(waits[1:])
        return max(waits[0], min(tokens_s, _SETTLES_SOON_S) if self.counts.outstanding[0] else tokens_s)

    def _correct(self, now_s: float, reservation: Reservation, used: tuple[float, ...]) -> None:
        for place, bound in self._counted:
            if place < len(reservation.marks):  # else it was sent before this was counted
                bound.correct(now_s, reservation, used[place] - reservation.amounts[place])

    def _learnt_wait_s(self, now_s: float) -> float:
        if self.known and now_s >= self._doubt_until_s:
            return 0.0
        per_s = self._rate.per_s(now_s)
        return self._learnt.wait_s(now_s, 1.0, per_s, max(1.0, per_s * _LEARNT_BURST_S)) if per_s < math.inf else 0.0

    def _close(self, reservation: Reservation) -> bool:
        if not reservation.open:
            return False
        reservation.open = False
        self.counts.outstanding = _plus(self.counts.outstanding, -1, -reservation.tokens)
        return True


class _Parts:
    """How tokens part into those of prompts and those of replies, by the usage of the last replies."""

    def __init__(self) -> None:
        self._input = self._output = 0.0

    def observe(self, prompt: float, reply: float) -> None:
        self._input = _MEMORY * self._input + prompt
        self._output = _MEMORY * self._output + reply

    def of(self, tokens: float) -> tuple[float, float]:
        """Tokens of prompt and reply among so many; while nothing is known, all for each."""
        total = self._input + self._output
        return (tokens * self._input / total, tokens * self._output / total) if total > 0.0 else (tokens, tokens)


class _Bucket:
    """A level that refills with time; full at first use."""

    def __init__(self) -> None:
        self.level = math.inf
        self._at_s = -math.inf

    def refill(self, now_s: float, per_s: float, most: float) -> None:
        if self._at_s == -math.inf:
            self._at_s = now_s
        if self.level == math.inf:
            self.level = most
        if self.level < most:  # what was given back may stand above it
            self.level = min(most, self.level + max(0.0, now_s - self._at_s) * per_s)
        self._at_s = max(self._at_s, now_s)

    def hold(self, at_s: float, level: float) -> None:
        """Have so much until then, and refill from then on."""
        self.level, self._at_s = level, at_s

    def wait_s(self, now_s: float, amount: float, per_s: float, most: float) -> float:
        """The seconds until the bucket holds `amount`, or is full; 0 for now."""
        self.refill(now_s, per_s, most)
        lacking = min(amount, most) - self.level
        if lacking <= _ROUNDING * most:
            return 0.0
        return lacking / per_s if per_s > 0.0 else 1.0


class _Bound:
    """One quota: its pace and its window; no bound as long as no limit is known. Amounts are requests or tokens."""

    def __init__(self, settings: QuotaSettings, limit_per_min: float | None) -> None:
        self._settings = settings
        self._configured = math.inf if limit_per_min is None else limit_per_min
        self._named = math.inf
        self.known = limit_per_min is not None
        self._share, self._of_window = settings.part, settings.part
        self._bucket = _Bucket()
        self._log = _Log(settings.window_s)
        self._spent = 0.0
        self._heard = _Bucket()
        self._heard_number = 0
        self._heard_until_s = -math.inf
        self._used = 0.0
        self._waited = False

    def set_share(self, now_s: float, share: float) -> None:
        if self.known:
            self._bucket.refill(now_s, *self._pace())
            self._heard.refill(now_s, self._pace()[0], self._whole())
        self._share, self._of_window = share, 1.0
        if self.known:
            self._bucket.level = min(self._bucket.level, self._pace()[1])

    def used_share(self, elapsed_s: float) -> float:
        """The part of the whole quota used since this was asked last, so many seconds ago; 1 if that was not enough."""
        share = self._used * self._settings.window_s / (self._limit() * elapsed_s) if elapsed_s > 0.0 else 1.0
        waited, self._waited, self._used = self._waited, False, 0.0
        return 1.0 if waited else share

    def wait_s(self, now_s: float, amount: float) -> float:
        if amount <= 0.0:
            return 0.0
        if not self.known:
            return self._heard_wait_s(now_s, amount) if now_s < self._heard_until_s else 0.0
        if self._share <= 0.0:
            self._waited = True
            return _NO_SHARE_S
        per_s, most = self._pace()
        by_pace = self._bucket.wait_s(now_s, amount, per_s, most)
        self._waited = self._waited or by_pace > 0.0
        by_window = self._log.wait_s(now_s, amount, self._limit() * self._of_window)
        return max(by_pace, by_window, self._heard_wait_s(now_s, amount))

    def take(self, now_s: float, amount: float) -> float:
        """Spend so much. Return the mark to tell `learn`."""
        self._log.add(now_s, amount)
        self._used += amount
        self._bucket.level -= amount
        self._heard.level -= amount
        self._spent += amount
        return self._spent

    def correct(self, now_s: float, reservation: Reservation, amount: float) -> None:
        """Charge `amount` more for what was taken with this reservation."""
        self._log.correct(now_s, reservation.at_s, amount)
        self._bucket.level -= amount
        self._spent += amount
        if reservation.number > self._heard_number:  # what remained when it was said has the others in it
            self._heard.level -= amount

    def learn(self, now_s: float, status: RateStatus, mark: tuple[float, float] | None, number: int) -> None:
        """Learn what the server said; `mark` is when the request was sent that it answered, and its mark; `number` the last sent."""
        if status.limit_per_min is not None:
            self._named = status.limit_per_min
            self.known = min(self._configured, self._named) < math.inf
        if status.remaining is None or (status.reset_s is None and not self.known):
            return
        sent_s, spent = mark or (now_s, self._spent)
        since, reset_s = self._spent - spent, math.inf if status.reset_s is None else status.reset_s
        if self.known:
            level = min(self._whole(), status.remaining + self._pace()[0] * (now_s - sent_s) - since)
        else:  # what was sent before a reset that has passed is forgotten
            level = status.remaining - (since if now_s - sent_s < reset_s else 0.0)
        self._heard.hold(now_s, level)
        self._heard_number = number
        self._heard_until_s = now_s + min(reset_s, _HEARD_S if self.known else _LONGEST_S)

    def _heard_wait_s(self, now_s: float, amount: float) -> float:
        """The wait for what the server said it has too little of."""
        if now_s >= self._heard_until_s:
            return 0.0
        until_s = self._heard_until_s - now_s
        if not self.known:
            return until_s if self._heard.level < amount else 0.0
        return min(until_s, self._heard.wait_s(now_s, amount, self._pace()[0], self._whole()))

    def _whole(self) -> float:
        """What the server counts as all of it, in a minute."""
        return self._named if self._named < math.inf else self._configured

    def _limit(self) -> float:
        """The limit of a window."""
        return min(self._configured, self._named) * self._settings.window_s / 60.0

    def _pace(self) -> tuple[float, float]:
        per_s = self._limit() * self._share / self._settings.window_s
        return per_s, max(1.0, per_s * self._settings.burst_s)


class _Log:
    """What was spent in the last window, by slices."""

    def __init__(self, window_s: float) -> None:
        self._slice_s = window_s / _SLICES
        self._slices: deque[list[float]] = deque()
        self._sum = 0.0

    def add(self, now_s: float, amount: float) -> None:
        self._forget(now_s)
        number = math.floor(now_s / self._slice_s)
        if not self._slices or self._slices[-1][0] < number:
            self._slices.append([number, 0.0])
        self._slices[-1][1] += amount
        self._sum += amount

    def correct(self, now_s: float, at_s: float, amount: float) -> None:
        self._forget(now_s)
        number = math.floor(at_s / self._slice_s)
        for one in reversed(self._slices):
            if one[0] == number:
                one[1] += amount
                self._sum += amount
                return

    def wait_s(self, now_s: float, amount: float, most: float) -> float:
        """The seconds until `amount` fits under `most`, or nothing is in the window."""
        self._forget(now_s)
        lacking = min(amount, most) + self._sum - most
        if lacking <= _ROUNDING * most or not self._slices:
            return 0.0
        for number, spent in self._slices:
            lacking -= spent
            if lacking <= _ROUNDING * most:
                return (number + _SLICES + 1) * self._slice_s - now_s
        return (self._slices[-1][0] + _SLICES + 1) * self._slice_s - now_s

    def _forget(self, now_s: float) -> None:
        oldest = math.floor(now_s / self._slice_s + _ROUNDING) - _SLICES
        while self._slices and self._slices[0][0] < oldest:
            self._sum -= self._slices.popleft()[1]
        if not self._slices:
            self._sum = 0.0


def _plus(pair: tuple[int, float], requests: int, tokens: float) -> tuple[int, float]:
    return pair[0] + requests, pair[1] + tokens
