"""Choice of the defaults: one setting changed at a time, compared by linear probes on held-out donors.

    python benchmarks/defaults.py --data DATA -o OUT --sets csle kang

Data and splits are those of ``schemes.py``; the score is the mean of balanced accuracy and macro F1, with or
without feature scaling, whichever is better. Writes ``defaults.csv`` and ``defaults_table.csv``.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

import scr2mae
from common_setup import make_parser, silence
from schemes import SETS, read
from scr2mae.model.training import default_max_epochs
from scr2mae.probe import donor_splits, linear_probe

SCORES = ("balanced_accuracy", "macro_f1")

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "encoder mlp": {"model": {"encoder": "mlp"}},
    "range 0.3 to 0.7": {"model": {"mask_ratio": (0.3, 0.7)}},
    "range 0.1 to 0.9": {"model": {"mask_ratio": (0.1, 0.9)}},
    "ratio 0.25": {"model": {"mask_ratio": 0.25}},
    "ratio 0.5": {"model": {"mask_ratio": 0.5}},
    "hidden 128": {"model": {"n_hidden": 128}},
    "hidden 512": {"model": {"n_hidden": 512}},
    "latent 16": {"model": {"n_latent": 16}},
    "latent 128": {"model": {"n_latent": 128}},
    "two encoder layers": {"model": {"n_layers": 2}},
    "last weights": {"plan": {"averaging": None}},
    "average over a quarter": {"plan": {"averaging": 0.25}},
    "two layers, last weights": {"model": {"n_layers": 2}, "plan": {"averaging": None}},
    "half the epochs": {"train": {"epochs": 0.5}},
    "twice the epochs": {"train": {"epochs": 2}},
    "batch 400": {"train": {"batch_size": 400}},
    "lr 3e-3": {"plan": {"lr": 3e-3}},
    "lr 3e-4": {"plan": {"lr": 3e-4}},
    "weight decay 0": {"plan": {"weight_decay": 0.0}},
    "weight decay 1e-3": {"plan": {"weight_decay": 1e-3}},
    "AdamW": {"plan": {"optimizer": "AdamW"}},
    "Adam epsilon 0.01": {"plan": {"eps": 0.01}},
    "paper widths (1000 / 512)": {"model": {"n_hidden": 1000, "n_latent": 512}},
}


def embed(adata: ad.AnnData, seed: int, setting: dict[str, dict[str, Any]]) -> np.ndarray:
    """Train with one setting changed and embed all cells."""
    model = scr2mae.R2MAEModel(adata.copy(), seed=seed, **setting.get("model", {}))
    train = dict(setting.get("train", {}))
    n_seen = {"mlp": 480_000}.get(model.init_params_["encoder"], 160_000)
    epochs = round(default_max_epochs(adata.n_obs, n_seen) * train.pop("epochs", 1))
    model.train(
        epochs,
        split_key=False,
        train_size=1.0,
        accelerator="cpu",
        enable_progress_bar=False,
        plan_kwargs=setting.get("plan"),
        **train,
    )
    return model.get_latent_representation()


def run(name: str, options: argparse.Namespace) -> pd.DataFrame:
    """Probe every setting and seed on one data set."""
    counts = SETS[name]
    adata = read(counts, options.data)
    targets = {target: kind for target, kind in counts.targets.items() if kind == "classification"}
    splits = donor_splits(
        adata,
        targets=targets,
        donor_key="donor",
        n_train_donors=counts.n_train_donors,
        n_splits=options.splits,
    )
    frames = []
    for setting in options.settings:
        for seed in range(options.seeds):
            start = time.perf_counter()
            z = embed(adata, seed, SETTINGS[setting])
            seconds = time.perf_counter() - start
            probed = ad.AnnData(obs=adata.obs, obsm={"z": z.astype(np.float64)})
            frame = linear_probe(
                probed,
                use_rep="z",
                targets=targets,
                donor_key="donor",
                splits=splits,
                scale=(False, True),
                n_bootstrap=0,
            )
            frames.append(frame.assign(data=name, setting=setting, train_seed=seed, seconds=seconds))
            print(f"{name}: {setting}, seed {seed}, {seconds:.0f} s", flush=True)
    return pd.concat(frames)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over training seeds of the score of each setting on each task."""
    rows = frame[(frame["level"] == "cell") & frame["metric"].isin(SCORES)]
    keys = ["data", "target", "setting"]
    by_seed = rows.groupby([*keys, "scale", "train_seed"])["value"].mean()
    summary = by_seed.groupby([*keys, "scale"]).agg(["mean", "std"]).reset_index()
    best = summary.loc[summary.groupby(keys)["mean"].idxmax()]
    best["score"] = [f"{m:.3f} ± {s:.3f}" for m, s in zip(best["mean"], best["std"], strict=True)]
    text = best.set_index([*keys])["score"].unstack(["data", "target"])  # noqa: PD010
    return text.loc[[s for s in SETTINGS if s in text.index]]


def main() -> None:
    """Run the sweep and print its table."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["csle"])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--splits", type=int, default=5)
    options = parser.parse_args()
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    frame = pd.concat([run(name, options) for name in options.sets])
    frame.drop(columns=["note"]).to_csv(options.out / "defaults.csv", index=False)
    result = table(frame)
    result.to_csv(options.out / "defaults_table.csv")
    print(result.to_markdown())


if __name__ == "__main__":
    main()
