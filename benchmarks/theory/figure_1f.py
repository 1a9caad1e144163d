"""Figure 1F: a family of curves over the masking ratio, aligned as in appendix C.2.

With ``--accuracies`` a CSV of published accuracies (columns task, ratio, accuracy, in [0, 1]) is drawn over the theory.
"""

from functools import partial
from pathlib import Path

import numpy as np
from common import PALETTE, parser, plt, save, write_csv

from scr2mae import theory

GAMMA, NOISE = 5.0, 0.04
QUANTILES = (0.5, 0.75, 0.9, 1.0)
GRID = np.round(np.arange(0.10, 0.851, 0.025), 3)
MARKERS = "os^Dv<>p"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--accuracies", type=Path, help="CSV of published accuracies")
    args = options.parse_args()
    covariance = theory.uniform_covariance(200 if args.quick else 400, seed=2)
    risk = partial(theory.eigenvector_risk, gamma=GAMMA, covariance=covariance, noise_variance=NOISE)
    rows = []
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for quantile, color in zip(QUANTILES, PALETTE, strict=False):
        aligned = theory.align_errors(GRID, risk(GRID, quantile=quantile))
        axes.plot(GRID, aligned, color=color, lw=1.8, label=f"theory, {quantile:.0%} eigenvector")
        rows += [
            {"source": "theory", "curve": quantile, "ratio": float(p), "aligned_error": float(y)}
            for p, y in zip(GRID, aligned, strict=True)
        ]
    if args.accuracies is None:
        note = "theory alone: no published accuracies were given (--accuracies)"
    else:
        note = f"points: {args.accuracies.name}"
        curves = theory.read_accuracies(args.accuracies)
        for (task, (ratios, accuracies)), marker in zip(curves.items(), MARKERS, strict=False):
            aligned = theory.align_accuracy(ratios, accuracies)
            axes.plot(ratios, aligned, marker=marker, ls="--", lw=0.8, color="0.25", label=task)
            rows += [
                {"source": "published", "curve": task, "ratio": float(p), "aligned_error": float(y)}
                for p, y in zip(ratios, aligned, strict=True)
            ]
    axes.set(
        xlabel="masking ratio p", ylabel="aligned error", title=f"γ = {GAMMA:g}, uniform spectrum\n{note}"
    )
    axes.legend(loc="upper left")
    print(note)
    save(figure, args.output / "figure_1f.png")
    write_csv(args.output / "figure_1f.csv", rows)


if __name__ == "__main__":
    main()
