"""Writing the JSON body of a request, reading that of an answer, and the sentences where it cannot be read. For all wire protocols."""

from __future__ import annotations

import base64
import binascii
import json
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


def encode(value: Any, *, tokens: bool = False) -> bytes:
    """Return `value` as JSON. With `tokens`, numbers that are not finite are ``NaN``, ``Infinity`` and ``-Infinity``.

    Raises:
        TypeError, ValueError: something in it has no JSON form: such a number without `tokens`, or half of a surrogate pair.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=tokens, separators=(",", ":")).encode()


def decode_tokens(body: bytes) -> Any:
    """Return `body`, read as JSON in which ``NaN``, ``Infinity`` and ``-Infinity`` may stand for numbers.

    Raises:
        BrokenReply: it is no JSON in UTF-8.
    """
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise BrokenReply(_why(body, error)) from None


def with_base64(value: Any) -> Any:
    """Return `value` with each `bytes` in it as ``{"b64": …}``, as TensorFlow Serving and Vertex AI write binary data."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {name: with_base64(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_base64(item) for item in value]
    return value


def without_base64(value: Any) -> Any:
    """Return `value` with each ``{"b64": …}`` in it as `bytes`.

    Raises:
        BrokenReply: one is not base64.
    """
    if isinstance(value, list):
        return [without_base64(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise BrokenReply(f"The answer holds binary data that is not base64: {error}.") from None
    return {name: without_base64(item) for name, item in value.items()}


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
