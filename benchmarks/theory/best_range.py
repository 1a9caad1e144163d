"""Search by the exact formulas for a setting in which a range of ratios has a lower risk than the best fixed ratio.

    python benchmarks/theory/best_range.py -o OUT            # a few minutes on one core
    python benchmarks/theory/best_range.py -o OUT --quick

The settings are those that the paper's text allows: covariates per row, noise, covariance (identity, one spike, two groups
of spikes, spectra from even to concentrated, low rank), signal (an eigenvector, one aligned with a spike, one spread over
groups), and the center and width of the range. Eigenvectors are columns of a Hadamard matrix, so that all covariates have
equal variance, the limit of random eigenvectors. Random settings are drawn first; then the relative excess of each family
is minimized from the lowest of them (Nelder and Mead), over settings in which the best fixed ratio has at most 90 % of the
null risk and ranges have at least a tenth of the largest width around their center. Writes ``best_range.csv`` and
``best_range_random.csv``; ``--check N`` simulates N data sets of the lowest setting, with 256 covariates.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from common import parser, write_csv
from scipy.linalg import hadamard
from scipy.optimize import minimize

from scr2mae import theory

D = 64
BASIS = hadamard(D) / np.sqrt(D)
NARROWEST, OF_USE = 0.1, 0.9
SMALLEST, LARGEST = 0.002, 0.998
# Bounds of log gamma, log of noise over null risk, logit of the center, and width of the range over the widest one.
COMMON = [(np.log(0.02), np.log(40)), (np.log(1e-5), np.log(10)), (-5, 3.5), (NARROWEST, 0.98)]
WIDTHS = (0.1, 0.3, 0.9)
FAMILIES = {
    "identity": [],
    "one spike": [(-2, 8), (0, 1)],  # log strength, share of the signal along it
    "two groups of spikes": [(0.01, 0.5), (-2, 8), (0.01, 0.5), (-2, 8), (-6, 6), (-6, 6)],
    # Log of the largest over the smallest eigenvalue, concentration, and the signal's quantile or exponent.
    "spectrum, eigenvector": [(0, 7), (0.1, 20), (0, 1)],
    "spectrum, power law": [(0, 7), (0.1, 20), (-4, 4)],
    "low rank": [
        (0.02, 0.6),
        (-2, 8),
        (0, 1),
    ],  # share of directions, log strength, share of the signal in them
}


def make(family, x):
    """Return eigenvalues and the signal in the eigenbasis."""
    values, signal = np.ones(D), np.ones(D)
    if family == "one spike":
        values[0] += np.exp(x[0])
        signal = np.r_[np.sqrt(x[1]), np.full(D - 1, np.sqrt((1 - x[1]) / (D - 1)))]
    elif family == "two groups of spikes":
        n, m = (max(1, round(share * D / 2)) for share in (x[0], x[2]))
        values[:n] += np.exp(x[1])
        values[n : n + m] += np.exp(x[3])
        shares = np.exp([x[4], x[5], 0.0])
        sizes = np.array([n, m, D - n - m])
        signal = np.sqrt(np.repeat(shares / shares.sum() / sizes, sizes))
    elif family.startswith("spectrum"):
        values = 1 + (np.exp(x[0]) - 1) * np.linspace(0, 1, D) ** x[1]
        signal = np.eye(D)[round(x[2] * (D - 1))] if family.endswith("eigenvector") else values ** x[2]
    elif family == "low rank":
        n = max(1, round(x[0] * D))
        values[:n] += np.exp(x[1])
        signal = np.r_[np.full(n, np.sqrt(x[2] / n)), np.full(D - n, np.sqrt((1 - x[2]) / (D - n)))]
    return values, signal / np.linalg.norm(signal)


def setting(family, x):
    """Return the arguments of the risks, and the null risk."""
    values, signal = make(family, x[4:])
    matrix = (BASIS * values) @ BASIS.T
    covariance = theory.Covariance((matrix + matrix.T) / 2)
    null = float(signal**2 @ values)
    model = {
        "gamma": float(np.exp(x[0])),
        "covariance": covariance,
        "beta": BASIS @ signal,
        "noise_variance": float(np.exp(x[1]) * null),
    }
    return model, null


def best_fixed(model):
    """Return the best fixed ratio, searched on a grid that is denser at both ends."""
    risk = partial(theory.general_risk, **model)
    parts = ((SMALLEST, 0.06), (0.05, 0.5), (0.4, LARGEST))
    found = [theory.optimal_ratio(risk, gamma=model["gamma"], bounds=part, n_grid=30) for part in parts]
    return min(found, key=lambda each: each.risk)


def ends(x):
    """Return the ends of the range."""
    center = 1 / (1 + np.exp(-x[2]))
    half = x[3] * min(center, 1 - center)
    return center - half, center + half


def excess(x, family):
    """Return the risk of a range over that of the best fixed ratio, minus one; one if the setting does not count."""
    try:
        model, null = setting(family, x)
        best = best_fixed(model)
        low, high = ends(x)
        if best.risk > OF_USE * null:
            return 1.0
        return theory.r2mae_risk((low, high), **model) / best.risk - 1
    except (ValueError, RuntimeError):  # a mean ratio at the pole
        return 1.0


def random_settings(family, n, seed):
    """Yield the excess of ranges around the best ratio of random settings, for several widths."""
    rng = np.random.default_rng(seed)
    bounds = np.array(COMMON + FAMILIES[family])
    for _ in range(n):
        x = rng.uniform(*bounds.T)
        model, null = setting(family, x)
        best = best_fixed(model)
        if best.risk > OF_USE * null or not SMALLEST < best.ratio < LARGEST:
            continue
        for width in WIDTHS:
            half = width * min(best.ratio, 1 - best.ratio)
            if abs(best.ratio / model["gamma"] - 1) < 1e-3:
                continue
            value = theory.r2mae_risk((best.ratio - half, best.ratio + half), **model) / best.risk - 1
            center = np.log(best.ratio / (1 - best.ratio))
            yield {
                "x": np.r_[x[:2], center, width, x[4:]],
                "family": family,
                "width": width,
                "gamma": model["gamma"],
                "noise_over_null": model["noise_variance"] / null,
                "best_ratio": best.ratio,
                "excess_percent": 100 * value,
            }


def lowest(family, starts, maxiter):
    """Return the lowest excess from several starts, its setting, and the number of settings tried."""
    bounds = COMMON + FAMILIES[family]
    low, high = np.array(bounds).T
    options = {"args": (family,), "method": "Nelder-Mead", "bounds": bounds, "options": {"maxfev": maxiter}}
    found = [minimize(excess, np.clip(start, low, high), **options) for start in starts]
    best = min(found, key=lambda each: each.fun)
    return best.fun, best.x, sum(each.nfev for each in found)


def check(family, x, n_draws, n_jobs):
    """Print the paired excess of the range over the best fixed ratio, in simulations of a larger size."""
    global D, BASIS
    D, BASIS = 256, hadamard(256) / 16
    model, _ = setting(family, x)
    best, law = best_fixed(model), ends(x)
    run = theory.simulate_risk([best.ratio, law], n_draws=n_draws, seed=0, n_jobs=n_jobs, **model)
    fixed, mine = run.risks.T
    difference = 100 * (mine - fixed) / fixed.mean()
    error = difference.std(ddof=1) / np.sqrt(n_draws)
    exact = 100 * (theory.r2mae_risk(law, **model) / best.risk - 1)
    print(
        f"{family}, 256 covariates: simulated excess {difference.mean():.2f} ± {error:.2f} %, by the formula {exact:.2f} %"
    )


def main() -> None:
    """Search, print and write the tables."""
    options = parser(__doc__)
    options.add_argument(
        "--check", type=int, default=0, metavar="N", help="simulated data sets of the lowest setting"
    )
    args = options.parse_args()
    n_random, n_starts, maxiter = (30, 1, 40) if args.quick else (400, 4, 250)
    drawn = [row for family in FAMILIES for row in random_settings(family, n_random, seed=1)]
    write_csv(
        args.output / "best_range_random.csv", [{k: v for k, v in row.items() if k != "x"} for row in drawn]
    )
    for width in WIDTHS:
        values = np.array([row["excess_percent"] for row in drawn if row["width"] == width])
        print(
            f"width {width}: {(values < 0).sum()} of {values.size} ranges below the best ratio, least {values.min():.2g} %"
        )
    rows, settings = [], {}
    for family in FAMILIES:
        mine = sorted(
            (row for row in drawn if row["family"] == family), key=lambda row: row["excess_percent"]
        )
        value, x, n_settings = lowest(family, [row["x"] for row in mine[:n_starts]], maxiter)
        settings[family] = value, x
        low, high = ends(x)
        rows.append(
            {
                "family": family,
                "settings": n_settings,
                "least_excess_percent": 100 * float(value),
                "gamma": float(np.exp(x[0])),
                "noise_over_null": float(np.exp(x[1])),
                "best_ratio": best_fixed(setting(family, x)[0]).ratio,
                "low": float(low),
                "high": float(high),
                "strongest": float(make(family, x[4:])[0].max()),
            }
        )
        print(rows[-1], flush=True)
    write_csv(args.output / "best_range.csv", rows)
    if args.check:
        family = min(settings, key=lambda name: settings[name][0])
        check(family, settings[family][1], args.check, args.jobs)


if __name__ == "__main__":
    main()
