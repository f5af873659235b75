"""The wire protocol `open-inference-grpc`: the Open Inference Protocol, version 2, over gRPC, many records in one request.

Source: the protocol's gRPC document and open_inference_grpc.proto (github.com/kserve/open-inference-protocol). ``ModelInfer`` takes
named tensors and answers with others; records of many events are rows, as in `open_inference`. A base URL is
``grpc://host:port``, or ``grpcs://`` for TLS. Elements travel raw (as in the binary extension of the REST protocol, the only form
of FP16) or in fields of their type; an answer is read in the form that it has.

Defaults: raw, all outputs of the model, no version.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from transforms.errors import BrokenReply, Refused
from transforms.remote.inference_messages import (
    CONTENTS,
    SERVICE,
    ModelInferRequest,
    ModelInferResponse,
    ModelReadyRequest,
)
from transforms.remote.protocols import ProtocolSettings, Request, read_options, refuse_stream
from transforms.remote.questions import Question, Reply, Tensor
from transforms.remote.tensors import (
    check_received,
    check_shape,
    elements_of,
    inputs_of,
    join_rows,
    pack,
    received,
    split_rows,
    unpack,
    values_of,
)

PATH = f"{SERVICE}/ModelInfer"


class GrpcInferenceOptions(msgspec.Struct, frozen=True):
    """The protocol's own options.

    `version` is the model's; `outputs` are the wanted ones, all where it is empty; `raw` sends the elements as bytes, else they stand
    in fields of their type, for servers that want this.
    """

    version: str | None = None
    outputs: tuple[str, ...] = ()
    raw: bool = True


class OpenInferenceGrpc:
    """The protocol for one model; see `WireProtocol`. It takes `Tensors` questions, any number in a request.

    A reply's value is as that of `open_inference.OpenInference`.

    Raises:
        SettingsError: an option is unknown, or a stream is asked for.
    """

    most_items: int | None = None
    samples = False
    schemes = ("grpc", "grpcs")

    def __init__(self, settings: ProtocolSettings) -> None:
        refuse_stream("open-inference-grpc", settings)
        self._settings = settings
        self._options = read_options(settings.options, GrpcInferenceOptions)

    @property
    def probe_path(self) -> str:
        """``ModelReady`` of this model; see `grpc_transport.GrpcTransport.get`."""
        ready = ModelReadyRequest(name=self._settings.model, version=self._options.version or "")
        return f"{SERVICE}/ModelReady?{base64.urlsafe_b64encode(ready.SerializeToString()).decode()}"

    def request(self, questions: Sequence[Question]) -> Request:
        """Return the request; see `WireProtocol.request`."""
        records = [inputs_of(question, "open-inference-grpc") for question in questions]
        try:
            message = infer_request(self._settings.model, join_rows(records), self._settings.params, self._options)
        except (TypeError, ValueError) as error:
            raise Refused(f"The tensors cannot be sent: {error}.", 0) from None
        return Request(PATH, message, {"Content-Type": "application/grpc"})

    def replies(self, questions: Sequence[Question], headers: Mapping[str, str], body: bytes) -> Sequence[Reply]:
        """Return a reply to each question; see `WireProtocol.replies`."""
        model, outputs = parse_reply(body)
        rows = [inputs_of(question, "open-inference-grpc")[0].shape[0] for question in questions]
        return [Reply("", None, model, value=values_of(cut)) for cut in split_rows(outputs, rows)]

    def reader(self) -> None:
        """Return None: there are no streams."""

    def params(self, question: Question) -> Mapping[str, Any]:
        """Return the params of the settings."""
        return self._settings.params


def infer_request(
    model: str, inputs: Sequence[Tensor], params: Mapping[str, Any], options: GrpcInferenceOptions
) -> bytes:
    """Return a ``ModelInferRequest``, serialized. `params` are its parameters: bool, int, float or str.

    Raises:
        TypeError, ValueError: a tensor contradicts its shape or datatype or has no form, or a parameter has none.
    """
    message = ModelInferRequest(model_name=model, model_version=options.version or "")
    _set_parameters(message.parameters, params)
    for tensor in inputs:
        check_shape(tensor)
        sent = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _set_parameters(sent.parameters, tensor.parameters)
        if options.raw:
            message.raw_input_contents.append(pack(tensor))
        else:
            getattr(sent.contents, _contents(tensor)).extend(_typed(tensor))
    for name in options.outputs:
        message.outputs.add(name=name)
    serialized: bytes = message.SerializeToString()
    return serialized


def parse_reply(body: bytes) -> tuple[str | None, tuple[Tensor, ...]]:
    """Return the name of the model and the outputs that a serialized ``ModelInferResponse`` holds.

    Raises:
        BrokenReply: it is none, or a tensor contradicts its shape or datatype.
    """
    message = ModelInferResponse()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise BrokenReply(f"The answer is no ModelInferResponse: {error}.") from None
    raw = message.raw_output_contents
    if raw and len(raw) != len(message.outputs):
        raise BrokenReply(f"The answer holds {len(raw)} raw contents for {len(message.outputs)} outputs.")
    tensors = []
    for at, output in enumerate(message.outputs):
        check_received(output.name, output.datatype, output.shape)
        if raw:
            elements = unpack(output.name, output.datatype, raw[at])
        else:
            field = CONTENTS.get(output.datatype)
            elements = list(getattr(output.contents, field)) if field else []
        parameters = {name: _parameter(value) for name, value in output.parameters.items()}
        tensors.append(received(output.name, output.datatype, tuple(output.shape), elements, parameters))
    return message.model_name or None, tuple(tensors)


def _contents(tensor: Tensor) -> str:
    if tensor.datatype not in CONTENTS:
        raise ValueError(f"the tensor {tensor.name} is {tensor.datatype}, which only raw contents can hold")
    return CONTENTS[tensor.datatype]


def _typed(tensor: Tensor) -> list[Any]:
    """The elements for the field of their type; a number that 32 bits cannot hold is refused as in raw contents."""
    if tensor.datatype == "FP32":
        numbers: list[Any] = np.frombuffer(pack(tensor), "<f4").tolist()
        return numbers
    return elements_of(tensor)


def _set_parameters(parameters: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        field = next((field for kind, field in _PARAMETERS if isinstance(value, kind)), None)
        if field is None:
            raise ValueError(f"the parameter {name} is of the type {type(value).__name__}, which has no form here")
        setattr(parameters[name], field, value)


_PARAMETERS: tuple[tuple[type, str], ...] = (
    (bool, "bool_param"),
    (int, "int64_param"),
    (float, "double_param"),
    (str, "string_param"),
)


def _parameter(value: Any) -> Any:
    field = value.WhichOneof("parameter_choice")
    return None if field is None else getattr(value, field)
