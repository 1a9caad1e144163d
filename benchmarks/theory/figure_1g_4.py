"""Figures 1G and 4: two plateaus in the risk of a low-rank model, and another signal of the same model.

The covariance is I + U Λ Uᵀ with two levels in Λ: strong directions and, a third as strong, weaker ones. The paper's
parameters did not survive; these were chosen with `general_risk` so that both plateaus show. With ``--accuracies`` a
CSV of published accuracies (columns task, ratio, accuracy) is drawn next to them.
"""

from pathlib import Path

import numpy as np
from common import PALETTE, curve, long_rows, parser, plt, points, save, write_csv

from scr2mae import theory

GAMMA, NOISE = 2.96, 0.1
STRONG, WEAK = (0.075, 820.0), (0.015, 300.0)  # share of directions, strength
GRID = np.round(np.arange(0.01, 0.79, 0.01), 2)
SIMULATED = np.round(np.arange(0.04, 0.77, 0.06), 2)


def model(d):
    """Return the covariance and two signals: in the weaker directions, and in all directions of the low-rank part."""
    n_strong, n_weak = round(STRONG[0] * d), round(WEAK[0] * d)
    strengths = np.r_[np.full(n_strong, STRONG[1]), np.full(n_weak, WEAK[1])]
    covariance = theory.low_rank_covariance(d, rank=strengths.size, strength=strengths, seed=0)
    top = covariance.eigenvectors[:, -strengths.size :]  # the weaker directions come first
    rng = np.random.default_rng(1)
    signals = {"figure 1G": top[:, :n_weak] @ rng.uniform(size=n_weak)}
    signals["figure 4"] = top @ rng.uniform(size=strengths.size)
    return covariance, {name: beta / np.linalg.norm(beta) for name, beta in signals.items()}


def plateau(ratios, values, level, tolerance):
    near = ratios[np.abs(values - level) <= tolerance]
    return float(near.min()), float(near.max())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--accuracies", type=Path, help="CSV of published accuracies")
    args = options.parse_args()
    d, n_draws = (200, 40) if args.quick else (400, 60)
    covariance, signals = model(d)
    run = theory.simulate_risk(
        SIMULATED, gamma=GAMMA, covariance=covariance, beta=np.stack(list(signals.values()), axis=1),
        noise_variance=NOISE, n_draws=n_draws, n_jobs=args.jobs, exact_rows=True,
    )  # fmt: skip
    rows = []
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for index, (axes, (name, beta)) in enumerate(zip(panels, signals.items(), strict=True)):
        null = beta @ covariance.matrix @ beta
        args_of_risk = {"gamma": GAMMA, "covariance": covariance, "beta": beta, "noise_variance": NOISE}
        values = theory.general_risk(GRID, **args_of_risk) / null
        mine = theory.SimulatedRisk(run.risks[..., index] / null, run.powers[..., index] / null)
        curve(axes, GRID, values, PALETTE[index])
        points(axes, SIMULATED, mine.mean, mine.sd, PALETTE[index])
        formula = theory.general_risk(SIMULATED, **args_of_risk) / null
        rows += long_rows(SIMULATED, formula, mine, signal=name)
        spans = {"second": plateau(GRID, values, values.min(), 0.1 * values.min())}
        if index == 0:
            early = np.arange(GRID.size) < values.argmin()
            spans["first"] = plateau(GRID[early], values[early], 1.0, 0.05)
        for which, (low, high) in spans.items():
            axes.axvspan(low, high, color="0.9", zorder=0)
            print(f"{name}: {which} plateau {low:.2f} to {high:.2f}")
        axes.axhline(1, color="0.5", ls=":", lw=1)
        axes.set(xlabel="masking ratio p", title=name, ylim=(0, 1.6))
        if args.accuracies is not None:
            other = axes.twinx()
            for task, (ratios, accuracies) in theory.read_accuracies(args.accuracies).items():
                other.plot(ratios, 1 - accuracies, "s--", color="0.3", ms=4, lw=0.8, label=task)
            other.set_ylabel("published error")
            other.legend(loc="lower right")
    panels[0].set_ylabel("risk / null risk")
    if args.accuracies is None:
        print("theory alone: no published accuracies were given (--accuracies)")
    save(figure, args.output / "figure_1g_4.png")
    write_csv(args.output / "figure_1g_4.csv", rows)


if __name__ == "__main__":
    main()
