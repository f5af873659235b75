"""The wire protocol `open-inference`: the Open Inference Protocol, version 2, over HTTP, many records in one request.

Sources: the protocol's REST document (github.com/kserve/open-inference-protocol), and the binary tensor data extension
as Triton documents it. A request to ``/v2/models/{name}[/versions/{version}]/infer`` holds named tensors, each with its
shape, datatype and elements in row-major order; so does the reply. Records of many events are rows: their tensors are
joined along the first dimension, and the outputs are cut apart along it again.

The binary extension puts elements behind the JSON, little-endian and without gaps, in the order of the tensors;
``binary_data_size`` says how many bytes, ``Inference-Header-Content-Length`` where the JSON ends. It takes a quarter to
a half of JSON's bytes, and is the only form of FP16. Elements of BYTES are `bytes` here in both forms; in JSON they
travel as text in UTF-8, in binary each behind its length in four bytes.

Defaults: JSON, all outputs of the model, no version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np

from transforms.errors import BrokenReply, Refused
from transforms.remote.bodies import decode
from transforms.remote.protocols import ProtocolSettings, Request, read_options, refuse_stream
from transforms.remote.questions import Question, Reply, Tensor, Tensors

SERVER_LIVE_PATH = "/v2/health/live"
"""Answers 200 to GET while the server can take requests at all."""

SERVER_READY_PATH = "/v2/health/ready"
"""Answers 200 to GET while all its models are ready."""

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header that says how many bytes of a body are JSON, where binary data follows."""

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
"""The datatypes of the protocol."""

_LENGTH_BYTES = 4


class InferReply(msgspec.Struct, frozen=True):
    """What a server answered. What it did not say is None or empty."""

    outputs: tuple[Tensor, ...]
    model_name: str | None = None
    model_version: str | None = None
    parameters: Mapping[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class _Body(msgspec.Struct):
    outputs: list[_Output]
    model_name: str | None = None
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None


_bodies = msgspec.json.Decoder(_Body)
_encoder = msgspec.json.Encoder()


class InferenceOptions(msgspec.Struct, frozen=True):
    """The protocol's own options.

    `version` is the model's; `outputs` are the wanted ones, all where it is empty; `binary` sends and asks for binary data, for
    servers that have the extension, such as Triton.
    """

    version: str | None = None
    outputs: tuple[str, ...] = ()
    binary: bool = False


class OpenInference:
    """The protocol for one model; see `WireProtocol`. It takes `Tensors` questions, any number in a request.

    A reply's value maps the name of each output to its elements, cut to the question's rows: a list of them, or a list of lists
    where an output has further dimensions (each row flat). BYTES are text where they are UTF-8.

    Raises:
        SettingsError: an option is unknown, or a stream is asked for.
    """

    most_items: int | None = None
    samples = False

    def __init__(self, settings: ProtocolSettings) -> None:
        self._settings = settings
        self._options = read_options(settings.options, InferenceOptions)
        refuse_stream("open-inference", settings)
        self._path = infer_path(settings.model, self._options.version)

    @property
    def probe_path(self) -> str:
        """The path that answers 200 while the model is ready."""
        return ready_path(self._settings.model, self._options.version)

    def request(self, questions: Sequence[Question]) -> Request:
        """Return the request; see `WireProtocol.request`."""
        records = [_inputs(question) for question in questions]
        try:
            inputs = join_rows(records)
            if self._options.binary:
                body, headers = binary_request(inputs, self._settings.params, outputs=self._options.outputs)
                return Request(self._path, body, headers)
            return Request(self._path, request_body(inputs, self._settings.params, outputs=self._options.outputs), {})
        except (TypeError, ValueError) as error:
            raise Refused(f"The tensors cannot be sent: {error}.", 0) from None

    def replies(self, questions: Sequence[Question], headers: Mapping[str, str], body: bytes) -> Sequence[Reply]:
        """Return a reply to each question; see `WireProtocol.replies`."""
        parsed = parse_reply(body, headers)
        rows = [_inputs(question)[0].shape[0] for question in questions]
        model = parsed.model_name
        return [Reply("", None, model, value=_values(outputs)) for outputs in split_rows(parsed.outputs, rows)]

    def reader(self) -> None:
        """Return None: there are no streams."""

    def params(self, question: Question) -> Mapping[str, Any]:
        """Return the params of the settings."""
        return self._settings.params


def _inputs(question: Question) -> tuple[Tensor, ...]:
    if not isinstance(question, Tensors):
        raise Refused(f"open-inference takes tensors; a question of the kind {type(question).__name__} it has not.", 0)
    if not question.inputs or not question.inputs[0].shape:
        raise Refused("The question has no tensor, or one without rows.", 0)
    return question.inputs


def _values(outputs: Sequence[Tensor]) -> dict[str, list[Any]]:
    """The outputs by name, as plain lists: of elements, or of rows where there are further dimensions."""
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


def infer_path(model: str, version: str | None = None) -> str:
    """Return the path to POST inferences of a model to, under the server's base URL (without ``/v2``)."""
    return f"{_model_path(model, version)}/infer"


def ready_path(model: str, version: str | None = None) -> str:
    """Return the path that answers 200 to GET while the model is ready."""
    return f"{_model_path(model, version)}/ready"


def _model_path(model: str, version: str | None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"


def request_body(
    inputs: Sequence[Tensor],
    params: Mapping[str, Any] | None = None,
    *,
    id: str | None = None,  # noqa: A002 - the protocol's word
    outputs: Sequence[str] = (),
) -> bytes:
    """Return the JSON body of a request. `params` are the request's parameters, `outputs` the wanted ones (empty: all).

    Raises:
        TypeError, ValueError: a tensor contradicts its shape or datatype, or has no JSON form.
    """
    tensors = [{**_described(tensor), "data": _json_data(tensor)} for tensor in inputs]
    return _encoder.encode(_request(tensors, [{"name": name} for name in outputs], id, dict(params or {})))


def binary_request(
    inputs: Sequence[Tensor],
    params: Mapping[str, Any] | None = None,
    *,
    id: str | None = None,  # noqa: A002 - as above
    outputs: Sequence[str] = (),
) -> tuple[bytes, dict[str, str]]:
    """Return the body of a request whose tensors are binary, both ways, and the headers that belong to it.

    Raises:
        TypeError, ValueError: a tensor contradicts its shape or datatype, or a parameter has no JSON form.
    """
    described = [_described(tensor) for tensor in inputs]
    packed = [_packed(tensor) for tensor in inputs]
    tensors = [_sized(one, len(data)) for one, data in zip(described, packed, strict=True)]
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    header = _encoder.encode(_request(tensors, wanted, id, {**(params or {}), "binary_data_output": True}))
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return b"".join((header, *packed)), headers


def parse_reply(body: bytes, headers: Mapping[str, str], id: str | None = None) -> InferReply:  # noqa: A002 - as above
    """Return the reply that a 2xx answer holds, in JSON or with binary data; `id` is the request's, if it had one.

    Raises:
        BrokenReply: it is no JSON, or binary data in places that the headers do not say; a tensor contradicts its shape
            or datatype; it answers another request, or is an error object.
    """
    length = _header_length(body, headers)
    header, data = body[:length], memoryview(body)[length:]
    parsed = decode(_bodies, header)
    if id is not None and parsed.id not in (None, "", id):
        raise BrokenReply(f"The answer is one to another request, {parsed.id}.")
    outputs = []
    for output in parsed.outputs:
        tensor, data = _tensor(output, data)
        outputs.append(tensor)
    if data:
        raise BrokenReply(f"The answer holds {len(data)} bytes behind its last tensor.")
    return InferReply(tuple(outputs), parsed.model_name, parsed.model_version, parsed.parameters or {})


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


def _request(
    tensors: list[dict[str, Any]], wanted: list[dict[str, Any]], id_: str | None, params: dict[str, Any]
) -> dict[str, Any]:
    optional = {"id": id_, "parameters": params, "outputs": wanted}
    return {"inputs": tensors, **{name: value for name, value in optional.items() if value}}


def _sized(described: dict[str, Any], size_bytes: int) -> dict[str, Any]:
    return {**described, "parameters": {**described.get("parameters", {}), "binary_data_size": size_bytes}}


def _described(tensor: Tensor) -> dict[str, Any]:
    """A tensor without its elements, which are checked to be as many as its shape says."""
    if tensor.datatype not in DATATYPES:
        raise ValueError(
            f"the tensor {tensor.name} has the datatype {tensor.datatype}, which is none of the protocol's"
        )
    if any(size < 0 for size in tensor.shape) or math.prod(tensor.shape) != len(tensor.data):
        shape = list(tensor.shape)
        raise ValueError(f"the tensor {tensor.name} of shape {shape} has {len(tensor.data)} elements")
    described: dict[str, Any] = {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype}
    return {**described, "parameters": dict(tensor.parameters)} if tensor.parameters else described


def _json_data(tensor: Tensor) -> list[Any]:
    """The elements as JSON takes them; what it would write as something else is refused."""
    if tensor.datatype == "FP16":
        raise ValueError(f"the tensor {tensor.name} is FP16, which has no form in JSON; send it as binary data")
    elements = _elements(tensor)
    if tensor.datatype == "BYTES":
        return [element.decode() for element in elements]
    if tensor.datatype in _FLOATS and not all(map(math.isfinite, elements)):
        raise ValueError(f"the tensor {tensor.name} holds a number that is not finite; send it as binary data")
    return elements


def _packed(tensor: Tensor) -> bytes:
    """The elements as binary data."""
    elements = _elements(tensor)
    if tensor.datatype == "BYTES":
        return b"".join(map(_with_length, elements))
    if tensor.datatype not in _FLOATS:
        return np.array(elements, dtype=_DTYPES[tensor.datatype]).tobytes()
    try:
        with np.errstate(over="raise"):
            return np.array(elements, dtype=np.float64).astype(_FLOATS[tensor.datatype]).tobytes()
    except (OverflowError, FloatingPointError):
        raise ValueError(f"the tensor {tensor.name} holds a number too large for {tensor.datatype}") from None


def _elements(tensor: Tensor) -> list[Any]:
    """The elements of a request's tensor, each of its datatype."""
    data = tensor.data
    elements = data.tolist() if isinstance(data, np.ndarray) else list(data)
    if tensor.datatype == "BYTES":
        elements = [element.encode() if isinstance(element, str) else element for element in elements]
    if not all(_fits(element, tensor.datatype) for element in elements):
        raise ValueError(f"the tensor {tensor.name} has elements that are no {tensor.datatype}")
    return elements


def _with_length(element: bytes) -> bytes:
    return len(element).to_bytes(_LENGTH_BYTES, "little") + element


def _header_length(body: bytes, headers: Mapping[str, str]) -> int:
    """How many bytes of `body` are JSON."""
    stated = next((value for name, value in headers.items() if name.lower() == HEADER_LENGTH.lower()), None)
    if stated is None:
        return len(body)
    if not (stated.isascii() and stated.isdigit()) or int(stated[:18]) > len(body):
        raise BrokenReply(f"The answer's header {HEADER_LENGTH} is {stated[:40]}, for a body of {len(body)} bytes.")
    return int(stated)


def _tensor(output: _Output, data: memoryview) -> tuple[Tensor, memoryview]:
    """An output as a tensor, and the binary data behind its own."""
    if output.datatype not in DATATYPES:
        raise BrokenReply(f"The answer's tensor {output.name} has the unknown datatype {output.datatype[:40]}.")
    if any(size < 0 for size in output.shape):
        raise BrokenReply(f"The answer's tensor {output.name} has the shape {output.shape}.")
    parameters = output.parameters or {}
    size = parameters.get("binary_data_size")
    if size is None:
        elements = _from_json(output)
    else:
        if type(size) is not int or not 0 <= size <= len(data) or output.data is not None:
            raise BrokenReply(f"The answer's tensor {output.name} says that it has {size} bytes, and has not.")
        elements, data = _unpacked(output, bytes(data[:size])), data[size:]
        parameters = {name: value for name, value in parameters.items() if name != "binary_data_size"}
    if len(elements) != math.prod(output.shape):
        raise BrokenReply(f"The answer's tensor {output.name} of shape {output.shape} has {len(elements)} elements.")
    return Tensor(output.name, output.datatype, tuple(output.shape), elements, parameters), data


def _from_json(output: _Output) -> list[Any]:
    """The elements that stand in JSON, flat or nested as the shape says."""
    if output.data is None:
        raise BrokenReply(f"The answer's tensor {output.name} has no data.")
    elements = output.data
    if elements and isinstance(elements[0], list):
        elements = _flat(elements, output.shape, output.name)
    if output.datatype == "BYTES":
        elements = [element.encode() if isinstance(element, str) else None for element in elements]
    if not all(_fits(element, output.datatype) for element in elements):
        raise BrokenReply(f"The answer's tensor {output.name} has elements that are no {output.datatype}.")
    return [float(element) for element in elements] if output.datatype in _FLOATS else elements


def _flat(nested: list[Any], shape: Sequence[int], name: str) -> list[Any]:
    """The elements of `nested`, whose lists must be as long as `shape` says, all the way down."""
    level: list[Any] = [nested]
    for size in shape:
        if not all(isinstance(part, list) and len(part) == size for part in level):
            raise BrokenReply(f"The answer's tensor {name} is not nested as its shape {list(shape)} says.")
        level = [element for part in level for element in part]
    return level


def _fits(element: Any, datatype: str) -> bool:
    """Whether an element is of the datatype. Nothing is coerced but int to float."""
    if datatype == "BYTES":
        return isinstance(element, bytes)
    if datatype == "BOOL":
        return isinstance(element, bool)
    if datatype in _BOUNDS:
        least, greatest = _BOUNDS[datatype]
        return type(element) is int and least <= element <= greatest
    return type(element) in (int, float)


def _unpacked(output: _Output, data: bytes) -> list[Any]:
    """The elements that `data`, the tensor's own binary data, holds."""
    if output.datatype == "BYTES":
        return _strings(output.name, data)
    dtype = np.dtype(_DTYPES[output.datatype])
    if len(data) % dtype.itemsize or (output.datatype == "BOOL" and data.strip(b"\0\1")):
        raise BrokenReply(f"The answer's tensor {output.name} has {len(data)} bytes that are no {output.datatype}.")
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
