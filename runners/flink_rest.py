"""Flink's REST interface, as far as this project steers jobs with it."""

from __future__ import annotations

from typing import Any

import requests

from transforms.errors import SettingsError

_TIMEOUT_S = 5.0


class FlinkRest:
    """One Flink cluster, by HOST:PORT of its REST port. Every method raises `requests.RequestException` where it is gone."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._base = f"http://{address}"

    def check(self) -> None:
        """Raises SettingsError where no Flink answers at the address."""
        try:
            version = self._get("/overview")["flink-version"]
        except (requests.RequestException, KeyError, ValueError):
            raise SettingsError(
                f"--flink_master={self._address}: no Flink answers there; give HOST:PORT of its REST port."
            ) from None
        del version

    def version(self) -> str:
        """Flink's version, such as ``1.20.5``."""
        return str(self._get("/overview")["flink-version"])

    def task_managers(self) -> int:
        """How many TaskManagers the cluster has."""
        return int(self._get("/overview")["taskmanagers"])

    def job_named(self, name: str) -> str | None:
        """The id of the youngest job of this name, or None."""
        jobs = [job for job in self._get("/jobs/overview")["jobs"] if job["name"] == name]
        return max(jobs, key=lambda job: int(job["start-time"]))["jid"] if jobs else None

    def state(self, job: str) -> str:
        """The job's state in Flink's words, such as ``RUNNING``."""
        return str(self._get(f"/jobs/{job}")["state"])

    def is_running(self, job: str) -> bool:
        """Whether every task of the job is running."""
        facts = self._get(f"/jobs/{job}")
        return facts["state"] == "RUNNING" and all(vertex["status"] == "RUNNING" for vertex in facts["vertices"])

    def was_restarted(self, job: str) -> bool:
        """Whether the job was ever restarted after a failure."""
        return bool(self._get(f"/jobs/{job}")["timestamps"].get("RESTARTING", 0))

    def drain(self, job: str) -> None:
        """Ends the job's input: what is under way is finished, then the job ends, with a savepoint in the cluster's folder."""
        self._post(f"/jobs/{job}/stop", {"drain": True})

    def stop_with_savepoint(self, job: str) -> None:
        """Makes a savepoint and cancels the job; what is under way stays in the savepoint, whose place `savepoint` says.

        Not Flink's `stop` without a drain: Beam's sources in Java end their input when they are stopped, before the savepoint is made,
        and then what is under way is waited for (docs/adr/0013). The source of Kafka does not, but a job may have others.
        """
        self._post(f"/jobs/{job}/savepoints", {"cancel-job": True})

    def savepoint(self, job: str) -> str | None:
        """Where the job's latest savepoint lies, as ``--savepoint_path`` takes it; None where it has none."""
        latest = self._get(f"/jobs/{job}/checkpoints")["latest"]["savepoint"]
        return None if latest is None else str(latest["external_path"])

    def cancel(self, job: str) -> None:
        """Ends the job at once. What is under way is lost to it; Kafka's offsets stay where the last checkpoint put them."""
        requests.patch(f"{self._base}/jobs/{job}", params={"mode": "cancel"}, timeout=_TIMEOUT_S).raise_for_status()

    def _get(self, path: str) -> Any:
        response = requests.get(self._base + path, timeout=_TIMEOUT_S)
        response.raise_for_status()
        return response.json()

    def _post(self, path: str, body: dict[str, Any]) -> None:
        requests.post(self._base + path, json=body, timeout=_TIMEOUT_S).raise_for_status()
