"""Figures 1B to 1D: the spiked model. Risk by strength, the sweet spot, and the disparity of predictions."""

import numpy as np
from common import PALETTE, column, curve, long_rows, parser, plt, points, save, write_csv

from scr2mae import theory

GAMMA, NOISE = 1.5, 0.04
SPIKES = (1.0, 5.0, 20.0)
ALIGNMENTS = (0.5, 0.8, 1.0)
SPIKE = 10.0
GRID = np.linspace(0.01, 0.93, 200)
SIMULATED = np.round(np.arange(0.05, 0.91, 0.085), 3)


def simulate(args, covariance, betas, n_draws):
    """Simulate all ratios."""
    return theory.simulate_risk(
        SIMULATED, gamma=GAMMA, covariance=covariance, beta=betas, noise_variance=NOISE,
        n_draws=n_draws, n_jobs=args.jobs, exact_rows=True,
    )  # fmt: skip


def by_spike(args, axes, d, n_draws):
    """Draw figure 1B: the risk for several strengths of the spike."""
    rows = []
    for spike, color in zip(SPIKES, PALETTE, strict=False):
        covariance = theory.spiked_covariance(d, spike=spike, seed=0)
        beta = theory.aligned_signal(covariance.eigenvector(1.0), alignment=0.9, seed=1)
        run = simulate(args, covariance, beta, n_draws)
        null = 1 + spike * 0.9**2
        model = {"gamma": GAMMA, "spike": spike, "alignment": 0.9, "noise_variance": NOISE}
        formula = theory.spiked_risk(SIMULATED, **model)
        rows += long_rows(SIMULATED, formula, run, panel="B", spike=spike, alignment=0.9)
        curve(axes, GRID, theory.spiked_risk(GRID, **model) / null, color, f"δ = {spike:g}")
        points(axes, SIMULATED, run.mean / null, run.sd / null, color)
    axes.axhline(1, color="0.5", ls=":", lw=1)
    axes.set(title="B  feature strength c = 0.9", ylabel="risk / null risk", ylim=(0, 2))
    axes.legend(loc="upper left")
    return rows


def by_alignment(args, axes, d, n_draws):
    """Draw figure 1C: the risk for several feature strengths, and the sweet spot."""
    covariance = theory.spiked_covariance(d, spike=SPIKE, seed=0)
    direction = covariance.eigenvector(1.0)
    betas = np.stack([theory.aligned_signal(direction, alignment=c, seed=1) for c in ALIGNMENTS], axis=1)
    run = simulate(args, covariance, betas, n_draws)
    rows = []
    for index, (alignment, color) in enumerate(zip(ALIGNMENTS, PALETTE, strict=False)):
        model = {"gamma": GAMMA, "spike": SPIKE, "alignment": alignment, "noise_variance": NOISE}
        mine = column(run, index)
        formula = theory.spiked_risk(SIMULATED, **model)
        rows += long_rows(SIMULATED, formula, mine, panel="C", spike=SPIKE, alignment=alignment)
        terms = theory.spiked_terms(GRID, **model)
        null = 1 + SPIKE * alignment**2
        curve(axes, GRID, terms.risk / null, color, f"c = {alignment:g}")
        axes.plot(GRID, terms.quadratic / null, color=color, ls="--", lw=1)
        points(axes, SIMULATED, mine.mean / null, mine.sd / null, color)
    spot = theory.sweet_spot(gamma=GAMMA, spike=SPIKE)
    axes.axvline(spot, color="0.4", lw=1, ls=":")
    axes.text(spot - 0.01, 1.35, f"p* = {spot:.2f}", color="0.3", ha="right")
    axes.set(title=f"C  sweet spot, δ = {SPIKE:g}", ylim=(0, 2))
    axes.legend(loc="upper left")
    return rows


def disparity(args, axes, d, n_draws):
    """Draw figure 1D: the ratio of predictions along the spike and across it."""
    rows = []
    for spike, color in zip(SPIKES, PALETTE, strict=False):
        covariance = theory.spiked_covariance(d, spike=spike, seed=0)
        direction = covariance.eigenvector(1.0)
        betas = np.stack([theory.aligned_signal(direction, alignment=c, seed=1) for c in (1.0, 0.0)], axis=1)
        run = simulate(args, covariance, betas, n_draws)
        # for Gaussian rows the ratio of mean magnitudes is the ratio of root mean squares
        ratios = np.sqrt(run.powers[..., 0] / run.powers[..., 1])
        model = {"gamma": GAMMA, "covariance": covariance, "noise_variance": NOISE}
        powers = [
            [theory.general_terms(p, beta=beta, **model).power for beta in betas.T] for p in (GRID, SIMULATED)
        ]
        curve(axes, GRID, np.sqrt(powers[0][0] / powers[0][1]), color, f"δ = {spike:g}")
        axes.axhline(np.sqrt(1 + spike), color=color, ls=":", lw=1.2)
        points(axes, SIMULATED, ratios.mean(axis=0), ratios.std(axis=0, ddof=1), color)
        measured = theory.SimulatedRisk(ratios, ratios)
        formula = np.sqrt(powers[1][0] / powers[1][1])
        rows += long_rows(SIMULATED, formula, measured, panel="D", spike=spike, alignment="1 over 0")
    axes.set(title="D  disparity of predictions", ylabel="ratio of |xᵀβ̂|", ylim=(0, None))
    axes.legend(loc="upper right")
    return rows


def main() -> None:
    args = parser(__doc__).parse_args()
    d, n_draws = (200, 30) if args.quick else (600, 50)
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    rows = by_spike(args, panels[0], d, n_draws)
    rows += by_alignment(args, panels[1], d, n_draws)
    rows += disparity(args, panels[2], d, n_draws)
    for axes in panels:
        axes.set(xlabel="masking ratio p", xlim=(0, 0.95))
    save(figure, args.output / "figure_1bcd.png")
    write_csv(args.output / "figure_1bcd.csv", rows)


if __name__ == "__main__":
    main()
