"""The wire protocol `open-inference-grpc`: messages there and back, in both forms, and what is no reply."""

from __future__ import annotations

import contextlib
import math
import random
from typing import Any

import numpy as np
import pytest

from transforms.errors import BrokenReply, Refused, SettingsError
from transforms.remote.inference_messages import ModelInferRequest, ModelInferResponse
from transforms.remote.open_inference_grpc import (
    PATH,
    GrpcInferenceOptions,
    OpenInferenceGrpc,
    infer_request,
    parse_reply,
)
from transforms.remote.protocols import ProtocolSettings
from transforms.remote.questions import Chat, Reply, Tensor, Tensors
from transforms.remote.settings import Endpoint, ModelSettings

RAW, TYPED = GrpcInferenceOptions(), GrpcInferenceOptions(raw=False)


def made(params: dict[str, Any] | None = None, **options: Any) -> OpenInferenceGrpc:
    return OpenInferenceGrpc(ProtocolSettings(model="m", params=params or {}, options=options))


def response(raw: list[bytes] | None = None, *outputs: dict[str, Any]) -> bytes:
    message = ModelInferResponse(model_name="m")
    for output in outputs:
        contents = output.pop("contents", {})
        added = message.outputs.add(**output)
        for field, elements in contents.items():
            getattr(added.contents, field).extend(elements)
    message.raw_output_contents.extend(raw or [])
    serialized: bytes = message.SerializeToString()
    return serialized


def test_a_request_holds_model_tensors_outputs_and_parameters() -> None:
    """Every part stands in the field that the protocol has for it; parameters keep their types."""
    tensor = Tensor("x", "INT32", (1, 2), [1, -2], {"content_type": "np"})
    sent = made({"flag": True, "n": 3, "p": 0.5, "s": "a"}, version="2", outputs=["y"], raw=False)
    request = sent.request([Tensors((tensor,)), Tensors((tensor,))])
    assert request.path == PATH
    message = ModelInferRequest.FromString(request.body)
    assert (message.model_name, message.model_version) == ("m", "2")
    assert [message.parameters[name].WhichOneof("parameter_choice") for name in ("flag", "n", "p", "s")] == [
        "bool_param",
        "int64_param",
        "double_param",
        "string_param",
    ]
    (joined,) = message.inputs
    assert (joined.name, joined.datatype, list(joined.shape)) == ("x", "INT32", [2, 2])
    assert list(joined.contents.int_contents) == [1, -2, 1, -2]
    assert joined.parameters["content_type"].string_param == "np"
    assert [output.name for output in message.outputs] == ["y"]
    assert list(message.raw_input_contents) == []


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("options", [RAW, TYPED], ids=["raw", "typed"])
def test_tensors_come_back_as_they_went(seed: int, options: GrpcInferenceOptions) -> None:
    """Whatever tensors are sent, a server that gives them back gives back the same, in either form."""
    rng = random.Random(seed)
    tensors = []
    for at in range(rng.randint(1, 4)):
        shape = tuple(rng.randint(1, 3) for _ in range(rng.randint(1, 3)))
        size = math.prod(shape)
        kind = rng.choice(["BOOL", "INT8", "UINT16", "INT64", "UINT64", "FP32", "FP64", "BYTES"])
        elements: dict[str, Any] = {
            "BOOL": [rng.random() < 0.5 for _ in range(size)],
            "BYTES": [rng.randbytes(rng.randint(0, 5)) for _ in range(size)],
            "FP32": [float(np.float32(rng.uniform(-1e6, 1e6))) for _ in range(size)],
            "FP64": [rng.uniform(-1e6, 1e6) for _ in range(size)],
            "UINT64": [rng.randint(0, 2**64 - 1) for _ in range(size)],
        }
        tensors.append(Tensor(f"t{at}", kind, shape, elements.get(kind, [rng.randint(0, 127) for _ in range(size)])))
    asked = ModelInferRequest.FromString(infer_request("m", tensors, {}, options))
    answer = ModelInferResponse(model_name="m")
    for tensor in asked.inputs:
        answer.outputs.add().ParseFromString(tensor.SerializeToString())
    answer.raw_output_contents.extend(asked.raw_input_contents)
    assert parse_reply(answer.SerializeToString()) == ("m", tuple(tensors))


def test_outputs_are_cut_apart_by_rows() -> None:
    """Each question has the rows that are its own, bytes as text."""
    one = Tensors((Tensor("x", "INT32", (1,), [1]),))
    two = Tensors((Tensor("x", "INT32", (2,), [1, 2]),))
    label = {"name": "label", "datatype": "BYTES", "shape": [3], "contents": {"bytes_contents": [b"a", b"b", b"\xff"]}}
    score = {"name": "score", "datatype": "FP32", "shape": [3, 1], "contents": {"fp32_contents": [0.5, 1.0, 2.0]}}
    assert made().replies([two, one], {}, response(None, label, score)) == [
        Reply("", model="m", value={"label": ["a", "b"], "score": [[0.5], [1.0]]}),
        Reply("", model="m", value={"label": [b"\xff"], "score": [[2.0]]}),
    ]


OUTPUT = {"name": "y", "datatype": "INT32", "shape": [2]}


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xff",
        response(None, {**OUTPUT}),
        response([b"\0" * 8, b""], {**OUTPUT}),
        response([b"\0" * 7], {**OUTPUT}),
        response([b"\0" * 4], {**OUTPUT}),
        response(None, {**OUTPUT, "contents": {"int_contents": [1]}}),
        response(None, {**OUTPUT, "contents": {"fp32_contents": [1.0, 2.0]}}),
        response(None, {**OUTPUT, "datatype": "INT8", "contents": {"int_contents": [1, 999]}}),
        response(None, {**OUTPUT, "datatype": "FP99"}),
        response(None, {**OUTPUT, "datatype": "FP16"}),
        response(None, {**OUTPUT, "shape": [-1]}),
        response([b"\5\0\0\0ab"], {**OUTPUT, "datatype": "BYTES", "shape": [1]}),
        response([b"\2\0"], {**OUTPUT, "datatype": "BOOL"}),
    ],
    ids=range(13),
)
def test_what_is_no_answer_is_broken(body: bytes) -> None:
    """No message, contents that are missing, too many, cut, out of range, or of another type than it says."""
    with pytest.raises(BrokenReply):
        parse_reply(body)


@pytest.mark.parametrize("seed", range(100))
def test_no_bytes_are_anything_but_a_reply_or_broken(seed: int) -> None:
    """A good answer with some bytes changed, or cut off, is read or refused, and never a defect."""
    rng = random.Random(seed)
    good = bytearray(response(None, {**OUTPUT, "contents": {"int_contents": [1, 2]}}))
    for _ in range(rng.randint(1, 4)):
        good[rng.randrange(len(good))] = rng.randrange(256)
    with contextlib.suppress(BrokenReply):
        parse_reply(bytes(good[: rng.randint(0, len(good))]))


@pytest.mark.parametrize(
    ("tensor", "options"),
    [
        (Tensor("x", "FP16", (1,), [1.0]), TYPED),
        (Tensor("x", "FP32", (1,), [1e300]), TYPED),
        (Tensor("x", "FP32", (1,), [1e300]), RAW),
        (Tensor("x", "INT8", (1,), [128]), TYPED),
        (Tensor("x", "INT8", (2,), [1]), RAW),
        (Tensor("x", "FP33", (1,), [1]), TYPED),
        (Tensor("x", "INT8", (1,), [1], {"a": [1]}), RAW),
        (Tensor("x", "INT8", (1,), [1], {"a": 2**70}), RAW),
    ],
)
def test_what_has_no_form_is_not_sent(tensor: Tensor, options: GrpcInferenceOptions) -> None:
    """Nothing is coerced, and no parameter dropped."""
    with pytest.raises(ValueError, match=r"."):
        infer_request("m", [tensor], {}, options)


def test_a_question_of_another_kind_is_refused() -> None:
    """As are tensors without rows, and those of two questions that differ."""
    one, other = (Tensors((Tensor("x", kind, (1,), [1]),)) for kind in ("INT8", "INT16"))
    for questions in ([Chat(())], [Tensors(())], [one, other]):
        with pytest.raises(Refused):
            made().request(questions)


@pytest.mark.parametrize(
    ("over", "match"),
    [
        ({"endpoints": (Endpoint("http://a"),)}, "grpc://"),
        ({"protocol": "open-inference"}, "http://"),
        ({"options": {"binary": True}}, "did you mean|known are"),
    ],
)
def test_settings_that_do_not_fit_are_refused(over: dict[str, Any], match: str) -> None:
    """A URL of another protocol, and options of another."""
    good = {"role": "score", "protocol": "open-inference-grpc", "endpoints": (Endpoint("grpc://a:1"),), "model": "m"}
    assert ModelSettings(**good).make_protocol().schemes == ("grpc", "grpcs")
    with pytest.raises(SettingsError, match=match):
        ModelSettings(**{**good, **over})


def test_a_path_in_the_url_of_a_grpc_server_is_refused() -> None:
    """There is nothing that it could mean."""
    assert Endpoint("grpcs://a").url
    with pytest.raises(SettingsError, match="host and port alone"):
        Endpoint("grpc://a:1/v2")
