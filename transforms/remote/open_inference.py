"""The wire protocol `open-inference`: the Open Inference Protocol, version 2, over HTTP, many records in one request.

Sources: the protocol's REST document (github.com/kserve/open-inference-protocol), and the binary tensor data extension
as Triton documents it. A request to ``/v2/models/{name}[/versions/{version}]/infer`` holds named tensors, each with its
shape, datatype and elements in row-major order; so does the reply. Records of many events are rows: their tensors are
joined along the first dimension, and the outputs are cut apart along it again.

The binary extension puts elements behind the JSON, little-endian and without gaps, in the order of the tensors;
``binary_data_size`` says how many bytes, ``Inference-Header-Content-Length`` where the JSON ends. It takes a quarter to
a half of JSON's bytes, and is the only form of FP16. Elements of BYTES are `bytes` here in both forms; in JSON they
travel as text in UTF-8, in binary each behind its length in four bytes.

Which form a server has is negotiated with ``binary: auto``. Defaults: JSON, all outputs of the model, no version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from transforms.errors import BrokenReply, Refused
from transforms.remote.bodies import decode
from transforms.remote.protocols import ProtocolSettings, Request, read_options, refuse_stream
from transforms.remote.questions import Question, Reply, Tensor
from transforms.remote.tensors import (
    DATATYPES,
    check_received,
    check_shape,
    flat,
    inputs_of,
    join_rows,
    json_elements,
    pack,
    received,
    split_rows,
    unpack,
    values_of,
)

__all__ = [
    "DATATYPES",
    "HEADER_LENGTH",
    "SERVER_LIVE_PATH",
    "SERVER_READY_PATH",
    "InferReply",
    "InferenceOptions",
    "OpenInference",
    "Tensor",
    "binary_request",
    "infer_path",
    "join_rows",
    "parse_reply",
    "ready_path",
    "request_body",
    "split_rows",
]

SERVER_LIVE_PATH = "/v2/health/live"
"""Answers 200 to GET while the server can take requests at all."""

SERVER_READY_PATH = "/v2/health/ready"
"""Answers 200 to GET while all its models are ready."""

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header that says how many bytes of a body are JSON, where binary data follows."""


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

    `version` is the model's; `outputs` are the wanted ones, all where it is empty; `binary` true sends and asks for binary data, for
    servers that have the extension, such as Triton. With ``auto`` it is asked for, and sent once an answer has been binary: a server
    without the extension passes over the wish.
    """

    version: str | None = None
    outputs: tuple[str, ...] = ()
    binary: bool | Literal["auto"] = False


class OpenInference:
    """The protocol for one model; see `WireProtocol`. It takes `Tensors` questions, any number in a request.

    A reply's value maps the name of each output to its elements, cut to the question's rows: a list of them, or a list of lists
    where an output has further dimensions (each row flat). BYTES are text where they are UTF-8.

    Raises:
        SettingsError: an option is unknown, or a stream is asked for.
    """

    most_items: int | None = None
    samples = False
    schemes = ("http", "https")

    def __init__(self, settings: ProtocolSettings) -> None:
        self._settings = settings
        self._options = read_options(settings.options, InferenceOptions)
        refuse_stream("open-inference", settings)
        self._path = infer_path(settings.model, self._options.version)
        self._binary = self._options.binary is True
        self._asks_for_binary = self._options.binary == "auto"

    @property
    def probe_path(self) -> str:
        """The path that answers 200 while the model is ready."""
        return ready_path(self._settings.model, self._options.version)

    def request(self, questions: Sequence[Question]) -> Request:
        """Return the request; see `WireProtocol.request`."""
        records = [inputs_of(question, "open-inference") for question in questions]
        try:
            inputs = join_rows(records)
            if self._binary:
                body, headers = binary_request(inputs, self._settings.params, outputs=self._options.outputs)
                return Request(self._path, body, headers)
            wish = {"binary_data_output": True} if self._asks_for_binary else {}
            params = {**self._settings.params, **wish}
            return Request(self._path, request_body(inputs, params, outputs=self._options.outputs), {})
        except (TypeError, ValueError) as error:
            raise Refused(f"The tensors cannot be sent: {error}.", 0) from None

    def replies(self, questions: Sequence[Question], headers: Mapping[str, str], body: bytes) -> Sequence[Reply]:
        """Return a reply to each question; see `WireProtocol.replies`."""
        parsed = parse_reply(body, headers)
        if self._asks_for_binary and not self._binary:
            self._binary = any(name.lower() == HEADER_LENGTH.lower() for name in headers)
        rows = [inputs_of(question, "open-inference")[0].shape[0] for question in questions]
        model = parsed.model_name
        return [Reply("", None, model, value=values_of(outputs)) for outputs in split_rows(parsed.outputs, rows)]

    def reader(self) -> None:
        """Return None: there are no streams."""

    def params(self, question: Question) -> Mapping[str, Any]:
        """Return the params of the settings."""
        return self._settings.params


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
    tensors = [{**_described(tensor), "data": json_elements(tensor)} for tensor in inputs]
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
    packed = [pack(tensor) for tensor in inputs]
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


def _request(
    tensors: list[dict[str, Any]], wanted: list[dict[str, Any]], id_: str | None, params: dict[str, Any]
) -> dict[str, Any]:
    optional = {"id": id_, "parameters": params, "outputs": wanted}
    return {"inputs": tensors, **{name: value for name, value in optional.items() if value}}


def _sized(described: dict[str, Any], size_bytes: int) -> dict[str, Any]:
    return {**described, "parameters": {**described.get("parameters", {}), "binary_data_size": size_bytes}}


def _described(tensor: Tensor) -> dict[str, Any]:
    """A tensor without its elements, which are checked to be as many as its shape says."""
    check_shape(tensor)
    described: dict[str, Any] = {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype}
    return {**described, "parameters": dict(tensor.parameters)} if tensor.parameters else described


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
    check_received(output.name, output.datatype, output.shape)
    parameters = output.parameters or {}
    size = parameters.get("binary_data_size")
    if size is None:
        elements = _from_json(output)
    else:
        if type(size) is not int or not 0 <= size <= len(data) or output.data is not None:
            raise BrokenReply(f"The answer's tensor {output.name} says that it has {size} bytes, and has not.")
        elements, data = unpack(output.name, output.datatype, bytes(data[:size])), data[size:]
        parameters = {name: value for name, value in parameters.items() if name != "binary_data_size"}
    return received(output.name, output.datatype, output.shape, elements, parameters), data


def _from_json(output: _Output) -> list[Any]:
    """The elements that stand in JSON, flat or nested as the shape says."""
    if output.data is None:
        raise BrokenReply(f"The answer's tensor {output.name} has no data.")
    elements = output.data
    if elements and isinstance(elements[0], list):
        elements = flat(elements, output.shape, output.name)
    if output.datatype == "BYTES":
        elements = [element.encode() if isinstance(element, str) else None for element in elements]
    return elements
