"""The paper's filters, targets and scores, on small atlases with the portal's column names."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scr2mae import benchmark
from scr2mae.benchmark.design import make_design
from scr2mae.benchmark.tasks import as_tasks


def atlas(obs, n_vars=5, seed=0):
    counts = np.random.default_rng(seed).poisson(3, size=(len(obs), n_vars)).astype(np.float32) + 1
    var = pd.DataFrame(index=[f"gene{i}" for i in range(counts.shape[1])])
    return AnnData(counts, obs=obs.set_axis([f"cell{i}" for i in range(len(obs))]), var=var)


@pytest.fixture
def hlca():
    """Six donors of ten cells; the last has no age; three in ten cells are of no known state."""
    n = 60
    donor = np.repeat(np.arange(6), 10)
    return atlas(
        pd.DataFrame(
            {
                "donor_id": pd.Categorical([f"D{i}" for i in donor]),
                "age_or_mean_of_age_range": np.where(donor < 5, 30.0 + donor, np.nan),
                "ann_finest_level": pd.Categorical(
                    np.where(np.arange(n) % 10 < 3, "Unknown", np.where(np.arange(n) % 2, "AT1", "AT2"))
                ),
                "disease": pd.Categorical(np.where(donor % 2, "normal", "COVID-19")),
                "dataset": "one",
            }
        )
    )


AGES = (
    *("80 year-old and over stage", "prime adult stage", "80-year-old stage", "75-year-old human stage"),
    *("89-year-old stage", "70-year-old stage", "65-year-old stage", "91-year-old human stage"),
    *("77-year-old stage", "68-year-old stage", "29-year-old stage"),
)
STATUS = (*("High", "Not AD", "Low") * 3, "High", "Reference")


@pytest.fixture
def sea_ad():
    """Ten donors and a reference donor; microglia have an Alzheimer-specific supertype and neurons have none."""
    cell, donor = np.arange(88), np.repeat(np.arange(11), 8)
    microglia = np.where(cell % 4 == 1, "Micro-PVM_2_1-SEAAD", "Micro-PVM_1")
    return atlas(
        pd.DataFrame(
            {
                "donor_id": pd.Categorical([f"H{i:02d}" for i in donor]),
                "ADNC": pd.Categorical([STATUS[i] for i in donor]),
                "development_stage": pd.Categorical([AGES[i] for i in donor]),
                "Subclass": pd.Categorical(np.where(cell % 2, "Microglia-PVM", "L2/3 IT")),
                "Supertype": pd.Categorical(np.where(cell % 2, microglia, "L2/3 IT_1")),
            }
        )
    )


def labels(adata, name, **settings):
    design = make_design(adata, benchmark.tasks(name), donor_key="donor_id", **settings)
    return design, {task.name: design.obs[task.name] for task in design.tasks}


def test_the_scores_are_the_paper_s_columns():
    classes = (("balanced_accuracy", "cell"), ("macro_f1", "cell"))
    ages = (("spearman", "cell"), ("spearman", "donor"))
    areas = (("macro_auroc", "cell"), ("macro_auroc", "donor"))
    scores = {name: {task.name: task.scores for task in benchmark.tasks(name)} for name in ("hlca", "sea_ad")}
    assert scores == {
        "hlca": {"Cell state": classes, "Disease": classes, "Age": ages},
        "sea_ad": {"Cell state": classes, "Alzheimer's": areas, "Age": ages},
    }


def test_hlca_drops_unknown_states_and_cells_without_age(hlca):
    _, got = labels(hlca, "hlca")
    known = hlca.obs["ann_finest_level"] != "Unknown"
    pd.testing.assert_series_equal(got["Cell state"].notna(), known, check_names=False)
    assert set(got["Cell state"].dropna()) == {"AT1", "AT2"}
    assert got["Age"].notna().tolist() == (hlca.obs["donor_id"] != "D5").tolist()
    assert got["Disease"].tolist() == hlca.obs["disease"].tolist()


def test_unknown_states_take_part_in_the_draw_of_cells_and_are_dropped_after(hlca):
    _, got = labels(hlca, "hlca", max_cells_per_donor=6)
    kept = got["Cell state"].notna().groupby(hlca.obs["donor_id"], observed=True).sum()
    # Ten cells with three unknown, six drawn: three to six are left, six everywhere had they been dropped first.
    assert kept.between(3, 6).all()
    assert (kept < 6).any()
    assert got["Disease"].notna().all()


def test_sea_ad_drops_the_reference_donors_everywhere(sea_ad):
    design, got = labels(sea_ad, "sea_ad")
    reference = (sea_ad.obs["donor_id"] == "H10").to_numpy()
    for task in got.values():
        assert task[reference].isna().all()
    assert got["Alzheimer's"][~reference].tolist() == sea_ad.obs["ADNC"][~reference].tolist()
    for split in design.splits:
        assert {*split.train_donors, *split.test_donors} == {f"H{i:02d}" for i in range(10)}


def test_sea_ad_keeps_supertypes_of_classes_with_alzheimer_specific_ones(sea_ad):
    _, got = labels(sea_ad, "sea_ad")
    wanted = (sea_ad.obs["Subclass"] == "Microglia-PVM") & (sea_ad.obs["ADNC"] != "Reference")
    assert got["Cell state"].notna().tolist() == wanted.tolist()
    assert set(got["Cell state"].dropna()) == {"Micro-PVM_1", "Micro-PVM_2_1-SEAAD"}


def test_sea_ad_keeps_exact_ages_only(sea_ad):
    _, got = labels(sea_ad, "sea_ad")
    by_donor = got["Age"].groupby(sea_ad.obs["donor_id"], observed=True).first()
    assert by_donor.dropna().to_dict() == dict(
        zip(
            ["H02", "H03", "H04", "H05", "H06", "H07", "H08", "H09"],
            [80, 75, 89, 70, 65, 91, 77, 68],
            strict=True,
        )
    )


@pytest.mark.parametrize("name", ["hlca", "sea_ad"])
def test_a_table_of_an_atlas_has_six_columns(name, request):
    adata = request.getfixturevalue(name)
    result = benchmark.run(
        adata,
        targets=benchmark.tasks(name),
        donor_key="donor_id",
        methods=["lognorm"],
        n_splits=1,
        scale=False,
        enable_progress_bar=False,
    )
    expected = [(task.name, *score) for task in benchmark.tasks(name) for score in task.scores]
    assert len(expected) == 6
    assert [column for column in result.table().columns.tolist() if column[1]] == expected


def test_an_unknown_atlas_is_an_error():
    with pytest.raises(ValueError, match=r"atlas must be one of \['hlca', 'sea_ad'\], got 'brain'"):
        benchmark.tasks("brain")


def test_a_missing_column_is_an_error_that_lists_the_columns(hlca):
    with pytest.raises(KeyError, match=r"No 'Subclass' in adata\.obs; choose one of \['donor_id'"):
        labels(hlca, "sea_ad")


def test_a_cell_s_number_has_no_donor_column():
    by_cell, by_donor = as_tasks({"pseudotime": "regression", "age": "regression"}, ["pseudotime"])
    assert by_cell.scores == (("spearman", "cell"),)
    assert by_donor.scores == (("spearman", "cell"), ("spearman", "donor"))


def test_no_targets_are_an_error():
    with pytest.raises(ValueError, match="Wanted at least one target"):
        as_tasks({}, [])
    with pytest.raises(ValueError, match="each with a unique name"):
        as_tasks([*benchmark.tasks("hlca"), *benchmark.tasks("hlca")], [])


def test_a_cap_of_a_task_replaces_that_of_the_benchmark():
    caps = {
        task.name: task.max_cells_per_donor
        for task in benchmark.tasks("sea_ad", max_cells_per_donor={"Cell state": 200})
    }
    assert caps == {"Cell state": 200, "Alzheimer's": None, "Age": None}
    with pytest.raises(ValueError, match="No task"):
        benchmark.tasks("sea_ad", max_cells_per_donor={"Disease": 5})
