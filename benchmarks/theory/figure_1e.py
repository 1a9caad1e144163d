"""Figure 1E: general covariances with an eigenvector as the signal, at several quantiles of the spectrum."""

import numpy as np
from common import PALETTE, column, curve, long_rows, parser, plt, points, save, write_csv

from scr2mae import theory

GAMMA, NOISE = 3.0, 0.04
QUANTILES = (0.25, 0.5, 0.75, 0.95, 1.0)
GRID = np.round(np.arange(0.02, 0.93, 0.02), 2)
SIMULATED = np.round(np.arange(0.05, 0.91, 0.085), 3)


def models(d):
    """Return the covariances by name."""
    return {
        "Uniform": theory.uniform_covariance(d, seed=2),
        "Beta(1, 3)": theory.beta_covariance(d, seed=2),
        "Latent space": theory.latent_covariance(d, n_factors=d // 2, seed=2),
    }


def main() -> None:
    args = parser(__doc__).parse_args()
    d, n_draws = (200, 30) if args.quick else (400, 50)
    rows = []
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
    for axes, (name, covariance) in zip(panels, models(d).items(), strict=True):
        betas = np.stack([covariance.eigenvector(q) for q in QUANTILES], axis=1)
        model = {"gamma": GAMMA, "covariance": covariance, "noise_variance": NOISE}
        run = theory.simulate_risk(
            SIMULATED, beta=betas, n_draws=n_draws, n_jobs=args.jobs, exact_rows=True, **model
        )
        for index, (quantile, color) in enumerate(zip(QUANTILES, PALETTE, strict=False)):
            null = betas[:, index] @ covariance.matrix @ betas[:, index]
            values = theory.eigenvector_risk(GRID, quantile=quantile, **model) / null
            mine = column(run, index, null=null)
            curve(axes, GRID, values, color, f"{quantile:.0%}, λ = {null:.1f}")
            points(axes, SIMULATED, mine.mean, mine.sd, color)
            best = values.argmin()
            axes.plot(GRID[best], values[best], marker="*", ms=13, mfc=color, mec="white", zorder=5)
            formula = theory.eigenvector_risk(SIMULATED, quantile=quantile, **model) / null
            rows += long_rows(SIMULATED, formula, mine, model=name, quantile=quantile, eigenvalue=float(null))
        axes.axhline(1, color="0.5", ls=":", lw=1)
        axes.set(title=f"{name}, γ = {GAMMA:g}", xlabel="masking ratio p", ylim=(0, 2.4), xlim=(0, 0.95))
        axes.legend(title="eigenvector, eigenvalue", loc="upper left")
    panels[0].set_ylabel("risk / null risk")
    save(figure, args.output / "figure_1e.png")
    write_csv(args.output / "figure_1e.csv", rows)


if __name__ == "__main__":
    main()
