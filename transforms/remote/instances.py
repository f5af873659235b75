"""The row format that TensorFlow Serving and Vertex AI share: a list of instances goes out, a list of predictions comes back.

An instance is any value of JSON, or an object of inputs by name. Questions are put behind one another, and the predictions given
back in the same order. A `Value` is one instance; the rows of a question's `Tensors` are one instance each, objects that hold the
row of each input by its name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from transforms.errors import BrokenReply, Refused
from transforms.remote.bodies import with_base64
from transforms.remote.questions import Question, Tensor, Value
from transforms.remote.tensors import check_shape, elements_of, inputs_of


def instances_of(question: Question, protocol: str) -> list[Any]:
    """Return the instances of one question to `protocol`.

    Raises:
        Refused: it is neither a `Value` nor `Tensors`, or its tensors have not the same number of rows.
        ValueError: a tensor contradicts its shape or datatype.
    """
    if isinstance(question, Value):
        return [with_base64(question.value)]
    inputs = inputs_of(question, protocol)
    if len({tensor.shape[:1] for tensor in inputs}) > 1:
        raise Refused("The question's tensors have not the same number of rows.", 0)
    columns = [(tensor.name, nested(tensor)) for tensor in inputs]
    return [{name: rows[row] for name, rows in columns} for row in range(inputs[0].shape[0])]


def nested(tensor: Tensor) -> Any:
    """Return a tensor's elements as lists in lists, as its shape says; bytes that are no text as ``{"b64": …}``.

    Raises:
        ValueError: it contradicts its shape or datatype.
    """
    check_shape(tensor)
    flat = [_plain(element) for element in elements_of(tensor)]
    return _folded(flat, tensor.shape)


def predictions_of(predictions: Any, questions: Sequence[Question]) -> list[Any]:
    """Return the value of each question's reply: for a `Value` its prediction, for `Tensors` one for each of their rows.

    The latter are a dict of lists by output where predictions are objects, and a list where they are not.

    Raises:
        BrokenReply: `predictions` is no list, or does not hold one for each instance.
    """
    counts = [1 if isinstance(question, Value) else inputs_of(question, "")[0].shape[0] for question in questions]
    if not isinstance(predictions, list) or len(predictions) != sum(counts):
        found = f"{len(predictions)} predictions" if isinstance(predictions, list) else "no list of predictions"
        raise BrokenReply(f"The answer holds {found} for {sum(counts)} instances.")
    begins = itertools.accumulate(counts, initial=0)
    return [
        predictions[begin] if isinstance(question, Value) else by_name(predictions[begin : begin + count])
        for question, begin, count in zip(questions, begins, counts, strict=False)
    ]


def by_name(rows: list[Any]) -> Any:
    """Return rows that are all objects of the same names as one dict of lists; other rows as they are."""
    if not rows or not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        return rows
    return {name: [row[name] for row in rows] for name in rows[0]}


def _folded(flat: list[Any], shape: Sequence[int]) -> Any:
    if not shape:
        return flat[0]
    for depth in range(len(shape) - 1, 0, -1):
        size, count = shape[depth], math.prod(shape[:depth])
        flat = [flat[row * size : (row + 1) * size] for row in range(count)]
    return flat


def _plain(element: Any) -> Any:
    """Text where an element of BYTES is text in UTF-8."""
    if not isinstance(element, bytes):
        return element
    try:
        return element.decode()
    except UnicodeDecodeError:
        return with_base64(element)
