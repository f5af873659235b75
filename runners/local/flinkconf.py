"""The settings files of Kafka, Kafka Connect and Flink, and the memory of each JVM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runners.local.ports import HOST, Ports

SLOTS = 4
KAFKA_PARTITIONS = 4


@dataclass(frozen=True)
class TaskManagerMemory:
    """How the TaskManager's memory is divided, in MiB. Started without Flink's scripts, it must be told every share."""

    framework_heap_mib: int = 128
    task_heap_mib: int = 448
    framework_off_heap_mib: int = 128
    task_off_heap_mib: int = 128
    network_mib: int = 128
    managed_mib: int = 64
    metaspace_mib: int = 256
    overhead_mib: int = 256

    @property
    def heap_mib(self) -> int:
        """The JVM's heap."""
        return self.framework_heap_mib + self.task_heap_mib

    @property
    def direct_mib(self) -> int:
        """The JVM's direct memory."""
        return self.framework_off_heap_mib + self.task_off_heap_mib + self.network_mib

    @property
    def process_mib(self) -> int:
        """All shares together."""
        return self.heap_mib + self.direct_mib + self.managed_mib + self.metaspace_mib + self.overhead_mib

    def jvm_words(self) -> tuple[str, ...]:
        """The bounds as the JVM takes them."""
        return (
            f"-Xmx{self.heap_mib}m",
            f"-XX:MaxDirectMemorySize={self.direct_mib}m",
            f"-XX:MaxMetaspaceSize={self.metaspace_mib}m",
        )

    def flink_words(self) -> tuple[str, ...]:
        """The shares as options of TaskManagerRunner."""
        shares = {
            "taskmanager.cpu.cores": f"{SLOTS}.0",
            "taskmanager.memory.framework.heap.size": f"{self.framework_heap_mib}m",
            "taskmanager.memory.task.heap.size": f"{self.task_heap_mib}m",
            "taskmanager.memory.framework.off-heap.size": f"{self.framework_off_heap_mib}m",
            "taskmanager.memory.task.off-heap.size": f"{self.task_off_heap_mib}m",
            "taskmanager.memory.network.min": f"{self.network_mib}m",
            "taskmanager.memory.network.max": f"{self.network_mib}m",
            "taskmanager.memory.managed.size": f"{self.managed_mib}m",
            "taskmanager.memory.jvm-metaspace.size": f"{self.metaspace_mib}m",
            "taskmanager.memory.jvm-overhead.min": f"{self.overhead_mib}m",
            "taskmanager.memory.jvm-overhead.max": f"{self.overhead_mib}m",
        }
        return tuple(word for name, value in shares.items() for word in ("-D", f"{name}={value}"))


def connect_properties(ports: Ports, data: Path) -> str:
    """The settings of a Kafka Connect worker in one process. Records are bytes as they are, unless a connector says otherwise."""
    converter = "org.apache.kafka.connect.converters.ByteArrayConverter"
    return _lines(
        {
            "bootstrap.servers": ports.address("kafka"),
            "listeners": f"http://{ports.address('connect')}",
            "key.converter": converter,
            "value.converter": converter,
            "header.converter": "org.apache.kafka.connect.storage.SimpleHeaderConverter",
            "offset.storage.file.filename": data / "offsets",
            "offset.flush.interval.ms": 1_000,
            # Connectors are on the class path and say so in META-INF/services: no search through every jar.
            "plugin.discovery": "service_load",
            "config.providers": "env",
            "config.providers.env.class": "org.apache.kafka.common.config.provider.EnvVarConfigProvider",
        },
        "=",
    )


def kafka_properties(ports: Ports, data: Path) -> str:
    """`server.properties` of a single node that is broker and controller."""
    return _lines(
        {
            "process.roles": "broker,controller",
            "node.id": 1,
            # Voters by settings, not by the data folder: the same data may come up again on other ports.
            "controller.quorum.voters": f"1@{ports.address('kafka_controller')}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": f"PLAINTEXT://{ports.address('kafka')},CONTROLLER://{ports.address('kafka_controller')}",
            "advertised.listeners": f"PLAINTEXT://{ports.address('kafka')}",
            "log.dirs": data,
            "num.partitions": KAFKA_PARTITIONS,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            # One consumer alone should not wait for others to join.
            "group.initial.rebalance.delay.ms": 0,
            "log.segment.bytes": 64 << 20,
            # Records carry their event time, and Kafka counts a record's age from that: with Kafka's default of seven days
            # it deletes replayed events, and the replies to them, minutes after they were written. Bounded by size instead.
            "log.retention.ms": -1,
            "log.retention.bytes": 512 << 20,
            # An event may have megabytes: it is refused by the job, with its reason, not by the broker.
            "message.max.bytes": 16 << 20,
            "log.cleaner.dedupe.buffer.size": 16 << 20,
        },
        "=",
    )


def flink_config(ports: Ports, data: Path) -> str:
    """`config.yaml` of the JobManager and the TaskManager."""
    return _lines(
        {
            "jobmanager.rpc.address": HOST,
            "jobmanager.rpc.port": ports.flink_rpc,
            "jobmanager.bind-host": HOST,
            "rest.address": HOST,
            "rest.bind-address": HOST,
            "rest.port": ports.flink,
            "rest.bind-port": f'"{ports.flink}"',
            "taskmanager.host": HOST,
            "taskmanager.bind-host": HOST,
            "taskmanager.numberOfTaskSlots": SLOTS,
            # The class path has Beam already; a job that brought its own copy would not be the same classes.
            "classloader.resolve-order": "parent-first",
            "classloader.check-leaked-classloader": "false",
            "state.backend.type": "hashmap",
            "execution.checkpointing.dir": (data / "checkpoints").as_uri(),
            "execution.checkpointing.savepoint-dir": (data / "savepoints").as_uri(),
            "execution.checkpointing.num-retained": 2,
            "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 2147483647,
            "restart-strategy.fixed-delay.delay": "1 s",
            # A killed TaskManager is given up after this, and the job starts again on the next one.
            "heartbeat.interval": 1000,
            "heartbeat.timeout": 8000,
            "heartbeat.rpc-failure-threshold": 2,
            # A job that is cancelled while a worker hangs must not take the TaskManager three minutes.
            "task.cancellation.timeout": 30000,
            "slot.request.timeout": 60000,
            "web.submit.enable": "false",
            "io.tmp.dirs": data / "tmp",
            "metrics.reporter.prom.factory.class": "org.apache.flink.metrics.prometheus.PrometheusReporterFactory",
        },
        ": ",
    )


LOGGING = """\
status = warn
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{yyyy-MM-dd HH:mm:ss,SSS} %-5p %c{1.} - %m%n
logger.pekko.name = org.apache.pekko
logger.pekko.level = warn
logger.kafka-clients.name = org.apache.kafka.clients
logger.kafka-clients.level = warn
logger.kafka-common.name = org.apache.kafka.common
logger.kafka-common.level = warn
logger.flink-settings.name = org.apache.flink.configuration.GlobalConfiguration
logger.flink-settings.level = warn
"""
"""`log4j2.properties` of every JVM: to standard output, which the supervisor leads to the part's log file."""


def _lines(settings: dict[str, object], between: str) -> str:
    return "".join(f"{name}{between}{value}\n" for name, value in settings.items())
