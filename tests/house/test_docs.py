"""The documents say what the code does: flags, keys, topics, headers, examples, links."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import apache_beam as beam
import msgspec
import orjson
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

import runners
from pipeline import options, replay
from pipeline.registry import CASES
from runners.local import __main__ as stack_command
from runners.local.parts import PARTS
from runners.local.ports import Ports
from transforms import dead_letters, errors, feedback, metrics, recent
from transforms.files import WriteLines
from transforms.formats import codec
from transforms.formats import settings as formats
from transforms.formats.registry import LEVELS, RegistrySettings
from transforms.formats.settings import read_formats
from transforms.records import DeadLetter, OutputRecord, SourceRecord
from transforms.remote import models_file, names, prometheus, protocols, telemetry
from transforms.remote.auth import Auth, GoogleAuth
from transforms.remote.batcher import BatchSettings
from transforms.remote.breaker import BreakerSettings
from transforms.remote.cache import CacheSettings
from transforms.remote.concurrency import ConcurrencySettings
from transforms.remote.connection import ProxySettings, TlsSettings
from transforms.remote.hedge import HedgeSettings
from transforms.remote.model_double import ModelDouble
from transforms.remote.models_file import read_models
from transforms.remote.names import INSTRUMENTS
from transforms.remote.outliers import OutlierSettings
from transforms.remote.pool import PoolSettings
from transforms.remote.probes import ProbeSettings
from transforms.remote.quota import QuotaSettings
from transforms.remote.quota_redis import SharedQuotaSettings
from transforms.remote.settings import Endpoint, RetryPolicy
from transforms.remote.streams import StreamSettings

ROOT = Path(__file__).resolve().parents[2]
COMMAND_LINE = "docs/reference/command-line.md"
MODELS = "docs/guide/models.md"
DEAD_LETTERS = "docs/guide/dead-letters.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def repository_files() -> list[Path]:
    """Every file that is in the repository or would be with the next commit."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


DOCUMENTS = sorted(path for path in repository_files() if path.suffix == ".md")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(language: str, documents: list[Path] | None = None) -> list[Any]:
    """The fenced blocks of a language in the documents, each under its document and number."""
    return [
        pytest.param(match[2], id=f"{named(path)}-{number}")
        for path in documents or DOCUMENTS
        for number, match in enumerate(BLOCK.finditer(path.read_text(encoding="utf-8")))
        if match[1] == language
    ]


LATER = {recent.LATE, feedback.JOINED, feedback.REPEATED, feedback.UNMATCHED, feedback.WITHOUT_FEEDBACK}
"""The counters of windows by key and of feedback."""

MODEL_KEYS = [
    models_file.ModelKeys,
    models_file.Limits,
    RetryPolicy,
    Auth,
    Endpoint,
    BatchSettings,
    StreamSettings,
    HedgeSettings,
    CacheSettings,
    ProbeSettings,
    GoogleAuth,
    TlsSettings,
    ProxySettings,
    ConcurrencySettings,
    QuotaSettings,
    SharedQuotaSettings,
    PoolSettings,
    BreakerSettings,
    OutlierSettings,
]
"""What has the keys of models.yaml."""


def section(text: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading {heading!r}"
    return found[1]


def first_cells(text: str) -> list[str]:
    """What stands in backticks at the beginning of table rows."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """The names of a parser's flags and of its verbs' flags, one name each: the long one where there is one."""
    found = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {flag for verb in action.choices.values() for flag in flags_of(verb)}
        elif action.option_strings:
            found.add(max(action.option_strings, key=len))
    return found


def test_every_flag_is_in_the_reference_and_no_other() -> None:
    """The table of flags names exactly the flags of `python -m pipeline`."""
    table = first_cells(section(text_of(COMMAND_LINE), "`python -m pipeline`"))
    documented = [cell for cell in table if re.fullmatch(r"--\w+", cell)]
    assert len(documented) == len(set(documented))
    assert set(documented) == flags_of(options.parser())


def test_the_defaults_of_flags_are_those_of_the_parser() -> None:
    """Where a flag has a default, the table shows it."""
    text = section(text_of(COMMAND_LINE), "`python -m pipeline`")
    shown = dict(re.findall(r"^\| `(--\w+)` \| (.*?) \|", text, re.MULTILINE))
    for action in options.parser()._actions:
        if action.default not in {None, False, argparse.SUPPRESS}:
            default = f"{action.default:g}" if isinstance(action.default, float) else str(action.default)
            assert shown[action.option_strings[-1]].strip("`") == default


def test_every_flag_of_the_stack_is_in_the_reference_and_no_other() -> None:
    """The table of the stack's flags names exactly the flags of `python -m runners.local`."""
    table = first_cells(section(text_of(COMMAND_LINE), "`scripts/stack`"))
    documented = {cell for cell in table if cell.startswith("-")}
    assert documented == flags_of(stack_command._parser())


def commands(text: str) -> Iterator[str]:
    """The command lines of a shell block that call the pipeline, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith(("scripts/run", "python -m pipeline")):
            yield line


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_in_the_documents_have_flags_that_exist(block: str) -> None:
    """Every command shown has only flags that this program, Beam or the runner knows."""
    for line in commands(block):
        if "pipeline.replay" in line:
            replay.parser().parse_args(shlex.split(line)[3:])
            continue
        words = [word for word in shlex.split(line, comments=True) if word.startswith("-")]
        own, rest = options.parser().parse_known_args([word for word in words if word != "-m"])
        runner = runners.named(own.runner)
        options.check_beam_arguments(rest, own.runner)
        runner.check([*rest, "--job_endpoint=host:1"], own.engine)


@pytest.mark.parametrize("keys", MODEL_KEYS)
def test_every_key_of_a_model_is_in_the_guide_with_its_default(keys: type[msgspec.Struct]) -> None:
    """The guide's tables name every key of models.yaml, and the default where there is one."""
    shown = re.findall(r"^\| `(\w+)` \| (.*?) \|", text_of(MODELS), re.MULTILINE)
    for field in msgspec.structs.fields(keys):
        assert field.name in dict(shown)
        if isinstance(field.default, bool):
            assert (field.name, str(field.default).lower()) in shown
        elif isinstance(field.default, int | float):
            assert (field.name, f"{field.default:g}") in shown
        elif isinstance(field.default, str) and field.default:
            assert (field.name, f"`{field.default}`") in shown


def test_the_guide_names_no_key_that_is_not_there() -> None:
    """Every key in the guide's tables with three columns is one that models.yaml takes."""
    known = {name for kind in MODEL_KEYS for name in kind.__struct_fields__}
    assert set(first_cells(text_of(MODELS))) <= known


@pytest.mark.parametrize(
    "words",
    [models_file.ROLES, protocols.PROTOCOLS],
)
def test_roles_and_protocols_are_in_the_guide(words: tuple[str, ...]) -> None:
    """Each role and protocol is named in the guide."""
    assert [word for word in words if f"`{word}`" not in text_of(MODELS)] == []


def test_every_key_of_a_format_is_in_the_reference_and_no_other() -> None:
    """The tables of formats.md name exactly the keys of formats.yaml, and every kind, level and naming."""
    text = text_of("docs/reference/formats.md")
    kinds = (formats._FileKeys, formats._TopicKeys, RegistrySettings)
    rows = re.findall(r"^\| (`.*?) \|", section(text, "The file"), re.MULTILINE)
    shown = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(shown) == sorted(name for kind in kinds for name in kind.__struct_fields__)
    assert first_cells(section(text, "Kinds")) == list(codec.KINDS)
    words = (*LEVELS, *get_args(formats.Naming), *get_args(formats.Format))
    assert [word for word in words if f"`{word}`" not in text] == []


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_in_the_documents_is_read(block: str, tmp_path: Path) -> None:
    """Every YAML example is taken by the code that reads such a file; its first line names the file."""
    path = tmp_path / "example.yaml"
    shutil.copytree(ROOT / "pipeline" / "cases" / "support" / "schemas", tmp_path / "schemas")
    path.write_text(block, encoding="utf-8")
    readers = {
        "# models.yaml": read_models,
        "# kafka.yaml": lambda file: options.read_kafka_config(str(file)).producer,
        "# formats.yaml": read_formats,
        "# topics.yaml": lambda file: options._topics(str(file), "support"),
    }
    assert readers[block.splitlines()[0]](path)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_in_the_documents_compiles_and_imports_what_exists(block: str) -> None:
    """Every Python example compiles, and what it imports from this project is there."""
    compile(block, "example", "exec")
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in {
            "pipeline",
            "runners",
            "transforms",
        }:
            module = importlib.import_module(str(node.module))
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_the_pipelines_of_the_guide_give_the_same_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both pipelines of "Coming from RunInference" run as they are printed, but for the server's address, and agree."""
    guide = text_of("docs/guide/from-runinference.md")
    before, after = (match[2] for match in BLOCK.finditer(guide) if match[1] == "python")
    monkeypatch.syspath_prepend(str(tmp_path))
    with ModelDouble(0, latency_ms=1.0) as double:
        for name, code in (("guide_before", before), ("guide_after", after)):
            (tmp_path / f"{name}.py").write_text(code.replace("http://llm.example.com:8000/v1", double.base_url))
        old, new = importlib.import_module("guide_before"), importlib.import_module("guide_after")
        for name in ("old", "new"):
            with beam.Pipeline(options=PipelineOptions(["--runner=BundleBasedDirectRunner"])) as pipeline:
                texts = pipeline | beam.Create(["one", "two"])
                if name == "old":
                    pairs = old.answer(texts) | beam.MapTuple(lambda text, reply, _model: (text, reply))
                else:
                    tickets = texts | beam.Map(lambda text: new.Ticket(text, text)).with_output_types(new.Ticket)
                    answered, _failed = new.answer(tickets)
                    pairs = answered | beam.MapTuple(lambda ticket, reply: (ticket.text, reply.text))
                _ = pairs | "ToRecords" >> beam.Map(_record) | WriteLines(str(tmp_path / name))
    written = [sorted((tmp_path / name / "pairs.jsonl").read_bytes().splitlines()) for name in ("old", "new")]
    assert written[0] == written[1]
    assert len(written[0]) == 2


def _record(pair: tuple[str, str]) -> OutputRecord:
    return OutputRecord("pairs", orjson.dumps(dict([pair])))


def slug(heading: str) -> str:
    """The anchor that a heading gets where Markdown is shown."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link in a document leads to a file or folder that is there, and to a heading of it where it names one."""
    prose = BLOCK.sub("", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_decisions_that_the_code_refers_to_exist() -> None:
    """Each docs/adr/NNNN in a comment of the code is one page."""
    sources = [path for path in repository_files() if path.suffix in {".py", ".xml", ".toml", ".txt"}]
    numbers = {
        number for path in sources for number in re.findall(r"docs/adr/(\d{4})", path.read_text(encoding="utf-8"))
    }
    assert numbers
    assert {number: len(list((ROOT / "docs" / "adr").glob(f"{number}-*.md"))) for number in numbers} == dict.fromkeys(
        numbers, 1
    )


@pytest.mark.parametrize("document", sorted((ROOT / "docs" / "adr").glob("*.md")), ids=named)
def test_a_decision_says_why_what_and_what_follows(document: Path) -> None:
    """Each decision has its number as title, and context, decision, consequences and what was measured, in this order."""
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"# {document.name[:4]} ")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences", "Measured"]


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_every_topic_is_in_the_reference(case: Any) -> None:
    """The table of a case's topics names exactly those that it reads and writes."""
    text = section(text_of("docs/reference/topics.md"), f"`--case={case.name}`")
    topics = [cell for cell in first_cells(text) if "." in cell]
    assert sorted(topics) == sorted([case.input_topic, *case.all_topics])


LETTER = DeadLetter(SourceRecord(b"value"), "parse", "not-json", "A sentence.", 0, "e1")


def test_the_headers_of_dead_letters_are_in_the_guide() -> None:
    """The guide's table names exactly the headers that a dead letter in Kafka gets."""
    documented = [cell for cell in first_cells(text_of(DEAD_LETTERS)) if cell.startswith(dead_letters.PREFIX)]
    assert documented == [name for name, _ in dead_letters.connect_headers(LETTER)]


def fields_of(record: OutputRecord) -> set[str]:
    return set(orjson.loads(record.value or b""))


def test_the_fields_of_dead_letters_are_in_the_guide() -> None:
    """The guide names every field of a dead letter's JSON, for text and for bytes."""
    odd = msgspec.structs.replace(LETTER, source=SourceRecord(b"\xff", b"\xff"))
    fields = fields_of(dead_letters.to_json(LETTER, "t")) | fields_of(dead_letters.to_json(odd, "t"))
    assert [field for field in sorted(fields) if f"`{field}`" not in section(text_of(DEAD_LETTERS), "In files")] == []


def call_errors(kind: type[errors.CallError] = errors.CallError) -> Iterator[str]:
    yield kind.kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from call_errors(below)


def test_the_kinds_of_errors_are_in_the_guide() -> None:
    """The guide names the kind of every error of a call, and every kind of bad reply that a case raises."""
    cases = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline" / "cases").rglob("*.py"))
    kinds = {*call_errors(), *re.findall(r"BadReply\(\s*\"([\w-]+)\"", cases), "prompt", "error"}
    text = section(text_of(DEAD_LETTERS), "Stages and kinds")
    assert [kind for kind in sorted(kinds) if f"`{kind}`" not in text] == []


def test_the_stages_of_the_graph_are_in_the_guide() -> None:
    """Each stage that the graph names in dead letters is in the guide."""
    stages = set(re.findall(r"stage=\"(\w+)\"", text_of("pipeline/build.py")))
    assert stages <= set(first_cells(section(text_of(DEAD_LETTERS), "Stages and kinds")))
    assert stages


METRICS = "docs/reference/metrics.md"


def test_every_instrument_is_in_the_reference_as_it_is() -> None:
    """The table of metrics has exactly the instruments of the code, each with its kind, unit, labels and meaning."""
    rows = re.findall(r"^\| (.+) \|$", section(text_of(METRICS), "Of the client"), re.MULTILINE)
    expected = [
        f"`{one.name}` | {one.kind} | {one.unit} | {', '.join(f'`{label}`' for label in one.labels)} | {one.description}"
        for one in INSTRUMENTS
    ]
    assert rows[1:] == expected


def test_every_counter_of_the_steps_is_in_the_reference() -> None:
    """The table of Beam's counters has exactly those that the steps count."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "transforms").rglob("*.py"))
    counted = {
        *re.findall(r"Metrics\.counter\(NAMESPACE, \"(\w+)\"\)", code),
        metrics.RECORDS_IN,
        metrics.REPEATS,
        *LATER,
    }
    assert set(first_cells(section(text_of(METRICS), "Of the steps"))) == counted


def test_the_words_of_the_reference_of_metrics_are_those_of_the_code() -> None:
    """The version of the conventions, the bounds and the quantiles that the reference names are the code's."""
    text = text_of(METRICS)
    version = re.search(r"semantic conventions ([\d.]+)", names.__doc__ or "")
    assert version
    assert f"({version[1]})" in text
    assert f"at most {telemetry.MOST_SERIES} series" in text
    assert f"one of {prometheus.PORTS} " in text
    assert ", ".join(f"{share:g}" for share in names.QUANTILES[:-1]) in text


def test_every_module_is_in_the_code_map() -> None:
    """ARCHITECTURE.md names every module, by its file or, in a case, by its folder."""
    text = text_of("ARCHITECTURE.md")
    modules = [
        path
        for path in repository_files()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in {"pipeline", "runners", "transforms"}
    ]
    missing = [named(path) for path in modules if path.name != "__init__.py" and path.name not in text]
    assert missing == []


PATHS = re.compile(r"`((?:pipeline|transforms|runners|tests|docs|scripts)/[\w./-]+)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_paths_in_the_documents_exist(document: Path) -> None:
    """Every file or folder of this repository that a document names is there."""
    names = PATHS.findall(document.read_text(encoding="utf-8"))
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_parts_of_the_stack_are_in_the_guide() -> None:
    """The guide's table has each part of the local stack with its port and the memory planned for it."""
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", text_of("docs/guide/flink.md"), re.MULTILINE)
    ports = Ports().as_dict()
    assert rows == [(part.name, str(ports[part.port_names[0]]), str(part.memory_mib)) for part in PARTS]


# Put together here, so that this file does not hold what it looks for.
REGISTRIES = ("pypi org", "pythonhosted org", "repo maven apache org", "repo1 maven org", "proxy golang org")
HOSTS = re.compile("|".join(host.replace(" ", "[.]") for host in REGISTRIES))
MACHINE = re.compile(r"(?<![\w.~/}$-])/(?:work|root)(?![\w-])")


def test_no_file_names_a_registry_or_a_path_of_a_machine() -> None:
    """No file but the licence names the host of a package registry, or a path of the machine it was written on."""
    found = []
    for path in repository_files():
        if path.name == "LICENSE":
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{named(path)}: {match[0]}" for match in (*HOSTS.finditer(text), *MACHINE.finditer(text))]
    assert found == []
