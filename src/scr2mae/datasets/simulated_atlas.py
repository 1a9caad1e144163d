"""Small atlases with the columns, genes and matrices of the portal's files."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scr2mae.datasets.simulate import simulate_donors

_SCHEMA_VERSION = "5.0.0"
_UNKNOWN_SHARE = 0.05


def simulate_atlas(
    atlas: str = "hlca",
    *,
    n_donors: int = 20,
    n_cells_per_donor: int = 100,
    n_genes: int = 1000,
    seed: int = 0,
    **effects: Any,
) -> AnnData:
    """Simulate an atlas in the format of CELLxGENE Discover, to try a workflow before downloading.

    Parameters
    ----------
    atlas
        ``"hlca"`` or ``"sea_ad"``.
    n_donors, n_cells_per_donor, n_genes, seed
        As in :func:`simulate_donors`. In SEA-AD the last donor, or every eighth, is a reference donor.
    effects
        Additional arguments of :func:`simulate_donors`, such as ``age_effect``.

    Returns
    -------
    AnnData with raw counts in ``raw``, their log-normalized values in ``X``, Ensembl-like gene IDs with
    ``feature_name``, and the columns that :func:`hlca` or :func:`sea_ad` and the tasks of the paper need: among the
    labels are unknown cell states and missing ages, or reference donors and ages in groups. The loaders
    read it from a file written with ``write_h5ad``.

    Raises
    ------
    ValueError
        If the atlas is unknown, or an argument is out of range.

    Examples
    --------
    >>> import scr2mae
    >>> adata = scr2mae.datasets.simulate_atlas("hlca", n_donors=4, n_cells_per_donor=10, n_genes=50)
    >>> bool(adata.raw.X.max() > adata.X.max())
    True
    >>> sorted(adata.obs.columns)[:3]
    ['age_or_mean_of_age_range', 'ann_finest_level', 'assay']
    """
    if atlas not in _COLUMNS:
        raise ValueError(f"atlas must be one of {list(_COLUMNS)}, got {atlas!r}.")
    sizes: dict[str, Any] = {"n_donors": n_donors, "n_cells_per_donor": n_cells_per_donor, "n_genes": n_genes}
    drawn = simulate_donors(**sizes, seed=seed, **effects)
    counts = sp.csr_matrix(drawn.X)
    var = pd.DataFrame(
        {
            "feature_name": pd.Categorical(drawn.var_names),
            "feature_biotype": pd.Categorical(["gene"] * n_genes),
        },
        index=[f"ENSG{i:011d}" for i in range(n_genes)],
    )
    columns = _COLUMNS[atlas](drawn.obs, np.random.default_rng([seed, 1])) | {"assay": "10x 3' v2"}
    obs = pd.DataFrame(columns, index=drawn.obs_names)
    text = [name for name in obs if obs[name].dtype == object]
    obs = obs.astype(dict.fromkeys(text, "category"))
    made = AnnData(
        counts, obs=obs, var=var, uns={"schema_version": _SCHEMA_VERSION, "title": f"simulated {atlas}"}
    )
    made.raw = made.copy()
    library = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    scaled = counts.copy()
    scaled.data = np.log1p(scaled.data * np.repeat(1e4 / library, np.diff(counts.indptr))).astype(np.float32)
    made.X = scaled
    return made


def _hlca(obs: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """Return the columns of the Human Lung Cell Atlas."""
    states = np.where(
        rng.random(len(obs)) < _UNKNOWN_SHARE, "Unknown", "state of " + obs["cell_type"].astype(str)
    )
    donors = obs["donor"].cat.codes.to_numpy()
    return {
        "donor_id": obs["donor"].astype(str),
        "dataset": obs["batch"].astype(str).to_numpy(),
        "ann_finest_level": states,
        "cell_type": obs["cell_type"].astype(str),
        "disease": np.where(obs["disease"] == "disease", "interstitial lung disease", "normal"),
        "age_or_mean_of_age_range": np.where(donors % 10 == 9, np.nan, obs["age"]),
    }


def _sea_ad(obs: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """Return the columns of SEA-AD."""
    donors = obs["donor"].cat.codes.to_numpy()
    n_donors = int(donors.max()) + 1
    reference = (donors % 8 == 7) | (donors == n_donors - 1)
    diseased = (obs["disease"] == "disease").to_numpy()
    severe = donors // 2 % 2 == 1
    status = np.where(diseased, np.where(severe, "High", "Intermediate"), np.where(severe, "Low", "Not AD"))
    types = obs["cell_type"].to_numpy(dtype=str)
    # One subclass has a supertype that only Alzheimer's has.
    specific = (types == np.unique(types)[0]) & (rng.random(len(obs)) < np.where(diseased, 0.5, 0.1))
    years = obs["age"].round().astype(int).to_numpy().astype(str)
    return {
        "donor_id": obs["donor"].astype(str),
        "ADNC": np.where(reference, "Reference", status),
        "development_stage": np.where(
            donors % 10 == 9, "80 year-old and over stage", np.char.add(years, "-year-old stage")
        ),
        "Subclass": types,
        "Supertype": np.where(specific, np.char.add(types, "_2-SEAAD"), np.char.add(types, "_1")),
    }


_COLUMNS: dict[str, Callable[[pd.DataFrame, np.random.Generator], dict[str, Any]]] = {
    "hlca": _hlca,
    "sea_ad": _sea_ad,
}
