"""The job of `ray_data`: a program for Ray's own environment, without anything of this project.

A file of events → `HttpRequestProcessor` → the count of replies. Arguments, as JSON in the first word: events (the file), url,
batch_size, workers, batches_at_once, retries. Prints two lines of JSON, one when its workers are up, one with what came
of it, and then waits until it is ended.
"""

import json
import os
import signal
import sys
import time
from typing import Any

_GIVEN = json.loads(sys.argv[1])
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# How many batches a worker has under way; its default is 4. Ray has no argument for it.
os.environ["RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY"] = str(_GIVEN["batches_at_once"])

import ray  # noqa: E402 - it reads the variables above
from ray.data.llm import HttpRequestProcessorConfig, build_processor  # noqa: E402


def _ask(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "payload": {"model": "bench", "messages": [{"role": "user", "content": row["text"]}]},
        "id": row["id"],
        "due_us": row["due_us"],
    }


def _output(row: dict[str, Any]) -> dict[str, Any]:
    reply = row["http_response"]["choices"][0]["message"]["content"]
    return {"id": row["id"], "due_us": row["due_us"], "reply": reply}


def _say(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def main() -> None:
    """Run the job."""
    given = _GIVEN
    ray.init(num_cpus=int(given["cpus"]), include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = HttpRequestProcessorConfig(
        url=f"{given['url']}/chat/completions",
        batch_size=int(given["batch_size"]),
        concurrency=int(given["workers"]),
        max_retries=int(given["retries"]),
    )
    processor = build_processor(config, preprocess=_ask, postprocess=_output)
    events = ray.data.read_json(given["events"]).repartition(int(given["blocks"])).materialize()
    _say(began=True)
    began_s = time.monotonic()
    outputs = replies = 0
    for row in processor(events).iter_rows():
        outputs += 1
        replies += bool(row["reply"])
    _say(outputs=outputs, replies=replies, seconds=time.monotonic() - began_s)
    signal.pause()


if __name__ == "__main__":
    main()
