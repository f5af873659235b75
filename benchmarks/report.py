"""Results as text: Markdown tables, ratios, and a plot of latency over rate as SVG. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from benchmarks.figures import Figures, Summary, summarize
from benchmarks.plan import BASES, FLOOR, VARIANTS

COLUMNS = (
    "contestant",
    "sustained/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "added p50",
    "added p95",
    "added p99",
    "missing",
    "failed",
    "CPU ms/output",
    "requests/output",
)


def summaries(runs: Iterable[Figures]) -> list[Summary]:
    """The runs of the same scenario, rate and contestant as one each, in the order in which they first came."""
    found: dict[tuple[str, float, str], list[Figures]] = {}
    for run in runs:
        found.setdefault((run.scenario, run.offered_per_s, run.contestant), []).append(run)
    return [summarize(group) for group in found.values()]


def tables(results: Sequence[Summary]) -> str:
    """A table for each scenario and rate, each with a row for each contestant."""
    blocks = []
    variants = {variant.name for variant in VARIANTS}
    shown = [row for row in results if row.scenario not in variants]
    ordered = sorted(shown, key=lambda each: (each.scenario != "steady", each.scenario, each.offered_per_s))
    for (scenario, rate), group in groupby(ordered, key=lambda each: (each.scenario, each.offered_per_s)):
        rows = list(group)
        floor = next((row for row in rows if row.contestant == FLOOR), None)
        runs = "1 run" if rows[0].runs == 1 else f"median of {rows[0].runs} runs (lowest–highest)"
        blocks.append(
            f"### {scenario}, {rate:g} events/s offered, {runs}\n\n{_table([_row(row, floor) for row in rows])}"
        )
    return "\n\n".join(blocks) + "\n"


def _row(row: Summary, floor: Summary | None) -> list[str]:
    cells = [row.contestant, _spread(row, "sustained_per_s")]
    cells += [_spread(row, name) for name in ("p50_ms", "p95_ms", "p99_ms")]
    cells += [_added(row, floor, name) for name in ("p50_ms", "p95_ms", "p99_ms")]
    cells += [number(row.middle["missing"]), number(row.middle["failed"])]
    return [*cells, f"{row.middle['cpu_ms_per_output']:.2f}", f"{row.middle['requests_per_output']:.3f}"]


def _spread(row: Summary, name: str) -> str:
    low, high = row.spread[name]
    middle = number(row.middle[name])
    return middle if row.runs == 1 else f"{middle} ({number(low)}–{number(high)})"


def _added(row: Summary, floor: Summary | None, name: str) -> str:
    if floor is None or row is floor:
        return ""
    return number(row.middle[name] - floor.middle[name])


def number(value: float) -> str:
    """A figure as it is shown: whole, or a word where there is none."""
    if math.isnan(value):
        return "–"
    return "grows" if math.isinf(value) else f"{value:,.0f}".replace(",", " ")


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "|".join(["---", *["---:"] * (len(COLUMNS) - 1)]) + "|"]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])


def scaling_table(results: Sequence[Summary]) -> str:
    """A row for each variant and contestant, under what the steady run at the same rate has; empty where no variant ran."""
    by_place = {(row.scenario, row.offered_per_s, row.contestant): row for row in results}
    names = {variant.name: variant for variant in VARIANTS}
    rows, based = [], set()
    for (scenario, rate, contestant), row in by_place.items():
        variant = names.get(scenario)
        if variant is None or contestant == FLOOR:
            continue
        base = by_place.get(("steady", rate, contestant))
        if base is not None and (variant.dimension, contestant) not in based:
            based.add((variant.dimension, contestant))
            rows.append(
                _scaled(variant.dimension, BASES[variant.dimension], base, by_place.get(("steady", rate, FLOOR)))
            )
        # Another record has another floor; all else has that of the steady run.
        floor = by_place.get((scenario, rate, FLOOR)) or by_place.get(("steady", rate, FLOOR))
        rows.append(_scaled(variant.dimension, variant.value, row, floor))
    if not rows:
        return ""
    order = list(BASES)
    rows.sort(key=lambda cells: (order.index(cells[0]), cells[1]))
    head = (
        "what",
        "contestant",
        "value",
        "offered/s",
        "sustained/s",
        "added p50",
        "added p95",
        "added p99",
        "CPU ms/output",
    )
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)]) + "\n"


def _scaled(dimension: str, value: str, row: Summary, floor: Summary | None) -> list[str]:
    added = [_added(row, floor, name) for name in ("p50_ms", "p95_ms", "p99_ms")]
    sustained = _spread(row, "sustained_per_s")
    cpu = f"{row.middle['cpu_ms_per_output']:.2f}"
    return [dimension, row.contestant, value, f"{row.offered_per_s:g}", sustained, *added, cpu]


def ratios(results: Sequence[Summary]) -> str:
    """What the targets ask for, as sentences of a list: ours against the others, in each scenario at each rate."""
    by_place = {(row.scenario, row.offered_per_s, row.contestant): row for row in results}
    lines = []
    for (scenario, rate, contestant), row in by_place.items():
        ours, floor = by_place.get((scenario, rate, "ours")), by_place.get((scenario, rate, FLOOR))
        if ours is None or floor is None or contestant in {"ours", FLOOR}:
            continue
        lines.append(f"- {scenario}, {rate:g}/s, against {contestant}: {_compared(ours, row, floor)}")
    return "\n".join(lines) + "\n" if lines else ""


def _compared(ours: Summary, other: Summary, floor: Summary) -> str:
    sustained = ours.middle["sustained_per_s"] / max(1e-9, other.middle["sustained_per_s"])
    parts = [f"{sustained:.2f} times its sustained rate"]
    for name in ("p50_ms", "p99_ms"):
        mine, its = (row.middle[name] - floor.middle[name] for row in (ours, other))
        word = name.removesuffix("_ms")
        if math.isfinite(mine) and math.isfinite(its) and mine > 0:
            parts.append(f"its added {word} is {its / mine:.2f} times ours ({its:.0f} and {mine:.0f} ms)")
    return "; ".join(parts)


def parts_table(runs: Sequence[Figures]) -> str:
    """Where the processor time went: milliseconds per output of each part, the last run of each contestant at each rate."""
    shown = {(run.scenario, run.offered_per_s, run.contestant): run for run in runs if run.cpu_parts}
    names = sorted({part for run in shown.values() for part in run.cpu_parts})
    if not names:
        return ""
    lines = [f"| run | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for (scenario, rate, contestant), run in shown.items():
        cells = [f"{run.cpu_parts[name]:.2f}" if name in run.cpu_parts else "" for name in names]
        lines.append(f"| {contestant}, {scenario}, {rate:g}/s | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_COLOURS = ("#777777", "#0b6e4f", "#c8553d", "#2d5d9f", "#8e44ad", "#b8860b", "#444444", "#00838f", "#ad1457")
_WIDTH, _HEIGHT, _MARGIN = 720, 400, 60


def plot(results: Sequence[Summary], name: str = "p99_ms") -> str:
    """An SVG of a latency over the offered rate, both logarithmic, a line for each contestant. Empty without finite points."""
    points = [
        (row.contestant, row.offered_per_s, row.middle[name])
        for row in results
        if row.scenario == "steady" and math.isfinite(row.middle[name]) and row.middle[name] > 0
    ]
    if not points:
        return ""
    across = _scale([rate for _, rate, _ in points], _MARGIN, _WIDTH - 180)
    up = _scale([value for _, _, value in points], _HEIGHT - _MARGIN, 20)
    lines: dict[str, list[tuple[float, float]]] = {}
    for contestant, rate, value in points:
        lines.setdefault(contestant, []).append((across(rate), up(value)))
    drawn = [_line(contestant, sorted(line), number) for number, (contestant, line) in enumerate(lines.items())]
    ticks = _ticks({rate: across(rate) for _, rate, _ in points}, {value: up(value) for _, _, value in points})
    title = f"{name.removesuffix('_ms')} in ms over the offered rate in events/s"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">'
    frame = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/><text x="{_MARGIN}" y="14">{title}</text>'
    return "\n".join([head, frame, *ticks, *drawn, "</svg>"]) + "\n"


class _Scale:
    """A logarithmic axis."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self._low, high = math.log(min(values)), math.log(max(values))
        self._factor = (end - begin) / (high - self._low) if high > self._low else 0.0
        self._begin = begin

    def __call__(self, value: float) -> float:
        return self._begin + (math.log(value) - self._low) * self._factor


_scale = _Scale


def _line(contestant: str, line: Sequence[tuple[float, float]], index: int) -> str:
    colour = _COLOURS[index % len(_COLOURS)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in line)
    label = f'<text x="{_WIDTH - 165}" y="{40 + 18 * index}" fill="{colour}">{escape(contestant)}</text>'
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}{label}'


def _ticks(across: Mapping[float, float], up: Mapping[float, float]) -> list[str]:
    bottom = _HEIGHT - _MARGIN + 20
    drawn = [f'<text x="{x:.1f}" y="{bottom}" text-anchor="middle">{rate:g}</text>' for rate, x in across.items()]
    ends = (min(up), max(up))
    return drawn + [
        f'<text x="{_MARGIN - 8}" y="{up[value]:.1f}" text-anchor="end">{value:.0f}</text>' for value in ends
    ]
