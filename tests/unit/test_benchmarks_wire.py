"""The forms on the wire: each carries the same question, and gRPC's messages are those of the protocol."""

from __future__ import annotations

import gzip
import random

import msgspec
import numpy as np
import pytest

from benchmarks import wire, wire_grpc
from benchmarks.wire import Measured
from benchmarks.wire_forms import Form, chat, records, text_of, unpacked
from transforms.remote import open_inference


def form(found: tuple[Form, ...], name: str) -> Form:
    return next(one for one in found if one.name == name)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("raw", [False, True])
def test_a_grpc_question_comes_back_as_it_was(seed: int, raw: bool) -> None:
    """Typed or raw, the elements and the shape of a request and of its response survive."""
    chance = random.Random(seed)
    rows, features = chance.randint(1, 9), chance.randint(1, 30)
    data = [chance.gauss(0, 10) for _ in range(rows * features)]
    asked = wire_grpc.ModelInferRequest.FromString(wire_grpc.request("m", "x", (rows, features), data, raw=raw))
    assert list(asked.inputs[0].shape) == [rows, features]
    got = wire_grpc.elements(asked.inputs[0], asked.raw_input_contents)
    assert got.tolist() == np.asarray(data, "<f4").tolist()
    values = np.asarray(data[:rows], "<f8")
    assert wire_grpc.replied(wire_grpc.response(asked, values, raw=raw)) == data[:rows]


def test_a_grpc_request_is_on_the_wire_what_the_protocol_says() -> None:
    """Byte for byte, with the field numbers of the protocol's document: model_name 1, inputs 5, raw_input_contents 7."""
    body = wire_grpc.request("m", "x", (1, 1), [1.0], raw=True)
    tensor = b"\x0a\x01x" + b"\x12\x04FP32" + b"\x1a\x02\x01\x01"
    assert body == b"\x0a\x01m" + b"\x2a" + bytes([len(tensor)]) + tensor + b"\x3a\x04\x00\x00\x80\x3f"
    typed = wire_grpc.request("m", "x", (1, 1), [1.0], raw=False)
    # contents 5, fp32_contents 6, packed.
    assert typed.endswith(b"\x2a\x06\x32\x04\x00\x00\x80\x3f")


def test_every_form_of_a_batch_carries_the_same_numbers() -> None:
    """JSON, packed JSON, binary tensors and gRPC decode to the same elements."""
    forms = records(30, 4).forms
    plain = msgspec.json.decode(form(forms, "JSON").make()[0])["inputs"][0]["data"]
    body, headers = form(forms, "JSON + gzip").make()
    assert msgspec.json.decode(unpacked(body, headers))["inputs"][0]["data"] == plain
    body, headers = form(forms, "binary tensors").make()
    binary = np.frombuffer(body[int(headers[open_inference.HEADER_LENGTH]) :], "<f4")
    assert binary.tolist() == np.asarray(plain, "<f4").tolist()
    for name in ("gRPC, typed", "gRPC, raw"):
        asked = wire_grpc.ModelInferRequest.FromString(form(forms, name).make()[0])
        assert wire_grpc.elements(asked.inputs[0], asked.raw_input_contents).tolist() == binary.tolist()


def test_a_packed_conversation_is_the_plain_one() -> None:
    """What gzip packs is byte for byte what goes plain."""
    plain, packed = (one.make()[0] for one in chat("where is it? " * 50).forms)
    assert gzip.decompress(packed) == plain
    assert len(packed) < len(plain) / 2


def test_a_server_without_binary_tensors_is_not_asked_in_them() -> None:
    """Without the extension there is no such form."""
    assert "binary tensors" not in [one.name for one in records(3, 2, with_binary=False).forms]


@pytest.mark.parametrize("size", [1, 50, 300, 5_000])
def test_a_text_is_as_long_as_asked_and_whole(size: int) -> None:
    """The text has its bytes but for half of a last character, and begins with the first sample."""
    text = text_of(["häh? ", "second"], size)
    assert size - 1 <= len(text.encode()) <= size
    assert "häh? \nsecond".startswith(text[:10]) or size > 10


def test_the_sample_texts_are_enough_and_not_the_same_again() -> None:
    """There is more text than the longest question takes, so that nothing packs well for being repeated."""
    found = wire.samples()
    assert len(set(found)) > 50
    assert sum(len(text.encode()) for text in set(found)) > max(wire.TEXT_BYTES)


def test_the_table_says_what_share_of_json_a_form_takes() -> None:
    """The share is that of the request, and the link's time is both bodies' at its rate."""
    rows = [
        Measured("q", "JSON", 1_000, 250, 1.0, 1.0, 1.0, 100.0),
        Measured("q", "gRPC, raw", 250, 1_000, 2.0, 1.0, 3.0, 50.0),
    ]
    last = wire.table(rows).splitlines()[-1]
    assert last == "| q | gRPC, raw | 250 | 25% | 1 000 | 2.00 (1.00–3.00) | 50 | 1.0 |"
    assert wire.figures(rows) == {"v2_JSON": 1.0, "v2_gRPC, raw": 0.25}
