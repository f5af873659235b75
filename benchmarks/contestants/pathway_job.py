"""The job of `pathway`: a program for Pathway's own environment, without anything of this project.

Kafka → `AsyncTransformer` → Kafka. Arguments, as JSON in the first word: servers, topic_in, topic_out, url, name, capacity, commit_ms,
retries. Prints ``running`` before it runs, and runs until it is ended.
"""

import json
import sys
from typing import Any

import aiohttp
import pathway as pw

_DEADLINE_S = 120.0


class Output(pw.Schema):  # type: ignore[misc]
    """An answer, as JSON: the engine keeps the name of an event's field, `id`, for itself."""

    output: str


class AskModel(pw.AsyncTransformer, output_schema=Output):  # type: ignore[misc, call-arg]
    """One call to the model server."""

    def __init__(self, url: str, **more: Any) -> None:
        super().__init__(**more)
        self._url = f"{url}/chat/completions"
        self._session: aiohttp.ClientSession | None = None

    async def invoke(self, data: str) -> dict[str, Any]:
        """Gives one row."""
        event = json.loads(data)
        # A session belongs to the loop it is made on.
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = {"model": "bench", "messages": [{"role": "user", "content": event["text"]}]}
        async with self._session.post(self._url, json=body, headers={"Idempotency-Key": event["id"]}) as answer:
            answer.raise_for_status()
            reply = (await answer.json())["choices"][0]["message"]["content"]
        return {"output": json.dumps({"id": event["id"], "due_us": event["due_us"], "reply": reply})}


def main() -> None:
    """Run the job."""
    given = json.loads(sys.argv[1])
    kafka = {"bootstrap.servers": given["servers"]}
    events = pw.io.kafka.read(
        {**kafka, "group.id": given["name"], "auto.offset.reset": "earliest", "fetch.wait.max.ms": "10"},
        topic=given["topic_in"],
        format="plaintext",
        autocommit_duration_ms=int(given["commit_ms"]),
    )
    asked = AskModel(
        given["url"], input_table=events.select(events.data), autocommit_duration_ms=int(given["commit_ms"])
    ).with_options(
        capacity=int(given["capacity"]),
        timeout=_DEADLINE_S,
        retry_strategy=pw.udfs.FixedDelayRetryStrategy(max_retries=int(given["retries"]), delay_ms=1_000),
    )
    pw.io.kafka.write(asked.successful, {**kafka, "linger.ms": "2"}, given["topic_out"], format="plaintext")
    print("running", flush=True)
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)


if __name__ == "__main__":
    main()
