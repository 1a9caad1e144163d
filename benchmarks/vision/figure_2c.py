"""Figure 2C for images: accuracy after finetuning over the masking ratio of pretraining, for two sizes of network.

    python benchmarks/vision/figure_2c.py --data IMAGENET -o OUT --accelerator gpu --workers 8

The paper's panel shows RoBERTa models of two sizes; this is the same experiment with ViT-MAE. ``IMAGENET`` is whatever
``scr2mae.extra.vision.open_images`` opens, with classes and the splits train and test. Each finished network is a row of
``figure_2c.csv``, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from scr2mae.extra import vision

KEY = ["preset", "ratio", "seed", "epochs", "finetune_epochs"]
COLORS = {"tiny": "#E69F00", "base": "#0072B2"}


def open_split(options: argparse.Namespace, split: str) -> Any:
    """Open a split; image files are scaled to the size that was asked for."""
    sizes = {} if options.image_size is None else {"size": options.image_size}
    return vision.open_images(options.data, split=split, **sizes)


def measure(setting: dict[str, Any], train: Any, test: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain at one ratio, finetune, score."""
    start = time.perf_counter()
    n_channels, size, _ = train.batch(np.arange(1))["image"].shape[1:]
    torch.manual_seed(setting["seed"])
    config = vision.vit_config(
        setting["preset"], image_size=size, patch_size=options.patch_size, n_channels=n_channels
    )
    network = vision.R2ViTMAE(config)
    common: dict[str, Any] = {
        "seed": setting["seed"],
        "n_workers": options.workers,
        "accelerator": options.accelerator,
        "precision": options.precision,
        "devices": 1,
        "enable_progress_bar": False,
    }
    recipe = replace(vision.RECIPES["vit"], max_epochs=setting["epochs"], batch_size=options.batch_size)
    vision.pretrain(
        network, train, mask_ratio=setting["ratio"], recipe=recipe, augment=vision.PretrainAugment(), **common
    )
    n_classes = int(train.labels.max()) + 1
    classifier = vision.ViTMAEClassifier.from_network(network, n_classes)
    recipe = replace(
        vision.RECIPES["finetune"], max_epochs=setting["finetune_epochs"], batch_size=options.batch_size
    )
    vision.finetune(classifier, train, recipe=recipe, augment=vision.FinetuneAugment(n_classes), **common)
    device = "cuda" if options.accelerator == "gpu" else "cpu"
    p = vision.predict_proba(classifier, test, device=device, n_workers=options.workers)
    y = test.labels.numpy()
    top = np.argsort(-p, axis=1)
    return {
        **setting,
        "top1": 100 * float((top[:, 0] == y).mean()),
        "top5": 100 * float((top[:, :5] == y[:, None]).any(axis=1).mean()),
        "seconds": time.perf_counter() - start,
    }


def draw(frame: pd.DataFrame, path: Path) -> None:
    """One line a size."""
    fig, ax = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
    for preset, rows in frame.groupby("preset"):
        by = rows.groupby("ratio")["top1"].mean()
        ax.plot(
            by.index,
            by,
            marker="o",
            ms=4,
            color=COLORS[preset],
            label=f"ViT-{preset}, best at {by.idxmax():g}",
        )
    ax.set(xlabel="Share of patches hidden in pretraining", ylabel="Accuracy after finetuning (%)")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, then draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--presets", nargs="+", choices=list(COLORS), default=list(COLORS))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
    parser.add_argument("--image-size", type=int, help="side of image files (default: 224)")
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=vision.RECIPES["vit"].max_epochs)
    parser.add_argument("--finetune-epochs", type=int, default=vision.RECIPES["finetune"].max_epochs)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="threads that decode images")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--precision", default="32-true")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.getLogger("scr2mae").setLevel(logging.ERROR)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "figure_2c.csv"
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {tuple(row[name] for name in KEY) for row in rows}
    train, test = open_split(options, "train"), open_split(options, "test")
    for seed in range(options.seeds):
        for preset in options.presets:
            for ratio in options.ratios:
                setting = dict(
                    zip(KEY, (preset, ratio, seed, options.epochs, options.finetune_epochs), strict=True)
                )
                if tuple(setting.values()) in done:
                    continue
                rows.append(measure(setting, train, test, options))
                pd.DataFrame(rows).to_csv(path, index=False)
                print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    draw(frame, options.out / "figure_2c.png")
    print(frame.pivot_table(index="preset", columns="ratio", values="top1").round(2).to_markdown())


if __name__ == "__main__":
    main()
