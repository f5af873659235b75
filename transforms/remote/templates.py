"""Values with expressions in them, for bodies that a file describes.

A template is any value that JSON can write. In its texts ``{{ … }}`` encloses a JMESPath expression (jmespath.org, the
specification of JMESPath; the library `jmespath` is its reference implementation). A text that is one expression and nothing
else becomes the value of it, whatever its type; in other texts the value is put in, text as it is and everything else as JSON.
Everything else in the template stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError

from transforms.errors import SettingsError

Fill = Callable[[Mapping[str, Any]], Any]
"""A template, made ready: the values by name go in, the filled value comes out. Raises ValueError where it cannot be filled."""

_OPEN, _CLOSE = "{{", "}}"


class Expression:
    """A JMESPath expression, made ready.

    Raises:
        SettingsError: it is none.
    """

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        try:
            self._parsed = jmespath.compile(self.text)
        except JMESPathError as error:
            raise SettingsError(f"{self.text} is no JMESPath expression: {_first_line(error)}.") from None

    def __call__(self, data: Any) -> Any:
        """Return its value for `data`; None where there is none.

        Raises:
            ValueError: a function in it cannot take what it was given.
        """
        try:
            return self._parsed.search(data)
        except (JMESPathError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"the expression {self.text} cannot be evaluated: {_first_line(error)}") from None


def compile_template(template: Any) -> Fill:
    """Return `template`, made ready.

    Raises:
        SettingsError: an expression in it is none, or is not closed.
    """
    if isinstance(template, str):
        return _text(template)
    if isinstance(template, Mapping):
        fields = {name: compile_template(value) for name, value in template.items()}
        return lambda values: {name: fill(values) for name, fill in fields.items()}
    if isinstance(template, list | tuple):
        items = [compile_template(item) for item in template]
        return lambda values: [fill(values) for fill in items]
    return lambda _: template


def _text(template: str) -> Fill:
    parts = _parts(template)
    if not any(isinstance(part, Expression) for part in parts):
        return lambda _: template
    if len(parts) == 1:
        return parts[0]  # type: ignore[return-value]
    return lambda values: "".join(part if isinstance(part, str) else _inserted(part, values) for part in parts)


def _inserted(expression: Expression, values: Mapping[str, Any]) -> str:
    value = expression(values)
    if value is None:
        raise ValueError(f"the expression {expression.text} gives nothing to put into a text")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def _parts(template: str) -> list[str | Expression]:
    """The texts and expressions that a template consists of, in their order; no empty texts."""
    parts: list[str | Expression] = []
    at = 0
    while (begin := template.find(_OPEN, at)) >= 0:
        parts.append(template[at:begin])
        expression, at = _expression(template, begin + len(_OPEN))
        parts.append(expression)
    parts.append(template[at:])
    return [part for part in parts if part]  # an expression is true


def _expression(template: str, begin: int) -> tuple[Expression, int]:
    """The expression that begins there, and where the text goes on. Its own braces may look like its end."""
    end, failed = template.find(_CLOSE, begin), None
    while end >= 0:
        try:
            return Expression(template[begin:end]), end + len(_CLOSE)
        except SettingsError as error:
            failed = failed or error
        end = template.find(_CLOSE, end + 1)
    raise failed or SettingsError(f"{template[begin - len(_OPEN) :][:60]} has no closing {_CLOSE}.")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".:") if str(error) else type(error).__name__
