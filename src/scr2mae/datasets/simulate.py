"""Negative-binomial counts of many donors with known effects."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

_BLOCK_ENTRIES = 4_000_000  # dense entries drawn at once, about 100 MB with temporaries


@dataclass(frozen=True)
class _Effects:
    """Ground truth on the natural-log scale; genes are rows, as in ``var`` and ``varm``."""

    baseline: np.ndarray  # (n_genes,), sums to one
    cell_type: np.ndarray  # (n_genes, n_cell_types)
    donor: np.ndarray  # (n_genes, n_donors)
    batch: np.ndarray  # (n_genes, n_batches)
    disease: np.ndarray  # (n_genes,)
    age: np.ndarray  # (n_genes,), per decade


def simulate_donors(
    *,
    n_donors: int = 20,
    n_cells_per_donor: int = 100,
    n_genes: int = 1000,
    n_cell_types: int = 5,
    n_batches: int = 2,
    cell_type_effect: float = 1.0,
    disease_effect: float = 0.5,
    age_effect: float = 0.1,
    donor_effect: float = 0.1,
    batch_effect: float = 0.2,
    effect_fraction: float = 0.1,
    dispersion: float = 2.0,
    library_size: float = 2000.0,
    age_range: tuple[float, float] = (20.0, 80.0),
    seed: int = 0,
) -> AnnData:
    """Simulate counts of donors with cell types, batches, disease and age effects of known size.

    Effects are natural-log fold changes of the mean. They are not renormalized, so each is exact, and with an effect
    of zero the counts do not depend on that variable. Disease is a property of the donor,
    as frequent as its absence (to within one donor) overall and in every batch; each donor is in one batch.

    Parameters
    ----------
    n_donors
        Number of donors, >= 2.
    n_cells_per_donor
        Number of cells per donor, >= 1.
    n_genes
        Number of genes, >= 2.
    n_cell_types
        Number of cell types, >= 1. Their shares vary between donors, independently of disease and age.
    n_batches
        Number of batches, between 1 and ``n_donors``.
    cell_type_effect, donor_effect, batch_effect
        Standard deviation over genes of the log fold change of a cell type, donor or batch, >= 0.
    disease_effect
        Absolute log fold change between diseased and control donors in the affected genes, >= 0; half of
        them increase and half of them decrease.
    age_effect
        The same for ten more years of age, relative to the middle of ``age_range``.
    effect_fraction
        Share of genes affected by disease; as many others are affected by age. In [0, 0.5].
    dispersion
        Negative-binomial theta, > 0: the variance is ``mean + mean**2 / dispersion``. ``math.inf`` is Poisson.
    library_size
        Median of the expected counts of a cell before effects, > 0. Log-normal over cells with sd 0.3.
    age_range
        Bounds in years of the uniform distribution of the donors' ages.
    seed
        Seed of all draws. Each part has its own random stream, so one effect can change without changing the others.

    Returns
    -------
    AnnData of ``n_donors * n_cells_per_donor`` cells, counts in ``X`` (CSR, float32), cells ordered by donor.

    - ``obs``: ``donor``, ``batch``, ``cell_type`` and ``disease`` (categorical; ``"control"`` or ``"disease"``),
      ``age`` (years, float) and ``library`` (expected counts before effects).
    - truth in ``var``: ``baseline`` (share of the library), ``disease_lfc``, ``age_lfc`` (per decade); in
      ``varm``: ``cell_type_lfc``, ``donor_lfc``, ``batch_lfc``, one column per category in the order of
      ``obs[...].cat.categories``.
    - the arguments and ``age_center`` in ``uns["simulation"]``.

    The mean of a cell and gene is ``library * baseline * exp(cell_type_lfc + donor_lfc + batch_lfc + disease_lfc
    * is_diseased + age_lfc * (age - age_center) / 10)``.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    Examples
    --------
    >>> import scr2mae
    >>> adata = scr2mae.datasets.simulate_donors(n_donors=4, n_cells_per_donor=10, n_genes=50)
    >>> adata.shape
    (40, 50)
    >>> sorted(adata.obs["donor"].unique())
    ['donor0', 'donor1', 'donor2', 'donor3']
    """
    arguments = dict(locals())  # first, while there are no other local variables
    _check_arguments(arguments)
    design, effects_seed, cells, drawn = np.random.SeedSequence(seed).spawn(4)
    design_rng, cells_rng, counts_rng = (np.random.default_rng(stream) for stream in (design, cells, drawn))
    donors = _draw_design(design_rng, n_donors, n_batches, age_range)
    effects = _draw_effects(effects_seed, arguments)
    n_obs = n_donors * n_cells_per_donor
    shares = cells_rng.dirichlet(np.full(n_cell_types, 5.0), size=n_donors)  # (n_donors, n_cell_types)
    thresholds = shares.cumsum(1)[:, None, :-1]
    cell_types = (cells_rng.random((n_donors, n_cells_per_donor, 1)) > thresholds).sum(-1)
    library = library_size * np.exp(0.3 * cells_rng.standard_normal((n_donors, n_cells_per_donor)))
    age_center = (age_range[0] + age_range[1]) / 2
    decades = (donors["age"].to_numpy() - age_center) / 10
    blocks = _draw_counts(counts_rng, effects, donors, decades, cell_types, library, dispersion)
    obs = donors.loc[donors.index.repeat(n_cells_per_donor)].reset_index(drop=True)
    obs.insert(2, "cell_type", _categorical(cell_types.ravel(), "type", n_cell_types))
    obs["library"] = library.ravel()
    obs.index = pd.Index(_names("cell", n_obs))
    var = pd.DataFrame(
        {"baseline": effects.baseline, "disease_lfc": effects.disease, "age_lfc": effects.age},
        index=pd.Index(_names("gene", n_genes)),
    )
    return AnnData(
        X=sp.vstack(list(blocks), format="csr"),
        obs=obs,
        var=var,
        varm={"cell_type_lfc": effects.cell_type, "donor_lfc": effects.donor, "batch_lfc": effects.batch},
        uns={"simulation": arguments | {"age_range": np.asarray(age_range), "age_center": age_center}},
    )


def _draw_design(
    rng: np.random.Generator, n_donors: int, n_batches: int, age_range: tuple[float, float]
) -> pd.DataFrame:
    """Place donors in random order on a checkerboard of batches (columns) and disease (alternating squares)."""
    place = rng.permutation(n_donors)
    row, batch = np.divmod(place, n_batches)
    diseased = (row + batch) % 2
    return pd.DataFrame(
        {
            "donor": _categorical(np.arange(n_donors), "donor", n_donors),
            "batch": _categorical(batch, "batch", n_batches),
            "disease": pd.Categorical.from_codes(diseased, categories=pd.Index(["control", "disease"])),
            "age": rng.uniform(*age_range, size=n_donors),
        }
    )


def _draw_effects(seed: np.random.SeedSequence, arguments: dict) -> _Effects:
    """Draw the effects of types, donors, batches, disease and age on the genes."""
    rngs = [np.random.default_rng(child) for child in seed.spawn(5)]
    n_genes = arguments["n_genes"]
    baseline = np.exp(1.5 * rngs[0].standard_normal(n_genes))
    n_carriers = round(arguments["effect_fraction"] * n_genes)
    order = rngs[1].permutation(n_genes)
    signs = np.where(np.arange(n_genes) % 2, -1.0, 1.0)[:n_carriers]
    disease, age = np.zeros(n_genes), np.zeros(n_genes)
    disease[order[:n_carriers]] = arguments["disease_effect"] * signs
    age[order[n_carriers : 2 * n_carriers]] = arguments["age_effect"] * signs
    normal = {
        name: arguments[f"{name}_effect"] * rng.standard_normal((arguments[f"n_{name}{plural}"], n_genes)).T
        for (name, plural), rng in zip(
            (("cell_type", "s"), ("donor", "s"), ("batch", "es")), rngs[2:], strict=True
        )
    }
    return _Effects(baseline=baseline / baseline.sum(), disease=disease, age=age, **normal)


def _draw_counts(
    rng: np.random.Generator,
    effects: _Effects,
    donors: pd.DataFrame,
    decades: np.ndarray,
    cell_types: np.ndarray,
    library: np.ndarray,
    dispersion: float,
) -> Iterator[sp.csr_matrix]:
    """Yield the counts donor by donor, so that a dense matrix of all cells never exists."""
    n_genes = len(effects.baseline)
    block = max(1, _BLOCK_ENTRIES // n_genes)
    batch, diseased = donors["batch"].cat.codes.to_numpy(), donors["disease"].cat.codes.to_numpy()
    by_type = effects.baseline[:, None] * np.exp(effects.cell_type)  # (n_genes, n_cell_types)
    for donor in range(len(donors)):
        shift = effects.donor[:, donor] + effects.batch[:, batch[donor]]
        shift = shift + effects.disease * diseased[donor] + effects.age * decades[donor]
        share = (by_type * np.exp(shift)[:, None]).T.astype(np.float32)  # (n_cell_types, n_genes)
        for start in range(0, cell_types.shape[1], block):
            cells = slice(start, start + block)
            mean = share[cell_types[donor, cells]] * library[donor, cells, None].astype(np.float32)
            if math.isfinite(dispersion):
                mean *= rng.standard_gamma(dispersion, size=mean.shape, dtype=np.float32) / np.float32(
                    dispersion
                )
            yield sp.csr_matrix(rng.poisson(mean).astype(np.float32))


def _categorical(codes: np.ndarray, prefix: str, n: int) -> pd.Series:
    return pd.Series(pd.Categorical.from_codes(codes, categories=pd.Index(_names(prefix, n))))


def _names(prefix: str, n: int) -> list[str]:
    width = len(str(n - 1))  # zero-padded, so that alphabetical order is numerical order
    return [f"{prefix}{i:0{width}d}" for i in range(n)]


def _check_arguments(arguments: dict) -> None:
    minima = {"n_donors": 2, "n_cells_per_donor": 1, "n_genes": 2, "n_cell_types": 1, "n_batches": 1}
    for name, minimum in minima.items():
        if arguments[name] < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {arguments[name]}.")
    if arguments["n_batches"] > arguments["n_donors"]:
        raise ValueError(
            f"n_batches must not exceed n_donors ({arguments['n_donors']}), got {arguments['n_batches']}; "
            "a donor is in one batch, so the others would be empty."
        )
    for name in ("cell_type", "disease", "age", "donor", "batch"):
        value = arguments[f"{name}_effect"]
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"{name}_effect must be finite and not negative, got {value}; its signs are random."
            )
    if not 0 <= arguments["effect_fraction"] <= 0.5:
        raise ValueError(f"effect_fraction must lie in [0, 0.5], got {arguments['effect_fraction']}.")
    if not arguments["dispersion"] > 0:
        raise ValueError(
            f"dispersion must be positive, got {arguments['dispersion']}; math.inf gives Poisson."
        )
    if not (math.isfinite(arguments["library_size"]) and arguments["library_size"] > 0):
        raise ValueError(f"library_size must be positive, got {arguments['library_size']}.")
    low, high = arguments["age_range"]
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(
            f"age_range must be (low, high) in years with low <= high, got {arguments['age_range']}."
        )
