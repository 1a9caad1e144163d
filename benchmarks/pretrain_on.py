"""Does it matter that pretraining sees the test donors' cells, without their labels?

    python benchmarks/pretrain_on.py --data DATA -o OUT [--sets csle] [--seeds 1] [--methods r2mae scvi pca]

Each method is fitted twice: once to all cells, as in the paper, and once a split to the training donors alone. Resumable;
``OUT/SET/{all,train}`` are folders of :func:`scr2mae.benchmark.run`, ``OUT/pretrain_on.md`` has the scores side by side.
"""

from __future__ import annotations

import argparse

import pandas as pd

from common_setup import make_parser, silence
from schemes import SETS, best_of_scalings, read
from scr2mae import benchmark


def compare(name: str, options: argparse.Namespace) -> pd.DataFrame:
    """Return the scores of one set, one row per method and pretraining data."""
    counts = SETS[name]
    tables = {}
    for pretrain_on in ("all", "train"):
        result = benchmark.run(
            read(counts, options.data),
            targets=counts.targets,
            donor_key="donor",
            methods=options.methods,
            seeds=range(options.seeds),
            n_splits=5,
            n_train_donors=counts.n_train_donors,
            pretrain_on=pretrain_on,
            train_kwargs={} if counts.max_epochs is None else {"max_epochs": counts.max_epochs},
            accelerator="cpu",
            out=options.out / name / pretrain_on,
        )
        tables[pretrain_on] = best_of_scalings(result)
    table = pd.concat(tables, names=["fitted to"]).swaplevel().sort_index(level=0, sort_remaining=False)
    table.columns = [f"{target}, {metric} ({level})" for target, metric, level in table.columns]
    return table.round(3)


def main() -> None:
    """Compare on each set."""
    parser = make_parser(__doc__, seeds=1)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["csle"])
    parser.add_argument("--methods", nargs="+", default=["r2mae", "scvi", "pca"])
    options = parser.parse_args()
    silence()
    parts = [f"**{name}**\n\n{compare(name, options).to_markdown()}\n" for name in options.sets]
    (options.out / "pretrain_on.md").write_text("\n".join(parts))
    print("\n".join(parts))


if __name__ == "__main__":
    main()
