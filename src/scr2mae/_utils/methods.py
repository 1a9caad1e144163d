"""Methods of the benchmark by name.

Importing this module does not load PyTorch, so the command line can check names at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = ["LABELS", "check_methods", "method_names"]

LABELS = {
    "lognorm": "Log-normalized",
    "pca": "PCA",
    "pca_1e4": "PCA, 10,000 counts",
    "pca_residuals": "PCA of residuals",
    "pca_ranks": "PCA of ranks",
    "scvi": "scVI",
    "scvi_joint": "JointEmbeddingSCVI",
    "mae": "MAE (25 %)",
    "mae_low": "MAE (10 %)",
    "mae_high": "MAE (50 %)",
    "mdlm": "MDLM",
    "dynamic": "Dynamic",
    "r2mae": "R²MAE",
    "r2mae_dynamic": "R²MAE + Dynamic",
    "cl": "CL",
    "cl_k0": "CL (k=0)",
    "r2mae_cl": "R²MAE + CL",
    "r2mae_cl_k0": "R²MAE + CL (k=0)",
    "r2mae_aligned": "R²MAE, aligned",
    "harmony": "Harmony",
    "scanvi": "scANVI",
    "sysvi": "SysVI",
}
"""Names of the methods in tables and figures; a user's embedding is shown by its key."""

_INTEGRATORS = ("r2mae_aligned", "harmony", "scanvi", "sysvi")


def method_names(*, integration: bool) -> list[str]:
    """Return the names of the methods, whether their packages are installed or not."""
    return [name for name in LABELS if integration or name not in _INTEGRATORS]


def check_methods(
    chosen: Sequence[str], built_in: Sequence[str], embeddings: Collection[str], *, integration: bool
) -> None:
    """Raise unless each name is a method or an embedding in ``obsm``, and occurs once."""
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"Wanted at least one method, each of them once; got {list(chosen)}.")
    if both := [name for name in chosen if name in built_in and name in embeddings]:
        raise ValueError(f"{both} name both a method and an entry of adata.obsm; rename the entry.")
    if unknown := [name for name in chosen if name not in built_in and name not in embeddings]:
        hint = " 'scvi_joint' needs scvi-tools 1.5 or newer." if "scvi_joint" in unknown else ""
        if wanting := sorted(set(_INTEGRATORS) & set(unknown)):
            hint += f" {wanting} need integration=True" + (", and their packages." if integration else ".")
        raise ValueError(
            f"No method {unknown}; choose from {list(built_in)} and the embeddings in adata.obsm, {list(embeddings)}.{hint}"
        )
