"""Runs on Flink: on the local stack with the samples fed through Kafka, or on a cluster that someone already has."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import requests
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState
from confluent_kafka import Consumer, KafkaException, TopicPartition
from rich.console import Console

from pipeline import feed, runs
from pipeline.build import build
from pipeline.case import Case
from pipeline.outputs import ends, open_consumer
from pipeline.registry import case_named
from pipeline.settings import Files, Kafka, KafkaConfig, Settings
from pipeline.signals import Stop, ignored_by_children
from pipeline.summary import events_read, unaccounted
from runners import flink
from runners.flink import FlinkEndpoints
from runners.flink_rest import FlinkRest
from runners.local import topics
from runners.local.stack import Stack
from runners.runner import value_of
from transforms import files, kafka
from transforms.errors import SettingsError
from transforms.formats.codec import Encode
from transforms.kafka_read import ReadKafka, check_config
from transforms.metrics import RECORDS_IN, REPEATS, counter
from transforms.remote.settings import ModelSettings

_PARTITIONS = 4
_POLL_S = 0.2
_QUIET_S = 60.0
_RUNNING_WITHIN_S = 120.0
# Flink's REST answers from what it looked up up to three seconds ago (web.refresh-interval), states and savepoints each on their own.
_STATED_WITHIN_S = 8.0
# Workers commit the last offsets when they hear of the last checkpoint, which the end of the job does not wait for.
_COMMITTED_WITHIN_S = 8.0
_ENDED_BY_SOMEBODY = frozenset({"CANCELED", "CANCELLING"})


def run(settings: Settings, console: Console, stop: Stop) -> int:
    """Runs on Flink; returns the exit status. Raises SettingsError where it cannot be started."""
    master = flink.master(settings.beam_arguments)
    check_config(settings.kafka_config.consumer)
    if settings.engine == "beam":
        settings = _with_kafka(settings)
        return _Job(_beam_engine(settings), settings, console, stop).run()
    if master is None:
        return _run_local(settings, console, stop)
    FlinkRest(master).check()
    settings = _with_kafka(settings)
    stack = Stack.for_cluster(master, flink.has_jars(settings.beam_arguments))
    console.print(f"engine  Flink {FlinkRest(master).version()} at {master}; starting what submits to it …")
    try:
        stack.up(report=_indented(console))
        return _Job(_pinned_engine(stack, master), settings, console, stop).run()
    finally:
        stack.down()


@dataclass(frozen=True)
class _Engine:
    """What a job is submitted to. `options` makes Beam's flags of those given; Beam's own job server is a child of this process."""

    options: Callable[[Sequence[str]], list[str]]
    rest: FlinkRest | None
    has_child: bool = False


def _pinned_engine(stack: Stack, master: str) -> _Engine:
    at = stack.endpoints
    endpoints = FlinkEndpoints(job_server=at.job_server, worker_pool=at.workers)
    return _Engine(lambda arguments: flink.pinned_options(arguments, endpoints), FlinkRest(master))


def _beam_engine(settings: Settings) -> _Engine:
    master = flink.master(settings.beam_arguments)
    rest = None if master in {None, "[local]"} else FlinkRest(str(master))
    if rest is not None:
        rest.check()
    return _Engine(flink.beam_options, rest, has_child=True)


def _with_kafka(settings: Settings) -> Settings:
    """Checks that both ends are Kafka, reachable, with the topics that are read."""
    if settings.input is None or settings.output is None:
        raise SettingsError("--flink_master needs --input=… and --output=…; without all three the local stack is used.")
    for flag, end in (("--input", settings.input), ("--output", settings.output), ("--feedback", settings.feedback)):
        if isinstance(end, Kafka):
            consumer = open_consumer(end.servers, settings.kafka_config.producer, "farcall-check")
            try:
                for topic in end.topics:
                    ends(consumer, end.servers, topic)
                if not end.topics:
                    _reach(consumer, flag, end.servers)
            finally:
                consumer.close()
    return settings


def _reach(consumer: Consumer, flag: str, servers: str) -> None:
    try:
        consumer.list_topics(timeout=5.0)
    except KafkaException:
        raise SettingsError(
            f"{flag}=kafka://{servers}: no Kafka answers there; is it running, and is the address right?"
        ) from None


def _run_local(settings: Settings, console: Console, stop: Stop) -> int:
    """Brings up what is missing, creates the topics, submits, feeds, watches, drains."""
    case = case_named(settings.case)
    stack = Stack.default()
    wanted = ["kafka", "jobmanager", "taskmanager", "jobserver", "workers"]
    if settings.models is None and case.trained_model is None:
        wanted.append("llm")
    console.print(f"case    {case.name} on {settings.runner}, local stack in {stack.place.home}")
    stack.up(wanted, report=_indented(console))
    at = stack.endpoints
    fed = settings.input is None
    settings = replace(
        settings,
        input=settings.input or Kafka(at.kafka, (case.input_topic,)),
        output=settings.output or Kafka(at.kafka),
        models=settings.models or (None if case.trained_model else {case.role: runs.embedded_model(case, at.llm)}),
        embedded=settings.models is None,
        samples=fed,
        feedback=Kafka(at.kafka, (case.feedback.topic,)) if fed and case.feedback else settings.feedback,
    )
    if isinstance(settings.output, Kafka) and settings.output.servers == at.kafka:
        names = [case.input_topic, *case.all_topics, *([case.feedback.topic] if case.feedback else [])]
        topics.create_topics(at.kafka, [settings.topics.get(name, name) for name in names], _PARTITIONS)
    _with_kafka(settings)
    engine = _pinned_engine(stack, at.flink)
    return _Job(engine, settings, console, stop, feed_samples=fed).run()


def _indented(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(f"        {line}")


class _Job:
    """One job on Flink, from its submission to its table."""

    def __init__(
        self, engine: _Engine, settings: Settings, console: Console, stop: Stop, *, feed_samples: bool = False
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._case: Case = runs.case_of(settings)
        self._console = console
        self._stop = stop
        self._feeds = feed_samples
        # A group of its own: a run on the local stack starts where the topic ends, whatever an earlier run left unread.
        self._name = f"farcall-{self._case.name}-{uuid.uuid4().hex[:8]}"
        self._drain_asked = False
        self._job: str | None = None
        self._saved: str | None = None

    def run(self) -> int:
        settings, console = self._settings, self._console
        consumer_config = dict(settings.kafka_config.consumer)
        if self._feeds:
            consumer_config["group.id"] = self._name
            assert isinstance(settings.input, Kafka)  # noqa: S101 - only the local run feeds
            for source in (settings.input, settings.feedback):
                if isinstance(source, Kafka):
                    start_at_end(source, settings.kafka_config, self._name)
        followed = runs.watch(settings, self._case, console)
        began_at = self._positions(consumer_config)
        with ExitStack() as stack:
            model = self._model(stack)
            began_s = time.monotonic()
            pipeline = beam.Pipeline(options=self._options())
            read = self._reader(settings.input, consumer_config)
            steps = runs.steps_of(settings, self._case, model, self._processes())
            feedback = runs.feedback_of(settings, self._case)
            read_feedback = None if feedback is None else self._reader(feedback, consumer_config)
            build(pipeline, self._case, read, runs.writer(settings), steps, read_feedback)
            with runs.Progress(followed, console) as progress:
                # From here on a first Ctrl-C is remembered until the job runs, which is then drained.
                self._stop.on_drain(lambda: None)
                # Beam's own job server is a child of ours, which a Ctrl-C at the keyboard would end.
                with ignored_by_children() if self._engine.has_child else nullcontext():
                    result = pipeline.run()
                try:
                    self._follow(result, began_s, consumer_config, progress)
                except BaseException:  # whatever stops us from following the job must not leave it behind unseen
                    self._end(result)
                    raise
                self._saved = self._savepoint(result)
                if self._saved is None:
                    result.wait_until_finish()
            return self._conclude(result, progress, lambda: self._read_since(began_at, consumer_config))

    def _processes(self) -> int:
        """In how many worker processes the job runs at most: each TaskManager that it may use has so many as Beam is told."""
        arguments = self._settings.beam_arguments
        task_managers = 1 if self._engine.rest is None else self._engine.rest.task_managers()
        used = min(task_managers, flink.parallelism(arguments) or task_managers)
        return max(1, used) * flink.worker_processes(arguments)

    def _positions(self, config: Mapping[str, str]) -> dict[tuple[str, int], int]:
        """Where the job's consumer group stands in each partition; nothing for files."""
        source = self._settings.input
        return positions(source, self._settings.kafka_config, config) if isinstance(source, Kafka) else {}

    def _read_since(self, began_at: Mapping[tuple[str, int], int], config: Mapping[str, str]) -> int:
        """How many records the job's consumer group went on by."""
        return sum(self._positions(config).values()) - sum(began_at.values())

    def _model(self, stack: ExitStack) -> ModelSettings:
        if self._settings.models is not None:
            return self._settings.models[self._case.role]
        return stack.enter_context(runs.model_of(self._settings, self._case, self._console))

    def _options(self) -> PipelineOptions:
        given = list(self._settings.beam_arguments)
        if isinstance(self._settings.input, Files):
            given = flink.bounded_options(given)
        arguments = self._engine.options(given)
        if not any(argument.startswith("--job_name") for argument in arguments):
            arguments.append(f"--job_name={self._name}")
        else:
            self._name = PipelineOptions(arguments).get_all_options()["job_name"]
        return PipelineOptions(arguments)

    def _reader(self, source: Files | Kafka | None, config: Mapping[str, str]) -> beam.PTransform:
        if isinstance(source, Kafka):
            readers = flink.parallelism(self._settings.beam_arguments)
            return ReadKafka(source.servers, source.topics, config, shards=self._settings.shards, readers=readers)
        assert isinstance(source, Files)  # noqa: S101 - the two there are
        return files.ReadLines(source.paths)

    def _follow(self, result: Any, began_s: float, consumer_config: Mapping[str, str], progress: runs.Progress) -> None:
        """Until the job has ended, or has been told to."""
        self._wait_until_running(result, began_s)
        self._stop.on_drain(self._drain)
        if self._feeds:
            assert isinstance(self._settings.input, Kafka)  # noqa: S101 - only the local run feeds
            topic, servers = self._case.input_topic, self._settings.input.servers
            fed = feed.feed(self._case.samples, servers, topic, self._encode(topic), self._case.key_field)
            self._feed_feedback(servers)
            self._console.print(
                f"events  {fed.records} samples fed into {self._case.input_topic} at {self._settings.input.servers}"
            )
            if not self._settings.follow:
                for source in (self._settings.input, self._settings.feedback):
                    if isinstance(source, Kafka):
                        self._wait_until_read(result, source, consumer_config)
                self._wait_until_seen(result, progress, fed.distinct)
                self._drain()
        if self._settings.follow or (isinstance(self._settings.input, Kafka) and not self._feeds):
            self._console.print("running until Ctrl-C, which drains; a second one ends")
        while not PipelineState.is_terminal(result.state):
            time.sleep(_POLL_S)

    def _feed_feedback(self, servers: str) -> None:
        found = self._case.feedback
        if found is not None and found.samples is not None:
            fed = feed.feed(found.samples, servers, found.topic, self._encode(found.topic), "id")
            self._console.print(f"labels  {fed.records} samples fed into {found.topic}")

    def _encode(self, topic: str) -> Encode:
        """What puts samples into the format of the topic that they are fed to."""
        formats = self._settings.formats
        return Encode({topic: formats[topic]} if topic in formats else {})

    def _wait_until_running(self, result: Any, began_s: float) -> None:
        rest = self._engine.rest
        while rest is not None and time.monotonic() - began_s < _RUNNING_WITHIN_S:
            if PipelineState.is_terminal(result.state):
                return
            self._job = self._job or rest.job_named(self._name)
            if self._job is not None and rest.is_running(self._job):
                self._console.print(
                    f"job     {self._name} runs as Flink's {self._job}, {time.monotonic() - began_s:.1f} s after submission"
                )
                return
            time.sleep(_POLL_S)

    def _wait_until_read(self, result: Any, source: Kafka, config: Mapping[str, str]) -> None:
        """Until the job has committed the end of what was fed: a drain stops reading at once."""
        consumer = _consumer(source, self._settings.kafka_config, config.get("group.id", kafka.DEFAULT_GROUP))
        try:
            wanted = [p for topic in source.topics for p in ends(consumer, source.servers, topic)]
            while not self._stop.draining and not PipelineState.is_terminal(result.state):
                done = consumer.committed([TopicPartition(p.topic, p.partition) for p in wanted], timeout=8.0)
                if all(found.offset >= end.offset for found, end in zip(done, wanted, strict=True)):
                    return
                time.sleep(_POLL_S)
        finally:
            consumer.close()

    def _wait_until_seen(self, result: Any, progress: runs.Progress, outcomes: int) -> None:
        """Until the outcomes of what was fed are there, or none has come for a while; the drain waits for the rest."""
        seen, since_s = -1, 0.0
        while not self._stop.draining and not PipelineState.is_terminal(result.state):
            now = progress.summary.outcomes
            if now != seen:
                seen, since_s = now, time.monotonic()
            if now >= outcomes or time.monotonic() - since_s > _QUIET_S:
                return
            time.sleep(_POLL_S)

    def _drain(self) -> None:
        if self._drain_asked or self._job is None or self._engine.rest is None:
            return
        self._console.print("draining: no further events are read, what is under way is finished; Ctrl-C ends at once")
        try:
            self._engine.rest.drain(self._job)
        except requests.RequestException as error:
            reason = error.response.text[:300] if error.response is not None else str(error)
            self._console.print(f"Flink does not drain the job, which goes on: {reason}")
        else:
            self._drain_asked = True

    def _end(self, result: Any) -> None:
        if self._job is not None and self._engine.rest is not None:
            try:
                self._engine.rest.cancel(self._job)
            except requests.RequestException as error:
                self._console.print(f"Flink's job {self._job} could not be cancelled: {error}.")
        else:
            result.cancel()

    def _conclude(self, result: Any, progress: runs.Progress, committed: Callable[[], int]) -> int:
        savepoint = self._saved
        if result.state != PipelineState.DONE and savepoint is None:
            self._console.print(f"The job ended as {result.state}.")
            return 1
        output = self._settings.output
        where = (
            f"Kafka at {output.servers}"
            if isinstance(output, Kafka)
            else f"{runs.output_folder(self._settings)}/<topic>.jsonl"
        )
        resumed = value_of(self._settings.beam_arguments, "--savepoint_path") is not None
        done = result.state == PipelineState.DONE
        repeats = (counter(result, REPEATS) or 0) if done else 0
        records = (counter(result, RECORDS_IN) or 0) if done or resumed else 0
        # A job that goes on from a savepoint reads from the offsets in it, which the job before may not have committed when it ended.
        if isinstance(self._settings.input, Kafka) and not resumed:
            end_s = time.monotonic() + (_COMMITTED_WITHIN_S if done else 0.0)
            accounted = progress.summary.outcomes + repeats
            records = events_read(records, committed, accounted, lambda: _paused_before(end_s))
        if self._job is not None and self._engine.rest is not None and self._engine.rest.was_restarted(self._job):
            self._console.print("The job was restarted on the way; repeats are counted since the last restart.")
        if done and unaccounted(progress.summary, records, repeats) <= 0:
            savepoint = None  # somebody else's drain, or a stop with nothing under way
        return runs.conclude(self._console, progress, records, repeats, where, resumed=resumed, savepoint=savepoint)

    def _savepoint(self, result: Any) -> str | None:
        """Where the job's state lies, if somebody ended it with a savepoint; a drain of ours leaves nothing in it.

        A job that Flink's own stop ended is done, whether it was drained or has events under way in its savepoint.
        Beam's job server calls a job that was cancelled from elsewhere a failed one; Flink tells the two apart.
        """
        rest, job = self._engine.rest, self._job
        if self._drain_asked or job is None or rest is None:
            return None
        if result.state == PipelineState.DONE:
            return rest.savepoint(job)
        end_s = time.monotonic() + _STATED_WITHIN_S
        while True:
            state = rest.state(job)
            saved = rest.savepoint(job) if state in _ENDED_BY_SOMEBODY else None
            if saved is not None or state == "FAILED" or time.monotonic() > end_s:
                return saved
            time.sleep(_POLL_S)


def _paused_before(end_s: float) -> bool:
    """Pauses, and returns whether it is still before `end_s` of the monotonic clock."""
    time.sleep(_POLL_S)
    return time.monotonic() < end_s


def positions(source: Kafka, settings: KafkaConfig, config: Mapping[str, str]) -> dict[tuple[str, int], int]:
    """The next offset of the consumer group in each partition. Raises SettingsError where Kafka does not answer."""
    consumer = _consumer(source, settings, config.get("group.id", kafka.DEFAULT_GROUP))
    try:
        found = {}
        for end in (p for topic in source.topics for p in ends(consumer, source.servers, topic)):
            at = TopicPartition(end.topic, end.partition)
            committed = consumer.committed([at], timeout=8.0)[0].offset
            low = consumer.get_watermark_offsets(at, timeout=8.0)[0]
            first = end.offset if config.get("auto.offset.reset") == "latest" else low
            found[end.topic, end.partition] = committed if committed >= 0 else first
        return found
    finally:
        consumer.close()


def start_at_end(source: Kafka, settings: KafkaConfig, group: str) -> None:
    """Makes the consumer group start at the present end of the topics. Raises SettingsError where Kafka does not answer."""
    consumer = _consumer(source, settings, group)
    try:
        offsets = [p for topic in source.topics for p in ends(consumer, source.servers, topic)]
        consumer.commit(offsets=offsets, asynchronous=False)
    finally:
        consumer.close()


def _consumer(source: Kafka, settings: KafkaConfig, group: str) -> Consumer:
    return open_consumer(source.servers, settings.producer, group)
