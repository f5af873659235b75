"""Records to Kafka, written by librdkafka in the worker (docs/adr/0008), and the settings of Kafka's clients.

A bundle's records are acknowledged by all in-sync replicas before the bundle ends; a bundle done twice writes twice, with the same
ids. KafkaIO's external write takes no headers.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping

import apache_beam as beam
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from transforms.errors import SettingsError
from transforms.records import OutputRecord
from transforms.remote.clock import SystemClock

DEFAULT_GROUP = "farcall"
"""The consumer group that reads, unless the settings name another."""

FLUSH_TIMEOUT_S = 60.0
"""How long a bundle waits for Kafka's acknowledgements before it fails and is done again."""

_SECRET = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


class WriteKafka(beam.PTransform):  # type: ignore[misc]
    """Writes `OutputRecord`s to their topics with key, headers and event time as they are.

    `config` are producer settings by librdkafka's names; a secret in them is ``${env:NAME}``, resolved on the worker.
    A record that Kafka refuses, or does not acknowledge in time, fails its bundle: nothing is dropped.
    """

    def __init__(self, servers: str, config: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._config = {
            "bootstrap.servers": servers,
            "acks": "all",
            "enable.idempotence": "true",
            "linger.ms": "2",
            "message.max.bytes": "16777216",
            **(config or {}),
        }

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """One ParDo; gives nothing."""
        return records | "Write" >> beam.ParDo(_WriteKafka(self._config)).with_output_types(type(None))


_producers: dict[tuple[int, tuple[tuple[str, str], ...]], Producer] = {}
_producers_lock = threading.Lock()


def _producer(config: Mapping[str, str]) -> Producer:
    """The process's producer for these settings; librdkafka's is safe to share between threads."""
    key = (os.getpid(), tuple(sorted(config.items())))
    with _producers_lock:
        if key not in _producers:
            _producers[key] = Producer(resolve_secrets(config))
        return _producers[key]


def resolve_secrets(config: Mapping[str, str]) -> dict[str, str]:
    """The settings with every ``${env:NAME}`` replaced. Raises SettingsError where the variable is not set."""

    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise SettingsError(f"A Kafka setting refers to the environment variable {name}, which is not set here.")
        return os.environ[name]

    return {name: _SECRET.sub(value_of, value) for name, value in config.items()}


_CLIENT_KEYS = ("security.", "sasl.", "ssl.", "client.", "socket.", "broker.")


def client_config(servers: str, producer: Mapping[str, str]) -> dict[str, str]:
    """What any client of librdkafka needs to reach the cluster: the connection settings among the producer's, secrets resolved.

    Raises SettingsError where a secret's environment variable is not set here.
    """
    connection = {name: value for name, value in producer.items() if name.startswith(_CLIENT_KEYS)}
    return {**resolve_secrets(connection), "bootstrap.servers": servers, "log_level": "0"}


class _WriteKafka(beam.DoFn):  # type: ignore[misc]
    def __init__(self, config: Mapping[str, str]) -> None:
        self._config = dict(config)

    def setup(self) -> None:
        self._producer = _producer(self._config)

    def start_bundle(self) -> None:
        # A list of this bundle's own: late reports of a bundle that failed must not count for this one.
        self._bundle = _Deliveries()

    def process(self, record: OutputRecord) -> None:
        self._bundle.expected += 1
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    value=record.value,
                    key=record.key,
                    headers=list(record.headers),
                    timestamp=record.event_time_ms,
                    on_delivery=self._bundle.report,
                )
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def finish_bundle(self) -> None:
        if self._bundle.expected:
            self._bundle.wait(self._producer)


class _Deliveries:
    """What Kafka said about the records of one bundle."""

    def __init__(self) -> None:
        self.expected = 0
        self._delivered = 0
        self._error: KafkaError | None = None

    def report(self, error: KafkaError | None, _message: Message) -> None:
        self._delivered += 1
        self._error = self._error or error

    def wait(self, producer: Producer) -> None:
        """Waits until Kafka has acknowledged every record. Raises KafkaException where it refused one or took too long."""
        deadline_s = SystemClock().monotonic_s() + FLUSH_TIMEOUT_S
        producer.flush(FLUSH_TIMEOUT_S)
        # Another thread that shares the producer may still be handing over our reports when the queue is empty.
        while self._delivered < self.expected and SystemClock().monotonic_s() < deadline_s:
            producer.poll(0.005)
        if self._error is not None:
            raise KafkaException(self._error)
        if self._delivered < self.expected:
            missing = self.expected - self._delivered
            raise KafkaException(KafkaError._MSG_TIMED_OUT, f"Kafka did not acknowledge {missing} records in time.")  # noqa: SLF001
