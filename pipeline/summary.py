"""What a run did, told from what it wrote: the same table whatever ran the job."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Written:
    """One record that the job wrote. Either `reply` (its JSON) or `dead` (its stage and error type).

    `escalated`: the reply is one that a person must give. `side`: the record is no outcome, and counts for nothing but its topic.
    `identity` is the same for all copies of one outcome: the event's id, or for an event refused at the door its position.
    """

    topic: str
    identity: str
    reply: Mapping[str, Any] | None = None
    dead: tuple[str, str] | None = None
    attempts: int = 0
    escalated: bool = False
    side: bool = False


@dataclass
class Summary:
    """Counts over `Written` records. A copy of an outcome that was counted already is only counted as a copy."""

    by_topic: Counter[str] = field(default_factory=Counter)
    dead: Counter[tuple[str, str]] = field(default_factory=Counter)
    side: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    escalations: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    model_ms: list[float] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def add(self, records: Iterable[Written]) -> None:
        """Counts the records."""
        for record in records:
            if record.side:
                self.side[record.topic] += 1
                continue
            if record.identity in self._seen:
                self.copies += 1
                continue
            self._seen.add(record.identity)
            self._count(record)

    @property
    def outcomes(self) -> int:
        """How many events have an outcome."""
        return len(self._seen)

    @property
    def replies(self) -> int:
        """How many events have a reply."""
        return self.outcomes - self.escalations - sum(self.dead.values())

    def _count(self, record: Written) -> None:
        self.by_topic[record.topic] += 1
        self.requests += record.attempts
        if record.dead is not None:
            self.dead[record.dead] += 1
        elif record.reply is not None:
            self.escalations += record.escalated
            self.prompt_tokens += int(record.reply.get("prompt_tokens", 0))
            self.completion_tokens += int(record.reply.get("completion_tokens", 0))
            self.latencies_ms.append(float(record.reply.get("latency_ms", 0.0)))
            self.model_ms.append(float(record.reply.get("model_ms", 0.0)))

    def progress(self) -> str:
        """A few words for a line of progress."""
        escalations = f"{self.escalations} escalations, " if self.escalations else ""
        return f"{self.replies} replies, {escalations}{sum(self.dead.values())} dead letters"


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed (nearest rank); None without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def unaccounted(summary: Summary, events_in: int, repeats: int) -> int:
    """How many events have neither an outcome nor were counted as repeats. 0 is the promise."""
    return events_in - summary.outcomes - repeats


def events_read(counted: int, committed: Callable[[], int], accounted: int, pause: Callable[[], bool]) -> int:
    """How many events a job read from Kafka: the most of what its counter and its `committed` offsets say. Neither says too much.

    The counter begins again when a job is restarted, and the last offsets are committed a moment after the job has ended. So while
    both say less than the `accounted` events, asks again after `pause`, until that returns False.
    """
    while True:
        read = max(counted, committed())
        if read >= accounted or not pause():
            return read


def print_table(console: Console, summary: Summary, events_in: int, repeats: int, elapsed_s: float) -> None:
    """Prints the table of a finished run."""
    table = Table(title=f"{elapsed_s:.1f} s", show_header=False, title_justify="left", min_width=60)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("events in", str(events_in))
    table.add_row("repeats, not answered again", str(repeats))
    table.add_section()
    for topic, count in sorted(summary.by_topic.items()):
        table.add_row(f"out  {topic}", str(count))
    for topic, count in sorted(summary.side.items()):
        table.add_row(f"beside  {topic}", str(count))
    if summary.copies:
        table.add_row("copies with the same id", str(summary.copies))
    table.add_section()
    for (stage, reason), count in sorted(summary.dead.items()):
        table.add_row(f"dead letter  {stage}: {reason}", str(count))
    table.add_section()
    for name, values in (("latency", summary.latencies_ms), ("of it the model", summary.model_ms)):
        figures = [percentile(values, share) for share in (0.5, 0.95, 0.99)]
        shown = " / ".join("–" if figure is None else f"{figure:,.0f}" for figure in figures)
        table.add_row(f"{name}  p50 / p95 / p99", f"{shown} ms")
    table.add_row("requests to the model", str(summary.requests))
    table.add_row("tokens  prompt / completion", f"{summary.prompt_tokens:,} / {summary.completion_tokens:,}")
    console.print(table)
