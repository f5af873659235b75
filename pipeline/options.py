"""Every flag of ``python -m pipeline``, read into `Settings`. What is wrong is said in one sentence, before anything starts."""

from __future__ import annotations

import argparse
import difflib
import glob
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from apache_beam.options.pipeline_options import PipelineOptions

import runners
from pipeline.case import Case
from pipeline.registry import CASES, case_named
from pipeline.settings import Files, Kafka, KafkaConfig, Settings
from runners.runner import Runner, value_of
from transforms.ask.shards import MAX_PARALLELISM
from transforms.ask.step import DEFAULT_MAX_PENDING, DEFAULT_SHARDS, MODES
from transforms.enrich.database import DatabaseSettings
from transforms.enrich.lookups import LookupSettings
from transforms.errors import SettingsError
from transforms.formats.settings import check_topics, read_formats
from transforms.remote.models_file import read_models
from transforms.remote.prometheus import PORTS, parse_address
from transforms.remote.settings import ModelSettings
from transforms.repeats import DEFAULT_MEMORY_S

ENGINES = ("pinned", "beam")
ORDERS = ("none", "key")
ASK_MODES = ("auto", *MODES)

_DESCRIPTION = """\
Asks a remote model about every event of a stream, without holding it up.

Without flags: the sample events of the support case, a small real model on this machine, Beam's DirectRunner, replies in out/.
"""

_EPILOG = """\
examples:
  python -m pipeline
  python -m pipeline --runner=FlinkRunner
  python -m pipeline --input=events.jsonl --output=replies/ --models=models.yaml
  python -m pipeline --runner=FlinkRunner --flink_master=flink:8081 \\
      --input=kafka://broker:9092/support.events --output=kafka://broker:9092 --models=models.yaml

Every flag of Apache Beam is passed on to it untouched. A first Ctrl-C drains: what is under way is finished. A second one ends.
"""

_SECRET_KEY = re.compile(r"password|secret|token|jaas", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}")


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is ours to print."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message[0].upper()}{message[1:]}. See --help.")


def parser() -> argparse.ArgumentParser:
    """The parser of our own flags."""
    own = _Parser(
        prog="python -m pipeline",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = own.add_argument
    add(
        "--case",
        default="support",
        metavar="NAME",
        help=f"what job to run: {', '.join(CASES)}, or MODULE:NAME for one of your own (default: support)",
    )
    add(
        "--runner",
        default="DirectRunner",
        metavar="RUNNER",
        help=f"where: {', '.join(runners.NAMES)} (default: DirectRunner)",
    )
    add(
        "--input",
        metavar="WHERE",
        help="a file of JSON Lines, or kafka://HOST:PORT[,HOST:PORT]/TOPIC[,TOPIC] (default: samples)",
    )
    add(
        "--output",
        metavar="WHERE",
        help="a folder, or kafka://HOST:PORT[,HOST:PORT] (default: out/, one file per topic)",
    )
    add(
        "--feedback",
        metavar="WHERE",
        help="what is known later of outcomes: a file, or kafka://HOST:PORT[,HOST:PORT]/TOPIC (for the samples: their own)",
    )
    add(
        "--kafka_config",
        metavar="FILE",
        help="YAML: consumer and producer settings by librdkafka's names, under common, consumer, producer",
    )
    add("--topics", metavar="FILE", help="YAML: output topics renamed, 'name: new name'")
    add(
        "--formats",
        metavar="FILE",
        help="YAML: topics that are Avro or Protobuf, and the schema registry (default: JSON)",
    )
    add(
        "--orders",
        metavar="URL",
        help="the database of orders: sqlite:///PATH or postgresql://USER:${env:NAME}@HOST/DB (for the samples: their own)",
    )
    add(
        "--orders_on_failure",
        default="go-on",
        choices=("go-on", "dead-letter"),
        help="what becomes of an event whose orders cannot be looked up (default: go-on, and flag it)",
    )
    add("--models", metavar="FILE", help="YAML: which model servers (default: the embedded model is started)")
    add("--follow", action="store_true", help="keep running after the samples, for events you produce yourself")
    add(
        "--engine",
        default="pinned",
        choices=ENGINES,
        help="Flink's Java side: the pair that is tested, or Beam's own job server",
    )
    add(
        "--repeat_memory_s",
        type=float,
        default=DEFAULT_MEMORY_S,
        metavar="S",
        help=f"seconds for which a repeated id is not answered again; 0: never (default: {DEFAULT_MEMORY_S:g})",
    )
    add(
        "--max_pending",
        type=int,
        default=DEFAULT_MAX_PENDING,
        metavar="N",
        help=f"events under way in one worker process, at which no more are taken (default: {DEFAULT_MAX_PENDING})",
    )
    add(
        "--shards",
        type=int,
        default=DEFAULT_SHARDS,
        metavar="N",
        help=f"shards of step and Kafka source, fixed for a job's life, at least twice its parallelism (default: {DEFAULT_SHARDS})",
    )
    add(
        "--order",
        default="none",
        choices=ORDERS,
        help="none: each event leaves as soon as it can; key: those of one Kafka key leave in the order they were taken",
    )
    add(
        "--ask_mode",
        default="auto",
        choices=ASK_MODES,
        help="timers: the stream never waits for a call; bundles: each bundle waits for its calls, for runners without timers",
    )
    add(
        "--metrics_port",
        metavar="[HOST:]PORT",
        help=f"each worker process shows its metrics to Prometheus on the first free of {PORTS} ports (default: none does)",
    )
    add(
        "--log_level",
        default="warning",
        choices=("debug", "info", "warning", "error"),
        help="of the program's log (default: warning)",
    )
    return own


def read(arguments: Sequence[str]) -> Settings:
    """The settings that `arguments` say. Raises SettingsError for the first thing that is wrong; SystemExit(0) after ``--help``."""
    own, beam_arguments = parser().parse_known_args(list(arguments))
    case_named(own.case)
    runner = runners.named(own.runner)
    check_beam_arguments(beam_arguments, own.runner)
    settings = Settings(
        case=own.case,
        runner=own.runner,
        input=_input(own.input),
        output=_output(own.output),
        feedback=_input(own.feedback, "--feedback"),
        kafka_config=read_kafka_config(own.kafka_config),
        topics=_topics(own.topics, own.case),
        models=_models(own.models),
        models_file=None if own.models is None else Path(own.models),
        follow=own.follow,
        engine=own.engine,
        repeat_memory_s=_at_least("--repeat_memory_s", own.repeat_memory_s, 0),
        shards=_shards(own.shards),
        max_pending=int(_at_least("--max_pending", own.max_pending, 1)),
        order=own.order,
        ask_mode=runner.ask_mode if own.ask_mode == "auto" else own.ask_mode,
        beam_arguments=tuple(beam_arguments),
        log_level=own.log_level,
        formats={} if own.formats is None else read_formats(own.formats),
        orders=_orders(own.orders),
        lookups=LookupSettings(on_failure=own.orders_on_failure),
        metrics_port=_metrics_port(own.metrics_port),
    )
    _check_together(settings, runner)
    if own.formats is not None:
        _check_formats(settings, runner, own.formats)
    return settings


def _check_together(settings: Settings, runner: Runner) -> None:
    """Refuses flags that contradict each other or the runner."""
    case = case_named(settings.case)
    role = case.role
    if settings.models is None and case.embedded_model is None:
        raise SettingsError(f"--case={settings.case} has no embedded model; name its model server with --models=FILE.")
    _check_feedback(settings, case, runner)
    if settings.models is not None and role not in settings.models:
        raise SettingsError(f"{settings.models_file}: models.{role} is missing; the case {settings.case} needs it.")
    if isinstance(settings.input, Kafka) and not runner.reads_kafka:
        raise SettingsError(
            f"--input=kafka://… does not work on {settings.runner}, which takes files only; use --runner=FlinkRunner."
        )
    if settings.models is None and settings.runner == "DataflowRunner":
        raise SettingsError(
            "--runner=DataflowRunner needs --models=FILE; the embedded model on this machine is out of its reach."
        )
    if settings.follow and not runner.reads_kafka:
        raise SettingsError(
            f"--follow needs input without an end, and {settings.runner} takes files; use --runner=FlinkRunner."
        )
    if settings.follow and isinstance(settings.input, Files):
        raise SettingsError("--follow contradicts --input=FILE, which has an end; give kafka://… or leave --input out.")
    if settings.topics and settings.output is None and runner.reads_kafka:
        raise SettingsError("--topics contradicts the local run without --output, which watches the case's own topics.")
    if settings.order == "key" and settings.repeat_memory_s > 0:
        raise SettingsError(
            "--order=key needs --repeat_memory_s=0; repeats are looked for by id, and there events of one key could pass each other."
        )
    if settings.order == "key" and settings.ask_mode == "bundles":
        raise SettingsError(f"--order=key needs --ask_mode=timers, which is not what {settings.runner} runs with here.")
    runner.check(settings.beam_arguments, settings.engine)
    _check_shards(settings)


def _check_shards(settings: Settings) -> None:
    """Refuses a parallelism at which some subtasks would have no shard."""
    parallelism = value_of(settings.beam_arguments, "--parallelism") or ""
    if parallelism.isdigit() and settings.shards < int(parallelism):
        raise SettingsError(
            f"--shards={settings.shards} is less than --parallelism={parallelism}, so that some subtasks would do nothing; "
            f"start the job with --shards={min(MAX_PARALLELISM, 2 * int(parallelism))}, which it keeps for life."
        )


def _check_feedback(settings: Settings, case: Case, runner: Runner) -> None:
    """Refuses feedback that the case does not know, or that cannot be read beside the input."""
    if settings.feedback is None:
        return
    if case.feedback is None:
        raise SettingsError(f"--feedback: the case {settings.case} knows no feedback.")
    if isinstance(settings.feedback, Kafka) and not runner.reads_kafka:
        raise SettingsError(f"--feedback=kafka://… does not work on {settings.runner}, which takes files only.")
    if settings.input is None and runner.reads_kafka:
        raise SettingsError("--feedback needs --input=…; the local run without it feeds the feedback of its samples.")
    if isinstance(settings.feedback, Kafka) != isinstance(settings.input, Kafka):
        # Of a file and a topic the file would end, and the topic not.
        raise SettingsError("--feedback and --input must both be files, or both kafka://….")


def _check_formats(settings: Settings, runner: Runner, path: str) -> None:
    """Refuses formats of topics that the run does not read from Kafka or write to it."""
    case = case_named(settings.case)
    dead = settings.topics.get(case.dead_letter_topic, case.dead_letter_topic)
    if dead in settings.formats:
        raise SettingsError(f"--formats={path}: topics.{dead}: dead letters stay as they came in; leave the topic out.")
    if not topics_read(settings, runner) and not topics_written(settings, runner):
        raise SettingsError(
            f"--formats={path}: formats are those of Kafka's topics, and this run reads and writes files."
        )
    check_topics(settings.formats, f"--formats={path}", topics_read(settings, runner), topics_written(settings, runner))


def topics_read(settings: Settings, runner: Runner) -> tuple[str, ...]:
    """The topics of Kafka that a run reads, feedback's too; the case's own where the local stack is fed with samples."""
    if isinstance(settings.input, Kafka):
        return (*settings.input.topics, *(settings.feedback.topics if isinstance(settings.feedback, Kafka) else ()))
    if settings.input is not None or not runner.reads_kafka:
        return ()
    case = case_named(settings.case)
    return (case.input_topic, *([case.feedback.topic] if case.feedback else []))


def topics_written(settings: Settings, runner: Runner) -> tuple[str, ...]:
    """The topics of Kafka that a run writes, by their new names, dead letters aside; with samples also those they are fed to."""
    case = case_named(settings.case)
    to_kafka = isinstance(settings.output, Kafka) or (settings.output is None and runner.reads_kafka)
    names = tuple(settings.topics.get(topic, topic) for topic in case.output_topics) if to_kafka else ()
    return names if isinstance(settings.input, Kafka | Files) else (*names, *topics_read(settings, runner))


def check_beam_arguments(arguments: Sequence[str], runner: str) -> None:
    """Raises SettingsError for a flag that neither this program, Beam nor the runner knows, naming the nearest that is known.

    Beam itself only warns of such a flag and goes on without it.
    """
    beam = _Parser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        if options.__module__.startswith("apache_beam.options"):
            options._add_argparse_args(_Tolerant(beam))  # noqa: SLF001 - Beam has no public way to list its flags
    for name in runners.java_flags(runner):
        if name not in beam._option_string_actions:  # noqa: SLF001
            beam.add_argument(name, nargs="?")
    _, unknown = beam.parse_known_args(list(arguments))
    if not unknown:
        return
    name = unknown[0].split("=")[0]
    known = [*parser()._option_string_actions, *beam._option_string_actions]  # noqa: SLF001
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else " See --help."
    raise SettingsError(f"{unknown[0]}: there is no such flag.{hint}")


class _Tolerant:
    """Beam's option classes share some flags; the first to add one wins."""

    def __init__(self, target: argparse.ArgumentParser) -> None:
        self._target = target

    def add_argument(self, *names: str, **options: Any) -> None:
        fresh = [name for name in names if name not in self._target._option_string_actions]  # noqa: SLF001
        if fresh:
            options["required"] = False
            self._target.add_argument(*fresh, **options)

    def add_value_provider_argument(self, *names: str, **options: Any) -> None:
        self.add_argument(*names, **options)

    def add_mutually_exclusive_group(self, **_options: Any) -> _Tolerant:
        return self


def _input(text: str | None, flag: str = "--input") -> Files | Kafka | None:
    if text is None:
        return None
    if "://" in text:
        kafka = _kafka(flag, text)
        if isinstance(kafka, Kafka) and not kafka.topics:
            raise SettingsError(f"{flag}={text}: names no topic; write kafka://HOST:PORT/TOPIC.")
        return kafka
    paths = sorted(glob.glob(text)) if glob.has_magic(text) else [text]
    if not paths:
        raise SettingsError(f"{flag}={text}: no file matches.")
    for path in paths:
        _check_readable(flag, path)
    return Files(tuple(os.path.abspath(path) for path in paths))


def _output(text: str | None) -> Files | Kafka | None:
    if text is None:
        return None
    if not text:
        raise SettingsError("--output=: names no folder.")
    if "://" in text:
        kafka = _kafka("--output", text)
        if isinstance(kafka, Kafka) and kafka.topics:
            raise SettingsError(
                f"--output={text}: names a topic, but the case names them; rename them with --topics=FILE."
            )
        return kafka
    if os.path.exists(text) and not os.path.isdir(text):
        raise SettingsError(f"--output={text}: is a file; give a folder.")
    return Files((os.path.abspath(text),))


def _kafka(flag: str, text: str) -> Files | Kafka:
    scheme, _, rest = text.partition("://")
    if scheme in {"gs", "s3", "hdfs"}:
        return Files((text,))
    if scheme != "kafka":
        raise SettingsError(f"{flag}={text}: the protocol {scheme}:// is not known; use kafka:// or a path.")
    servers, _, topics = rest.partition("/")
    for server in servers.split(","):
        host, colon, port = server.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) <= 65535:
            raise SettingsError(f"{flag}={text}: {server or 'nothing'} is not HOST:PORT.")
    names = tuple(name for name in topics.split(",") if name)
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name):
            raise SettingsError(
                f"{flag}={text}: {name} cannot be a topic; names have letters, digits, dots, dashes, underscores."
            )
    return Kafka(servers, names)


def _check_readable(flag: str, path: str) -> None:
    if os.path.isdir(path):
        raise SettingsError(f"{flag}={path}: is a folder; give a file.")
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise SettingsError(f"{flag}={path}: cannot be read: {error.strerror}.") from None


def _orders(url: str | None) -> DatabaseSettings | None:
    if url is None:
        return None
    try:
        return DatabaseSettings(url)
    except SettingsError as error:
        # The URL may hold a password, and is not repeated.
        raise SettingsError(f"--orders: {error}") from None


def _models(path: str | None) -> Mapping[str, ModelSettings] | None:
    if path == "":
        raise SettingsError("--models=: names no file.")
    return None if path is None else read_models(path)


def _yaml(flag: str, path: str) -> Mapping[str, Any]:
    _check_readable(flag, path)
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{flag}={path}: is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(data, dict):
        raise SettingsError(f"{flag}={path}: must be a mapping of names to values.")
    return data


def read_place(flag: str, text: str) -> Files | Kafka:
    """A path, which need not be there, or ``kafka://HOST:PORT/TOPIC``. Raises SettingsError for what is neither."""
    if "://" in text:
        return _kafka(flag, text)
    if not text or os.path.isdir(text):
        raise SettingsError(f"{flag}={text}: must name a file, or kafka://HOST:PORT/TOPIC.")
    if flag == "--from":
        _check_readable(flag, text)
    return Files((os.path.abspath(text),))


def read_kafka_config(path: str | None) -> KafkaConfig:
    """The settings of Kafka's clients in a file; none without one. Raises SettingsError for what is wrong in it."""
    if path is None:
        return KafkaConfig()
    data = _yaml("--kafka_config", path)
    sections = ("common", "consumer", "producer")
    for name in data:
        if name not in sections:
            raise SettingsError(f"--kafka_config={path}: {name} is not a section; there is {', '.join(sections)}.")
    common, consumer, producer = (_strings(path, name, data.get(name) or {}) for name in sections)
    return KafkaConfig(consumer={**common, **consumer}, producer={**common, **producer})


def _strings(path: str, section: str, values: Any) -> dict[str, str]:
    if not isinstance(values, dict):
        raise SettingsError(f"--kafka_config={path}: {section} must be a mapping of names to values.")
    result = {}
    for name, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if (
            _SECRET_KEY.search(str(name))
            and not _REFERENCE.search(text)
            and not str(name).endswith((".file", ".location"))
        ):
            raise SettingsError(
                f"--kafka_config={path}: {section}.{name} looks like a secret; write ${{env:NAME}} and set NAME on the workers."
            )
        result[str(name)] = text
    return result


def _topics(path: str | None, case: str) -> dict[str, str]:
    if path is None:
        return {}
    found = case_named(case)
    known = found.all_topics
    names = _yaml("--topics", path)
    for old, new in names.items():
        if old not in known:
            raise SettingsError(f"--topics={path}: {old} is no topic of the case {case}; there is {', '.join(known)}.")
        if not isinstance(new, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", new):
            raise SettingsError(f"--topics={path}: {new} cannot be a topic.")
    return {str(old): str(new) for old, new in names.items()}


def _at_least(flag: str, value: float, least: float) -> float:
    if not least <= value < math.inf:
        raise SettingsError(
            f"{flag}={value:g}: must be at least {least:g}{'' if value < least else ' and have an end'}."
        )
    return value


def _metrics_port(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        parse_address(text)
    except SettingsError as error:
        raise SettingsError(f"--metrics_port={text}: {error}") from None
    return text


def _shards(value: int) -> int:
    if not 1 <= value <= MAX_PARALLELISM:
        raise SettingsError(f"--shards={value}: must lie between 1 and {MAX_PARALLELISM}.")
    return value
