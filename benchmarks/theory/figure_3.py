"""Figure 3: the spiked model with an all-ones spike, for several strengths, feature strengths and gammas."""

import numpy as np
from common import PALETTE, column, curve, long_rows, parser, plt, points, save, write_csv

from scr2mae import theory

NOISE = 0.04
GAMMAS = (1.2, 3.0)
SPIKES = (2.0, 10.0, 40.0)
ALIGNMENTS = (0.2, 0.6, 1.0)
GRID = np.linspace(0.01, 0.93, 200)
SIMULATED = np.round(np.arange(0.05, 0.91, 0.085), 3)


def panel(args, axes, *, d, n_draws, gamma, spike):
    """Draw the risk for one gamma and strength."""
    direction = np.ones(d)
    covariance = theory.spiked_covariance(d, spike=spike, direction="ones")
    betas = np.stack([theory.aligned_signal(direction, alignment=c, seed=1) for c in ALIGNMENTS], axis=1)
    run = theory.simulate_risk(
        SIMULATED, gamma=gamma, covariance=covariance, beta=betas, noise_variance=NOISE,
        n_draws=n_draws, n_jobs=args.jobs, exact_rows=True,
    )  # fmt: skip
    rows = []
    for index, (alignment, color) in enumerate(zip(ALIGNMENTS, PALETTE, strict=False)):
        null = 1 + spike * alignment**2
        model = {"gamma": gamma, "spike": spike, "alignment": alignment, "noise_variance": NOISE}
        mine = column(run, index)
        curve(axes, GRID, theory.spiked_risk(GRID, **model) / null, color, f"c = {alignment:g}")
        points(axes, SIMULATED, mine.mean / null, mine.sd / null, color)
        limit = theory.spiked_risk(SIMULATED, **model)
        rows += long_rows(SIMULATED, limit, mine, gamma=gamma, spike=spike, alignment=alignment)
    title = f"γ = {gamma:g}, δ = {spike:g}"
    if gamma < 1 + spike:
        spot = theory.sweet_spot(gamma=gamma, spike=spike)
        axes.axvline(spot, color="0.4", lw=1, ls=":")
        title += f", p* = {spot:.2f}"
    axes.axhline(1, color="0.5", ls=":", lw=1)
    axes.set(title=title, ylim=(0, 2), xlim=(0, 0.95))
    return rows


def main() -> None:
    args = parser(__doc__).parse_args()
    d, n_draws = (200, 30) if args.quick else (600, 50)
    figure, panels = plt.subplots(
        len(GAMMAS), len(SPIKES), figsize=(10, 5.4), sharex=True, sharey=True, layout="constrained"
    )
    rows = []
    for line, gamma in zip(panels, GAMMAS, strict=True):
        for axes, spike in zip(line, SPIKES, strict=True):
            rows += panel(args, axes, d=d, n_draws=n_draws, gamma=gamma, spike=spike)
        line[0].set_ylabel("risk / null risk")
    for axes in panels[-1]:
        axes.set_xlabel("masking ratio p")
    panels[0, 0].legend(loc="upper left", title="feature strength")
    save(figure, args.output / "figure_3.png")
    write_csv(args.output / "figure_3.csv", rows)


if __name__ == "__main__":
    main()
