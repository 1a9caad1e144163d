"""A simulated alignment and tiny networks, shared by the tests of DNA."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from scr2mae.extra import dna

TINY = {
    "n_species": 3,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUICK = {
    "max_steps": 4,
    "batch_size": 8,
    "warmup": 1,
    "lr": 1e-3,
    "accelerator": "cpu",
    "enable_progress_bar": False,
}


@pytest.fixture(scope="session")
def tiny():
    """Return ``tiny(seed=0, **config)``: a small network of three species without dropout."""

    def make(*, seed: int = 0, **config: Any) -> dna.GPNMSAForMaskedLM:
        return dna.GPNMSAForMaskedLM(dna.GPNMSAConfig(**{**TINY, **WITHOUT_DROPOUT, **config}), seed=seed)

    return make


@pytest.fixture(scope="session")
def simulated():
    """A simulated alignment of 4000 positions and three species, and its conservation."""
    return dna.simulate_alignment(4000, 3, seed=1)


@pytest.fixture(scope="session")
def msa(simulated):
    return simulated[0]


@pytest.fixture(scope="session")
def dataset(msa):
    """Non-overlapping windows of 32 positions, forward strand."""
    return dna.MSAWindowDataset(msa, dna.make_windows(msa, size=32, step=32, both_strands=False))


@pytest.fixture
def quick():
    """Arguments of a run of four steps."""
    return dict(QUICK)


@pytest.fixture(scope="session")
def random_tokens():
    """Return ``random_tokens(n_obs=4, n_positions=16, *, seed=0, n_species=3)``, without gaps in the human column."""

    def make(n_obs=4, n_positions=16, *, seed=0, n_species=3):
        rng = np.random.default_rng(seed)
        human = torch.tensor(rng.integers(1, 5, size=(n_obs, n_positions)), dtype=torch.uint8)
        others = torch.tensor(rng.integers(0, 5, size=(n_obs, n_positions, n_species)), dtype=torch.uint8)
        return human, others

    return make


@pytest.fixture(scope="session")
def make_alignment():
    """Return ``make_alignment(reference, other=None, *, chrom="c", start=0)`` of two species."""

    def make(text="ACGTACGTAC", other=None, *, chrom="c", start=0):
        symbols = np.array([list(text), list(other or text)], dtype="S1").T
        return dna.GenomeMSA.from_numpy(symbols, chrom=chrom, start=start)

    return make


@pytest.fixture(scope="session")
def small_alignment():
    """Twenty positions of chr1, starting at 100, and three species."""
    columns = ["ACGTACGTNNACGTACGTac", "ACGTACGTNNACGTACGTAC", "TCGTACGTNNACGTACGTAC", "-CGTACGTNNACGTACGTAC"]
    symbols = np.array([list(c) for c in columns], dtype="S1").T
    return dna.GenomeMSA.from_numpy(symbols, chrom="chr1", start=100)


@pytest.fixture(scope="session")
def variant_table():
    """Return ``variant_table(*rows)``: a table of rows of chrom, pos, ref and alt."""

    def make(*rows):
        return pd.DataFrame(rows, columns=["chrom", "pos", "ref", "alt"])

    return make
