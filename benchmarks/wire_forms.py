"""The forms in which a question goes over the wire, for ``scripts/bench wire``: bytes out, an answer in. No network here.

A form makes the request's body from its question each time, as a pipeline has to, and reads the answer whole.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Mapping, Sequence

import msgspec

from benchmarks import wire_grpc
from transforms.remote import open_inference, openai_chat
from transforms.remote.questions import Message, Tensor

GZIP_LEVEL = 6
"""Python's and nginx's middle; a higher one takes more time for hardly fewer bytes."""


class Form(msgspec.Struct, frozen=True):
    """`make` gives a request's body and headers, `read` takes the answer's unpacked body and headers; `path` is HTTP's or gRPC's."""

    name: str
    path: str
    make: Callable[[], tuple[bytes, Mapping[str, str]]]
    read: Callable[[bytes, Mapping[str, str]], object]
    grpc: bool = False


class Question(msgspec.Struct, frozen=True):
    """What is asked: `title` for the table, and the forms that can carry it."""

    title: str
    forms: tuple[Form, ...]


_JSON = {"Content-Type": "application/json"}
_TEXT = {**_JSON, "Accept-Encoding": "identity"}
_GZIP = {**_JSON, "Content-Encoding": "gzip", "Accept-Encoding": "gzip"}


def chat(text: str, model: str = "bench") -> Question:
    """A conversation of one message, as JSON and packed."""

    def plain() -> tuple[bytes, Mapping[str, str]]:
        return openai_chat.request_body(model, (Message("user", text),), {}), _TEXT

    def packed() -> tuple[bytes, Mapping[str, str]]:
        return gzip.compress(plain()[0], GZIP_LEVEL), _GZIP

    def read(body: bytes, _: Mapping[str, str]) -> object:
        return openai_chat.parse_reply(body)

    path = "/v1/chat/completions"
    size = len(text.encode())
    return Question(
        f"chat, {size:,} bytes of text".replace(",", " "),
        (Form("JSON", path, plain, read), Form("JSON + gzip", path, packed, read)),
    )


def records(features: int, rows: int, model: str = "sum", seed: int = 0, with_binary: bool = True) -> Question:
    """A batch of records as one FP32 tensor: as JSON, packed, with binary tensors, and over gRPC, typed and raw.

    The features are random with four decimals, as measurements are. `with_binary` is for servers
    that know the extension for binary tensors, as Triton and KServe do and MLServer does not.
    """
    chance = random.Random(seed)  # noqa: S311 - features, no secret
    data = [round(chance.gauss(0.0, 10.0), 4) for _ in range(features * rows)]
    tensor = Tensor("input-0", "FP32", (rows, features), data)
    path = open_inference.infer_path(model)

    def plain() -> tuple[bytes, Mapping[str, str]]:
        return open_inference.request_body((tensor,)), _TEXT

    def packed() -> tuple[bytes, Mapping[str, str]]:
        return gzip.compress(plain()[0], GZIP_LEVEL), _GZIP

    def binary() -> tuple[bytes, Mapping[str, str]]:
        return open_inference.binary_request((tensor,))

    forms = [
        Form("JSON", path, plain, open_inference.parse_reply),
        Form("JSON + gzip", path, packed, open_inference.parse_reply),
    ]
    if with_binary:
        forms.append(Form("binary tensors", path, binary, open_inference.parse_reply))
    forms += [_over_grpc(name, model, tensor, raw=raw) for name, raw in (("gRPC, typed", False), ("gRPC, raw", True))]
    return Question(f"{rows} × {features:,} features".replace(",", " "), tuple(forms))


def _over_grpc(name: str, model: str, tensor: Tensor, *, raw: bool) -> Form:
    def make() -> tuple[bytes, Mapping[str, str]]:
        return wire_grpc.request(model, tensor.name, tensor.shape, tensor.data, raw=raw), {}

    def read(body: bytes, _: Mapping[str, str]) -> object:
        return wire_grpc.replied(body)

    return Form(name, wire_grpc.METHOD, make, read, grpc=True)


def unpacked(body: bytes, headers: Mapping[str, str]) -> bytes:
    """The body of an answer, unpacked where it came packed."""
    return gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body


def text_of(samples: Sequence[str], size: int) -> str:
    """About `size` bytes of what people wrote: samples one after another, as often as it takes."""
    parts: list[str] = []
    length = 0
    while length < size:
        one = samples[len(parts) % len(samples)]
        parts.append(one)
        length += len(one.encode()) + 1
    return "\n".join(parts).encode()[:size].decode(errors="ignore")
