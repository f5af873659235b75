"""Reading the JSON body of an answer, and the sentences where it cannot be read. For all wire protocols."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from transforms.errors import BrokenReply

T = TypeVar("T")


class _Failure(msgspec.Struct):
    error: Any = None


_failures = msgspec.json.Decoder(_Failure)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Return `body`, read by `decoder`.

    Raises:
        BrokenReply: it is no JSON in UTF-8, lacks something, has something of another type, or is an object whose
            ``error`` says that the server failed, in the manner of OpenAI's.
    """
    try:
        return decoder.decode(body)
    except _UNREADABLE as error:
        raise BrokenReply(_why(body, error)) from None


def excerpt_of(failure: Any) -> str:
    """Return the text of the value of ``error`` in a body: its ``message`` where it is an object."""
    return str(failure.get("message") if isinstance(failure, dict) else failure)


def _why(body: bytes, error: Exception) -> str:
    """A sentence that says what is wrong with `body`, where `error` came of reading it."""
    if not isinstance(error, msgspec.ValidationError):
        return f"The answer is not JSON in UTF-8: {error}."
    try:
        failure = _failures.decode(body).error
    except _UNREADABLE:
        failure = None
    if failure is None:
        return f"The answer does not follow the protocol: {error}."
    return f"The answer has a status of success but is an error object: {excerpt_of(failure)}."
