"""The local stack as one value: start it, end it, ask how it is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from runners.local import artifacts, postgresql, processes, supervisor, workers
from runners.local.artifacts import ROOT
from runners.local.part import Part, Place, Report, StackError
from runners.local.parts import GROUPS, PARTS, submitter
from runners.local.ports import Ports, refuse_taken
from runners.local.processes import Facts, ProcessId
from runners.local.supervisor import Planned, Seen
from transforms.errors import SettingsError

LOG_LINES = 15
"""How many of a crashed part's last log lines are shown."""

_GRACE_S = 8.0
_SUPERVISOR_WITHIN_S = 10.0
_PROBE_EVERY_S = 0.1
_POLL_S = 0.02


@dataclass(frozen=True)
class Endpoints:
    """Where a client finds what: ``host:port``, but `llm` (it ends in ``/v1``), `registry` and `connect` are base URLs.

    `postgresql` is the URL of a database, as `--orders` takes it: the variable with the password is named in it.
    """

    kafka: str
    flink: str
    job_server: str
    artifacts: str
    expansion: str
    workers: str
    llm: str
    registry: str
    connect: str
    postgresql: str
    metrics: tuple[str, str]


@dataclass(frozen=True)
class PartStatus:
    """How a part is. `state` is ``up``, ``starting``, ``dead`` or ``stopped``.

    `rss_mib` counts all processes of the part. `workers` are the pids of the worker processes by worker id.
    `exit_status` is that of its last unwanted end (negative: the signal), `log_tail` the end of its log where it is
    dead. `missing` says what a part that is ``starting`` does not do yet.
    """

    name: str
    state: str
    pid: int | None = None
    port: int | None = None
    rss_mib: int = 0
    uptime_s: float = 0.0
    restarts: int = 0
    exit_status: int | None = None
    workers: Mapping[str, int] | None = None
    missing: str | None = None
    log_tail: tuple[str, ...] = ()


class Stack:
    """The stack whose processes, logs and data belong to `home`.

    Without `ports`, those it last came up with, else the usual ones. `parts` is for tests.
    """

    def __init__(self, home: Path, ports: Ports | None = None, parts: Sequence[Part] = PARTS) -> None:
        self._parts = {part.name: part for part in parts}
        home = home.expanduser().absolute()
        remembered = _read_ports(home / "run" / "ports.json")
        self._running_ports = remembered
        self.place = Place(home, (ports or remembered or Ports()).checked())

    @classmethod
    def default(cls) -> Stack:
        """The stack of this checkout: home $FARCALL_HOME, else .farcall/stack; ports $FARCALL_PORTS, as --ports."""
        named = os.environ.get("FARCALL_PORTS")
        return cls(default_home(), Ports.parse(named) if named else None)

    @classmethod
    def for_cluster(cls, master: str, has_jars: bool = False) -> Stack:
        """What submits jobs to a Flink that runs elsewhere, at HOST:PORT: on free ports, in a folder of its own.

        `has_jars`: that Flink has Beam's jars on its class path, so that a job uploads none.
        """
        home = default_home().with_name(f"submit-{os.getpid()}")
        return cls(home, Ports.free(), submitter(master, has_jars))

    @property
    def endpoints(self) -> Endpoints:
        """Where a client finds what, whether it is up or not."""
        at = self.place.ports.address
        return Endpoints(
            kafka=at("kafka"),
            flink=at("flink"),
            job_server=at("job_server"),
            artifacts=at("artifacts"),
            expansion=at("expansion"),
            workers=at("workers"),
            llm=f"http://{at('llm')}/v1",
            connect=f"http://{at('connect')}",
            postgresql=postgresql.url(self.place.ports.postgresql),
            registry=f"http://{at('registry')}/apis/ccompat/v7",
            metrics=(at("metrics_jobmanager"), at("metrics_taskmanager")),
        )

    def up(self, parts: Iterable[str] | None = None, report: Report = lambda _: None) -> None:
        """Start what is not running of `parts` (without a word all but those on request) and wait until each really answers.

        Raises SettingsError before anything is started, for an unknown part, a missing program or a taken port;
        StackError with the end of its log for a part that ended or was not ready in time. The others stay up.
        """
        wanted = self._resolve(parts)
        self._check(wanted)
        for name in wanted:
            for artifact in self._parts[name].artifacts():
                artifacts.fetch(artifact, report)
        with self._alone():
            self._make_folders()
            before = self._launch(wanted)
            self._wait_ready(wanted, before, report)

    def down(self, parts: Iterable[str] | None = None, wipe: bool = False) -> list[str]:
        """End the processes of `parts`, or everything with its supervisor; returns the names of the parts ended.

        Ends nothing this stack did not start. `wipe` also deletes its data, once nothing runs. Raises StackError where
        a process does not even end when killed.
        """
        # Without it no stack ever was there, and a folder called data is somebody else's.
        if not (self.place.run / "stack.lock").exists():
            return []
        names = None if parts is None else self._resolve(parts, with_required=False)
        with self._alone():
            ended = self._end(names)
            if names is None:
                for leftover in ("plan.json", "state.json", "ports.json", "workers.json"):
                    (self.place.run / leftover).unlink(missing_ok=True)
                if wipe:
                    self._wipe()
        return ended

    def status(self) -> list[PartStatus]:
        """How each part is, the supervisor last. Takes about two seconds where a part does not answer."""
        state, plan = supervisor.read_state(self.place.run), supervisor.read_plan(self.place.run)
        ours = processes.marked(self.place.home, processes.look_at_all())
        with ThreadPoolExecutor(max_workers=len(self._parts)) as pool:
            rows = list(
                pool.map(
                    lambda part: self._status(
                        part, state.parts.get(part.name, Seen()), plan.get(part.name), ours.get(part.name, [])
                    ),
                    self._parts.values(),
                )
            )
        return [*rows, self._supervisor_status(state.supervisor, bool(plan), ours.get(supervisor.NAME, []))]

    def log_tail(self, part: str, lines: int = LOG_LINES) -> list[str]:
        """The last `lines` lines of a part's log; none where it has none."""
        return tail(self.place.log(part), lines)

    def _resolve(self, parts: Iterable[str] | None, with_required: bool = True) -> list[str]:
        """The names of the parts meant, in the order of the stack, with what they need."""
        if parts is None:
            return [name for name, part in self._parts.items() if not part.on_request]
        asked = [name for word in parts for name in GROUPS.get(word, (word,))]
        for name in asked:
            if name not in self._parts:
                known = ", ".join(
                    [*self._parts, *(group for group in GROUPS if set(GROUPS[group]) <= set(self._parts))]
                )
                raise SettingsError(f"The stack has no part {name!r}; it has {known}.")
        meant = set(asked)
        while with_required and (more := {need for name in meant for need in self._parts[name].requires} - meant):
            meant |= more
        return [name for name in self._parts if name in meant]

    def _check(self, wanted: Sequence[str]) -> None:
        """Refuse what cannot work before anything is started or fetched."""
        state = supervisor.read_state(self.place.run)
        alive = [name for name, seen in state.parts.items() if seen.alive()]
        if alive and self._running_ports not in (None, self.place.ports):
            raise SettingsError(
                f"This stack already runs ({', '.join(alive)}) on other ports; "
                "end it with `down` first, or give the second stack its own --home."
            )
        missing = [self._parts[name] for name in wanted if name not in alive]
        for part in missing:
            part.check(self.place)
        tools = [tool for part in missing for tool in part.tools]
        fetched = [artifact for part in missing for artifact in part.artifacts()]
        artifacts.check_tools(dict.fromkeys([*tools, *artifacts.missing_tools(fetched)]))
        refuse_taken(self.place.ports, [(part.name, port) for part in missing for port in part.port_names])

    def _make_folders(self) -> None:
        for folder in (self.place.conf, self.place.logs, self.place.run, self.place.data):
            folder.mkdir(parents=True, exist_ok=True)
        (self.place.run / "ports.json").write_text(json.dumps(dict(self.place.ports.as_dict())))

    def _launch(self, wanted: Sequence[str]) -> Mapping[str, Seen]:
        """Put the parts into the plan and make sure that a supervisor follows it; returns what was known before."""
        state, plan = supervisor.read_state(self.place.run), supervisor.read_plan(self.place.run)
        for name in wanted:
            command = self._parts[name].command(self.place)
            planned = Planned(command.words, dict(command.env), str(self.place.log(name)))
            running = name in plan and state.parts.get(name, Seen()).alive()
            # A part that runs keeps what it was started with.
            plan[name] = replace(plan[name], wanted=True) if running else planned
        supervisor.write_plan(self.place.run, plan)
        if state.supervisor is None or not state.supervisor.alive():
            self._start_supervisor()
        return state.parts

    def _start_supervisor(self) -> None:
        log = self.place.log(supervisor.NAME)
        env = {
            **os.environ,
            processes.MARK: f"{self.place.home}|{supervisor.NAME}",
            "PYTHONPATH": str(ROOT),
        }
        appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "runners.local.supervisor", str(self.place.home)],
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), appended, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        deadline_s = time.monotonic() + _SUPERVISOR_WITHIN_S
        while True:
            # It writes its state before it does anything else.
            written = supervisor.read_state(self.place.run).supervisor
            if written is not None and written.alive():
                return
            if time.monotonic() > deadline_s:
                raise StackError(self._obituary(supervisor.NAME, "The supervisor did not start."))
            time.sleep(_POLL_S)

    def _wait_ready(self, wanted: Sequence[str], before: Mapping[str, Seen], report: Report) -> None:
        """Wait for all parts side by side; what failed leaves the plan, so that it does not fail on and on unseen."""
        said = threading.Lock()

        def wait(name: str) -> str | None:
            was_alive = before.get(name, Seen()).alive()
            began_s = time.monotonic()
            part = self._parts[name]
            failure = self._wait_part(part, before.get(name, Seen()).deaths)
            port = next(iter(part.port_names), None)
            where = f", {part.url(self.place) if part.url else self.place.ports.address(port)}" if port else ""
            how = "runs already" if was_alive else f"ready in {time.monotonic() - began_s:.1f} s"
            with said:
                report(f"{name} … {failure.splitlines()[0] if failure else how + where}")
            return failure

        with ThreadPoolExecutor(max_workers=len(wanted) or 1) as pool:
            failures = dict(zip(wanted, pool.map(wait, wanted), strict=True))
        failed = [name for name, failure in failures.items() if failure]
        if failed:
            self._give_up(failed)
            raise StackError("\n".join(failure for failure in failures.values() if failure))

    def _wait_part(self, part: Part, deaths: int) -> str | None:
        """None when the part answers; else how it failed, with the end of its log."""
        deadline_s = time.monotonic() + part.ready_within_s
        missing: str | None = "was not started"
        while time.monotonic() < deadline_s:
            seen = supervisor.read_state(self.place.run).parts.get(part.name, Seen())
            if seen.deaths > deaths:
                return self._obituary(
                    part.name, f"{part.name} ended while it was starting, {supervisor.how(seen.exit_status)}."
                )
            if seen.alive():
                missing = part.probe(self.place)
                if missing is None:
                    return None
            time.sleep(_PROBE_EVERY_S)
        waited = f"{part.name} was not ready within {part.ready_within_s:.0f} s: {missing}."
        return self._obituary(part.name, waited)

    def _obituary(self, name: str, sentence: str) -> str:
        shown = "".join(f"\n    {line}" for line in self.log_tail(name))
        return f"{sentence} The end of {self.place.log(name)}:{shown or ' (empty)'}"

    def _give_up(self, names: Sequence[str]) -> None:
        """Leave the parts named in the plan as failed, so that `status` shows them, and end what is left of them."""
        plan = supervisor.read_plan(self.place.run)
        supervisor.write_plan(
            self.place.run,
            {name: replace(part, wanted=part.wanted and name not in names) for name, part in plan.items()},
        )
        self._stop(set(names))

    def _end(self, names: Sequence[str] | None) -> list[str]:
        """End the processes of the parts named, or all and the supervisor, and take them out of the plan."""
        plan = supervisor.read_plan(self.place.run)
        kept = {} if names is None else {name: part for name, part in plan.items() if name not in names}
        supervisor.write_plan(self.place.run, kept)
        if names is None:
            # First, or it would report deaths that are none.
            self._stop({supervisor.NAME})
        return sorted(self._stop(None if names is None else set(names)))

    def _stop(self, names: set[str] | None) -> set[str]:
        """End every process of the parts named, or of all; returns the names of those that had any."""
        state = supervisor.read_state(self.place.run)
        ours = processes.marked(self.place.home, processes.look_at_all())
        chosen = {name: found for name, found in ours.items() if names is None or name in names}
        known = {
            seen.process for name, seen in state.parts.items() if (names is None or name in names) and seen.alive()
        }
        found = {facts.id for members in chosen.values() for facts in members}
        # First the heads, which end their own children in good order, then what they left.
        heads = known | {facts.id for members in chosen.values() for facts in members if facts.session == facts.id.pid}
        left = processes.stop(heads, _GRACE_S) + processes.stop(found - heads, _GRACE_S)
        if left:
            pids = ", ".join(str(each.pid) for each in left)
            raise StackError(f"These processes of the stack do not end even when killed: {pids}.")
        return set(chosen) - {supervisor.NAME}

    def _status(self, part: Part, seen: Seen, planned: Planned | None, ours: Sequence[Facts]) -> PartStatus:
        row = PartStatus(
            part.name,
            "stopped",
            port=next((self.place.ports.as_dict()[name] for name in part.port_names), None),
            restarts=seen.restarts,
            exit_status=seen.exit_status,
        )
        if seen.alive():
            missing = part.probe(self.place)
            return replace(
                row,
                state="up" if missing is None else "starting",
                pid=seen.pid,
                rss_mib=_rss_mib(ours),
                uptime_s=round(seen.process.uptime_s(), 1),
                workers=workers.read_pids(self.place.run / "workers.json") if part.name == "workers" else None,
                missing=missing,
            )
        if planned is not None:
            return replace(row, state="dead", log_tail=tuple(self.log_tail(part.name)))
        return row

    def _supervisor_status(self, process: ProcessId | None, planned: bool, ours: Sequence[Facts]) -> PartStatus:
        if process is not None and process.alive():
            return PartStatus(
                supervisor.NAME, "up", process.pid, rss_mib=_rss_mib(ours), uptime_s=round(process.uptime_s(), 1)
            )
        if planned:
            return PartStatus(supervisor.NAME, "dead", log_tail=tuple(self.log_tail(supervisor.NAME)))
        return PartStatus(supervisor.NAME, "stopped")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` or `down` of this stack at a time; the next waits."""
        with artifacts.locked(self.place.run / "stack.lock"):
            yield

    def _wipe(self) -> None:
        for folder in (self.place.data, self.place.conf, self.place.logs):
            shutil.rmtree(folder, ignore_errors=True)


def default_home() -> Path:
    """$FARCALL_HOME, else .farcall/stack in the checkout."""
    named = os.environ.get("FARCALL_HOME")
    return Path(named).expanduser().absolute() if named else ROOT / ".farcall" / "stack"


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines of a text file; none where there is no such file."""
    try:
        with open(path, "rb") as file:
            # Lines of a log are short; 64 KiB and 512 bytes a line hold as many as anybody reads at once.
            file.seek(-min(path.stat().st_size, (64 << 10) + 512 * lines), os.SEEK_END)
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []


def _read_ports(path: Path) -> Ports | None:
    try:
        return Ports(**json.loads(path.read_text()))
    except (FileNotFoundError, TypeError, ValueError):
        return None


def _rss_mib(members: Iterable[Facts]) -> int:
    return sum(facts.rss_bytes for facts in members) >> 20


__all__ = ["Endpoints", "PartStatus", "Stack", "default_home", "tail"]
