"""The ports of a stack, and the refusal of one that somebody else holds."""

from __future__ import annotations

import dataclasses
import errno
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from transforms.errors import SettingsError

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """The port of each part, all on 127.0.0.1. On the command line a field's name has dashes: ``job-server=18099``."""

    kafka: int = 19092
    kafka_controller: int = 19093
    flink: int = 18081
    flink_rpc: int = 18123
    job_server: int = 18099
    artifacts: int = 18098
    expansion: int = 18097
    workers: int = 18050
    llm: int = 18088
    metrics_jobmanager: int = 19249
    metrics_taskmanager: int = 19250
    registry: int = 18082
    connect: int = 18083
    postgresql: int = 15432

    @classmethod
    def parse(cls, text: str, base: Ports | None = None) -> Ports:
        """Read ``kafka=19092,flink=18081``; ports not named stay as in `base`.

        Raises SettingsError for an unknown name, a port that is no number from 1 to 65535, or one given twice.
        """
        changes: dict[str, int] = {}
        for entry in filter(None, (piece.strip() for piece in text.split(","))):
            name, _, value = entry.partition("=")
            field = name.strip().replace("-", "_")
            if field not in names():
                known = ", ".join(map(flag_name, names()))
                raise SettingsError(f"--ports names {name.strip()!r}, which is no port of the stack; it has {known}.")
            if not value.strip().isdigit() or not 1 <= int(value) <= 65535:
                raise SettingsError(f"--ports gives {entry!r}, but a port is a number from 1 to 65535.")
            changes[field] = int(value)
        return dataclasses.replace(base or cls(), **changes).checked()

    @classmethod
    def free(cls) -> Ports:
        """Ports nobody listens on at this moment, for a second stack beside the usual one."""
        sockets = [socket.socket() for _ in names()]
        try:
            for each in sockets:
                each.bind((HOST, 0))
            return cls(*(each.getsockname()[1] for each in sockets))
        finally:
            for each in sockets:
                each.close()

    def checked(self) -> Ports:
        """These ports; raises SettingsError where two parts share one."""
        seen: dict[int, str] = {}
        for name, port in self.as_dict().items():
            if port in seen:
                raise SettingsError(
                    f"Port {port} is given to {flag_name(seen[port])} and to {flag_name(name)}; "
                    f"name another with --ports {flag_name(name)}=PORT."
                )
            seen[port] = name
        return self

    def as_dict(self) -> Mapping[str, int]:
        """Field names and ports."""
        return MappingProxyType(dataclasses.asdict(self))

    def address(self, name: str) -> str:
        """``host:port`` of the port called `name`."""
        return f"{HOST}:{self.as_dict()[name]}"


def names() -> tuple[str, ...]:
    """The names of all ports, as in `Ports`."""
    return tuple(field.name for field in dataclasses.fields(Ports))


def flag_name(name: str) -> str:
    """The name of a port as a person types it."""
    return name.replace("_", "-")


def is_taken(port: int) -> bool:
    """Whether somebody listens on `port` of this machine's 127.0.0.1."""
    with socket.socket() as probe:
        # Without this, a port in TIME_WAIT after the last stop would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EACCES:
                raise SettingsError(f"Port {port} may not be opened by this user; choose one above 1023.") from error
            return True
    return False


def refuse_taken(ports: Ports, wanted: Iterable[tuple[str, str]]) -> None:
    """Raise SettingsError for the first (part, port name) in `wanted` whose port somebody else holds."""
    for part, name in wanted:
        port = ports.as_dict()[name]
        if is_taken(port):
            raise SettingsError(
                f"Port {port}, which {part} needs, is taken by another process; "
                f"stop that one or choose another port with --ports {flag_name(name)}=PORT."
            )
