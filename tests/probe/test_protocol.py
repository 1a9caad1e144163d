"""The paper's protocol: the same scores as scikit-learn's own tools give on random donors."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, GroupKFold

from scr2mae import benchmark
from scr2mae.metrics import spearman
from scr2mae.probe import DonorSplit, donor_splits, linear_probe

N_DONORS, N_CELLS = 10, 24


@pytest.fixture
def cells() -> AnnData:
    """Ten donors of 24 cells, three classes; a fourth is in donor 9 only, and its features look like the first."""
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(N_DONORS), N_CELLS)
    code = rng.integers(3, size=len(donor))
    X = rng.normal(size=(len(donor), 4)) + 1.2 * np.eye(3, 4)[code]
    rare = (donor == 9) & (np.arange(len(donor)) % 4 == 0)
    label = np.where(rare, "rare", np.array(["a", "b", "c"])[code])
    age = 40.0 + donor + X[:, 3]
    obs = pd.DataFrame(
        {"donor": [f"d{i}" for i in donor], "state": label, "age": age, "other": np.where(code, "x", "y")},
        index=[f"cell{i}" for i in range(len(donor))],
    )
    return AnnData(np.zeros((len(donor), 1), np.float32), obs=obs, obsm={"X_mine": X})


SPLIT = DonorSplit(
    train_donors=tuple(f"d{i}" for i in range(6)), test_donors=tuple(f"d{i}" for i in range(6, 10))
)
OPTIONS = {"use_rep": "X_mine", "donor_key": "donor", "cell_level": ("state", "age"), "n_bootstrap": 0}


def reference(
    cells: AnnData, column: str, estimator, grid: dict, scoring: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and predictions of every test cell, by scikit-learn alone."""
    donors = cells.obs["donor"].to_numpy()
    train, test = (np.isin(donors, side) for side in (SPLIT.train_donors, SPLIT.test_donors))
    X, y = cells.obsm["X_mine"], cells.obs[column].to_numpy()
    search = GridSearchCV(estimator, grid, scoring=scoring, cv=GroupKFold(5))
    search.fit(X[train], y[train], groups=donors[train])
    return y[test], search.predict(X[test])


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_classes_are_scored_as_scikit_learn_scores_them(cells):
    grid = {"C": np.logspace(-6, 2, 10)}
    truth, predicted = reference(
        cells, "state", LogisticRegression(max_iter=5000, tol=1e-8), grid, "balanced_accuracy"
    )
    frame = linear_probe(
        cells, targets={"state": "classification"}, splits=[SPLIT], protocol="paper", **OPTIONS
    ).set_index("metric")
    assert frame["value"]["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert frame["value"]["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert frame["n_test_cells"].unique() == [4 * N_CELLS]
    assert frame["n_unseen"].unique() == [6]
    # Ours leaves out what no model can predict, and is therefore higher.
    ours = linear_probe(cells, targets={"state": "classification"}, splits=[SPLIT], **OPTIONS).set_index(
        "metric"
    )
    assert ours["n_test_cells"].unique() == [4 * N_CELLS - 6]
    assert ours["value"]["balanced_accuracy"] > frame["value"]["balanced_accuracy"] + 0.1


def test_numbers_are_scored_as_scikit_learn_scores_them(cells):
    truth, predicted = reference(
        cells, "age", Ridge(), {"alpha": np.logspace(0, 8, 20)}, "neg_mean_squared_error"
    )
    frame = linear_probe(cells, targets={"age": "regression"}, splits=[SPLIT], protocol="paper", **OPTIONS)
    assert frame["value"].tolist() == pytest.approx([spearman(truth, predicted)])


def test_f1_counts_classes_that_are_only_predicted(cells):
    """Test donors that lack class c: scikit-learn's F1 has a zero for it, ours leaves it out."""
    inside = cells[
        ~(
            cells.obs["donor"].isin(SPLIT.test_donors)
            & (cells.obs["state"] != "a")
            & (cells.obs["state"] != "b")
        )
    ]
    inside = inside.copy()
    values = {
        protocol: linear_probe(
            inside,
            targets={"state": "classification"},
            splits=[SPLIT],
            protocol=protocol,
            **(OPTIONS | {"n_bootstrap": 50}),
        ).set_index("metric")
        for protocol in ("stratified", "paper")
    }
    assert values["paper"]["value"]["macro_f1"] < values["stratified"]["value"]["macro_f1"] - 0.1
    paper = values["paper"].loc["macro_f1"]
    assert paper["ci_low"] <= paper["value"] <= paper["ci_high"]


def test_donors_are_drawn_at_random_and_alike_for_all_targets(cells):
    targets = {"state": "classification", "other": "classification", "age": "regression"}
    drawn = donor_splits(cells, targets=targets, donor_key="donor", n_splits=40, protocol="paper")
    assert [s.hash for s in drawn["state"]] == [s.hash for s in drawn["age"]]
    # A class of two donors is always on both sides with ours, half of the time by chance.
    cells.obs.loc[cells.obs["donor"] == "d8", "state"] = "rare"
    sides = [len({"d8", "d9"} & set(split.train_donors)) for split in drawn["state"]]
    assert 0 in sides
    assert 2 in sides
    placed = donor_splits(cells, targets={"state": "classification"}, donor_key="donor", n_splits=40)
    assert {len({"d8", "d9"} & set(split.train_donors)) for split in placed["state"]} == {1}


def test_a_task_has_a_cap_of_its_own(cells):
    frame = linear_probe(
        cells,
        targets={"state": "classification", "age": "regression"},
        splits=[SPLIT],
        protocol="paper",
        max_cells_per_donor={"state": 7, "age": None},
        **OPTIONS,
    )
    n_cells = frame.drop_duplicates("target").set_index("target")[["n_train_cells", "n_test_cells"]]
    assert n_cells.loc["state"].tolist() == [6 * 7, 4 * 7]
    assert n_cells.loc["age"].tolist() == [6 * N_CELLS, 4 * N_CELLS]


def test_the_caps_of_tasks_reach_the_probes_of_a_benchmark(cells):
    counts = np.random.default_rng(0).poisson(3, size=(cells.n_obs, 5)).astype(np.float32) + 1
    genes = pd.DataFrame(index=[f"gene{i}" for i in range(5)])
    cells = AnnData(counts, obs=cells.obs, var=genes, obsm=dict(cells.obsm))
    task = benchmark.Task(
        name="state",
        kind="classification",
        labels=lambda obs: obs["state"],
        scores=(("balanced_accuracy", "cell"),),
        cell_level=True,
        max_cells_per_donor=5,
    )
    other = benchmark.Task(
        name="age", kind="regression", labels=lambda obs: obs["age"], scores=(("spearman", "cell"),)
    )
    result = benchmark.run(
        cells,
        targets=[task, other],
        donor_key="donor",
        methods=["X_mine"],
        n_splits=1,
        protocol="paper",
        scale=False,
        max_cells_per_donor=9,
        enable_progress_bar=False,
    )
    rows = result.results.drop_duplicates("target").set_index("target")
    assert rows["n_train_cells"].to_dict() == {"state": 5 * 5, "age": 5 * 9}
    assert "protocol 'paper'" in result.to_markdown()


def test_the_paper_caps_donors_not_classes(cells):
    with pytest.raises(ValueError, match="protocol='paper' caps the cells of a donor"):
        linear_probe(
            cells,
            targets={"state": "classification"},
            protocol="paper",
            max_cells_per_donor_and_class=3,
            **OPTIONS,
        )
    with pytest.raises(ValueError, match="protocol must be one of"):
        linear_probe(cells, targets={"state": "classification"}, protocol="ours", **OPTIONS)
