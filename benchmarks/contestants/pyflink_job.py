"""The job of `pyflink_async`: a program for PyFlink's own environment, without anything of this project.

Kafka → `AsyncDataStream.unordered_wait` → Kafka in a local cluster inside one JVM, with Python workers beside it. Arguments, as JSON
in the first word: servers, topic_in, topic_out, url, name, jar, capacity, parallelism, checkpoint_ms, bundle_ms, bundle_size. Prints
``running`` once the job is, and runs until it is ended.
"""

import json
import sys

import aiohttp
from pyflink.common import Configuration, Time, Types, WatermarkStrategy
from pyflink.common.serialization import SimpleStringSchema
from pyflink.datastream import AsyncDataStream, StreamExecutionEnvironment
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import (
    KafkaOffsetsInitializer,
    KafkaRecordSerializationSchema,
    KafkaSink,
    KafkaSource,
)
from pyflink.datastream.functions import AsyncFunction

_DEADLINE_S = 120


class AskModel(AsyncFunction):  # type: ignore[misc]
    """One call to the model server."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/chat/completions"
        self._session: aiohttp.ClientSession | None = None

    async def async_invoke(self, value: str) -> list[str]:
        """Gives one output."""
        event = json.loads(value)
        # A session belongs to the loop it is made on.
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = {"model": "bench", "messages": [{"role": "user", "content": event["text"]}]}
        async with self._session.post(self._url, json=body, headers={"Idempotency-Key": event["id"]}) as answer:
            answer.raise_for_status()
            reply = (await answer.json())["choices"][0]["message"]["content"]
        return [json.dumps({"id": event["id"], "due_us": event["due_us"], "reply": reply})]


def _environment(given: dict[str, str]) -> StreamExecutionEnvironment:
    settings = Configuration()
    for name, value in {
        "pipeline.jars": f"file://{given['jar']}",
        "python.fn-execution.bundle.time": given["bundle_ms"],
        "python.fn-execution.bundle.size": given["bundle_size"],
        "python.executable": sys.executable,
        "execution.checkpointing.interval": f"{given['checkpoint_ms']} ms",
        "execution.buffer-timeout.interval": "5 ms",
        "taskmanager.memory.managed.size": "256m",
        "rest.bind-address": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        "jobmanager.bind-host": "127.0.0.1",
    }.items():
        settings.set_string(name, str(value))
    environment = StreamExecutionEnvironment.get_execution_environment(settings)
    environment.set_parallelism(int(given["parallelism"]))
    return environment


def _source(given: dict[str, str]) -> KafkaSource:
    return (
        KafkaSource.builder()
        .set_bootstrap_servers(given["servers"])
        .set_topics(given["topic_in"])
        .set_group_id(given["name"])
        .set_starting_offsets(KafkaOffsetsInitializer.earliest())
        .set_value_only_deserializer(SimpleStringSchema())
        .build()
    )


def _sink(given: dict[str, str]) -> KafkaSink:
    serializer = (
        KafkaRecordSerializationSchema.builder()
        .set_topic(given["topic_out"])
        .set_value_serialization_schema(SimpleStringSchema())
        .build()
    )
    return (
        KafkaSink.builder()
        .set_bootstrap_servers(given["servers"])
        .set_property("linger.ms", "2")
        .set_record_serializer(serializer)
        .set_delivery_guarantee(DeliveryGuarantee.AT_LEAST_ONCE)
        .build()
    )


def main() -> None:
    """Run the job."""
    given = json.loads(sys.argv[1])
    environment = _environment(given)
    events = environment.from_source(_source(given), WatermarkStrategy.no_watermarks(), "read")
    replies = AsyncDataStream.unordered_wait(
        events, AskModel(given["url"]), Time.seconds(_DEADLINE_S), int(given["capacity"]), Types.STRING()
    )
    replies.sink_to(_sink(given))
    job = environment.execute_async(given["name"])
    print("running", flush=True)
    job.get_job_execution_result().result()


if __name__ == "__main__":
    main()
