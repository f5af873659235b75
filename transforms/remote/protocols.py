"""What a wire protocol is, and the protocols by name.

A protocol turns questions into the body of a POST, and the body of the answer into replies. It is pure: it knows nothing of
connections, endpoints and repeats. Those that take several questions in one request are batched by the client (`batcher`).
To add one: write its class in a file of its own, and name it in `_makers` and in `_asked_with`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, TypeVar

import msgspec

from transforms.errors import SettingsError
from transforms.remote.questions import Chat, Question, Reply, Tensors, Text, Value

S = TypeVar("S", bound=msgspec.Struct)


class Request(msgspec.Struct, frozen=True):
    """What is sent: a POST of `body` to the endpoint's base URL and `path`. `tokens` is an estimate of what it costs."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    tokens: int = 0


class StreamReader(Protocol):
    """Puts one reply together from the pieces of a stream."""

    first_token_s: float | None
    """The moment of the first piece of text."""

    def feed(self, chunk: bytes, now_s: float) -> bool:
        """Take the next bytes, which came at `now_s`; return whether the stream is complete.

        Raises:
            BrokenReply: they do not follow the protocol.
        """

    def reply(self) -> Reply:
        """Return the reply.

        Raises:
            BrokenReply: the stream was cut.
        """


class WireProtocol(Protocol):
    """A protocol, made for one model.

    `most_items` is how many questions one request may hold, None for any number. `samples` says that equal questions may get
    different answers unless the params forbid it (`cache.cacheable`). `schemes` are those of the URLs of its endpoints.
    """

    most_items: int | None
    samples: bool
    schemes: tuple[str, ...]

    @property
    def probe_path(self) -> str | None:
        """The path that answers 2xx to GET while the model can be asked; None where the protocol has none."""

    def request(self, questions: Sequence[Question]) -> Request:
        """Return the request that asks these questions.

        Raises:
            Refused: a question is of a kind that this protocol does not have, or has no form in it. Its status is 0.
        """

    def replies(self, questions: Sequence[Question], headers: Mapping[str, str], body: bytes) -> Sequence[Reply]:
        """Return the replies that a 2xx answer holds, one to each question and in their order.

        Raises:
            BrokenReply: the answer does not follow the protocol.
            Refused: it says that this question will never be answered.
        """

    def reader(self) -> StreamReader | None:
        """Return what reads the answer to one question piece by piece, or None where it comes as a whole."""

    def params(self, question: Question) -> Mapping[str, Any]:
        """Return the params that hold for a question, for the cache to tell whether its answer may be kept."""


class ProtocolSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a protocol is made of: the model's name as its server knows it, further fields of each body, and its own options."""

    model: str
    params: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}
    stream: bool = False


_makers: Mapping[str, str] = {
    "openai-chat": "transforms.remote.openai_chat:OpenAIChat",
    "openai-embeddings": "transforms.remote.openai_embeddings:OpenAIEmbeddings",
    "open-inference": "transforms.remote.open_inference:OpenInference",
    "open-inference-grpc": "transforms.remote.open_inference_grpc:OpenInferenceGrpc",
    "tensorflow-serving": "transforms.remote.tensorflow_serving:TensorFlowServing",
    "vertex": "transforms.remote.vertex:Vertex",
    "gemini": "transforms.remote.gemini:Gemini",
    "http-json": "transforms.remote.http_json:HttpJson",
}

PROTOCOLS = tuple(_makers)
"""The wire protocols that this version speaks."""


_asked_with: Mapping[str, tuple[type[Question], ...]] = {
    "openai-chat": (Chat,),
    "openai-embeddings": (Text,),
    "open-inference": (Tensors,),
    "open-inference-grpc": (Tensors,),
    "tensorflow-serving": (Value, Tensors),
    "vertex": (Value, Tensors),
    "gemini": (Chat,),
    "http-json": (Chat, Text, Value),
}


def asked_with(name: str) -> tuple[type[Question], ...]:
    """Return the kinds of questions that the protocol `name` has a form for; none where it is not known."""
    return _asked_with.get(name, ())


_OPERATIONS = {"openai-chat": "chat", "openai-embeddings": "embeddings", "gemini": "generate_content"}


def operation_of(name: str) -> str:
    """Return what OpenTelemetry's conventions call the operation of this protocol, or ``inference`` where they do not."""
    return _OPERATIONS.get(name, "inference")


def make_protocol(name: str, settings: ProtocolSettings) -> WireProtocol:
    """Return the protocol `name`, made for a model.

    Raises:
        SettingsError: there is no such protocol, or the settings are not for it.
    """
    if name not in _makers:
        raise SettingsError(f"protocol {name} is not known; {nearest(name, PROTOCOLS)}")
    module, _, maker = _makers[name].partition(":")
    make: Callable[[ProtocolSettings], WireProtocol] = getattr(import_module(module), maker)
    return make(settings)


def refuse_reserved(params: Mapping[str, Any], reserved: frozenset[str]) -> None:
    """Raise SettingsError for params that the client writes itself."""
    taken = sorted(reserved.intersection(params))
    if taken:
        raise SettingsError(f"params may not set {taken[0]}; the client does.")


def refuse_stream(protocol: str, settings: ProtocolSettings) -> None:
    """Raise SettingsError where a stream is asked of a protocol without."""
    if settings.stream:
        raise SettingsError(f"protocol {protocol} has no streams; leave stream out.")


def read_options(options: Mapping[str, Any], kind: type[S]) -> S:
    """Return the options of a protocol as a value of `kind`.

    Raises:
        SettingsError: one is not known, or of the wrong type.
    """
    known = kind.__struct_fields__
    for name in options:
        if name not in known:
            raise SettingsError(f"options has no {name} with this protocol; {nearest(name, known)}")
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise SettingsError(f"options: {error}.") from None


def nearest(word: str, known: Collection[str]) -> str:
    """Return the end of a sentence about an unknown word: the nearest known one, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"known are {', '.join(known)}." if known else "it has none."
