"""Figures of probes show the numbers of their tables."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from scr2mae import pl
from scr2mae.probe import fit_probe


@pytest.fixture(autouse=True)
def close():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def probes():
    from scr2mae import datasets

    cells = datasets.simulate_donors(n_donors=8, n_cells_per_donor=15, n_genes=20, disease_effect=1.5)
    cells.obsm["Z"] = np.log1p(cells.X.toarray())
    options = {"use_rep": "Z", "donor_key": "donor", "n_bootstrap": 0}
    disease = fit_probe(cells, target="disease", kind="classification", **options)
    return disease, fit_probe(cells, target="age", kind="regression", **options)


def test_reliability_is_drawn_before_and_after_calibration(probes):
    ax = pl.calibration(probes[0])
    table = probes[0].reliability.query("level == 'cell' and calibration == 'after'")
    drawn = ax.collections[1].get_offsets()
    np.testing.assert_allclose(drawn, table[["probability", "correct"]])
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    error = probes[0].scores.set_index(["level", "metric"])["value"]["cell", "calibration_error"]
    assert texts[1] == f"after calibration (error {error:.3f})"
    assert texts[0].startswith("before calibration")
    assert len(pl.calibration(probes[0], level="donor").collections) == 2


def test_a_number_has_no_reliability(probes):
    with pytest.raises(ValueError, match="Wanted a probe of classes with predictions at level 'cell'"):
        pl.calibration(probes[1])


def calls():
    return pd.DataFrame(
        {
            "prediction": ["case", "control", "unknown"],
            "probability": [0.9, 0.6, np.nan],
            "low": [0.8, 0.4, np.nan],
            "high": [1.0, 0.8, np.nan],
        },
        index=["d0", "d1", "d2"],
    )


def test_donors_are_drawn_with_intervals_and_wrong_calls_are_crossed():
    truth = pd.Series({"d0": "case", "d1": "case"})
    ax = pl.donor_predictions(calls(), truth=truth)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["d0", "d1", "d2"]
    bars = [container.lines[0].get_xdata().tolist() for container in ax.containers]
    assert bars[:2] == [[0.9], [0.6]]
    np.testing.assert_allclose(ax.collections[-1].get_offsets(), [[0.6, 1]])
    assert "wrong" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_numbers_are_drawn_with_their_true_values():
    table = pd.DataFrame(
        {"prediction": [50.0, 30.0], "low": [40.0, -np.inf], "high": [60.0, np.inf]},
        index=pd.MultiIndex.from_tuples([("d0", "before"), ("d0", "after")]),
    )
    truth = pd.Series([55.0, 35.0], index=table.index)
    ax = pl.donor_predictions(table, truth=truth)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["d0 after", "d0 before"]
    np.testing.assert_allclose(ax.collections[-1].get_offsets(), [[35, 0], [55, 1]])


def test_a_table_that_is_not_one_of_donors_is_refused():
    with pytest.raises(ValueError, match=r"Wanted a table of predict_donors, got 1 rows"):
        pl.donor_predictions(pd.DataFrame({"x": [1]}))


def genes():
    return pd.DataFrame(
        {
            "class": ["a", "a", "a", "b"],
            "gene": ["g0", "g1", "g2", "g3"],
            "rank": [2, 1, 3, 1],
            "attribution": [0.5, 0.9, 0.1, 0.3],
            "expression": [1.0, -1.0, 1.0, 1.0],
            "stability": [1.0, 1.0, 0.0, 1.0],
        }
    )


def test_bars_are_the_top_genes_colored_by_direction_and_pale_if_unstable():
    ax = pl.probe_genes(genes(), n_genes=3)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["g1", "g0", "g2"]
    assert [bar.get_width() for bar in ax.patches] == [0.9, 0.5, 0.1]
    assert [to_hex(bar.get_facecolor()).upper() for bar in ax.patches] == [
        pl.OKABE_ITO[1],
        pl.OKABE_ITO[0],
        pl.OKABE_ITO[0],
    ]
    assert [bar.get_alpha() for bar in ax.patches] == [1.0, 1.0, 0.4]
    assert ax.get_xlabel() == "Attribution to a"
    with pytest.raises(KeyError, match=r"No class 'c' in the table; choose one of \['a', 'b'\]"):
        pl.probe_genes(genes(), label="c")
