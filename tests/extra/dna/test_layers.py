"""Rotary positions."""

import math

import pytest
import torch

from scr2mae.extra.dna.layers import rotary_tables, rotate


def test_rotary_angles_are_those_of_the_formula():
    cos, sin = rotary_tables(40, 8)
    for position in (0, 1, 7, 39):
        for pair in range(4):
            angle = position / 10_000 ** (2 * pair / 8)
            assert float(cos[position, pair]) == pytest.approx(math.cos(angle), abs=1e-6)
            assert float(sin[position, pair]) == pytest.approx(math.sin(angle), abs=1e-6)


def test_rotation_is_a_multiplication_of_complex_numbers():
    cos, sin = rotary_tables(9, 6)
    x = torch.randn(2, 3, 9, 6, generator=torch.Generator().manual_seed(0))
    turned = torch.view_as_complex(x.unflatten(-1, (3, 2)).contiguous()) * torch.complex(cos, sin)
    torch.testing.assert_close(rotate(x, cos, sin), torch.view_as_real(turned).flatten(-2))


def test_scores_of_rotated_queries_and_keys_depend_on_their_distance_alone():
    cos, sin = rotary_tables(50, 16)
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    score = [float(rotate(q, cos[t], sin[t]) @ rotate(k, cos[t - 5], sin[t - 5])) for t in (5, 6, 20, 49)]
    assert score == pytest.approx([score[0]] * 4, abs=1e-5)
