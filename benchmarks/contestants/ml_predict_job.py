"""The job of `ml_predict`: a program for PyFlink's own environment, without anything of this project.

SQL alone: a Kafka table → `ML_PREDICT` → a Kafka table. Arguments, as JSON in the first word: servers, topic_in, topic_out, url,
name, jars, capacity, parallelism, checkpoint_ms. Prints ``running`` once the job is submitted, and runs until it is ended.
"""

import json
import sys
from typing import Any

from pyflink.common import Configuration
from pyflink.table import EnvironmentSettings, TableEnvironment

_DEADLINE = "120 s"


def _environment(given: dict[str, Any]) -> TableEnvironment:
    settings = Configuration()
    for name, value in {
        "pipeline.jars": ";".join(f"file://{jar}" for jar in given["jars"]),
        "pipeline.name": given["name"],
        "parallelism.default": given["parallelism"],
        "execution.checkpointing.interval": f"{given['checkpoint_ms']} ms",
        "execution.buffer-timeout.interval": "5 ms",
        "table.exec.async-ml-predict.max-concurrent-operations": given["capacity"],
        "table.exec.async-ml-predict.output-mode": "ALLOW_UNORDERED",
        "table.exec.async-ml-predict.timeout": _DEADLINE,
        "taskmanager.memory.managed.size": "256m",
        "rest.bind-address": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        "jobmanager.bind-host": "127.0.0.1",
    }.items():
        settings.set_string(name, str(value))
    return TableEnvironment.create(EnvironmentSettings.new_instance().with_configuration(settings).build())


def _statements(given: dict[str, Any]) -> tuple[str, ...]:
    kafka = f"'connector' = 'kafka', 'properties.bootstrap.servers' = '{given['servers']}', 'format' = 'json'"
    return (
        f"""CREATE TABLE events (id STRING, due_us BIGINT, `text` STRING) WITH ({kafka}, 'topic' = '{given["topic_in"]}',
            'properties.group.id' = '{given["name"]}', 'scan.startup.mode' = 'earliest-offset')""",
        f"""CREATE TABLE outputs (id STRING, due_us BIGINT, reply STRING) WITH ({kafka}, 'topic' = '{given["topic_out"]}',
            'properties.linger.ms' = '2', 'sink.delivery-guarantee' = 'at-least-once')""",
        f"""CREATE MODEL bench INPUT (`text` STRING) OUTPUT (reply STRING) WITH ('provider' = 'openai', 'model' = 'bench',
            'endpoint' = '{given["url"]}/chat/completions', 'api-key' = 'none', 'system-prompt' = 'Answer.')""",
    )


_INSERT = """INSERT INTO outputs SELECT id, due_us, reply FROM ML_PREDICT(
    TABLE events, MODEL bench, DESCRIPTOR(`text`), MAP['async', 'true'])"""


def main() -> None:
    """Run the job."""
    given = json.loads(sys.argv[1])
    environment = _environment(given)
    for statement in _statements(given):
        environment.execute_sql(statement)
    job = environment.execute_sql(_INSERT)
    print("running", flush=True)
    job.wait()


if __name__ == "__main__":
    main()
