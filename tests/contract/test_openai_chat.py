"""What the client and an OpenAI-compatible server owe each other: one suite, on a fake and on real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest
import requests

from transforms.errors import BrokenReply
from transforms.remote import loop
from transforms.remote.auth import Auth
from transforms.remote.client import Call, Chat, Client, Message, Outcome
from transforms.remote.clock import SystemClock
from transforms.remote.model_double import Fault, FaultKind, ModelDouble, reply_text
from transforms.remote.settings import Endpoint, ModelSettings, RetryPolicy
from transforms.remote.transport import AiohttpTransport

ROOT = Path(__file__).resolve().parents[2]


class Rig(Protocol):
    """A client and its server."""

    real: bool
    client: Client

    def ask(self, key: str = ..., text: str = ..., deadline_s: float = ...) -> Outcome: ...
    def ask_all(self, keys: list[str]) -> list[Outcome]: ...
    def cancel(self, key: str) -> None: ...
    def set_faults(self, *faults: Fault) -> None: ...
    def attempts(self) -> dict[str, int]: ...
    def disconnects(self, number: int) -> int: ...


def settings_of(url: str, **over: Any) -> ModelSettings:
    return ModelSettings(**{"role": "answer", "endpoints": (Endpoint(url),), "model": "double", **over})


def call_of(key: str, deadline_s: float = 30.0) -> Call:
    return Call(key, Chat((Message("user", "Hello?"),)), SystemClock().now_ms() + round(deadline_s * 1000))


def ask_once(client: Client, call: Call) -> Outcome:
    """Ask one question of a client of its own, and close it."""

    async def main() -> Outcome:
        try:
            return await client.call(call)
        finally:
            await client.close()

    return loop.run(main()).result(60.0)


# What every server does.


def test_a_question_gets_a_reply(healthy_rig: Rig) -> None:
    """A question gets a text, its counts of tokens and a finish reason, in one attempt."""
    outcome = healthy_rig.ask()
    assert outcome.reply is not None, outcome.error_message
    assert outcome.reply.text
    assert outcome.reply.finish_reason in ("stop", "length")
    assert outcome.reply.completion_tokens is not None
    assert outcome.attempts == 1


def test_questions_asked_at_once_are_told_apart(healthy_rig: Rig) -> None:
    """Of several questions under way at once, each gets one outcome under its own id."""
    ids = [f"q-{number}" for number in range(4)]
    outcomes = healthy_rig.ask_all(ids)
    assert [outcome.id for outcome in outcomes] == ids
    assert all(outcome.reply for outcome in outcomes)


# What a server that fails is answered with.


def test_the_reply_belongs_to_the_question(rig: Rig) -> None:
    """Of a hundred questions at once, each gets the reply to its own message."""
    keys = [str(number) for number in range(100)]
    texts = [outcome.reply and outcome.reply.text for outcome in rig.ask_all(keys)]
    assert texts == [reply_text(f"Question {key}") for key in keys]


PASSING: list[tuple[FaultKind, str]] = [
    ("status", "server-error"),
    ("drop", "unreachable"),
    ("truncate", "unreachable"),
    ("hang", "timeout"),
    ("slow", "timeout"),
    ("garbage", "broken-reply"),
    ("not-json", "broken-reply"),
    ("not-utf8", "broken-reply"),
    ("no-choices", "broken-reply"),
    ("error-object", "broken-reply"),
]


@pytest.mark.parametrize(("fault", "_kind"), PASSING)
def test_a_fault_that_passes_is_outlived(rig: Rig, fault: FaultKind, _kind: str) -> None:
    """After one fault the second attempt, under the same idempotency key, gets the reply."""
    rig.set_faults(Fault(fault, attempts=(1,)))
    outcome = rig.ask(key="e-1")
    assert outcome.reply is not None, outcome.error_message
    assert outcome.attempts == 2
    assert rig.attempts() == {"e-1": 2}


@pytest.mark.parametrize(("fault", "kind"), PASSING)
def test_a_fault_that_stays_has_its_name(rig: Rig, fault: FaultKind, kind: str) -> None:
    """A fault of every attempt ends a call after `max_attempts`, all under one key, with its own kind, if it is not to wait."""
    rig.set_faults(Fault(fault))
    outcome = rig.ask(key="e-1")
    assert (outcome.error_type, outcome.attempts) == (kind, 4)
    assert rig.attempts() == {"e-1": 4}
    assert str(outcome.error_message).endswith((".", "?"))
    assert "\n" not in str(outcome.error_message)


@pytest.mark.parametrize("fault", [*(Fault("status", status) for status in (400, 401, 404, 422)), Fault("redirect")])
def test_a_refusal_is_final(rig: Rig, fault: Fault) -> None:
    """A permanent error, and a redirect, is not repeated and not followed."""
    rig.set_faults(fault)
    outcome = rig.ask()
    assert (outcome.error_type, outcome.attempts) == ("refused", 1)
    assert rig.attempts() == {"a": 1}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", 429, retry_after="0.05"),
        Fault("status", 503, retry_after="0.05"),
        Fault("status", 429, retry_after_ms="50"),
        Fault("status", 429, retry_after="garbage"),
        Fault("status", 429, retry_after_date_s=-5),
        Fault("status", 429),
    ],
)
def test_throttling_is_outlived(rig: Rig, fault: Fault) -> None:
    """However a server asks to be left alone, the event gets its reply afterwards."""
    rig.set_faults(Fault(**{name: getattr(fault, name) for name in fault.__struct_fields__} | {"attempts": (1, 2)}))
    outcome = rig.ask()
    assert outcome.reply is not None, outcome.error_message
    assert outcome.attempts == 3


@pytest.mark.parametrize("fault", ["hang", "slow"])
def test_a_deadline_closes_the_connection(rig: Rig, fault: FaultKind) -> None:
    """When the deadline passes, before or within an answer, the server sees the client leave."""
    rig.set_faults(Fault(fault))
    outcome = rig.ask(deadline_s=0.1)
    assert (outcome.error_type, outcome.attempts) == ("deadline", 1)
    assert rig.disconnects(1) == 1


def test_a_cancelled_call_closes_the_connection(rig: Rig) -> None:
    """When a call is cancelled, the server sees the client leave, and its permit is free."""
    rig.set_faults(Fault("hang"))
    rig.cancel("a")
    assert rig.disconnects(1) == 1
    assert rig.client.in_flight == 0


# What only a real socket can show.


def test_a_server_that_comes_up_is_waited_for() -> None:
    """An event asked while nobody listens is answered, in one counted attempt, once somebody does."""
    with ModelDouble() as double:
        double.set_down(True)
        client = Client(settings_of(double.base_url))
        future = loop.run(client.call(call_of("a")))
        double.set_down(False)
        outcome = future.result(60.0)
        assert outcome.reply is not None, outcome.error_message
        assert outcome.attempts == 1
        loop.run(client.close()).result(60.0)


def test_attempts_that_find_nobody_are_not_counted() -> None:
    """While nobody listens, a call outlasts `max_attempts` until its deadline; at most the one cut off by it counts."""
    with ModelDouble() as double:
        double.set_down(True)
        retry = RetryPolicy(max_attempts=2, base_s=0.001, cap_s=0.01)
        outcome = ask_once(Client(settings_of(double.base_url, retry=retry)), call_of("a", 0.2))
    assert outcome.error_type == "deadline"
    assert outcome.attempts <= 1
    assert "is the server up?" in str(outcome.error_message)


def test_a_server_that_goes_away_and_comes_back_loses_nothing() -> None:
    """Calls under way when a server breaks all connections are answered after it is back."""
    with ModelDouble() as double:
        double.set_faults(Fault("hang", attempts=(1,)))
        client = Client(settings_of(double.base_url))
        futures = [loop.run(client.call(call_of(str(number)))) for number in range(20)]
        double.wait_until(lambda stats: stats.in_flight == 20)
        double.set_down(True)
        double.set_down(False)
        assert all(future.result(60.0).reply for future in futures)
        loop.run(client.close()).result(60.0)


def test_the_secret_opens_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that wants a token answers with it and refuses without it."""
    monkeypatch.setenv("FARCALL_TEST_KEY", "hunter2")
    with ModelDouble(token="hunter2") as double:
        with_it = ask_once(Client(settings_of(double.base_url, auth=Auth(env="FARCALL_TEST_KEY"))), call_of("a"))
        without = ask_once(Client(settings_of(double.base_url)), call_of("b"))
    assert with_it.reply is not None
    assert without.error_type == "refused"


def test_an_answer_too_large_is_broken() -> None:
    """An answer beyond the bound is not read to its end."""

    async def main(url: str) -> None:
        transport = AiohttpTransport(largest_reply_bytes=1000)
        try:
            body = b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}'
            with pytest.raises(BrokenReply, match="larger than 1000 bytes"):
                await transport.post(f"{url}/chat/completions", body, {}, 10.0)
        finally:
            await transport.close()

    with ModelDouble(reply=lambda _: "x" * 5_000_000) as double:
        loop.run(main(double.base_url)).result(60.0)


def test_proxies_of_the_environment_are_not_used(double: ModelDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names does not get to see the event."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask_once(Client(settings_of(double.base_url)), call_of("a", 5.0)).reply is not None


def test_redirects_take_the_secret_nowhere(double: ModelDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect is not followed: the server it points to sees no request."""
    double.set_faults(Fault("redirect"))
    outcome = ask_once(Client(settings_of(double.base_url)), call_of("a"))
    assert (outcome.error_type, double.requests) == ("refused", 1)
    assert "307" in str(outcome.error_message)


def test_calls_beyond_the_bound_wait(double: ModelDouble) -> None:
    """The server never sees more calls at once than `max_in_flight`, and all are answered."""
    double.set_faults(Fault("status", 500, attempts=(1,), fraction=0.2, after_ms=5))
    client = Client(settings_of(double.base_url, max_in_flight=5))

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(client.call(call_of(str(number))) for number in range(100)))

    outcomes = loop.run(main()).result(60.0)
    loop.run(client.close()).result(60.0)
    assert all(outcome.reply for outcome in outcomes)
    stats = double.wait_until(lambda stats: stats.in_flight == 0)
    assert stats.most_in_flight <= 5
    assert stats.requests == sum(outcome.attempts for outcome in outcomes)
    assert (stats.answered, stats.duplicates, stats.faults) == (100, 0, stats.requests - 100)


# The double as a process, steered from another.


def test_the_double_runs_as_a_process() -> None:
    """As a process it prints one line with its URL, serves, takes faults, tells its stats, and ends on SIGTERM."""
    command = [sys.executable, "-m", "transforms.remote.model_double", "--port", "0", "--latency_ms", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[-1]
        root = url.removesuffix("/v1")
        faults = [{"kind": "status", "status": 503, "retry_after": "0.01", "attempts": [1]}]
        assert requests.get(f"{root}/health", timeout=10).json() == {"status": "ok"}
        assert requests.get(f"{url}/models", timeout=10).json()["data"][0]["id"] == "double"
        assert requests.post(f"{root}/control/faults", json=[{"kind": "nonsense"}], timeout=10).status_code == 400
        assert requests.post(f"{root}/control/faults", json=faults, timeout=10).json() == {"faults": 1}
        assert ask_once(Client(settings_of(url)), call_of("a")).attempts == 2
        stats = requests.get(f"{root}/control/stats", timeout=10).json()
        assert (stats["requests"], stats["answered"], stats["attempts"]) == (2, 1, {"a": 2})
        assert requests.post(f"{root}/control/reset", timeout=10).json() == {}
        assert requests.get(f"{root}/control/stats", timeout=10).json()["requests"] == 0
        assert requests.post(f"{root}/control/down?for_s=0.1", timeout=10).json() == {"down_for_s": 0.1}
        assert ask_once(Client(settings_of(url)), call_of("b")).reply is not None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == ""
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_the_double_refuses_what_is_no_request(double: ModelDouble) -> None:
    """A body that is no chat request gets 400 in OpenAI's form of an error."""
    answer = requests.post(f"{double.base_url}/chat/completions", data="{}", timeout=10)
    assert answer.status_code == 400
    assert "message" in json.loads(answer.text)["error"]
