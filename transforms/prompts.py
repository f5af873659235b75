"""Prompts as files: Jinja templates in its sandbox, by name and version, with a fence around what is data. No Beam."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from transforms.errors import SettingsError

_FENCE = re.compile(r"={4,}")


@lru_cache(maxsize=8)
def _environment(folder: Path) -> ImmutableSandboxedEnvironment:
    # Prompts are no HTML: a customer's & stays one. The sandbox keeps a template from reaching Python's insides, and a name that
    # is not there is an error, not an empty place in a prompt.
    return ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )


def render(folder: Path, name: str, values: Mapping[str, Any]) -> str:
    """Return the template ``folder/name.jinja`` with `values` in it, without white space around it.

    Raises:
        SettingsError: there is no such template, it is none, or it uses a name that `values` lack.
    """
    try:
        return _environment(folder).get_template(f"{name}.jinja").render(values).strip()
    except TemplateError as error:
        reason = error.message or type(error).__name__
        raise SettingsError(f"The prompt {name} in {folder} cannot be made: {reason}.") from None


def fence_of(*parts: str, digest_bytes: int = 6) -> str:
    """Return a line that bounds data in a prompt: the same for the same parts, and not to be guessed by who writes the data.

    Fewer `digest_bytes` make a line of fewer tokens, for a model that reads slowly; `without_fences` takes any such line out of data.
    """
    known = "\0".join(parts).encode("utf-8", "replace")
    return f"===== {blake2b(known, digest_size=digest_bytes).hexdigest()} ====="


def without_fences(text: str) -> str:
    """Return `text` without anything that looks like a fence."""
    return _FENCE.sub("===", text)
