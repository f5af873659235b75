"""A double of a model server that speaks the Open Inference Protocol over gRPC, with faults to order."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
import numpy as np

from transforms.remote.inference_messages import (
    SERVICE,
    ModelInferRequest,
    ModelInferResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerReadyResponse,
)
from transforms.remote.model_double import event_id_of

DTYPES = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}

Answer = Callable[[str, int, Any], None]
"""Called with the id, the number of the attempt and the call's context before the answer; may abort the call."""


class GrpcDouble:
    """Serves from ``with`` to its end.

    The model ``echo`` gives the inputs back, in the form they came in; every other one the row sums of all inputs as `sum`.
    """

    def __init__(self, credentials: Any = None, workers: int = 64) -> None:
        self.attempts: Counter[str] = Counter()
        self.metadata: list[dict[str, str]] = []
        self.remaining_s: list[float] = []
        self.ready = True
        self.cancelled = threading.Event()
        self.before: Answer = lambda _key, _attempt, _context: None
        self._credentials = credentials
        self._workers = workers
        self.port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"{'grpc' if self._credentials is None else 'grpcs'}://127.0.0.1:{self.port}"

    @property
    def requests(self) -> int:
        return sum(self.attempts.values())

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = grpc.server(ThreadPoolExecutor(self._workers), options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        address = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._credentials)
        self._server.start()

    def stop(self) -> None:
        """Break all connections."""
        self._server.stop(0).wait()

    def infer(self, body: bytes, context: Any) -> bytes:
        """Answer one request."""
        metadata = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
        key = event_id_of(metadata.get("idempotency-key", ""))
        self.attempts[key] += 1
        self.metadata.append(metadata)
        self.remaining_s.append(context.time_remaining())
        context.add_callback(lambda: None if context.code() is not None else self.cancelled.set())
        self.before(key, self.attempts[key], context)
        asked = ModelInferRequest.FromString(body)
        answer = ModelInferResponse(model_name=asked.model_name, model_version=asked.model_version or "1")
        if asked.model_name == "echo":
            for tensor in asked.inputs:
                answer.outputs.add().ParseFromString(tensor.SerializeToString())
            answer.raw_output_contents.extend(asked.raw_input_contents)
        else:
            self._sum(asked, answer)
        answered: bytes = answer.SerializeToString()
        return answered

    def is_ready(self, body: bytes, _context: Any) -> bytes:
        """Answer ModelReady of any model but ``absent``."""
        ready = self.ready and ModelReadyRequest.FromString(body).name != "absent"
        answered: bytes = ModelReadyResponse(ready=ready).SerializeToString()
        return answered

    def is_server_ready(self, _body: bytes, _context: Any) -> bytes:
        """Answer ServerReady."""
        answered: bytes = ServerReadyResponse(ready=self.ready).SerializeToString()
        return answered

    def _sum(self, asked: Any, answer: Any) -> None:
        sums: Any = 0.0
        for at, tensor in enumerate(asked.inputs):
            if asked.raw_input_contents:
                data = np.frombuffer(asked.raw_input_contents[at], DTYPES[tensor.datatype]).astype(np.float64)
            else:
                data = np.array([*tensor.contents.fp64_contents, *tensor.contents.int64_contents], np.float64)
            assert data.size == math.prod(tensor.shape)
            sums = sums + data.reshape(tensor.shape[0], -1).sum(axis=1)
        output = answer.outputs.add(name="sum", datatype="FP64", shape=[len(sums)])
        if asked.raw_input_contents:
            answer.raw_output_contents.append(sums.astype("<f8").tobytes())
        else:
            output.contents.fp64_contents.extend(sums)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, double: GrpcDouble) -> None:
        self._methods = {
            f"{SERVICE}/ModelInfer": double.infer,
            f"{SERVICE}/ModelReady": double.is_ready,
            f"{SERVICE}/ServerReady": double.is_server_ready,
        }

    def service(self, details: Any) -> Any:
        method = self._methods.get(details.method)
        return method and grpc.unary_unary_rpc_method_handler(method)
