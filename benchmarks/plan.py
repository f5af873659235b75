"""Which runs there are: pure functions from what was asked for to a list of runs, in the order in which they happen.

Steady: every contestant at every rate; those that are far below every rate (`FALL_BEHIND`) at one of them. Faults: at one rate, the
floor, ours and Flink's own operator. Scaling: one thing changed at a time, at one rate, against the steady run at that rate.

Rounds are interleaved: each does all runs once, so that what else happens on the machine hits all alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.load import Schedule
from benchmarks.profile import Profile
from benchmarks.rig import Scenario
from transforms.errors import SettingsError

FLOOR = "floor"
QUICK_RATE = 400.0
FULL_RATES = (100.0, 200.0, 400.0, 1_000.0)
FAULTS_RATE = 200.0
SCALING_RATE = 400.0
SCENARIOS = ("steady", "stragglers", "quota", "outage", "scaling")
WARM_S = 25.0
"""What a JVM needs until it is as fast as it gets: in its first twenty seconds Flink takes several times its processor time.

Pathway, which has none, takes as long to work off what came while it started."""
SHORT_WARM_S = 10.0
FALL_BEHIND = frozenset({"runinference", "runinference_threads", "ml_predict"})
"""Stay far below every rate here: they are run at one, and nobody waits for their backlog."""
BOUNDED = frozenset({"ray_data"})
"""Are asked about a set, not a stream: they have no rate of their own, and run once."""
NO_WARM_UP = frozenset({FLOOR}) | FALL_BEHIND
"""Has nothing that warms up, or fall behind whatever the warm-up."""
QUICK_LEAVES_OUT = frozenset({"runinference_threads"})
"""Not a peer as it is shipped, but the best we could make of one; without it the quick run keeps its ten minutes."""
BAR = ("ours", "java_async")
_DRAIN_S, _SHORT_DRAIN_S = 15.0, 3.0
_AROUND_S = {FLOOR: 3.0, "ray_data": 40.0}
"""What starting and ending a run takes; of a bounded set, all of it."""
_USUAL_AROUND_S = 16.0


class Run(msgspec.Struct, frozen=True):
    """One run to do. `settings` and `beam` are added to those of the command line."""

    scenario: Scenario
    contestant: str
    settings: Mapping[str, Any] = {}
    beam: tuple[str, ...] = ()


class Variant(msgspec.Struct, frozen=True):
    """One thing changed: `dimension` is what, `value` to what; settings and flags of Beam by contestant, or another record size."""

    dimension: str
    value: str
    settings: Mapping[str, Mapping[str, Any]] = {}
    beam: Mapping[str, tuple[str, ...]] = {}
    padding_bytes: int = 0

    @property
    def name(self) -> str:
        """The name of its scenario."""
        return f"{self.dimension}: {self.value}"

    @property
    def contestants(self) -> tuple[str, ...]:
        """Whom it is run with."""
        return (FLOOR, *BAR) if self.padding_bytes else tuple(sorted({*self.settings, *self.beam}, reverse=True))


BASES = {"parallelism": "2", "worker processes": "1", "in-flight bound": "4 000", "text of an event": "77 bytes"}
"""What the steady runs have of each dimension."""

VARIANTS = (
    *(
        Variant("parallelism", str(n), {"java_async": {"parallelism": n}}, {"ours": (f"--parallelism={n}",)})
        for n in (1, 4)
    ),
    Variant("worker processes", "2", beam={"ours": ("--sdk_worker_parallelism=2",)}),
    *(
        Variant(
            "in-flight bound",
            str(n),
            {"ours": {"max_in_flight": n, "max_pending": n}, "java_async": {"capacity": n // 2}},
        )
        for n in (64, 256)
    ),
    *(Variant("text of an event", f"{n} bytes", padding_bytes=n) for n in (1_000, 10_000)),
)


class Load(msgspec.Struct, frozen=True):
    """What all runs have in common. Without `warm_s` a contestant gets the warm-up it needs."""

    seconds: float = 30.0
    warm_s: float | None = None
    poisson: bool = False
    seed: int = 0
    padding_bytes: int = 0

    def schedule(self, rate: float, contestant: str) -> Schedule:
        """The load of a run."""
        warm_s = self.warm_s if self.warm_s is not None else SHORT_WARM_S if contestant in NO_WARM_UP else WARM_S
        return Schedule(rate, warm_s, self.seconds, self.poisson, self.seed)


def steady(rates: Sequence[float], names: Sequence[str], load: Load) -> Iterator[Run]:
    """Every contestant at every rate; those of `FALL_BEHIND` and `BOUNDED` at `QUICK_RATE`, else the first."""
    alone = QUICK_RATE if QUICK_RATE in rates else rates[0]
    for rate in rates:
        for name in (FLOOR, *names):
            if rate == alone or name not in FALL_BEHIND | BOUNDED:
                drain_s = _SHORT_DRAIN_S if name in FALL_BEHIND else _DRAIN_S
                schedule = load.schedule(rate, name)
                yield Run(Scenario("steady", schedule, padding_bytes=load.padding_bytes, drain_s=drain_s), name)


def faults(kinds: Sequence[str], rate: float, names: Sequence[str], load: Load) -> Iterator[Run]:
    """A model server that is not well, for the floor and each of `names`."""
    for kind in kinds:
        for name in (FLOOR, *names):
            yield Run(faulty(kind, load.schedule(rate, name)), name)


def faulty(name: str, schedule: Schedule) -> Scenario:
    """A scenario in which the model server is not well. Raises SettingsError where there is none of this name."""
    profiles = {
        # 1 % of the calls take 10 s; those that are due last need as long after the end.
        "stragglers": (Profile(straggler_share=0.01), 25.0),
        # Half of what is offered is allowed: the backlog grows for as long as the load lasts.
        "quota": (Profile(quota_per_s=schedule.rate / 2), 20.0),
        "outage": (Profile(outage_at_s=schedule.warm_s + schedule.seconds / 3, outage_for_s=5.0), 45.0),
    }
    if name not in profiles:
        raise SettingsError(f"There is no scenario {name!r}; there are {', '.join(SCENARIOS)}.")
    profile, drain_s = profiles[name]
    return Scenario(name, schedule, profile, drain_s=drain_s)


def scaling(rate: float, names: Sequence[str], load: Load) -> Iterator[Run]:
    """One thing changed at a time."""
    for variant in VARIANTS:
        for name in variant.contestants:
            if name in {FLOOR, *names}:
                padding_bytes = variant.padding_bytes or load.padding_bytes
                scenario = Scenario(variant.name, load.schedule(rate, name), padding_bytes=padding_bytes)
                yield Run(scenario, name, variant.settings.get(name, {}), variant.beam.get(name, ()))


def planned(kinds: Sequence[str], rates: Sequence[float], names: Sequence[str], load: Load, only: bool) -> list[Run]:
    """All runs of one round. With `only` the faults are run with all of `names`, else with `BAR` among them.

    Raises SettingsError for a scenario that there is not.
    """
    for kind in kinds:
        if kind not in SCENARIOS:
            raise SettingsError(f"There is no scenario {kind!r}; there are {', '.join(SCENARIOS)}.")
    # The lowest of the rates at which there is enough under way.
    faults_rate = min((rate for rate in rates if rate >= FAULTS_RATE), default=rates[-1])
    tested = [name for name in names if only or name in BAR]
    found = list(steady(rates, names, load)) if "steady" in kinds else []
    found += faults([kind for kind in kinds if kind not in {"steady", "scaling"}], faults_rate, tested, load)
    if "scaling" in kinds:
        found += scaling(SCALING_RATE if SCALING_RATE in rates else rates[-1], names, load)
    return found


def about_s(runs: Sequence[Run]) -> float:
    """How long they take, about: the load, what starting and ending takes, and under faults the wait for what is still under way."""
    return sum(_run_s(run) for run in runs)


def _run_s(run: Run) -> float:
    around_s = _AROUND_S.get(run.contestant, _USUAL_AROUND_S)
    if run.contestant in BOUNDED:
        return around_s
    scenario = run.scenario
    return scenario.schedule.warm_s + scenario.schedule.seconds + around_s + max(0.0, scenario.drain_s - _DRAIN_S)
