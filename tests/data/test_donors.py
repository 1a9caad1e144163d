"""Donors that are none, donors under several names, and cells that are there twice."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scr2mae import R2MAEModel, benchmark, datasets
from scr2mae.data import open_store, split_cells
from scr2mae.data.donors import Fingerprints, warn_about_donors
from scr2mae.probe import (
    Probe,
    compare_representations,
    design_table,
    donor_split,
    donor_splits,
    fit_probe,
    gene_attribution,
    linear_probe,
    permutation_test,
)

QUICK = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
TINY = {"n_hidden": 8, "n_latent": 2}
TARGET = {"disease": "classification"}
LABELS = {"target": "disease", "kind": "classification"}
DISEASE = {"use_rep": "X_mine", **LABELS}
FIT = {"n_bootstrap": 0, **DISEASE}


def donors(n: int = 8) -> np.ndarray:
    """Names of the donors of 120 cells."""
    return np.array([f"d{i % n}" for i in range(120)], dtype=object)


@pytest.fixture
def cells(adata: AnnData) -> AnnData:
    """Cells of eight donors, sick and well, with an embedding."""
    adata.obs["donor"] = donors()
    adata.obs["disease"] = np.where(np.arange(120) % 8 % 2 == 0, "yes", "no")
    adata.obsm["X_mine"] = np.random.default_rng(0).normal(size=(120, 3))
    return adata


def train(adata: AnnData, donor_key: Any = "donor") -> None:
    R2MAEModel.setup_anndata(adata, donor_key=donor_key)
    R2MAEModel(adata, **TINY).train(**QUICK)


def run_benchmark(adata: AnnData, donor_key: Any = "donor") -> None:
    benchmark.run(
        adata,
        targets=TARGET,
        donor_key=donor_key,
        methods=["lognorm"],
        n_splits=1,
        ratios=(),
        n_bootstrap=0,
        enable_progress_bar=False,
    )


USES: dict[str, Callable[[AnnData], Any]] = {
    "train": train,
    "split_cells": lambda a: split_cells(a.n_obs, groups=a.obs["donor"], key="donor"),
    "donor_split": lambda a: donor_split(a.obs["donor"]),
    "donor_splits": lambda a: donor_splits(a, targets=TARGET, donor_key="donor"),
    "linear_probe": lambda a: linear_probe(a, use_rep="X_mine", targets=TARGET, donor_key="donor"),
    "benchmark": run_benchmark,
    "fit_probe": lambda a: fit_probe(a, donor_key="donor", **FIT),
    "permutation_test": lambda a: permutation_test(a, donor_key="donor", n_permutations=1, **DISEASE),
    "compare_representations": lambda a: compare_representations(
        a, donor_key="donor", n_permutations=9, **DISEASE | {"use_rep": ("X_mine", "X")}
    ),
    "design_table": lambda a: design_table(a, donor_key="donor", columns=["batch"], **LABELS),
}


def warned(use: Callable[[], Any]) -> str:
    """All warnings of a call, as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use()
    return "\n".join(str(each.message) for each in caught)


@pytest.mark.parametrize("use", USES)
def test_placeholders_are_warned_about_wherever_donors_are_split(use: str, cells: AnnData) -> None:
    cells.obs.iloc[:5, cells.obs.columns.get_loc("donor")] = "unknown"
    assert "has 5 cells of 'unknown': no donor's name" in warned(lambda: USES[use](cells))


@pytest.mark.parametrize("use", USES)
def test_one_donor_under_two_names_is_warned_about_wherever_donors_are_split(
    use: str, cells: AnnData
) -> None:
    cells.obs.iloc[:1, cells.obs.columns.get_loc("donor")] = "d0 "
    cells.obs.iloc[1:2, cells.obs.columns.get_loc("donor")] = "D1"
    text = warned(lambda: USES[use](cells))
    assert "2 donor(s) under several names" in text
    assert "'d0' and 'd0 '" in text
    assert "'D1' and 'd1'" in text


@pytest.mark.parametrize(
    "use", ["train", "donor_splits", "linear_probe", "benchmark", "fit_probe", "permutation_test"]
)
def test_donors_of_several_studies_and_copies_are_warned_about(use: str, cells: AnnData) -> None:
    cells.obs["study"] = np.where(np.arange(120) < 60, "a", "b")
    cells.obs["is_primary_data"] = np.arange(120) >= 7
    text = warned(lambda: USES[use](cells))
    assert "8 of 8 donors of adata.obs['donor'], such as ['d0', 'd1'" in text
    assert "pass donor_key=['study', 'donor']" in text
    assert "7 of 120 cells have is_primary_data False" in text


@pytest.mark.parametrize(
    "name",
    [
        "unknown",
        "Unknown ",
        "pooled",
        "na",
        "NaN",
        "None",
        "",
        " ",
        "N/A",
        "not  available",
        "?",
        "not_reported",
        "Unknown donor",
        "sample unknown",
        "anonymous",
    ],
)
def test_a_placeholder_in_any_spelling_is_no_donor(name: str) -> None:
    with pytest.warns(UserWarning, match="no donor's name"):
        warn_about_donors(["a", "b", name], "donor")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("d0", "d0 "),
        ("D1", "d1"),
        ("4", "4.0"),
        ("p_1", "p-1"),
        ("p 1", "p_1"),
        ("d01", "d1"),
        ("d1\u200b", "d1"),
        ("A\u030a1", "\u00c51"),
    ],
)
def test_two_spellings_are_one_donor(one: str, other: str) -> None:
    with pytest.warns(UserWarning, match=r"1 donor\(s\) under several names"):
        warn_about_donors(["x", one, other], "donor")


def test_ordinary_donors_are_not_warned_about(cells: AnnData) -> None:
    cells.obs["study"] = [f"study{int(name[1:]) // 4}" for name in cells.obs["donor"]]
    cells.obs["is_primary_data"] = True
    for use in USES.values():
        assert "donor" not in warned(lambda use=use: use(cells))


def test_several_columns_name_a_donor_in_models_probes_and_benchmarks(cells: AnnData, tmp_path: Path) -> None:
    cells.obs["study"] = np.where(np.arange(120) < 60, "a", "b")
    key = ["study", "donor"]
    R2MAEModel.setup_anndata(cells, donor_key=key)
    model = R2MAEModel(cells, **TINY)
    model.train(**QUICK)
    sides = [set(names) for names in model.split_.groups.values()]
    assert model.split_.key == "study / donor"
    assert set.union(*sides) == {f"{s} / d{i}" for s in "ab" for i in range(8)}
    assert sum(map(len, sides)) == 16
    model.save(tmp_path / "m")
    assert R2MAEModel.load(tmp_path / "m").registry["setup_args"]["donor_key"] == key
    scores = linear_probe(cells, use_rep="X_mine", targets=TARGET, donor_key=key)
    assert (scores["n_train_donors"] + scores["n_test_donors"]).unique().tolist() == [16]
    run_benchmark(cells, key)


def test_copies_of_cells_are_found_by_barcode_and_counts(cells: AnnData) -> None:
    copies = cells[:9].copy()
    cells.obs_names = [f"{name}-0" for name in cells.obs_names]
    copies.obs_names = [f"{name}-1" for name in copies.obs_names]
    joined = anndata.concat([cells, copies])
    for use in ("train", "linear_probe", "benchmark"):
        text = warned(lambda use=use: USES[use](joined))
        assert "9 cells occur more than once, with the same barcode and the same counts" in text, use


def test_equal_counts_of_other_barcodes_and_equal_barcodes_of_other_counts_are_no_copies() -> None:
    counts = np.array([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    prints = Fingerprints(5, 2)
    prints.add(0, counts)
    names = ["ACGTACGTACGTACGT-1", "TTTTACGTACGTACGT-1", "ACGTACGTACGTACGT-2", "e-1", "e-2"]
    assert warned(lambda: prints.warn(names)) == ""
    assert "1 cells occur more than once" in warned(
        lambda: prints.warn(["ACGTACGTACGT-1", "s2_ACGTACGTACGT", *names[2:]])
    )


@pytest.fixture
def two_files(cells: AnnData, tmp_path: Path) -> list[Path]:
    """Two files with equal names of donors; four cells are in both."""
    cells.obs = cells.obs[["donor", "disease"]].copy()
    cells.obs["is_primary_data"] = np.arange(120) >= 3
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    cells[:64].copy().write_h5ad(paths[0])
    cells[60:].copy().write_h5ad(paths[1])
    return paths


def test_preparing_files_warns_about_shared_donors_copies_and_placeholders(
    two_files: list[Path], tmp_path: Path
) -> None:
    text = warned(lambda: datasets.prepare(two_files, tmp_path / "s.zarr", progressbar=False))
    assert "8 of 8 names in obs['donor'] occur in several files, such as 'd0' in a and b" in text
    assert "pass prefix=['donor'] (--prefix donor)" in text
    assert "4 cells occur more than once" in text
    assert "3 of 124 cells have is_primary_data False" in text


def test_a_prefix_keeps_donors_of_two_files_apart(two_files: list[Path], tmp_path: Path) -> None:
    text = warned(lambda: datasets.prepare(two_files, tmp_path / "s.zarr", prefix="donor", progressbar=False))
    assert "occur in several files" not in text
    obs = open_store(tmp_path / "s.zarr").obs
    assert set(obs["donor"]) == {f"{file}:d{i}" for file in "ab" for i in range(8)}
    with pytest.raises(KeyError, match=r"prefix='person': no file has this column"):
        datasets.prepare(two_files, tmp_path / "t.zarr", prefix=["person"], progressbar=False)


def test_missing_donors_stay_missing_under_a_prefix(cells: AnnData, tmp_path: Path) -> None:
    cells.obs = pd.DataFrame({"donor": donors()}, index=cells.obs_names)
    cells.obs["donor"] = cells.obs["donor"].where(np.arange(120) >= 6).astype("category")
    cells.write_h5ad(tmp_path / "a.h5ad")
    datasets.prepare(tmp_path / "a.h5ad", tmp_path / "s.h5ad", prefix=["donor"], progressbar=False)
    assert open_store(tmp_path / "s.h5ad").obs["donor"].isna().sum() == 6


@pytest.fixture
def studies(cells: AnnData) -> AnnData:
    """Two studies that call their eight donors alike; sickness goes by donor and study."""
    study = np.where(np.arange(120) < 60, "a", "b")
    cells.obs["study"] = study
    cells.obs["disease"] = np.where((np.arange(120) % 8 % 2 == 0) == (study == "a"), "yes", "no")
    cells.obsm["X_mine"][:, 0] += 3.0 * (cells.obs["disease"] == "yes")
    return cells


KEY = ["study", "donor"]


def test_a_kept_probe_takes_donors_of_several_columns(studies: AnnData, tmp_path: Path) -> None:
    kept = fit_probe(studies, donor_key=KEY, design_keys=["batch"], holdout_key=["study", "batch"], **FIT)
    assert kept.donors == tuple(sorted(f"{s} / d{i}" for s in "ab" for i in range(8)))
    assert "embedding, study / batch held out" in set(kept.scores["method"])
    kept.save(tmp_path / "probe")
    loaded = Probe.load(tmp_path / "probe")
    assert loaded.donor_key == ("study", "donor")
    assert loaded.summary()["Donors"] == "16 of `study / donor`"
    new = studies.copy()
    new.obs["study"] = new.obs["study"].replace({"b": "c"})
    with pytest.warns(
        UserWarning, match=r"8 donor\(s\) of the fit are among those predicted: a / d0, a / d1"
    ):
        calls = loaded.predict_donors(new)
    assert calls.index.name == "study / donor"
    assert len(calls) == 16
    truth = new.obs.assign(key=new.obs["study"] + " / " + new.obs["donor"]).groupby("key")["disease"].first()
    assert (calls["prediction"] == truth[calls.index]).mean() > 0.9
    samples = loaded.predict_donors(new, ["donor"], sample_key=KEY)
    assert samples.index.names == ["donor", "study / donor"]
    assert len(samples) == 16
    del new.obs["study"]
    assert len(loaded.predict(new)) == 120  # without the columns of the fit, no donors are compared
    with pytest.raises(KeyError, match=r"No 'study' in adata\.obs"):
        loaded.predict_donors(new)


def test_tests_over_donors_take_donors_of_several_columns(studies: AnnData) -> None:
    options = {"donor_key": KEY, "strata": ["study"]}
    found = permutation_test(studies, n_permutations=19, **options, **DISEASE)
    assert (found.n_units, found.unit) == (16, "donor")
    both = compare_representations(
        studies, donor_key=KEY, n_permutations=99, **DISEASE | {"use_rep": ("X_mine", "X")}
    )
    assert both["n_donors"] == 16
    table = design_table(studies, donor_key=KEY, columns=["study"], **LABELS)
    assert table.loc["study", "n_units"] == 16
    with pytest.warns(UserWarning, match="occur in several values of obs"):
        alone = design_table(studies, donor_key="donor", sample_key=KEY, columns=["study"], **LABELS)
    assert alone.loc["study", "n_units"] == 16


def test_genes_of_a_probe_are_averaged_over_donors_of_several_columns(studies: AnnData) -> None:
    R2MAEModel.setup_anndata(studies)
    model = R2MAEModel(studies, **TINY)
    model.train(**QUICK)
    kept = fit_probe(studies, donor_key=KEY, model=model, **FIT | {"use_rep": "X_r2mae"})
    genes = gene_attribution(kept, studies, n_steps=2)
    assert sorted(genes["gene"]) == sorted(studies.var_names)


def test_a_donor_of_the_fit_is_known_in_another_spelling(cells: AnnData) -> None:
    kept = fit_probe(cells, donor_key="donor", **FIT)
    cells.obs["donor"] = [name.upper() + " " for name in cells.obs["donor"]]
    with pytest.warns(UserWarning, match=r"8 donor\(s\) of the fit are among those predicted: D0 , D1 "):
        kept.predict(cells)


def test_placeholders_among_new_donors_are_warned_about(cells: AnnData) -> None:
    kept = fit_probe(cells, donor_key="donor", **FIT)
    cells.obs["donor"] = ["unknown"] * 60 + ["new"] * 60
    with pytest.warns(UserWarning, match="has 60 cells of 'unknown': no donor's name"):
        kept.predict_donors(cells)
