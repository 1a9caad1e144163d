"""Command line, log level and gene selection shared by the scripts of this folder."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anndata as ad


def make_parser(
    description: str | None, *, data: bool = True, out: bool = True, seeds: int | None = None
) -> argparse.ArgumentParser:
    """Return a parser with the options that most scripts have; ``seeds`` is the default number of seeds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if data:
        parser.add_argument("--data", type=Path, required=True, help="file or folder of the data")
    if out:
        parser.add_argument("-o", "--out", type=Path, required=True, help="folder for tables and figures")
    if seeds is not None:
        parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds (default: %(default)s)")
    return parser


def silence() -> None:
    """Ignore warnings and log errors only."""
    warnings.simplefilter("ignore")
    for name in ("scr2mae", "lightning.pytorch", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)


def select_genes(adata: ad.AnnData, n_top_genes: int | None) -> ad.AnnData:
    """Return the most variable genes of log-normalized counts, or all genes if there are no more."""
    if n_top_genes is None or adata.n_vars <= n_top_genes:
        return adata
    import scanpy as sc  # not above: some scripts measure what their imports take

    logged = sc.pp.log1p(sc.pp.normalize_total(adata, target_sum=1e4, copy=True), copy=True)
    sc.pp.highly_variable_genes(logged, n_top_genes=n_top_genes)
    return adata[:, logged.var["highly_variable"].to_numpy()].copy()
