"""Scores of integration in the benchmark, with the methods that integrate batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from scr2mae import benchmark
from scr2mae._utils.scib import INTEGRATION_SCORES
from scr2mae.benchmark import design, fits
from scr2mae.benchmark.integrators import installed_integrators
from scr2mae.datasets import simulate_donors
from scr2mae.metrics import integration_scores, knn_label_recovery

SETTINGS = {"targets": {"cell_type": "classification"}, "n_splits": 1, "scale": False, "ratios": ()}


@pytest.fixture
def batches() -> AnnData:
    """120 cells in two batches that differ."""
    return simulate_donors(
        n_donors=8, n_cells_per_donor=15, n_genes=40, n_cell_types=2, n_batches=2, batch_effect=0.3, seed=0
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_key": None}, "name their column by batch_key"),
        ({"targets": {"disease": "classification"}}, "needs labels of cells"),
        ({"targets": {"age": "regression"}, "cell_level": ["age"]}, "needs labels of cells"),
        ({"integration": False, "methods": ["harmony"]}, r"\['harmony'\] need integration=True"),
    ],
)
def test_an_integration_that_cannot_be_scored_is_refused(
    batches: AnnData, quick: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    wanted = {"integration": True, "batch_key": "batch", "methods": ["pca"]} | arguments
    with pytest.raises(ValueError, match=message):
        benchmark.run(batches, **quick | SETTINGS | wanted)


def test_without_integration_there_are_no_scores_of_it(batches: AnnData, quick: dict[str, Any]) -> None:
    result = benchmark.run(batches, **quick | SETTINGS, batch_key="batch", methods=["pca"])
    assert result.integration().empty
    assert "Integration" not in result.to_markdown()


def test_every_integrator_is_scored_and_scanvi_is_not_probed(
    batches: AnnData, quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(X: np.ndarray, batch: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Take the recovery of labels for each score; those of scib-metrics need minutes to compile."""
        assert len(np.unique(batch)) == 2
        return dict.fromkeys(INTEGRATION_SCORES, knn_label_recovery(X, labels))

    monkeypatch.setattr(fits, "integration_scores", scores)
    monkeypatch.setattr(design, "require", lambda *_, **__: None)
    methods = ["pca", "r2mae_aligned", *installed_integrators()]
    assert {"scanvi", "sysvi"} <= set(methods)
    settings = quick | SETTINGS | {"methods": methods, "seeds": (0,), "out": tmp_path}
    result = benchmark.run(batches, batch_key="batch", integration=True, **settings)
    table = result.integration()
    assert set(table.index) == set(methods)
    assert list(table) == [*INTEGRATION_SCORES, "seconds"]
    assert np.isfinite(table.to_numpy()).all()
    assert set(result.table().index) == set(methods) - {"scanvi"}
    assert "## Integration of batches" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert (tmp_path / "integration.png").stat().st_size > 5000
    again = benchmark.run(batches, batch_key="batch", integration=True, **settings)  # from the folder
    assert again.integration().equals(table)


def test_labels_that_batches_do_not_share_are_refused(
    batches: AnnData, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(design, "require", lambda *_, **__: None)
    batches.obs["cell_type"] = batches.obs["batch"].astype(str) + batches.obs["cell_type"].astype(str)
    with pytest.raises(ValueError, match="no label of it is in two batches"):
        benchmark.run(batches, **quick | SETTINGS, batch_key="batch", methods=["pca"], integration=True)


def test_a_score_is_that_of_metrics(batches: AnnData, quick: dict[str, Any]) -> None:
    pytest.importorskip("scib_metrics")
    rng = np.random.default_rng(0)
    batches.obsm["X_mine"] = rng.normal(size=(batches.n_obs, 3)).astype(np.float32)
    result = benchmark.run(
        batches, **quick | SETTINGS, batch_key="batch", methods=["X_mine"], integration=True
    )
    expected = integration_scores(batches.obsm["X_mine"], batches.obs["batch"], batches.obs["cell_type"])
    assert result.integration().loc["X_mine", "total"] == pytest.approx(expected["total"])
