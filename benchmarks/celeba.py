"""Figures 2B and 5 to 7: U-Nets on CelebA over masking ratios and widths; reconstruction and forty attributes.

    python benchmarks/celeba.py --data CELEBA -o OUT --accelerator gpu --workers 8

``CELEBA`` holds ``img_align_celeba/``, ``list_attr_celeba.txt`` and ``list_eval_partition.txt``. Each network is
pretrained at a fixed ratio, reconstructs uncorrupted test images (figure 2B), and has its bottleneck probed for the
attributes (figures 5 to 7, one per width). Finished networks are rows of ``celeba.csv`` and ``celeba_attributes.csv``; the same command
continues an interrupted run.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch

from common_setup import make_parser, silence
from scr2mae.extra import vision
from scr2mae.extra.batches import ThreadedLoader
from scr2mae.metrics import balanced_accuracy

BASE_CHANNELS = (8, 16, 32)
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
COLORS = {8: "#E69F00", 16: "#56B4E9", 32: "#009E73"}
KEY = ["base_channels", "ratio", "seed", "epochs"]
FIGURES = {8: 5, 16: 6, 32: 7}


def reconstruction_error(network: vision.MaskedUNet, images: vision.CelebA, n_workers: int) -> float:
    """Return the mean squared error on uncorrupted images."""
    network.eval()
    device = next(network.parameters()).device
    loader = ThreadedLoader(images, batch_size=256, n_workers=n_workers)
    return float(
        torch.cat([network.reconstruction_error(batch["image"].to(device)).cpu() for batch in loader]).mean()
    )


def probe(
    network: vision.MaskedUNet,
    train: vision.CelebA,
    test: vision.CelebA,
    options: argparse.Namespace,
    seed: int,
) -> pd.DataFrame:
    """Return accuracy (in percent) and balanced accuracy of each attribute on test images."""
    x, x_test = (vision.embed(network, images, n_workers=options.workers) for images in (train, test))
    torch.manual_seed(seed)
    head = vision.AttributeHead(network.n_latent, len(train.attributes_))
    recipe = replace(vision.RECIPES["attributes"], max_epochs=options.head_epochs)
    vision.fit_head(
        head, x, train.labels.numpy(), recipe=recipe, seed=seed, accelerator="cpu", enable_progress_bar=False
    )
    predicted, truth = head.predict(torch.from_numpy(x_test)).numpy(), test.labels.numpy()
    return pd.DataFrame(
        {
            "attribute": test.attributes_,
            "accuracy": 100 * (predicted == truth).mean(axis=0),
            "balanced_accuracy": [balanced_accuracy(y, p) for y, p in zip(truth.T, predicted.T, strict=True)],
        }
    )


def measure(
    setting: dict[str, Any], splits: dict[str, vision.CelebA], options: argparse.Namespace
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Pretrain one network, reconstruct and probe."""
    start = time.perf_counter()
    torch.manual_seed(setting["seed"])
    network = vision.MaskedUNet(base_channels=setting["base_channels"])
    vision.pretrain(
        network,
        splits["train"],
        mask_ratio=setting["ratio"],
        recipe=replace(vision.RECIPES["unet"], max_epochs=setting["epochs"], batch_size=options.batch_size),
        seed=setting["seed"],
        n_workers=options.workers,
        accelerator=options.accelerator,
        devices=1,
        enable_progress_bar=False,
    )
    if options.accelerator == "gpu":
        network.cuda()
    error = reconstruction_error(network, splits["test"], options.workers)
    scores = probe(network, splits["train"], splits["test"], options, setting["seed"])
    row = {
        **setting,
        "mse_uncorrupted": error,
        "accuracy": scores["accuracy"].mean(),
        "balanced_accuracy": scores["balanced_accuracy"].mean(),
        "seconds": time.perf_counter() - start,
    }
    return row, scores.assign(**setting)


def draw_summary(frame: pd.DataFrame, path: Path) -> None:
    """Draw figure 2B and the mean accuracy over attributes, one line per width."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
    for base, rows in frame.groupby("base_channels"):
        by = rows.groupby("ratio")[["mse_uncorrupted", "accuracy"]].mean()
        best = by["mse_uncorrupted"].idxmin()
        label = f"{base} channels, best at {best:g}"
        left.plot(by.index, by["mse_uncorrupted"], color=COLORS.get(base), marker="o", ms=4, label=label)
        right.plot(by.index, by["accuracy"], color=COLORS.get(base), marker="o", ms=4)
    left.set(ylabel="MSE of uncorrupted images", yscale="log")
    right.set(ylabel="Mean accuracy over attributes (%)")
    left.legend(frameon=False, fontsize=8)
    for ax in (left, right):
        ax.set_xlabel("Share of pixels hidden in pretraining")
        ax.grid(alpha=0.3, which="both")
    fig.savefig(path, dpi=150)
    plt.close(fig)


def draw_attributes(frame: pd.DataFrame, path: Path, title: str) -> None:
    """Draw the accuracy of each attribute over the ratio for one width."""
    names = list(dict.fromkeys(frame["attribute"]))
    n_rows = -(-len(names) // 8)
    fig, axes = plt.subplots(n_rows, 8, figsize=(16, 2 * n_rows), sharex=True)
    # Computing a layout for so many panels takes longer than drawing them.
    fig.subplots_adjust(left=0.05, right=0.99, bottom=0.08, top=0.9, wspace=0.3, hspace=0.35)
    table = frame.groupby(["attribute", "ratio"])["accuracy"].mean()
    for ax, name in zip(axes.flat, names, strict=False):
        ax.plot(table[name].index, table[name], color="#0072B2", marker="o", ms=3)
        ax.set_title(name.replace("_", " "), fontsize=8)
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.3)
    fig.suptitle(title)
    fig.supxlabel("Share of pixels hidden in pretraining")
    fig.supylabel("Accuracy (%)")
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main(argv: list[str] | None = None) -> None:
    """Run the missing networks of the grid, then draw."""
    parser = make_parser(__doc__, seeds=1)
    parser.add_argument("--base-channels", type=int, nargs="+", default=list(BASE_CHANNELS))
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--epochs", type=int, default=vision.RECIPES["unet"].max_epochs)
    parser.add_argument("--head-epochs", type=int, default=vision.RECIPES["attributes"].max_epochs)
    parser.add_argument("--batch-size", type=int, default=vision.RECIPES["unet"].batch_size)
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels (default: 64)")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode images")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    options = parser.parse_args(argv)
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    paths = [options.out / name for name in ("celeba.csv", "celeba_attributes.csv")]
    rows, scores = [pd.read_csv(p).to_dict("records") if p.is_file() else [] for p in paths]
    done = {tuple(row[name] for name in KEY) for row in rows}
    splits = {split: vision.CelebA(options.data, split, size=options.size) for split in ("train", "test")}
    for seed, base, ratio in product(range(options.seeds), options.base_channels, options.ratios):
        setting = dict(zip(KEY, (base, ratio, seed, options.epochs), strict=True))
        if tuple(setting.values()) in done:
            continue
        row, table = measure(setting, splits, options)
        rows.append(row)
        scores += table.to_dict("records")
        pd.DataFrame(scores).to_csv(paths[1], index=False)
        # Written last, so that a row here means that both tables are complete.
        pd.DataFrame(rows).to_csv(paths[0], index=False)
        print({name: round(value, 5) for name, value in row.items()}, flush=True)
    frame, table = pd.DataFrame(rows), pd.DataFrame(scores)
    draw_summary(frame, options.out / "figure_2b.png")
    for base, part in table.groupby("base_channels"):
        name = f"figure_{FIGURES[base]}" if base in FIGURES else f"attributes_{base}"
        draw_attributes(part, options.out / f"{name}.png", f"U-Net of {base} base channels")
    errors = frame.pivot_table(index="base_channels", columns="ratio", values="mse_uncorrupted")
    print(errors.round(5).to_markdown())


if __name__ == "__main__":
    main()
