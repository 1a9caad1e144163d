"""Compare masking schemes and simple baselines on held-out bases of small real alignments.

    python benchmarks/dna.py --data DATA -o OUT
    python benchmarks/dna.py --data DATA -o OUT --alignments ENr334 chr1 --schemes mae r2mae

``DATA`` holds three arrays cut from public alignments (see ``docs/benchmarks/dna.md``). All schemes and seeds hold out the same
blocks of positions. Finished runs are stored in ``OUT/dna_runs.csv`` and not repeated; ``OUT/dna.csv``, ``OUT/dna.md`` and
``OUT/dna.png`` summarize them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import scr2mae
from common_setup import make_parser
from scr2mae.extra import dna

SIZE, BLOCK, SPLIT_SEED = 128, 1000, 0
SHARES = {"validation_size": 0.0, "test_size": 0.2}
NETWORK = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
TRAINING = {"batch_size": 16, "lr": 4e-3, "warmup": 0.1, "accelerator": "cpu", "enable_progress_bar": False}
PSEUDOCOUNTS = np.logspace(-2, 1, 13)
ACGT = np.array(list("ACGT"), dtype="S1")
BASELINES = ("unigram", "alignment counts", "column table")
SCORES = {
    "loss": "loss",
    "loss_conserved": "loss, conserved",
    "accuracy": "accuracy",
    "accuracy_conserved": "accuracy, conserved",
    "substitution_auroc": "substitutions, AUROC",
}


@dataclass(frozen=True)
class Source:
    """A file of an alignment, and the species to leave out."""

    file: str
    without: tuple[str, ...] = ()


SOURCES = {
    "hmrc": Source("msa_hmrc_phastcons.npz"),
    "ENr334": Source("msa_ENr334-100k_hg18.npz"),
    # The chimpanzee is left out: its differences from human serve as neutral substitutions.
    "chr1": Source("msa_chr1_100k_4way_hg18.npz", without=("panTro2",)),
}


@dataclass(frozen=True)
class Task:
    """An alignment, its split, and the positions and substitutions to evaluate on held-out windows."""

    msa: dna.GenomeMSA
    train: pd.DataFrame
    test: pd.DataFrame
    conserved: np.ndarray
    variants: pd.DataFrame | None


def load(name: str, folder: Path) -> Task:
    """Read an alignment and split it."""
    source = SOURCES[name]
    with np.load(folder / source.file) as stored:
        symbols, species = stored["msa"], stored["species"].astype(str)
        chrom = str(stored["chrom"]) if "chrom" in stored else name
        start = int(stored["start"]) if "start" in stored else 0
        phastcons = stored.get("phastcons")
    kept = ~np.isin(species, source.without)
    msa = dna.GenomeMSA.from_numpy(symbols[:, kept], chrom=chrom, start=start, species=species[kept])
    split = dna.split_windows(
        dna.make_windows(msa, size=SIZE, step=SIZE // 2), block_size=BLOCK, seed=SPLIT_SEED, **SHARES
    )
    once = (split.test["strand"] == "+") & ((split.test["start"] - start) % SIZE == 0)
    upper = np.char.upper(symbols)
    conserved = most_conserved(upper[:, kept][:, 1:], phastcons)
    test = split.test[once].reset_index(drop=True)
    variants = substitutions(upper, species, chrom, start, test) if source.without else None
    return Task(msa, split.train, test, conserved, variants)


def most_conserved(others: np.ndarray, phastcons: np.ndarray | None, *, share: float = 0.1) -> np.ndarray:
    """Return the positions with the highest phastCons, or the best agreement of other species within 50 positions; (n,).

    The human base is not used, so that the definition does not depend on it.
    """
    if phastcons is not None:
        level = np.nan_to_num(phastcons)
    else:
        agree = (others == others[:, :1]).all(axis=1) & (others[:, 0] != b"-")
        level = pd.Series(agree.astype(float)).rolling(101, center=True, min_periods=1).mean().to_numpy()
    ranks = np.argsort(np.argsort(level, kind="stable"), kind="stable")
    return ranks >= (1 - share) * len(ranks)


def substitutions(
    upper: np.ndarray, species: np.ndarray, chrom: str, start: int, test: pd.DataFrame, *, n_controls: int = 5
) -> pd.DataFrame:
    """Return held-out human-chimpanzee differences, and substitutions that did not happen as controls.

    Each control is at a site where both species agree, in the same trinucleotide and to the same base, so that neither
    composition nor the mutation rate of CpG distinguishes it.
    """
    held_out = np.zeros(len(upper), dtype=bool)
    for first, last in zip(test["start"] - start, test["end"] - start, strict=True):
        held_out[first:last] = True
    human, chimp = upper[:, 0], upper[:, list(species).index("panTro2")]
    known = np.isin(human, ACGT)
    around = np.r_[False, known[1:-1] & known[:-2] & known[2:], False] & held_out & np.isin(chimp, ACGT)
    context = np.array([b"".join(upper[max(i - 1, 0) : i + 2, 0]) for i in range(len(upper))])
    rng = np.random.default_rng(0)
    rows = []
    for i in np.flatnonzero(around & (human != chimp)):
        alike = np.flatnonzero(around & (human == chimp) & (context == context[i]))
        drawn = rng.choice(alike, size=min(n_controls, len(alike)), replace=False)
        rows += [(j, chimp[i].decode(), int(j != i)) for j in (i, *drawn)]
    frame = pd.DataFrame(rows, columns=["row", "alt", "control"])
    return frame.assign(
        chrom=chrom, pos=frame["row"] + start + 1, ref=[human[i].decode() for i in frame["row"]]
    )


def evaluate(task: Task, log_probs: np.ndarray, bases: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Return loss and accuracy of predictions (n, 4) of held-out bases at rows of the alignment."""
    truth = np.searchsorted(np.array(list("ACGT")), bases)
    loss, correct = -log_probs[np.arange(len(truth)), truth], log_probs.argmax(axis=1) == truth
    conserved = task.conserved[rows]
    return {
        "loss": float(loss.mean()),
        "loss_conserved": float(loss[conserved].mean()),
        "accuracy": float(correct.mean()),
        "accuracy_conserved": float(correct[conserved].mean()),
        "n_bases": len(truth),
        "n_conserved": int(conserved.sum()),
    }


def window_tokens(msa: dna.GenomeMSA, windows: pd.DataFrame) -> np.ndarray:
    """Return the tokens of windows on the forward strand, (n_windows * size, 1 + n_species)."""
    forward = windows[windows["strand"] == "+"]
    places = zip(forward["chrom"], forward["start"], forward["end"], strict=True)
    return np.concatenate([msa.tokens(chrom, first, last) for chrom, first, last in places])


def column_table(train: np.ndarray, test: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Predict the human base by its frequency in training columns with the same symbols of the other species; (n, 4)."""
    columns, code = np.unique(np.concatenate([train, test])[:, 1:], axis=0, return_inverse=True)
    counts = np.tile(np.exp(prior), (len(columns), 1))
    np.add.at(counts, (code[: len(train)], train[:, 0].astype(int) - 1), 1)
    return np.log(counts / counts.sum(axis=1, keepdims=True))[code[len(train) :]]


def baselines(name: str, task: Task) -> list[dict[str, object]]:
    """Evaluate the baselines, which use one position only."""
    train, test = window_tokens(task.msa, task.train), window_tokens(task.msa, task.test)
    prior = dna.unigram_log_probs(train)
    truth = np.arange(len(train)), train[:, 0].astype(int) - 1
    fits = [-dna.alignment_log_probs(train, prior, pseudocount=c)[truth].mean() for c in PSEUDOCOUNTS]
    best = PSEUDOCOUNTS[int(np.argmin(fits))]
    predictions = {
        "unigram": np.tile(prior, (len(test), 1)),
        "alignment counts": dna.alignment_log_probs(test, prior, pseudocount=best),
        "column table": column_table(train, test, prior),
    }
    bases = np.array(list(dna.VOCABULARY))[test[:, 0]]
    first = task.msa.span(task.msa.chroms[0])[0]
    spans = zip(task.test["start"] - first, task.test["end"] - first, strict=True)
    rows = np.concatenate([np.arange(start, end) for start, end in spans])
    found = [
        {"alignment": name, "scheme": rule, "seed": 0, **evaluate(task, log_probs, bases, rows)}
        for rule, log_probs in predictions.items()
    ]
    if task.variants is not None:
        scored = dna.alignment_scores(task.msa, task.variants)
        found[1]["substitution_auroc"] = auroc(scored)
    return found


def auroc(scored: pd.DataFrame) -> float:
    """Return the probability that a substitution that happened scores above a control."""
    good = scored[scored["status"] == "scored"]
    return float(dna.variant_metrics(good["control"], -good["score"]).loc["all", "auroc"])


def run(name: str, task: Task, scheme: str, seed: int, max_steps: int) -> dict[str, object]:
    """Train a network and evaluate it on the held-out windows."""
    config = dna.GPNMSAConfig(
        n_species=task.msa.n_species, curriculum=scr2mae.schemes("dna")[scheme].curriculum, **NETWORK
    )
    model = dna.GPNMSAForMaskedLM(config, seed=seed)
    data = [dna.MSAWindowDataset(task.msa, windows, repeat_weight=1.0) for windows in (task.train, task.test)]
    start = time.perf_counter()
    dna.pretrain(model, data[0], scheme=scheme, seed=seed, max_steps=max_steps, **TRAINING)
    seconds = time.perf_counter() - start
    frame = dna.predict_bases(model, data[1], accelerator="cpu")
    rows = frame["pos"].to_numpy() - task.msa.span(task.msa.chroms[0])[0]
    log_probs = frame[[f"log_prob_{base}" for base in "ACGT"]].to_numpy()
    found = {"alignment": name, "scheme": scheme, "seed": seed, "max_steps": max_steps}
    found |= {"seconds": round(seconds, 1), **evaluate(task, log_probs, frame["base"].to_numpy(), rows)}
    if task.variants is not None:
        found["substitution_auroc"] = auroc(
            dna.score(model, task.msa, task.variants, accelerator="cpu", progress=False)
        )
    return found


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the mean and standard deviation of each score over seeds."""
    grouped = runs.groupby(["alignment", "scheme"], sort=False)
    table = grouped[[name for name in SCORES if name in runs]].agg(["mean", "std"])
    table.columns = [name if kind == "mean" else f"{name}_sd" for name, kind in table.columns]
    return table.assign(n_seeds=grouped.size()).reset_index()


def markdown(runs: pd.DataFrame) -> str:
    """Return the tables of ``docs/benchmarks/dna.md``: mean over seeds, standard deviation in parentheses."""
    tables = []
    for name in (name for name in SOURCES if name in set(runs["alignment"])):
        part = runs[runs["alignment"] == name].reindex(columns=[*runs.columns, *SCORES.keys() - runs.columns])
        kept = [column for column in SCORES if part[column].notna().any()]
        lines = [f"| `{name}` | seeds | {' | '.join(SCORES[column] for column in kept)} |"]
        lines.append("|---" * (2 + len(kept)) + "|")
        for scheme in (*BASELINES, *scr2mae.schemes("dna")):
            if not (scores := part.loc[part["scheme"] == scheme, kept]).empty:
                first = [scheme, ""] if scheme in BASELINES else [f"`{scheme}`", str(len(scores))]
                lines.append(f"| {' | '.join([*first, *(cell(scores[column]) for column in kept)])} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables) + "\n"


def cell(scores: pd.Series) -> str:
    """Format mean and standard deviation over seeds."""
    if scores.isna().any():
        return ""
    return f"{scores.mean():.4f}" + (f" ({scores.std():.4f})" if len(scores) > 1 else "")


def draw(runs: pd.DataFrame, path: Path) -> None:
    """Plot the loss of every run by scheme, one panel per alignment, with lines for the baselines."""
    names = [name for name in SOURCES if name in set(runs["alignment"])]
    fig, axes = plt.subplots(
        1, len(names), figsize=(3.4 * len(names), 3.8), layout="constrained", squeeze=False
    )
    for ax, name in zip(axes.flat, names, strict=True):
        part = runs[runs["alignment"] == name]
        shown = [scheme for scheme in scr2mae.schemes("dna") if scheme in set(part["scheme"])]
        for i, scheme in enumerate(shown):
            losses = part.loc[part["scheme"] == scheme, "loss"]
            ax.plot([i] * len(losses), losses, "o", ms=4, color="#0072B2", alpha=0.6)
            ax.plot([i - 0.3, i + 0.3], [losses.mean()] * 2, color="#0072B2")
        for rule, style in zip(BASELINES[1:], ("--", ":"), strict=True):
            level = part.loc[part["scheme"] == rule, "loss"].iloc[0]
            ax.axhline(level, color="#D55E00", linestyle=style, label=rule)
        ax.set_xticks(range(len(shown)), shown, rotation=60, ha="right", fontsize=8)
        ax.set(title=name, ylabel="Held-out loss (nats per base)" if ax is axes.flat[0] else "")
        ax.grid(alpha=0.3, axis="y")
    axes.flat[-1].legend(frameon=False, fontsize=8)
    fig.savefig(path, dpi=150)


def main() -> None:
    """Train the missing networks, then summarize all runs."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--alignments", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    schemes = list(scr2mae.schemes("dna"))
    parser.add_argument("--schemes", nargs="+", choices=schemes, default=schemes)
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no further run after this time"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "dna_runs.csv"
    began = time.perf_counter()
    runs = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["alignment", "scheme", "seed"])
    for name in options.alignments:
        task = load(name, options.data)
        done = set(zip(runs["alignment"], runs["scheme"], runs["seed"], strict=True))
        if (name, BASELINES[0], 0) not in done:
            runs = pd.concat([runs, pd.DataFrame(baselines(name, task))], ignore_index=True)
        for seed in range(options.seeds):
            for scheme in options.schemes:
                if (name, scheme, seed) in done or time.perf_counter() - began > 60 * options.minutes:
                    continue
                row = run(name, task, scheme, seed, options.max_steps)
                runs = pd.concat([runs, pd.DataFrame([row])], ignore_index=True)
                runs.to_csv(path, index=False)
                print({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
    runs.to_csv(path, index=False)
    table = summarize(runs)
    table.to_csv(options.out / "dna.csv", index=False, float_format="%.4f")
    (options.out / "dna.md").write_text(markdown(runs), encoding="utf-8")
    draw(runs, options.out / "dna.png")
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
