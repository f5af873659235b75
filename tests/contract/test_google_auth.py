"""Tokens of Google Cloud over real sockets, fetched by google-auth from doubles of Google's servers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.google_double import GoogleDouble
from transforms.remote import loop
from transforms.remote.auth import Auth, GoogleAuth
from transforms.remote.client import Call, Client, Outcome
from transforms.remote.clock import SystemClock
from transforms.remote.questions import Value
from transforms.remote.settings import Endpoint, ModelSettings, RetryPolicy

ROOT = Path(__file__).resolve().parents[2]
MODEL = "projects/my-project/locations/us-central1/endpoints/1"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def google() -> Iterator[GoogleDouble]:
    """Google's servers."""
    with GoogleDouble() as double:
        yield double


def settings_of(google: GoogleDouble, credentials_file: str | None, **over: Any) -> ModelSettings:
    auth = Auth(google=GoogleAuth(credentials_file) if credentials_file else True)
    retry = RetryPolicy(max_attempts=2, base_s=0.001, cap_s=0.01, wait_for_server=False)
    return ModelSettings(
        **{
            "role": "score",
            "protocol": "vertex",
            "endpoints": (Endpoint(f"{google.url}/v1"),),
            "model": MODEL,
            "auth": auth,
            "retry": retry,
            **over,
        }
    )


def ask(client: Client, *keys: str) -> list[Outcome]:
    deadline_ms = SystemClock().now_ms() + 30_000

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(client.call(Call(key, Value({"x": 1}), deadline_ms)) for key in keys))

    return loop.run(main()).result(60.0)


def closed(client: Client) -> None:
    loop.run(client.close()).result(60.0)


@pytest.mark.parametrize("kind", ["service account", "workload identity"])
def test_a_file_of_credentials_gives_tokens(google: GoogleDouble, kind: str, tmp_path: Path) -> None:
    """A service account's signed claim, or a platform's own token, is exchanged once for many requests."""
    named = google.service_account(tmp_path) if kind == "service account" else google.workload_identity(tmp_path)
    client = Client(settings_of(google, named))
    outcomes = ask(client, *"abcdefgh")
    closed(client)
    assert {str(outcome.error_message) for outcome in outcomes} == {"None"}
    assert all(outcome.reply and outcome.reply.value == {"score": 0.5} for outcome in outcomes)
    assert google.grants == {kind: 1}
    assert google.bodies[0] == (f"/v1/{MODEL}:predict", {"instances": [{"x": 1}]})


def test_application_default_credentials_are_found(
    google: GoogleDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`google: true` takes the file that the environment of the worker names."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", google.service_account(tmp_path))
    client = Client(settings_of(google, None))
    (outcome,) = ask(client, "a")
    closed(client)
    assert outcome.reply is not None, outcome.error_message
    assert google.grants == {"service account": 1}


PROGRAM = """
    import asyncio, sys
    from transforms.remote.auth import Auth
    from transforms.remote.client import Call, Client
    from transforms.remote.clock import SystemClock
    from transforms.remote.questions import Value
    from transforms.remote.settings import Endpoint, ModelSettings

    async def main():
        settings = ModelSettings(role="score", protocol="vertex", endpoints=(Endpoint(sys.argv[1] + "/v1"),), model=sys.argv[2],
                                 auth=Auth(google=True))
        client = Client(settings)
        outcome = await client.call(Call("a", Value(1), SystemClock().now_ms() + 30_000))
        await client.close()
        print(outcome.reply.value if outcome.reply else outcome.error_message)

    asyncio.run(main())
"""


def test_the_metadata_server_of_the_machine_is_found(google: GoogleDouble, tmp_path: Path) -> None:
    """Without a file, a machine of Google's (and a pod with workload identity) gets tokens from its metadata server."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GOOGLE_")},
        "GCE_METADATA_HOST": google.address,
        "GCE_METADATA_IP": google.address,
        "CLOUDSDK_CONFIG": str(tmp_path),
        "HOME": str(tmp_path),
    }
    words = [sys.executable, "-c", textwrap.dedent(PROGRAM), google.url, MODEL]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "{'score': 0.5}", done.stderr
    assert google.grants == {"metadata": 1}


def test_a_revoked_token_is_replaced_within_the_attempt(google: GoogleDouble, tmp_path: Path) -> None:
    """After a 401 the request is sent once more with a new token, and the event has had one attempt."""
    client = Client(settings_of(google, google.service_account(tmp_path)))
    ask(client, "a")
    google.revoke()
    outcomes = ask(client, *"bcde")
    closed(client)
    assert [(outcome.error_type, outcome.attempts) for outcome in outcomes] == [(None, 1)] * 4
    assert google.grants == {"service account": 2}


def test_a_token_near_its_end_is_replaced_ahead(google: GoogleDouble, tmp_path: Path) -> None:
    """A token that lives for two minutes is sent while the next is fetched."""
    google.expires_in = 120
    client = Client(settings_of(google, google.service_account(tmp_path)))
    ask(client, "a")
    while google.grants["service account"] < 2:
        (outcome,) = ask(client, "b")
        assert outcome.reply is not None
    closed(client)
    assert google.refused == 0


def test_a_token_that_is_never_taken_is_a_refusal(google: GoogleDouble, tmp_path: Path) -> None:
    """A server that answers 401 whatever is sent refuses, and its sentence does not hold the token."""
    client = Client(settings_of(google, google.service_account(tmp_path)))
    google.valid = _Never()
    (outcome,) = ask(client, "a")
    closed(client)
    assert (outcome.error_type, outcome.attempts, google.refused) == ("refused", 1, 2)
    assert "of-the-double" not in str(outcome.error_message)
    assert "***" in str(outcome.error_message)


def test_a_token_server_that_is_down_is_waited_for(google: GoogleDouble, tmp_path: Path) -> None:
    """No token is as no connection: with `wait_for_server` the event waits for it, and no attempt is counted."""
    google.down = True
    client = Client(settings_of(google, google.service_account(tmp_path), retry=RetryPolicy(base_s=0.01, cap_s=0.05)))

    async def main() -> Outcome:
        task = asyncio.create_task(client.call(Call("a", Value(1), SystemClock().now_ms() + 60_000)))
        while google.grants["service account"] < 1:
            await SystemClock().sleep(0.01)
        google.down = False
        return await task

    outcome = loop.run(main()).result(60.0)
    closed(client)
    assert outcome.reply is not None, outcome.error_message
    assert outcome.attempts == 1


class _Never(set[str]):
    def __contains__(self, _: object) -> bool:
        return False
