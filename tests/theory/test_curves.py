import numpy as np
import pytest

from scr2mae import theory

RATIOS = np.array([0.15, 0.3, 0.4, 0.5, 0.8])


def test_a_straight_error_line_becomes_the_unit_line_through_the_origin():
    aligned = theory.align_accuracy(RATIOS, 1 - (0.2 + 0.3 * RATIOS))
    np.testing.assert_allclose(aligned, RATIOS, atol=1e-12)


def test_curves_share_intercept_and_slope_after_alignment():
    rng = np.random.default_rng(0)
    for _ in range(3):
        accuracy = 0.9 - 0.2 * RATIOS**2 + 0.01 * rng.standard_normal(5)
        aligned = theory.align_accuracy(RATIOS, accuracy, slope=2.0)
        line = np.polyfit(RATIOS[:2], aligned[:2], 1)
        assert line[1] == pytest.approx(0, abs=1e-12)
        assert (aligned[4] - aligned[2]) / 0.4 == pytest.approx(2.0)


def test_shifting_and_scaling_the_error_changes_nothing():
    error = np.array([0.1, 0.12, 0.11, 0.13, 0.2])
    one = theory.align_accuracy(RATIOS, 1 - error)
    other = theory.align_accuracy(RATIOS, 1 - (0.05 + 2 * error))
    np.testing.assert_allclose(one, other, atol=1e-12)


def test_reading_sorts_the_points_of_each_task(tmp_path):
    path = tmp_path / "accuracies.csv"
    path.write_text("task,ratio,accuracy\nqqp,0.4,0.8\nmnli,0.15,0.7\nqqp,0.15,0.9\n")
    curves = theory.read_accuracies(path)
    assert list(curves) == ["qqp", "mnli"]
    np.testing.assert_array_equal(curves["qqp"], [[0.15, 0.4], [0.9, 0.8]])


@pytest.mark.parametrize(
    ("text", "message"),
    [("task,ratio\na,0.1\n", r"lacks the columns \['accuracy'\]"), ("task,ratio,accuracy\n", "no rows")],
)
def test_invalid_files_are_rejected(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        theory.read_accuracies(path)


@pytest.mark.parametrize(
    ("ratios", "accuracies", "message"),
    [
        (RATIOS, RATIOS[:3], "equal length"),
        (RATIOS[::-1], RATIOS, "ascend"),
        (RATIOS[1:], RATIOS[1:], "span 0.15 to 0.8"),
        (RATIOS, 80 + RATIOS, "divide percentages"),
        (RATIOS, np.array([0.9, 0.8, 0.7, 0.6, 0.7]), "same at ratios 0.4 and 0.8"),
    ],
)
def test_curves_that_cannot_be_aligned_are_rejected(ratios, accuracies, message):
    with pytest.raises(ValueError, match=message):
        theory.align_accuracy(ratios, accuracies)
