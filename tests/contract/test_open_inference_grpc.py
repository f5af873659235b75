"""The Open Inference Protocol over gRPC, on real sockets: the suite of the other protocols, and what is gRPC's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from tests.contract.grpc_double import GrpcDouble
from transforms.remote import loop
from transforms.remote.auth import Auth
from transforms.remote.batcher import BatchSettings
from transforms.remote.client import Call, Client, Outcome
from transforms.remote.clock import SystemClock
from transforms.remote.connection import TlsSettings
from transforms.remote.grpc_transport import HTTP_STATUS, PUSHBACK, GrpcTransport
from transforms.remote.inference_messages import SERVICE
from transforms.remote.model_double import event_id_of
from transforms.remote.questions import Question, Tensor, Tensors, Text
from transforms.remote.settings import Endpoint, ModelSettings, RetryPolicy

FEW = RetryPolicy(max_attempts=3, base_s=0.001, cap_s=0.01, wait_for_server=False)


def tensors(number: int) -> Tensors:
    rows = Tensor("a", "FP64", (2, 2), [number, 1.0, number, 2.0])
    return Tensors((rows, Tensor("b", "INT64", (2,), [number, number])))


def sums(number: int) -> dict[str, list[float]]:
    return {"sum": [2.0 * number + 1.0, 2.0 * number + 2.0]}


class Room:
    """A client and its double."""

    def __init__(self, double: GrpcDouble, **over: Any) -> None:
        self.double = double
        settings = {
            "role": "score",
            "protocol": "open-inference-grpc",
            "endpoints": (Endpoint(double.url),),
            "model": "m",
            "timeout_s": 5.0,
            "retry": FEW,
            **over,
        }
        self.settings = ModelSettings(**settings)
        self.client = Client(self.settings)

    def call(self, number: int, question: Question | None = None, deadline_s: float = 30.0, **over: Any) -> Call:
        return Call(
            f"e{number}", question or tensors(number), SystemClock().now_ms() + round(deadline_s * 1000), **over
        )

    def ask(self, *calls: Call) -> list[Outcome]:
        async def main() -> list[Outcome]:
            return await asyncio.gather(*map(self.client.call, calls))

        return loop.run(main()).result(60.0)

    def close(self) -> None:
        loop.run(self.client.close()).result(60.0)


@pytest.fixture(scope="module")
def shared() -> Iterator[GrpcDouble]:
    """One double for the module."""
    with GrpcDouble() as double:
        yield double


@pytest.fixture
def double(shared: GrpcDouble) -> GrpcDouble:
    """The double without memory."""
    shared.attempts.clear()
    shared.metadata.clear()
    shared.remaining_s.clear()
    shared.cancelled.clear()
    shared.ready = True
    shared.before = lambda _key, _attempt, _context: None
    return shared


@pytest.fixture(params=[True, False], ids=["raw", "typed"])
def room(request: pytest.FixtureRequest, double: GrpcDouble) -> Iterator[Room]:
    """A client that sends raw contents, and one that sends typed ones."""
    made = Room(double, options={"raw": request.param})
    yield made
    made.close()


def failing(code: grpc.StatusCode, *attempts: int, trailing: tuple[tuple[str, str], ...] = ()) -> Any:
    """Abort these attempts."""

    def before(_key: str, attempt: int, context: Any) -> None:
        if attempt in attempts:
            context.set_trailing_metadata(trailing)
            context.abort(code, "a fault of the double")

    return before


def test_each_question_has_its_own_answer(room: Room) -> None:
    """Of many questions at once, each gets its answer, in one attempt."""
    outcomes = room.ask(*(room.call(number) for number in range(30)))
    assert [outcome.error_message for outcome in outcomes] == [None] * 30
    assert [outcome.reply and outcome.reply.value for outcome in outcomes] == [sums(number) for number in range(30)]
    assert {outcome.attempts for outcome in outcomes} == {1}


def test_questions_that_travel_together_have_their_own_answers(double: GrpcDouble) -> None:
    """In batches, few requests are sent, and the rows of each question come back to it."""
    room = Room(double, batch=BatchSettings(max_items=8, max_wait_ms=1000.0, idle_below=0))
    outcomes = room.ask(*(room.call(number) for number in range(32)))
    room.close()
    assert [outcome.reply and outcome.reply.value for outcome in outcomes] == [sums(number) for number in range(32)]
    assert double.requests == 4


KINDS = [
    Tensor("bool", "BOOL", (2,), [True, False]),
    *(Tensor(f"i{bits}", f"INT{bits}", (2,), [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]) for bits in (8, 16, 32, 64)),
    *(Tensor(f"u{bits}", f"UINT{bits}", (2,), [0, 2**bits - 1]) for bits in (8, 16, 32, 64)),
    Tensor("f32", "FP32", (2,), [0.5, -1.25]),
    Tensor("f64", "FP64", (2,), [0.1, 1e300]),
    Tensor("bytes", "BYTES", (2,), ["Grüße", b"\xff\x00"]),
]


def test_every_datatype_goes_there_and_back(room: Room) -> None:
    """What an echo gives back is what was sent, in both forms and for every datatype that both have."""
    echo = Room(room.double, model="echo", options=room.settings.options)
    (outcome,) = echo.ask(echo.call(1, Tensors(tuple(KINDS))))
    echo.close()
    assert outcome.reply is not None, outcome.error_message
    expected = {tensor.name: list(tensor.data) for tensor in KINDS}
    assert outcome.reply.value == expected


def test_half_floats_travel_raw_alone(double: GrpcDouble) -> None:
    """FP16 has no field of its own: raw it goes through, typed it is refused here."""
    half = Tensors((Tensor("x", "FP16", (2,), [0.5, -2.0]),))
    outcomes = []
    for raw in (True, False):
        room = Room(double, model="echo", options={"raw": raw})
        outcomes += room.ask(room.call(1, half))
        room.close()
    assert outcomes[0].reply is not None
    assert outcomes[0].reply.value == {"x": [0.5, -2.0]}
    assert (outcomes[1].error_type, double.requests) == ("refused", 1)


PASSING = [
    grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED,
    grpc.StatusCode.DATA_LOSS, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
]  # fmt: skip


@pytest.mark.parametrize("code", PASSING, ids=lambda code: code.name)
def test_a_fault_that_passes_is_outlived(double: GrpcDouble, code: grpc.StatusCode) -> None:
    """A status that says nothing of the request is tried again, under the same idempotency key."""
    room = Room(double)
    double.before = failing(code, 1)
    (outcome,) = room.ask(room.call(3))
    room.close()
    assert outcome.reply is not None, outcome.error_message
    assert outcome.reply.value == sums(3)
    assert double.attempts == {"e3": 2}


FINAL = [
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.ALREADY_EXISTS,
]  # fmt: skip


@pytest.mark.parametrize("code", FINAL, ids=lambda code: code.name)
def test_a_refusal_is_final(double: GrpcDouble, code: grpc.StatusCode) -> None:
    """A status that would come again is not asked for again; the server's words are in the message."""
    room = Room(double)
    double.before = failing(code, 1, 2, 3)
    (outcome,) = room.ask(room.call(3))
    room.close()
    assert (outcome.error_type, outcome.attempts) == ("refused", 1)
    assert str(HTTP_STATUS[code]) in str(outcome.error_message)
    assert "a fault of the double" in str(outcome.error_message)


def test_every_status_has_a_meaning() -> None:
    """Each status of gRPC is one of HTTP's, or an error of its own."""
    own = {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert set(HTTP_STATUS) == set(grpc.StatusCode) - own


def test_a_server_that_asks_for_time_gets_it(double: GrpcDouble) -> None:
    """RESOURCE_EXHAUSTED uses up no attempt, and its push-back is waited out."""
    room = Room(double)
    double.before = failing(grpc.StatusCode.RESOURCE_EXHAUSTED, 1, 2, 3, 4, trailing=((PUSHBACK, "20"),))
    (outcome,) = room.ask(room.call(3))
    room.close()
    assert outcome.reply is not None, outcome.error_message
    assert (outcome.attempts, double.requests) == (5, 5)


def test_headers_and_the_deadline_reach_the_server(double: GrpcDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idempotency key, trace and secret are metadata; the server is told how long the attempt may take."""
    monkeypatch.setenv("MODEL_KEY", "secret-1")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    room = Room(double, auth=Auth(env="MODEL_KEY"))
    (outcome,) = room.ask(room.call(3, traceparent=trace))
    room.close()
    assert outcome.reply is not None, outcome.error_message
    (metadata,) = double.metadata
    assert event_id_of(metadata["idempotency-key"]) == "e3" != metadata["idempotency-key"]
    assert metadata["traceparent"] == trace
    assert metadata["authorization"] == "Bearer secret-1"
    assert 0.0 < double.remaining_s[0] < 6.0  # the wire rounds up


def waiting(release: threading.Event) -> Any:
    """Hang until the client is gone, or the test is over."""

    def before(_key: str, attempt: int, context: Any) -> None:
        while attempt == 1 and context.is_active() and not release.wait(0.01):
            pass

    return before


def test_a_server_that_hangs_is_given_up(double: GrpcDouble) -> None:
    """After `timeout_s` the attempt is over, and the next one has the answer."""
    release = threading.Event()
    double.before = waiting(release)
    room = Room(double, timeout_s=0.3)
    (outcome,) = room.ask(room.call(3))
    room.close()
    release.set()
    assert outcome.reply is not None, outcome.error_message
    assert outcome.attempts == 2


def test_a_cancelled_call_is_cancelled_at_the_server(double: GrpcDouble) -> None:
    """The server learns at once that nobody waits any more."""
    release = threading.Event()
    double.before = waiting(release)
    room = Room(double, timeout_s=25.0)

    async def main() -> bool:
        task = asyncio.create_task(room.client.call(room.call(3)))
        while not double.attempts:
            await SystemClock().sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert loop.run(main()).result(60.0)
    assert double.cancelled.wait(10.0)
    release.set()
    room.close()


def test_a_server_that_is_not_there_is_waited_for() -> None:
    """Nothing is sent to a server that is down; once it is up, the event has its answer, in one attempt."""
    with GrpcDouble() as double:
        pass
    room = Room(double, retry=RetryPolicy(base_s=0.01, cap_s=0.05))

    async def main() -> Outcome:
        task = asyncio.create_task(room.client.call(room.call(3)))
        await SystemClock().sleep(0.2)
        await asyncio.to_thread(double.start)
        return await task

    outcome = loop.run(main()).result(60.0)
    room.close()
    double.stop()
    assert outcome.reply is not None, outcome.error_message
    assert (outcome.attempts, double.requests) == (1, 1)


def test_a_server_that_is_not_there_has_its_name() -> None:
    """Where it is not waited for, the event ends as unreachable, and the sentence names the server."""
    with GrpcDouble() as double:
        pass
    room = Room(double)
    (outcome,) = room.ask(room.call(3))
    room.close()
    assert outcome.error_type == "unreachable"
    assert double.url in str(outcome.error_message)


def test_a_server_that_goes_away_and_comes_back_loses_nothing(double: GrpcDouble) -> None:
    """Events that are under way when connections break are answered after its return."""
    with GrpcDouble() as own:
        room = Room(own, retry=RetryPolicy(base_s=0.01, cap_s=0.05))
        release = threading.Event()
        own.before = waiting(release)

        async def main() -> list[Outcome]:
            tasks = [asyncio.create_task(room.client.call(room.call(number))) for number in range(5)]
            while len(own.attempts) < 5:
                await SystemClock().sleep(0.01)
            await asyncio.to_thread(own.stop)
            release.set()
            await asyncio.to_thread(own.start)
            return await asyncio.gather(*tasks)

        outcomes = loop.run(main()).result(60.0)
        room.close()
    assert [outcome.reply and outcome.reply.value for outcome in outcomes] == [sums(number) for number in range(5)]


def test_an_answer_that_is_too_large_is_broken(double: GrpcDouble) -> None:
    """More than the bound is not read, and is no quota."""
    small = GrpcTransport(largest_reply_bytes=100)
    settings = Room(double, model="echo").settings

    async def main() -> Outcome:
        client = Client(settings, transport=small)
        try:
            data = Tensors((Tensor("x", "FP64", (1, 1000), [0.0] * 1000),))
            return await client.call(Call("a", data, SystemClock().now_ms() + 20_000))
        finally:
            await client.close()
            await small.close()

    outcome = loop.run(main()).result(60.0)
    assert (outcome.error_type, outcome.attempts) == ("broken-reply", 3)


def test_a_question_of_another_kind_is_not_sent(double: GrpcDouble) -> None:
    """It is refused here."""
    room = Room(double)
    (outcome,) = room.ask(room.call(3, Text("a")))
    room.close()
    assert (outcome.error_type, double.requests) == ("refused", 0)


def test_probes_tell_whether_the_model_is_ready(double: GrpcDouble) -> None:
    """ModelReady and ServerReady: true is 200, false is 503; a server that is not there is not ready."""
    ready = Room(double).settings.make_protocol().probe_path or ""
    absent = Room(double, model="absent").settings.make_protocol().probe_path or ""

    async def main() -> list[int]:
        transport = GrpcTransport()
        try:
            found = [
                (await transport.get(double.url + path, {}, 5.0))[0]
                for path in (ready, absent, f"{SERVICE}/ServerReady")
            ]
            double.ready = False
            return [*found, (await transport.get(double.url + ready, {}, 5.0))[0]]
        finally:
            await transport.close()

    assert loop.run(main()).result(60.0) == [200, 503, 200, 503]


def test_mutual_tls_and_an_authority_of_our_own(tmp_path: Path) -> None:
    """With the authority and our certificate the server answers; without the one or the other there is no connection."""
    ca = trustme.CA()
    server, ours = ca.issue_cert("127.0.0.1"), ca.issue_cert("client@example.com")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    ours.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    pair = (server.private_key_pem.bytes(), server.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_server_credentials([pair], ca.cert_pem.bytes(), require_client_auth=True)
    ca_file, cert_file = str(tmp_path / "ca.pem"), str(tmp_path / "both.pem")
    with GrpcDouble(credentials) as double:
        outcomes = []
        for tls in (TlsSettings(ca_file, cert_file), TlsSettings(ca_file), None):
            room = Room(double, tls=tls)
            outcomes += room.ask(room.call(3))
            room.close()
        assert outcomes[0].reply is not None, outcomes[0].error_message
        assert [outcome.error_type for outcome in outcomes[1:]] == ["unreachable"] * 2
        assert double.requests == 1


def test_requests_may_be_compressed(double: GrpcDouble) -> None:
    """With `compress` the server is sent gzip, and understands."""
    room = Room(double, compress="gzip")
    (outcome,) = room.ask(room.call(3))
    room.close()
    assert outcome.reply is not None, outcome.error_message
    assert outcome.reply.value == sums(3)
