"""What is said of an AnnData is said once, however often it is read."""

import gc
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae._utils import once
from scr2mae._utils.once import is_news


def told(call: Callable[[], Any]) -> list[str]:
    """Return the warnings of a call, with a filter that shows all."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message).partition(":")[0] for each in caught]


def test_a_query_is_warned_of_once_whatever_is_computed(trained: R2MAEModel, adata: AnnData) -> None:
    query = adata[:, :20].copy()

    def everything() -> None:
        trained.get_latent_representation(query)
        trained.get_normalized_expression(query)
        trained.get_reconstruction_error(query)
        for start in (0, 40):
            trained.get_pearson_residuals(query[start : start + 40])

    assert told(everything) == ["Few shared genes"]
    assert told(everything) == []
    assert told(lambda: trained.get_latent_representation(query.copy())) == ["Few shared genes"]
    query.var_names = [*query.var_names[:-1], "other"]
    assert told(everything) == ["Few shared genes"]


def test_empty_cells_and_binary_counts_are_warned_of_once(trained: R2MAEModel, adata: AnnData) -> None:
    adata.X = (adata.X > 0).astype(np.float32)
    adata.X = adata.X.multiply(np.arange(120)[:, None] > 1).tocsr()
    found = told(lambda: [trained.get_latent_representation(adata) for _ in range(2)])
    assert [each[:14] for each in found] == ["2 of 120 cells", "All counts in "]


def test_an_overlap_that_is_only_logged_is_logged_once(
    trained: R2MAEModel, adata: AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    query = adata[:, :59].copy()
    with caplog.at_level(logging.INFO, logger="scr2mae"):
        for _ in range(2):
            trained.get_latent_representation(query)
    assert caplog.text.count("59 of the reference's 60 genes (98%)") == 1
    assert "such as ['gene59']" in caplog.text


def test_views_share_what_was_said_and_nothing_is_kept_of_data_that_are_gone(adata: AnnData) -> None:
    gc.collect()
    n_before = len(once._TOLD)
    query = adata.copy()
    assert is_news("a", query)
    assert not is_news("a", query[:5][:, :5])
    assert is_news("b", query[:5])
    assert is_news("a", adata)
    assert len(once._TOLD) == n_before + 2
    del query
    gc.collect()
    assert len(once._TOLD) == n_before + 1
