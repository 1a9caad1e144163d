"""Features that a kept probe reads, and the checks that new cells have the same ones."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scr2mae.data.containers import check_anndata
from scr2mae.probe.inputs import read_representation
from scr2mae.probe.rejection import Surprises, surprise

Float = NDArray[np.float64]
_N_COMPARED = 32
_BLOCK = 5000  # cells per block of the neighbor search
# Embeddings in bfloat16 stay within 3 % of the spread of a dimension.
_TOLERANCE = 0.1


class Embedder(Protocol):
    """Interface of a trained :class:`~scr2mae.R2MAEModel` that probes use."""

    @property
    def fingerprint(self) -> str:
        """Hash of genes and encoder."""

    def get_latent_representation(self, adata: AnnData, indices: Any = None) -> np.ndarray:
        """Embed cells."""

    def get_pearson_residuals(self, adata: AnnData) -> np.ndarray:
        """Return standardized residuals of counts."""


@dataclass(frozen=True)
class Features:
    """Representation, width, names where it has any, and fingerprint of the model that made it, or None."""

    use_rep: str
    n_features: int
    names: tuple[str, ...] | None = None
    fingerprint: str | None = None

    def read(self, adata: AnnData, model: Embedder | None, *, embed: bool) -> Any:
        """Return the features of new cells, computed from counts with ``embed``, else read from ``use_rep``."""
        check_anndata(adata)
        if not adata.n_obs:
            raise ValueError("adata has no cells; there is nothing to predict.")
        if model is not None:
            self.check_model(model)
        if model is not None and (embed or not has_representation(adata, self.use_rep)):
            return np.asarray(model.get_latent_representation(adata), dtype=np.float64)
        X, names = named_representation(adata, self.use_rep)
        if X.shape[1] != self.n_features:
            raise ValueError(
                f"The probe was fitted to {self.n_features} features of {self.use_rep!r}, got {X.shape[1]}; embed the "
                "cells with the model of the probe."
            )
        if self.names is not None and names != self.names:
            missing = sorted(set(self.names) - set(names or ()))
            raise ValueError(
                f"The features of {self.use_rep!r} are not those of the fit: {len(missing)} of {len(self.names)} are "
                f"missing{f', such as {missing[:3]}' if missing else ', or their order differs'}; select them by name."
            )
        stored = stored_fingerprint(adata, self.use_rep)
        if self.fingerprint is not None and stored is not None and stored != self.fingerprint:
            raise ValueError(
                f"{self.use_rep!r} was made by another model ({stored[:12]}) than that of the probe "
                f"({self.fingerprint[:12]}); embed the cells with the model of the probe."
            )
        if model is not None:
            check_same(adata, X, model, self.use_rep)
        return X

    def check_model(self, model: Embedder) -> None:
        """Raise unless the model made the features of the fit."""
        if self.fingerprint is None:
            raise ValueError(
                f"The probe was fitted to {self.use_rep!r} without a model, so it cannot embed counts; pass model= to "
                "fit_probe, or put the features into the AnnData."
            )
        if model.fingerprint != self.fingerprint:
            raise ValueError(
                f"The probe belongs to another model: its fingerprint is {self.fingerprint[:12]}, that of this one "
                f"{model.fingerprint[:12]}. Load the model whose embedding the probe was fitted to."
            )


def has_representation(adata: AnnData, use_rep: str) -> bool:
    """Return whether the AnnData holds a representation."""
    return use_rep == "X" or use_rep in adata.obsm or use_rep in adata.layers


def named_representation(adata: AnnData, use_rep: str) -> tuple[Any, tuple[str, ...] | None]:
    """Return a representation and its names: genes, or columns of a data frame."""
    X = read_representation(adata, use_rep)
    if use_rep not in adata.obsm:
        return X, tuple(adata.var_names.astype(str))
    stored = adata.obsm[use_rep]
    return X, tuple(stored.columns.astype(str)) if isinstance(stored, pd.DataFrame) else None


def stored_fingerprint(adata: AnnData, use_rep: str) -> str | None:
    """Return the fingerprint that ``scr2mae embed`` has stored with an embedding."""
    found = adata.uns.get("scr2mae", {}).get(f"{use_rep}_model")
    return None if found is None else str(found)


def fitted_features(adata: AnnData, use_rep: str, model: Embedder | None) -> tuple[Any, Features]:
    """Return the features to fit to, made from the counts if the AnnData does not hold them, and their description."""
    if model is not None and not has_representation(adata, use_rep):
        X = np.asarray(model.get_latent_representation(adata), dtype=np.float64)
        return X, Features(use_rep, X.shape[1], None, model.fingerprint)
    X, names = named_representation(adata, use_rep)
    fingerprint = stored_fingerprint(adata, use_rep)
    if model is not None:
        check_same(adata, X, model, use_rep)
        fingerprint = model.fingerprint
    return X, Features(use_rep, X.shape[1], names, fingerprint)


def check_same(adata: AnnData, X: Any, model: Embedder, use_rep: str) -> None:
    """Raise if a stored embedding is not that of a model, judged by some of the cells."""
    rows = np.unique(np.linspace(0, adata.n_obs - 1, _N_COMPARED).astype(int))
    made = np.asarray(model.get_latent_representation(adata, indices=rows), dtype=np.float64)
    stored = X[rows]
    spread = np.std(made, axis=0) + 1e-6
    if stored.shape != made.shape or (np.abs(stored - made) > _TOLERANCE * spread + 1e-4).any():
        raise ValueError(
            f"{use_rep!r} is not the embedding of these cells by this model; embed them again, or pass the model that "
            "made it."
        )


def surprises_by_donor(model: Embedder, adata: AnnData, X: Any, donors: Any) -> Surprises | None:
    """Return the surprise of each cell among those of its donor; None if cells differ in what was measured.

    Without donors, the cells are taken together. Groups beyond a few thousand cells are split at random.
    """
    order = np.random.default_rng(0).permutation(adata.n_obs)
    groups = np.zeros(adata.n_obs, dtype=np.intp) if donors is None else pd.factorize(donors)[0]
    order = order[np.argsort(groups[order], kind="stable")]
    found, n_genes = np.empty(adata.n_obs), np.empty(adata.n_obs, dtype=np.intp)
    for of_group in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        for chosen in np.array_split(of_group, -(-len(of_group) // _BLOCK)):
            rows = np.sort(chosen)
            residuals = model.get_pearson_residuals(adata[rows])
            n_genes[rows] = (~np.isnan(residuals)).sum(axis=1)
            found[rows] = surprise(residuals, np.asarray(X[rows]))
    if (n_genes != n_genes[0]).any():
        return None
    medians = pd.Series(found).groupby(groups).transform("median").to_numpy()
    return Surprises(found, medians, int(n_genes[0]))
