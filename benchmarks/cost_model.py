"""Time of a training step by genes, density, width and batch size, compared with its matrix products.

    python benchmarks/cost_model.py -o OUT [--threads N]
    python benchmarks/cost_model.py -o OUT --lines [--precision 32-true] [--cells 8000]

Measures, for each setting, the time of a step in float32 and bfloat16, and the time that its matrix products alone would
take at the rate of a product of the first layer's shape, measured between the steps. The rest is element-wise work, the
optimizer and memory. Writes ``cost_model.csv`` and ``cost_model.md``.

``--lines`` profiles one epoch of ``R2MAEModel.train`` at the paper's widths and writes ``lines.csv``: milliseconds per step
of each kind of operator and of what runs between operators, such as making mini-batches, with system time and page faults.
Needs a machine without other load.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from common_setup import make_parser, silence
from scr2mae.nn.module import R2MAEModule

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


LINES = {
    "matrix products": ("mm", "addmm"),
    "copies, conversions": ("copy_",),
    "optimizer": ("_fused_adam_",),
    "average of weights": ("lerp_", "_foreach_lerp_"),
    "zeroing of subnormal numbers": ("abs", "lt", "masked_fill_", "hardshrink"),
    "softmax": ("_log_softmax", "_log_softmax_backward_data"),
    "likelihood": (
        "softplus", "sigmoid", "lgamma", "digamma", "nonzero", "index_select", "index_copy_", "scatter_add_", "neg",
    ),
}  # fmt: skip


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


def lines(precision: str, n_obs: int) -> pd.Series:
    """Return milliseconds per step of a training at the paper's widths by kind of operator, and page faults."""
    from scr2mae import R2MAEModel
    from speed import SIZES, draw_counts

    size = replace(SIZES["large"], n_obs=n_obs)
    adata = draw_counts(size)
    R2MAEModel.setup_anndata(adata)
    widths = {"n_hidden": size.n_hidden, "n_latent": size.n_latent, "n_layers": size.n_layers}
    model = R2MAEModel(adata, encoder="mlp", **widths)

    def train() -> None:
        quiet = {"accelerator": "cpu", "enable_progress_bar": False}
        model.train(1, batch_size=size.batch_size, train_size=1.0, precision=precision, **quiet)

    train()
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        train()
        whole = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
    spent = {
        each.key.removeprefix("aten::"): each.self_cpu_time_total / 1e6 for each in profiler.key_averages()
    }
    found = {name: sum(spent.pop(key, 0.0) for key in keys) for name, keys in LINES.items()}
    found["other operators"] = sum(spent.values())
    found["between operators"] = whole - sum(found.values())
    found["all"] = whole
    found["of it system time"] = after.ru_stime - before.ru_stime
    n_steps = -(-n_obs // size.batch_size)
    table = pd.Series(found) * 1e3 / n_steps
    table["page faults"] = (after.ru_minflt - before.ru_minflt) / n_steps
    return table


def main() -> None:
    """Measure the settings and write the table."""
    parser = make_parser(__doc__, data=False)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lines", action="store_true", help="kinds of operators at the paper's widths")
    parser.add_argument("--precision", default="auto", help="of --lines")
    parser.add_argument("--cells", type=int, default=8000, help="of --lines")
    options = parser.parse_args()
    silence()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.lines:
        table = lines(options.precision, options.cells)
        table.to_csv(options.out / "lines.csv", header=["ms per step"])
        print(table.round(1).to_markdown())
        return
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
