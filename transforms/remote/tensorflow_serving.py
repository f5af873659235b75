"""The wire protocol `tensorflow-serving`: TensorFlow Serving's REST predict API.

Source: TensorFlow Serving's "RESTful API" (tensorflow.org/tfx/serving/api_rest). ``POST /v1/models/{name}[/versions/{version} |
/labels/{label}]:predict``. In the row format ``instances`` is a list of inputs and ``predictions`` a list of as many outputs; in
the column format ``inputs`` holds each input as one tensor and ``outputs`` each output, named where there are several. Binary
data is ``{"b64": …}``; numbers that are not finite are ``NaN``, ``Infinity`` and ``-Infinity``. ``GET /v1/models/{name}``
answers 200 while the server has the model.

Defaults: row format, the default signature, the latest version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from transforms.errors import BrokenReply, Refused, SettingsError
from transforms.remote.bodies import decode_tokens, encode, excerpt_of, without_base64
from transforms.remote.instances import instances_of, nested, predictions_of
from transforms.remote.protocols import ProtocolSettings, Request, read_options, refuse_reserved, refuse_stream
from transforms.remote.questions import Question, Reply
from transforms.remote.tensors import inputs_of, join_rows

RESERVED_PARAMS = frozenset({"instances", "inputs", "signature_name"})
"""Fields of the body that `params` may not set: the client writes them."""


class ServingOptions(msgspec.Struct, frozen=True):
    """The protocol's own options.

    `version` or `label` pick the model's version; `signature_name` its signature; `format` is ``row``, which takes values and
    tensors, or ``column``, which takes tensors.
    """

    version: int | None = None
    label: str | None = None
    signature_name: str | None = None
    format: Literal["row", "column"] = "row"

    def __post_init__(self) -> None:
        """Raise SettingsError where two versions are picked."""
        if self.version is not None and self.label is not None:
            raise SettingsError("options: version and label both pick a version; leave one out.")


class TensorFlowServing:
    """The protocol for one model; see `WireProtocol`. It takes `Value` and `Tensors` questions, any number in a request.

    A reply's value is the prediction of a `Value`; of `Tensors`, their rows' outputs by name, or a list of them where the answer
    names none, because the model has one output.

    Raises:
        SettingsError: a param is the client's to set, an option is unknown, or a stream is asked for.
    """

    most_items: int | None = None
    samples = False
    schemes = ("http", "https")

    def __init__(self, settings: ProtocolSettings) -> None:
        refuse_reserved(settings.params, RESERVED_PARAMS)
        refuse_stream("tensorflow-serving", settings)
        self._settings = settings
        self._options = read_options(settings.options, ServingOptions)
        self._model = model_path(settings.model, self._options)

    @property
    def probe_path(self) -> str:
        """The path of the model's status, which is there while the server has it."""
        return self._model

    def request(self, questions: Sequence[Question]) -> Request:
        """Return the request; see `WireProtocol.request`."""
        signature = self._options.signature_name
        body = {**({"signature_name": signature} if signature else {}), **self._settings.params}
        try:
            if self._options.format == "row":
                body["instances"] = [
                    item for question in questions for item in instances_of(question, "tensorflow-serving")
                ]
            else:
                records = [inputs_of(question, "tensorflow-serving in the column format") for question in questions]
                body["inputs"] = {tensor.name: nested(tensor) for tensor in join_rows(records)}
            return Request(f"{self._model}:predict", encode(body, tokens=True), {})
        except (TypeError, ValueError, RecursionError) as error:
            raise Refused(f"The request has no form in the protocol: {error}.", 0) from None

    def replies(self, questions: Sequence[Question], headers: Mapping[str, str], body: bytes) -> Sequence[Reply]:
        """Return a reply to each question; see `WireProtocol.replies`."""
        answer = decode_tokens(body)
        if not isinstance(answer, dict):
            raise BrokenReply("The answer does not follow the protocol: it is no object.")
        if "error" in answer:
            raise BrokenReply(f"The answer has a status of success but is an error: {excerpt_of(answer['error'])}.")
        if self._options.format == "row":
            values = predictions_of(without_base64(answer.get("predictions")), questions)
        else:
            counts = [inputs_of(question, "")[0].shape[0] for question in questions]
            values = _cut(without_base64(answer.get("outputs")), counts)
        return [Reply("", value=value) for value in values]

    def reader(self) -> None:
        """Return None: there are no streams."""

    def params(self, question: Question) -> Mapping[str, Any]:
        """Return the params of the settings."""
        return self._settings.params


def model_path(model: str, options: ServingOptions) -> str:
    """Return the path of a model, or of the version that the options pick."""
    path = f"/v1/models/{quote(model, safe='')}"
    if options.version is not None:
        return f"{path}/versions/{options.version}"
    return path if options.label is None else f"{path}/labels/{quote(options.label, safe='')}"


def _cut(outputs: Any, counts: Sequence[int]) -> list[Any]:
    """The outputs of each question, which has so many rows."""
    total = sum(counts)
    tensors = outputs.values() if isinstance(outputs, dict) else [outputs]
    if not all(isinstance(tensor, list) and len(tensor) == total for tensor in tensors):
        raise BrokenReply(f"The answer's outputs have not one row for each of {total}.")
    spans = [(begin, begin + count) for begin, count in zip(accumulate(counts, initial=0), counts, strict=False)]
    if isinstance(outputs, dict):
        return [{name: tensor[begin:end] for name, tensor in outputs.items()} for begin, end in spans]
    return [outputs[begin:end] for begin, end in spans]
