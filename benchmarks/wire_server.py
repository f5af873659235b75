"""The server of ``scripts/bench wire``: one cheap model behind every form on the wire, so that the forms alone differ.

    python -m benchmarks.wire_server

It prints one line of JSON with its two base addresses when it listens. The model adds up a record's features. Over HTTP it speaks
`openai-chat` and Open Inference V2 as JSON or with binary tensors, takes bodies packed with gzip and packs answers for who
accepts it; over gRPC the same V2, typed or raw, answered as it was asked.
"""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import grpc.aio
import msgspec
import numpy as np
from aiohttp import web

from benchmarks import wire_grpc
from transforms.remote.loop import new_event_loop
from transforms.remote.open_inference import HEADER_LENGTH

LARGEST_BYTES = 64 << 20
ANSWER_TEXT = (
    "Thank you for your message. I have looked at your order and see that it left our warehouse on Monday. The carrier expects to "
    "deliver it tomorrow before noon. You will get an e-mail with a link to follow the parcel. If it has not come by Thursday, "
    "write to us again and we will send a new one at once, free of charge."
)


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    data: list[float] | None = None


class _Infer(msgspec.Struct):
    inputs: list[_Tensor]


_infers = msgspec.json.Decoder(_Infer)


def _packed(request: web.Request, response: web.Response) -> web.Response:
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        response.enable_compression(web.ContentCoding.gzip)
    return response


async def chat(request: web.Request) -> web.Response:
    """Answers any conversation with the same text."""
    asked = msgspec.json.decode(await request.read())
    reply = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": asked["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER_TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 75, "total_tokens": 175},
    }
    return _packed(request, web.Response(body=msgspec.json.encode(reply), content_type="application/json"))


async def infer(request: web.Request) -> web.Response:
    """Adds up each row, in the form of the request."""
    body = await request.read()
    stated = request.headers.get(HEADER_LENGTH)
    length = int(stated) if stated else len(body)
    tensor = _infers.decode(body[:length]).inputs[0]
    data = np.frombuffer(body[length:], "<f4") if stated else np.asarray(tensor.data, "<f4")
    sums = data.reshape(tensor.shape).sum(axis=1, dtype="<f8")
    output: dict[str, Any] = {"name": "predict", "shape": [len(sums), 1], "datatype": "FP64"}
    if not stated:
        reply = {"model_name": "sum", "outputs": [{**output, "data": sums.tolist()}]}
        return _packed(request, web.Response(body=msgspec.json.encode(reply), content_type="application/json"))
    output["parameters"] = {"binary_data_size": sums.nbytes}
    head = msgspec.json.encode({"model_name": "sum", "outputs": [output]})
    return web.Response(body=head + sums.tobytes(), headers={HEADER_LENGTH: str(len(head))})


async def model_infer(body: bytes, _: Any) -> bytes:
    """The same over gRPC."""
    asked = wire_grpc.ModelInferRequest.FromString(body)
    tensor = asked.inputs[0]
    data = wire_grpc.elements(tensor, asked.raw_input_contents)
    sums = data.reshape(tuple(tensor.shape)).sum(axis=1, dtype="<f8")
    return wire_grpc.response(asked, sums, raw=bool(asked.raw_input_contents))


async def _serve() -> None:
    application = web.Application(client_max_size=LARGEST_BYTES)
    application.router.add_post("/v1/chat/completions", chat)
    application.router.add_post("/v2/models/sum/infer", infer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", LARGEST_BYTES)])
    handler = grpc.unary_unary_rpc_method_handler(model_infer)
    _, service, method = wire_grpc.METHOD.split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    http_port = runner.addresses[0][1]
    print(json.dumps({"http": f"http://127.0.0.1:{http_port}", "grpc": f"127.0.0.1:{port}"}), flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.stop(None)
    await runner.cleanup()


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    new_event_loop().run_until_complete(_serve())


if __name__ == "__main__":
    main()
