"""Compare the probes with a plain grid search over scikit-learn's estimators, both sides in one run.

Both see the same float64 features, the same folds (grouped by donor) and the grids of the paper. The features
imitate an embedding: a decaying spectrum, rotated, with an offset per donor. Prints wall and CPU seconds; on a busy
machine compare CPU seconds. ``--no-search`` times the probes alone, at sizes that are too large for the grid search.

    OMP_NUM_THREADS=1 python benchmarks/probe_solvers.py --n-obs 20000 --n-features 512
"""

import json
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold

from common_setup import make_parser
from scr2mae.probe import LogisticProbe, RidgeProbe


def simulate(n_obs: int, n_features: int, n_classes: int, n_donors: int, seed: int = 0) -> dict[str, Any]:
    """Return features with overlapping classes and donor offsets."""
    rng = np.random.default_rng(seed)
    y, donors = rng.integers(0, n_classes, n_obs), rng.integers(0, n_donors, n_obs)
    spectrum = np.logspace(0.5, -1.5, n_features)
    centers, offsets = rng.normal(size=(n_classes, n_features)), rng.normal(size=(n_donors, n_features))
    Z = rng.normal(size=(n_obs, n_features)) + 0.18 * centers[y] + 0.3 * offsets[donors]
    X = (Z * spectrum) @ np.linalg.qr(rng.normal(size=(n_features, n_features)))[0]
    age = 50 + X @ rng.normal(size=n_features) + 10 * rng.normal(size=n_obs)
    return {"X": X, "y": y, "age": age, "donors": donors}


def timed(fit: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the result of a call, its seconds, and the largest memory so far."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = fit()
    # Kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return result, {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_gb_so_far": peak / 1e9,
    }


def compare_ridge(data: dict[str, Any], *, search: bool) -> dict[str, Any]:
    """Compare ridge regressions."""
    X, y, donors = data["X"], data["age"], data["donors"]
    probe, ours = timed(lambda: RidgeProbe(cv=GroupKFold(5)).fit(X, y, groups=donors))
    if not search:
        return {"ours": ours, "penalty": probe.alpha_}
    grid = GridSearchCV(
        Ridge(), {"alpha": np.logspace(0, 8, 20)}, cv=GroupKFold(5), scoring="neg_mean_squared_error"
    )
    grid, theirs = timed(lambda: grid.fit(X, y, groups=donors))
    expected = grid.predict(X)
    return {
        "ours": ours,
        "grid_search": theirs,
        "speedup_cpu": theirs["cpu_s"] / ours["cpu_s"],
        "same_penalty": bool(probe.alpha_ == grid.best_params_["alpha"]),
        "penalty": probe.alpha_,
        "largest_relative_difference": float(np.max(np.abs(probe.predict(X) - expected)) / np.std(expected)),
    }


def compare_logistic(data: dict[str, Any], *, search: bool) -> dict[str, Any]:
    """Compare logistic regressions."""
    X, y, donors = data["X"], data["y"], data["donors"]
    probe, ours = timed(lambda: LogisticProbe(cv=GroupKFold(5)).fit(X, y, groups=donors))
    if not search:
        return {"ours": ours, "C": probe.C_, "steps_of_the_last_fit": probe.n_iter_}
    Cs = np.logspace(-6, 2, 10)
    grid = GridSearchCV(
        LogisticRegression(max_iter=1000), {"C": Cs}, cv=GroupKFold(5), scoring="balanced_accuracy"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        grid, theirs = timed(lambda: grid.fit(X, y, groups=donors))
    scores = grid.cv_results_["mean_test_score"]
    # Plain L-BFGS stops early at weak penalties, so a converged path is the judge of both choices.
    judge = LogisticProbe(cv=GroupKFold(5), tol=1e-6).fit(X, y, groups=donors).cv_scores_.mean(axis=0)
    lost = {
        name: float(judge.max() - judge[np.isclose(Cs, C)][0])
        for name, C in (("ours", probe.C_), ("grid_search", grid.best_params_["C"]))
    }
    return {
        "ours": ours,
        "grid_search": theirs,
        "grid_search_fits_not_converged": sum(issubclass(w.category, ConvergenceWarning) for w in caught),
        "speedup_cpu": theirs["cpu_s"] / ours["cpu_s"],
        "C_ours": probe.C_,
        "C_grid_search": float(grid.best_params_["C"]),
        "score_lost_by_choice": lost,
        "scores_ours": probe.cv_scores_.mean(axis=0).round(5).tolist(),
        "scores_converged": judge.round(5).tolist(),
        "scores_grid_search": scores.round(5).tolist(),
    }


def main() -> None:
    parser = make_parser(__doc__, data=False, out=False)
    parser.add_argument("--n-obs", type=int, default=20_000)
    parser.add_argument("--n-features", type=int, default=512)
    parser.add_argument("--n-classes", type=int, default=10)
    parser.add_argument("--n-donors", type=int, default=20)
    parser.add_argument("--only", choices=["ridge", "logistic"])
    parser.add_argument("--no-search", action="store_true")
    args = parser.parse_args()
    data = simulate(args.n_obs, args.n_features, args.n_classes, args.n_donors)
    print(
        json.dumps({**vars(args), "sklearn": sklearn.__version__, "machine": platform.machine()}), flush=True
    )
    for name, compare in (("ridge", compare_ridge), ("logistic", compare_logistic)):
        if args.only in (None, name):
            print(name, json.dumps(compare(data, search=not args.no_search), indent=2), flush=True)


if __name__ == "__main__":
    main()
