"""Trains the fraud model: ``python train.py training.csv model.joblib``. Runs in the environment of MLServer, not in this project's.

A gradient boosting of scikit-learn on the columns of the file, the last of which is the label; its probabilities are calibrated by
cross-validation (Platt's sigmoid). The same file gives the same model.
"""

from __future__ import annotations

import sys

import joblib
import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier


def train(rows: np.ndarray) -> CalibratedClassifierCV:
    """The model of `rows`, whose last column is 1 for fraud and 0 for the others."""
    base = HistGradientBoostingClassifier(max_iter=60, learning_rate=0.1, max_leaf_nodes=15, random_state=1)
    return CalibratedClassifierCV(base, method="sigmoid", cv=5).fit(rows[:, :-1], rows[:, -1].astype(int))


if __name__ == "__main__":
    source, target = sys.argv[1:]
    joblib.dump(train(np.loadtxt(source, delimiter=",", skiprows=1)), target)
