"""The messages of the Open Inference Protocol's gRPC form, made at run time: only what an inference needs.

Source: the protocol's ``open_inference_grpc.proto`` (github.com/kserve/open-inference-protocol): package ``inference``, service
``GRPCInferenceService``. Fields keep their numbers, and those that are not needed here (``parameters``) are left out, which the
wire format allows. Tensors travel typed (``contents``) or raw (``raw_*_contents``, little-endian, without gaps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

METHOD = "/inference.GRPCInferenceService/ModelInfer"
_PACKAGE = "inference"
_STRING, _INT64, _BYTES, _FLOAT, _DOUBLE, _MESSAGE = 9, 3, 12, 2, 1, 11

_Field = tuple[str, int, int, bool, str]
"""Name, number, type, whether it is repeated, and the message's name where it is one."""
_CONTENTS: tuple[_Field, ...] = (
    ("int64_contents", 3, _INT64, True, ""),
    ("fp32_contents", 6, _FLOAT, True, ""),
    ("fp64_contents", 7, _DOUBLE, True, ""),
    ("bytes_contents", 8, _BYTES, True, ""),
)
_TENSOR: tuple[_Field, ...] = (
    ("name", 1, _STRING, False, ""),
    ("datatype", 2, _STRING, False, ""),
    ("shape", 3, _INT64, True, ""),
    ("contents", 5, _MESSAGE, False, "InferTensorContents"),
)
_NAMED: tuple[_Field, ...] = (
    ("model_name", 1, _STRING, False, ""),
    ("model_version", 2, _STRING, False, ""),
    ("id", 3, _STRING, False, ""),
)
_MESSAGES: dict[str, tuple[_Field, ...]] = {
    "InferTensorContents": _CONTENTS,
    "InferInputTensor": _TENSOR,
    "InferOutputTensor": _TENSOR,
    "ModelInferRequest": (
        *_NAMED,
        ("inputs", 5, _MESSAGE, True, "InferInputTensor"),
        ("raw_input_contents", 7, _BYTES, True, ""),
    ),
    "ModelInferResponse": (
        *_NAMED,
        ("outputs", 5, _MESSAGE, True, "InferOutputTensor"),
        ("raw_output_contents", 6, _BYTES, True, ""),
    ),
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    made = descriptor_pb2.FileDescriptorProto(name="farcall_bench.proto", package=_PACKAGE, syntax="proto3")
    for title, fields in _MESSAGES.items():
        message = made.message_type.add(name=title)
        for name, number, kind, repeated, of in fields:
            field = message.field.add(name=name, number=number, type=kind, label=3 if repeated else 1)
            if of:
                field.type_name = f".{_PACKAGE}.{of}"
    return made


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file())


def _class(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ModelInferRequest = _class("ModelInferRequest")
ModelInferResponse = _class("ModelInferResponse")
_DTYPES = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}


def request(model: str, name: str, shape: Sequence[int], data: Sequence[float], *, raw: bool) -> bytes:
    """The bytes of a request with one FP32 tensor."""
    made = ModelInferRequest(model_name=model)
    tensor = made.inputs.add(name=name, datatype="FP32", shape=shape)
    if raw:
        made.raw_input_contents.append(np.asarray(data, "<f4").tobytes())
    else:
        tensor.contents.fp32_contents.extend(data)
    return bytes(made.SerializeToString())


def elements(tensor: Any, raw: Sequence[bytes]) -> np.ndarray[Any, Any]:
    """The elements of the one tensor of a message, in whichever form they are. `raw` is the message's field for them."""
    if raw:
        return np.frombuffer(raw[0], _DTYPES[tensor.datatype])
    contents = tensor.contents
    found = contents.fp32_contents or contents.fp64_contents or contents.int64_contents
    return np.asarray(found, _DTYPES[tensor.datatype])


def response(asked: Any, values: np.ndarray[Any, Any], *, raw: bool) -> bytes:
    """The bytes of a response with one FP64 tensor."""
    made = ModelInferResponse(model_name=asked.model_name)
    tensor = made.outputs.add(name="predict", datatype="FP64", shape=[len(values), 1])
    if raw:
        made.raw_output_contents.append(values.astype("<f8").tobytes())
    else:
        tensor.contents.fp64_contents.extend(values.tolist())
    return bytes(made.SerializeToString())


def replied(body: bytes) -> list[float]:
    """The elements of a response's only tensor."""
    found = ModelInferResponse.FromString(body)
    return [float(value) for value in elements(found.outputs[0], found.raw_output_contents).tolist()]
