"""The wire protocol `open-inference`: JSON and binary tensors, rows joined and cut apart, and what is no reply."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from transforms.errors import BrokenReply
from transforms.remote.open_inference import (
    DATATYPES,
    HEADER_LENGTH,
    InferReply,
    OpenInference,
    Tensor,
    binary_request,
    infer_path,
    join_rows,
    parse_reply,
    ready_path,
    request_body,
    split_rows,
)
from transforms.remote.protocols import ProtocolSettings
from transforms.remote.questions import Tensors

FLOATS = Tensor("scores", "FP32", (3, 2), [1.0, 1.5, 2.0, 2.5, 3.0, 3.5])


def output(**over: Any) -> dict[str, Any]:
    return {"name": "y", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0], **over}


def body(*outputs: Any, **over: Any) -> bytes:
    return json.dumps({"model_name": "m", "id": "42", "outputs": list(outputs), **over}).encode()


def binary(header: bytes, data: bytes) -> tuple[bytes, dict[str, str]]:
    return header + data, {HEADER_LENGTH.lower(): str(len(header))}


def test_paths_name_the_model() -> None:
    """Names and versions stand in the paths, quoted."""
    assert infer_path("my model/1") == "/v2/models/my%20model%2F1/infer"
    assert infer_path("m", "3") == "/v2/models/m/versions/3/infer"
    assert ready_path("m", "3") == "/v2/models/m/versions/3/ready"
    assert ready_path("m") == "/v2/models/m/ready"


def test_a_request_in_json_is_the_documents_example() -> None:
    """Inputs in order, elements flat, the outputs that are wanted, and nothing that was not asked for."""
    inputs = [Tensor("input0", "UINT32", (2, 2), [1, 2, 3, 4]), Tensor("input1", "BOOL", (3,), [True, False, True])]
    assert json.loads(request_body(inputs, id="42", outputs=["output0"])) == {
        "id": "42",
        "inputs": [
            {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "data": [1, 2, 3, 4]},
            {"name": "input1", "shape": [3], "datatype": "BOOL", "data": [True, False, True]},
        ],
        "outputs": [{"name": "output0"}],
    }
    assert set(json.loads(request_body(inputs))) == {"inputs"}


def test_parameters_are_sent_where_they_belong() -> None:
    """Those of the request stand at its top, those of a tensor with it."""
    tensor = Tensor("x", "BYTES", (1,), ["Grüße"], {"content_type": "str"})
    sent = json.loads(request_body([tensor], {"priority": 1}))
    assert sent["parameters"] == {"priority": 1}
    assert sent["inputs"][0]["parameters"] == {"content_type": "str"}


def test_a_request_in_binary_is_the_extensions_example() -> None:
    """The elements stand behind the JSON, little-endian, their sizes with the tensors and the JSON's in a header."""
    inputs = [Tensor("input0", "UINT32", (2, 2), [1, 2, 3, 4]), Tensor("input1", "BOOL", (3,), [True, False, True])]
    sent, headers = binary_request(inputs, outputs=["output0"])
    length = int(headers[HEADER_LENGTH])
    assert headers["Content-Type"] == "application/octet-stream"
    assert sent[length:] == np.array([1, 2, 3, 4], "<u4").tobytes() + b"\1\0\1"
    assert json.loads(sent[:length]) == {
        "inputs": [
            {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "parameters": {"binary_data_size": 16}},
            {"name": "input1", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}},
        ],
        "outputs": [{"name": "output0", "parameters": {"binary_data": True}}],
        "parameters": {"binary_data_output": True},
    }


WRONG = [
    Tensor("x", "FP32", (2,), [1.0]),
    Tensor("x", "FP32", (-1,), [1.0]),
    Tensor("x", "FP33", (1,), [1.0]),
    Tensor("x", "FP32", (1,), ["1"]),
    Tensor("x", "FP32", (1,), [True]),
    Tensor("x", "FP32", (1,), [None]),
    Tensor("x", "INT8", (1,), [128]),
    Tensor("x", "UINT64", (1,), [-1]),
    Tensor("x", "INT32", (1,), [1.0]),
    Tensor("x", "BOOL", (1,), [1]),
    Tensor("x", "BYTES", (1,), [1]),
    Tensor("x", "BYTES", (1,), ["\ud800"]),
]


@pytest.mark.parametrize("tensor", WRONG, ids=range(len(WRONG)))
def test_a_tensor_that_contradicts_itself_is_not_sent(tensor: Tensor) -> None:
    """Wrong shape, datatype or elements are a ValueError in both forms: nothing is coerced."""
    for form in (request_body, binary_request):
        with pytest.raises(ValueError, match=r"."):
            form([tensor])


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("x", "FP16", (1,), [1.0]),
        Tensor("x", "FP32", (1,), [float("nan")]),
        Tensor("x", "FP64", (1,), [float("inf")]),
        Tensor("x", "BYTES", (1,), [b"\xff"]),
    ],
)
def test_what_json_cannot_carry_goes_only_as_binary(tensor: Tensor) -> None:
    """FP16, numbers that are not finite and bytes that are no text are refused in JSON, and sent in binary."""
    with pytest.raises(ValueError, match=r"binary|utf-8"):
        request_body([tensor])
    assert binary_request([tensor])


@pytest.mark.parametrize("tensor", [Tensor("x", "FP32", (1,), [1e300]), Tensor("x", "FP64", (1,), [10**400])])
def test_a_number_too_large_for_its_datatype_is_not_sent(tensor: Tensor) -> None:
    """Binary data never holds an infinity that was a number."""
    with pytest.raises(ValueError, match="too large"):
        binary_request([tensor])


def test_arrays_of_numpy_are_tensors_too() -> None:
    """A flat array may stand for the elements, in both forms."""
    array = Tensor("x", "FP32", (2,), np.array([1.0, 0.5], np.float32))
    plain = Tensor("x", "FP32", (2,), [1.0, 0.5])
    assert request_body([array]) == request_body([plain])
    assert binary_request([array]) == binary_request([plain])


@pytest.mark.parametrize(
    ("given", "tensor"),
    [
        (output(), Tensor("y", "FP32", (2,), [1.0, 2.0])),
        (output(data=[1, 2]), Tensor("y", "FP32", (2,), [1.0, 2.0])),
        (output(shape=[1, 2]), Tensor("y", "FP32", (1, 2), [1.0, 2.0])),
        (output(shape=[2, 1], data=[[1.0], [2.0]]), Tensor("y", "FP32", (2, 1), [1.0, 2.0])),
        (output(shape=[2, 1, 1], data=[[[1.0]], [[2.0]]]), Tensor("y", "FP32", (2, 1, 1), [1.0, 2.0])),
        (output(shape=[0], data=[]), Tensor("y", "FP32", (0,), [])),
        (output(shape=[], data=[1.0]), Tensor("y", "FP32", (), [1.0])),
        (output(datatype="FP16"), Tensor("y", "FP16", (2,), [1.0, 2.0])),
        (output(datatype="INT64", data=[1, -(2**63)]), Tensor("y", "INT64", (2,), [1, -(2**63)])),
        (output(datatype="UINT64", data=[1, 2**64 - 1]), Tensor("y", "UINT64", (2,), [1, 2**64 - 1])),
        (output(datatype="BOOL", data=[True, False]), Tensor("y", "BOOL", (2,), [True, False])),
        (output(datatype="BYTES", data=["Grüße", ""]), Tensor("y", "BYTES", (2,), ["Grüße".encode(), b""])),
        (output(parameters={"content_type": "np"}), Tensor("y", "FP32", (2,), [1.0, 2.0], {"content_type": "np"})),
    ],
)
def test_a_good_body_gives_a_reply(given: dict[str, Any], tensor: Tensor) -> None:
    """Elements come out flat, of their datatype, whether they stood flat or nested."""
    reply = parse_reply(body(given, model_version="3", parameters={"a": 1}), {}, "42")
    assert reply == InferReply((tensor,), "m", "3", {"a": 1})


def test_what_a_server_does_not_say_is_none() -> None:
    """The outputs are all that is needed, as in the document's own example."""
    reply = parse_reply(json.dumps({"outputs": [output()]}).encode(), {"content-type": "application/json"}, "42")
    assert reply == InferReply((Tensor("y", "FP32", (2,), [1.0, 2.0]),))


def random_tensor(chance: random.Random, name: str) -> Tensor:
    datatype = chance.choice(sorted(DATATYPES))
    shape = tuple(chance.randint(0, 3) for _ in range(chance.randint(1, 3)))
    makers: dict[str, Any] = {
        "BOOL": lambda: chance.random() < 0.5,
        "BYTES": lambda: chance.randbytes(chance.randint(0, 5)),
    }
    if "INT" in datatype:
        bits = int(datatype.removeprefix("U").removeprefix("INT"))
        low = 0 if datatype.startswith("U") else -(2 ** (bits - 1))
        makers[datatype] = lambda: chance.randint(low, low + 2**bits - 1)
    make = makers.get(datatype, lambda: chance.randint(-1000, 1000) / 8)
    return Tensor(name, datatype, shape, [make() for _ in range(int(np.prod(shape)))])


@pytest.mark.parametrize("seed", range(100))
def test_binary_tensors_come_back_as_they_were_sent(seed: int) -> None:
    """What a request packs, a reply in the same form unpacks: every datatype and shape, JSON tensors among them."""
    chance = random.Random(seed)
    tensors = tuple(random_tensor(chance, f"t{number}") for number in range(chance.randint(1, 4)))
    sent, headers = binary_request(tensors)
    length = int(headers[HEADER_LENGTH])
    described = json.loads(sent[:length])["inputs"]
    answer = binary(body(output(), *described), sent[length:])
    outputs = parse_reply(*answer).outputs[1:]
    assert outputs == tensors
    for came, went in zip(outputs, tensors, strict=True):
        assert list(map(type, came.data)) == list(map(type, went.data))


BROKEN = [
    b"",
    b"null",
    b"{}",
    body(output())[:-1],
    body(output()) + b"}",
    body(None),
    body(output(), outputs=None),
    body(output(), id="43"),
    body(output(data=None)),
    body(output(data=[1.0])),
    body(output(data=[1.0, 2.0, 3.0])),
    body(output(data=[1.0, "2"])),
    body(output(data=[1.0, True])),
    body(output(data=[1.0, None])),
    body(output(data=[1.0, [2.0]])),
    body(output(data=[[1.0], [2.0]])),
    body(output(shape=[2, 2], data=[[1.0, 2.0], [3.0]])),
    body(output(shape=[2, 2], data=[[1.0, 2.0], 3.0])),
    body(output(shape=[-1])),
    body(output(shape=[2.5])),
    body(output(shape=None)),
    body(output(datatype="FP33")),
    body(output(datatype="BYTES")),
    body(output(datatype="BOOL", data=[1, 0])),
    body(output(datatype="INT8", data=[1, 128])),
    body(output(datatype="INT8", data=[1, 1.0])),
    body(output(datatype="UINT8", data=[1, -1])),
    body(output(name=1)),
    b'{"error": "overloaded"}',
    b'{"outputs": ' + b"[" * 100_000,
]


@pytest.mark.parametrize("given", BROKEN, ids=range(len(BROKEN)))
def test_anything_else_is_a_broken_reply(given: bytes) -> None:
    """What is cut, of another shape or datatype, or answers another request is a BrokenReply with a sentence."""
    with pytest.raises(BrokenReply) as caught:
        parse_reply(given, {}, "42")
    assert str(caught.value).endswith(".")


def sized(size: Any, /, **over: Any) -> bytes:
    return body(output(parameters={"binary_data_size": size}, **{"data": None, **over}))


BROKEN_BINARY = [
    binary(sized(8), bytes(7)),
    binary(sized(8), bytes(9)),
    binary(sized(4), bytes(4)),
    binary(sized(7), bytes(7)),
    binary(sized(-1), b""),
    binary(sized("8"), bytes(8)),
    binary(sized(1.0), bytes(1)),
    binary(sized(8, data=[1.0, 2.0]), bytes(8)),
    binary(sized(2, datatype="BOOL"), b"\1\2"),
    binary(sized(6, datatype="BYTES"), b"\1\0\0\0ab"),
    binary(sized(6, datatype="BYTES"), b"\3\0\0\0ab"),
    binary(sized(3, datatype="BYTES"), b"\0\0\0"),
    (sized(8) + bytes(8), {HEADER_LENGTH: "99999"}),
    (sized(8) + bytes(8), {HEADER_LENGTH: "-5"}),
    (sized(8) + bytes(8), {HEADER_LENGTH: "x"}),
    (sized(8) + bytes(8), {HEADER_LENGTH: "5"}),
    (sized(8) + bytes(8), {}),
    (sized(8), {}),
]


@pytest.mark.parametrize(("given", "headers"), BROKEN_BINARY, ids=range(len(BROKEN_BINARY)))
def test_binary_data_in_the_wrong_place_is_a_broken_reply(given: bytes, headers: dict[str, str]) -> None:
    """Sizes that are not kept, gaps, and elements that are cut are a BrokenReply with a sentence."""
    with pytest.raises(BrokenReply) as caught:
        parse_reply(given, headers)
    assert str(caught.value).endswith(".")


def test_every_cut_of_a_good_binary_body_is_broken() -> None:
    """No prefix of a body with binary data is taken for a reply."""
    good, headers = binary(sized(8), bytes(8))
    assert parse_reply(good, headers).outputs[0].data == [0.0, 0.0]
    for length in range(len(good)):
        with pytest.raises(BrokenReply):
            parse_reply(good[:length], headers)


def test_an_error_object_is_quoted() -> None:
    """The sentence about an error object in a 200 holds the server's own words."""
    with pytest.raises(BrokenReply, match="overloaded"):
        parse_reply(b'{"error": "overloaded"}', {})


@pytest.mark.parametrize("seed", range(50))
def test_rows_are_joined_and_cut_apart_again(seed: int) -> None:
    """Records of any number of rows come back as they were, each with all of its tensors."""
    chance = random.Random(seed)
    widths = [(2, 3), (), (1,)]
    records = []
    for _ in range(chance.randint(1, 10)):
        rows = chance.randint(0, 3)
        shapes = [(rows, *width) for width in widths]
        data = [[chance.random() for _ in range(int(np.prod(shape)))] for shape in shapes]
        records.append(tuple(Tensor(f"t{n}", "FP64", shapes[n], data[n], {"a": n}) for n in range(3)))
    joined = join_rows(records)
    assert [tensor.name for tensor in joined] == ["t0", "t1", "t2"]
    assert split_rows(joined, [record[0].shape[0] for record in records]) == records


@pytest.mark.parametrize(
    "other",
    [
        (Tensor("x", "FP32", (1, 2), [1.0, 2.0]),),
        (Tensor("y", "FP32", (1, 3), [1.0, 2.0, 3.0]),),
        (Tensor("x", "FP64", (1, 3), [1.0, 2.0, 3.0]),),
        (Tensor("x", "FP32", (), [1.0]),),
        (),
    ],
)
def test_records_that_differ_are_not_joined(other: tuple[Tensor, ...]) -> None:
    """Another name, datatype, width or number of tensors is a ValueError."""
    with pytest.raises(ValueError, match=r"joined|argument"):
        join_rows([(Tensor("x", "FP32", (1, 3), [1.0, 2.0, 3.0]),), other])


@pytest.mark.parametrize("tensor", [FLOATS, Tensor("y", "FP32", (), [1.0]), Tensor("y", "FP32", (5,), [1.0] * 5)])
def test_outputs_without_a_row_for_each_record_are_broken(tensor: Tensor) -> None:
    """An output that is short or long is a BrokenReply, which makes a batch be split."""
    with pytest.raises(BrokenReply, match="not one row for each of 4"):
        split_rows([tensor], [1, 2, 1])


def test_binary_data_is_smaller_than_json() -> None:
    """A thousand FP32 scores take less than half of the bytes in binary."""
    chance = random.Random(1)
    tensor = Tensor("x", "FP32", (1000,), np.array([chance.random() for _ in range(1000)], np.float32))
    assert len(binary_request([tensor])[0]) < len(request_body([tensor])) / 2


def test_the_form_is_negotiated() -> None:
    """With `auto` JSON is sent with the wish for binary data, and binary data once an answer has been so; else JSON for ever."""
    question = Tensors((Tensor("x", "FP32", (1,), [1.0]),))
    for answers_binary in (False, True):
        protocol = OpenInference(ProtocolSettings(model="m", params={"a": 1}, options={"binary": "auto"}))
        first = protocol.request([question])
        assert json.loads(first.body)["parameters"] == {"a": 1, "binary_data_output": True}
        answered = {"name": "y", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}
        header = body(answered if answers_binary else output(shape=[1], data=[0.0]))
        given, headers = binary(header, b"\0\0\0\0") if answers_binary else (header, {})
        (reply,) = protocol.replies([question], headers, given)
        assert reply.value == {"y": [0.0]}
        assert (HEADER_LENGTH in protocol.request([question]).headers) == answers_binary
