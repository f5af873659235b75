"""One real stack for all jobs of the end-to-end tests, and a model on a real socket."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from runners.local.ports import Ports
from runners.local.stack import Stack
from tests.contract import postgresql
from tests.e2e.engine import Topics
from transforms.remote.model_double import ModelDouble

PARTS = ("kafka", "jobmanager", "taskmanager", "jobserver", "workers")


@pytest.fixture(scope="session")
def fuses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of fuses that worker processes see, as they see the password of the tests' database; made before the stack is."""
    folder = tmp_path_factory.mktemp("fuses")
    os.environ.update({"FARCALL_TEST_FUSES": str(folder), postgresql.PASSWORD_NAME: postgresql.PASSWORD})
    yield folder
    del os.environ["FARCALL_TEST_FUSES"], os.environ[postgresql.PASSWORD_NAME]


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, fuses: Path) -> Iterator[Stack]:
    """Kafka, Flink, job server and workers, on ports of their own."""
    stack = Stack(tmp_path_factory.mktemp("engine"), Ports.free())
    stack.up(PARTS)
    yield stack
    stack.down()


@pytest.fixture
def topics(engine: Stack) -> Topics:
    """Topics of this test alone."""
    return Topics(engine, f"t{uuid.uuid4().hex[:6]}")


@pytest.fixture
def double() -> Iterator[ModelDouble]:
    """A model server on a real socket, with replies that depend on the question alone."""
    with ModelDouble(0, latency_ms=150.0, sigma=0.6) as server:
        yield server
