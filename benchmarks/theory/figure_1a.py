"""Figure 1A: Theorem 1 and simulation, on both sides of the transition at p = gamma."""

import numpy as np
from common import PALETTE, curve, long_rows, parser, plt, points, save, write_csv

from scr2mae import theory

NOISE = 0.25
GAMMAS = (2.0, 0.4)


def main() -> None:
    args = parser(__doc__).parse_args()
    d, n_draws = (200, 30) if args.quick else (500, 60)
    beta = np.random.default_rng(0).uniform(size=d)
    beta /= np.linalg.norm(beta)
    covariance = theory.isotropic_covariance(d)
    rows = []
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    for axes, gamma, color in zip(panels, GAMMAS, PALETTE, strict=False):
        simulated = np.round(np.arange(0.05, 0.91, 0.05), 2)
        simulated = simulated[np.abs(simulated / gamma - 1) > 0.05]
        run = theory.simulate_risk(
            simulated, gamma=gamma, covariance=covariance, beta=beta, noise_variance=NOISE,
            n_draws=n_draws, n_jobs=args.jobs, exact_rows=True,
        )  # fmt: skip
        formula = theory.isotropic_risk(simulated, gamma=gamma, signal=1.0, noise_variance=NOISE)
        rows += long_rows(simulated, formula, run, gamma=gamma)
        grid = np.linspace(0.01, 0.95, 400)
        grid = grid[np.abs(grid / gamma - 1) > 0.01]
        for side in (grid[grid < gamma], grid[grid > gamma]):
            if side.size:
                values = theory.isotropic_risk(side, gamma=gamma, signal=1.0, noise_variance=NOISE)
                curve(axes, side, values, color)
        points(axes, simulated, run.mean, run.sd, color)
        axes.axhline(1.0, color="0.5", ls=":", lw=1)
        axes.text(0.98, 1.0, "null prediction", ha="right", va="bottom", color="0.4", fontsize=8,
                  transform=axes.get_yaxis_transform())  # fmt: skip
        if gamma < 1:
            axes.axvline(gamma, color="0.5", ls="--", lw=1)
            axes.text(gamma + 0.015, 60, "p = γ", color="0.3")
        axes.set(xlabel="masking ratio p", ylabel="test risk", yscale="log", title=f"Σ = I, γ = d/n = {gamma:g}",
                 xlim=(0, 1))  # fmt: skip
    save(figure, args.output / "figure_1a.png")
    write_csv(args.output / "figure_1a.csv", rows)


if __name__ == "__main__":
    main()
