"""Figures 1G and 4: the risk of a low-rank model with one strength, as in the paper, and two plateaus with two strengths.

The paper's covariance is I + F Fᵀ with F = U Λ V, random orthogonal U and V, and equal non-zero entries of Λ; V cancels,
which leaves I + U Λ² Uᵀ. Our copy of the paper lacks the strength, rank, gamma, noise and signal. The first panel shows
this model for several strengths; a scan counts the settings in which the risk stays near that of no prediction before it
falls, the first of the paper's two plateaus. The other two panels have two strengths, chosen with `general_risk` so that
both plateaus appear. With ``--accuracies`` a CSV of published accuracies (columns task, ratio, accuracy) is drawn next to
them.
"""

from itertools import product
from pathlib import Path

import numpy as np
from common import PALETTE, column, curve, long_rows, parser, plt, points, save, write_csv

from scr2mae import theory

GAMMA, NOISE = 2.96, 0.1
STRONG, WEAK = (0.075, 820.0), (0.015, 300.0)  # share of directions, strength
GRID = np.round(np.arange(0.01, 0.79, 0.01), 2)
SIMULATED = np.round(np.arange(0.04, 0.77, 0.06), 2)


ONE_STRENGTH = (3.0, 10.0, 30.0, 100.0, 1000.0)
RANK = 0.25  # share of directions, in the first panel
SCAN = {
    "rank_share": (0.02, 0.1, 0.25, 0.5),
    "strength": ONE_STRENGTH,
    "gamma": (1.2, 2.0, 3.0, 6.0),
    "noise_variance": (0.01, 0.1, 1.0),
    "share_of_signal_in_rank": (1.0, 0.5),
}
# Over the null risk: the largest change in a first plateau, and the least gain over no prediction.
PLATEAU, DESCENT = 0.05, 0.3


def one_strength(d, rank_share, strength, share, seed=0):
    """Return the paper's covariance and a signal with a share of its squared norm in the low-rank part."""
    rank = max(1, round(rank_share * d))
    covariance = theory.low_rank_covariance(d, rank=rank, strength=strength, seed=seed)
    rng = np.random.default_rng(seed + 1)
    weak, top = covariance.eigenvectors[:, :-rank], covariance.eigenvectors[:, -rank:]
    parts = [part @ rng.uniform(size=part.shape[1]) for part in (top, weak)]
    top, weak = (part / np.linalg.norm(part) for part in parts)
    return covariance, np.sqrt(share) * top + np.sqrt(1 - share) * weak


def scan(d):
    """Yield the end of the first plateau of the paper's model in many settings, by the formula."""
    for values in product(*SCAN.values()):
        setting = dict(zip(SCAN, values, strict=True))
        share, strength = setting["rank_share"], setting["strength"]
        covariance, beta = one_strength(d, share, strength, setting["share_of_signal_in_rank"])
        ratios = np.round(np.arange(0.02, 0.97, 0.04), 2)
        ratios = ratios[np.abs(ratios / setting["gamma"] - 1) > 0.03]
        args = {"gamma": setting["gamma"], "noise_variance": setting["noise_variance"]}
        risk = theory.general_risk(ratios, covariance=covariance, beta=beta, **args)
        risk /= beta @ covariance.matrix @ beta
        best = int(risk.argmin())
        away = np.flatnonzero(np.abs(risk[:best] - 1) > PLATEAU)
        n_flat = int(away[0]) if away.size else best
        gain = float(1 - risk[best])
        yield {**setting, "gain": gain, "first_plateau_ends": float(ratios[n_flat - 1]) if n_flat else 0.0}


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
    """Return the first and last ratio at which the values are near a level."""
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
    scanned = list(scan(60 if args.quick else 120))
    write_csv(args.output / "figure_1g_4_scan.csv", scanned)
    falling = [row for row in scanned if row["gain"] >= DESCENT]
    ends = max(row["first_plateau_ends"] for row in falling)
    print(
        f"one strength: {len(falling)} of {len(scanned)} settings fall; the longest first plateau ends at {ends:g}"
    )
    figure, (first, *panels) = plt.subplots(1, 3, figsize=(12.5, 3.6), layout="constrained")
    for index, strength in enumerate(ONE_STRENGTH):
        covariance_one, beta = one_strength(d, RANK, strength, 1.0)
        args_of_risk = {"gamma": GAMMA, "covariance": covariance_one, "beta": beta, "noise_variance": NOISE}
        values = theory.general_risk(GRID, **args_of_risk) / (beta @ covariance_one.matrix @ beta)
        curve(first, GRID, values, PALETTE[index], label=f"strength {strength:g}")
    first.axhline(1, color="0.5", ls=":", lw=1)
    first.set(xlabel="masking ratio p", ylabel="risk / null risk", title="one strength", ylim=(0, 1.6))
    first.legend()
    for index, (axes, (name, beta)) in enumerate(zip(panels, signals.items(), strict=True)):
        null = beta @ covariance.matrix @ beta
        args_of_risk = {"gamma": GAMMA, "covariance": covariance, "beta": beta, "noise_variance": NOISE}
        values = theory.general_risk(GRID, **args_of_risk) / null
        mine = column(run, index, null=null)
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
    if args.accuracies is None:
        print("theory alone: no published accuracies were given (--accuracies)")
    save(figure, args.output / "figure_1g_4.png")
    write_csv(args.output / "figure_1g_4.csv", rows)


if __name__ == "__main__":
    main()
