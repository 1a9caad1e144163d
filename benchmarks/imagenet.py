"""Table 1, and Figure 2C for images: ViT-MAE pretrained on ImageNet, then finetuned, top-1 and top-5 accuracy.

    python benchmarks/imagenet.py table_1 --data IMAGENET -o OUT --accelerator gpu --workers 16
    python benchmarks/imagenet.py figure_2c --data IMAGENET -o OUT --accelerator gpu --workers 16
    python benchmarks/imagenet.py table_1 -o OUT --dry-run

``IMAGENET`` has one folder per class in ``train/`` and ``val/``, as torchvision lays ImageNet out, or is whatever else
``scr2mae.extra.vision.open_images`` opens. Files are decoded when they are needed. Table 1 compares the masking schemes
on ViT-base; the figure compares fixed ratios on two sizes (the paper's panel shows RoBERTa). Each finished network is a
row of ``OUT/NAME.csv``, and the same command resumes an interrupted run; ``--shard 0/6`` trains the first of every six
rows, to divide the work among machines. ``--dry-run`` runs all steps at less than a thousandth of the size, on
generated images.
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

KEY = ["preset", "row", "seed", "epochs", "finetune_epochs"]
SCHEMES = ("mae", "mae_high", "mae_low", "mdlm", "dynamic", "r2mae")  # the columns of Table 1, in its order
RATIOS = ("0.15", "0.3", "0.45", "0.6", "0.75", "0.9")
COLORS = {"tiny": "#E69F00", "base": "#0072B2"}
# Images per optimizer step in pretraining and in finetuning, as in MAE.
IMAGES_PER_STEP = (4096, 1024)
DRY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}


def open_split(options: argparse.Namespace, split: str) -> Any:
    """Open a split; image files are scaled to ``options.image_size``."""
    if options.dry_run:
        rng = np.random.default_rng(split == "test")
        labels = np.arange(24) % 6
        images = rng.uniform(0, 0.4, size=(24, 16, 16, 3)) + labels[:, None, None, None] / 10
        return vision.ImageArray((255 * images).astype(np.uint8), labels)
    if split == "test" and "test" not in vision.image_splits(options.data):
        split = "validation"
    return vision.open_images(options.data, split=split, size=options.image_size)


def recipe_and_accumulation(name: str, options: argparse.Namespace, epochs: int) -> tuple[Any, int]:
    """Return the recipe with mini-batches that fit the device, and the number of them per optimizer step."""
    per_step = options.images_per_step[name == "finetune"]
    n_accumulated = max(round(per_step / options.batch_size), 1)
    recipe = vision.RECIPES[name]
    warmup = recipe.warmup_epochs * min(epochs / recipe.max_epochs, 1.0)
    return replace(
        recipe, max_epochs=epochs, warmup_epochs=warmup, batch_size=options.batch_size
    ), n_accumulated


def measure(setting: dict[str, Any], train: Any, test: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain with one scheme or ratio, finetune and score."""
    start = time.perf_counter()
    n_channels, size, _ = train.batch(np.arange(1))["image"].shape[1:]
    seed, row = setting["seed"], setting["row"]
    torch.manual_seed(seed)
    config = vision.vit_config(
        setting["preset"],
        image_size=size,
        patch_size=options.patch_size,
        n_channels=n_channels,
        **(DRY if options.dry_run else {}),
    )
    network = vision.R2ViTMAE(config)
    common: dict[str, Any] = {
        "seed": seed,
        "n_workers": options.workers,
        "accelerator": options.accelerator,
        "precision": options.precision,
        "devices": 1,
        "enable_progress_bar": False,
    }
    ratio = scr2mae.schemes("vision", seed=seed)[row].mask_ratio if row in SCHEMES else float(row)
    recipe, n_accumulated = recipe_and_accumulation("vit", options, setting["epochs"])
    vision.pretrain(
        network,
        train,
        mask_ratio=ratio,
        recipe=recipe,
        augment=vision.PretrainAugment(),
        accumulate_grad_batches=n_accumulated,
        **common,
    )
    n_classes = int(train.labels.max()) + 1
    classifier = vision.ViTMAEClassifier.from_network(network, n_classes)
    recipe, n_accumulated = recipe_and_accumulation("finetune", options, setting["finetune_epochs"])
    vision.finetune(
        classifier,
        train,
        recipe=recipe,
        augment=vision.FinetuneAugment(n_classes),
        accumulate_grad_batches=n_accumulated,
        **common,
    )
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
    """Draw the accuracy over the ratio, one line per size of the network."""
    fig, ax = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
    for preset, rows in frame.groupby("preset"):
        by = rows.assign(ratio=rows["row"].astype(float)).groupby("ratio")["top1"].mean()
        label = f"ViT-{preset}, best at {by.idxmax():g}"
        ax.plot(by.index, by, marker="o", ms=4, color=COLORS[preset], label=label)
    ax.set(xlabel="Share of patches hidden in pretraining", ylabel="Accuracy after finetuning (%)")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def summary(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return Table 1 (metrics by scheme), or the top-1 accuracy of each size by ratio."""
    if name == "table_1":
        order = [row for row in SCHEMES if row in set(frame["row"])]
        return frame.groupby("row")[["top1", "top5"]].mean().T[order].rename_axis("metric")
    return frame.pivot_table(index="preset", columns="row", values="top1")


def main(argv: list[str] | None = None) -> None:
    """Train the missing networks, then print the table or draw the figure."""
    parser = make_parser(__doc__, data=False, seeds=1)
    parser.add_argument("name", choices=["table_1", "figure_2c"])
    parser.add_argument("--data", type=Path, help="images with classes, in the splits train and val or test")
    parser.add_argument("--presets", nargs="+", choices=list(COLORS), help="sizes of the ViT")
    parser.add_argument("--rows", nargs="+", help="schemes, or ratios")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="the rows of one machine of several")
    parser.add_argument("--image-size", type=int, default=224, help="side of image files")
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=vision.RECIPES["vit"].max_epochs)
    parser.add_argument("--finetune-epochs", type=int, default=vision.RECIPES["finetune"].max_epochs)
    parser.add_argument("--batch-size", type=int, default=256, help="images on the device at a time")
    parser.add_argument(
        "--images-per-step",
        type=int,
        nargs=2,
        default=IMAGES_PER_STEP,
        metavar=("PRETRAIN", "FINETUNE"),
        help="images per optimizer step, accumulated over mini-batches (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=2, help="threads that decode images")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument(
        "--dry-run", action="store_true", help="a thousandth of the size, on generated images"
    )
    options = parser.parse_args(argv)
    if options.dry_run:
        options.epochs = options.finetune_epochs = 1
        options.patch_size, options.batch_size, options.images_per_step = 8, 6, (24, 12)
    elif options.data is None:
        parser.error("--data is needed, except with --dry-run")
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.name}.csv"
    rows = pd.read_csv(path, dtype={"row": str}).to_dict("records") if path.is_file() else []
    done = {tuple(row[name] for name in KEY) for row in rows}
    train, test = open_split(options, "train"), open_split(options, "test")
    is_table = options.name == "table_1"
    settings = [
        dict(zip(KEY, (preset, row, seed, options.epochs, options.finetune_epochs), strict=True))
        for seed in range(options.seeds)
        for preset in options.presets or (["base"] if is_table else list(COLORS))
        for row in options.rows or (SCHEMES if is_table else RATIOS)
    ]
    shard, n_shards = map(int, options.shard.split("/"))
    for setting in settings[shard::n_shards]:
        if tuple(setting.values()) in done:
            continue
        rows.append(measure(setting, train, test, options))
        pd.DataFrame(rows).to_csv(path, index=False)
        print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    if not is_table:
        draw(frame, options.out / "figure_2c.png")
    print(summary(frame, options.name).round(2).to_markdown())


if __name__ == "__main__":
    main()
