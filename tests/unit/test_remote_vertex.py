"""The wire protocol `vertex`: online prediction, and the container's own bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from transforms.errors import BrokenReply, Refused, SettingsError
from transforms.remote.protocols import ProtocolSettings
from transforms.remote.questions import Reply, Tensor, Tensors, Text, Value
from transforms.remote.vertex import Vertex

ENDPOINT = "projects/p-1/locations/us-central1/endpoints/123"


def made(model: str = ENDPOINT, params: dict[str, Any] | None = None, **options: Any) -> Vertex:
    return Vertex(ProtocolSettings(model=model, params=params or {}, options=options))


def test_a_prediction_takes_instances_and_parameters() -> None:
    """Values and rows of tensors are instances; the params are the parameters, and none are left out."""
    rows = Tensors((Tensor("x", "INT8", (2,), [1, 2]),))
    sent = made(params={"threshold": 0.5}).request([Value({"a": 1}), rows])
    assert sent.path == f"/{ENDPOINT}:predict"
    assert json.loads(sent.body) == {"instances": [{"a": 1}, {"x": 1}, {"x": 2}], "parameters": {"threshold": 0.5}}
    assert json.loads(made().request([Value(1)]).body) == {"instances": [1]}


def test_predictions_go_to_their_questions() -> None:
    """One prediction for each instance, in order; the deployed model's id is the reply's model."""
    answer = {"predictions": [0.1, {"y": "a"}], "deployedModelId": "77", "modelVersionId": "1"}
    replies = made().replies([Value(1), Value(2)], {}, json.dumps(answer).encode())
    assert replies == [Reply("", model="77", value=0.1), Reply("", model="77", value={"y": "a"})]


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"predictions": 1}', b'{"predictions": [1, 2]}', b'{"error": {"message": "x"}}']
)
def test_what_is_no_answer_is_broken(body: bytes) -> None:
    """What is no JSON, or not one prediction for each instance, is no reply."""
    with pytest.raises(BrokenReply):
        made().replies([Value(1)], {}, body)


def test_a_raw_prediction_is_the_value_itself() -> None:
    """The body is the value, the reply's value the whole answer; the header names the model that served it."""
    raw = made(method="rawPredict")
    sent = raw.request([Value({"any": ["thing"]})])
    assert (sent.path, sent.body) == (f"/{ENDPOINT}:rawPredict", b'{"any":["thing"]}')
    (reply,) = raw.replies([Value(1)], {"X-Vertex-AI-Deployed-Model-Id": "9"}, b'{"y": 1}')
    assert reply == Reply("", model="9", value={"y": 1})
    assert raw.most_items == 1
    with pytest.raises(Refused):
        raw.request([Tensors((Tensor("x", "INT8", (1,), [1]),))])


@pytest.mark.parametrize(
    ("over", "match"),
    [
        ({"model": "123"}, "resource"),
        ({"model": "projects/a/locations/b/endpoints/c/../d"}, "resource"),
        ({"method": "raw"}, "method"),
        ({"method": "rawPredict", "params": {"a": 1}}, "no place"),
    ],
)
def test_settings_that_are_wrong_are_refused_at_once(over: dict[str, Any], match: str) -> None:
    """A model that is no resource, an unknown method, and params that would go nowhere."""
    with pytest.raises(SettingsError, match=match):
        made(**over)


def test_a_text_is_refused() -> None:
    """A question of another kind has no form."""
    with pytest.raises(Refused, match="Text"):
        made().request([Text("a")])
