"""A real MLServer for ``scripts/bench wire``: scikit-learn behind Open Inference V2, over HTTP and gRPC, in its own environment."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from runners.local import mlserver
from runners.local.part import StackError

_MODEL = """
import sys, joblib, numpy
from sklearn.linear_model import LinearRegression
features = int(sys.argv[1])
model = LinearRegression().fit(numpy.eye(features), numpy.ones(features))
joblib.dump(model, sys.argv[2])
"""


def model_name(features: int) -> str:
    """The name of the model of records with so many features."""
    return f"features-{features}"


@contextlib.contextmanager
def running(folder: Path, features: Sequence[int]) -> Iterator[tuple[str, str]]:
    """An MLServer with a model for each number of features while the body runs; gives its addresses for HTTP and gRPC.

    Raises StackError where it cannot be installed, or is not ready in time.
    """
    models = {model_name(number): folder / f"{model_name(number)}.joblib" for number in features}
    for number in features:
        _write_model(models[model_name(number)], number)
    with mlserver.serve(models, log=folder / "mlserver.log") as server:
        yield server.base_url, server.grpc_url.removeprefix("grpc://")


def _write_model(path: Path, features: int) -> None:
    words = [str(mlserver.python()), "-c", _MODEL, str(features), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"The model of scikit-learn could not be made: {done.stderr[-1_000:]}")
