import numpy as np
import pytest

from scr2mae import metrics, theory
from scr2mae.metrics import effective_rank


def test_metrics_and_theory_share_one_effective_rank():
    assert metrics.effective_rank is theory.effective_rank


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_rank_counts_equal_singular_values(rank):
    left, right = theory.haar_orthogonal(20, seed=0)[:, :rank], theory.haar_orthogonal(9, seed=1)[:, :rank]
    result = effective_rank(5.0 * left @ right.T)
    assert result.rank == pytest.approx(rank)
    assert result.entropy == pytest.approx(np.log(rank), abs=1e-9)


def test_the_entropy_of_two_singular_values_has_its_closed_form():
    expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert effective_rank(np.diag([3.0, 1.0])).entropy == pytest.approx(expected)


def test_scale_and_rotation_do_not_change_the_rank():
    matrix = np.random.default_rng(0).standard_normal((30, 8)) * np.arange(1, 9)
    rotated = 7 * matrix @ theory.haar_orthogonal(8, seed=2)
    assert effective_rank(rotated).rank == pytest.approx(effective_rank(matrix).rank)


@pytest.mark.parametrize("matrix", [np.ones(3), np.ones((0, 3)), np.full((2, 2), np.nan)])
def test_invalid_matrices_are_rejected(matrix):
    with pytest.raises(ValueError, match="2-d matrix"):
        effective_rank(matrix)


def test_a_zero_matrix_has_no_effective_rank():
    with pytest.raises(ValueError, match="zero matrix"):
        effective_rank(np.zeros((4, 3)))
