"""Columns of obs: kinds that a model can keep, text that stands for missing values, numbers."""

import warnings
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae.data.columns import (
    as_keys,
    check_new_categories,
    find_column,
    spelling,
    warn_about_missing_text,
)

TINY = {"n_hidden": 8, "n_latent": 2}

DAYS = ["2024-01-01", "2024-02-01"]
USABLE: dict[str, Callable[[int], Any]] = {
    "text": lambda n: ["a", "b"] * (n // 2),
    "string": lambda n: pd.array(["a", "b"] * (n // 2), dtype="string"),
    "category": lambda n: pd.Categorical(["a", "b"] * (n // 2), categories=["b", "a", "unused"]),
    "ordered": lambda n: pd.Categorical(["a", "b"] * (n // 2), ordered=True),
    "int64": lambda n: np.arange(n) % 3,
    "uint8": lambda n: (np.arange(n) % 3).astype(np.uint8),
    "nullable integers": lambda n: pd.array(np.arange(n) % 3, dtype="Int32"),
    "float32": lambda n: (np.arange(n) % 3 / 2).astype(np.float32),
    "booleans": lambda n: np.arange(n) % 2 == 0,
    "nullable booleans": lambda n: pd.array(np.arange(n) % 2 == 0, dtype="boolean"),
    "categories of numbers": lambda n: pd.Categorical(np.arange(n) % 3 * 1.5),
    "big integers": lambda n: np.array([2**70, 1] * (n // 2), dtype=object),
    "umlauts": lambda n: ["Zürich", "東京"] * (n // 2),
}
REFUSED: dict[str, tuple[Callable[[int], Any], str]] = {
    "datetimes": (lambda n: pd.to_datetime(DAYS * (n // 2)), "values of type Timestamp, such as '2024-01-01"),
    "categories of datetimes": (lambda n: pd.Categorical(pd.to_datetime(DAYS * (n // 2))), "type Timestamp"),
    "dates": (lambda n: pd.to_datetime(DAYS * (n // 2)).date, "values of type date"),
    "periods": (lambda n: pd.PeriodIndex(DAYS * (n // 2), freq="M"), "values of type Period"),
    "timedeltas": (lambda n: pd.to_timedelta(np.arange(n) % 3, unit="h"), "values of type Timedelta"),
    "intervals": (lambda n: pd.cut(np.arange(n), 3), "values of type Interval"),
    "complex": (lambda n: np.arange(n) % 3 * 1j, "values of type complex"),
    "tuples": (lambda n: pd.Series([("a", 1)] * n).to_numpy(), "values of type tuple"),
    "bytes": (lambda n: np.array([b"a", b"b"] * (n // 2), dtype=object), "values of type bytes"),
    "decimals": (lambda n: [Decimal(1)] * n, "values of type Decimal"),
    "float16": (lambda n: (np.arange(n) % 3 / 2).astype(np.float16), "values of type float16"),
    "infinity": (lambda n: [np.inf, 1.0] * (n // 2), "must be finite"),
    "text and numbers": (lambda n: np.array(["a", 1] * (n // 2), dtype=object), "mixes text such as 'a' and numbers such as 1"),
    "categories of text and numbers": (lambda n: pd.Categorical(["a", 1] * (n // 2)), "mixes"),
    "text and booleans": (lambda n: np.array(["a", True] * (n // 2), dtype=object), "mixes"),
}  # fmt: skip
ARGUMENTS = {"batch_key": "c", "categorical_covariate_keys": ["c"]}


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("kind", USABLE)
def test_usable_categories_are_saved_and_loaded_and_embed_alike(
    kind: str, argument: str, adata: AnnData, tmp_path: Path
) -> None:
    adata.obs["c"] = USABLE[kind](adata.n_obs)
    R2MAEModel.setup_anndata(adata, **{argument: ARGUMENTS[argument]})
    model = R2MAEModel(adata, **TINY)
    model.is_trained_ = True
    model.save(tmp_path / "m")
    loaded = R2MAEModel.load(tmp_path / "m", adata, accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("kind", REFUSED)
def test_categories_that_cannot_be_saved_are_refused_at_setup_by_name(
    kind: str, argument: str, adata: AnnData
) -> None:
    values, message = REFUSED[kind]
    adata.obs["c"] = values(adata.n_obs)
    with pytest.raises(ValueError, match=r"adata\.obs\['c'\] \(" + argument) as caught:
        R2MAEModel.setup_anndata(adata, **{argument: ARGUMENTS[argument]})
    assert message in str(caught.value)
    if "finite" not in message:
        assert "adata.obs['c'].astype(str)" in str(caught.value)
        adata.obs["c"] = adata.obs["c"].astype(str)
        R2MAEModel.setup_anndata(adata, **{argument: ARGUMENTS[argument]})


@pytest.mark.parametrize("argument", ["continuous_covariate_keys", "size_factor_key"])
@pytest.mark.parametrize("kind", ["datetimes", "timedeltas", "intervals", "complex", "text and numbers"])
def test_what_is_no_number_is_refused_as_a_number(kind: str, argument: str, adata: AnnData) -> None:
    adata.obs["c"] = REFUSED[kind][0](adata.n_obs)
    with pytest.raises(ValueError, match=r"adata\.obs\['c'\] must be numeric, got .*" + argument):
        R2MAEModel.setup_anndata(adata, **{argument: "c"})


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "<NA>", "NaT"])
@pytest.mark.parametrize("argument", ["batch_key", "categorical_covariate_keys", "labels_key", "donor_key"])
def test_text_that_stands_for_missing_values_is_warned_about(
    text: str, argument: str, adata: AnnData
) -> None:
    adata.obs["c"] = np.where(np.arange(adata.n_obs) < 7, text, "b")
    with pytest.warns(
        UserWarning, match=rf"adata\.obs\['c'\] has 7 cells '{text}', text that stands for missing values"
    ):
        R2MAEModel.setup_anndata(adata, **{argument: "c"})


def test_a_category_of_that_name_without_cells_is_not(adata: AnnData) -> None:
    adata.obs["c"] = pd.Categorical(["a"] * adata.n_obs, categories=["a", "nan"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        R2MAEModel.setup_anndata(adata, batch_key="c")
    assert not caught


def test_a_column_that_occurs_twice_is_refused_in_every_argument(adata: AnnData) -> None:
    adata.obs = pd.concat([adata.obs, adata.obs[["batch", "age"]]], axis=1)
    for argument, key in [
        ("batch_key", "batch"),
        ("continuous_covariate_keys", "age"),
        ("donor_key", "batch"),
    ]:
        with pytest.raises(ValueError, match=rf"has 2 columns named '{key}'; keep one of them"):
            R2MAEModel.setup_anndata(adata, **{argument: key})


def test_one_name_may_be_given_without_a_list_and_no_name_twice(adata: AnnData) -> None:
    R2MAEModel.setup_anndata(adata, categorical_covariate_keys="chemistry", continuous_covariate_keys="age")
    arguments = R2MAEModel(adata, **TINY).registry["setup_args"]
    assert arguments["categorical_covariate_keys"] == ["chemistry"]
    assert arguments["continuous_covariate_keys"] == ["age"]
    with pytest.raises(ValueError, match=r"categorical_covariate_keys names \['chemistry'\] more than once"):
        R2MAEModel.setup_anndata(adata, categorical_covariate_keys=["chemistry", "chemistry"])
    with pytest.raises(TypeError, match=r"batch_key takes the name of one column, got \['batch'\]"):
        R2MAEModel.setup_anndata(adata, batch_key=["batch"])
    with pytest.raises(TypeError, match="takes names of columns, got 3"):
        as_keys([3], "categorical_covariate_keys")


def test_several_columns_are_joined_and_missing_where_a_part_is() -> None:
    obs = pd.DataFrame({"study": ["a", "b", None], "donor": [1, 1, 2]})
    joined = find_column(obs, ["study", "donor"])
    assert joined.tolist()[:2] == ["a / 1", "b / 1"]
    assert joined.isna().tolist() == [False, False, True]
    assert find_column(obs, ["donor"]).tolist() == [1, 1, 2]
    with pytest.raises(KeyError, match=r"No 'x' in adata\.obs; choose one of"):
        find_column(obs, ["study", "x"])


@pytest.mark.parametrize(("ours", "theirs"), [(int, str), (str, int), (float, str)])
def test_a_query_that_numbers_what_the_reference_names_is_told_so(
    ours: Any, theirs: Any, adata: AnnData, simulate: Callable[..., AnnData]
) -> None:
    adata.obs["lane"] = (np.arange(120) % 2).astype(ours)
    R2MAEModel.setup_anndata(adata, batch_key="lane")
    model = R2MAEModel(adata, **TINY)
    model.is_trained_ = True
    query = simulate(40, seed=1)
    query.obs["lane"] = (np.arange(40) % 2).astype(ours).astype(theirs)
    message = (
        r"adata\.obs\['lane'\] holds (text|numbers) such as .*, the model has .*; convert it: .*\.astype\("
    )
    with pytest.raises(ValueError, match=message):
        model.get_latent_representation(query)
    with pytest.raises(ValueError, match=message):
        R2MAEModel.load_query_data(query, model)
    query.obs["lane"] = query.obs["lane"].astype(ours)
    assert model.get_latent_representation(query).shape == (40, 2)


@pytest.mark.parametrize("text", ["NA", "null", "N/A", " nan", "#N/A", "", "NONE", "-nan"])
def test_text_of_missing_values_is_found_in_any_spelling(text: str) -> None:
    column = pd.Series(["b0", "b1", text, text])
    with pytest.warns(UserWarning, match=f"has 2 cells {text!r}, text that stands for missing values"):
        warn_about_missing_text(column, "batch")


def test_categories_spelled_unlike_the_reference_are_warned_about() -> None:
    known = np.array(["b0", "Batch_1"])
    with pytest.warns(
        UserWarning, match="'b0 ' and 'b0'; 'batch 1' and 'Batch_1'. They are taken as different"
    ):
        check_new_categories(pd.Series(["b0 ", "batch 1", "b7"]), "batch", known)
    check_new_categories(pd.Series(["b0", "b7"]), "batch", known)


@pytest.mark.parametrize(
    ("one", "other"), [("d01", "D1"), ("d1\u200b", "d1"), ("p-1 ", "P_01"), ("1e3", "1000")]
)
def test_spellings_of_one_name_are_equal(one: str, other: str) -> None:
    assert spelling(one) == spelling(other)


@pytest.mark.parametrize(("one", "other"), [("d10", "d1"), ("d100", "d10"), ("1.05", "1.5"), ("a1b", "a1c")])
def test_other_names_stay_apart(one: str, other: str) -> None:
    assert spelling(one) != spelling(other)
