"""FlinkRunner: production. The options that decide latency and safety, and why each has its value (docs/adr/0004)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from runners.runner import Runner, value_of, with_defaults
from transforms.errors import SettingsError

DEFAULT_PARALLELISM = 2
CHECKPOINT_INTERVAL_MS = 2_000
MAX_BUNDLE_TIME_MS = 20
MAX_BUNDLE_SIZE = 1_000
DATA_BUFFER_SIZE_LIMIT_BYTES = 4_000
MAX_PARALLELISM = 128
FINISH_BUNDLES = "--finish_bundle_before_checkpointing"

NO_CHAINS = "--operator_chaining"
"""Turns the chaining of operators off: Beam's Python SDK makes of an option of the runner that is true by default a flag without a
value that turns it off."""

_DATA_BUFFER = "data_buffer_size_limit"


@dataclass(frozen=True)
class FlinkEndpoints:
    """Where the parts that submit a job listen, each as HOST:PORT."""

    job_server: str
    worker_pool: str


def common_options(arguments: Sequence[str]) -> list[str]:
    """What every streaming job of ours on Flink needs, whichever engine runs it; a flag or experiment that is given wins."""
    options = with_defaults(
        arguments,
        [
            "--streaming",
            f"--parallelism={DEFAULT_PARALLELISM}",
            # Shard keys are chosen for this number of key groups (transforms/ask/shards.py).
            f"--max_parallelism={MAX_PARALLELISM}",
            # Flink's default is no checkpoints at all.
            f"--checkpointing_interval={CHECKPOINT_INTERVAL_MS}",
            # Beam's default of 1 000 ms costs 1.4 to 2.2 s per event. Each operator looks twice in this time whether its bundle is old
            # enough, all the time: at 5 ms that alone takes most of a small machine where a graph is large.
            f"--max_bundle_time_mills={MAX_BUNDLE_TIME_MS}",
            f"--max_bundle_size={MAX_BUNDLE_SIZE}",
            # By default Beam begins a checkpoint in the middle of a bundle and keeps what the bundle still gives in the operator's
            # state until its next bundle begins: the last record before a silence would wait for the next one for ever.
            FINISH_BUNDLES,
            # Flink finds the state of Beam's Impulse again by a hash that has in it whether its operator is chained to the next, and
            # that depends on the parallelism: with chains, a savepoint could not be resumed at another one. Almost all steps here are
            # behind keys, where nothing is chained anyway.
            NO_CHAINS,
            "--sdk_worker_parallelism=1",
        ],
    )
    if not any(option.startswith("--experiments=") and _DATA_BUFFER in option for option in options):
        # By default what a bundle is given leaves Flink when the bundle ends there: a timer that listens would begin 20 ms late.
        # Those are longer than this buffer (transforms/ask/holds.py). The experiment `data_buffer_time_limit_ms` is no way out: it
        # leaves a thread behind with each bundle (Beam 2.59).
        options.append(f"--experiments={_DATA_BUFFER}={DATA_BUFFER_SIZE_LIMIT_BYTES}")
    return options


def bounded_options(arguments: Sequence[str]) -> list[str]:
    """`arguments`, with what lets a job over files end: with checkpoints on, Beam keeps its bounded sources open for ever."""
    return with_defaults(arguments, ["--shutdown_sources_after_idle_ms=100"])


def pinned_options(arguments: Sequence[str], endpoints: FlinkEndpoints) -> list[str]:
    """Beam's flags for the pinned job server at `endpoints`."""
    own = [
        "--runner=PortableRunner",
        f"--job_endpoint={endpoints.job_server}",
        "--environment_type=EXTERNAL",
        f"--environment_config={endpoints.worker_pool}",
    ]
    rest = [argument for argument in arguments if not argument.startswith(("--flink_master", "--files_to_stage"))]
    return with_defaults(common_options(rest), own)


def beam_options(arguments: Sequence[str]) -> list[str]:
    """Beam's flags for Beam's own published job server, which Beam fetches and starts itself."""
    return with_defaults(common_options(arguments), ["--runner=FlinkRunner", "--environment_type=LOOPBACK"])


def has_jars(arguments: Sequence[str]) -> bool:
    """Whether the cluster has Beam's jars on its class path, said by an empty ``--files_to_stage=``: then none are uploaded."""
    return value_of(arguments, "--files_to_stage") == ""


def master(arguments: Sequence[str]) -> str | None:
    """The cluster that is named, HOST:PORT, or None for the local stack. Raises SettingsError for anything else."""
    value = value_of(arguments, "--flink_master")
    if value is None or value in {"", "[auto]"}:
        return None
    address = re.sub(r"^https?://", "", value).rstrip("/")
    if address == "[local]":
        return address
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) <= 65535:
        raise SettingsError(f"--flink_master={value}: is not HOST:PORT of Flink's REST port.")
    return address


def parallelism(arguments: Sequence[str]) -> int:
    """The job's parallelism among flags that Beam has read, ours by default; 0 where it is left to the cluster (-1)."""
    value = value_of(arguments, "--parallelism")
    return DEFAULT_PARALLELISM if value is None else max(0, int(value))


def worker_processes(arguments: Sequence[str]) -> int:
    """How many worker processes the job has on each TaskManager: Beam's ``--sdk_worker_parallelism``, 1 unless it is said.

    Raises SettingsError for what is no number.
    """
    value = value_of(arguments, "--sdk_worker_parallelism")
    if value is None:
        return 1
    if not value.isdigit():
        raise SettingsError(f"--sdk_worker_parallelism={value}: must be a number of worker processes.")
    return max(1, int(value))


def _check(arguments: Sequence[str], engine: str) -> None:
    if value_of(arguments, "--load_balance_bundles") is not None:
        raise SettingsError(
            "--load_balance_bundles: moves bundles of a shard between workers, which the asynchronous step cannot have; leave it out."
        )
    most = value_of(arguments, "--max_parallelism")
    if most is not None and most != str(MAX_PARALLELISM):
        raise SettingsError(
            f"--max_parallelism={most}: must be {MAX_PARALLELISM}, for which the shards' keys are chosen."
        )
    address = master(arguments)
    if engine == "beam" and address is None:
        raise SettingsError(
            "--engine=beam needs --flink_master=HOST:PORT (or [local]); the local stack has the pinned pair."
        )
    if value_of(arguments, "--flink_submit_uber_jar") is not None and engine == "pinned":
        raise SettingsError("--flink_submit_uber_jar needs --engine=beam; the pinned job server submits by itself.")
    if engine == "pinned" and address == "[local]":
        raise SettingsError(
            "--flink_master=[local] needs --engine=beam; without --flink_master the local stack is used."
        )


# From Beam's FlinkPipelineOptions (Java), as documented for the Flink runner.
JAVA_FLAGS = (
    "--allow_non_restored_state",
    "--auto_balance_write_files_sharding_enabled",
    "--auto_watermark_interval",
    "--attach_mode",
    "--checkpoint_timeout_millis",
    "--checkpointing_interval",
    "--checkpointing_mode",
    "--disable_metrics",
    "--enable_stable_input_drain",
    "--execution_mode_for_batch",
    "--execution_retry_delay",
    "--externalized_checkpoints_enabled",
    "--fail_on_checkpointing_errors",
    "--faster_copy",
    "--file_input_split_max_size_m_b",
    "--files_to_stage",
    "--finish_bundle_before_checkpointing",
    "--flink_conf_dir",
    "--force_slot_sharing_group",
    "--force_unaligned_checkpoint_enabled",
    "--jobcheck_interval_in_secs",
    "--latency_tracking_interval",
    "--load_balance_bundles",
    "--max_bundle_size",
    "--max_bundle_time_mills",
    "--min_pause_between_checkpoints",
    "--num_concurrent_checkpoints",
    "--number_of_execution_retries",
    "--object_reuse",
    "--operator_chaining",
    "--re_iterable_group_by_key_result",
    "--report_checkpoint_duration",
    "--retain_externalized_checkpoints_on_cancellation",
    "--savepoint_path",
    "--shutdown_sources_after_idle_ms",
    "--state_backend",
    "--state_backend_storage_path",
    "--tolerable_checkpoint_failure_number",
    "--unaligned_checkpoint_enabled",
    "--use_data_stream_for_batch",
)

RUNNER = Runner(name="FlinkRunner", reads_kafka=True, in_process=False, check=_check, java_flags=JAVA_FLAGS)
