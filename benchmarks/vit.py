"""Compare masking schemes on a small ViT-MAE by linear probe and loss of masked patches; for Table 1 see imagenet.py.

    python benchmarks/vit.py --data IMAGES -o OUT --epochs 40 --seeds 2

``IMAGES`` is anything that ``scr2mae.extra.vision.open_images`` opens, with classes and the splits train and test. Each
finished network is a row of ``vit.csv``, and the same command resumes an interrupted run. The rows "untrained" and
"pixels" probe a network before pretraining, and the pixels themselves.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import scr2mae
from common_setup import make_parser, silence
from scr2mae.extra import vision
from scr2mae.metrics import effective_rank
from scr2mae.pl import OKABE_ITO

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}
RATIOS = (0.5, 0.6, 0.75, 0.9)
KEY = ["scheme", "seed", "epochs", "n_train"]
QUIET: dict[str, Any] = {"enable_progress_bar": False, "devices": 1}


def build(options: argparse.Namespace, images: vision.ImageArray, seed: int) -> vision.R2ViTMAE:
    """Create the network; its weights depend on the seed only, not on the scheme."""
    n_channels, size, _ = images.batch(np.arange(1))["image"].shape[1:]
    torch.manual_seed(seed)
    config = vision.vit_config(
        "tiny", image_size=size, patch_size=options.patch_size, n_channels=n_channels, **SMALL
    )
    return vision.R2ViTMAE(config)


def probe(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, *, epochs: int, seed: int
) -> float:
    """Return the accuracy of a linear classifier on test images, in percent."""
    torch.manual_seed(seed)
    head = vision.LinearHead(x.shape[1], int(y.max()) + 1, normalize=True)
    recipe = replace(vision.RECIPES["linear"], max_epochs=epochs, decay="cosine")
    vision.fit_head(head, x, y, recipe=recipe, seed=seed, accelerator="cpu", **QUIET)
    return 100 * float(np.mean(head.predict(torch.from_numpy(x_test)).numpy() == y_test))


@torch.no_grad()
def hidden_losses(network: vision.R2ViTMAE, images: vision.ImageArray) -> dict[str, float]:
    """Return the loss of masked patches of test images at each ratio, with the same masks for every scheme."""
    batches = [
        images.batch(part)["image"]
        for part in np.array_split(np.arange(len(images)), max(len(images) // 250, 1))
    ]
    return {
        f"loss_{ratio:g}": float(
            np.mean(
                [network(x, ratio=ratio, seed=1, step=step).loss.item() for step, x in enumerate(batches)]
            )
        )
        for ratio in RATIOS
    }


def measure(
    name: str, seed: int, train: vision.ImageArray, test: vision.ImageArray, options: argparse.Namespace
) -> dict[str, Any]:
    """Pretrain with one scheme and seed, then probe."""
    start = time.perf_counter()
    network = build(options, train, seed)
    if name not in ("untrained", "pixels"):
        scheme = scr2mae.schemes("vision", seed=seed)[name]
        lr = options.lr or vision.RECIPES["vit"].lr
        vision.pretrain(
            network,
            train,
            mask_ratio=scheme.mask_ratio,
            recipe=replace(
                vision.RECIPES["vit"],
                max_epochs=options.epochs,
                warmup_epochs=options.epochs / 15,
                batch_size=options.batch_size,
                lr=lr,
            ),
            augment=vision.PretrainAugment(),
            seed=seed,
            accelerator=options.accelerator,
            **QUIET,
        )
    network = network.cpu().eval()
    if name == "pixels":
        x, x_test = (each.batch(np.arange(len(each)))["image"].flatten(1).numpy() for each in (train, test))
    else:
        x, x_test = vision.embed(network, train), vision.embed(network, test)
    labels = train.labels.numpy(), test.labels.numpy()
    row = {
        "scheme": name,
        "seed": seed,
        "epochs": options.epochs,
        "n_train": len(train),
        "accuracy": probe(x, labels[0], x_test, labels[1], epochs=options.head_epochs, seed=seed),
        "effective_rank_entropy": effective_rank(x_test).entropy,
    }
    if name not in ("untrained", "pixels"):
        row |= hidden_losses(network, test)
    return {**row, "seconds": time.perf_counter() - start}


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw the accuracy of the probe for each seed, and the loss over ratios."""
    names = [
        name for name in ("pixels", "untrained", *scr2mae.schemes("vision")) if name in set(frame["scheme"])
    ]
    colors = dict(zip(names, ("0.6", "0.4", *OKABE_ITO), strict=False))
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for i, name in enumerate(names):
        rows = frame[frame["scheme"] == name]
        left.plot([i] * len(rows), rows["accuracy"], "o", color=colors[name], alpha=0.5)
        left.plot([i - 0.25, i + 0.25], [rows["accuracy"].mean()] * 2, color=colors[name], lw=2)
        losses = [rows[f"loss_{ratio:g}"].mean() for ratio in RATIOS] if f"loss_{RATIOS[0]:g}" in rows else []
        if np.isfinite(losses).all() and losses:
            right.plot(RATIOS, losses, color=colors[name], marker="o", ms=4, label=name)
    left.set(ylabel="Accuracy of the linear probe (%)")
    left.set_xticks(range(len(names)), names, rotation=40, ha="right")
    right.set(xlabel="Share of patches hidden at the test", ylabel="Loss of hidden patches")
    right.legend(frameon=False, fontsize=8)
    for ax in (left, right):
        ax.grid(alpha=0.3)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def subset(images: vision.ImageArray, n: int | None, seed: int = 0) -> vision.ImageArray:
    """Return a random part of the images, the same in every run."""
    if n is None or n >= len(images):
        return images
    kept = np.random.default_rng(seed).permutation(len(images))[:n]
    return vision.ImageArray(images.images[kept].permute(0, 2, 3, 1).numpy(), images.labels[kept].numpy())


def main() -> None:
    """Train the missing networks, then draw."""
    parser = make_parser(__doc__, seeds=2)
    parser.add_argument("--schemes", nargs="+", default=["pixels", "untrained", *scr2mae.schemes("vision")])
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--n-train", type=int, help="a random part of the training images")
    parser.add_argument("--n-test", type=int, help="a random part of the test images")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--head-epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, help="for 256 images per step (default: the paper's)")
    parser.add_argument("--max-minutes", type=float, help="start no further network after this time")
    parser.add_argument("--accelerator", default="cpu")
    options = parser.parse_args()
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "vit.csv"
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {tuple(row[name] for name in KEY) for row in rows}
    train = subset(vision.open_images(options.data, split="train"), options.n_train)
    test = subset(vision.open_images(options.data, split="test"), options.n_test)
    start = time.perf_counter()
    for seed in range(options.seeds):
        for name in options.schemes:
            late = options.max_minutes and time.perf_counter() - start > 60 * options.max_minutes
            if late or (name, seed, options.epochs, len(train)) in done:
                continue
            rows.append(measure(name, seed, train, test, options))
            pd.DataFrame(rows).to_csv(path, index=False)
            print(
                {
                    key: round(value, 3) if isinstance(value, float) else value
                    for key, value in rows[-1].items()
                },
                flush=True,
            )
    frame = pd.DataFrame(rows)
    frame = frame[frame["epochs"] == frame["epochs"].max()]
    draw(frame, options.out / "vit.png")
    columns = [name for name in frame if name not in (*KEY, "seconds")]
    print(frame.groupby("scheme", sort=False)[columns].agg(["mean", "std"]).round(3).to_markdown())


if __name__ == "__main__":
    main()
