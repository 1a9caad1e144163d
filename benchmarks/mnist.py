"""Figures 2A and 2D: probe error and effective rank of MLPs on MNIST over the masking ratio, by width.

    python benchmarks/mnist.py --data MNIST -o OUT            # the paper's grid: 10 widths x 9 ratios x 15 epochs
    python benchmarks/mnist.py --data MNIST -o OUT --quick    # 4 widths x 5 ratios x 1 epoch

``MNIST`` is a folder of the idx files, or an .npz file with x_train, y_train, x_test, y_test. Each finished network is
a row of ``mnist.csv``, and the same command resumes an interrupted run; ``mnist.png`` shows the finished networks.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from common_setup import make_parser, silence
from scr2mae.extra import vision
from scr2mae.metrics import effective_rank

N_HIDDEN = (512, 16)
N_LATENT = (16, 32, 64, 256, 1024)
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TITLES = {512: "first layer 512: parameter-sufficient", 16: "first layer 16: parameter-insufficient"}
COLORS = dict(zip(N_LATENT, ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00"), strict=True))
KEY = ["n_hidden", "n_latent", "ratio", "seed", "epochs", "head_epochs"]
QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


def error_of(head: vision.LinearHead, features: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images that a head classifies wrongly, in percent."""
    head.eval()
    return 100 * float(np.mean(head.predict(torch.from_numpy(features)).numpy() != labels))


def measure(
    train: vision.ImageArray, test: vision.ImageArray, setting: dict[str, Any], accelerator: str
) -> dict[str, Any]:
    """Pretrain one network, probe it, and measure the spread of its embeddings of the test images."""
    start = time.perf_counter()
    torch.manual_seed(setting["seed"])
    network = vision.MaskedMLP(n_hidden=setting["n_hidden"], n_latent=setting["n_latent"])
    options = {**QUIET, "accelerator": accelerator, "seed": setting["seed"]}
    vision.pretrain(
        network,
        train,
        mask_ratio=setting["ratio"],
        recipe=replace(vision.RECIPES["mlp"], max_epochs=setting["epochs"]),
        **options,
    )
    pretrained = time.perf_counter() - start
    x_train, x_test = (vision.embed(network, images, batch_size=1000) for images in (train, test))
    torch.manual_seed(setting["seed"])
    head = vision.LinearHead(network.n_latent, 10)
    recipe = replace(vision.RECIPES["linear"], max_epochs=setting["head_epochs"])
    vision.fit_head(head, x_train, train.labels.numpy(), recipe=recipe, **options)
    raw, centered = effective_rank(x_test), effective_rank(x_test - x_test.mean(axis=0))
    uncorrupted = [
        network.reconstruction_error(test.batch(part)["image"]) for part in np.split(np.arange(len(test)), 10)
    ]
    return {
        **setting,
        "probe_error": error_of(head, x_test, test.labels.numpy()),
        "train_error": error_of(head, x_train, train.labels.numpy()),
        "effective_rank_entropy": raw.entropy,
        "effective_rank": raw.rank,
        "centered_entropy": centered.entropy,
        "mse_uncorrupted": float(torch.cat(uncorrupted).mean()),
        "pretrain_seconds": pretrained,
        "seconds": time.perf_counter() - start,
    }


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw the error (top) and the change of the effective rank (bottom), one line per width, averaged over seeds."""
    fig, axes = plt.subplots(2, 2, figsize=(8.4, 6.4), sharex=True, sharey="row", layout="constrained")
    for column, n_hidden in enumerate(N_HIDDEN):
        for n_latent, rows in frame[frame["n_hidden"] == n_hidden].groupby("n_latent"):
            by = rows.groupby("ratio")[["probe_error", "effective_rank_entropy"]].mean()
            by["effective_rank_entropy"] -= by["effective_rank_entropy"].iloc[0]
            for row, name in enumerate(by):
                axes[row, column].plot(
                    by[name], color=COLORS[n_latent], marker="o", ms=4, label=str(n_latent)
                )
        axes[0, column].set_title(TITLES[n_hidden], fontsize=10)
        axes[1, column].set_xlabel("Share of pixels hidden in pretraining")
        for ax in axes[:, column]:
            ax.grid(alpha=0.3)
    axes[0, 0].set(ylabel="Error of the linear probe (%)", yscale="log")
    axes[0, 0].set_yticks([2, 3, 5, 10, 20], ["2", "3", "5", "10", "20"])
    axes[0, 0].minorticks_off()
    axes[1, 0].set_ylabel("Effective rank, change from\nthe smallest ratio (nats)")
    axes[1, 0].legend(title="embedding", frameon=False, ncols=2, fontsize=8)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def grid(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the settings to run, extreme ratios first, so that an interrupted run spans the range."""
    ratios = sorted(options.ratios, key=lambda r: -abs(r - 0.5))
    values = product(range(options.seeds), ratios, options.n_hidden, options.n_latent)
    return [
        dict(zip(KEY, (n_hidden, n_latent, ratio, seed, options.epochs, options.head_epochs), strict=True))
        for seed, ratio, n_hidden, n_latent in values
    ]


def main() -> None:
    """Train the missing networks of the grid, then draw."""
    parser = make_parser(__doc__, seeds=1)
    parser.add_argument(
        "--quick", action="store_true", help="a small grid and one epoch, unless given otherwise"
    )
    parser.add_argument("--ratios", type=float, nargs="+")
    parser.add_argument("--n-hidden", type=int, nargs="+", choices=N_HIDDEN, default=list(N_HIDDEN))
    parser.add_argument("--n-latent", type=int, nargs="+", choices=N_LATENT)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--head-epochs", type=int)
    parser.add_argument("--max-minutes", type=float, help="start no further network after this time")
    parser.add_argument("--accelerator", default="cpu")
    options = parser.parse_args()
    options.ratios = options.ratios or ([0.1, 0.3, 0.5, 0.7, 0.9] if options.quick else list(RATIOS))
    options.n_latent = options.n_latent or ([32, 256] if options.quick else list(N_LATENT))
    options.epochs = options.epochs or (1 if options.quick else 15)
    options.head_epochs = options.head_epochs or (3 if options.quick else 15)
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "mnist.csv"
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {tuple(row[name] for name in KEY) for row in rows}
    train, test = (vision.open_images(options.data, split=split) for split in ("train", "test"))
    start = time.perf_counter()
    for setting in grid(options):
        if tuple(setting.values()) in done:
            continue
        if options.max_minutes and time.perf_counter() - start > 60 * options.max_minutes:
            break
        rows.append(measure(train, test, setting, options.accelerator))
        pd.DataFrame(rows).to_csv(path, index=False)
        shown = {
            name: round(rows[-1][name], 4)
            for name in (*KEY[:4], "probe_error", "effective_rank_entropy", "seconds")
        }
        print(shown, flush=True)
    frame = pd.DataFrame(rows)
    longest = frame[frame["epochs"] == frame["epochs"].max()]
    draw(longest, options.out / "mnist.png")
    for name in ("probe_error", "effective_rank_entropy"):
        table = longest.pivot_table(index=["n_hidden", "n_latent"], columns="ratio", values=name)
        print(f"\n{name}\n{table.round(3).to_markdown()}")


if __name__ == "__main__":
    main()
