"""Tensors as plain values: checked, packed into bytes and back, nested and flat, joined along rows and cut apart again.

Sources: the datatypes and the layout of binary data are those of the Open Inference Protocol, version 2: row-major, little-endian,
without gaps; an element of BYTES stands behind its length in four bytes. For all wire protocols that carry tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from transforms.errors import BrokenReply, Refused
from transforms.remote.questions import Question, Tensor, Tensors

_BITS = (8, 16, 32, 64)
_INTEGERS = {
    **{f"INT{bits}": f"<i{bits // 8}" for bits in _BITS},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in _BITS},
}
_BOUNDS = {
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in _BITS},
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in _BITS},
}
_FLOATS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
_DTYPES = {"BOOL": "|b1", **_INTEGERS, **_FLOATS}

DATATYPES = frozenset({*_DTYPES, "BYTES"})
"""The datatypes of tensors."""

FLOATING = frozenset(_FLOATS)
"""Those whose elements are float."""

_LENGTH_BYTES = 4


def inputs_of(question: Question, protocol: str) -> tuple[Tensor, ...]:
    """Return the tensors of a question to `protocol`, each of which has rows.

    Raises:
        Refused: it is no `Tensors`, or has none.
    """
    if not isinstance(question, Tensors):
        raise Refused(f"{protocol} takes tensors; a question of the kind {type(question).__name__} it has not.", 0)
    if not question.inputs or not question.inputs[0].shape:
        raise Refused("The question has no tensor, or one without rows.", 0)
    return question.inputs


def values_of(outputs: Sequence[Tensor]) -> dict[str, list[Any]]:
    """Return the outputs by name, as plain lists: of elements, or of rows where there are further dimensions."""
    return {output.name: _plain_rows(output) for output in outputs}


def _plain_rows(output: Tensor) -> list[Any]:
    elements = [_plain(element) for element in output.data]
    width = math.prod(output.shape[1:])
    if len(output.shape) == 1:
        return elements
    return [elements[row * width : (row + 1) * width] for row in range(output.shape[0])]


def _plain(element: Any) -> Any:
    if not isinstance(element, bytes):
        return element
    try:
        return element.decode()
    except UnicodeDecodeError:
        return element


def join_rows(records: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Return the tensors of one request for many records, joined along the first dimension in the order of `records`.

    Every record has the same tensors in the same order; what is not the first dimension must agree.

    Raises:
        ValueError: they do not agree, or a tensor has no dimension to join along.
    """
    joined = []
    for column in zip(*records, strict=True):
        first = column[0]
        kinds = {(tensor.name, tensor.datatype, tensor.shape[1:], len(tensor.shape) > 0) for tensor in column}
        if kinds != {(first.name, first.datatype, first.shape[1:], True)}:
            raise ValueError(f"the tensors {first.name} of the records cannot be joined: they differ, or have no rows")
        data = [element for tensor in column for element in tensor.data]
        rows = sum(tensor.shape[0] for tensor in column)
        joined.append(Tensor(first.name, first.datatype, (rows, *first.shape[1:]), data, first.parameters))
    return tuple(joined)


def split_rows(outputs: Sequence[Tensor], rows: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Return the output tensors of each record, where `rows` says how many rows each had in `join_rows`.

    Raises:
        BrokenReply: an output has not as many rows as the records together.
    """
    total = sum(rows)
    for output in outputs:
        if not output.shape or output.shape[0] != total:
            shape = list(output.shape)
            raise BrokenReply(
                f"The answer's tensor {output.name} of shape {shape} has not one row for each of {total}."
            )
    begins = accumulate(rows, initial=0)
    return [
        tuple(_rows(output, begin, begin + count) for output in outputs)
        for begin, count in zip(begins, rows, strict=False)
    ]


def _rows(tensor: Tensor, begin: int, end: int) -> Tensor:
    width = math.prod(tensor.shape[1:])
    data = tensor.data[begin * width : end * width]
    return Tensor(tensor.name, tensor.datatype, (end - begin, *tensor.shape[1:]), data, tensor.parameters)


def json_elements(tensor: Tensor) -> list[Any]:
    """Return the elements as JSON takes them.

    Raises:
        ValueError: JSON would write one as something else, or one is not of the datatype.
    """
    if tensor.datatype == "FP16":
        raise ValueError(f"the tensor {tensor.name} is FP16, which has no form in JSON; send it as binary data")
    elements = elements_of(tensor)
    if tensor.datatype == "BYTES":
        return [element.decode() for element in elements]
    if tensor.datatype in _FLOATS and not all(map(math.isfinite, elements)):
        raise ValueError(f"the tensor {tensor.name} holds a number that is not finite; send it as binary data")
    return elements


def check_shape(tensor: Tensor) -> None:
    """Raise ValueError unless the datatype is known and the elements are as many as the shape says."""
    if tensor.datatype not in DATATYPES:
        raise ValueError(
            f"the tensor {tensor.name} has the datatype {tensor.datatype}, which is none of the protocol's"
        )
    if any(size < 0 for size in tensor.shape) or math.prod(tensor.shape) != len(tensor.data):
        raise ValueError(f"the tensor {tensor.name} of shape {list(tensor.shape)} has {len(tensor.data)} elements")


def received(
    name: str, datatype: str, shape: Sequence[int], elements: list[Any], parameters: Mapping[str, Any]
) -> Tensor:
    """Return a tensor of an answer, checked; numbers of a floating datatype are float.

    Raises:
        BrokenReply: the datatype is not known, or shape and elements contradict it.
    """
    check_received(name, datatype, shape)
    if not all(fits(element, datatype) for element in elements):
        raise BrokenReply(f"The answer's tensor {name} has elements that are no {datatype}.")
    if len(elements) != math.prod(shape):
        raise BrokenReply(f"The answer's tensor {name} of shape {list(shape)} has {len(elements)} elements.")
    floating = datatype in FLOATING
    return Tensor(
        name, datatype, tuple(shape), [float(element) for element in elements] if floating else elements, parameters
    )


def check_received(name: str, datatype: str, shape: Sequence[int]) -> None:
    """Raise BrokenReply for a tensor of an answer whose datatype is not known or whose shape is none."""
    if datatype not in DATATYPES:
        raise BrokenReply(f"The answer's tensor {name} has the unknown datatype {datatype[:40]}.")
    if any(size < 0 for size in shape):
        raise BrokenReply(f"The answer's tensor {name} has the shape {list(shape)}.")


def pack(tensor: Tensor) -> bytes:
    """Return the elements as binary data.

    Raises:
        ValueError: one is not of the datatype, or too large for it.
    """
    elements = elements_of(tensor)
    if tensor.datatype == "BYTES":
        return b"".join(map(_with_length, elements))
    if tensor.datatype not in _FLOATS:
        return np.array(elements, dtype=_DTYPES[tensor.datatype]).tobytes()
    try:
        with np.errstate(over="raise"):
            return np.array(elements, dtype=np.float64).astype(_FLOATS[tensor.datatype]).tobytes()
    except (OverflowError, FloatingPointError):
        raise ValueError(f"the tensor {tensor.name} holds a number too large for {tensor.datatype}") from None


def elements_of(tensor: Tensor) -> list[Any]:
    """Return the elements of a request's tensor as a list, text as `bytes`.

    Raises:
        ValueError: one is not of the datatype.
    """
    data = tensor.data
    elements = data.tolist() if isinstance(data, np.ndarray) else list(data)
    if tensor.datatype == "BYTES":
        elements = [element.encode() if isinstance(element, str) else element for element in elements]
    if not all(fits(element, tensor.datatype) for element in elements):
        raise ValueError(f"the tensor {tensor.name} has elements that are no {tensor.datatype}")
    return elements


def _with_length(element: bytes) -> bytes:
    return len(element).to_bytes(_LENGTH_BYTES, "little") + element


def flat(nested: list[Any], shape: Sequence[int], name: str) -> list[Any]:
    """Return the elements of `nested`, whose lists must be as long as `shape` says, all the way down.

    Raises:
        BrokenReply: they are not.
    """
    level: list[Any] = [nested]
    for size in shape:
        if not all(isinstance(part, list) and len(part) == size for part in level):
            raise BrokenReply(f"The answer's tensor {name} is not nested as its shape {list(shape)} says.")
        level = [element for part in level for element in part]
    return level


def fits(element: Any, datatype: str) -> bool:
    """Return whether an element is of the datatype. Nothing is coerced but int to float."""
    if datatype == "BYTES":
        return isinstance(element, bytes)
    if datatype == "BOOL":
        return isinstance(element, bool)
    if datatype in _BOUNDS:
        least, greatest = _BOUNDS[datatype]
        return type(element) is int and least <= element <= greatest
    return type(element) in (int, float)


def unpack(name: str, datatype: str, data: bytes) -> list[Any]:
    """Return the elements that `data`, the binary data of the tensor `name`, holds.

    Raises:
        BrokenReply: it does not hold elements of this datatype.
    """
    if datatype == "BYTES":
        return _strings(name, data)
    dtype = np.dtype(_DTYPES[datatype])
    if len(data) % dtype.itemsize or (datatype == "BOOL" and data.strip(b"\0\1")):
        raise BrokenReply(f"The answer's tensor {name} has {len(data)} bytes that are no {datatype}.")
    elements: list[Any] = np.frombuffer(data, dtype).tolist()
    return elements


def _strings(name: str, data: bytes) -> list[bytes]:
    """The elements of BYTES in binary: each behind its length."""
    elements, at = [], 0
    while at < len(data):
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(data[at:begin], "little")
        if begin > len(data) or at > len(data):
            raise BrokenReply(f"The answer's tensor {name} has an element that is cut.")
        elements.append(data[begin:at])
    return elements
