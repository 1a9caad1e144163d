"""Time the formulas and the simulation at 1000 covariates, and compare with the targets."""

import os
import time

import numpy as np
from common import parser, write_csv

from scr2mae import theory


def timed(call):
    """Return wall-clock and processor seconds; on a busy machine the latter is more reliable."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    args = parser(__doc__).parse_args()
    d = 500 if args.quick else 1000
    unequal = theory.uniform_covariance(d, seed=0)
    constant = theory.spiked_covariance(d, spike=10.0, direction="ones")
    beta = unequal.eigenvector(1.0)
    ratios = np.linspace(0.01, 0.98, 100)
    model = {"gamma": 3.0, "beta": beta, "noise_variance": 0.04}
    cases = {
        "r2mae_risk, unequal variances": (2, lambda: theory.r2mae_risk((0.3, 0.8), covariance=unequal, **model)),
        "r2mae_risk, more rows than covariates": (
            2, lambda: theory.r2mae_risk((0.3, 0.8), covariance=unequal, **(model | {"gamma": 0.2})),
        ),
        "r2mae_risk, equal variances": (2, lambda: theory.r2mae_risk((0.3, 0.8), covariance=constant, **model)),
        "general_risk, 100 ratios, equal variances": (
            10, lambda: theory.general_risk(ratios, covariance=theory.Covariance(constant.matrix), **model),
        ),
        "general_risk, 100 ratios, unequal variances": (
            40, lambda: theory.general_risk(ratios, covariance=unequal, **model),
        ),
        "simulate_risk, one draw, 10 ratios": (
            None, lambda: theory.simulate_risk(ratios[5:95:9], covariance=unequal, n_draws=1, **model),
        ),
    }  # fmt: skip
    rows = []
    for name, (limit, call) in cases.items():
        seconds, processor = timed(call)
        row = {"case": name, "covariates": d, "seconds": seconds, "processor_seconds": processor}
        rows.append({**row, "limit": limit})
        asked = f" (asked: under {limit} s)" if limit else ""
        print(f"{name}: {seconds:.2f} s, {processor:.2f} s of processor{asked}")
    print(f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    write_csv(args.output / "speed.csv", rows)


if __name__ == "__main__":
    main()
