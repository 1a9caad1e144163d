from dataclasses import dataclass

import numpy as np
import pytest


@dataclass
class Cells:
    """Simulated embedding with classes, a number, a decaying spectrum and an offset per donor."""

    X: np.ndarray
    y: np.ndarray
    age: np.ndarray
    donors: np.ndarray


@pytest.fixture
def make_cells():
    def make(n_obs=600, n_features=20, n_classes=4, n_donors=9, seed=0) -> Cells:
        rng = np.random.default_rng(seed)
        donor, y = rng.integers(0, n_donors, n_obs), rng.integers(0, n_classes, n_obs)
        spectrum = np.logspace(0.5, -2, n_features)
        centers, offsets = rng.normal(size=(n_classes, n_features)), rng.normal(size=(n_donors, n_features))
        Z = rng.normal(size=(n_obs, n_features)) + 0.7 * centers[y] + 0.4 * offsets[donor]
        X = (Z * spectrum) @ np.linalg.qr(rng.normal(size=(n_features, n_features)))[0] + 2.0
        age = 50 + X @ rng.normal(size=n_features) + 3 * rng.normal(size=n_obs)
        return Cells(X=X, y=y, age=age, donors=np.array([f"d{i}" for i in donor]))

    return make
