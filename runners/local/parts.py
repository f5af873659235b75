"""The parts of the real stack, one value each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from runners.local import artifacts, flinkconf, llm, postgresql, probes
from runners.local.artifacts import JAVA, ROOT
from runners.local.part import Command, Part, Place
from runners.local.ports import HOST

_CLUSTER_ID = "ZmFyY2FsbC1sb2NhbC1rYQ"
"""Any 16 bytes will do; this is their base64 form."""

# Flink's own list for Java 17, from the config.yaml of its distribution.
_OPENED = (
    *(
        f"--add-exports={package}=ALL-UNNAMED"
        for package in (
            "java.base/sun.net.util",
            "java.rmi/sun.rmi.registry",
            "java.security.jgss/sun.security.krb5",
        )
    ),
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in (
            "java.lang",
            "java.net",
            "java.io",
            "java.nio",
            "sun.nio.ch",
            "java.lang.reflect",
            "java.text",
            "java.time",
            "java.util",
            "java.util.concurrent",
            "java.util.concurrent.atomic",
            "java.util.concurrent.locks",
        )
    ),
)

# The first compiler alone. The second works for minutes beside the job, on the cores that the job needs, and what it makes faster
# is not what the time goes to (docs/adr/0010).
_QUICKLY_COMPILED = ("-XX:TieredStopAtLevel=1",)

# For services that do little: they start in half the time, in half the memory.
_MODEST = ("-XX:+UseSerialGC", *_QUICKLY_COMPILED)


def _java(place: Place, *words: str) -> tuple[str, ...]:
    """The start of a Java command line; a JVM without memory ends at once and so is started again."""
    logging = place.conf / "log4j2.properties"
    _write(logging, flinkconf.LOGGING)
    program = artifacts.find_tool(JAVA) or JAVA.name
    return (
        program,
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:-UsePerfData",
        f"-Dlog4j2.configurationFile={logging.as_uri()}",
        f"-Dlog4j.configurationFile={logging.as_uri()}",
        f"-Djava.io.tmpdir={_folder(place.data / 'tmp')}",
        *words,
    )


def _java_env(*folders: Path) -> dict[str, str]:
    # Two arenas: glibc's default of one per thread costs a JVM hundreds of MiB that it never uses.
    return {"CLASSPATH": artifacts.class_path(*folders), "MALLOC_ARENA_MAX": "2"}


def _engine_env() -> dict[str, str]:
    flink, beam = artifacts.path_of(artifacts.flink()), artifacts.path_of(artifacts.beam_jars())
    return {**_java_env(flink / "lib", beam), "FLINK_PLUGINS_DIR": str(flink / "plugins")}


def _kafka(place: Place) -> Command:
    properties = place.conf / "kafka.properties"
    data = place.data / "kafka"
    _write(properties, flinkconf.kafka_properties(place.ports, data))
    settings = str(properties)
    pauses = ("-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20")
    start = _java(place, "-Xms128m", "-Xmx384m", *pauses, *_QUICKLY_COMPILED, "kafka.Kafka", settings)
    prepare = _java(place, *_MODEST, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", settings)
    # Kafka refuses a data folder that was not prepared: on the first start the shell does it, then becomes Kafka.
    script = '[ -f "$1" ] || "${@:3:$2}" || exit; exec "${@:$((3 + $2))}"'
    words = ("bash", "-c", script, "kafka", str(data / "meta.properties"), str(len(prepare)), *prepare, *start)
    return Command(words, _java_env(artifacts.path_of(artifacts.kafka_jars())))


def _flink_conf(place: Place) -> Path:
    data = place.data / "flink"
    for folder in ("checkpoints", "savepoints", "tmp"):
        _folder(data / folder)
    _write(place.conf / "flink" / "config.yaml", flinkconf.flink_config(place.ports, data))
    return place.conf / "flink"


def _jobmanager(place: Place) -> Command:
    words = _java(
        place,
        *_MODEST,
        "-Xmx384m",
        "-XX:MaxMetaspaceSize=256m",
        *_OPENED,
        "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
        "--configDir",
        str(_flink_conf(place)),
        "-D",
        f"metrics.reporter.prom.port={place.ports.metrics_jobmanager}",
    )
    return Command(words, _engine_env())


def _taskmanager(place: Place) -> Command:
    memory = flinkconf.TaskManagerMemory()
    words = _java(
        place,
        "-XX:+UseG1GC",
        *_QUICKLY_COMPILED,
        *memory.jvm_words(),
        *_OPENED,
        "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
        "--configDir",
        str(_flink_conf(place)),
        *memory.flink_words(),
        "-D",
        f"metrics.reporter.prom.port={place.ports.metrics_taskmanager}",
    )
    return Command(words, _engine_env())


def _job_server(place: Place) -> Command:
    """The job server of the local Flink."""
    return _job_server_with_jars(place.ports.address("flink"))(place)


def _job_server_with_jars(master: str) -> Callable[[Place], Command]:
    """The job server of a Flink that has Beam's jars on its class path: nothing is uploaded with a job."""

    def command(place: Place) -> Command:
        engine = (artifacts.path_of(artifacts.flink()) / "lib", artifacts.path_of(artifacts.beam_jars()))
        words = _java(
            place,
            *_MODEST,
            f"-javaagent:{artifacts.agent_jar(engine, place.conf / 'jobserver.jar')}",
            *_job_server_words(place, master),
        )
        return Command(words, {**_engine_env(), "CLASSPATH": str(artifacts.empty_jar())})

    return command


def _job_server_of(master: str) -> Callable[[Place], Command]:
    """The job server of a Flink that runs elsewhere: it uploads its class path with each job."""

    def command(place: Place) -> Command:
        return Command(_java(place, *_MODEST, *_job_server_words(place, master)), _engine_env())

    return command


def _job_server_words(place: Place, master: str) -> tuple[str, ...]:
    return (
        "-Xmx320m",
        *_OPENED,
        "org.apache.beam.runners.flink.FlinkJobServerDriver",
        f"--job-host={HOST}",
        f"--job-port={place.ports.job_server}",
        f"--artifact-port={place.ports.artifacts}",
        # It brings an expansion service of its own, which nobody asks; any port will do.
        "--expansion-port=0",
        f"--flink-master={master}",
        f"--flink-conf-dir={_flink_conf(place)}",
        f"--artifacts-dir={_folder(place.data / 'staged')}",
    )


def _expansion(place: Place) -> Command:
    words = _java(
        place,
        *_MODEST,
        "-Xmx256m",
        "org.apache.beam.sdk.expansion.service.ExpansionService",
        str(place.ports.expansion),
        "--javaClassLookupAllowlistFile=*",
        # Java steps run inside the TaskManager's JVM: no container, no second harness.
        "--defaultEnvironmentType=EMBEDDED",
        "--experiments=use_deprecated_read",
        # Else each expansion hands out its whole class path, 200 MB, which travels with the job to every part.
        f"--filesToStage={artifacts.empty_jar()}",
    )
    return Command(words, _engine_env())


def _workers(place: Place) -> Command:
    words = (
        sys.executable,
        "-m",
        "runners.local.workers",
        "pool",
        f"--port={place.ports.workers}",
        f"--logs={place.logs}",
        f"--pids={place.run / 'workers.json'}",
        f"--secrets={place.secrets}",
    )
    # A case from elsewhere is found where the caller finds it.
    found = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return Command(words, {"PYTHONPATH": os.pathsep.join(found)})


def _llm(place: Place) -> Command:
    return Command(llm.command(place.ports.llm))


def _registry(place: Place) -> Command:
    folder = artifacts.path_of(artifacts.registry())
    words = _java(
        place,
        *_MODEST,
        "-Xmx192m",
        "-XX:MaxMetaspaceSize=192m",
        f"-Dquarkus.http.host={HOST}",
        f"-Dquarkus.http.port={place.ports.registry}",
        "-Dquarkus.http.access-log.enabled=false",
        "-Dquarkus.banner.enabled=false",
        # Schemas outlive the process: a subject that was registered yesterday is still there.
        f"-Dapicurio.datasource.url=jdbc:h2:file:{_folder(place.data / 'registry')}/registry",
        "-jar",
        *(str(jar) for jar in sorted(folder.glob("*-runner.jar"))[:1]),
    )
    return Command(words, {"MALLOC_ARENA_MAX": "2"})


def _connect(place: Place) -> Command:
    settings = place.conf / "connect.properties"
    _write(settings, flinkconf.connect_properties(place.ports, _folder(place.data / "connect")))
    words = _java(
        place,
        *_MODEST,
        "-Xms64m",
        "-Xmx192m",
        "-XX:MaxMetaspaceSize=160m",
        "org.apache.kafka.connect.cli.ConnectStandalone",
        str(settings),
    )
    return Command(words, _java_env(artifacts.path_of(artifacts.connect())))


def _postgresql(place: Place) -> Command:
    server = postgresql.Server(
        programs=artifacts.path_of(artifacts.postgresql()),
        data=place.data / "postgresql",
        password=postgresql.keep_password(place.secrets),
        port=place.ports.postgresql,
    )
    return Command(server.words(), {"PYTHONPATH": str(ROOT)})


def _write(path: Path, content: str) -> None:
    _folder(path.parent)
    path.write_text(content)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


PARTS: tuple[Part, ...] = (
    Part(
        "kafka",
        _kafka,
        lambda place: probes.kafka(place.ports.address("kafka")),
        port_names=("kafka", "kafka_controller"),
        artifacts=lambda: (artifacts.kafka_jars(),),
        tools=(JAVA,),
        memory_mib=600,
    ),
    Part(
        "jobmanager",
        _jobmanager,
        lambda place: probes.http(f"http://{place.ports.address('flink')}/overview"),
        port_names=("flink", "flink_rpc", "metrics_jobmanager"),
        artifacts=lambda: (artifacts.flink(), artifacts.beam_jars()),
        tools=(JAVA,),
        memory_mib=600,
    ),
    Part(
        "taskmanager",
        _taskmanager,
        lambda place: probes.flink_slots(place.ports.address("flink"), flinkconf.SLOTS),
        port_names=("metrics_taskmanager",),
        artifacts=lambda: (artifacts.flink(), artifacts.beam_jars()),
        tools=(JAVA,),
        requires=("jobmanager",),
        memory_mib=flinkconf.TaskManagerMemory().process_mib,
    ),
    Part(
        "jobserver",
        _job_server,
        lambda place: probes.grpc(place.ports.address("job_server")),
        port_names=("job_server", "artifacts"),
        artifacts=lambda: (artifacts.flink(), artifacts.beam_jars()),
        tools=(JAVA,),
        requires=("jobmanager", "taskmanager"),
        memory_mib=500,
    ),
    Part(
        "workers",
        _workers,
        lambda place: probes.grpc(place.ports.address("workers")),
        port_names=("workers",),
        memory_mib=700,
    ),
    Part(
        "llm",
        _llm,
        lambda place: probes.http(f"http://{place.ports.address('llm')}/health"),
        port_names=("llm",),
        artifacts=lambda: (artifacts.llm_environment(),),
        memory_mib=600,
    ),
    Part(
        "expansion",
        _expansion,
        lambda place: probes.grpc(place.ports.address("expansion")),
        port_names=("expansion",),
        artifacts=lambda: (artifacts.flink(), artifacts.beam_jars()),
        tools=(JAVA,),
        memory_mib=400,
        on_request=True,
    ),
    Part(
        "registry",
        _registry,
        lambda place: probes.http(f"http://{place.ports.address('registry')}/apis/registry/v3/system/info"),
        port_names=("registry",),
        artifacts=lambda: (artifacts.registry(),),
        tools=(JAVA,),
        memory_mib=400,
        on_request=True,
    ),
    Part(
        "connect",
        _connect,
        lambda place: probes.http(f"http://{place.ports.address('connect')}/health"),
        port_names=("connect",),
        artifacts=lambda: (artifacts.connect(),),
        tools=(JAVA,),
        requires=("kafka",),
        memory_mib=450,
        on_request=True,
    ),
    Part(
        "postgresql",
        _postgresql,
        lambda place: probes.postgresql(HOST, place.ports.postgresql, postgresql.USER),
        port_names=("postgresql",),
        artifacts=lambda: (artifacts.postgresql(),),
        memory_mib=150,
        on_request=True,
        check=lambda place: postgresql.check_home(place.home),
        url=lambda place: postgresql.url(place.ports.postgresql),
    ),
)
"""Every part of the real stack, in the order they are shown."""


def submitter(master: str, has_jars: bool) -> tuple[Part, ...]:
    """What submits to a Flink that runs elsewhere, at `master` (its REST port): job server and workers.

    `has_jars`: that Flink has Beam's jars on its class path, so that none are uploaded.
    """
    names = {part.name: part for part in PARTS}
    command = _job_server_with_jars(master) if has_jars else _job_server_of(master)
    return (replace(names["jobserver"], command=command, requires=()), names["workers"])


GROUPS = {"flink": ("jobmanager", "taskmanager", "jobserver")}
"""Names that stand for several parts."""
