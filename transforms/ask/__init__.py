"""The asynchronous step: asks a model server about each record without holding up the stream."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transforms.ask.step import Asked, AskModel

__all__ = ["AskModel", "Asked"]


def __getattr__(name: str) -> Any:
    # The step needs Beam; the other modules here do not, and their tests run without it.
    if name in __all__:
        from transforms.ask import step  # noqa: PLC0415

        return getattr(step, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
