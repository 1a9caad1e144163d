"""Compare the ratios favored by `mask_profile` with measured ones, on real counts.

For every file (h5ad, raw counts in ``X``) the most variable genes of the training cells are profiled for several gammas.
Two things are measured on held-out cells: the error of the masked linear regression itself, on real instead of Gaussian
rows, and the error of the package's network trained at fixed ratios.
"""

from pathlib import Path

import anndata as ad
import numpy as np
from common import PALETTE, parser, plt, save, write_csv
from scipy import sparse, stats

from scr2mae import theory

RATIOS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
NETWORK_RATIOS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)
GAMMAS = (0.45, 2.0, 8.0)
SCORED_RATIO = 0.1  # share of genes masked to score a network


def log_normalize(counts):
    """Return dense log1p values at 10,000 counts per cell."""
    rows = sparse.csr_array(counts, dtype=np.float64)
    library = np.asarray(rows.sum(axis=1)).ravel()
    rows = sparse.diags_array(1e4 / np.maximum(library, 1)) @ rows
    return np.log1p(rows.toarray())


def load(path, n_genes, donor_key):
    """Return counts of the most variable genes, their log-normalized values, and the training cells."""
    adata = ad.read_h5ad(path)
    rng = np.random.default_rng(0)
    if donor_key in adata.obs:
        donors = rng.permutation(adata.obs[donor_key].astype(str).unique())
        train = adata.obs[donor_key].astype(str).isin(donors[: round(0.7 * donors.size)]).to_numpy()
    else:
        train = rng.random(adata.n_obs) < 0.7
    values = log_normalize(adata.X)
    keep = np.sort(np.argsort(values[train].var(axis=0))[-n_genes:])
    return adata[:, keep].copy(), values[:, keep], train


def measure_linear(train, test, *, gamma, n_draws, n_targets, seed=0):
    """Return the pooled held-out error, divided by the variance, of the masked regression on real rows, shape (n_draws, n_ratios)."""
    n_genes = train.shape[1]
    n_rows = round((n_genes - 1) / gamma)
    rng = np.random.default_rng(seed)
    targets = rng.choice(n_genes, size=min(n_targets, n_genes), replace=False)
    center = train.mean(axis=0)
    train, test = train - center, test - center
    variance = (test[:, targets] ** 2).mean(axis=0).sum()
    errors = np.zeros((n_draws, RATIOS.size))
    for draw in range(n_draws):
        rows = train[rng.choice(train.shape[0], size=n_rows, replace=False)]
        uniforms = rng.random(rows.shape)
        for index, ratio in enumerate(RATIOS):
            hidden = uniforms < ratio
            for gene in targets:
                kept = hidden[:, gene]
                masked = np.where(hidden[kept], 0.0, rows[kept])
                masked[:, gene] = 0.0
                weights = theory.minimum_norm(np.delete(masked, gene, axis=1), rows[kept][:, [gene]])
                predicted = np.delete(test, gene, axis=1) @ weights[:, 0]
                errors[draw, index] += ((predicted - test[:, gene]) ** 2).mean()
    return errors / variance


def measure_network(adata, train, *, epochs, seed=0):
    """Return the masked reconstruction of held-out cells by networks trained at fixed ratios."""
    import torch

    from scr2mae import R2MAEModel

    torch.set_num_threads(1)
    held_out = adata[~train].copy()
    for ratio in NETWORK_RATIOS:
        model = R2MAEModel(adata[train].copy(), n_hidden=256, n_latent=32, mask_ratio=ratio, seed=seed)
        model.train(
            max_epochs=epochs, accelerator="cpu", train_size=0.95, split_key=False,
            logger=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        scores = model.get_masked_reconstruction(held_out, ratios=(SCORED_RATIO,)).loc[SCORED_RATIO]
        yield {"ratio": ratio, "pearson": float(scores["pearson"]), "nll": float(scores["nll"])}


def compare(path, args):
    """Return the rows, summary and curves of one file."""
    adata, values, train = load(path, 60 if args.quick else 200, args.donor_key)
    rows, summary = [], []
    reference = ad.AnnData(values[train], var=adata.var)
    curves = {}
    for gamma in GAMMAS:
        ratios = RATIOS[np.abs(RATIOS / gamma - 1) > 0.15]
        profile = theory.mask_profile(reference, gamma=gamma, ratios=ratios)
        noise = profile.noise_variance.sum()
        total = (profile.risk.sum(axis=0) + noise) / (profile.null_risk + profile.noise_variance).sum()
        measured = measure_linear(
            values[train], values[~train], gamma=gamma, n_draws=3 if args.quick else 8, n_targets=20
        )
        mean, sd = measured.mean(axis=0), measured.std(axis=0, ddof=1)
        keep = np.isin(RATIOS, ratios)
        curves[gamma] = (ratios, total, mean[keep], sd[keep])
        low, high = profile.favored_range()
        summary.append(
            {
                "data": path.stem, "gamma": gamma, "advised_low": low, "advised_high": high,
                "advised_best": float(ratios[total.argmin()]), "regime_at_best": str(profile.regime[total.argmin()]),
                "measured_best_linear": float(ratios[mean[keep].argmin()]),
                "rank_correlation_linear": float(stats.spearmanr(total, mean[keep]).statistic),
                "shrinkage": profile.shrinkage,
            }
        )  # fmt: skip
        rows += [
            {"data": path.stem, "kind": f"linear, gamma {gamma:g}", "ratio": float(p), "predicted": float(t), "measured": float(m), "sd": float(s)}
            for p, t, m, s in zip(*curves[gamma], strict=True)
        ]  # fmt: skip
    network = [] if args.no_network else list(measure_network(adata, train, epochs=args.epochs))
    for row in network:
        measured = {"predicted": "", "measured": row["nll"], "sd": ""}
        rows.append({"data": path.stem, "kind": "network", "ratio": row["ratio"], **measured})
    if network:
        best = min(network, key=lambda row: row["nll"])
        for line in summary:
            line |= {
                "measured_best_network": best["ratio"],
                "network_within_advice": line["advised_low"] <= best["ratio"] <= line["advised_high"],
            }
    return rows, summary, curves, network


def draw(axes_pair, title, curves, network):
    """Draw advice and measurements of the linear model, and the loss of the networks."""
    linear, net = axes_pair
    for (gamma, (ratios, total, mean, sd)), color in zip(curves.items(), PALETTE, strict=False):
        for side in (ratios < gamma, ratios > gamma):  # the risk diverges in between
            label = f"γ = {gamma:g}" if side[0] else None
            linear.plot(ratios[side], total[side], color=color, lw=1.8, label=label)
        linear.errorbar(ratios, mean, yerr=sd, fmt="o", ms=4, capsize=2, color=color)
    linear.set(title=f"{title}: linear model", xlabel="masking ratio p", ylabel="held-out error / variance")
    linear.set(yscale="log", ylim=(0.5, 40))
    linear.legend(title="line: advice, points: measured", loc="upper left")
    if network:
        losses = np.array([r["nll"] for r in network])
        net.plot([r["ratio"] for r in network], losses, "s-", color=PALETTE[-1])
        net.set_ylim(losses.min() * 0.99, losses.min() * 1.12)  # networks that diverge are off the axis
    net.set(title=f"{title}: network", xlabel="masking ratio in training", ylabel="held-out masked NLL, nats")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("files", type=Path, nargs="+", help="h5ad files with raw counts")
    options.add_argument("--donor-key", default="donor", help="column whose groups are held out together")
    options.add_argument("--epochs", type=int, default=40, help="epochs per network")
    options.add_argument("--no-network", action="store_true", help="linear model only")
    args = options.parse_args()
    rows, summary = [], []
    figure, panels = plt.subplots(
        len(args.files), 2, figsize=(9, 3.4 * len(args.files)), squeeze=False, layout="constrained"
    )
    for path, line in zip(args.files, panels, strict=True):
        found, lines, curves, network = compare(path, args)
        rows += found
        summary += lines
        draw(line, path.stem.split("_")[0], curves, network)
    for line in summary:
        print(line)
    write_csv(args.output / "network_bridge.csv", rows)
    write_csv(args.output / "network_bridge_summary.csv", summary)
    save(figure, args.output / "network_bridge.png")


if __name__ == "__main__":
    main()
