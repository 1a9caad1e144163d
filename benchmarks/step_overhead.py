"""Overhead of a training step: the package, a plain loop, and Lightning with one or several mini-batches per step.

    python benchmarks/step_overhead.py [--rounds N]

The network is so small that its arithmetic takes little time (20 genes, mini-batches of 8, one thread). The variants
alternate; the script prints the least and the median microseconds of processor time per mini-batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

import scr2mae
from common_setup import make_parser, silence
from scr2mae.data import CellLoader

N_DONORS, N_CELLS_PER_DONOR, N_GENES, BATCH_SIZE = 8, 500, 20, 8
N_BATCHES = N_DONORS * N_CELLS_PER_DONOR // BATCH_SIZE


class Groups:
    """Yield mini-batches of a loader, several at a time."""

    def __init__(self, loader: CellLoader, size: int) -> None:
        self.loader, self.size = loader, size

    def __len__(self) -> int:
        return -(-len(self.loader) // self.size)

    def __iter__(self) -> Iterator[list[Any]]:
        group = []
        for batch in self.loader:
            group.append(batch)
            if len(group) == self.size:
                yield group
                group = []
        if group:
            yield group


def step(module: Any, batch: Any, number: int) -> torch.Tensor:
    """Return the loss of a mini-batch."""
    return module.training_loss(batch, ratio=0.3, seed=0, step=number).loss


class Grouped(pl.LightningModule):
    """Lightning around the network without the guard, averages and curves of the package."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module, self.automatic_optimization, self.done = module, False, 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.module.parameters(), fused=True)

    def training_step(self, batches: list[Any], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            loss = step(self.module, batch, self.done)
            self.manual_backward(loss)
            optimizer.step()
            self.done += 1


def sides(model: scr2mae.R2MAEModel) -> dict[str, Callable[[], None]]:
    """Return the variants, each of which trains the network for one epoch."""
    cells = model._cells(None)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}

    def loader() -> CellLoader:
        return CellLoader(cells, batch_size=BATCH_SIZE, shuffle=True, seed=0)

    def package(together: int) -> Callable[[], None]:
        arguments = {"batch_size": BATCH_SIZE, "split_key": False, "train_size": 1.0, "precision": "32-true"}
        return lambda: model.train(1, steps_per_execution=together, **arguments, **quiet)

    def plain() -> None:
        module = model.module.train()
        optimizer = torch.optim.Adam(module.parameters(), fused=True)
        for number, batch in enumerate(loader()):
            optimizer.zero_grad(set_to_none=True)
            step(module, batch, number).backward()
            optimizer.step()

    def lightning(size: int) -> Callable[[], None]:
        def run() -> None:
            off = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
            pl.Trainer(max_epochs=1, **off, **quiet).fit(
                Grouped(model.module.train()), Groups(loader(), size)
            )

        return run

    return {
        "the package, 1 per step": package(1),
        "the package, 16 per step": package(16),
        "Lightning, 1 per step": lightning(1),
        "Lightning, 16 per step": lightning(16),
        "a plain loop": plain,
    }


def main() -> None:
    """Time the variants in alternating rounds and print."""
    parser = make_parser(__doc__, data=False, out=False)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    silence()
    adata = scr2mae.datasets.simulate_donors(
        n_donors=N_DONORS, n_cells_per_donor=N_CELLS_PER_DONOR, n_genes=N_GENES
    )
    found = sides(scr2mae.R2MAEModel(adata, n_hidden=4, n_latent=2))
    taken: dict[str, list[float]] = {name: [] for name in found}
    for round_ in range(rounds + 1):
        for name, run in found.items():
            start = time.process_time()
            run()
            if round_:  # the first warms up
                taken[name].append((time.process_time() - start) / N_BATCHES)
    print(f"{'microseconds per mini-batch':28}{'least':>8}{'median':>8}")
    for name, seconds in taken.items():
        print(f"{name:28}{1e6 * min(seconds):>8.0f}{1e6 * np.median(seconds):>8.0f}")


if __name__ == "__main__":
    main()
