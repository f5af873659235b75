"""A Kafka Connect worker with the shipped configurations: mail, HTTP and a table in, HTTP and SMTP out."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from aiosmtpd.controller import Controller
from confluent_kafka import Consumer, Producer, TopicPartition

from pipeline.cases.support.case import SUPPORT
from pipeline.cases.support.events import parse_event
from runners.local import topics
from runners.local.ports import Ports
from runners.local.stack import Stack
from tests.e2e.engine import ROOT, until, write_models
from transforms.errors import BadEvent
from transforms.records import SourceRecord
from transforms.remote.model_double import ModelDouble

pytestmark = pytest.mark.e2e

CONFIGURATIONS = ROOT / "runners" / "engine" / "connect"
DEAD = "support.connect.dead-letters"
TOPICS = (
    "support.events",
    "shop.orders",
    *SUPPORT.output_topics,
    *SUPPORT.side_topics,
    SUPPORT.dead_letter_topic,
    DEAD,
)


HEADERS = [("trace", b"1"), ("CamelHttpUri", b"http://127.0.0.1:9/elsewhere"), ("camelhttppath", b"elsewhere")]
"""Of every record that a test sends: one of its own, and two that would send it elsewhere if Camel obeyed them."""


class Platform:
    """A support platform's API: takes replies, gives events out, and fails to order."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str, dict[str, Any]]] = []
        self.statuses: list[int] = []
        platform = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status = platform.statuses.pop(0) if platform.statuses else 200
                if self.command == "POST" and status == 200:
                    platform.taken.append((self.path, self.headers["Content-Type"], json.loads(body)))
                data = EVENT if self.command == "GET" else b"{}"
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


EVENT = json.dumps(
    {"id": "http-1", "channel": "chat", "customer_id": "c", "at": "2026-03-02T09:30:00Z", "text": "Hello?"}
).encode()


class Mailbox:
    """An SMTP server's handler that keeps what it is given."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        self.mails.append(envelope)
        return "250 OK"


class World:
    """The worker, and everything around it."""

    def __init__(self, stack: Stack, folder: Path, platform: Platform, mailbox: Mailbox) -> None:
        self.stack, self.folder, self.platform, self.mailbox = stack, folder, platform, mailbox

    def connect(self, name: str) -> None:
        """Starts a shipped configuration, as it is, where it does not run."""
        base = f"{self.stack.endpoints.connect}/connectors"
        if name not in requests.get(base, timeout=10).json():
            body = json.loads((CONFIGURATIONS / f"{name}.json").read_text())
            answer = requests.post(base, json=body, timeout=30)
            assert answer.status_code == 201, answer.text
        self.until(f"{name} runs", lambda: self.states(name) == ["RUNNING"], 30)

    def states(self, name: str) -> list[str]:
        answer = requests.get(f"{self.stack.endpoints.connect}/connectors/{name}/status", timeout=10).json()
        return [task["state"] for task in answer.get("tasks", [])]

    def until(self, what: str, seen: Callable[[], Any], timeout_s: float = 40) -> Any:
        """As `until`; where it fails, with what the connectors and the worker's log say."""
        try:
            return until(what, seen, timeout_s)
        except AssertionError as error:
            base = f"{self.stack.endpoints.connect}/connectors"
            states = [
                requests.get(f"{base}/{name}/status", timeout=10).text for name in requests.get(base, timeout=10).json()
            ]
            raise AssertionError("\n".join([str(error), *states, *self.stack.log_tail("connect", 60)])) from None

    def stop(self, name: str) -> None:
        requests.delete(f"{self.stack.endpoints.connect}/connectors/{name}", timeout=30)

    def produce(self, topic: str, *values: dict[str, Any]) -> None:
        producer = Producer({"bootstrap.servers": self.stack.endpoints.kafka})
        for value in values:
            producer.produce(topic, json.dumps(value).encode(), headers=HEADERS, partition=0)
        assert producer.flush(30) == 0

    def refused(self, prefix: str) -> list[tuple[bytes | None, Any, dict[str, bytes]]]:
        """The connectors' dead letters whose id begins so."""
        return [found for found in self.records(DEAD) if found[1]["id"].startswith(prefix)]

    def records(self, topic: str) -> list[tuple[bytes | None, Any, dict[str, bytes]]]:
        """Key, JSON value and headers of all that is in a topic."""
        client = Consumer({"bootstrap.servers": self.stack.endpoints.kafka, "group.id": "test"})
        found = []
        try:
            for number in client.list_topics(topic, timeout=10).topics[topic].partitions:
                low, high = client.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
                client.assign([TopicPartition(topic, number, low)])
                while low < high:
                    for message in client.consume(high - low, 1.0):
                        found.append((message.key(), json.loads(message.value()), dict(message.headers() or ())))
                        low = message.offset() + 1
        finally:
            client.close()
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Kafka and a Connect worker on ports of their own, doubles of what they talk to, and the variables that say where."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "mail").mkdir()
    with sqlite3.connect(folder / "shop.db") as shop:
        shop.execute("create table orders (order_id integer primary key, item text, sent integer default 0)")
        shop.execute("insert into orders (item) values ('lamp'), ('chair')")
    platform, mailbox = Platform(), Mailbox()
    smtp = Controller(mailbox, hostname="127.0.0.1", port=Ports.free().connect)
    smtp.start()
    variables = {
        "FARCALL_MAIL_FOLDER": str(folder / "mail"),
        "FARCALL_HTTP_POLL_MS": "500",
        "FARCALL_HTTP_SOURCE": f"{platform.url}/events",
        "FARCALL_ORDERS_JDBC": f"jdbc:sqlite:{folder / 'shop.db'}",
        "FARCALL_SUPPORT_API": f"{platform.url}/replies",
        "FARCALL_SMTP": f"127.0.0.1:{smtp.port}",
        "FARCALL_MAIL_FROM": "support@example.com",
    }
    stack = Stack(tmp_path_factory.mktemp("connect"), Ports.free())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            stack.up(["connect"])
            topics.create_topics(stack.endpoints.kafka, TOPICS)
            yield World(stack, folder, platform, mailbox)
        finally:
            stack.down(wipe=True)
            smtp.stop()
            platform.server.shutdown()


def letter(number: int) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "Ana Núñez <ana@example.org>", "support@example.com", "¿Dónde está?"
    mail["Date"], mail["Message-ID"] = "Mon, 02 Mar 2026 10:30:49 +0100", f"<{number}@example.org>"
    mail.set_content("¿Dónde está mi pedido ORD-48270?")
    return mail


def drop(world: World, name: str, content: bytes) -> None:
    """Puts a file into the mail folder, whole at once."""
    (world.folder / "new").write_bytes(content)
    os.replace(world.folder / "new", world.folder / "mail" / name)


def test_an_email_in_a_folder_is_answered_by_mail(world: World, tmp_path: Path) -> None:
    """A file dropped in a folder becomes a support event; the pipeline's reply to it goes out by SMTP, to its sender."""
    world.connect("email-folder")
    world.connect("replies-smtp")
    drop(world, "1.eml", letter(1).as_bytes())
    ((key, event, _),) = world.until("the event", lambda: world.records("support.events"), 30)
    assert key == b"ana@example.org"
    parsed = parse_event(SourceRecord(json.dumps(event).encode()))
    assert (parsed.id, parsed.subject, parsed.at_ms) == ("1@example.org", "¿Dónde está?", 1772443849000)
    world.until("the file to be moved", (world.folder / "mail" / ".done" / "1.eml").exists, 20)

    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    with ModelDouble(latency_ms=5.0) as double:
        models = write_models(tmp_path / "models.yaml", double.base_url)
        words = [f"--input={tmp_path}/events.jsonl", f"--models={models}"]
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words, f"--output=kafka://{world.stack.endpoints.kafka}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    (mail,) = world.until("the mail", lambda: world.mailbox.mails, 30)
    assert (mail.mail_from, mail.rcpt_tos) == ("support@example.com", ["ana@example.org"])
    sent = message_from_bytes(mail.content, policy=policy.default)
    assert (sent["In-Reply-To"], sent["To"], sent.get_content_type()) == (
        "<1@example.org>",
        "ana@example.org",
        "text/plain",
    )
    assert sent["Subject"] == "Re: ¿Dónde está?"
    assert sent.get_content().strip()


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("email-folder", "camel.source.url", "file:${env:FARCALL_NOT_SET}"),
        ("orders-table", "camel.beans.shop.url", "${env:FARCALL_NOT_SET}"),
        ("replies-http", "camel.sink.url", "${env:FARCALL_NOT_SET}?httpMethod=POST"),
    ],
)
def test_a_variable_that_is_not_set_is_named(world: World, name: str, setting: str, value: str) -> None:
    """A configuration whose variable the worker does not have is refused with its name, and nothing is started."""
    body = json.loads((CONFIGURATIONS / f"{name}.json").read_text())
    body["name"] = f"{name}-unset"
    body["config"][setting] = value
    base = f"{world.stack.endpoints.connect}/connectors"
    answer = requests.post(base, json=body, timeout=30)
    assert answer.status_code == 400, answer.text
    assert f"The setting {setting} needs the variable FARCALL_NOT_SET" in answer.json()["message"]
    assert body["name"] not in requests.get(base, timeout=10).json()


def test_a_broken_sender_does_not_stop_the_folder(world: World) -> None:
    """An e-mail whose From is no address becomes an event without a customer, which the pipeline refuses; the next one follows."""
    world.connect("email-folder")
    broken = letter(2).as_bytes().replace(b"<ana@example.org>", b"<<ana", 1)
    drop(world, "2.eml", broken)
    drop(world, "3.eml", letter(3).as_bytes())

    def events() -> dict[str, Any]:
        return {event["id"]: event for _, event, _ in world.records("support.events")}

    world.until("both events", lambda: {"2@example.org", "3@example.org"} <= events().keys(), 30)
    found = events()
    assert "customer_id" not in found["2@example.org"]
    with pytest.raises(BadEvent):
        parse_event(SourceRecord(json.dumps(found["2@example.org"]).encode()))
    assert found["3@example.org"]["customer_id"] == "ana@example.org"


def test_what_cannot_be_mailed_is_kept(world: World) -> None:
    """A reply to a customer without an address goes to the connector's dead letters with its reason; the next one is sent."""
    world.connect("replies-smtp")
    before = len(world.mailbox.mails)
    world.produce(
        "support.email.replies",
        {"id": "a", "customer_id": "CUST-1", "reply": "Hello."},
        {
            "id": "b@x",
            "customer_id": "bo@example.org",
            "reply": "Grüße",
            "headers": {"Subject": "Re:\r\nBcc: all@example.org"},
        },
    )
    world.until("the mail", lambda: len(world.mailbox.mails) > before, 30)
    mail = world.mailbox.mails[-1]
    assert mail.rcpt_tos == ["bo@example.org"], "a line break in a subject begins no header"
    sent = message_from_bytes(mail.content, policy=policy.default)
    assert (sent["Subject"], sent["Bcc"], sent["In-Reply-To"]) == ("Re: Bcc: all@example.org", None, "<b@x>")
    assert sent.get_content().strip() == "Grüße"
    ((_, value, headers),) = world.until("the dead letter", lambda: world.refused("a"), 20)
    assert value["customer_id"] == "CUST-1"
    assert b"no address" in headers["__connect.errors.exception.message"]


def test_replies_reach_a_platform_in_order_and_once(world: World) -> None:
    """A platform that is busy gets the record again, one that refuses it does not, and what follows is sent."""
    world.connect("replies-http")
    world.platform.taken.clear()
    world.platform.statuses[:] = [200, 503, 200, 422]
    world.produce("support.chat.replies", *({"id": f"r{number}", "reply": "x"} for number in range(4)))
    world.until("the replies", lambda: len(world.platform.taken) >= 3, 60)
    assert [body["id"] for _, _, body in world.platform.taken] == ["r0", "r1", "r3"]
    assert {(path, kind) for path, kind, _ in world.platform.taken} == {("/replies", "application/json")}
    (refused,) = world.until("the dead letter", lambda: world.refused("r"), 20)
    assert refused[1]["id"] == "r2"
    assert b"422" in refused[2]["__connect.errors.exception.message"]


def test_a_table_of_orders_becomes_a_topic(world: World) -> None:
    """Each row is one record of JSON, once; a row that is added later follows."""
    world.connect("orders-table")
    world.until("two orders", lambda: len(world.records("shop.orders")) == 2, 30)
    with sqlite3.connect(world.folder / "shop.db", timeout=10) as shop:
        shop.execute("insert into orders (item) values ('desk')")
    world.until("the third", lambda: len(world.records("shop.orders")) == 3, 30)
    orders = [order for _, order, _ in world.records("shop.orders")]
    assert sorted((order["order_id"], order["item"]) for order in orders) == [(1, "lamp"), (2, "chair"), (3, "desk")]
    world.stop("orders-table")


def test_an_http_source_is_polled(world: World) -> None:
    """What a URL answers is a record, each time it is asked."""
    world.connect("http-source")
    polled = world.until(
        "two polls", lambda: [e for _, e, _ in world.records("support.events") if e["id"] == "http-1"][1:], 30
    )
    world.stop("http-source")
    assert polled[0] == json.loads(EVENT)
