import numpy as np
import pytest

from scr2mae import theory


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_equal_singular_values_are_counted(rank):
    basis = theory.haar_orthogonal(20, seed=0)[:, :rank]
    result = theory.effective_rank(5.0 * basis @ theory.haar_orthogonal(rank, seed=1))
    assert result.rank == pytest.approx(rank)
    assert result.entropy == pytest.approx(np.log(rank), abs=1e-12)


def test_the_entropy_is_that_of_the_normalised_singular_values():
    result = theory.effective_rank(np.diag([3.0, 1.0]))
    assert result.entropy == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))


def test_scale_and_rotation_leave_it_alone():
    matrix = np.random.default_rng(0).standard_normal((30, 8)) * np.arange(1, 9)
    rotated = 7 * matrix @ theory.haar_orthogonal(8, seed=2)
    assert theory.effective_rank(rotated).rank == pytest.approx(theory.effective_rank(matrix).rank)


@pytest.mark.parametrize("matrix", [np.ones(3), np.ones((0, 3)), np.full((2, 2), np.nan)])
def test_what_is_no_matrix_is_refused(matrix):
    with pytest.raises(ValueError, match="2-d matrix"):
        theory.effective_rank(matrix)


def test_a_zero_matrix_has_no_effective_rank():
    with pytest.raises(ValueError, match="zero matrix"):
        theory.effective_rank(np.zeros((4, 3)))
