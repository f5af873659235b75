"""`python -m runners.local up|down|status|logs`: the local stack from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runners.local import supervisor
from runners.local.part import StackError
from runners.local.parts import GROUPS, PARTS
from runners.local.ports import Ports, flag_name
from runners.local.stack import PartStatus, Stack, default_home, tail
from transforms.errors import SettingsError

_DESCRIPTION = f"""\
The local stack as plain processes on 127.0.0.1: Kafka, Flink, Beam's job server, a pool of
Python workers and a small language model.

Parts: {", ".join(part.name for part in PARTS if not part.on_request)};
on request {", ".join(part.name for part in PARTS if part.on_request)}; `flink` stands for {", ".join(GROUPS["flink"])}.
Ports: {", ".join(f"{flag_name(name)}={port}" for name, port in Ports().as_dict().items())}.

$FARCALL_HOME, $FARCALL_PORTS and $FARCALL_CACHE stand for --home, --ports and the folder of what was fetched.
Exit status: 0 all is well; 1 a part is not up or did not start; 2 a flag is wrong, a port is taken or a program missing.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        status: int = given.run(_stack(given), given)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; what was started goes on until `down`.", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--home", type=Path, help="folder of the stack's logs and data (default: .farcall/stack)")
    common.add_argument("--ports", metavar="PART=PORT,…", help="other ports, for example kafka=29092,flink=28081")
    parser = argparse.ArgumentParser(
        prog="python -m runners.local", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="up|down|status|logs")
    up = verbs.add_parser("up", parents=[common], help="start what is not running and wait until it answers")
    up.add_argument("parts", nargs="*", help="only these parts and what they need")
    up.add_argument("--with", dest="more", action="append", default=[], metavar="PART", help="this part too")
    up.set_defaults(run=_up)
    down = verbs.add_parser("down", parents=[common], help="end what `up` started, and nothing else")
    down.add_argument("parts", nargs="*", help="only these parts")
    down.add_argument("--wipe", action="store_true", help="delete logs and data too")
    down.set_defaults(run=_down)
    status = verbs.add_parser("status", parents=[common], help="a table of the parts; exit status 1 unless all are up")
    status.add_argument("--json", action="store_true", help="as JSON, with the pid of each worker")
    status.set_defaults(run=_status)
    logs = verbs.add_parser("logs", parents=[common], help="the end of the log of one part or of all")
    logs.add_argument("part", nargs="?", help="a part, supervisor, or worker-ID")
    logs.add_argument("-n", type=int, default=20, metavar="N", help="how many lines (default: 20)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is added")
    logs.set_defaults(run=_logs)
    return parser


def _stack(given: argparse.Namespace) -> Stack:
    ports = given.ports or os.environ.get("FARCALL_PORTS")
    return Stack(given.home or default_home(), Ports.parse(ports) if ports else None)


def _say(line: str) -> None:
    print(line, flush=True)


def _up(stack: Stack, given: argparse.Namespace) -> int:
    began_s = time.monotonic()
    stack.up([*(given.parts or usual()), *given.more] if given.more else given.parts or None, _say)
    _say(f"up in {time.monotonic() - began_s:.1f} s; logs in {stack.place.logs}")
    return 0


def usual() -> list[str]:
    """The names of the parts that are started without being named."""
    return [part.name for part in PARTS if not part.on_request]


def _down(stack: Stack, given: argparse.Namespace) -> int:
    if given.wipe and given.parts:
        raise SettingsError("--wipe deletes the data of the whole stack; it goes without names of parts.")
    ended = stack.down(given.parts or None, given.wipe)
    _say(f"ended {', '.join(ended)}" if ended else "nothing was running")
    return 0


def _status(stack: Stack, given: argparse.Namespace) -> int:
    rows = stack.status()
    if given.json:
        content = {"home": str(stack.place.home), "parts": [dataclasses.asdict(row) for row in rows]}
        print(json.dumps(content, indent=1))
    else:
        for line in table(rows):
            print(line)
        for row in rows:
            if row.state == "dead":
                print(f"\nthe end of {stack.place.log(row.name)}:")
                print("\n".join(f"    {line}" for line in row.log_tail) or "    (empty)")
    resting = {part.name for part in PARTS if part.on_request}
    return 0 if all(row.state == "up" or (row.name in resting and row.state == "stopped") for row in rows) else 1


def table(rows: Sequence[PartStatus]) -> list[str]:
    """The lines of the table that `status` prints."""
    return [
        f"{'part':<12} {'state':<9} {'pid':>8} {'port':>6} {'RSS MiB':>8} {'uptime':>8} {'restarts':>9}",
        *map(_line, rows),
        f"{'total':<12} {'':<9} {'':>8} {'':>6} {sum(row.rss_mib for row in rows):>8}",
    ]


def _line(row: PartStatus) -> str:
    count = len(row.workers or ())
    return (
        f"{row.name:<12} {row.state:<9} {row.pid or '-':>8} {row.port or '-':>6} {row.rss_mib or '-':>8} "
        f"{_uptime(row.uptime_s) if row.pid else '-':>8} {row.restarts:>9}"
        + (f"  {row.missing}" if row.missing else "")
        + (f"  {count} worker process{'es' if count > 1 else ''}" if count else "")
    )


def _uptime(seconds: float) -> str:
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _logs(stack: Stack, given: argparse.Namespace) -> int:
    known = sorted(path.stem for path in stack.place.logs.glob("*.log"))
    if given.part and given.part not in known:
        allowed = [part.name for part in PARTS] + [supervisor.NAME]
        if given.part not in allowed:
            raise SettingsError(f"There is no log of {given.part!r}; there are {', '.join(known) or 'none yet'}.")
    chosen = [given.part] if given.part else known
    for name in chosen:
        lines = tail(stack.place.log(name), given.n)
        for line in lines:
            print(line if given.part else f"{name:<12} {line}")
    if given.follow:
        _follow(stack, chosen, labelled=not given.part)
    return 0


def _follow(stack: Stack, chosen: Sequence[str], labelled: bool) -> None:
    """Print what is added to the logs until interrupted."""
    at = {name: _size(stack.place.log(name)) for name in chosen}
    while True:
        for name in chosen:
            path = stack.place.log(name)
            size = _size(path)
            if size < at[name]:
                at[name] = 0
            if size > at[name]:
                with open(path, "rb") as file:
                    file.seek(at[name])
                    added = file.read()
                # Half a line waits for its other half.
                whole = added[: added.rfind(b"\n") + 1]
                at[name] += len(whole)
                for line in whole.decode(errors="replace").splitlines():
                    print(f"{name:<12} {line}" if labelled else line, flush=True)
        time.sleep(0.2)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
