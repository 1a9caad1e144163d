"""Inputs of the commands, and what a command prints."""

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from scr2mae import R2MAEModel, datasets
from scr2mae.cli import main
from scr2mae.extra import dna, text


@pytest.fixture
def run() -> Callable[[str], int]:
    """Run a command line, without the first word, and return the exit code."""
    return lambda line: main(shlex.split(line))


@pytest.fixture
def rows(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, str]]:
    """Return what was printed since the last call, name to value."""
    return lambda: dict(line.split("\t") for line in capsys.readouterr().out.splitlines())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def files(folder: Path) -> Callable[[], dict[str, bytes]]:
    """Return the files in the working folder, path to content."""

    def read() -> dict[str, bytes]:
        paths = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    return read


@pytest.fixture
def counts(folder: Path, adata: AnnData) -> AnnData:
    """``counts.h5ad`` in the working folder, with some of everything that an AnnData can hold."""
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_pca"] = np.arange(240.0).reshape(120, 2)
    adata.uns["nested"] = {"note": "kept", "numbers": np.arange(3)}
    adata.raw = adata.copy()
    adata.write_h5ad("counts.h5ad", compression="gzip")
    return adata


@pytest.fixture
def model_folder(folder: Path, trained: R2MAEModel) -> Path:
    """``model/`` in the working folder: the trained model."""
    trained.save("model")
    return folder / "model"


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if training starts."""
    monkeypatch.setattr(R2MAEModel, "train", lambda *args, **kwargs: pytest.fail("training has started"))


@pytest.fixture
def tiny() -> list[str]:
    """Options of a run of two epochs."""
    return shlex.split("--n-hidden 16 --n-latent 4 --max-epochs 2 --batch-size 32 --accelerator cpu")


@pytest.fixture
def cells(folder: Path) -> AnnData:
    """120 cells of 8 donors, with an embedding of noise."""
    adata = datasets.simulate_donors(
        n_donors=8, n_cells_per_donor=15, n_genes=40, n_cell_types=2, disease_effect=1.5, effect_fraction=0.4
    )
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_mine"] = np.random.default_rng(0).normal(size=(adata.n_obs, 3))
    return adata


@pytest.fixture
def atlas_file(folder: Path) -> str:
    """``hlca.h5ad`` in the working folder: a simulated atlas with the columns of the portal."""
    datasets.simulate_atlas("hlca", n_donors=10, n_cells_per_donor=12, n_genes=80).write_h5ad("hlca.h5ad")
    return "hlca.h5ad"


@pytest.fixture(scope="session")
def alignment() -> tuple[dna.GenomeMSA, dna.ArrayTrack]:
    """A simulated alignment of 4000 positions and three species, and its conservation."""
    return dna.simulate_alignment(4000, 3, seed=1)


@pytest.fixture(scope="session")
def make_images() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Return ``make_images(n_obs, size=16, n_channels=3, seed=0)``: uint8 images and labels.

    A stripe across for class 0, down for class 1, both for class 2, and noise.
    """

    def make(n_obs: int, *, size: int = 16, n_channels: int = 3, seed: int = 0) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(seed)
        labels = rng.integers(3, size=n_obs)
        images = rng.uniform(0, 0.4, size=(n_obs, size, size, n_channels))
        start, stop = size // 4, size // 2
        images[labels != 1, start:stop] += 0.5
        images[labels != 0, :, start:stop] += 0.1
        return (255 * images).clip(0, 255).astype(np.uint8), labels

    return make


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Three hundred sentences of three to eleven words."""
    rng = np.random.default_rng(0)
    words = ["the", "a", "small", "large", "gray", "white", "cat", "dog", "sees", "hears", "wants", "likes"]
    return [" ".join(rng.choice(words, size=rng.integers(3, 12))) + "." for _ in range(300)]


@pytest.fixture(scope="session")
def tokenizer(documents: list[str]) -> text.BytePairTokenizer:
    return text.BytePairTokenizer.train(documents, vocab_size=300)
