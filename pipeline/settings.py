"""The settings of one run: frozen values, checked before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transforms.enrich.database import DatabaseSettings
from transforms.enrich.lookups import LookupSettings
from transforms.formats.settings import TopicFormat
from transforms.remote.settings import ModelSettings


@dataclass(frozen=True)
class Files:
    """Input from files, read one after the other, or output to a folder (one path)."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class Kafka:
    """A Kafka cluster (``HOST:PORT[,HOST:PORT]``) and, for input, the topics to read."""

    servers: str
    topics: tuple[str, ...] = ()


@dataclass(frozen=True)
class KafkaConfig:
    """Further settings of Kafka's clients, by librdkafka's names. Secrets are ``${env:NAME}``."""

    consumer: Mapping[str, str] = field(default_factory=dict)
    producer: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """Everything the command line says.

    `input` None means the sample events of the case; `output` None the folder ``out`` or, with the local stack, its Kafka.
    `models` None means the embedded model; `embedded`: it is in `models` already. `repeat_memory_s` is in seconds. `orders` is the
    database of orders, `lookups` how it is asked; `samples`: what is read are the case's own samples. `metrics_port` is PORT or
    HOST:PORT, None for no page.
    `beam_arguments` are Beam's own flags, untouched. `formats` are those of topics that are not JSON alone.
    `feedback`: where what is known later about outcomes is read, None for nowhere, or with the samples their own.
    """

    case: str
    runner: str
    input: Files | Kafka | None
    output: Files | Kafka | None
    kafka_config: KafkaConfig
    topics: Mapping[str, str]
    models: Mapping[str, ModelSettings] | None
    models_file: Path | None
    follow: bool
    engine: str
    repeat_memory_s: float
    shards: int
    max_pending: int
    order: str
    ask_mode: str
    beam_arguments: tuple[str, ...]
    log_level: str
    orders: DatabaseSettings | None = None
    lookups: LookupSettings = field(default_factory=LookupSettings)
    samples: bool = False
    embedded: bool = False
    metrics_port: str | None = None
    formats: Mapping[str, TopicFormat] = field(default_factory=dict)
    feedback: Files | Kafka | None = None
