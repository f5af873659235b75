"""The job's graph for runners that are not run here: it builds, and it holds what those runners need to know."""

from __future__ import annotations

import base64
import bz2
import dataclasses
import functools
import pickletools
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders.coders import Coder, FastPrimitivesCoder, PickleCoder
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.runners.runner import PipelineRunner
from apache_beam.transforms.environments import Environment

from pipeline import options, runs
from pipeline.build import Steps, build
from pipeline.cases.support.case import SUPPORT
from pipeline.cases.support.ticket import Ticket
from runners import dataflow, direct, flink, portable, prism
from runners.flink import FlinkEndpoints
from tests.flow import doubles
from transforms import coders, dead_letters, files, kafka

TimeDomain = beam_runner_api_pb2.TimeDomain
STATEFUL = {
    "AskModel/Ask/Calls": Ticket,
    "DropRepeats/Remember": SUPPORT.event_type,
    "RememberHistory/Remember": Ticket,
    "RepairReplies/Ask/Calls": SUPPORT.output_type,
}
"""The stateful steps, and the records that they are given."""

LABELS = Path(__file__).parent / "labels.txt"
DATAFLOW = ["--runner=DataflowRunner", "--project=p", "--region=europe-west1", "--temp_location=gs://b/tmp"]
SPARK = ["--runner=PortableRunner", "--job_endpoint=127.0.0.1:7077"]
SECRET = "hunter2-must-not-travel"

ARGUMENTS = {
    "direct": lambda: direct.options([]),
    "prism": lambda: prism.options([], "/nowhere/prism"),
    "flink": lambda: flink.pinned_options([], FlinkEndpoints("127.0.0.1:1", "127.0.0.1:2")),
    "dataflow": lambda: dataflow.options(DATAFLOW[1:]),
    "spark": lambda: portable.options(SPARK[1:]),
}


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> options.Settings:
    """Settings whose model and Kafka each name a secret, and the secret where they say."""
    monkeypatch.setenv("FARCALL_TEST_SECRET", SECRET)
    (tmp_path / "models.yaml").write_text(
        "models: {answer: {endpoints: ['https://model.example/v1'], model: m, auth: {env: FARCALL_TEST_SECRET}}}\n"
    )
    (tmp_path / "kafka.yaml").write_text(
        "common: {security.protocol: SASL_SSL, sasl.username: u, sasl.password: '${env:FARCALL_TEST_SECRET}'}\n"
    )
    return options.read([f"--models={tmp_path}/models.yaml", f"--kafka_config={tmp_path}/kafka.yaml"])


def graph(arguments: list[str], write: beam.PTransform | None = None, **steps: Any) -> beam_runner_api_pb2.Pipeline:
    """The portable form of the job with these flags of Beam. Nothing is submitted."""
    pipeline = beam.Pipeline(runner=PipelineRunner(), options=PipelineOptions(arguments))
    steps.setdefault("model", doubles.model("https://model.example/v1"))
    read = files.ReadLines(["gs://bucket/events.jsonl"])
    build(pipeline, SUPPORT, read, write or files.WriteLines("gs://bucket/out"), Steps(**_dead(write), **steps))
    return pipeline.to_runner_api(default_environment=_environment(arguments))


def _dead(write: Any) -> dict[str, Any]:
    to_kafka = isinstance(write, kafka.WriteKafka)
    return {"dead_letter_record": dead_letters.to_kafka if to_kafka else dead_letters.to_json}


def _environment(arguments: list[str]) -> Environment | None:
    """The environment that Beam's portable runner would name; None where workers run in the process that submits."""
    wanted = PipelineOptions(arguments).view_as(PortableOptions)
    if wanted.environment_type in {None, "LOOPBACK"}:
        return None
    return Environment.get_env_cls_from_urn(f"beam:env:{wanted.environment_type.lower()}:v1").from_options(wanted)


@functools.cache
def graph_for(runner: str) -> beam_runner_api_pb2.Pipeline:
    """The graph with the flags of a runner, built once."""
    return graph(ARGUMENTS[runner]())


def par_dos(proto: beam_runner_api_pb2.Pipeline) -> dict[str, beam_runner_api_pb2.ParDoPayload]:
    """The payload of each ParDo by its label."""
    found = {}
    for transform in proto.components.transforms.values():
        if transform.spec.urn == "beam:transform:pardo:v1":
            found[transform.unique_name] = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
    return found


def urns(proto: beam_runner_api_pb2.Pipeline) -> set[str]:
    """The URNs of the graph's steps."""
    return {transform.spec.urn for transform in proto.components.transforms.values()} - {""}


def labels(proto: beam_runner_api_pb2.Pipeline) -> list[str]:
    """The labels of the graph's steps, those of steps within steps too, but for those within Beam's `Create`."""
    found = {transform.unique_name for transform in proto.components.transforms.values()}
    return sorted(name for name in found if not name.startswith(("ref_AppliedPTransform", "Read/Paths/")))


@pytest.mark.parametrize("runner", ARGUMENTS)
def test_the_graph_is_of_parts_every_portable_runner_knows(runner: str) -> None:
    """The job is of impulses, ParDos and flattens, and windows that are assigned: no grouping, nothing of one runner."""
    found = urns(graph_for(runner))
    assert {"beam:transform:impulse:v1", "beam:transform:pardo:v1", "beam:transform:flatten:v1"} <= found
    assert not {urn for urn in found if "group_by_key" in urn or "combine" in urn or "splittable" in urn}


@pytest.mark.parametrize("runner", ARGUMENTS)
def test_the_graph_says_that_it_has_state_and_timers(runner: str) -> None:
    """The graph requires stateful processing, and its four stateful steps name their cells and the time of their timers."""
    proto = graph_for(runner)
    assert "beam:requirement:pardo:stateful:v1" in proto.requirements
    stateful = {name: payload for name, payload in par_dos(proto).items() if payload.state_specs}
    calls = (
        {"cell", "bag"},
        {"tick": TimeDomain.PROCESSING_TIME, "watchdog": TimeDomain.PROCESSING_TIME, "end": TimeDomain.EVENT_TIME},
    )
    assert {name: (set(payload.state_specs), timers(payload)) for name, payload in stateful.items()} == {
        "AskModel/Ask/Calls": calls,
        "RepairReplies/Ask/Calls": calls,
        "DropRepeats/Remember": ({"seen"}, {"expiry": TimeDomain.EVENT_TIME}),
        "RememberHistory/Remember": ({"history"}, {"expiry": TimeDomain.EVENT_TIME}),
    }


def timers(payload: Any) -> dict[str, int]:
    return {name.removeprefix("ts-"): spec.time_domain for name, spec in payload.timer_family_specs.items()}


def test_without_memory_of_repeats_its_state_is_gone() -> None:
    """The sibling: what the graph is seen to require follows what it holds."""
    found = par_dos(graph(ARGUMENTS["spark"](), repeat_memory_s=0.0))
    assert {name for name, payload in found.items() if payload.state_specs} == STATEFUL.keys() - {
        "DropRepeats/Remember"
    }


def test_labels_are_those_that_running_jobs_have() -> None:
    """Labels are names of state: they are unique, and those of tests/flow/labels.txt, for every runner."""
    for runner in ARGUMENTS:
        proto = graph_for(runner)
        names = [transform.unique_name for transform in proto.components.transforms.values()]
        assert len(names) == len(set(names))
        assert labels(proto) == LABELS.read_text().split(), (
            "a job that runs would lose its state; say so in CHANGELOG.md"
        )


def test_a_fallback_adds_steps_and_renames_none() -> None:
    """A job whose model gets a fallback keeps its state: the labels of before are there, and those of the fallback's call besides."""
    able = doubles.model("https://able.example/v1", timeout_s=10.0)
    added = labels(graph(ARGUMENTS["flink"](), model=doubles.model("https://model.example/v1", fallback=able)))
    before = LABELS.read_text().split()
    assert set(before) < set(added)
    assert {name.split("/")[0] for name in set(added) - set(before)} == {
        "SortRepairs",
        "AskFallback",
        "CheckFallbacks",
        "GiveUpFallbacks",
        "AllRepairs",
    }


@pytest.mark.parametrize("runner", ARGUMENTS)
def test_keyed_records_have_coders_that_last(runner: str) -> None:
    """Into the stateful steps go pairs of bytes and a record in MessagePack; nothing that is pickled is in their state.

    With the record of a call goes its ticket, a number.
    """
    proto = graph_for(runner)
    for name, record_type in STATEFUL.items():
        (step,) = (found for found in proto.components.transforms.values() if found.unique_name == name)
        (collection,) = step.inputs.values()
        pair = proto.components.coders[proto.components.pcollections[collection].coder_id]
        assert pair.spec.urn == "beam:coder:kv:v1"
        key, value = (proto.components.coders[one] for one in pair.component_coder_ids)
        assert key.spec.urn == "beam:coder:bytes:v1"
        if name.endswith("/Calls"):
            assert value.spec.urn == "beam:coder:kv:v1"
            ticket, value = (proto.components.coders[one] for one in value.component_coder_ids)
            assert ticket.spec.urn == "beam:coder:varint:v1"
        assert record_coder(key=value).record_type is record_type, name


def record_coder(key: Any) -> coders.RecordCoder:
    """The coder that the graph describes, as a worker makes it."""
    found = Coder.from_runner_api(key, PipelineContext())
    assert isinstance(found, coders.RecordCoder)
    return found


def test_every_record_between_steps_has_our_coder() -> None:
    """No record that passes from step to step is pickled: only the empty output of the last step could be."""
    proto = graph_for("flink")
    context = PipelineContext(proto.components)
    fallbacks = set()
    for collection in proto.components.pcollections.values():
        coder = context.coders.get_by_id(collection.coder_id)
        if any(isinstance(part, FastPrimitivesCoder | PickleCoder) for part in [coder, *coder._get_component_coders()]):
            fallbacks.add(collection.unique_name.lstrip("0123456789"))
    assert fallbacks == {"Write/Write.None"}


@pytest.mark.parametrize(
    ("arguments", "urn", "payload"),
    [
        (ARGUMENTS["flink"](), "beam:env:external:v1", b"127.0.0.1:2"),
        (portable.options([*SPARK, "--environment_type=DOCKER"]), "beam:env:docker:v1", b"beam_python"),
        (ARGUMENTS["spark"](), "beam:env:default:v1", b""),
    ],
    ids=["flink", "docker", "loopback"],
)
def test_the_environment_of_the_workers(arguments: list[str], urn: str, payload: bytes) -> None:
    """The graph names one environment, the one its flags ask for: the pool of workers, a container, or the submitter."""
    (found,) = graph(arguments).components.environments.values()
    assert found.urn == urn
    assert payload in found.payload


def test_the_options_of_dataflow() -> None:
    """On Dataflow the job is a streaming one on the portable worker, and what is given is kept."""
    made = PipelineOptions(dataflow.options(DATAFLOW)).get_all_options()
    assert made["runner"] == "DataflowRunner"
    assert made["streaming"] is True
    assert "use_runner_v2" in made["experiments"]
    assert (made["project"], made["region"], made["temp_location"]) == ("p", "europe-west1", "gs://b/tmp")


def test_experiments_on_flink() -> None:
    """An experiment that is given stays beside the one that lets a bundle's input go out early, and another value of that one wins."""
    endpoints = FlinkEndpoints("h:1", "h:2")
    for given, found in (
        ([], ["data_buffer_size_limit=4000"]),
        (["--experiments=mine"], ["mine", "data_buffer_size_limit=4000"]),
        (["--experiments=mine,data_buffer_size_limit=1"], ["mine", "data_buffer_size_limit=1"]),
    ):
        made = PipelineOptions(flink.pinned_options(given, endpoints)).get_all_options()["experiments"]
        assert made[: len(found)] == found
        assert sum("data_buffer" in one for one in made) == 1


def test_the_options_of_a_portable_endpoint() -> None:
    """At a portable endpoint workers run in the process that submits, unless another environment is asked for."""
    made = PipelineOptions(portable.options(SPARK)).get_all_options()
    assert (made["runner"], made["job_endpoint"]) == ("PortableRunner", "127.0.0.1:7077")
    assert made["environment_type"] == "LOOPBACK"
    other = PipelineOptions(portable.options([*SPARK, "--environment_type=DOCKER"])).get_all_options()
    assert other["environment_type"] == "DOCKER"


def test_no_secret_is_in_the_graph(secrets: options.Settings) -> None:
    """Neither the graph nor the options hold a secret that models.yaml and the Kafka configuration name."""
    models, config = secrets.models, secrets.kafka_config
    assert models is not None
    write = kafka.WriteKafka("broker:9092", config.producer)
    arguments = flink.pinned_options(secrets.beam_arguments, FlinkEndpoints("h:1", "h:2"))
    built = graph(arguments, write, model=models["answer"])
    proto, payloads = built.SerializeToString(), pickled(built)
    assert any(b"FARCALL_TEST_SECRET" in payload for payload in payloads.values())
    for content in (proto, *payloads.values(), repr(secrets).encode(), str(PipelineOptions(arguments)).encode()):
        assert SECRET.encode() not in content


def test_where_metrics_are_shown_travels_with_the_graph(secrets: options.Settings) -> None:
    """With --metrics_port the step makes its client with a page at that address; without it, without one."""
    assert secrets.models is not None
    model = secrets.models["answer"]
    shown = dataclasses.replace(secrets, metrics_port="127.0.0.1:9464")
    for settings, wanted in ((secrets, False), (shown, True)):
        steps = runs.steps_of(settings, SUPPORT, model)
        built = graph(ARGUMENTS["flink"](), model=model, make_caller=steps.make_caller)
        found = {name for name, pickle in pickled(built).items() if b"127.0.0.1" in pickle and b"WithPage" in pickle}
        asking = {f"{step}/{part}" for step in ("AskModel", "RepairReplies") for part in ("Shard", "Ask/Calls")}
        assert found == (asking if wanted else set())


def test_a_secret_in_the_graph_is_found() -> None:
    """The sibling: a secret that is written into the settings is found by the same search."""
    write = kafka.WriteKafka("broker:9092", {"sasl.password": SECRET})
    assert any(SECRET.encode() in payload for payload in pickled(graph(ARGUMENTS["flink"](), write)).values())


def pickled(proto: beam_runner_api_pb2.Pipeline) -> dict[str, bytes]:
    """The pickle of each function in the graph by its label, as it is before Beam compresses it."""
    return {name: bz2.decompress(base64.b64decode(payload.do_fn.payload)) for name, payload in par_dos(proto).items()}


def own(pickles: dict[str, bytes]) -> dict[str, set[str]]:
    """The strings in the pickles of our own functions."""
    return {
        name: {argument for _, argument, _ in pickletools.genops(pickle) if isinstance(argument, str)}
        for name, pickle in pickles.items()
        if not name.startswith("Read/Paths/")
    }


def test_nothing_of_main_is_pickled() -> None:
    """No function of the graph is taken from `__main__`, and none carries its code along: workers import what they run."""
    found = own(pickled(graph_for("flink")))
    assert "transforms.ask.step" in found["AskModel/Ask/Calls"]
    for name, strings in found.items():
        assert not strings & {"__main__", "_make_function", "_make_skeleton_class"}, name


def test_a_function_that_is_not_importable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sibling: a function that workers could not import travels with its code, which the same search finds."""
    case = dataclasses.replace(SUPPORT, event_id=lambda event: event.id)
    monkeypatch.setitem(globals(), "SUPPORT", case)
    found = own(pickled(graph(ARGUMENTS["flink"]())))
    assert any("_make_function" in strings for strings in found.values())


@pytest.mark.parametrize(("given", "expected"), [([], 2), (["--parallelism=3"], 3), (["--parallelism", "-1"], 0)])
def test_the_parallelism_of_a_job_is_known(given: list[str], expected: int) -> None:
    """As many shards of a Kafka source read as there are subtasks; all where the cluster says how many those are."""
    assert flink.parallelism(given) == expected
