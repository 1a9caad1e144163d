import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn import covariance as sk_covariance

from scr2mae import theory

N_GENES = 24


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((90, 4)) @ rng.standard_normal((4, N_GENES))
    return np.log1p(np.maximum(factors + rng.standard_normal((90, N_GENES)), 0))


@pytest.fixture(scope="module")
def adata(values):
    names = pd.Index([f"gene{i}" for i in range(N_GENES)])
    return ad.AnnData(sparse.csr_matrix(values), var=pd.DataFrame(index=names))


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csr_array])
def test_ledoit_wolf_agrees_with_scikit_learn(kind, values):
    expected, weight = sk_covariance.ledoit_wolf(values)
    result = theory.ledoit_wolf(kind(values))
    assert result.shrinkage == pytest.approx(weight, rel=1e-10)
    np.testing.assert_allclose(result.matrix, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.33, 0.77, 3.0])
def test_every_gene_has_the_risk_of_regressing_it_on_the_others(gamma, adata):
    profile = theory.mask_profile(adata, gamma=gamma)
    matrix = theory.ledoit_wolf(adata.X).matrix
    for gene in (0, 11, N_GENES - 1):
        others = np.delete(np.arange(N_GENES), gene)
        sigma, cross = matrix[np.ix_(others, others)], matrix[others, gene]
        beta = np.linalg.solve(sigma, cross)
        noise = matrix[gene, gene] - beta @ cross
        expected = theory.general_risk(
            profile.ratios, gamma=gamma, covariance=sigma, beta=beta, noise_variance=noise
        )
        np.testing.assert_allclose(profile.risk[gene], expected, rtol=1e-9)
        assert profile.noise_variance[gene] == pytest.approx(noise)
        assert profile.null_risk[gene] == pytest.approx(beta @ sigma @ beta)


def test_sparse_and_dense_data_give_one_profile(adata, values):
    dense = ad.AnnData(values, var=adata.var)
    one = theory.mask_profile(adata, gamma=2.0, ratios=[0.2, 0.6])
    np.testing.assert_allclose(one.risk, theory.mask_profile(dense, gamma=2.0, ratios=[0.2, 0.6]).risk)


def test_a_panel_is_the_profile_of_the_sliced_data(adata):
    genes = ["gene5", "gene1", "gene9", "gene2"]
    one = theory.mask_profile(adata, gamma=2.0, genes=genes)
    other = theory.mask_profile(adata[:, genes].copy(), gamma=2.0)
    assert one.genes == tuple(genes)
    np.testing.assert_allclose(one.risk, other.risk)


def test_each_ratio_has_its_regime(adata):
    profile = theory.mask_profile(adata, gamma=0.5, ratios=[0.2, 0.4, 0.7])
    assert list(profile.regime) == ["over-parametrized", "over-parametrized", "under-parametrized"]


def test_the_default_ratios_exclude_the_pole(adata):
    profile = theory.mask_profile(adata, gamma=0.5)
    assert profile.ratios.size == 18
    assert 0.5 not in profile.ratios


def test_the_favored_range_is_where_the_pooled_risk_stays_near_its_minimum(adata):
    profile = theory.mask_profile(adata, gamma=2.0)
    low, high = profile.favored_range(tolerance=0.1)
    inside = (profile.ratios >= low) & (profile.ratios <= high)
    limit = 1.1 * profile.pooled_risk.min()
    assert (profile.pooled_risk[inside] <= limit).all()
    assert (profile.pooled_risk[~inside] > limit).all()
    assert profile.favored_range(tolerance=0.0) == (
        profile.ratios[profile.pooled_risk.argmin()],
        profile.ratios[profile.pooled_risk.argmin()],
    )


def test_the_advice_names_range_regime_gamma_and_assumptions(adata):
    text = theory.mask_profile(adata, gamma=2.0).advice()
    for part in ("gamma = 2", "over-parametrized", "Assumes linear prediction", "your choice"):
        assert part in text


def test_a_given_shrinkage_is_used(adata, values):
    profile = theory.mask_profile(adata, gamma=2.0, shrinkage=0.3)
    sample = np.cov(values.T, bias=True)
    matrix = 0.7 * sample + 0.3 * np.trace(sample) / N_GENES * np.eye(N_GENES)
    np.testing.assert_allclose(profile.null_risk + profile.noise_variance, np.diag(matrix))
    assert profile.shrinkage == 0.3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"genes": ["gene1", "gene2", "CD3E"]}, KeyError, "for example 'CD3E'"),
        ({"genes": ["gene1", "gene2"]}, ValueError, "at least three genes"),
        ({"shrinkage": "oas"}, ValueError, "shrinkage must be"),
        ({"shrinkage": 1.5}, ValueError, "shrinkage must be"),
        ({"ratios": [0.0, 0.5]}, ValueError, "strictly between 0 and 1"),
        ({"gamma": -1.0}, ValueError, "gamma must be"),
    ],
)
def test_bad_arguments_are_rejected(adata, change, error, message):
    with pytest.raises(error, match=message):
        theory.mask_profile(adata, **({"gamma": 2.0} | change))


def test_raw_counts_are_rejected():
    counts = ad.AnnData(np.random.default_rng(0).poisson(2.0, size=(20, 5)).astype(np.float32))
    with pytest.raises(ValueError, match="looks like raw counts"):
        theory.mask_profile(counts, gamma=2.0)


def test_gamma_has_no_default(adata):
    with pytest.raises(TypeError, match="gamma"):
        theory.mask_profile(adata)
