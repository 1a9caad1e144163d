"""Effects of bfloat16 on loss curves, embeddings and probe scores, on real counts with donors.

    python benchmarks/precision.py --data DATA -o OUT [--sets csle ifnb] [--seeds 3]

The same model is trained three times per seed: in float32, in bfloat16, and in float32 from weights changed by one part
in ten million, which shows how far two runs diverge by rounding alone. The first also embeds in bfloat16. Writes
``precision.csv``, one row per set and seed, and ``precision.png``, the validation losses.
"""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import scr2mae
from common_setup import make_parser, silence
from schemes import SETS, read

RUNS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float32, nudged": "32-true"}
NUDGE = 1e-7


def train(adata: ad.AnnData, seed: int, run: str) -> scr2mae.R2MAEModel:
    """Train with the defaults."""
    model = scr2mae.R2MAEModel(adata, seed=seed)
    if run.endswith("nudged"):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.module.parameters():
                weight.mul_(1 + NUDGE * torch.randn(weight.shape, generator=generator))
    precision = RUNS[run]
    model.train(precision=precision, split_key="donor", accelerator="cpu", enable_progress_bar=False)
    return model


def probe(adata: ad.AnnData, name: str) -> pd.Series:
    """Return probe scores of each embedding for the first target of the set."""
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
    """Compare precisions on one set with one seed."""
    models = {run: train(adata, seed, run) for run in RUNS}
    curves = {run: model.history["validation_loss"] for run, model in models.items()}
    exact = models["float32"].get_latent_representation()
    rounded = models["float32"].get_latent_representation(precision="bf16-mixed")
    adata.obsm = {
        "float32": exact,
        "embedded in bfloat16": rounded,
        "trained in bfloat16": models["bfloat16"].get_latent_representation(),
        "nudged": models["float32, nudged"].get_latent_representation(),
    }
    scores = probe(adata, name)
    loss, bfloat16, nudged = (curve.to_numpy().ravel() for curve in curves.values())
    error = np.sqrt(((rounded - exact) ** 2).mean(axis=0)) / exact.std(axis=0)
    row = {
        "largest difference of losses, %": 100 * float(np.abs(bfloat16 / loss - 1).max()),
        "of nudged, %": 100 * float(np.abs(nudged / loss - 1).max()),
        "difference of last losses, %": 100 * float(bfloat16[-1] / loss[-1] - 1),
        "of nudged last, %": 100 * float(nudged[-1] / loss[-1] - 1),
        "largest error of a dimension, % of its s.d.": 100 * float(error.max()),
        "balanced accuracy, float32": scores["float32"],
        **{f"{name}, minus": scores[name] - scores["float32"] for name in scores.index if name != "float32"},
    }
    return row, curves


def main() -> None:
    """Compare on each set and seed."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["csle", "ifnb"])
    options = parser.parse_args()
    silence()
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
            for run, color, style in zip(RUNS, scr2mae.pl.OKABE_ITO, ("-", "--", ":"), strict=False):
                label = run if seed == 0 else None
                ax.plot(curves[run], color=color, linestyle=style, linewidth=1.4, label=label)
            print(rows[-1], flush=True)
        ax.set(xlabel="Epoch", ylabel="Validation loss (nats per masked gene)", title=name)
        ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    frame = pd.DataFrame(rows)
    frame.to_csv(options.out / "precision.csv", index=False)
    fig.savefig(options.out / "precision.png", dpi=150)
    print(frame.round(4).to_markdown(index=False))


if __name__ == "__main__":
    main()
