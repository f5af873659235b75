"""Kafka topics of the local stack and of tests."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from runners.local.part import StackError

_REACHED_WITHIN_S = 5.0
_DONE_WITHIN_S = 30.0


def create_topics(bootstrap: str, names: Iterable[str], partitions: int = 4) -> list[str]:
    """Make sure the topics exist, each new one with `partitions` partitions and one copy; returns the new ones' names.

    A topic that exists stays as it is, whatever its number of partitions. Raises StackError, within ten seconds, where
    no broker answers at `bootstrap`, or where one refuses a topic.
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
    return created
