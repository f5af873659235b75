"""Kafka topics of the local stack and of tests."""

from __future__ import annotations

import time
from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic, TopicMetadata

from runners.local.part import StackError

_REACHED_WITHIN_S = 5.0
_DONE_WITHIN_S = 30.0
_ASKED_EACH_S = 0.02


def create_topics(bootstrap: str, names: Iterable[str], partitions: int = 4) -> list[str]:
    """Make sure the topics exist, each new one with `partitions` partitions and one copy; returns the new ones' names.

    A topic that exists stays as it is, whatever its number of partitions. A new one is ready for use on return: the broker
    names a leader for each of its partitions. Raises StackError, within ten seconds, where no broker answers at
    `bootstrap`, or where one refuses a topic, and after half a minute where one does not get ready.
    """
    # Its own log lines on refused connections would say less than the sentence below.
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "error_cb": lambda _: None})
    try:
        existing = client.list_topics(timeout=_REACHED_WITHIN_S).topics
    except KafkaException as error:
        raise StackError(
            f"No Kafka broker answers at {bootstrap} ({error.args[0].name()}); is it running, and is the address right?"
        ) from error
    missing = [name for name in dict.fromkeys(names) if name not in existing]
    if not missing:
        return []
    wanted = [NewTopic(name, num_partitions=partitions, replication_factor=1) for name in missing]
    created = []
    for name, done in client.create_topics(wanted, request_timeout=_DONE_WITHIN_S).items():
        try:
            done.result()
            created.append(name)
        except KafkaException as error:
            # Somebody else made it in the meantime.
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise StackError(f"Kafka refuses the topic {name!r}: {error.args[0].str()}") from error
    _await_leaders(client, created)
    return created


def _await_leaders(client: AdminClient, names: list[str]) -> None:
    """A created topic is in the controller's log; a broker, even the only one, knows of it a moment later."""
    until = time.monotonic() + _DONE_WITHIN_S
    waiting = set(names)
    while waiting:
        known = client.list_topics(timeout=_REACHED_WITHIN_S).topics
        waiting = {name for name in waiting if name not in known or not _has_leaders(known[name])}
        if waiting and time.monotonic() > until:
            raise StackError(
                f"Kafka made the topics {sorted(waiting)} and has no leader for them after {_DONE_WITHIN_S:.0f} s."
            )
        if waiting:
            time.sleep(_ASKED_EACH_S)


def _has_leaders(topic: TopicMetadata) -> bool:
    partitions = topic.partitions.values()
    return bool(partitions) and all(partition.error is None and partition.leader >= 0 for partition in partitions)
