"""Time of a training step by genes, density, width and batch size, compared with its matrix products.

    python benchmarks/cost_model.py -o OUT [--threads N]

Measures, for each setting, the time of a step in float32 and bfloat16, and the time that its matrix products alone would
take at the rate of a product of the first layer's shape, measured between the steps. The rest is element-wise work, the
optimizer and memory. Writes ``cost_model.csv`` and ``cost_model.md``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from common_setup import make_parser, silence
from scr2mae.nn.module import R2MAEModule

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """Size of a training step."""

    n_vars: int = 5000
    density: float = 0.12
    n_hidden: int = 1000
    n_latent: int = 512
    n_layers: int = 2
    batch_size: int = 400


BASE = Setting()
SETTINGS = [
    BASE,
    *(replace(BASE, n_vars=n) for n in (1000, 2000, 10_000)),
    *(replace(BASE, density=d) for d in (0.03, 0.3)),
    *(
        replace(BASE, n_hidden=h, n_latent=z, n_layers=k)
        for h, z, k in ((128, 10, 1), (256, 64, 1), (512, 128, 2))
    ),
    *(replace(BASE, batch_size=b) for b in (128, 1024)),
    replace(BASE, n_hidden=128, n_latent=10, n_layers=1, density=0.03),
    replace(BASE, n_hidden=128, n_latent=10, n_layers=1, n_vars=1000),
    replace(BASE, n_hidden=128, n_latent=10, n_layers=1, batch_size=128),
]


def make_step(setting: Setting, dtype: torch.dtype) -> Callable[[int], None]:
    """Return a training step: masks, forward, backward, optimizer."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(
        (rng.random((setting.batch_size, setting.n_vars)) < setting.density).astype(np.float32)
    )
    x *= torch.from_numpy(rng.geometric(0.6, x.shape).astype(np.float32))
    tensors = {"X": x, "batch": torch.zeros(setting.batch_size, 1, dtype=torch.long)}
    module = R2MAEModule(
        setting.n_vars,
        n_hidden=setting.n_hidden,
        n_latent=setting.n_latent,
        n_layers=setting.n_layers,
        n_categories=[1],
    ).train()
    optimizer = torch.optim.Adam(module.parameters(), fused=True, weight_decay=1e-4)

    def step(i: int) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = module.training_loss(tensors, ratio=0.3, seed=0, step=i).loss
        loss.backward()
        optimizer.step()

    return step


def seconds(call: Callable[[], object]) -> float:
    """Return the time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(setting: Setting, n_rounds: int) -> dict[str, float]:
    """Return median times of step and matrix products over alternating rounds."""
    row: dict[str, float] = dict(asdict(setting))
    a = torch.randn(setting.batch_size, setting.n_vars)
    b = torch.randn(setting.n_hidden, setting.n_vars)
    flop_of_product = 2 * setting.batch_size * setting.n_vars * setting.n_hidden
    steps, times = {}, {}
    for name, dtype in PRECISIONS.items():
        steps[name] = make_step(setting, dtype)
        times[name], times[f"{name} product"] = [], []
    with FlopCounterMode(display=False) as counter:
        steps["float32"](0)
    flop = counter.get_total_flops()
    steps["bfloat16"](0)
    for i in range(1, n_rounds + 1):
        for name, dtype in PRECISIONS.items():
            times[name].append(seconds(lambda name=name, i=i: steps[name](i)))
            x, w = a.to(dtype), b.to(dtype)
            times[f"{name} product"].append(min(seconds(lambda x=x, w=w: x @ w.T) for _ in range(3)))
    row["mflop_cell"] = flop / setting.batch_size / 1e6
    for name in PRECISIONS:
        step, product = np.median(times[name]), np.median(times[f"{name} product"])
        rate = flop_of_product / product
        row |= {
            f"{name} us_cell": 1e6 * step / setting.batch_size,
            f"{name} gflop_s": rate / 1e9,
            f"{name} products %": 100 * flop / rate / step,
        }
    return row


def main() -> None:
    """Measure the settings and write the table."""
    parser = make_parser(__doc__, data=False)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    silence()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for setting in SETTINGS:
        rows.append(measure(setting, options.rounds))
        frame = pd.DataFrame(rows)
        frame.to_csv(options.out / "cost_model.csv", index=False)
    table = frame.round(2).to_markdown(index=False)
    (options.out / "cost_model.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
