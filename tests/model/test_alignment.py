"""Alignment of batches: what moves, what stays, and that only the cell and its batch decide."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scr2mae.model import soft_clusters
from scr2mae.model.alignment import Alignment, fit_alignment, sample_cells

TYPES = 6.0 * np.random.default_rng(0).standard_normal((5, 8))


def draw(n: int, types: list[int] | None = None, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return latent vectors of cells of the given types, and their types."""
    rng = np.random.default_rng(seed)
    types = list(range(5)) if types is None else types
    label = np.array(types)[rng.integers(len(types), size=n)]
    return TYPES[label] + rng.standard_normal((n, 8)), label


def to_tensor(Z: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(Z.astype(np.float32))


def fit(Z: np.ndarray, codes: np.ndarray, **options: Any) -> Alignment:
    return fit_alignment(to_tensor(Z), codes, **options)


def apply(alignment: Alignment, Z: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return alignment.apply(to_tensor(Z), np.column_stack([codes, np.zeros(len(Z))]).astype(int)).numpy()


def two_batches(*, shift: float = 3.0, scale: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    Z, _ = draw(600)
    return np.concatenate([Z, scale * Z + shift]), np.repeat([0, 1], 600)


def test_one_batch_stays_to_the_bit():
    Z = draw(300)[0].astype(np.float32)
    np.testing.assert_array_equal(apply(fit(Z, np.zeros(300)), Z, np.zeros(300)), Z)


def test_a_shifted_and_scaled_copy_lands_on_its_original():
    Z, codes = two_batches()
    aligned = apply(fit(Z, codes), Z, codes)
    apart = np.linalg.norm(aligned[:600] - aligned[600:], axis=1)
    spread = np.linalg.norm(aligned[:600] - aligned[:600].mean(axis=0), axis=1)
    assert np.median(apart) < 0.1 * np.median(spread)


def test_vectors_of_one_length_keep_it():
    Z, codes = two_batches()
    Z *= 3 / np.linalg.norm(Z, axis=1, keepdims=True)
    alignment = fit(Z, codes)
    aligned = apply(alignment, Z, codes)
    np.testing.assert_allclose(np.linalg.norm(aligned, axis=1), 3, rtol=1e-5)
    assert np.abs(aligned - Z).max() > 0.1
    new = apply(alignment.extend(to_tensor(Z[:50]), (2, 0)), Z[:50], np.full(50, 2))
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), 3, rtol=1e-5)


def test_fewer_cells_than_clusters_are_aligned():
    Z, codes = draw(7)[0], np.array([0, 0, 0, 0, 1, 1, 2])
    assert np.isfinite(apply(fit(Z, codes, guard=False), Z, codes)).all()


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_neither_the_order_of_cells_nor_the_codes_of_batches_matter(seed):
    (A, _), (B, _), (C, _) = draw(200), draw(150, seed=1), draw(90, seed=2)
    Z, codes = np.concatenate([A, B + 2, 0.7 * C - 1]), np.repeat([0, 1, 2], [200, 150, 90])
    expected = apply(fit(Z, codes), Z, codes)
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(len(Z)), rng.permutation(3) + 4
    renamed = names[codes[order]]
    np.testing.assert_allclose(apply(fit(Z[order], renamed), Z[order], renamed), expected[order], atol=1e-4)


def test_a_cell_moves_by_itself_and_its_batch_alone():
    Z, codes = two_batches()
    alignment = fit(Z, codes)
    together = apply(alignment, Z, codes)
    for i in (0, 599, 600, 1199):
        np.testing.assert_allclose(
            apply(alignment, Z[i : i + 1], codes[i : i + 1])[0], together[i], atol=1e-5
        )
    held_out, _ = draw(100, seed=5)
    moved = apply(alignment, np.concatenate([held_out, 1.5 * held_out + 3]), np.repeat([0, 1], 100))
    assert np.median(np.linalg.norm(moved[:100] - moved[100:], axis=1)) < 1.0  # 9 before


@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_a_tiny_batch_is_finite_and_leaves_the_others_in_place(n):
    Z, codes = two_batches()
    tiny, _ = draw(n, seed=7)
    more, both = np.concatenate([Z, tiny - 4]), np.concatenate([codes, np.full(n, 2)])
    before = apply(fit(Z, codes, guard=False), Z, codes)
    after = apply(fit(more, both, guard=False), more, both)
    assert np.isfinite(after).all()
    moved = np.linalg.norm(after[:1200] - before, axis=1)
    assert np.median(moved) < 0.1 * np.median(np.linalg.norm(before - before.mean(axis=0), axis=1))


def test_a_cell_type_of_one_batch_stays_apart():
    (A, a), (B, b) = draw(800, [0, 1, 2, 3]), draw(800, [0, 1, 2, 4], seed=1)
    codes, label = np.repeat([0, 1], 800), np.concatenate([a, b])
    aligned = apply(fit(np.concatenate([A, B + 2]), codes), np.concatenate([A, B + 2]), codes)
    centers = np.stack([aligned[label == k].mean(axis=0) for k in range(5)])
    nearest = np.linalg.norm(aligned[:, None] - centers, axis=2).argmin(axis=1)
    assert (nearest == label).mean() > 0.95


def test_batches_without_common_types_stay_unless_asked():
    (A, _), (B, _) = draw(500, [0, 1]), draw(500, [2, 3, 4], seed=1)
    Z, codes = np.concatenate([A, B]).astype(np.float32), np.repeat([0, 1], 500)
    alignment = fit(Z, codes)
    assert alignment.shared.max() < 0.4
    np.testing.assert_array_equal(apply(alignment, Z, codes), Z)
    assert np.abs(apply(fit(Z, codes, guard=False), Z, codes) - Z).max() > 1


class TestExtend:
    @pytest.fixture
    def alignment(self):
        return fit(*two_batches())

    def test_a_new_batch_lands_on_the_reference(self, alignment):
        Z, label = draw(400, seed=9)
        moved = apply(alignment.extend(to_tensor(Z - 3), (2, 0)), Z - 3, np.full(400, 2))
        reference, codes = two_batches()
        aligned, types = apply(alignment, reference, codes), np.tile(draw(600)[1], 2)
        centers = np.stack([aligned[types == k].mean(axis=0) for k in range(5)])
        nearest = np.linalg.norm(moved[:, None] - centers, axis=2).argmin(axis=1)
        assert (nearest == label).mean() > 0.95

    def test_a_new_batch_lands_on_cells_of_the_reference_in_any_order(self, alignment):
        reference, codes = two_batches()
        aligned = to_tensor(apply(alignment, reference, codes))
        Z, label = draw(400, seed=9)
        moved, again = (
            apply(alignment.extend(to_tensor(Z - 3), (2, 0), reference=cells), Z - 3, np.full(400, 2))
            for cells in (aligned, aligned.flip(0))
        )
        np.testing.assert_array_equal(moved, again)
        types = np.tile(draw(600)[1], 2)
        centers = np.stack([aligned.numpy()[types == k].mean(axis=0) for k in range(5)])
        nearest = np.linalg.norm(moved[:, None] - centers, axis=2).argmin(axis=1)
        assert (nearest == label).mean() > 0.95

    @pytest.mark.parametrize("rare", range(5))
    def test_the_shares_of_types_may_differ_from_the_reference(self, alignment, rare):
        label = np.repeat([rare, *(k for k in range(5) if k != rare)], [360, 10, 10, 10, 10])
        Z = TYPES[label] + np.random.default_rng(7).standard_normal((400, 8)) - 3
        moved = apply(alignment.extend(to_tensor(Z), (2, 0)), Z, np.full(400, 2))
        centers = np.stack([apply(alignment, TYPES[[k]], np.zeros(1))[0] for k in range(5)])
        assert (np.linalg.norm(moved[:, None] - centers, axis=2).argmin(axis=1) == label).mean() > 0.95

    def test_rows_of_the_reference_do_not_change(self, alignment):
        extended = alignment.extend(to_tensor(draw(50)[0] - 3), (2, 0)).extend(to_tensor(draw(9)[0]), (7, 0))
        Z, codes = two_batches()
        np.testing.assert_array_equal(apply(extended, Z, codes), apply(alignment, Z, codes))
        assert sorted(extended.keys[:, 0].tolist()) == [0, 1, 2, 7]

    def test_a_second_fit_replaces_the_first(self, alignment):
        Z = draw(50)[0]
        again = alignment.extend(to_tensor(Z - 9), (2, 0)).extend(to_tensor(Z - 3), (2, 0))
        for name, values in alignment.extend(to_tensor(Z - 3), (2, 0)).to_state().items():
            torch.testing.assert_close(again.to_state()[name], values, rtol=0, atol=0)

    @pytest.mark.parametrize("n", [1, 5])
    def test_a_few_cells_are_finite(self, alignment, n):
        Z = draw(n)[0] - 3
        assert np.isfinite(apply(alignment.extend(to_tensor(Z), (2, 0)), Z, np.full(n, 2))).all()

    @pytest.mark.parametrize("seed", [11, 12, 13])
    def test_a_new_type_stays_apart(self, alignment, seed):
        Z, _ = draw(400, [0, 1, 2], seed=3)
        new = 6 * np.random.default_rng(seed).standard_normal(8)
        query = np.concatenate([Z, new + np.random.default_rng(4).standard_normal((150, 8))]) - 2
        moved = apply(alignment.extend(to_tensor(query), (2, 0)), query, np.full(550, 2))
        reference, codes = two_batches()
        everything = np.concatenate([apply(alignment, reference, codes), moved])
        is_new = np.arange(len(everything)) >= len(everything) - 150
        distances = np.linalg.norm(everything[-150:, None] - everything, axis=2)
        assert is_new[distances.argsort(axis=1)[:, 1:16]].mean() > 0.9


def test_a_vector_that_two_batches_share_does_not_order_them():
    Z, codes = two_batches()
    Z[[0, 600]] = 0
    swapped = np.arange(1200)
    swapped[[0, 600]] = 600, 0
    expected = apply(fit(Z, codes), Z, codes)
    found = apply(fit(Z[swapped], codes[swapped]), Z, codes)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("n", "scale"), [(1, 1.0), (300, 3000.0)])
def test_a_new_batch_with_far_more_spread_than_the_reference_is_finite(n, scale):
    rng = np.random.default_rng(0)
    alignment = fit(rng.standard_normal((n, 64)), np.zeros(n))
    Z = scale * rng.standard_normal((20, 64))
    assert np.isfinite(apply(alignment.extend(to_tensor(Z), (2, 0)), Z, np.full(20, 2))).all()


def test_is_deterministic_and_survives_its_state():
    Z, codes = two_batches()
    first, second = fit(Z, codes, seed=3), fit(Z, codes, seed=3)
    for name, values in first.to_state().items():
        torch.testing.assert_close(second.to_state()[name], values, rtol=0, atol=0)
    again = Alignment.from_state(first.to_state(), n_covariates=1)
    np.testing.assert_array_equal(apply(again, Z, codes), apply(first, Z, codes))


@pytest.mark.parametrize("name", ["center", "keys", "stretches", "offsets"])
def test_a_damaged_state_is_refused(name):
    state = fit(*two_batches()).to_state()
    with pytest.raises(ValueError, match=r"damaged: (keys|offsets|stretches|center|directions)"):
        Alignment.from_state({**state, name: state[name][:-1]}, n_covariates=1)
    with pytest.raises(ValueError, match=f"damaged: {name}"):
        Alignment.from_state({**state, name: state[name][0]}, n_covariates=1)
    with pytest.raises(ValueError, match="lacks or adds"):
        Alignment.from_state({k: v for k, v in state.items() if k != name}, n_covariates=1)
    broken = state["offsets"].clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="damaged: offsets"):
        Alignment.from_state({**state, "offsets": broken}, n_covariates=1)


@pytest.mark.parametrize("anchored", [False, True])
def test_clusters_are_found_where_the_cells_are(anchored, monkeypatch):
    means = np.zeros((4, 8), dtype=np.float32)
    found = SimpleNamespace(fit=lambda sample: SimpleNamespace(cluster_centers_=means))
    monkeypatch.setattr(soft_clusters, "KMeans", lambda *args, **options: found)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: self)  # meta tensors have no values to copy
    Z = torch.empty(60, 8, device="meta")
    solution = soft_clusters.solve(Z, [20, 40], n_clusters=4, anchored=anchored, seed=0)
    assert {values.device.type for values in solution} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_fit_is_the_same_on_a_gpu():
    Z, codes = two_batches()
    on_gpu = fit_alignment(to_tensor(Z).cuda(), codes)
    np.testing.assert_allclose(apply(on_gpu, Z, codes), apply(fit(Z, codes), Z, codes), atol=1e-2)


def test_vectors_that_are_not_finite_are_refused():
    Z, codes = two_batches()
    Z[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite latent vectors"):
        fit(Z, codes)


def test_a_sample_gives_small_batches_all_their_cells():
    codes = np.repeat([0, 1, 2], [10, 300, 5000])
    sample = sample_cells(codes, n_cells=210, seed=1)
    assert np.bincount(codes[sample]).tolist() == [10, 100, 100]
    np.testing.assert_array_equal(sample, np.unique(sample))
    np.testing.assert_array_equal(sample_cells(codes), np.arange(5310))
