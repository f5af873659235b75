"""The settings of connections: what contradicts itself is refused, and what is read on the worker says what is wrong."""

from __future__ import annotations

import gzip
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import trustme

from transforms.errors import SettingsError
from transforms.remote import names
from transforms.remote.auth import Auth, GoogleAuth
from transforms.remote.cache import CacheSettings
from transforms.remote.client import Call, Client
from transforms.remote.connection import ProxySettings, TlsSettings, packed
from transforms.remote.fakes import FakeTransport, VirtualClock, answered, replied
from transforms.remote.google_tokens import GoogleTokens
from transforms.remote.models_file import read_models
from transforms.remote.questions import Chat, Message
from transforms.remote.settings import Endpoint, ModelSettings


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TlsSettings(key_file="k"), "needs cert_file"),
        (lambda: TlsSettings(ca_file="c", verify=False), "no meaning"),
        (lambda: ProxySettings("proxy:3128"), "http or https"),
        (lambda: ProxySettings("http://"), "http or https"),
        (lambda: ProxySettings("http://proxy:x"), "not a URL"),
        (lambda: ProxySettings("http://me:secret@proxy:1"), "user and auth"),
        (lambda: ProxySettings("http://proxy:1/path"), "alone"),
        (lambda: ProxySettings("http://proxy:1", user="me"), "belong together"),
        (lambda: ProxySettings("http://proxy:1", auth=Auth(env="X")), "belong together"),
        (lambda: ProxySettings("env", user="me"), "environment"),
        (lambda: ProxySettings("http://proxy:1", "me", Auth(google=True)), "model servers"),
        (lambda: CacheSettings(backend="redis", url="redis://r", auth=Auth(google=True)), "model servers"),
        (Auth, "exactly one"),
        (lambda: Auth(env="A", google=True), "exactly one"),
        (lambda: Auth(google=False), "exactly one"),
        (lambda: Auth(google=True, header="X"), "leave header"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(make: Any, match: str) -> None:
    """Each with its sentence, which holds no secret."""
    with pytest.raises(SettingsError, match=match) as caught:
        make()
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"ca_file": None}, "cannot be read"),
        ({"ca_file": b"no PEM"}, "no certificates"),
        ({"cert_file": b"no PEM"}, "no certificate and its key"),
        ({"cert_file": b"no PEM", "key_file": None}, "cannot be read"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_named(
    files: dict[str, bytes | None], match: str, tmp_path: Path
) -> None:
    """A file that is not there, or holds something else, is an error that names it."""
    names = {}
    for key, content in files.items():
        path = tmp_path / key
        if content is not None:
            path.write_bytes(content)
        names[key] = str(path)
    with pytest.raises(SettingsError, match=match) as caught:
        TlsSettings(**names).context()
    assert str(tmp_path) in str(caught.value)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    """Key and certificate must belong together."""
    ca = trustme.CA()
    ca.issue_cert("a").cert_chain_pems[0].write_to_path(tmp_path / "cert")
    ca.issue_cert("b").private_key_pem.write_to_path(tmp_path / "key")
    with pytest.raises(SettingsError, match="no certificate and its key"):
        TlsSettings(cert_file=str(tmp_path / "cert"), key_file=str(tmp_path / "key")).context()


FILE = """
models:
  answer:
    endpoints: [https://a]
    model: m
    tls: {ca_file: /ca.pem, cert_file: /cert.pem, key_file: /key.pem}
    proxy: {url: "http://proxy:3128", user: me, auth: {env: PROXY_PASSWORD}}
    compress: gzip
    auth: {google: {credentials_file: /key.json}}
  score:
    endpoints: [https://a]
    model: m
    proxy: env
    auth: {google: true}
"""


def test_the_file_has_keys_for_all_of_it(tmp_path: Path) -> None:
    """Each key reaches its setting, and all of it travels in the graph."""
    path = tmp_path / "models.yaml"
    path.write_text(FILE, encoding="utf-8")
    models = read_models(path)
    answer, score = models["answer"], models["score"]
    assert answer.tls == TlsSettings("/ca.pem", "/cert.pem", "/key.pem")
    assert answer.proxy == ProxySettings("http://proxy:3128", "me", Auth(env="PROXY_PASSWORD"))
    assert answer.compress == "gzip"
    assert answer.auth == Auth(google=GoogleAuth("/key.json"))
    assert score.proxy == ProxySettings("env")
    assert score.auth is not None
    assert score.auth.google_auth == GoogleAuth()
    assert pickle.loads(pickle.dumps(models)) == models


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("tls: {ca: x}", "answer.tls.ca: is not a known key; known are ca_file"),
        ("tls: {verify: 3}", "answer.tls.verify"),
        ("proxy: 3", "answer.proxy: must be a mapping"),
        ("proxy: squid", "answer.proxy"),
        ("compress: zip", "answer.compress"),
        ("auth: {google: {file: x}}", "answer.auth.google"),
        ("auth: {google: 3}", "answer.auth.google"),
    ],
)
def test_the_file_says_what_is_wrong(line: str, match: str, tmp_path: Path) -> None:
    """With the path of the key."""
    path = tmp_path / "models.yaml"
    path.write_text(f"models:\n  answer:\n    endpoints: [http://a]\n    model: m\n    {line}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=match):
        read_models(path)


@pytest.mark.parametrize(("content", "match"), [(None, "cannot be read"), ("{", "not JSON"), ("{}", "no type")])
def test_a_file_of_googles_that_is_none_is_refused_at_once(content: str | None, match: str, tmp_path: Path) -> None:
    """Making the client looks at the file; nothing of its content is in the sentence."""
    path = tmp_path / "key.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with warnings.catch_warnings(), pytest.raises(SettingsError, match=match):
        GoogleTokens(GoogleAuth(str(path)))


@pytest.mark.parametrize(
    ("over", "match"),
    [
        ({"tls": TlsSettings(verify=False)}, "verify: false"),
        ({"proxy": ProxySettings("http://proxy:1")}, "may only be env"),
    ],
)
def test_what_grpc_cannot_do_is_refused(over: dict[str, Any], match: str) -> None:
    """It always verifies, and takes its proxy from the environment."""
    good = {"role": "score", "protocol": "open-inference-grpc", "endpoints": (Endpoint("grpcs://a:1"),), "model": "m"}
    assert ModelSettings(**good, proxy=ProxySettings("env"))
    with pytest.raises(SettingsError, match=match):
        ModelSettings(**good, **over)


@pytest.mark.parametrize("compress", ["gzip", None])
def test_the_size_of_a_request_is_that_of_what_is_sent(compress: Any) -> None:
    """Compressed where it is sent so, which is done once for all attempts."""
    clock = VirtualClock()
    transport = FakeTransport(clock, [answered(500), replied()])
    settings = ModelSettings(role="a", endpoints=(Endpoint("http://a"),), model="m", compress=compress)
    client = Client(settings, clock, transport)
    call = Call("e-1", Chat((Message("user", "x" * 20_000),)), clock.now_ms() + 60_000)
    assert clock.run(client.call(call)).attempts == 2
    bodies = [sent.body for sent in transport.sent]
    plain = gzip.decompress(bodies[0]) if compress else bodies[0]
    assert b"x" * 20_000 in plain
    assert bodies[0] is bodies[1]
    assert [sent.headers.get("content-encoding") for sent in transport.sent] == [compress] * 2
    found = client.telemetry.snapshot().histograms
    sizes = [(value.count, value.sum) for series, value in found.items() if series.name == names.REQUEST_SIZE.name]
    assert sizes == [(2, 2 * len(bodies[0]))]
    assert (len(bodies[0]) < 1_000) is (compress is not None)


def test_what_is_compressed_is_not_compressed_again() -> None:
    """The transport leaves alone what the client has compressed, and compresses what others send."""
    body, headers = packed("gzip", b"x" * 2_000, {"A": "b"})
    assert headers == {"A": "b", "Content-Encoding": "gzip"}
    assert packed("gzip", body * 100, headers) == (body * 100, headers)
