"""Compare all risk formulas with simulations whose standard error is below 1 %.

    python benchmarks/theory/agreement.py -o OUT            # 300 and 1000 covariates
    python benchmarks/theory/agreement.py -o OUT --quick    # 300 covariates, three covariances
    python benchmarks/theory/agreement.py -o OUT --sizes 1000 --models isotropic spiked

A point is a formula, a covariance, a signal, gamma and a ratio (or law of ratios), on either side of p = gamma and at least
20 % away from it. It agrees if formula and mean differ by at most three standard errors plus 2 % at 300 covariates and 1 % at
1000 (Corollary 1, a limit for the spike alone: 6 % and 2 %). What is in ``OUT/agreement.csv`` is not drawn again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from common import PALETTE, parser, plt, save, write_csv

from scr2mae import theory
from scr2mae.theory import Covariance, RatioLaw

RATIOS = np.array([0.12, 0.24, 0.4, 0.56, 0.7, 0.8])
LAWS = (
    theory.RatioLaw.uniform(0.1, 0.4),
    theory.RatioLaw.uniform(0.2, 0.6),
    theory.RatioLaw.uniform(0.3, 0.8),
    theory.RatioLaw.discrete([0.15, 0.4, 0.6], [0.4, 0.3, 0.3]),
)
NOISE = {0.375: 1.0, 1.5: 0.2, 4.0: 0.02}
TOLERANCE = {300: 0.02, 1000: 0.01}
TOLERANCE_COROLLARY = {300: 0.06, 1000: 0.02}
PRECISION = 0.0095
BLOCK = 20


def decaying(d: int) -> Covariance:
    """Return a covariance with correlation .6 between neighbors and variances from .2 to 5; masking changes its eigenvectors."""
    scale = np.sqrt(np.geomspace(0.2, 5, d))
    return theory.Covariance(
        np.outer(scale, scale) * 0.6 ** np.abs(np.subtract.outer(np.arange(d), np.arange(d)))
    )


MODELS: dict[str, Callable[[int], Covariance]] = {
    "isotropic": theory.isotropic_covariance,
    "spiked": lambda d: theory.spiked_covariance(d, spike=8.0, direction="ones"),
    "latent": lambda d: theory.latent_covariance(d, n_factors=d // 4, seed=1),
    "unequal variances": decaying,
    "uniform": lambda d: theory.uniform_covariance(d, seed=1),
    "beta": lambda d: theory.beta_covariance(d, seed=1),
    "low rank": lambda d: theory.low_rank_covariance(d, rank=d // 10, strength=30.0, seed=1),
}


def signals(name: str, model: Covariance) -> dict[str, np.ndarray]:
    """Return the signals by name: eigenvectors from both ends of the spectrum, and one across the whole spectrum."""
    d = model.n_features
    random = np.random.default_rng(4).standard_normal(d)
    found = {"median eigenvector": model.eigenvector(0.5), "random": random / np.linalg.norm(random)}
    if name == "spiked":
        return found | {
            f"alignment {c:g}": theory.aligned_signal(np.ones(d), alignment=c, seed=5) for c in (0.3, 0.8)
        }
    return found | {"top eigenvector": model.eigenvector(1.0)}


def formulas(
    name: str, ratios: list[Any], betas: dict[str, np.ndarray], model: Covariance, gamma: float
) -> Iterator[tuple[str, int, int, float]]:
    """Yield formula, index of the ratio, index of the signal and the value, for all formulas that apply."""
    noise = NOISE[gamma]
    gamma = model.n_features / round(model.n_features / gamma)
    args = {"gamma": gamma, "noise_variance": noise}
    for j, (signal, beta) in enumerate(betas.items()):
        for i, ratio in enumerate(ratios):
            if isinstance(ratio, RatioLaw):
                yield "r2mae_risk", i, j, theory.r2mae_risk(ratio, covariance=model, beta=beta, **args)
                continue
            general = "eigenvector_risk" if "eigenvector" in signal else "general_risk"
            yield general, i, j, float(theory.general_risk(ratio, covariance=model, beta=beta, **args))
            if name == "isotropic":
                yield "isotropic_risk", i, j, float(theory.isotropic_risk(ratio, signal=1.0, **args))
            if name == "spiked" and "alignment" in signal and ratio < gamma:
                strength = float(beta @ np.ones(beta.size)) / np.sqrt(beta.size)
                limit = theory.spiked_risk(ratio, spike=8.0, alignment=strength, **args)
                yield "spiked_risk", i, j, float(limit)
                spectral = theory.spiked_spectral_terms(
                    ratio, spike=8.0, direction=np.ones(beta.size), beta=beta, **args
                )
                yield "spiked_spectral_terms", i, j, float(spectral.risk)


def simulate(
    ratios: list[Any],
    betas: dict[str, np.ndarray],
    model: Covariance,
    gamma: float,
    *,
    exact: bool,
    n_draws: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw until all means are known to 1 %, or the draws are used up; return mean, standard error and number of draws."""
    blocks: list[np.ndarray] = []
    while True:
        run = theory.simulate_risk(
            ratios, gamma=gamma, covariance=model, beta=np.stack(list(betas.values()), axis=1),
            noise_variance=NOISE[gamma], n_draws=BLOCK, seed=len(blocks), exact_rows=exact,
        )  # fmt: skip
        blocks.append(run.risks)
        risks = np.concatenate(blocks)
        mean, error = risks.mean(axis=0), risks.std(axis=0, ddof=1) / np.sqrt(len(risks))
        if (len(blocks) > 1 and (error < PRECISION * mean).all()) or len(risks) >= n_draws:
            return mean, error, len(risks)


def compare(d: int, name: str, gamma: float, n_draws: int) -> list[dict[str, Any]]:
    """Compare all formulas at one covariance and gamma."""
    model = MODELS[name](d)
    betas = signals(name, model)
    fixed = [float(p) for p in RATIOS if abs(p / gamma - 1) >= 0.2]
    laws = [law for law in LAWS if abs(law.mean / gamma - 1) >= 0.2]
    rows = []
    for ratios, exact in ((fixed, True), (laws, False)):
        mean, error, drawn = simulate(list(ratios), betas, model, gamma, exact=exact, n_draws=n_draws)
        for formula, i, j, value in formulas(name, list(ratios), betas, model, gamma):
            allowed = (TOLERANCE_COROLLARY if formula == "spiked_risk" else TOLERANCE)[d]
            relative = error[i, j] / mean[i, j]
            gap = value / mean[i, j] - 1
            ratio = ratios[i]
            rows.append(
                {
                    "d": d, "formula": formula, "covariance": name, "signal": list(betas)[j], "gamma": gamma,
                    "ratio": ratio if isinstance(ratio, float) else float(ratio.mean),
                    "highest_ratio": ratio if isinstance(ratio, float) else float(ratio.nodes.max()),
                    "theory": value, "simulated": float(mean[i, j]), "draws": drawn,
                    "standard_error_percent": 100 * float(relative), "gap_percent": 100 * float(gap),
                    "allowed_percent": 100 * float(3 * relative + allowed),
                    "agrees": bool(abs(gap) <= 3 * relative + allowed),
                }
            )  # fmt: skip
    return rows


def draw(frame: pd.DataFrame, path: Any) -> None:
    """Plot the difference of the fixed-ratio formulas against the ratio, with one panel per number of covariates."""
    sizes = sorted(frame["d"].unique())
    figure, axes = plt.subplots(
        1, len(sizes), figsize=(4.2 * len(sizes), 3.6), sharey=True, layout="constrained", squeeze=False
    )
    shown = frame[frame["formula"].isin(["general_risk", "eigenvector_risk"])]
    for ax, d in zip(axes[0], sizes, strict=True):
        for color, (name, rows) in zip(PALETTE, shown[shown["d"] == d].groupby("covariance"), strict=False):
            shift = 0.006 * (PALETTE.index(color) - 3)
            ax.errorbar(rows["ratio"] + shift, -rows["gap_percent"], yerr=rows["standard_error_percent"], fmt="o", ms=3,
                        lw=0.8, color=color, label=name, alpha=0.85)  # fmt: skip
        allowed = 100 * TOLERANCE[d]
        ax.axhspan(-allowed, allowed, color="0.92", zorder=0)
        ax.set(xlabel="masking ratio p", title=f"{d} covariates")
    axes[0, 0].set_ylabel("Excess of the simulated risk\nover the formula (%)")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handletextpad=0.1)
    save(figure, path)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of points, precise points and points that agree, by size, formula and range of ratios."""
    high = np.where(frame["highest_ratio"] > 0.6, "above .6", "up to .6")
    groups = frame.assign(
        ratios=high, gap=frame["gap_percent"].abs(), precise=frame["standard_error_percent"] < 1
    )
    return groups.groupby(["d", "formula", "ratios"], as_index=False).agg(
        points=("agrees", "size"), precise=("precise", "sum"), agree=("agrees", "sum"),
        median_gap_percent=("gap", "median"), largest_gap_percent=("gap", "max"),
    )  # fmt: skip


def main() -> None:
    """Compare, print the agreement, write CSV and PNG."""
    options = parser(__doc__)
    options.add_argument(
        "--sizes", type=int, nargs="+", choices=sorted(TOLERANCE), help="numbers of covariates"
    )
    options.add_argument("--models", nargs="+", choices=list(MODELS), help="covariances")
    options.add_argument("--n-draws", type=int, default=3000, help="at most, for a covariance and gamma")
    args = options.parse_args()
    names = args.models or (list(MODELS)[2:5] if args.quick else list(MODELS))
    path = args.output / "agreement.csv"
    frame = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["d", "covariance", "gamma"])
    for d in args.sizes or ([300] if args.quick else sorted(TOLERANCE)):
        for name in names:
            for gamma in NOISE:
                if ((frame["d"] == d) & (frame["covariance"] == name) & (frame["gamma"] == gamma)).any():
                    continue
                start = time.perf_counter()
                rows = compare(d, name, gamma, args.n_draws)
                frame = pd.DataFrame([*frame.to_dict("records"), *rows])
                write_csv(path, frame.to_dict("records"))
                print(
                    f"d = {d}, {name}, gamma = {gamma:g}: {rows[-1]['draws']} draws, {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
    write_csv(args.output / "agreement_summary.csv", summary(frame).to_dict("records"))
    draw(frame, args.output / "agreement.png")
    print(summary(frame).round(2).to_markdown(index=False))


if __name__ == "__main__":
    main()
