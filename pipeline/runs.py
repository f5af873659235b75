"""One run of a job, from its settings to its table: where it runs decides how it is started, fed, watched and drained."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState
from rich.console import Console

import runners
from pipeline import flink_runs
from pipeline.build import Steps, build
from pipeline.case import Case, TrainedModel
from pipeline.formatted import formatted
from pipeline.options import topics_written
from pipeline.outputs import FileWatch, KafkaWatch, NoWatch, Watch
from pipeline.registry import case_named
from pipeline.settings import Files, Kafka, Settings
from pipeline.signals import Stop, stop_on_signals
from pipeline.summary import Summary, print_table, unaccounted
from runners import dataflow, direct, flink, portable, prism
from runners.local import artifacts, llm, mlserver
from runners.local.part import StackError
from transforms import dead_letters, files, kafka
from transforms.ask.calls import make_client
from transforms.enrich.database import DatabaseSettings
from transforms.errors import SettingsError
from transforms.formats.codec import Decode
from transforms.formats.register import register_schemas
from transforms.metrics import RECORDS_IN, REPEATS, counter
from transforms.remote.batcher import BatchSettings
from transforms.remote.prometheus import WithPage
from transforms.remote.settings import Endpoint, ModelSettings

DEFAULT_OUTPUT = "out"
_PROGRESS_EVERY_S = 2.0
_LOOK_EVERY_S = 0.2
_READ_WITHIN_S = 10.0
# DirectRunner hands on what a bundle gives when the bundle has ended, so that it listens and waits in short turns.
_ON_DIRECT: Mapping[str, Any] = {"end_slice_s": 0.05, "listen_ms": 50}
_PRISM_RUNS = 3


def run(settings: Settings) -> int:
    """Runs the job that `settings` describe; returns the exit status. Raises SettingsError where it cannot be started."""
    console = Console(highlight=False, soft_wrap=True)
    written = topics_written(settings, runners.named(settings.runner))
    settings = replace(settings, formats=register_schemas(settings.formats, written))
    with stop_on_signals() as stop:
        if settings.runner == flink.RUNNER.name:
            return flink_runs.run(settings, console, stop)
        return _Bounded(settings, console, stop).run()


def steps_of(settings: Settings, case: Case, model: ModelSettings, processes: int = 1, **ask_options: Any) -> Steps:
    """The settings of the job's steps, for so many worker processes.

    Raises SettingsError where the quota of a model is too little for them.
    """
    to_kafka = isinstance(settings.output, Kafka)
    return Steps(
        model=model.divided(processes),
        dead_letter_record=dead_letters.to_kafka if to_kafka else dead_letters.to_json,
        repeat_memory_s=settings.repeat_memory_s,
        ask_options={
            "shards": settings.shards,
            "max_pending": settings.max_pending,
            "mode": settings.ask_mode,
            **ask_options,
        },
        topics=settings.topics,
        models={role: one.divided(processes) for role, one in (settings.models or {}).items()},
        orders=settings.orders or _sample_orders(settings, case),
        lookups=settings.lookups,
        keeps_order=settings.order == "key",
        make_caller=WithPage(make_client, settings.metrics_port) if settings.metrics_port else make_client,
    )


def case_of(settings: Settings) -> Case:
    """The case, in the formats of its topics, as the model that is configured answers it."""
    written = topics_written(settings, runners.named(settings.runner))
    case = case_named(settings.case)
    if settings.models is None or settings.embedded:
        case = case.embedded
    return formatted(case, settings.formats, settings.topics, written)


def _sample_orders(settings: Settings, case: Case) -> DatabaseSettings | None:
    """The orders that go with the samples, where those are what is read."""
    if case.make_orders is None or not reads_samples(settings, case):
        return None
    return case.make_orders(artifacts.cache_root() / "orders")


def feedback_of(settings: Settings, case: Case) -> Files | Kafka | None:
    """Where feedback is read: where it was said, else that of the samples where those are read; None for nowhere."""
    if settings.feedback is not None or case.feedback is None or case.feedback.samples is None:
        return settings.feedback
    return Files((str(case.feedback.samples),)) if reads_samples(settings, case) else None


def reads_samples(settings: Settings, case: Case) -> bool:
    """Whether the input is the sample events of the case, named or not."""
    return settings.samples or (isinstance(settings.input, Files) and settings.input.paths == (str(case.samples),))


def writer(settings: Settings) -> beam.PTransform:
    """Where outputs go."""
    if isinstance(settings.output, Kafka):
        return kafka.WriteKafka(settings.output.servers, settings.kafka_config.producer)
    return files.WriteLines(output_folder(settings))


def output_folder(settings: Settings) -> str:
    """The folder for outputs to files."""
    return settings.output.paths[0] if isinstance(settings.output, Files) else str(Path(DEFAULT_OUTPUT).resolve())


def watch(settings: Settings, case: Case, console: Console) -> Watch:
    """Follows the outputs; what an earlier run left in the same files is removed, and said."""
    topics = [settings.topics.get(topic, topic) for topic in case.output_topics]
    dead = settings.topics.get(case.dead_letter_topic, case.dead_letter_topic)
    feedback = case.feedback if feedback_of(settings, case) is not None else None
    beside = (*case.side_topics, *(feedback.written_topics if feedback else ()))
    side = [settings.topics.get(topic, topic) for topic in beside]
    escalations = (
        None if case.escalation_topic is None else settings.topics.get(case.escalation_topic, case.escalation_topic)
    )
    if isinstance(settings.output, Kafka):
        decode = Decode(settings.formats)
        config = settings.kafka_config.producer
        return KafkaWatch(settings.output.servers, topics, dead, config, side, escalations, decode)
    followed = FileWatch(output_folder(settings), topics, dead, side, escalations)
    removed = followed.clear()
    if removed:
        console.print(f"removed what an earlier run wrote: {len(removed)} files in {output_folder(settings)}")
    return followed


def embedded_model(case: Case, base_url: str) -> ModelSettings:
    """The settings of the embedded model at `base_url`. Raises SettingsError where the case has none."""
    own = case.embedded_model
    if own is None:
        raise SettingsError(f"The case {case.name} has no embedded model; name its model server with --models=FILE.")
    return ModelSettings(
        role=case.role,
        endpoints=(Endpoint(base_url),),
        model=own["model"],
        protocol=own["protocol"],
        timeout_s=own["timeout_s"],
        deadline_s=own["deadline_s"],
        max_in_flight=own["limits"]["max_in_flight"],
        params=own["params"],
        options=own.get("options", {}),
        batch=BatchSettings(**own["batch"]) if "batch" in own else None,
    )


@contextmanager
def model_of(settings: Settings, case: Case, console: Console) -> Iterator[ModelSettings]:
    """The model that answers: the one that is configured, or the embedded one, started for the block."""
    if settings.models is not None:
        model = settings.models[case.role]
        console.print(f"model   {model.model} at {', '.join(endpoint.url for endpoint in model.endpoints)}")
        yield model
        return
    if case.trained_model is not None:
        with serve_trained(case.trained_model, console) as base_url:
            yield embedded_model(case, base_url)
        return
    console.print("model   starting SmolLM2-135M-Instruct in llama.cpp's server …")
    began_s = time.monotonic()
    with llm.serve(report=console.print) as server:
        console.print(f"model   ready in {time.monotonic() - began_s:.1f} s, {server.base_url}")
        yield embedded_model(case, server.base_url)


@contextmanager
def serve_trained(model: TrainedModel, console: Console) -> Iterator[str]:
    """MLServer with the embedded model of a case, trained once, for the block; gives its base URL."""
    console.print(f"model   starting MLServer with {model.name}, trained on {model.data.name} …")
    began_s = time.monotonic()
    file = mlserver.trained(model.name, model.program, model.data, report=console.print)
    with mlserver.serve({model.name: file}) as server:
        console.print(f"model   ready in {time.monotonic() - began_s:.1f} s, {server.base_url}")
        yield server.base_url


class Progress:
    """Follows the outputs in a thread of its own and prints how far the job is."""

    def __init__(self, followed: Watch, console: Console) -> None:
        self.summary = Summary()
        self.first_reply_s: float | None = None
        self._watch = followed
        self._console = console
        self._began_s = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began_s

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._poll()
        end_s = time.monotonic() + (_READ_WITHIN_S if error is None else 0.0)
        while self._watch.unread is not None and time.monotonic() < end_s:
            time.sleep(_LOOK_EVERY_S)
            self._poll()
        if self._watch.unread is not None:
            self._console.print(f"Some outcomes are in Kafka and could not be counted: {self._watch.unread}")
        self._watch.close()

    def _follow(self) -> None:
        shown, shown_s = "", 0.0
        while not self._done.wait(_LOOK_EVERY_S):
            self._poll()
            words = self.summary.progress()
            if words != shown and self.elapsed_s - shown_s >= _PROGRESS_EVERY_S:
                self._console.print(f"{self.elapsed_s:6.1f} s  {words}")
                shown, shown_s = words, self.elapsed_s

    def _poll(self) -> None:
        # A batch may be all that one call gives; what is left is fetched before the end.
        while records := self._watch.poll():
            self.summary.add(records)
            if self.first_reply_s is None and self.summary.replies:
                self.first_reply_s = self.elapsed_s
                self._console.print(f"{self.elapsed_s:6.1f} s  first reply")


def conclude(
    console: Console,
    progress: Progress,
    events_in: int,
    repeats: int,
    where: str,
    *,
    resumed: bool = False,
    savepoint: str | None = None,
) -> int:
    """Prints the table and where the replies lie; returns 0 where every event is accounted for, else 1.

    Events that a job stopped with a `savepoint` had under way are in it; a job that was `resumed` from one had more than it read.
    """
    print_table(console, progress.summary, events_in, repeats, progress.elapsed_s)
    console.print(f"replies in {where}")
    missing = unaccounted(progress.summary, events_in, repeats)
    if savepoint is not None:
        console.print(f"stopped with events under way; go on with --savepoint_path={savepoint}")
        return 0
    if missing < 0 and resumed:
        console.print(f"{-missing} outcomes are of events that were under way in the savepoint.")
        return 0
    if missing:
        console.print(
            f"{abs(missing)} events are {'not accounted for' if missing > 0 else 'accounted for twice'}: in ≠ outcomes + repeats."
        )
        return 1
    return 0


def able_to_join(settings: Settings) -> Settings:
    """The settings with a mode of the step in which feedback can be joined behind it.

    DirectRunner does not hold the watermark for calls under way: at the end of input, feedback would be given up while its outcome is
    still asked for. Raises SettingsError where the order of keys forbids the other mode.
    """
    if settings.feedback is None or settings.runner != direct.RUNNER.name or settings.ask_mode == "bundles":
        return settings
    if settings.order == "key":
        raise SettingsError("--order=key does not go with feedback on DirectRunner; use --runner=FlinkRunner.")
    return replace(settings, ask_mode="bundles")


class _Bounded:
    """A run over files, on a runner that has an end: DirectRunner, PrismRunner, or a service that is only submitted to."""

    def __init__(self, settings: Settings, console: Console, stop: Stop) -> None:
        case = case_of(settings)
        source = settings.input or Files((str(case.samples),))
        settings = replace(settings, input=source)
        self._settings = able_to_join(replace(settings, feedback=feedback_of(settings, case)))
        self._case = case
        self._console = console
        self._stop = stop

    def run(self) -> int:
        settings, console = self._settings, self._console
        console.print(f"case    {self._case.name} on {settings.runner}")
        assert isinstance(settings.input, Files)  # noqa: S101 - options refuse Kafka for these runners
        if isinstance(settings.output, Kafka):
            watch(
                settings, self._case, console
            ).close()  # a Kafka that is not there is refused before a model is started
        with model_of(settings, self._case, console) as model:
            console.print(f"events  {', '.join(settings.input.paths)}")
            for left in reversed(range(_PRISM_RUNS)):
                try:
                    return self._run_once(model, settings.input.paths)
                except prism.BundleFailed as error:
                    if not left:
                        raise StackError(
                            f"A bundle failed in each of {_PRISM_RUNS} runs, the last time with: {error}"
                        ) from error
                    console.print(f"a bundle failed ({error}); Prism does no bundle again, so the run starts again")
        raise AssertionError

    def _run_once(self, model: ModelSettings, paths: tuple[str, ...]) -> int:
        remote = isinstance(self._settings.output, Files) and "://" in self._settings.output.paths[0]
        followed = NoWatch() if remote else watch(self._settings, self._case, self._console)
        with ExitStack() as stack:
            pipeline = beam.Pipeline(options=self._beam_options(stack))
            feedback = self._settings.feedback
            read_feedback = files.ReadLines(feedback.paths) if isinstance(feedback, Files) else None
            write, steps = writer(self._settings), self._steps(model)
            build(pipeline, self._case, files.ReadLines(paths), write, steps, read_feedback)
            if runners.named(self._settings.runner).in_process:
                files.resume()
                self._stop.on_drain(self._drain)
            failures = stack.enter_context(prism.Failures())
            progress = stack.enter_context(Progress(followed, self._console))
            result = pipeline.run()
            if self._settings.runner == prism.RUNNER.name:
                failures.wait(result)
            else:
                result.wait_until_finish()
            state, records, repeats = result.state, counter(result, RECORDS_IN) or 0, counter(result, REPEATS) or 0
        if state != PipelineState.DONE:
            self._console.print(f"The job ended as {state}.")
            return 1
        if remote:
            self._console.print(
                f"done; replies in {output_folder(self._settings)}/<topic>/, which is not read back from here"
            )
            return 0
        return conclude(self._console, progress, records, repeats, self._where())

    def _steps(self, model: ModelSettings) -> Steps:
        options: Mapping[str, Any] = _ON_DIRECT if self._settings.runner == direct.RUNNER.name else {}
        return steps_of(self._settings, self._case, model, **options)

    def _beam_options(self, stack: ExitStack) -> PipelineOptions:
        arguments = self._settings.beam_arguments
        make: Mapping[str, Callable[[], list[str]]] = {
            direct.RUNNER.name: lambda: direct.options(arguments),
            prism.RUNNER.name: lambda: prism.options(arguments, stack.enter_context(prism.serve(str(self._prism())))),
            dataflow.RUNNER.name: lambda: dataflow.options(arguments, streaming=self._settings.ask_mode == "timers"),
            portable.RUNNER.name: lambda: portable.options(arguments),
        }
        return PipelineOptions(make[self._settings.runner]())

    def _prism(self) -> Path:
        given = runners.runner.value_of(self._settings.beam_arguments, "--prism_location")
        if given:
            return Path(given)
        self._console.print("prism   looking for Beam's Prism, built from source once …")
        return artifacts.prism_path()

    def _where(self) -> str:
        output = self._settings.output
        return (
            f"Kafka at {output.servers}"
            if isinstance(output, Kafka)
            else f"{output_folder(self._settings)}/<topic>.jsonl"
        )

    def _drain(self) -> None:
        self._console.print("draining: no further events are read, what is under way is finished; Ctrl-C again ends")
        files.drain()
