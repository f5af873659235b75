"""Flink's own asynchronous operator, in Java: the bar. The job is `benchmarks/java`, built once into the cache with Maven.

`AsyncDataStream.unorderedWait`, the JDK's asynchronous HTTP client, Flink's Kafka source and sink, at least once.
Settings: ``capacity`` of each subtask (2 000), ``parallelism`` (2), ``checkpoint_ms`` (2 000).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.contestants.flink_job import cancelled_after
from benchmarks.rig import Place
from runners.local import artifacts
from runners.local.artifacts import JAVA, MAVEN, ROOT
from runners.local.part import Artifact, StackError

SOURCE = ROOT / "benchmarks" / "java"
_SUBMIT_WITHIN_S = 120.0
# What Flink's client looks into on Java 17.
_OPENED = ("java.lang", "java.util", "java.util.concurrent", "java.time")


def job_jar() -> Artifact:
    """The job's jar, built with Maven."""
    content = b"".join(path.read_bytes() for path in sorted(SOURCE.rglob("*")) if path.is_file())
    return Artifact("the job of Flink's asynchronous operator", f"bench-java-{_digest(content)}", _fill, MAVEN)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _fill(folder: Path) -> None:
    build = folder / "build"
    words = [MAVEN.name, "-q", "-B", "-f", str(SOURCE / "pom.xml"), "package", f"-Dbuild.folder={build}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(
            f"The job could not be built: {MAVEN.name} ended with status {done.returncode}.\n{done.stdout}"
        )
    shutil.move(build / "bench.jar", folder / "bench.jar")
    shutil.rmtree(build)


class JavaAsync:
    """Flink's asynchronous operator on the stack's Flink."""

    name = "java_async"

    @contextlib.contextmanager
    def running(self, place: Place) -> Iterator[None]:
        """Submit with Flink's own command line, and cancel after the body."""
        jar = artifacts.fetch(job_jar()) / "bench.jar"
        done = subprocess.run(
            _command(place, jar),
            env=_environment(place),
            capture_output=True,
            text=True,
            timeout=_SUBMIT_WITHIN_S,
            check=False,
        )
        if done.returncode:
            raise StackError(f"The job could not be submitted:\n{done.stdout[-3_000:]}{done.stderr[-3_000:]}")
        with cancelled_after(place.stack.endpoints.flink, place.name):
            yield


def _command(place: Place, jar: Path) -> list[str]:
    settings = place.settings
    return [
        artifacts.find_tool(JAVA) or JAVA.name,
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-Xmx256m",
        *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
        "org.apache.flink.client.cli.CliFrontend",
        "run",
        "--detached",
        "--class",
        "farcall.bench.AsyncJob",
        "--jobmanager",
        place.stack.endpoints.flink,
        str(jar),
        place.servers,
        place.topic_in,
        place.topic_out,
        place.url,
        place.name,
        str(settings.get("capacity", 2_000)),
        str(settings.get("parallelism", 2)),
        str(settings.get("checkpoint_ms", 2_000)),
    ]


def _environment(place: Place) -> dict[str, str]:
    # Kafka's clients are on the cluster's class path, and so must be where the graph is made.
    folders = (artifacts.path_of(artifacts.flink()) / "lib", artifacts.path_of(artifacts.beam_jars()))
    conf = place.stack.place.conf / "flink"
    return {**os.environ, "CLASSPATH": artifacts.class_path(*folders), "FLINK_CONF_DIR": str(conf)}


CONTESTANTS = {"java_async": JavaAsync()}
