"""What a runner is to this project, and what is common to checking the flags of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Check = Callable[[Sequence[str], str], None]


@dataclass(frozen=True)
class Runner:
    """One runner. `check` takes Beam's flags and the engine, and raises SettingsError where they cannot work together.

    `in_process` runners run worker code in the process that submits. `java_flags` are flags of a Java job server, which Beam's
    Python side learns only when it submits. `ask_mode` is how the asynchronous step runs there unless it is said: ``timers`` needs
    state and timers in processing time, ``bundles`` nothing.
    """

    name: str
    reads_kafka: bool
    in_process: bool
    check: Check
    java_flags: tuple[str, ...] = ()
    ask_mode: str = "timers"


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """The last value of ``flag=value`` or ``flag value`` among `arguments`; an empty string for a bare flag; None without it."""
    found = None
    for number, argument in enumerate(arguments):
        if argument == flag:
            following = arguments[number + 1] if number + 1 < len(arguments) else ""
            found = "" if following.startswith("--") else following
        elif argument.startswith(flag + "="):
            found = argument[len(flag) + 1 :]
    return found


def with_defaults(arguments: Sequence[str], defaults: Sequence[str]) -> list[str]:
    """`arguments`, and those of `defaults` whose flag is not among them."""
    given = {argument.split("=")[0] for argument in arguments}
    return [*arguments, *(default for default in defaults if default.split("=")[0] not in given)]
