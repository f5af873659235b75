"""Whether a part really works: each probe asks it a question that only a working part answers.

A probe returns None when all is well, else a few words on what is missing, and takes at most two seconds.
"""

from __future__ import annotations

import json
import socket
import struct
import urllib.error
import urllib.request
from typing import Any

ANSWER_WITHIN_S = 2.0


def kafka(bootstrap: str) -> str | None:
    """A broker that answers a request for metadata."""
    # Not at the top, nor gRPC below: slow to import, and the language model alone needs neither.
    from confluent_kafka import KafkaException  # noqa: PLC0415
    from confluent_kafka.admin import AdminClient  # noqa: PLC0415

    # Its own log lines on refused connections would stand among those of `up`.
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "error_cb": lambda _: None})
    try:
        brokers = client.list_topics(timeout=ANSWER_WITHIN_S).brokers
    except KafkaException as error:
        return f"no metadata ({error.args[0].name()})"
    return None if brokers else "no broker in its metadata"


def postgresql(host: str, port: int, user: str) -> str | None:
    """A PostgreSQL that asks `user` for the password by SCRAM, as it does when it takes connections.

    The first message of its protocol, version 3.0, and the head of the answer: 10 is AuthenticationSASL.
    """
    content = struct.pack("!I", 3 << 16) + f"user\0{user}\0\0".encode()
    try:
        with socket.create_connection((host, port), timeout=ANSWER_WITHIN_S) as connection:
            connection.sendall(struct.pack("!I", len(content) + 4) + content)
            with connection.makefile("rb") as answer:
                head = answer.read(9)
    except OSError as error:
        return f"no answer ({error})"
    if head[:1] == b"R" and head[5:] == struct.pack("!I", 10):
        return None
    return "does not take connections yet" if head[:1] == b"E" else "no answer of PostgreSQL's protocol"


def grpc(address: str) -> str | None:
    """A gRPC server that completes the handshake."""
    import grpc as library  # noqa: PLC0415

    with library.insecure_channel(address) as channel:
        try:
            library.channel_ready_future(channel).result(timeout=ANSWER_WITHIN_S)
        except library.FutureTimeoutError:
            return "no gRPC handshake"
    return None


def http(url: str) -> str | None:
    """An HTTP server that answers with a status of the 2xx kind."""
    answer = ask(url)
    return answer if isinstance(answer, str) else None


def flink_slots(rest: str, slots: int) -> str | None:
    """A JobManager with a TaskManager that has registered its slots."""
    answer = ask(f"http://{rest}/taskmanagers")
    if isinstance(answer, str):
        return answer
    found = sum(int(each["slotsNumber"]) for each in answer["taskmanagers"])
    return None if found >= slots else f"{found} of {slots} slots registered"


def ask(url: str) -> dict[str, Any] | str:
    """The JSON object at `url`, or a few words on why there is none."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_WITHIN_S) as reply:  # noqa: S310 - our own URLs
            content: dict[str, Any] = json.loads(reply.read() or b"{}")
            return content
    except urllib.error.HTTPError as error:
        return f"HTTP status {error.code}"
    except (OSError, ValueError) as error:
        return f"no answer ({error})"
