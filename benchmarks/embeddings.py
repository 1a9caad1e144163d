"""Embeddings of donors that pretraining has seen, or has not, against PCA, expression and scVI under the same probe.

    python benchmarks/embeddings.py --data DATA -o OUT [--sets csle gbm ...] [--methods ...] [--draws 2] [--seeds 3]

``unseen``: each method is fitted to the training donors of a split, and a linear probe of cell type, condition or age is
fitted to them and scored on the others. ``all``: the method is fitted to all cells, without labels, as in the paper.
Every method is probed on the same splits; networks are trained from several seeds. ``--draws`` is the number of seeds of
the donor splits, ``--first-draw`` the first of them. For networks, the masked likelihood on the unseen donors (30 % of
the genes masked) is measured too. Results lie in ``OUT/scores``, one file per fit, so that the same command continues.
``OUT/embeddings.md`` has the scores minus those of PCA at the median library, in points, with standard errors over
splits; ``OUT/embeddings.png`` is the figure.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scvi
import torch

import scr2mae
from common_setup import make_parser, silence
from schemes import SET_LABELS, SETS, read
from scr2mae._utils.methods import LABELS
from scr2mae.benchmark.methods import BASELINES
from scr2mae.nn.linear_mlp import LinearMLPModule
from scr2mae.pl import OKABE_ITO
from scr2mae.probe import donor_splits, linear_probe

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = "pca"
NETWORKS: dict[str, dict[str, Any]] = {
    "R²MAE": {},
    "R²MAE, mlp": {"encoder": "mlp"},
    "linear encoder": {},
    "R²MAE, donor as batch": {},
    "R²MAE, hidden decoder": {"n_layers_decoder": 1},
    "R²MAE, biases from 0": {},
    "R²MAE, dispersions from 1": {},
    "R²MAE, 0.3 to 0.7": {"mask_ratio": (0.3, 0.7)},
    "R²MAE, ratio 0.5": {"mask_ratio": 0.5},
}
METHODS = ("R²MAE", "R²MAE, mlp", *BASELINES)
SCORES = {"balanced_accuracy": "BA", "spearman": "BA", "macro_auroc": "AUROC"}
RATIO = 0.3


class LinearModule(LinearMLPModule):
    """The default network without the hidden layers' block."""

    def _latent(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        z = super()._latent(*args, **kwargs)
        return torch.cat([0.0 * z[:, : -2 * self.n_shown], z[:, -2 * self.n_shown :]], dim=1)


class BiasModule(LinearMLPModule):
    """The default network whose decoder biases start at 0."""

    def start_from(self, *args: Any, **kwargs: Any) -> None:
        super().start_from(*args, **kwargs)
        torch.nn.init.zeros_(self.to_logits.bias)


class DispersionModule(LinearMLPModule):
    """The default network whose dispersions start at 1."""

    def start_from(self, *args: Any, **kwargs: Any) -> None:
        super().start_from(*args, **kwargs)
        torch.nn.init.zeros_(self.log_theta)


MODULES = {
    "linear encoder": LinearModule,
    "R²MAE, biases from 0": BiasModule,
    "R²MAE, dispersions from 1": DispersionModule,
}


def embed(method: str, adata: ad.AnnData, seen: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Fit a method to the cells in ``seen``; return the embedding of all cells, and the masked likelihood of the others."""
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    if method in BASELINES:
        return BASELINES[method](adata.X, seen), np.nan
    train = ad.AnnData(adata.X[seen], obs=adata.obs.iloc[seen][[]], var=adata.var[[]])
    everything = ad.AnnData(adata.X, obs=adata.obs[[]], var=adata.var[[]])
    if method.startswith("scVI"):  # "scVI-30": its number of latent dimensions
        scvi.settings.seed = seed
        scvi.model.SCVI.setup_anndata(train)
        peer = scvi.model.SCVI(train, n_latent=int(method.partition("-")[2]))
        peer.train(**quiet)
        return peer.get_latent_representation(everything), np.nan
    if method == "R²MAE, donor as batch":
        return embed_by_donor(adata, seen, seed), np.nan
    model = scr2mae.R2MAEModel(train, seed=seed, **NETWORKS[method])
    if method in MODULES:
        model.module.__class__ = MODULES[method]
    model.train(**quiet)
    others = np.setdiff1d(np.arange(adata.n_obs), seen)
    nll = np.nan
    if len(others):
        nll = float(model.get_masked_reconstruction(everything, others, ratios=(RATIO,))["nll"].iloc[0])
    return model.get_latent_representation(everything), nll


def embed_by_donor(adata: ad.AnnData, seen: np.ndarray, seed: int) -> np.ndarray:
    """Train with every donor as a batch, and align the others, without labels, as new batches."""
    cells = ad.AnnData(adata.X, obs=adata.obs[["donor"]].astype(str), var=adata.var[[]])
    train = cells[seen].copy()
    scr2mae.R2MAEModel.setup_anndata(train, batch_key="donor")
    model = scr2mae.R2MAEModel(train, seed=seed)
    model.train(enable_progress_bar=False, accelerator="cpu")
    z = np.empty((adata.n_obs, model.module.n_latent), dtype=np.float32)
    z[seen] = model.get_latent_representation()
    others = np.setdiff1d(np.arange(adata.n_obs), seen)
    if len(others):
        query = scr2mae.R2MAEModel.load_query_data(cells[others].copy(), model, accelerator="cpu")
        query.train()
        z[others] = query.get_latent_representation()
    return z


def tasks(
    name: str, options: argparse.Namespace
) -> Iterator[tuple[ad.AnnData, dict[str, str], int, int, Any]]:
    """Yield data, targets, draw, number of the split, and split."""
    counts = SETS[name]
    adata = read(replace(counts, n_obs=options.cells), options.data)
    first = next(iter(counts.targets))
    for draw in range(options.first_draw, options.first_draw + options.draws):
        splits = donor_splits(
            adata,
            targets={first: counts.targets[first]},
            donor_key="donor",
            n_train_donors=counts.n_train_donors,
            n_splits=options.splits,
            seeds=(draw,),
        )[first]
        for number, split in enumerate(splits):
            yield adata, counts.targets, draw, number, split


def run(name: str, options: argparse.Namespace) -> None:
    """Fit and probe every method on one set."""
    kept: dict[tuple[str, int], np.ndarray] = {}
    folder = options.out / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    for adata, targets, draw, number, split in tasks(name, options):
        donors = adata.obs["donor"].astype(str)
        training = np.flatnonzero(donors.isin([str(d) for d in split.train_donors]))
        for mode in options.modes:
            for method in options.methods:
                for seed in range(1 if method in BASELINES else options.seeds):
                    path = folder / f"{name}-{mode}-{method}-{seed}-{draw}-{number}.csv"
                    if path.exists():
                        continue
                    nll = np.nan
                    if mode == "unseen":
                        z, nll = embed(method, adata, training, seed)
                    else:
                        if (method, seed) not in kept:
                            kept[method, seed], _ = embed(method, adata, np.arange(adata.n_obs), seed)
                        z = kept[method, seed]
                    probed = ad.AnnData(obs=adata.obs, obsm={"z": z})
                    frame = linear_probe(
                        probed, use_rep="z", targets=targets, donor_key="donor",
                        splits={target: [split] for target in targets}, n_bootstrap=0,
                    )  # fmt: skip
                    frame = frame[(frame["level"] == "cell") & frame["metric"].isin(SCORES)]
                    frame = frame[["target", "metric", "value"]].assign(
                        set=name, mode=mode, method=method, seed=seed, draw=draw, split=number, nll=nll
                    )
                    frame.to_csv(path, index=False)
        print(f"{name}: split {number} of draw {draw}", flush=True)


def collect(options: argparse.Namespace) -> pd.DataFrame:
    """Read the scores of the chosen sets, methods, modes and draws."""
    frame = pd.concat([pd.read_csv(path) for path in sorted((options.out / "scores").glob("*.csv"))])
    draws = range(options.first_draw, options.first_draw + options.draws)
    for column, chosen in {"set": options.sets, "mode": options.modes, "draw": list(draws)}.items():
        frame = frame[frame[column].isin(chosen)]
    return frame.assign(score=frame["metric"].map(SCORES))


def table(frame: pd.DataFrame, mode: str, score: str) -> pd.DataFrame:
    """Return points above the reference by method and task, their mean over tasks, and its standard error."""
    rows = frame[(frame["mode"] == mode) & (frame["score"] == score)]
    split = rows.groupby(["method", "set", "target", "draw", "split"])["value"].mean()
    split = split.unstack("method")  # noqa: PD010
    gaps = 100 * split.sub(split[REFERENCE], axis=0)
    tasks_ = gaps.groupby(["set", "target"])
    means, errors = tasks_.mean(), tasks_.sem()
    columns = [f"{SET_LABELS[name]}, {target.replace('_', ' ')}" for name, target in means.index]
    result = means.T.set_axis(columns, axis=1)
    result["mean"] = means.mean()
    result["s.e."] = (errors**2).sum().pow(0.5) / means.notna().sum()
    result["worst"] = means.min()
    order = [method for method in (*NETWORKS, *result.index) if method in result.index]
    return result.loc[list(dict.fromkeys(order))].round(1)


def likelihoods(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the masked negative log-likelihood per gene on unseen donors, in nats, by network and set."""
    rows = frame[frame["nll"].notna()].drop_duplicates(["set", "method", "seed", "draw", "split"])
    return rows.pivot_table("nll", "method", "set").rename(columns=SET_LABELS).round(4)


def draw(frame: pd.DataFrame, options: argparse.Namespace) -> None:
    """Draw points above the reference: a row per method, a dot per task, a diamond for their mean."""
    names = [*table(frame, options.modes[0], "BA").drop(index=REFERENCE).index]
    panels = [(mode, score) for mode in options.modes for score in ("BA", "AUROC")]
    fig, axes = plt.subplots(
        1,
        len(panels),
        figsize=(3.1 * len(panels) + 1.5, 3.6),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for ax, (mode, score) in zip(axes.flat, panels, strict=True):
        points = table(frame, mode, score).drop(index=REFERENCE)
        tasks_ = points.drop(columns=["mean", "s.e.", "worst"])
        for method in points.index:
            i = names.index(method)
            ax.plot(tasks_.loc[method], [i] * tasks_.shape[1], "o", color="0.65", markersize=4)
            ax.errorbar(
                points.loc[method, "mean"], i, xerr=points.loc[method, "s.e."], fmt="D", markersize=8,
                color=OKABE_ITO[0 if method == "R²MAE" else 4],
            )  # fmt: skip
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_yticks(range(len(names)), [LABELS.get(name, name) for name in names])
        ax.set(title=f"{mode} donors, {score}" if mode == "unseen" else f"all cells, {score}")
        ax.set_xlabel("points above PCA")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].invert_yaxis()
    fig.savefig(options.out / "embeddings.png", dpi=150)


def main() -> None:
    """Run the sets and summarize them."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--modes", nargs="+", choices=("unseen", "all"), default=["unseen", "all"])
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--first-draw", type=int, default=0)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--cells", type=int, default=3000, help="at most this many cells of a set")
    options = parser.parse_args()
    silence()
    for name in options.sets:
        run(name, options)
    frame = collect(options)
    parts = []
    for mode in options.modes:
        for score in ("BA", "AUROC"):
            parts.append(f"**{mode}, {score}**\n\n{table(frame, mode, score).to_markdown()}\n")
    parts.append(f"**masked likelihood**\n\n{likelihoods(frame).to_markdown()}\n")
    (options.out / "embeddings.md").write_text("\n".join(parts))
    draw(frame, options)
    print("\n".join(parts))


if __name__ == "__main__":
    main()
