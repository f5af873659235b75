"""The command line: what is wrong is said in one sentence, and Ctrl-C drains, twice ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from pipeline import options
from tests.flow import doubles
from transforms.errors import SettingsError
from transforms.remote.model_double import Fault, ModelDouble

ROOT = Path(__file__).resolve().parents[2]
DATAFLOW = ("--runner=DataflowRunner", "--models=good.yaml")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files to name in flags, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("events.jsonl").write_text("{}\n")
    Path("secret.jsonl").write_text("{}\n")
    Path("good.yaml").write_text("models: {answer: {endpoints: ['http://127.0.0.1:9/v1'], model: m}}\n")
    Path("unknown-key.yaml").write_text("models: {answer: {endpoints: ['http://x/v1'], model: m, timeout: 3}}\n")
    Path("unknown-protocol.yaml").write_text(
        "models: {answer: {endpoints: ['http://x/v1'], model: m, protocol: openai-chta}}\n"
    )
    Path("no-answer.yaml").write_text("models: {score: {endpoints: ['http://x/v1'], model: m}}\n")
    Path("broken.yaml").write_text("a: [b\n")
    Path("list.yaml").write_text("- a\n")
    Path("password.yaml").write_text("common: {sasl.password: hunter2}\n")
    Path("jaas.yaml").write_text("consumer: {sasl.jaas.config: 'Plain password=\"hunter2\";'}\n")
    Path("reference.yaml").write_text("common: {sasl.password: '${env:FARCALL_TEST_SECRET}'}\n")
    Path("java.yaml").write_text("consumer: {key.deserializer: org.apache.kafka.X}\n")
    Path("section.yaml").write_text("consumers: {group.id: a}\n")
    Path("topic.yaml").write_text("support.chat.reply: other\n")
    Path("avro.yaml").write_text("topics: {support.event: {format: avro, schema: event.avsc}}\n")
    Path("dead.yaml").write_text("topics: {support.dead-letters: {format: json}}\n")
    Path("no-schema.yaml").write_text("registry: {url: 'http://r'}\ntopics: {support.chat.replies: {format: avro}}\n")
    Path("formats-key.yaml").write_text("topics: {support.events: {format: json, scheme: a}}\n")
    Path("event.avsc").write_text('{"type": "record", "name": "E", "fields": []}')
    Path("bad-name.yaml").write_text("support.chat.replies: 'a b'\n")
    return tmp_path


# What is typed, and what the sentence says: the first word of it is the flag or the file that is wrong.
WRONG: dict[str, tuple[Sequence[str], str]] = {
    "an unknown flag": (["--modles=x"], r"--modles=x: .*Did you mean --models\?"),
    "an unknown flag of Beam": (["--job_nmae=x"], r"--job_nmae=x: .*Did you mean --job_name\?"),
    "an unknown flag of Flink": (
        ["--runner=FlinkRunner", "--checkpointing_intervall=3"],
        r"--checkpointing_intervall=3: .*Did you mean --checkpointing_interval\?",
    ),
    "a flag of Flink elsewhere": (["--checkpointing_interval=3"], r"--checkpointing_interval=3: there is no such flag"),
    "a word that is no flag": (["extra"], r"extra: there is no such flag"),
    "a shortened flag": (["--model=good.yaml"], r"--model=good.yaml: .*Did you mean --models\?"),
    "a file that is not there": (["--input=nowhere.jsonl"], r"--input=nowhere.jsonl: cannot be read"),
    "no file that matches": (["--input=*.json"], r"--input=\*.json: no file matches"),
    "an empty input": (["--input="], r"--input=: cannot be read"),
    "an empty output": (["--output="], r"--output=: names no folder"),
    "a folder as input": (["--input=."], r"--input=.: is a folder"),
    "a file as output": (["--output=events.jsonl"], r"--output=events.jsonl: is a file"),
    "an unknown runner": (["--runner=FlinkRuner"], r"--runner=FlinkRuner: .*Did you mean FlinkRunner\?"),
    "an unknown case": (["--case=suport"], r"--case=suport: .*Did you mean support\?"),
    "an unknown protocol in": (["--input=ftp://x"], r"--input=ftp://x: the protocol ftp:// is not known"),
    "an unknown protocol out": (["--output=http://x"], r"--output=http://x: the protocol http:// is not known"),
    "an unknown engine": (["--engine=fast"], r"Argument --engine: .*'fast'"),
    "an unknown level of the log": (["--log_level=loud"], r"Argument --log_level: .*'loud'"),
    "an unknown key of a model": (
        ["--models=unknown-key.yaml"],
        r"unknown-key.yaml: models.answer.timeout: .*timeout_s",
    ),
    "an unknown protocol of a model": (["--models=unknown-protocol.yaml"], r"unknown-protocol.yaml: .*openai-chat\?"),
    "a role that is missing": (["--models=no-answer.yaml"], r"no-answer.yaml: models.answer is missing"),
    "a models file that is not there": (["--models=nowhere.yaml"], r"nowhere.yaml: the file cannot be read"),
    "a models file that is a folder": (["--models=."], r"\.: the file cannot be read"),
    "a formats file that is not there": (["--formats=nowhere.yaml"], r"nowhere.yaml: the file cannot be read"),
    "formats of files": (["--formats=avro.yaml"], r"--formats=avro.yaml: formats are those of Kafka's topics"),
    "a format of no topic": (
        ["--runner=FlinkRunner", "--formats=avro.yaml"],
        r"--formats=avro.yaml: topics.support.event: .*did you mean support.events\?",
    ),
    "a format of dead letters": (
        ["--runner=FlinkRunner", "--formats=dead.yaml"],
        r"--formats=dead.yaml: topics.support.dead-letters: dead letters stay as they came",
    ),
    "an output without a schema": (
        ["--runner=FlinkRunner", "--formats=no-schema.yaml"],
        r"--formats=no-schema.yaml: topics.support.chat.replies.schema: is missing",
    ),
    "an unknown key of a format": (
        ["--runner=FlinkRunner", "--formats=formats-key.yaml"],
        r"formats-key.yaml: topics.support.events.scheme: .*did you mean schema\?",
    ),
    "an empty name of a models file": (["--models="], r"--models=: names no file"),
    "Kafka in on DirectRunner": (["--input=kafka://h:1/t"], r"--input=kafka://… .*DirectRunner.*--runner=FlinkRunner"),
    "Kafka in on PrismRunner": (
        ["--runner=PrismRunner", "--input=kafka://h:1/t"],
        r"--input=kafka://… .*PrismRunner.*--runner=FlinkRunner",
    ),
    "--follow on DirectRunner": (["--follow"], r"--follow .*DirectRunner.*--runner=FlinkRunner"),
    "--follow over files": (
        ["--runner=FlinkRunner", "--follow", "--input=events.jsonl"],
        r"--follow contradicts --input",
    ),
    "Kafka without a topic": (["--runner=FlinkRunner", "--input=kafka://h:1"], r"--input=kafka://h:1: names no topic"),
    "Kafka without a port": (
        ["--runner=FlinkRunner", "--input=kafka://h/t"],
        r"--input=kafka://h/t: h is not HOST:PORT",
    ),
    "an impossible port": (["--output=kafka://h:70000"], r"--output=kafka://h:70000: h:70000 is not HOST:PORT"),
    "a topic that cannot be": (["--input=kafka://h:1/a b"], r"--input=kafka://h:1/a b: a b cannot be a topic"),
    "a topic in the output": (["--output=kafka://h:1/t"], r"--output=kafka://h:1/t: names a topic"),
    "no shards": (["--shards=0"], r"--shards=0: must lie between 1 and 128"),
    "too many shards": (["--shards=129"], r"--shards=129: must lie between 1 and 128"),
    "shards that are no number": (["--shards=x"], r"Argument --shards: .*'x'"),
    "order and repeats": (["--order=key"], r"--order=key needs --repeat_memory_s=0"),
    "unknown order": (["--order=id"], r"Argument --order: invalid choice: 'id'"),
    "order in bundles": (
        ["--order=key", "--repeat_memory_s=0", "--ask_mode=bundles"],
        r"--order=key needs --ask_mode=timers",
    ),
    "nothing pending": (["--max_pending=0"], r"--max_pending=0: must be at least 1"),
    "no port for metrics": (["--metrics_port=http"], r"--metrics_port=http: .* is not PORT or HOST:PORT"),
    "a negative memory": (["--repeat_memory_s=-1"], r"--repeat_memory_s=-1: must be at least 0"),
    "a memory without end": (["--repeat_memory_s=inf"], r"--repeat_memory_s=inf: "),
    "a memory that is no number": (["--repeat_memory_s=nan"], r"--repeat_memory_s=nan: "),
    "a literal password": (
        ["--kafka_config=password.yaml"],
        r"--kafka_config=password.yaml: common.sasl.password .*secret",
    ),
    "a literal password in JAAS": (
        ["--kafka_config=jaas.yaml"],
        r"--kafka_config=jaas.yaml: consumer.sasl.jaas.config",
    ),
    "an unknown section": (["--kafka_config=section.yaml"], r"--kafka_config=section.yaml: consumers is not a section"),
    "a configuration that is no YAML": (["--kafka_config=broken.yaml"], r"--kafka_config=broken.yaml: is not YAML"),
    "a configuration that is a list": (["--kafka_config=list.yaml"], r"--kafka_config=list.yaml: must be a mapping"),
    "an unknown topic": (["--topics=topic.yaml"], r"--topics=topic.yaml: support.chat.reply is no topic"),
    "a bad name of a topic": (["--topics=bad-name.yaml"], r"--topics=bad-name.yaml: a b cannot be a topic"),
    "bundles that are moved on Flink": (
        ["--runner=FlinkRunner", "--load_balance_bundles"],
        r"--load_balance_bundles: ",
    ),
    "a subtask without a shard": (
        ["--runner=FlinkRunner", "--parallelism=12"],
        r"--shards=8 is less than --parallelism=12, .*--shards=24",
    ),
    "another max_parallelism": (["--runner=FlinkRunner", "--max_parallelism=64"], r"--max_parallelism=64: must be 128"),
    "a parallelism that is no number": (
        ["--runner=FlinkRunner", "--parallelism=two"],
        r"Argument --parallelism: invalid int",
    ),
    "Flink's address without a port": (
        ["--runner=FlinkRunner", "--flink_master=host"],
        r"--flink_master=host: is not HOST",
    ),
    "Beam's engine without a cluster": (
        ["--runner=FlinkRunner", "--engine=beam"],
        r"--engine=beam needs --flink_master",
    ),
    "Dataflow without a project": ([*DATAFLOW], r"--runner=DataflowRunner needs --project"),
    "Dataflow without a model": (["--runner=DataflowRunner"], r"--runner=DataflowRunner needs --models=FILE"),
    "Dataflow without a bucket": (
        [*DATAFLOW, "--project=p", "--region=r", "--temp_location=/tmp"],
        r"--temp_location=/tmp: must be a bucket",
    ),
    "a job endpoint that is missing": (["--runner=PortableRunner"], r"--runner=PortableRunner needs --job_endpoint"),
    "a job endpoint without a port": (
        ["--runner=PortableRunner", "--job_endpoint=h"],
        r"--job_endpoint=h: is not HOST:PORT",
    ),
}


@pytest.mark.parametrize(("typed", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_use_is_said_in_one_sentence(files: Path, typed: Sequence[str], sentence: str) -> None:
    """Each wrong use raises an error of one line that names the flag or the file, and holds no secret."""
    with pytest.raises(SettingsError) as error:
        options.read(typed)
    said = str(error.value)
    assert re.match(sentence, said), said
    assert "\n" not in said
    assert "hunter2" not in said


def test_right_use_is_read(files: Path) -> None:
    """The sibling: flags that are right are read, by the same function that refuses the others."""
    settings = options.read(
        ["--input=events.jsonl", "--output=new/", "--models=good.yaml", "--kafka_config=reference.yaml", "--shards=128"]
    )
    assert settings.input is not None
    assert settings.shards == 128
    assert settings.models is not None
    assert options.read(["--input=*.jsonl"]).input == options.Files(
        (str(files / "events.jsonl"), str(files / "secret.jsonl"))
    )
    assert options.read(["--runner=FlinkRunner", "--checkpointing_interval=3"]).runner == "FlinkRunner"
    assert options.read(["--job_name=x", "--streaming"]).beam_arguments == ("--job_name=x", "--streaming")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(files: Path) -> None:
    """A file without permission is refused by its flag."""
    Path("events.jsonl").chmod(0)
    with pytest.raises(SettingsError, match=r"--input=events.jsonl: cannot be read: Permission denied"):
        options.read(["--input=events.jsonl"])


def command(*typed: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *typed],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )


def said_once(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a run that was refused."""
    assert done.returncode == 2, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("farcall: ")
    return lines[0]


def test_wrong_use_ends_with_status_2(files: Path) -> None:
    """The program itself ends with status 2, one line on stderr and nothing on stdout."""
    done = command(f"--models={files}/unknown-key.yaml")
    assert "models.answer.timeout" in said_once(done)
    assert done.stdout == ""


def test_kafka_settings_of_java(files: Path) -> None:
    """A consumer's setting that librdkafka does not know is refused with status 2, before a part of the stack is started."""
    done = command("--runner=FlinkRunner", f"--kafka_config={files}/java.yaml")
    assert re.search(r"librdkafka's names: .*key\.deserializer", said_once(done))
    assert done.stdout == ""


def test_an_unreachable_flink() -> None:
    """A --flink_master where nobody listens is refused with status 2 and its name."""
    where = ["--input=kafka://127.0.0.1:1/x", "--output=kafka://127.0.0.1:1"]
    done = command("--runner=FlinkRunner", "--flink_master=127.0.0.1:1", *where, timeout_s=10.0)
    assert "--flink_master=127.0.0.1:1" in said_once(done)


class _Overview(BaseHTTPRequestHandler):
    """Answers like the REST port of a Flink cluster, as far as its version goes."""

    def do_GET(self) -> None:
        body = json.dumps({"flink-version": "1.20.5"}).encode()
        self.send_response(200 if self.path == "/overview" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def flink_like() -> Iterator[str]:
    """HOST:PORT of something that says it is Flink."""
    with HTTPServer(("127.0.0.1", 0), _Overview) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_unreachable_kafka(files: Path) -> None:
    """A Kafka that does not answer is refused with status 2 and its address, in under ten seconds."""
    where = ["--input=kafka://127.0.0.1:1/x", "--output=kafka://127.0.0.1:1"]
    with flink_like() as master:
        done = command(
            "--runner=FlinkRunner", f"--flink_master={master}", f"--models={files}/good.yaml", *where, timeout_s=10.0
        )
    assert re.search(r"Kafka.*127\.0\.0\.1:1", said_once(done))


def test_an_unreachable_kafka_for_output(files: Path) -> None:
    """An output Kafka that does not answer is refused likewise, on a runner of files."""
    done = command(
        f"--input={files}/events.jsonl", "--output=kafka://127.0.0.1:1", f"--models={files}/good.yaml", timeout_s=15.0
    )
    assert re.search(r"Kafka.*127\.0\.0\.1:1", said_once(done))


def test_help_names_every_flag() -> None:
    """--help ends with status 0 and has a line for every flag, with its words."""
    done = command("--help")
    assert done.returncode == 0
    for action in options.parser()._actions:
        assert action.option_strings[-1] in done.stdout
        assert action.help
    assert done.stderr == ""


EVENTS = 60


class Running:
    """`python -m pipeline` over small chat events and a slow model, in a process of its own."""

    def __init__(self, folder: Path, double: ModelDouble, *typed: str) -> None:
        self._double = double
        self.out = folder / "out"
        lines = [
            {"id": f"e{number}", "channel": "chat", "customer_id": "c", "at": "2026-03-02T09:15:00Z", "text": "Hello?"}
            for number in range(EVENTS)
        ]
        (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        model = {"endpoints": [double.base_url], "model": "double", "limits": {"max_in_flight": 4}}
        (folder / "models.yaml").write_text(json.dumps({"models": {"answer": model}}))
        where = [f"--input={folder}/in.jsonl", f"--output={self.out}", f"--models={folder}/models.yaml"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *where, *typed],
            cwd=ROOT,
            stdout=(folder / "said").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._said = folder / "said"

    @property
    def said(self) -> str:
        """What was printed so far."""
        return self._said.read_text()

    def replies(self) -> list[dict[str, Any]]:
        """What was written so far."""
        return doubles.read_lines(self.out / "support.chat.replies.jsonl")

    def children(self) -> set[int]:
        """The processes that this one started."""
        return {pid for pid in processes() if status(pid).get("PPid") == str(self.process.pid)}

    def end(self) -> tuple[int, str]:
        """The exit status and all that was printed."""
        return self.process.wait(timeout=40), self.said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def wait_for(seen: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Polls until `seen`; a bound, not a measurement."""
    until_s = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < until_s, "it never came"
        time.sleep(0.05)


def processes() -> list[int]:
    """The ids of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def status(pid: int) -> dict[str, str]:
    """What the kernel says of a process; nothing where it is gone, or ended and is not yet waited for."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {} if facts["State"].startswith(("Z", "X")) else facts


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    return bool(status(pid))


def rows(said: str) -> dict[str, int]:
    """The rows of the printed table that are one number."""
    found = re.findall(r"^│ (.*?) *│ *(\d+) │$", said, re.MULTILINE)
    return {re.sub(r"\s+", " ", name): int(number) for name, number in found}


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        pytest.param((), signal.SIGINT, id="direct"),
        pytest.param(("--runner=PrismRunner",), signal.SIGTERM, id="prism", marks=pytest.mark.prism),
    ],
)
def test_one_signal_drains(tmp_path: Path, typed: Sequence[str], number: signal.Signals) -> None:
    """A first SIGINT or SIGTERM finishes what is under way: status 0, and the table accounts for every event read."""
    with ModelDouble(latency_ms=100.0) as double, Running(tmp_path, double, *typed) as running:
        double.wait_until(lambda stats: stats.answered >= 1, timeout_s=30.0)
        # Until the signal was understood the model is away, so that the run cannot end before.
        double.set_down(True)
        running.process.send_signal(number)
        wait_for(lambda: "draining" in running.said)
        assert running.process.poll() is None
        double.set_down(False)
        code, said = running.end()
    assert code == 0, said
    table = rows(said)
    replies = [reply["id"] for reply in running.replies()]
    assert len(replies) == len(set(replies)) == table["events in"] == table["out support.chat.replies"], said
    assert table["repeats, not answered again"] == 0


@pytest.mark.parametrize(
    "typed",
    [pytest.param((), id="direct"), pytest.param(("--runner=PrismRunner",), id="prism", marks=pytest.mark.prism)],
)
def test_two_signals_end(tmp_path: Path, typed: Sequence[str]) -> None:
    """A second SIGINT ends with status 130 and leaves no process behind, though the calls under way would take for ever."""
    hangs = Fault("hang", id="e1*")
    with ModelDouble(faults=(hangs,)) as double, Running(tmp_path, double, *typed) as running:
        double.wait_until(lambda stats: stats.faults >= 4, timeout_s=30.0)
        children = running.children()
        assert bool(children) == bool(typed)
        running.process.send_signal(signal.SIGINT)
        wait_for(lambda: "draining" in running.said)
        assert running.process.poll() is None
        running.process.send_signal(signal.SIGINT)
        code, said = running.end()
        assert code == 130, said
        assert "farcall: ended" in said
        wait_for(lambda: not any(is_alive(child) for child in children))
    assert len(running.replies()) < EVENTS
