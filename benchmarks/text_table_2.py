"""Table 2: RoBERTa of two sizes under five masking schemes, finetuned on four tasks of GLUE.

    python benchmarks/text_table_2.py -o OUT --accelerator gpu --precision bf16-mixed
    python benchmarks/text_table_2.py -o OUT --accelerator gpu --corpus FILES --tokenizer roberta-base/ --glue FOLDER
    python benchmarks/text_table_2.py -o OUT --dry-run

Packs the ten billion tokens of FineWeb's sample-10BT with the tokenizer of RoBERTa, or text files, into ``OUT/packed``;
trains each network into ``OUT/models``; finetunes it three times per task, with the files ``TASK_train.tsv`` and
``TASK_dev.tsv`` of ``--glue`` or those of the hub; and writes ``OUT/table_2.csv``. The same command resumes an interrupted
run. ``--dry-run`` runs all steps with generated sentences and the smallest network.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from common_setup import make_parser
from scr2mae.cli import main as scr2mae
from scr2mae.extra import text

LABELS = {
    "mae": "MLM default",
    "mae_high": "Fixed MR 0.4",
    "mdlm": "MDLM",
    "dynamic": "Dynamic MR",
    "r2mae": "R²MAE",
}
TASKS = ("mnli", "qqp", "sst2", "qnli")  # the columns of Table 2, in its order


def call(*arguments: object) -> None:
    """Run a command of scr2mae; end with its exit code unless it succeeds."""
    if code := scr2mae([str(each) for each in arguments]):
        raise SystemExit(code)


def pack(options: argparse.Namespace) -> Path:
    """Pack the corpus, unless it is packed already."""
    packed = options.out / "packed"
    if packed.is_dir():
        return packed
    source = options.corpus or ["--hub", "HuggingFaceFW/fineweb", "--hub-config", "sample-10BT"]
    tokenizer = ["--hub-tokenizer", "FacebookAI/roberta-base"]
    if options.tokenizer is not None:
        tokenizer = ["--tokenizer", options.tokenizer]
    elif options.dry_run:
        tokenizer = ["--vocab-size", 300]
    call("text", "pack", *source, "-o", packed, *tokenizer, "--length", options.length)
    return packed


def make_files(folder: Path) -> list[Path]:
    """Write sentences, and tables of sentences whose first word is their class."""
    rng = np.random.default_rng(0)
    words = ["the", "a", "small", "large", "gray", "white", "cat", "dog", "sees", "hears", "wants", "likes"]
    sentences = [" ".join(rng.choice(words, size=rng.integers(3, 9))) for _ in range(300)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.txt").write_text("\n\n".join(sentences))
    for task in TASKS:
        layout = text.TASKS[task]
        for part, n in (("train", 64), ("dev", 32)):
            labels = rng.integers(len(layout.classes), size=n)
            rows = ["\t".join([*layout.columns, layout.label])]
            for i, label in enumerate(labels):
                sentence = f"{words[label]} {words[6 + i % 6]}"
                rows.append("\t".join([*[sentence] * len(layout.columns), layout.classes[label]]))
            (folder / f"{task}_{part}.tsv").write_text("\n".join(rows) + "\n")
    return [folder / "corpus.txt"]


def finetune(model: Path, task: str, options: argparse.Namespace) -> pd.DataFrame:
    """Return the accuracy of each seed on a task, read from its file if that exists."""
    path = options.out / "scores" / f"{model.name}-{task}.csv"
    if not path.is_file():
        tables = []
        if options.glue is not None:
            paths = [options.glue / f"{task}_{part}.tsv" for part in ("train", "dev")]
            tables = ["--train", paths[0], "--test", paths[1]]
        path.parent.mkdir(parents=True, exist_ok=True)
        call(
            *("text", "finetune", model, "--task", task, *tables, "-o", path, "--seeds", *options.seeds),
            *("--max-epochs", options.finetune_epochs, "--length", options.length),
            *("--accelerator", options.accelerator, "--precision", options.precision, "-q"),
        )
    return pd.read_csv(path)


def main(argv: list[str] | None = None) -> None:
    """Train and score the missing networks, then print and write the table."""
    parser = make_parser(__doc__, data=False)
    parser.add_argument("--corpus", type=Path, nargs="+", help="text files; FineWeb's sample by default")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; that of RoBERTa by default")
    parser.add_argument(
        "--glue", type=Path, help="folder of TASK_train.tsv and TASK_dev.tsv; the hub's by default"
    )
    parser.add_argument("--sizes", nargs="+", default=["medium", "base"])
    parser.add_argument("--schemes", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=256, help="blocks on the device at a time")
    parser.add_argument("--blocks-per-step", type=int, default=2048, help="blocks of an optimizer step")
    parser.add_argument("--finetune-epochs", type=int, default=5)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--dry-run", action="store_true", help="run all steps on generated sentences")
    options = parser.parse_args(argv)
    if options.dry_run:
        options.glue, options.sizes, options.length = options.out / "data", ["tiny"], 16
        options.batch_size, options.blocks_per_step, options.finetune_epochs = 8, 16, 1
        options.corpus = make_files(options.glue)
    packed = pack(options)
    rows = []
    for size, scheme in product(options.sizes, options.schemes):
        model = options.out / "models" / f"{size}-{scheme}"
        if not (model / "config.json").is_file():
            n_accumulated = max(options.blocks_per_step // options.batch_size, 1)
            run = options.out / "runs" / model.name
            resume = ["--resume", run] if (run / "last.ckpt").is_file() else []
            call(
                *("text", "pretrain", packed, "-o", model, "--size", size, "--scheme", scheme),
                *("--batch-size", options.batch_size, "--accumulate", n_accumulated),
                *("--accelerator", options.accelerator, "--precision", options.precision, "-q"),
                *("--checkpoint-dir", run, *resume),
            )
        for task in options.tasks:
            accuracy = 100 * finetune(model, task, options)["accuracy"].mean()
            rows.append({"size": size, "method": LABELS[scheme], "task": task, "accuracy": accuracy})
    long = pd.DataFrame(rows)
    parts = {}
    for size in options.sizes:
        part = long[long["size"] == size].pivot_table(
            index="method", columns="task", values="accuracy", sort=False
        )
        parts[size] = part.assign(rank=text.average_rank(part))
    table = pd.concat(parts, axis="columns")
    table.columns = [f"{size} {name}" for size, name in table.columns]
    table.to_csv(options.out / "table_2.csv")
    print(table.round(2).to_markdown())


if __name__ == "__main__":
    main()
