"""Information about a donor must not pass for information about its label."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from scr2mae.probe import LogisticProbe, linear_probe

N_DONORS, N_CELLS = 24, 15


def donor_fingerprints(seed):
    """Return an embedding that identifies the donor of a cell, with a random class and number per donor."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(N_DONORS), N_CELLS)
    Z = rng.normal(size=(len(donor), 30)) + 5 * rng.normal(size=(N_DONORS, 30))[donor]
    obs = pd.DataFrame(
        {
            "donor": [f"d{i}" for i in donor],
            "disease": np.array(["case", "control"])[rng.permutation(N_DONORS) % 2][donor],
            "age": rng.uniform(20, 80, N_DONORS)[donor],
        },
        index=[f"c{i}" for i in range(len(donor))],
    )
    return AnnData(obs=obs, obsm={"Z": Z})


@pytest.fixture(scope="module")
def permuted():
    targets = {"disease": "classification", "age": "regression"}
    frames = [
        linear_probe(donor_fingerprints(seed), use_rep="Z", targets=targets, donor_key="donor", n_bootstrap=0)
        for seed in range(30)
    ]
    return pd.concat(frames)


@pytest.mark.parametrize("level", ["cell", "donor"])
@pytest.mark.parametrize(
    ("metric", "chance"), [("balanced_accuracy", 0.5), ("macro_auroc", 0.5), ("spearman", 0.0)]
)
def test_random_labels_of_donors_score_at_chance(permuted, level, metric, chance):
    values = permuted[(permuted["level"] == level) & (permuted["metric"] == metric)]["value"].dropna()
    error = values.std() / np.sqrt(len(values))
    assert len(values) > 20
    assert abs(values.mean() - chance) < 3 * error
    assert error < 0.08


def test_the_same_labels_are_predicted_perfectly_if_cells_are_split_at_random():
    adata = donor_fingerprints(0)
    X_train, X_test, y_train, y_test = train_test_split(adata.obsm["Z"], adata.obs["disease"], random_state=0)
    assert LogisticRegression().fit(X_train, y_train).score(X_test, y_test) == 1.0


def test_a_simulated_signal_passes_the_split_and_a_donor_effect_does_not():
    frames = []
    for seed in range(12):
        adata = donor_fingerprints(seed)
        noise = np.random.default_rng(seed).normal(size=adata.n_obs)
        signal = (adata.obs["disease"] == "case").to_numpy() * 12.0 + noise
        adata.obsm["signal"] = np.column_stack([adata.obsm["Z"], signal])
        targets = {"disease": "classification"}
        frames.append(
            linear_probe(adata, use_rep=["Z", "signal"], targets=targets, donor_key="donor", n_bootstrap=0)
        )
    frame = pd.concat(frames)
    donors = frame[(frame["level"] == "donor") & (frame["metric"] == "macro_auroc")]
    mean = donors.groupby("method")["value"].mean()
    assert abs(mean["Z"] - 0.5) < 0.2
    assert mean["signal"] > 0.9


def test_the_penalty_is_chosen_on_other_donors_than_those_of_the_fit():
    adata = donor_fingerprints(2)
    donors, y = adata.obs["donor"].to_numpy(), adata.obs["disease"].to_numpy()
    by_donor = LogisticProbe().fit(adata.obsm["Z"], y, groups=donors)
    by_cell = LogisticProbe().fit(adata.obsm["Z"], y, groups=np.arange(len(y)) % 100)
    assert by_donor.cv_scores_.mean(axis=0).max() < 0.75
    assert by_cell.cv_scores_.mean(axis=0).max() == 1.0
