"""Figures of the tables of a benchmark."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from scr2mae import pl


@pytest.fixture
def ax():
    return Figure().add_subplot()


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_scores_have_one_row_per_method_with_the_best_rank_on_top(finished, ax):
    result, _ = finished
    table = result.table().iloc[::-1]
    assert pl.benchmark_scores(table, ax=ax) is ax
    table = table.sort_values(("Rank", "", ""), kind="stable")
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [f"{name} ({rank:.2f})" for name, rank in table["Rank"].squeeze().items()]
    low, high = ax.get_ylim()
    assert low > high  # the first row is on top
    columns = [column for column in table if column[1]]
    assert len(ax.collections) >= len(columns)
    for dots, column in zip(ax.collections, columns, strict=False):
        np.testing.assert_allclose(dots.get_offsets(), np.c_[table[column], np.arange(len(table))])
    assert labels(ax)[-1] == "Score"
    assert labels(ax)[0] == "disease: balanced accuracy, cell"
    np.testing.assert_allclose(ax.containers[0].lines[0].get_xdata().astype(float), table["Score"].squeeze())


def test_reconstruction_is_drawn_as_the_distance_from_the_best(ax):
    table = pd.DataFrame([[0.8, 0.7], [0.9, 0.6]], index=["one", "two"], columns=[0.1, 0.7])
    pl.benchmark_reconstruction(table, ax=ax)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [-0.1, 0.0])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0.0, -0.1])
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [10, 70])
    assert labels(ax) == ["one", "two"]


def test_curves_of_sixteen_methods_are_distinguishable(ax):
    table = pd.DataFrame(np.random.default_rng(0).random((16, 2)), columns=[0.1, 0.7])
    pl.benchmark_reconstruction(table, ax=ax)
    styles = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in ax.lines}
    assert len(styles) == 16


def test_without_axes_a_figure_is_made(finished):
    result, _ = finished
    try:
        assert pl.benchmark_scores(result.table()).figure.number == plt.gcf().number
        assert pl.benchmark_reconstruction(result.reconstruction()).figure.number == plt.gcf().number
    finally:
        plt.close("all")


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="with methods and the column 'Rank'"):
        pl.benchmark_scores(pd.DataFrame({("a", "b", "c"): [1.0]}))
    with pytest.raises(ValueError, match="got an empty one"):
        pl.benchmark_reconstruction(pd.DataFrame())
