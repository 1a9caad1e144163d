"""A simulated alignment and tiny networks, shared by the tests of DNA."""

from typing import Any

import pytest

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
