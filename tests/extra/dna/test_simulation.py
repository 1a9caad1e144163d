"""Simulated alignments."""

import numpy as np
import pytest

from scr2mae.extra import dna


def test_simulated_elements_change_a_fifth_as_often():
    msa, track = dna.simulate_alignment(40_000, 4, divergence=(0.05, 0.6), gap=0.0, seed=2)
    symbols = msa.get("chr1", 0, 40_000)
    inside = track.values("chr1", 0, 40_000) > 0.5
    differs = symbols[:, 1:] != symbols[:, :1]
    rates = np.linspace(0.05, 0.6, 4)
    np.testing.assert_allclose(differs[~inside].mean(axis=0), rates, atol=0.01)
    np.testing.assert_allclose(differs[inside].mean(axis=0), rates / 5, atol=0.01)
    assert abs(inside.mean() - 0.2) < 0.03
    again = dna.simulate_alignment(40_000, 4, divergence=(0.05, 0.6), gap=0.0, seed=2)[0]
    assert np.array_equal(again.get("chr1", 0, 40_000), symbols)
    gappy = dna.simulate_alignment(40_000, 4, gap=0.3, seed=2)[0].get("chr1", 0, 40_000)
    np.testing.assert_allclose((gappy[:, 1:] == b"-").mean(axis=0), 0.3, atol=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_positions": 1}, r"n_positions >= 2"),
        ({"conserved": 2}, r"conserved must lie"),
        ({"divergence": (0.5, 2)}, r"divergence must be two shares"),
        ({"gap": 1}, r"gap in \[0, 1\)"),
    ],
)
def test_simulations_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dna.simulate_alignment(**options)
