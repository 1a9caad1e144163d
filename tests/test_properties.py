"""What holds whatever the input, tried on inputs that Hypothesis makes up."""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

import scr2mae
from scr2mae import R2MAEModel, metrics
from scr2mae.masking import DiscreteRatio, as_ratio_schedule, draw_mask
from scr2mae.nn.curriculum import Curriculum, sinkhorn
from scr2mae.probe import LogisticProbe, RidgeProbe, linear_probe

some = settings(max_examples=15, deadline=None)
few = settings(max_examples=6, deadline=None)

SETUPS = st.sampled_from(
    [
        {},
        {"batch_key": "batch"},
        {"categorical_covariate_keys": ["chemistry", "donor"]},
        {"batch_key": "donor", "continuous_covariate_keys": ["age"], "donor_key": "donor"},
        {"size_factor_key": "library", "check_counts": False},
    ]
)
RATIOS = st.sampled_from([0.25, (0.1, 0.5), DiscreteRatio((0.2, 0.5))])


@pytest.mark.filterwarnings("ignore:.*has fewer than 3 cells:UserWarning")  # of twenty
@few
@given(
    sizes=st.fixed_dictionaries(
        {
            "n_hidden": st.integers(1, 12),
            "n_latent": st.integers(1, 6),
            "n_layers": st.integers(1, 3),
            "n_layers_decoder": st.integers(1, 2),
            "seed": st.integers(0, 2**40),
        }
    ),
    setup=SETUPS,
    ratio=RATIOS,
    has_curriculum=st.booleans(),
)
def test_to_save_and_to_load_is_the_identity(
    sizes: dict[str, int],
    setup: dict[str, Any],
    ratio: Any,
    has_curriculum: bool,
    simulate: Callable[..., AnnData],
) -> None:
    adata = simulate(20, 15)
    adata.obs["library"] = np.linspace(1, 3, 20)
    R2MAEModel.setup_anndata(adata, **setup)
    curriculum = Curriculum(n_ratios=2, rank=1) if has_curriculum else None
    model = R2MAEModel(adata, mask_ratio=ratio, curriculum=curriculum, **sizes)
    model.is_trained_ = True
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        for given_data in (None, simulate(20, 15)):
            if given_data is not None:
                given_data.obs["library"] = adata.obs["library"]
            loaded = R2MAEModel.load(folder, given_data, accelerator="cpu")
            z = loaded.get_latent_representation(adata if given_data is None else None)
            assert z.tobytes() == model.get_latent_representation().tobytes()
            assert (loaded.init_params_, loaded.mask_ratio) == (model.init_params_, ratio)
            assert loaded.curriculum == curriculum
            state, kept = loaded.module.state_dict(), model.module.state_dict()
            assert state.keys() == kept.keys()
            assert all(torch.equal(state[name], kept[name]) for name in state)


@some
@given(data=st.data())
def test_a_panel_is_aligned_whatever_genes_it_lost_gained_or_repeated_as_versions(
    data: st.DataObject, trained: R2MAEModel, simulate: Callable[..., AnnData]
) -> None:
    whole = simulate(5)
    kept = data.draw(st.lists(st.integers(0, 59), min_size=6, max_size=60, unique=True))
    n_foreign = data.draw(st.integers(0, 4))
    X = sp.hstack([whole.X[:, kept], sp.csr_matrix(np.full((5, n_foreign), 7.0, np.float32))]).tocsr()
    names = [*whole.var_names[kept], *(f"foreign{i}" for i in range(n_foreign))]
    order = data.draw(st.permutations(range(len(names))))
    panel = AnnData(X[:, order])
    panel.var_names = [names[i] for i in order]
    with pytest.warns() if len(kept) < 57 else tempfile.TemporaryDirectory():
        aligned = R2MAEModel.prepare_query_anndata(panel, trained, inplace=False)
    measured = np.isin(np.arange(60), kept)
    assert aligned.var_names.equals(whole.var_names)
    np.testing.assert_array_equal(aligned.var["scr2mae_measured"], measured)
    np.testing.assert_array_equal(aligned.X.toarray(), whole.X.toarray() * measured)
    panel.var_names = [panel.var_names[0], panel.var_names[0], *panel.var_names[2:]]
    with pytest.raises(ValueError, match="occur more than once"):
        R2MAEModel.prepare_query_anndata(panel, trained)


@pytest.mark.parametrize("domain", ["single_cell", "dna", "vision", "text"])
@some
@given(n=st.integers(2, 2000), step=st.integers(0, 999), seed=st.integers(0, 2**40))
def test_masks_of_every_scheme_cover_exactly_the_share_asked_for(
    domain: str, n: int, step: int, seed: int
) -> None:
    for scheme in scr2mae.schemes(domain).values():
        schedule = as_ratio_schedule(scheme.mask_ratio, seed=seed)
        if scheme.curriculum is not None:
            schedule = Curriculum.named(scheme.curriculum).ratio_schedule(scheme.mask_ratio, seed=seed)
        ratio = schedule(step, 1000)
        assert 0 <= ratio <= 1
        hidden = int(draw_mask(n, ratio, seed=seed, step=step).sum())
        assert hidden == min(max(round(ratio * n), 1), n - 1)


@some
@given(
    n_features=st.integers(2, 30),
    n_ratios=st.integers(2, 6),
    n_padding=st.integers(0, 5),
    seed=st.integers(0, 10**6),
)
def test_sinkhorn_conserves_mass_with_and_without_padding(
    n_features: int, n_ratios: int, n_padding: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, n_features + n_padding, n_ratios)
    weights = torch.rand(shape, generator=generator, dtype=torch.double) + 0.05
    valid = (torch.arange(n_features + n_padding) < n_features).expand(3, -1)
    balanced = sinkhorn(weights, n_iter=300, valid=valid)
    torch.testing.assert_close(
        balanced.sum(dim=(1, 2)), torch.full((3,), float(n_features * n_ratios)).double()
    )
    torch.testing.assert_close(balanced.sum(dim=1), torch.full((3, n_ratios), float(n_features)).double())
    rows = balanced.sum(dim=2)
    torch.testing.assert_close(rows[valid], torch.full_like(rows[valid], n_ratios), rtol=1e-4, atol=0)
    assert not rows[~valid].any()


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Twelve donors, an embedding that tells disease and age."""
    adata = scr2mae.datasets.simulate_donors(n_donors=12, n_cells_per_donor=6, n_genes=20, seed=0)
    rng = np.random.default_rng(0)
    signal = (adata.obs["disease"] == "disease").to_numpy() + 0.02 * adata.obs["age"].to_numpy()
    adata.obsm["X_mine"] = signal[:, None] * rng.normal(size=4) + rng.normal(size=(72, 4))
    return adata


@few
@given(seed=st.integers(0, 10**6))
def test_probes_and_scores_do_not_depend_on_the_order_of_cells(seed: int, cells: AnnData) -> None:
    order = np.random.default_rng(seed).permutation(cells.n_obs)
    X, donors = cells.obsm["X_mine"], cells.obs["donor"].astype(str).to_numpy()
    for probe, y in (
        (RidgeProbe(), cells.obs["age"].to_numpy()),
        (LogisticProbe(), cells.obs["disease"].astype(str).to_numpy()),
    ):
        straight = probe.fit(X, y, groups=donors).predict(X)
        shuffled = probe.fit(X[order], y[order], groups=donors[order]).predict(X)
        if y.dtype.kind == "f":
            np.testing.assert_allclose(shuffled, straight, rtol=1e-6)
        else:
            np.testing.assert_array_equal(shuffled, straight)
    arguments: dict[str, Any] = {
        "use_rep": "X_mine",
        "targets": {"disease": "classification"},
        "donor_key": "donor",
    }
    tables = [
        linear_probe(each, n_splits=1, n_bootstrap=0, **arguments) for each in (cells, cells[order].copy())
    ]
    np.testing.assert_allclose(tables[0]["value"], tables[1]["value"], rtol=1e-9)
    labels = cells.obs["disease"].astype(str).to_numpy()
    assert metrics.knn_label_recovery(X[order], labels[order]) == metrics.knn_label_recovery(X, labels)
    assert metrics.effective_rank(X[order]).rank == pytest.approx(metrics.effective_rank(X).rank, rel=1e-9)
