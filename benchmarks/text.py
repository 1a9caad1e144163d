"""Masking schemes of a small RoBERTa: loss on held-out text over masking ratios, and accuracy on SST-2.

    python benchmarks/text.py --data DATA -o OUT
    python benchmarks/text.py --data DATA -o OUT --schemes r2mae --seeds 1

``DATA`` holds ``wikitext2_test.txt.gz`` (for pretraining; the training part is not needed), ``wikitext2_valid.txt.gz``
(held out) and ``sst2_{train,test}.tsv.gz``. Each finished network is a file in ``OUT/rows``, and the same command resumes
an interrupted run. ``--minutes`` limits the time of a run.

Writes ``text_losses.csv``, ``text_sst2.csv`` and ``text.png``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import scr2mae
from common_setup import make_parser, silence
from scr2mae.extra import text
from scr2mae.pl import OKABE_ITO
from scr2mae.train import LearningRateSchedule

MAIN = ("mae", "mae_high", "mdlm", "dynamic", "r2mae")
FURTHER = ("r2mae_dynamic", "cl", "cl_k0", "r2mae_cl", "r2mae_cl_k0")
NONE = "no pretraining"
LABELS = {
    "mae": "MLM, 0.15",
    "mae_high": "MLM, 0.40",
    "mdlm": "MDLM",
    "dynamic": "Dynamic",
    "r2mae": "R²MAE",
    "r2mae_dynamic": "R²MAE + Dynamic",
    "cl": "CL",
    "cl_k0": "CL (k = 0)",
    "r2mae_cl": "R²MAE + CL",
    "r2mae_cl_k0": "R²MAE + CL (k = 0)",
    NONE: NONE,
}
RATIOS = (0.05, 0.15, 0.275, 0.4, 0.6, 0.8)
NETWORK: dict[str, Any] = {
    "size": "tiny",
    "hidden_size": 64,
    "intermediate_size": 256,
    # Networks of this size underfit, so dropout would only slow training down.
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    # RoBERTa's 0.02 suits widths near 768; at 64, attention stays almost uniform for thousands of steps.
    "initializer_range": 0.1,
}


def corpora(options: argparse.Namespace) -> tuple[text.TokenBlocks, text.TokenBlocks]:
    """Pack training and held-out text, with a tokenizer learned from the former."""
    train = list(text.read_documents(options.data / "wikitext2_test.txt.gz", unit="line"))
    held_out = text.read_documents(options.data / "wikitext2_valid.txt.gz", unit="line")
    tokenizer = text.BytePairTokenizer.train(train, vocab_size=options.vocab_size)
    blocks = text.pack(train, tokenizer, length=options.length)
    return blocks, text.pack(held_out, tokenizer, length=options.length, max_blocks=options.held_out_blocks)


def frequency_loss(blocks: text.TokenBlocks, held_out: text.TokenBlocks) -> float:
    """Return the loss of held-out tokens by their frequencies in the training text, in nats per token."""
    n_special = len(text.SPECIAL_TOKENS)
    counts = np.bincount(np.asarray(blocks.tokens).ravel(), minlength=len(blocks.tokenizer)).astype(float) + 1
    counts[:n_special] = 0
    tokens = np.asarray(held_out.tokens).ravel()
    return float(-np.log(counts / counts.sum())[tokens[tokens >= n_special]].mean())


def row(
    scheme: str,
    seed: int,
    blocks: text.TokenBlocks,
    held_out: text.TokenBlocks,
    sst2: dict[str, text.LabeledText],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Pretrain a network with one scheme, score it on held-out text and finetune a copy."""
    start = time.process_time()
    masking = {}
    if scheme != NONE:
        chosen = scr2mae.schemes("text", seed=seed)[scheme]
        masking = {"mask_ratio": chosen.mask_ratio, "curriculum": chosen.curriculum}
    model = text.RobertaR2MAE(blocks.tokenizer, seed=seed, **masking, **NETWORK)
    if scheme != NONE:
        text.pretrain(
            model,
            blocks,
            max_epochs=options.max_epochs,
            batch_size=options.batch_size,
            accumulate_grad_batches=1,
            lr=options.lr,
            accelerator="cpu",
            enable_progress_bar=False,
        )
    losses = text.score(model, held_out, ratios=RATIOS)
    tuned = text.finetune_scores(
        model,
        sst2["train"],
        sst2["test"],
        seeds=(seed,),
        max_epochs=options.finetune_epochs,
        lr=options.finetune_lr,
        learning_rate=LearningRateSchedule("linear", warmup=0.06),
        length=64,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    return {
        "scheme": scheme,
        "seed": seed,
        "losses": losses.to_dict(orient="list"),
        "accuracy": float(tuned["accuracy"].iloc[0]),
        "cpu_seconds": time.process_time() - start,
    }


def plan(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Return the networks to train in order: all schemes once before any twice, further schemes with one seed."""
    wanted = [(scheme, seed) for seed in range(options.seeds) for scheme in (*MAIN, NONE)]
    wanted += [(scheme, seed) for seed in range(options.further_seeds) for scheme in FURTHER]
    return [each for each in wanted if not options.schemes or each[0] in options.schemes]


def tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Collect finished rows: losses by scheme, seed and ratio, and accuracies by scheme and seed."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    losses = [pd.DataFrame(each["losses"]).assign(scheme=each["scheme"], seed=each["seed"]) for each in rows]
    accuracies = pd.DataFrame(rows)[["scheme", "seed", "accuracy", "cpu_seconds"]]
    order = {name: i for i, name in enumerate(LABELS)}
    key = {"key": lambda column: column.map(order) if column.name == "scheme" else column}
    return (
        pd.concat(losses)[["scheme", "seed", "ratio", "loss", "accuracy", "n_tokens"]].sort_values(
            ["scheme", "seed", "ratio"], **key
        ),
        accuracies.sort_values(["scheme", "seed"], **key),
    )


def draw(losses: pd.DataFrame, accuracies: pd.DataFrame, path: Path) -> None:
    """Draw the loss over ratios minus that of MLM at 0.15 with the same seed, and the accuracy of each seed."""
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.8), layout="constrained", gridspec_kw={"width_ratios": [3, 2]}
    )
    wide = losses.pivot_table(index=["seed", "ratio"], columns="scheme", values="loss")
    colors = dict(zip(MAIN, ("#000000", *OKABE_ITO[1:]), strict=False))
    for name in (name for name in MAIN if name in wide):
        by = (wide[name] - wide["mae"]).dropna().groupby("ratio")
        left.errorbar(
            by.mean().index, by.mean(), by.std(), color=colors[name], marker="o", ms=4, capsize=3,
            label=LABELS[name],
        )  # fmt: skip
    left.set(
        xlabel="Share of tokens hidden", ylabel="Held-out loss less that of MLM, 0.15 (nats)", xlim=(0, 1)
    )
    left.axhline(0, color="0.6", lw=0.8, zorder=0)
    left.legend(frameon=False)
    shown = [name for name in (*MAIN, NONE) if name in set(accuracies["scheme"])]
    for i, name in enumerate(shown):
        values = accuracies.loc[accuracies["scheme"] == name, "accuracy"]
        color = colors.get(name, "0.5")
        right.plot(values, np.full(len(values), -i), "o", ms=4, color=color, alpha=0.5)
        right.plot(values.mean(), -i, "|", ms=18, mew=2, color=color)
    right.set_yticks([-i for i in range(len(shown))], [LABELS[name] for name in shown])
    right.set(xlabel="Accuracy on SST-2 (test)")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
    fig.savefig(path, dpi=150)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--schemes", nargs="+", choices=list(LABELS), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the main schemes")
    parser.add_argument("--further-seeds", type=int, default=1, help="seeds of the combinations")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no further network after this time"
    )
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--held-out-blocks", type=int, default=384)
    parser.add_argument("--max-epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--finetune-epochs", type=int, default=2)
    parser.add_argument("--finetune-lr", type=float, default=1e-3)
    return parser.parse_args()


def main() -> None:
    """Train the missing networks, then write the tables and the figure."""
    options = parse()
    silence()
    folder = options.out / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    blocks, held_out = corpora(options)
    print(f"pretraining on {blocks}, held out {held_out}", flush=True)
    print(f"frequencies of tokens alone: {frequency_loss(blocks, held_out):.2f} nats", flush=True)
    sst2 = {part: text.read_task(options.data / f"sst2_{part}.tsv.gz") for part in ("train", "test")}
    start = time.monotonic()
    for scheme, seed in plan(options):
        file = folder / f"{scheme.replace(' ', '_')}-{seed}.json"
        if file.is_file():
            continue
        if time.monotonic() - start > 60 * options.minutes:
            break
        made = row(scheme, seed, blocks, held_out, sst2, options)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(made))
        part.replace(file)
        losses = [round(loss, 3) for loss in made["losses"]["loss"]]
        print(
            f"{scheme} seed {seed}: {made['cpu_seconds']:.0f} s, loss {losses}, SST-2 {made['accuracy']:.3f}",
            flush=True,
        )
    losses, accuracies = tables(folder)
    losses.to_csv(options.out / "text_losses.csv", index=False, float_format="%.5f")
    accuracies.to_csv(options.out / "text_sst2.csv", index=False, float_format="%.5f")
    if "mae" in set(losses["scheme"]):
        draw(losses, accuracies, options.out / "text.png")
    by_ratio = losses.pivot_table(index="scheme", columns="ratio", values="loss", sort=False)
    print(by_ratio.round(3).to_markdown())
    by_scheme = accuracies.groupby("scheme", sort=False)["accuracy"].agg(["mean", "std", "count"])
    print(by_scheme.round(4).to_markdown())


if __name__ == "__main__":
    main()
