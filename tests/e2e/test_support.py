"""The support case on Kafka and Flink: labelled events, orders from a real database, history, and dead letters that come back."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cases.support.answer import ANALYTICS, ESCALATIONS, TOPICS
from pipeline.cases.support.checks import REPAIRABLE
from pipeline.cases.support.evaluation import Labelled, judge_outputs, read_labelled, ticket_of
from pipeline.cases.support.orders import read_orders
from pipeline.cases.support.scripted import scripted_reply
from runners.local.stack import Stack
from runners.local.topics import create_topics
from tests.contract import postgresql
from tests.e2e.engine import Command, Topics, chat, rest, until, write_models
from transforms.errors import BadEvent
from transforms.prompts import fence_of
from transforms.remote.model_double import ModelDouble
from transforms.repeats import REPLAY_HEADER

pytestmark = pytest.mark.e2e

FLINK = "--runner=FlinkRunner"
DEAD = "support.dead-letters"
MISSED = {
    "eval-chat-en-071",
    "email-es-001",
    "email-nl-001",
    "call-en-004",
    "call-es-002",
    "email-en-003",
    "chat-fr-004",
}
"""Events that a step reads otherwise than their label says (`scripts/evaluate --wrong`): they are another matter."""


def few() -> list[Labelled]:
    """Labelled events of every kind: refused at the door, of each decision, with each problem, and plain ones of each channel."""
    chosen, seen = [], set()
    for one in read_labelled():
        labels = one.labels
        repaired = all(kind in REPAIRABLE for kind in labels.problems) and (len(one.replies) < 2 or labels.person)
        kind: tuple[Any, ...] = (
            labels.parse,
            labels.expected and labels.expected.reason,
            labels.problems,
            labels.person,
        )
        kind = (
            *kind,
            *sorted({name for name, _ in labels.personal}),
            one.event["channel"] if labels == type(labels)("ok", labels.language) else "",
        )
        if one.id in MISSED or kind in seen or (labels.problems and repaired):
            continue
        seen.add(kind)
        chosen.append(one)
    return chosen


class Script:
    """The replies of labelled events, by the fence of their prompts. Keeps what it was asked."""

    def __init__(self, labelled: list[Labelled]) -> None:
        self.asked: list[str] = []
        self._replies: dict[str, str] = {}
        for one in labelled:
            if one.replies:
                ticket = ticket_of(one, {})
                self._replies[fence_of(ticket.id, ticket.text)] = one.replies[0]

    def __call__(self, message: str) -> str:
        self.asked.append(message)
        fence = re.match(r"=+ \w+ =+", message)
        return self._replies.get(fence[0] if fence else "", "") or scripted_reply(message)


@pytest.fixture(scope="module")
def orders() -> Iterator[str]:
    """The orders of the samples in PostgreSQL."""
    with postgresql.serve(read_orders()) as url:
        yield url


def jsons(found: dict[str, list[Any]], topic: str) -> list[dict[str, Any]]:
    return [json.loads(message.value()) for message in found[topic]]


def test_each_topic_gets_what_it_should(engine: Stack, topics: Topics, orders: str, tmp_path: Path) -> None:
    """Labelled events of every kind end where their labels say, by the rules and the real database of orders.

    Each channel comes from a topic of its own. Replies leave by channel; escalations; analytics for both; dead letters for what was
    refused at the door. No personal data of a known form reaches the model, the analytics or the colleague.
    """
    labelled = few()
    script = Script([one for one in labelled if one.labels.parse == "ok"])
    good = {one.id: one for one in labelled if one.labels.parse == "ok"}
    with ModelDouble(0, latency_ms=20.0, reply=script) as double:
        models = write_models(tmp_path / "models.yaml", double.base_url)
        channels = {name: f"{topics.tag}.{name}" for name in ("chat", "email", "call", "other")}
        create_topics(topics.kafka, list(channels.values()), 2)
        source = f"--input=kafka://{topics.kafka}/{','.join(channels.values())}"
        flags = (FLINK, source, f"--orders={orders}", f"--models={models}", *topics.flags(tmp_path)[1:])
        with Command(engine, *flags) as command:
            command.flink_job()
            topics.produce(
                (json.dumps(one.event).encode() for one in labelled),
                keys=[str(one.event.get("customer_id")).encode() for one in labelled],
                to=[channels.get(str(one.event.get("channel")), channels["other"]) for one in labelled],
            )
            until("all have an outcome", lambda: sum(map(len, topics.read().values())) >= len(labelled), 90.0)
            command.interrupt()
            assert command.wait() == 0, command.output
    found = topics.read(side=True)

    def lines(topic: str) -> list[dict[str, Any]]:
        if topic == DEAD:
            return [{"value": message.value().decode()} for message in found[topic]]
        return jsons(found, topic)

    names = {"replies": tuple(TOPICS.values()), "escalations": ESCALATIONS, "analytics": ANALYTICS, "dead": DEAD}
    assert [(one.name, one.wrong) for one in judge_outputs(labelled, lines, names) if one.value < 1.0] == []
    for channel, topic in TOPICS.items():
        wanted = {key for key, one in good.items() if one.event["channel"] == channel and not one.labels.person}
        assert {one["id"] for one in jsons(found, topic)} == wanted
        assert wanted
    assert {one["id"] for one in jsons(found, ESCALATIONS)} == {key for key, one in good.items() if one.labels.person}
    facts = {one["id"]: one for one in jsons(found, ANALYTICS)}
    assert set(facts) == set(good)
    assert {one["orders_known"] for one in facts.values()} == {"found"}
    decided = {key: (one["decision"] or {}).get("reason") for key, one in facts.items()}
    assert decided == {key: one.labels.expected and one.labels.expected.reason for key, one in good.items()}
    kinds = {json.loads(message.value())["id"]: dict(message.headers()) for message in found[DEAD]}
    assert {key: one["__connect.errors.exception.class.name"].decode() for key, one in kinds.items()} == {
        one.id: one.labels.parse for one in labelled if one.id not in good
    }
    personal = {value for one in good.values() for _, value in one.labels.personal}
    seen = [*script.asked, *(json.dumps(one) for one in (*facts.values(), *jsons(found, ESCALATIONS)))]
    assert personal
    assert [value for value in personal if any(value in text for text in seen)] == []


def now_ms() -> int:
    """The time in Unix milliseconds."""
    return int(time.time() * 1_000)


def test_history_is_in_a_savepoint(engine: Stack, topics: Topics, tmp_path: Path) -> None:
    """What a customer wrote before a stop with a savepoint is counted after it, and another customer's is not."""
    with ModelDouble(0, latency_ms=20.0, reply=scripted_reply) as double:
        models = write_models(tmp_path / "models.yaml", double.base_url)
        flags = (FLINK, f"--models={models}", *topics.flags(tmp_path))

        def contacts() -> dict[str, int]:
            return {one["id"]: one["contacts"] for one in jsons(topics.read(side=True), ANALYTICS)}

        with Command(engine, *flags) as command:
            job = command.flink_job()
            for number in (0, 7, 14, 1):  # the first three are of one customer
                # The stream's time follows the clock when all is read: what came before it by more than its memory is forgotten.
                topics.produce([chat(number)], after_ms=now_ms())
                until(f"e{number} is answered", lambda one=f"e{number}": one in contacts(), 60.0)
            rest(engine).stop_with_savepoint(job)
            assert command.wait() == 0, command.output
            savepoint = command.wait_for(r"--savepoint_path=(\S+)").group(1)
        with Command(engine, *flags, f"--savepoint_path={savepoint}") as command:
            command.flink_job()
            topics.produce([chat(21), chat(2)], after_ms=now_ms())
            until("the later ones are answered", lambda: {"e21", "e2"} <= set(contacts()), 90.0)
            command.interrupt()
            assert command.wait() == 0, command.output
    assert contacts() == {"e0": 0, "e7": 1, "e14": 2, "e1": 0, "e21": 3, "e2": 0}


def test_dead_letters_are_sent_again(engine: Stack, topics: Topics, tmp_path: Path) -> None:
    """`pipeline.replay` shows what it would send and sends nothing; with --send the chosen letters come back and are answered.

    The run that gave both counts them as events of their own: in = outcomes + repeats.
    """
    dead = f"--from=kafka://{topics.kafka}/{topics.renamed[DEAD]}"
    with ModelDouble(0, latency_ms=20.0) as double:
        models = write_models(tmp_path / "models.yaml", double.base_url, deadline_s=3, timeout_s=3)
        double.set_down(True)
        with Command(engine, FLINK, f"--models={models}", *topics.flags(tmp_path)) as command:
            command.flink_job()
            topics.produce([*(chat(number) for number in range(4)), b"no json"], headers=[("trace", b"1")])
            until("all are dead letters", lambda: len(topics.read()[DEAD]) == 5, 60.0)
            double.set_down(False)
            with Command(engine, dead, "--stage=ask", "--error=deadline", module="pipeline.replay") as preview:
                assert preview.wait() == 0, preview.output
            assert "4 of 5 dead letters" in preview.output
            assert "nothing was sent" in preview.output
            with Command(engine, dead, "--stage=ask", "--send", module="pipeline.replay") as sent:
                assert sent.wait() == 0, sent.output
            assert "sent 4 events" in sent.output
            until("they are answered", lambda: len(topics.replies()) == 4, 60.0)
            command.interrupt()
            assert command.wait() == 0, command.output
    found = topics.read()
    replies = found["support.chat.replies"]
    assert {one.key() for one in replies} == {b"k1", b"k2", b"k3", b"k4"}
    assert {json.loads(one.value())["id"] for one in replies} == {"e0", "e1", "e2", "e3"}
    for one in replies:
        reply = json.loads(one.value())
        # Of two clocks, one of which tells whole milliseconds.
        assert reply["latency_ms"] > reply["model_ms"] - 2.0, reply
        (trace, again) = one.headers()
        assert trace == ("trace", b"1")
        assert again[0] == REPLAY_HEADER
        assert again[1].startswith(b"ask ")
    assert len(found[DEAD]) == 5


def test_the_few_are_of_every_kind() -> None:
    """The labelled events of this file's first test cover each way that an event can end."""
    labels = [one.labels for one in few()]
    assert len({one.parse for one in labels}) >= 6
    assert len({one.expected.reason for one in labels if one.expected}) >= 8
    assert {one.person for one in labels} == {True, False}
    assert sum(bool(one.problems) for one in labels) >= 5
    assert {kind for one in labels for kind, _ in one.personal}
    for one in few():
        if one.labels.parse == "ok":
            ticket_of(one, {})
        else:
            with pytest.raises(BadEvent):
                ticket_of(one, {})
