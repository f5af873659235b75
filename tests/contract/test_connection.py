"""Certificates, proxies and compression on real sockets."""

from __future__ import annotations

import gzip
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from tests.contract.proxy_double import ProxyDouble
from transforms.remote import loop
from transforms.remote.auth import Auth
from transforms.remote.client import Call, Chat, Client, Message, Outcome
from transforms.remote.clock import SystemClock
from transforms.remote.connection import COMPRESSED_FROM_BYTES, ProxySettings, TlsSettings, packed
from transforms.remote.model_double import ModelDouble
from transforms.remote.settings import Endpoint, ModelSettings, RetryPolicy

ONCE = RetryPolicy(max_attempts=1, wait_for_server=False)


class Pki:
    """A certificate authority, a server's certificate, and ours, as files."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.other = trustme.CA()
        self.ca_file = self._written(folder / "ca.pem", self.ca.cert_pem.bytes())
        self.other_file = self._written(folder / "other.pem", self.other.cert_pem.bytes())
        ours = self.ca.issue_cert("client@example.com")
        self.cert_file = self._written(folder / "cert.pem", ours.cert_chain_pems[0].bytes())
        self.key_file = self._written(folder / "key.pem", ours.private_key_pem.bytes())
        self.both_file = self._written(folder / "both.pem", ours.private_key_and_cert_chain_pem.bytes())

    def server(self, mutual: bool = False, name: str = "127.0.0.1") -> ssl.SSLContext:
        """The context of a server of this name; with `mutual` it asks for a certificate of the same authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert(name).configure_cert(context)
        if mutual:
            self.ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _written(self, path: Path, content: bytes) -> str:
        path.write_bytes(content)
        return str(path)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates made for this run."""
    return Pki(tmp_path_factory.mktemp("pki"))


def ask(double: ModelDouble, text: str = "Hello?", **over: Any) -> Outcome:
    """Ask one question of a client of its own."""
    settings = ModelSettings(
        **{"role": "answer", "endpoints": (Endpoint(double.base_url),), "model": "m", "retry": ONCE, **over}
    )

    async def main() -> Outcome:
        client = Client(settings)
        try:
            return await client.call(Call("a", Chat((Message("user", text),)), SystemClock().now_ms() + 20_000))
        finally:
            await client.close()

    return loop.run(main()).result(60.0)


def test_a_custom_authority_is_trusted_and_others_are_not(pki: Pki) -> None:
    """A server whose certificate is of the named authority is asked; of another one, or unnamed, it is sent nothing."""
    with ModelDouble(tls=pki.server()) as double:
        assert ask(double, tls=TlsSettings(ca_file=pki.ca_file)).reply is not None
        assert ask(double, tls=TlsSettings(verify=False)).reply is not None
        seen = double.requests
        for tls in (None, TlsSettings(ca_file=pki.other_file)):
            outcome = ask(double, tls=tls)
            assert outcome.error_type == "unreachable"
            assert "certificate is not trusted" in str(outcome.error_message)
        assert double.requests == seen


def test_a_certificate_of_another_name_is_not_believed(pki: Pki) -> None:
    """The authority alone is not enough: the name must be the server's."""
    with ModelDouble(tls=pki.server(name="elsewhere.example.com")) as double:
        outcome = ask(double, tls=TlsSettings(ca_file=pki.ca_file))
        assert "certificate is not trusted" in str(outcome.error_message)


def test_a_server_that_asks_who_we_are_is_told(pki: Pki) -> None:
    """With mutual TLS, key and certificate in two files or in one are taken, and without them nothing is answered."""
    with ModelDouble(tls=pki.server(mutual=True)) as double:
        two = TlsSettings(pki.ca_file, pki.cert_file, pki.key_file)
        assert ask(double, tls=two).reply is not None
        assert ask(double, tls=TlsSettings(pki.ca_file, pki.both_file)).reply is not None
        assert ask(double, tls=TlsSettings(pki.ca_file)).error_type == "unreachable"
        assert double.requests == 2


@pytest.fixture
def proxy() -> Iterator[ProxyDouble]:
    """A proxy without authentication."""
    with ProxyDouble() as made:
        yield made


def test_requests_go_through_the_proxy(proxy: ProxyDouble, double: ModelDouble) -> None:
    """Plain HTTP is sent to the proxy by its whole URL."""
    assert ask(double, proxy=ProxySettings(proxy.url)).reply is not None
    assert proxy.heads[0].startswith(f"POST {double.base_url}/chat/completions ")


def test_https_goes_through_the_proxy_unread(proxy: ProxyDouble, pki: Pki) -> None:
    """HTTPS is tunnelled: the proxy sees host and port, and no header of ours."""
    with ModelDouble(tls=pki.server()) as double:
        assert ask(double, proxy=ProxySettings(proxy.url), tls=TlsSettings(pki.ca_file)).reply is not None
    assert proxy.heads[0].startswith(f"CONNECT 127.0.0.1:{double.port} ")
    assert "dempotency" not in proxy.heads[0]


def test_a_proxy_of_the_environment_is_used_where_it_is_asked_for(
    proxy: ProxyDouble, double: ModelDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`env` reads the worker's variables; without it they are not looked at."""
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "")
    assert ask(double).reply is not None
    assert proxy.heads == []
    assert ask(double, proxy=ProxySettings("env")).reply is not None
    assert len(proxy.heads) == 1


def test_a_proxy_is_told_user_and_password(pki: Pki, double: ModelDouble, tmp_path: Path) -> None:
    """They go to the proxy and nowhere else; without them no connection is made, and the sentence says who refused."""
    secret = tmp_path / "password"
    secret.write_text("pass-word-1\n")
    settings = {"user": "me", "auth": Auth(file=str(secret))}
    with ProxyDouble("me", "pass-word-1") as proxy, ModelDouble(tls=pki.server()) as safe:
        tls = TlsSettings(pki.ca_file)
        assert ask(double, proxy=ProxySettings(proxy.url, **settings)).reply is not None
        assert ask(safe, tls=tls, proxy=ProxySettings(proxy.url, **settings)).reply is not None
        outcome = ask(safe, tls=tls, proxy=ProxySettings(proxy.url))
    assert outcome.error_type == "unreachable"
    assert "the proxy answered 407" in str(outcome.error_message)


def test_a_proxy_that_is_down_is_named(double: ModelDouble) -> None:
    """Nothing was sent, so the event may wait."""
    with ProxyDouble() as gone:
        url = gone.url
    outcome = ask(double, proxy=ProxySettings(url))
    assert outcome.error_type == "unreachable"
    assert double.requests == 0


def test_large_bodies_are_compressed_and_small_ones_are_not(proxy: ProxyDouble, double: ModelDouble) -> None:
    """A long question arrives whole in a fraction of its bytes; a short one, and one of a client without it, as it is."""
    long = "Where is my order? " * 200
    through = ProxySettings(proxy.url)
    replies = [ask(double, text, compress="gzip", proxy=through).reply for text in ("Hi", long)]
    assert replies == [ask(double, text).reply for text in ("Hi", long)]
    short_head, long_head = proxy.heads
    assert "content-encoding" not in short_head.lower()
    assert "content-encoding: gzip" in long_head.lower()
    size = int(long_head.lower().partition("content-length: ")[2].split("\r\n")[0])
    assert size < COMPRESSED_FROM_BYTES < len(long)


def test_compression_is_the_same_every_time() -> None:
    """Equal bodies give equal bytes, and come out as they went in."""
    body = msgspec.json.encode({"a": "b" * 2000})
    sent = {packed("gzip", body, {})[0] for _ in range(3)}
    assert [gzip.decompress(one) for one in sent] == [body]
