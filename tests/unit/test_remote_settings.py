"""Settings and `models.yaml`: what is taken, what is refused, and with which sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from transforms.errors import SettingsError
from transforms.remote.auth import Auth
from transforms.remote.models_file import read_models
from transforms.remote.settings import Endpoint, FixedReply, ModelSettings, RetryPolicy

FULL = """
models:
  answer:
    protocol: openai-chat
    endpoints:
      - http://one:8000/v1
      - {url: "https://two/v1/", weight: 1, region: eu}
    model: m
    timeout_s: 5
    deadline_s: 60.5
    auth: {env: MODEL_KEY}
    retry: {max_attempts: 3, base_s: 0.1, cap_s: 2, wait_for_server: false}
    limits: {max_in_flight: 7}
    params: {max_tokens: 64, temperature: 0}
  sentiment:
    endpoints: [http://three:1]
    model: s
"""


def read(folder: Path, text: str) -> dict[str, ModelSettings]:
    path = folder / "models.yaml"
    path.write_text(text, encoding="utf-8")
    return read_models(path)


def test_a_full_file_is_read(tmp_path: Path) -> None:
    """Every key that this version supports reaches its setting."""
    models = read(tmp_path, FULL)
    assert models["answer"] == ModelSettings(
        role="answer",
        endpoints=(Endpoint("http://one:8000/v1"), Endpoint("https://two/v1/", 1.0, "eu")),
        model="m",
        timeout_s=5.0,
        deadline_s=60.5,
        max_in_flight=7,
        retry=RetryPolicy(3, 0.1, 2.0, wait_for_server=False),
        auth=Auth(env="MODEL_KEY"),
        params={"max_tokens": 64, "temperature": 0},
    )
    assert models["sentiment"] == ModelSettings(role="sentiment", endpoints=(Endpoint("http://three:1"),), model="s")


def test_a_slash_at_the_end_of_a_base_makes_no_difference() -> None:
    """A path is put under a base URL with one slash between."""
    assert Endpoint("http://a/v1/").to("/x") == Endpoint("http://a/v1").to("/x") == "http://a/v1/x"


GOOD = "endpoints: [http://a/v1], model: m"


@pytest.mark.parametrize(
    ("text", "place", "sentence"),
    [
        ("", "models.yaml", "mapping"),
        ("- 1", "models.yaml", "mapping"),
        ("models: [", "models.yaml", "not YAML"),
        ("modles: {}", "modles", "did you mean models?"),
        ("models: {}", "models", "no model"),
        ("models: 3", "models", "mapping"),
        (f"models: {{anser: {{{GOOD}}}}}", "models.anser", "did you mean answer?"),
        (f"models: {{answer: {{{GOOD}}}, answer: {{{GOOD}}}}}", "models.yaml", "written twice"),
        ("models: {answer: {model: m}}", "models.answer", "endpoints"),
        ("models: {answer: {endpoints: [http://a]}}", "models.answer", "model"),
        ("models: {answer: {endpoints: [], model: m}}", "models.answer", "at least one base URL"),
        ("models: {answer: {endpoints: http://a, model: m}}", "models.answer.endpoints", "list"),
        ("models: {answer: {endpoints: [ftp://a], model: m}}", "models.answer.endpoints[0]", "http"),
        ("models: {answer: {endpoints: [http://a, localhost:80], model: m}}", "models.answer.endpoints[1]", "http"),
        ("models: {answer: {endpoints: ['http://'], model: m}}", "models.answer.endpoints[0]", "http"),
        ("models: {answer: {endpoints: ['http://a:x'], model: m}}", "models.answer.endpoints[0]", "URL"),
        ("models: {answer: {endpoints: [3], model: m}}", "models.answer.endpoints[0]", "mapping"),
        ("models: {answer: {endpoints: [{ulr: http://a}], model: m}}", "endpoints[0].ulr", "did you mean url?"),
        ("models: {answer: {endpoints: ['http://a?key=1'], model: m}}", "models.answer.endpoints[0]", "auth"),
        (
            "models: {answer: {endpoints: [{url: http://a, region: eu}, http://b], model: m, regions: [eu]}}",
            "models.answer",
            "regions",
        ),
        (f"models: {{answer: {{{GOOD}, time_out_s: 3}}}}", "models.answer.time_out_s", "did you mean timeout_s?"),
        (
            f"models: {{answer: {{{GOOD}, retry: {{max_attemps: 3}}}}}}",
            "models.answer.retry.max_attemps",
            "did you mean max_attempts?",
        ),
        (
            f"models: {{answer: {{{GOOD}, limits: {{max_inflight: 3}}}}}}",
            "models.answer.limits.max_inflight",
            "did you mean max_in_flight?",
        ),
        (f"models: {{answer: {{{GOOD}, limits: {{max_in_flight: 0}}}}}}", "models.answer.limits", "above 0"),
        (f"models: {{answer: {{{GOOD}, limits: 5}}}}", "models.answer.limits", "mapping"),
        (f"models: {{answer: {{{GOOD}, fallback: other}}}}", "models.answer.fallback", "no model in this file"),
        (f"models: {{answer: {{{GOOD}, batch: {{}}}}}}", "models.answer", "takes one question"),
        (f"models: {{answer: {{{GOOD}, hedge: true}}}}", "models.answer.hedge", "must be a mapping"),
        (f"models: {{answer: {{{GOOD}, hedge: {{}}}}}}", "models.answer", "there is one"),
        (f"models: {{answer: {{{GOOD}, probe: {{}}}}}}", "models.answer", "has no health probe of its own"),
        (f"models: {{answer: {{{GOOD}, probe: {{path: up}}}}}}", "models.answer.probe", "begin with a slash"),
        (f"models: {{answer: {{{GOOD}, stream: {{stall_s: 0}}}}}}", "models.answer.stream", "above 0"),
        (f"models: {{answer: {{{GOOD}, cache: {{backend: redis}}}}}}", "models.answer.cache", "needs a url"),
        (f"models: {{answer: {{{GOOD}, options: {{schemas: none}}}}}}", "models.answer", "did you mean schema?"),
        (f"models: {{answer: {{{GOOD}, fallback: answer}}}}", "models.answer.fallback", "must end"),
        (f"models: {{answer: {{{GOOD}, fallback: 5}}}}", "models.answer.fallback", "fixed value"),
        (
            f"models: {{answer: {{{GOOD}, fallback: b}}, b: {{{GOOD}, fallback: answer}}}}",
            "models.b.fallback",
            "must end",
        ),
        (
            f"models: {{answer: {{{GOOD}, fallback: b, deadline_s: 30}}, b: {{{GOOD}}}}}",
            "models.answer",
            "are left 30 s",
        ),
        (f"models: {{answer: {{{GOOD}, protocol: vertexx}}}}", "models.answer", "is not known"),
        (f"models: {{answer: {{{GOOD}, protocol: openai-chta}}}}", "models.answer", "did you mean openai-chat?"),
        (f"models: {{answer: {{{GOOD}, timeout_s: 0}}}}", "models.answer", "timeout_s is 0"),
        (f"models: {{answer: {{{GOOD}, timeout_s: -1}}}}", "models.answer", "timeout_s"),
        (f"models: {{answer: {{{GOOD}, deadline_s: .inf}}}}", "models.answer", "deadline_s"),
        (f"models: {{answer: {{{GOOD}, deadline_s: .nan}}}}", "models.answer", "deadline_s"),
        (f"models: {{answer: {{{GOOD}, timeout_s: soon}}}}", "models.answer.timeout_s", "expected `float`"),
        (f"models: {{answer: {{{GOOD}, timeout_s: true}}}}", "models.answer.timeout_s", "expected `float`"),
        (f"models: {{answer: {{{GOOD}, timeout_s: 200}}}}", "models.answer", "greater than deadline_s"),
        (f"models: {{answer: {{{GOOD}, retry: {{base_s: 20}}}}}}", "models.answer.retry", "greater than cap_s"),
        (f"models: {{answer: {{{GOOD}, retry: {{max_attempts: 0}}}}}}", "models.answer.retry", "max_attempts"),
        (f"models: {{answer: {{{GOOD}, retry: {{max_attempts: 1.5}}}}}}", "retry.max_attempts", "expected `int`"),
        (f"models: {{answer: {{{GOOD}, params: {{stream: true}}}}}}", "models.answer", "stream"),
        (f"models: {{answer: {{{GOOD}, params: 3}}}}", "models.answer.params", "expected `object`"),
        (f"models: {{answer: {{{GOOD}, auth: {{}}}}}}", "models.answer.auth", "exactly one"),
        (f"models: {{answer: {{{GOOD}, auth: {{env: A, file: b}}}}}}", "models.answer.auth", "exactly one"),
        (f"models: {{answer: {{{GOOD}, auth: {{evn: A}}}}}}", "models.answer.auth.evn", "did you mean env?"),
        (f"models: {{answer: {{{GOOD}, auth: {{google: true, env: A}}}}}}", "models.answer.auth", "exactly one"),
        (f"models: {{answer: {{{GOOD}, auth: {{env: A, header: 'a b'}}}}}}", "models.answer.auth", "header"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, text: str, place: str, sentence: str) -> None:
    """Each mistake is a SettingsError whose sentence names the file, the key and what to write instead."""
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, text)
    said = str(caught.value)
    assert "models.yaml" in said
    assert place in said
    assert sentence in said
    assert said.endswith((".", "?"))
    assert "\n" not in said


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is a SettingsError that names it."""
    with pytest.raises(SettingsError, match=r"nowhere\.yaml"):
        read_models(tmp_path / "nowhere.yaml")


def test_a_secret_in_a_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    """A password in a URL is refused, and the sentence does not hold it."""
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, "models: {answer: {endpoints: ['http://u:hunter2@a/v1'], model: m}}")
    assert "auth" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is read when asked for, and stripped of white space."""
    auth = Auth(env="FARCALL_TEST_KEY")
    monkeypatch.setenv("FARCALL_TEST_KEY", " hunter2\n")
    assert auth.header_value(auth.read_secret()) == "Bearer hunter2"
    assert Auth(env="FARCALL_TEST_KEY", scheme="").header_value("hunter2") == "hunter2"


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    """A mounted secret's file is read, its newline left out."""
    (tmp_path / "key").write_text("hunter2\n")
    assert Auth(file=str(tmp_path / "key")).read_secret() == "hunter2"


@pytest.mark.parametrize("value", [None, "", "  ", "hun\nter2", "hün"])
def test_a_bad_secret_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """A secret that is missing, empty or no header's value is refused by its variable's name, never by itself."""
    monkeypatch.delenv("FARCALL_TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("FARCALL_TEST_KEY", value)
    with pytest.raises(SettingsError, match="FARCALL_TEST_KEY") as caught:
        Auth(env="FARCALL_TEST_KEY").read_secret()
    assert "hun" not in str(caught.value)
    assert "hün" not in str(caught.value)


def test_a_missing_secret_file_is_named(tmp_path: Path) -> None:
    """A secret's file that is not there is a SettingsError that names it."""
    with pytest.raises(SettingsError, match="no-such-key"):
        Auth(file=str(tmp_path / "no-such-key")).read_secret()


def test_settings_survive_pickling_and_hold_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings come back equal from a pickle, and neither it nor their repr holds the secret."""
    monkeypatch.setenv("MODEL_KEY", "hunter2")
    settings: Any = read(tmp_path, FULL)["answer"]
    settings.auth.read_secret()
    pickled = pickle.dumps(settings)
    assert pickle.loads(pickled) == settings
    assert b"hunter2" not in pickled
    assert "hunter2" not in repr(settings)


def test_a_chain_of_fallbacks_is_read(tmp_path: Path) -> None:
    """A model that is another's fallback is in its settings, with its own; the end may be a fixed value; only roles are given."""
    models = (
        f"models: {{answer: {{{GOOD}, fallback: small}}, small: {{{GOOD}, timeout_s: 5, fallback: {{value: [1]}}}}}}"
    )
    found = read(tmp_path, models)
    assert set(found) == {"answer"}
    small = found["answer"].fallback
    assert isinstance(small, ModelSettings)
    assert (small.role, small.timeout_s, small.fallback) == ("small", 5, FixedReply([1]))
    assert found["answer"].fallback_s == 5
