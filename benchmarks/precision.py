"""What bfloat16 changes: loss curves, embeddings and probe scores beside float32, on real counts with donors.

    python benchmarks/precision.py --data DATA -o OUT [--sets csle ifnb] [--seeds 3]

The same model is trained twice a seed, in float32 and in bfloat16, and the float32 one embeds in both. ``OUT/precision.csv``
has a line a set and seed; ``OUT/precision.png`` the validation losses.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import scr2mae
from schemes import SETS, read

PRECISIONS = ("32-true", "bf16-mixed")


def train(adata: ad.AnnData, seed: int, precision: str) -> scr2mae.R2MAEModel:
    """Train with the defaults."""
    model = scr2mae.R2MAEModel(adata, seed=seed)
    model.train(precision=precision, split_key="donor", accelerator="cpu", enable_progress_bar=False)
    return model


def probe(adata: ad.AnnData, name: str) -> pd.Series:
    """Scores of each embedding by the first target of the set."""
    counts = SETS[name]
    target = next(iter(counts.targets))
    scores = scr2mae.probe.linear_probe(
        adata,
        use_rep=list(adata.obsm),
        targets={target: counts.targets[target]},
        donor_key="donor",
        n_train_donors=counts.n_train_donors,
        n_splits=5,
    )
    scores = scores[(scores["metric"] == "balanced_accuracy") & (scores["level"] == "cell")]
    return scores.groupby("method")["value"].mean()


def compare(name: str, adata: ad.AnnData, seed: int) -> tuple[dict[str, float], dict[str, pd.DataFrame]]:
    """One seed of one set."""
    models = {precision: train(adata, seed, precision) for precision in PRECISIONS}
    curves = {precision: model.history["validation_loss"] for precision, model in models.items()}
    exact = models["32-true"].get_latent_representation()
    rounded = models["32-true"].get_latent_representation(precision="bf16-mixed")
    adata.obsm = {
        "float32": exact,
        "embedded in bfloat16": rounded,
        "trained in bfloat16": models["bf16-mixed"].get_latent_representation(),
    }
    scores = probe(adata, name)
    loss, other = (curve.to_numpy().ravel() for curve in curves.values())
    error = np.sqrt(((rounded - exact) ** 2).mean(axis=0)) / exact.std(axis=0)
    row = {
        "largest difference of losses, %": 100 * float(np.abs(other / loss - 1).max()),
        "difference of last losses, %": 100 * float(other[-1] / loss[-1] - 1),
        "largest error of a dimension, % of its s.d.": 100 * float(error.max()),
        "balanced accuracy, float32": scores["float32"],
        "embedded in bfloat16, minus": scores["embedded in bfloat16"] - scores["float32"],
        "trained in bfloat16, minus": scores["trained in bfloat16"] - scores["float32"],
    }
    return row, curves


def main() -> None:
    """Compare on each set and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["csle", "ifnb"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("scr2mae").setLevel(logging.ERROR)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    fig, axes = plt.subplots(
        1, len(options.sets), figsize=(5 * len(options.sets), 3.6), layout="constrained", squeeze=False
    )
    for name, ax in zip(options.sets, axes[0], strict=True):
        adata = read(SETS[name], options.data)
        for seed in range(options.seeds):
            row, curves = compare(name, adata, seed)
            rows.append({"set": name, "seed": seed, **row})
            for precision, color, style in zip(PRECISIONS, scr2mae.pl.OKABE_ITO, ("-", "--"), strict=False):
                label = precision if seed == 0 else None
                ax.plot(curves[precision], color=color, linestyle=style, linewidth=1.4, label=label)
            print(rows[-1], flush=True)
        ax.set(xlabel="Epoch", ylabel="Validation loss (nats a hidden gene)", title=name)
        ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    frame = pd.DataFrame(rows)
    frame.to_csv(options.out / "precision.csv", index=False)
    fig.savefig(options.out / "precision.png", dpi=150)
    print(frame.round(4).to_markdown(index=False))


if __name__ == "__main__":
    main()
