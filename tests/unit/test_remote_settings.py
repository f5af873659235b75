"""Settings and `models.yaml`: what is taken, what is refused, and with which sentence."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runners import flink
from transforms.errors import Refused, SettingsError
from transforms.remote.auth import Auth
from transforms.remote.breaker import BreakerSettings
from transforms.remote.models_file import read_models
from transforms.remote.outliers import OutlierSettings
from transforms.remote.pool import PoolSettings
from transforms.remote.protocols import PROTOCOLS, asked_with
from transforms.remote.questions import Chat, Message, Tensor, Tensors, Text, Value
from transforms.remote.quota import QuotaSettings
from transforms.remote.quota_redis import SharedQuotaSettings
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
        (f"models: {{answer: {{{GOOD}, pool: 3}}}}", "models.answer.pool", "mapping"),
        (f"models: {{answer: {{{GOOD}, pool: {{slow_star_s: 3}}}}}}", "pool.slow_star_s", "did you mean slow_start_s?"),
        (f"models: {{answer: {{{GOOD}, pool: {{slow_start_s: -1}}}}}}", "models.answer.pool", "slow_start_s is -1"),
        (
            f"models: {{answer: {{{GOOD}, pool: {{patience_s: x}}}}}}",
            "models.answer.pool.patience_s",
            "expected `float`",
        ),
        (f"models: {{answer: {{{GOOD}, pool: {{regions: [eu]}}}}}}", "pool.regions", "beside pool, not in it"),
        (f"models: {{answer: {{{GOOD}, pool: {{breaker: 1}}}}}}", "models.answer.pool.breaker", "mapping"),
        (
            f"models: {{answer: {{{GOOD}, pool: {{breaker: {{probe: 1}}}}}}}}",
            "pool.breaker.probe",
            "did you mean probes?",
        ),
        (f"models: {{answer: {{{GOOD}, pool: {{breaker: {{open_s: 11}}}}}}}}", "pool.breaker", "greater than longest"),
        (
            f"models: {{answer: {{{GOOD}, pool: {{outliers: {{consecutive: 0}}}}}}}}",
            "pool.outliers",
            "consecutive is 0",
        ),
        (
            f"models: {{answer: {{{GOOD}, pool: {{outliers: {{row: 1}}}}}}}}",
            "pool.outliers.row",
            "known are consecutive",
        ),
        (f"models: {{answer: {{{GOOD}, regions: [eu, eu]}}}}", "models.answer", "a region twice"),
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
    assert said.count("models.yaml") == 1


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ("limits: {concurrency: {least: 9, most: 3}}", "models.answer.limits.concurrency"),
        ("limits: {concurrency: {last: 9}}", "models.answer.limits.concurrency.last"),
        ("limits: {quota: {burst_s: 90}}", "models.answer.limits.quota"),
        ("limits: {quota: {requests_per_min: 60}, redis: {url: x, name: y}}", "models.answer.limits.redis"),
        ("proxy: ftp://a", "models.answer.proxy"),
        ("proxy: {url: env, user: me}", "models.answer.proxy"),
        ("pool: {outliers: {error_share: 2}}", "models.answer.pool.outliers"),
        ("retry: {base_s: 20}", "models.answer.retry"),
    ],
)
def test_a_place_is_named_once(tmp_path: Path, section: str, place: str) -> None:
    """The sentence about a section begins with the file and the key's path, and repeats neither."""
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, f"models: {{answer: {{{GOOD}, {section}}}}}")
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'models.yaml'}: {place}: ")
    assert said.count("models.yaml") == said.count("models.answer") == 1


TWO = "endpoints: [http://a/v1, http://b/v1], model: m"
VECTORS = f"{GOOD}, protocol: openai-embeddings"


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (f"{TWO}, timeout_s: 10, hedge: {{least_delay_s: 10}}", "hedge.least_delay_s (10) is not less than timeout_s"),
        (f"{TWO}, hedge: {{}}, limits: {{max_in_flight: 1}}", "max_in_flight is 1"),
        (f"{VECTORS}, batch: {{max_wait_ms: 120000}}", "batch.max_wait_ms (120000) is not less than deadline_s"),
        (f"{VECTORS}, batch: {{deadline_margin_ms: 600000}}", "batch.deadline_margin_ms (600000) is not less"),
        (
            f"{VECTORS}, batch: {{max_tokens: 1001}}, limits: {{quota: {{tokens_per_min: 1000}}}}",
            "batch.max_tokens (1001) is greater than quota.tokens_per_min",
        ),
        (
            f"{GOOD}, params: {{max_tokens: 1001}}, limits: {{quota: {{tokens_per_min: 1000}}}}",
            "params.max_tokens (1001) is greater than quota.tokens_per_min",
        ),
        (f"{GOOD}, limits: {{quota: {{share: 0.5, learn: false}}}}", "none is given or learnt"),
        (f"{GOOD}, limits: {{concurrency: {{queue: 9}}}}", "queue is of the algorithm gradient"),
        (
            f"{GOOD}, limits: {{max_in_flight: 4, concurrency: {{algorithm: fixed, initial: 200}}}}",
            "concurrency.initial (200) is greater than max_in_flight (4)",
        ),
        (f"{GOOD}, limits: {{max_in_flight: 4, concurrency: {{least: 5}}}}", "concurrency.least (5) is greater"),
        (f"{GOOD}, stream: {{stall_s: 31}}", "stream.stall_s (31) is greater than timeout_s (30)"),
        (f"{GOOD}, cache: {{}}, params: {{temperature: 0.7}}", "params.temperature is 0.7; set it to 0"),
        (f"{GOOD}, cache: {{}}, params: {{temperature: 0, n: 2}}", "params.n is 2; set it to 1"),
        (f"{GOOD}, cache: {{}}, params: {{best_of: 3}}", "params.best_of is 3"),
        *((f"{GOOD}, auth: {{env: A, header: {name}}}", f"header is {name}, which the client writes") for name in (
            "Idempotency-Key", "traceparent", "content-TYPE", "Content-Length", "Host", "Transfer-Encoding", "Connection",
        )),
    ],
)  # fmt: skip
def test_contradictions_are_refused(tmp_path: Path, keys: str, sentence: str) -> None:
    """What could never take effect, or would undo something else, is refused with a sentence."""
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, f"models: {{answer: {{{keys}}}}}")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        f"{TWO}, hedge: {{enabled: false, least_delay_s: 60}}, limits: {{max_in_flight: 1}}",
        f"{GOOD}, limits: {{max_in_flight: 4}}",
        f"{GOOD}, timeout_s: 10, stream: {{}}",
        f"{GOOD}, cache: {{}}",
        f"{GOOD}, cache: {{always: true}}, params: {{temperature: 0.7, n: 2}}",
        f"{GOOD}, limits: {{quota: {{share: 0.5}}}}",
        f"{GOOD}, params: {{max_tokens: 1000}}, limits: {{quota: {{tokens_per_min: 1000}}}}",
        f"{GOOD}, auth: {{env: A, header: x-goog-api-key, scheme: ''}}",
    ],
)
def test_what_only_looks_like_a_contradiction_is_taken(tmp_path: Path, keys: str) -> None:
    """Defaults give way, a question may have params of its own, and limits that headers name are shared too."""
    assert read(tmp_path, f"models: {{answer: {{{keys}}}}}")


@pytest.mark.parametrize("first", PROTOCOLS)
@pytest.mark.parametrize("then", PROTOCOLS)
def test_a_fallback_understands_the_same_questions(first: str, then: str) -> None:
    """A model may fall back to one that has a form for some kind of its questions, and to no other."""
    small = model_of("small", then)
    if set(asked_with(first)) & set(asked_with(then)):
        assert model_of("answer", first, fallback=small).fallback == small
        return
    with pytest.raises(SettingsError, match=f"the fallback small \\({then}\\) is asked with"):
        model_of("answer", first, fallback=small)


def test_every_link_of_a_chain_understands_the_first_ones_questions() -> None:
    """A fallback's fallback that has no form for what the first model is asked is refused, though the one between has."""
    last = model_of("small", "openai-embeddings")
    with pytest.raises(SettingsError, match="the fallback small"):
        model_of("answer", "openai-chat", fallback=model_of("between", "http-json", fallback=last))


def model_of(role: str, protocol: str, **more: Any) -> ModelSettings:
    url = "grpc://a:1" if protocol.endswith("grpc") else "http://a"
    options = {"request": "{{text}}", "response": {"value": "v"}} if protocol == "http-json" else {}
    return ModelSettings(
        role=role,
        endpoints=(Endpoint(url),),
        model="projects/p/locations/l/endpoints/1",
        protocol=protocol,
        options=options,
        **more,
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_take_the_questions_that_they_are_said_to_take(protocol: str) -> None:
    """Each protocol has a form for the kinds of questions that `asked_with` names for it, and for no other."""
    row = Tensor("x", "FP32", (1, 1), (1.0,))
    questions = (Chat((Message("user", "x"),)), Text("x"), Tensors((row,)), Value([1.0]))
    made = model_of("answer", protocol).make_protocol()
    taken = []
    for question in questions:
        with contextlib.suppress(Refused):
            made.request([question])
            taken.append(type(question))
    assert set(taken) == set(asked_with(protocol))


def test_the_pool_is_read(tmp_path: Path) -> None:
    """The numbers of a pool, its breakers and its outliers reach their settings, beside the regions; nothing given is the default."""
    text = """
models:
  answer:
    endpoints: [{url: "http://a/v1", region: eu}, {url: "http://b/v1", region: us}]
    model: m
    regions: [eu, us]
    pool:
      slow_start_s: 3
      breaker: {consecutive: 7, open_s: 2}
      outliers: {consecutive: 9, most_ejected_share: 0.75}
"""
    assert read(tmp_path, text)["answer"].pool == PoolSettings(
        regions=("eu", "us"),
        slow_start_s=3.0,
        breaker=BreakerSettings(consecutive=7, open_s=2.0),
        outliers=OutlierSettings(consecutive=9, most_ejected_share=0.75),
    )
    assert read(tmp_path, f"models: {{answer: {{{GOOD}, pool: {{}}}}}}")["answer"].pool == PoolSettings()


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


def test_a_quota_is_divided_among_worker_processes() -> None:
    """Each of several worker processes has its part of every model's quota, fallbacks too; what is said, or leased, stays."""
    model, quota = model_of("answer", "openai-chat"), QuotaSettings(requests_per_min=600.0)
    said = msgspec.structs.replace(model, role="said", quota=QuotaSettings(requests_per_min=600.0, share=0.9))
    leased = msgspec.structs.replace(
        model, role="leased", quota=quota, shared_quota=SharedQuotaSettings(url="redis://127.0.0.1:1", name="q")
    )
    for own, wanted in ((model, 0.25), (said, 0.9), (leased, 1.0)):
        given = own if own is not model else msgspec.structs.replace(model, quota=quota)
        first = msgspec.structs.replace(model, quota=quota, deadline_s=100.0, fallback=given)
        divided = first.divided(4)
        assert divided.quota.part == 0.25
        assert isinstance(divided.fallback, ModelSettings)
        assert divided.fallback.quota.part == wanted
    assert first.divided(1) == first
    deaf = msgspec.structs.replace(model, quota=QuotaSettings(learn=False))
    assert deaf.divided(4) == deaf, "nothing to divide"
    with pytest.raises(SettingsError, match="less than one request"):
        msgspec.structs.replace(model, quota=QuotaSettings(requests_per_min=2.0)).divided(4)


@pytest.mark.parametrize(("arguments", "wanted"), [([], 1), (["--sdk_worker_parallelism=3"], 3)])
def test_worker_processes_are_counted(arguments: list[str], wanted: int) -> None:
    """Beam's flag says how many worker processes a TaskManager has, one unless it is given; what is no number is refused."""
    assert flink.worker_processes(arguments) == wanted
    with pytest.raises(SettingsError, match="--sdk_worker_parallelism=x"):
        flink.worker_processes(["--sdk_worker_parallelism=x"])
