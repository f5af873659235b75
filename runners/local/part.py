"""What a part of the local stack is: one frozen value says all there is to know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runners.local.ports import Ports
from transforms.errors import FarcallError

Report = Callable[[str], None]
"""Takes one finished line for the person who waits."""


class StackError(FarcallError):
    """A part of the local stack did not start, or what it needs could not be fetched."""


@dataclass(frozen=True)
class Place:
    """Where one stack lives: its folder and its ports."""

    home: Path
    ports: Ports

    @property
    def conf(self) -> Path:
        """The folder of the rendered settings files."""
        return self.home / "conf"

    @property
    def logs(self) -> Path:
        """The folder with one log file for each part."""
        return self.home / "logs"

    @property
    def run(self) -> Path:
        """The folder of the supervisor's own files."""
        return self.home / "run"

    @property
    def secrets(self) -> Path:
        """The folder of passwords that the stack made, one file each, named as the variable that workers have it in."""
        return self.data / "secrets"

    @property
    def data(self) -> Path:
        """The folder of what the parts store; `down --wipe` deletes it."""
        return self.home / "data"

    def log(self, part: str) -> Path:
        """The log file of `part`."""
        return self.logs / f"{part}.log"


@dataclass(frozen=True)
class Command:
    """A process to start: its words, and what its environment has beside the caller's."""

    words: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tool:
    """A program that must be on the machine before a part can run or be fetched."""

    name: str
    purpose: str
    how_to_get: str


@dataclass(frozen=True)
class Artifact:
    """Something fetched once into the cache.

    `key` names the entry (it holds the versions, so another version is another entry), `tool` what fetching needs
    beside Python, `fill` makes the entry at the path it is given.
    """

    title: str
    key: str
    fill: Callable[[Path], None]
    tool: Tool | None = None


@dataclass(frozen=True)
class Part:
    """One process of the stack.

    `command` renders the settings files and says what to start; it is called after all `artifacts` are in the cache.
    `probe` answers None when the part really works, else a few words on what is still missing; it takes at most two
    seconds. `port_names` are fields of `Ports`, the first the one a client connects to. `requires` names parts without
    which this one is of no use. `memory_mib` is what it may use at most, for the table in the docs. A part `on_request` is
    started only where it is named. `check` raises SettingsError where the part could not run at this place; it is called before
    anything is fetched. `url` is what a client is given, where host and port do not say it all; it holds no secret.
    """

    name: str
    command: Callable[[Place], Command]
    probe: Callable[[Place], str | None]
    port_names: tuple[str, ...] = ()
    artifacts: Callable[[], tuple[Artifact, ...]] = tuple
    tools: tuple[Tool, ...] = ()
    requires: tuple[str, ...] = ()
    ready_within_s: float = 60.0
    memory_mib: int = 0
    on_request: bool = False
    check: Callable[[Place], None] = lambda _: None
    url: Callable[[Place], str] | None = None
