"""The wire protocol `tensorflow-serving`: rows and columns, binary data, numbers that are not finite, and what is no reply."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from transforms.errors import BrokenReply, Refused, SettingsError
from transforms.remote.bodies import with_base64, without_base64
from transforms.remote.instances import nested
from transforms.remote.protocols import ProtocolSettings
from transforms.remote.questions import Chat, Tensor, Tensors, Value
from transforms.remote.tensorflow_serving import TensorFlowServing

TAG = Tensor("tag", "BYTES", (2,), ["foo", b"\xff"])
SIGNAL = Tensor("signal", "INT32", (2, 3), [1, 2, 3, 4, 5, 6])


def made(params: dict[str, Any] | None = None, **options: Any) -> TensorFlowServing:
    return TensorFlowServing(ProtocolSettings(model="half plus/two", params=params or {}, options=options))


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_the_path_names_model_and_version() -> None:
    """The model, and its version or label, stand in the path, quoted; the status path is that of the probe."""
    assert made().request([Value(1)]).path == "/v1/models/half%20plus%2Ftwo:predict"
    assert made(version=3).request([Value(1)]).path == "/v1/models/half%20plus%2Ftwo/versions/3:predict"
    assert made(label="ca nary").probe_path == "/v1/models/half%20plus%2Ftwo/labels/ca%20nary"
    with pytest.raises(SettingsError, match="leave one out"):
        made(version=3, label="canary")


def test_values_are_instances() -> None:
    """Each value is one instance, as it is; bytes in it are base64; the signature and further params stand beside them."""
    sent = made({"extra": 1}, signature_name="s").request([Value(1.5), Value({"x": [1, b"\xff"]})])
    assert json.loads(sent.body) == {
        "signature_name": "s",
        "extra": 1,
        "instances": [1.5, {"x": [1, {"b64": "/w=="}]}],
    }


def test_rows_of_tensors_are_instances() -> None:
    """The documentation's example: each row is an object of the inputs by name, nested as their shape says."""
    sent = json.loads(made().request([Tensors((TAG, SIGNAL)), Value(7)]).body)
    assert sent["instances"] == [
        {"tag": "foo", "signal": [1, 2, 3]},
        {"tag": {"b64": "/w=="}, "signal": [4, 5, 6]},
        7,
    ]


def test_columns_are_tensors() -> None:
    """In the column format the tensors of all questions are joined, each under its name."""
    sent = json.loads(made(format="column").request([Tensors((SIGNAL,)), Tensors((SIGNAL,))]).body)
    assert sent == {"inputs": {"signal": [[1, 2, 3], [4, 5, 6]] * 2}}


def test_numbers_that_are_not_finite_travel_as_the_documentation_says() -> None:
    """NaN and the infinities go out and come in as tokens."""
    sent = made().request([Value([math.nan, -math.inf])])
    assert sent.body == b'{"instances":[[NaN,-Infinity]]}'
    (reply,) = made().replies([Value(1)], {}, b'{"predictions": [Infinity]}')
    assert reply.value == math.inf


@pytest.mark.parametrize(
    "question",
    [
        Chat(()),
        Value({1}),
        Tensors(()),
        Tensors((Tensor("x", "FP32", (), [1.0]),)),
        Tensors((TAG, Tensor("x", "FP32", (1,), [1.0]))),
        Tensors((Tensor("x", "FP32", (2,), [1.0]),)),
    ],
)
def test_a_question_without_a_form_is_refused(question: Any) -> None:
    """Chats, values without JSON, and tensors without rows or that contradict themselves are refused."""
    with pytest.raises(Refused):
        made().request([question])


def test_a_column_takes_no_values() -> None:
    """The column format has names, and a value has none."""
    with pytest.raises(Refused, match="column"):
        made(format="column").request([Value(1)])


def test_predictions_go_to_their_questions() -> None:
    """A value has its prediction; tensors have one for each row, by name where the answer names them."""
    questions = [Value(1), Tensors((TAG, SIGNAL)), Value(2)]
    replies = made().replies(questions, {}, body(predictions=[[0.5], {"y": 1}, {"y": 2}, {"b64": "/w=="}]))
    assert [reply.value for reply in replies] == [[0.5], {"y": [1, 2]}, b"\xff"]
    (unnamed,) = made().replies([Tensors((TAG,))], {}, body(predictions=[1, 2]))
    assert unnamed.value == [1, 2]


def test_outputs_are_cut_apart() -> None:
    """In the column format each question has its rows of each output."""
    questions = [Tensors((SIGNAL,)), Tensors((Tensor("signal", "INT32", (1, 3), [7, 8, 9]),))]
    protocol = made(format="column")
    named = protocol.replies(questions, {}, body(outputs={"a": [1, 2, 3], "b": [[1], [2], [3]]}))
    assert [reply.value for reply in named] == [{"a": [1, 2], "b": [[1], [2]]}, {"a": [3], "b": [[3]]}]
    plain = protocol.replies(questions, {}, body(outputs=[1, 2, 3]))
    assert [reply.value for reply in plain] == [[1, 2], [3]]


@pytest.mark.parametrize(
    "given",
    [b"", b"[]", b'{"\xff": 1}', b"{}", body(predictions=3), body(predictions=[1, 2]), body(error="x"), b"[" * 100_000,
     body(predictions=[{"b64": "*"}]), b'{"predictions": [' + b"9" * 10_000 + b"]}"],
)  # fmt: skip
def test_what_is_no_answer_is_broken(given: bytes) -> None:
    """What is no JSON, holds an error, or not one prediction for each instance, is no reply."""
    with pytest.raises(BrokenReply):
        made().replies([Value(1)], {}, given)


@pytest.mark.parametrize("outputs", [None, [1], {"a": [1, 2], "b": [1]}, {"a": 3}])
def test_outputs_without_a_row_for_each_are_broken(outputs: Any) -> None:
    """Every output must have as many rows as the questions together."""
    with pytest.raises(BrokenReply):
        made(format="column").replies([Tensors((SIGNAL,))], {}, body(outputs=outputs))


@pytest.mark.parametrize("seed", range(50))
def test_rows_and_binary_data_survive_the_way(seed: int) -> None:
    """Any shape is nested as numpy nests it, and bytes come back out of base64 as they went in."""
    rng = random.Random(seed)
    shape = tuple(rng.randint(1, 3) for _ in range(rng.randint(1, 4)))
    data = [rng.randint(-5, 5) for _ in range(math.prod(shape))]
    import numpy as np

    assert nested(Tensor("x", "INT8", shape, data)) == np.array(data).reshape(shape).tolist()
    value = [{"a": rng.randbytes(rng.randint(0, 9))}, "text", None]
    assert without_base64(json.loads(json.dumps(with_base64(value)))) == value


def test_a_stream_and_reserved_params_are_refused() -> None:
    """There are no streams, and the client writes the inputs."""
    with pytest.raises(SettingsError, match="stream"):
        TensorFlowServing(ProtocolSettings(model="m", stream=True))
    with pytest.raises(SettingsError, match="instances"):
        made({"instances": []})
