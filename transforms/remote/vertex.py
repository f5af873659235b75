"""The wire protocol `vertex`: online prediction of Vertex AI, ``:predict`` and ``:rawPredict``.

Source: Vertex AI's REST reference, projects.locations.endpoints.predict and .rawPredict (version v1). The base URL is like
``https://us-central1-aiplatform.googleapis.com/v1``, the model the resource's name, like
``projects/my-project/locations/us-central1/endpoints/1234``. ``:predict`` takes ``instances`` and answers as many
``predictions``; params of the settings are its ``parameters``. ``:rawPredict`` takes and answers whatever the container does:
here one JSON value each. A token of Google's goes with it (``auth: {google: true}``).

Defaults: ``:predict``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from transforms.errors import Refused, SettingsError
from transforms.remote.bodies import decode, encode, without_base64
from transforms.remote.instances import instances_of, predictions_of
from transforms.remote.protocols import ProtocolSettings, Request, read_options, refuse_stream
from transforms.remote.questions import Question, Reply, Value

_RESOURCE = re.compile(
    r"projects/[^/\s]+/locations/[^/\s]+/(endpoints/[^/\s]+|publishers/[^/\s]+/models/[^/\s]+)", re.ASCII
)


class _Predicted(msgspec.Struct):
    predictions: list[Any]
    deployedModelId: str | None = None  # noqa: N815 - the protocol's word
    model: str | None = None


_predicted = msgspec.json.Decoder(_Predicted)
_bodies: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class VertexOptions(msgspec.Struct, frozen=True):
    """The protocol's own options. `method` is ``predict``, or ``rawPredict``, which takes a `Value` as its whole body."""

    method: Literal["predict", "rawPredict"] = "predict"


class Vertex:
    """The protocol for one endpoint; see `WireProtocol`. It takes `Value` and `Tensors` questions.

    With ``:predict`` a request holds any number, and a reply's value is as `instances.predictions_of` says. With ``:rawPredict``
    it holds one `Value`, and the reply's value is the answer.

    Raises:
        SettingsError: the model is no resource's name, an option is unknown, or a stream or params are asked for that there are not.
    """

    samples = False
    schemes = ("http", "https")
    probe_path: str | None = None

    def __init__(self, settings: ProtocolSettings) -> None:
        refuse_stream("vertex", settings)
        options = read_options(settings.options, VertexOptions)
        if not _RESOURCE.fullmatch(settings.model):
            raise SettingsError(
                f"model is {settings.model}; with vertex it is a resource, projects/…/locations/…/endpoints/…."
            )
        if options.method == "rawPredict" and settings.params:
            raise SettingsError("params have no place in a rawPredict, whose body is the value itself; leave them out.")
        self._raw = options.method == "rawPredict"
        self._path = f"/{settings.model}:{options.method}"
        self._settings = settings
        self.most_items: int | None = 1 if self._raw else None

    def request(self, questions: Sequence[Question]) -> Request:
        """Return the request; see `WireProtocol.request`."""
        try:
            return Request(self._path, encode(self._raw_body(questions[0]) if self._raw else self._body(questions)), {})
        except (TypeError, ValueError, RecursionError) as error:
            raise Refused(f"The request has no form in the protocol: {error}.", 0) from None

    def replies(self, questions: Sequence[Question], headers: Mapping[str, str], body: bytes) -> Sequence[Reply]:
        """Return a reply to each question; see `WireProtocol.replies`."""
        if self._raw:
            served = {name.lower(): value for name, value in headers.items()}.get("x-vertex-ai-deployed-model-id")
            return (Reply("", model=served, value=without_base64(decode(_bodies, body))),)
        answer = decode(_predicted, body)
        served = answer.deployedModelId or answer.model
        return [
            Reply("", model=served, value=value)
            for value in predictions_of(without_base64(answer.predictions), questions)
        ]

    def reader(self) -> None:
        """Return None: there are no streams."""

    def params(self, question: Question) -> Mapping[str, Any]:
        """Return the params of the settings."""
        return self._settings.params

    def _body(self, questions: Sequence[Question]) -> dict[str, Any]:
        instances = [item for question in questions for item in instances_of(question, "vertex")]
        parameters = {"parameters": dict(self._settings.params)} if self._settings.params else {}
        return {"instances": instances, **parameters}

    def _raw_body(self, question: Question) -> Any:
        if not isinstance(question, Value):
            raise Refused(f"rawPredict takes values; a question of the kind {type(question).__name__} it has not.", 0)
        return question.value
