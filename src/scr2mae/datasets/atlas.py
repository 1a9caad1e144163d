"""The two atlases of the paper, from CELLxGENE Discover."""

import logging
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import anndata
import pooch
import requests
from anndata import AnnData

from scr2mae._utils.files import as_path
from scr2mae.data.preprocess import preprocess
from scr2mae.datasets.download import TIMEOUT, fetch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Atlas:
    """One data set of CELLxGENE Discover.

    Parameters
    ----------
    name
        Prefix of the file in the cache.
    collection_id, dataset_id
        Identifiers on the portal, which do not change with the version of the file.
    pinned_url
        One dated version of the file, used if the portal does not answer.
    obs_columns
        Columns that the tasks of the paper need, checked after reading.
    api
        Address of the portal's curation API.
    """

    name: str
    collection_id: str
    dataset_id: str
    pinned_url: str
    obs_columns: tuple[str, ...] = ()
    api: str = "https://api.cellxgene.cziscience.com/curation/v1"


# Not yet checked against the portal: identifiers and addresses were written down without access to it.
HLCA = Atlas(
    name="hlca",
    collection_id="6f6d381a-7701-4781-935c-db10d30de293",
    dataset_id="9f222629-9e39-47d0-b83f-e08d610c7479",
    pinned_url="https://datasets.cellxgene.cziscience.com/8d84ba15-d367-4dce-979c-85da70b868a2.h5ad",
    obs_columns=("donor_id", "age_or_mean_of_age_range", "ann_finest_level", "disease", "dataset"),
)
SEA_AD = Atlas(
    name="sea_ad",
    collection_id="1ca90a2d-2943-483d-b678-b809bf464c30",
    dataset_id="c2876b1b-06d8-4d96-a56b-5304f815b99a",
    pinned_url="https://datasets.cellxgene.cziscience.com/77dab54a-f2a8-42fc-8c1b-3fda90622ac7.h5ad",
    obs_columns=("donor_id", "ADNC", "development_stage", "Subclass", "Supertype"),
)


def hlca(path: str | os.PathLike[str] | None = None, *, min_genes: int = 20, **kwargs: Any) -> AnnData:
    """Load the full Human Lung Cell Atlas with the preprocessing of the paper.

    The first call downloads about 20 GB. The counts take eight bytes per non-zero value in memory; the size is logged
    before the memory is allocated.

    Parameters
    ----------
    path, min_genes
        As in `load_atlas`.
    kwargs
        Further arguments of `load_atlas`.

    Returns
    -------
    As `load_atlas`. Donors are in ``obs["donor_id"]``, cell states in ``obs["ann_finest_level"]``, ages in
    ``obs["age_or_mean_of_age_range"]`` and diagnoses in ``obs["disease"]``.

    Notes
    -----
    Sikkema et al. (2023), doi:10.1038/s41591-023-02327-2. Dong et al. (2025) keep 2,161,082 cells. Cells without
    an age or with the state "Unknown" are included; the benchmark task drops them.
    """
    return load_atlas(HLCA, path, min_genes=min_genes, **kwargs)


def sea_ad(path: str | os.PathLike[str] | None = None, **kwargs: Any) -> AnnData:
    """Load the middle temporal gyrus of the Seattle Alzheimer's Disease atlas with the preprocessing of the paper.

    Parameters
    ----------
    path
        As in `load_atlas`.
    kwargs
        Further arguments of `load_atlas`.

    Returns
    -------
    As `load_atlas`. Donors are in ``obs["donor_id"]``, neuropathology in ``obs["ADNC"]``, ages and age groups
    together in ``obs["development_stage"]``, cell types in ``obs["Subclass"]`` and ``obs["Supertype"]``.

    Notes
    -----
    Gabitto et al. (2024), doi:10.1038/s41593-024-01774-5. Dong et al. (2025) keep 1,378,211 cells. Reference
    donors are included; the benchmark task drops them.
    """
    return load_atlas(SEA_AD, path, **kwargs)


def load_atlas(
    atlas: Atlas,
    path: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    url: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
    n_top_genes: int | None = 5000,
    min_genes: int = 0,
    target_sum: float | None = 1e4,
    progressbar: bool = True,
) -> AnnData:
    """Download an atlas once and read it with the preprocessing of the paper.

    The portal is asked for the current version of the data set; if it does not answer, the pinned version is
    downloaded with a warning. A version in the cache is used without asking; delete it to get a newer one.

    Parameters
    ----------
    atlas
        The data set.
    path
        An existing h5ad file; then nothing is downloaded.
    cache_dir
        Folder of the downloads; by default the cache of the user.
    url
        Address to use instead of asking the portal.
    sha256, size
        Checksum and size in bytes of the file, checked as in `fetch`. The checksum of a first download is logged, so
        that later downloads can be compared with it.
    n_top_genes
        Number of highly variable genes to keep, see `preprocess`; None returns the whole atlas, backed by its file.
    min_genes, target_sum
        As in `preprocess`.
    progressbar
        Whether to show progress bars; never shown if standard error is not a terminal.

    Returns
    -------
    AnnData in memory with raw counts in ``X`` (CSR, float32), or a backed one if ``n_top_genes`` is None.

    Raises
    ------
    FileNotFoundError
        If ``path`` does not exist.
    ValueError
        If a check of the download fails, or ``obs`` lacks a column of the atlas (then it is another data set).
    requests.RequestException
        If the download fails; the next call resumes it.
    """
    if path is None:
        path = _download(atlas, cache_dir, url=url, sha256=sha256, size=size, progressbar=progressbar)
    elif not (path := as_path(path)).is_file():
        raise FileNotFoundError(f"No file at {path}; leave path out to download {atlas.name}.")
    adata = anndata.read_h5ad(path, backed="r")
    missing = [column for column in atlas.obs_columns if column not in adata.obs]
    if missing:
        adata.file.close()
        raise ValueError(f"{path} is not {atlas.name}: obs lacks {missing}, it has {list(adata.obs)}.")
    if n_top_genes is None:
        return adata
    with closing(adata.file):
        return preprocess(
            adata,
            n_top_genes=n_top_genes,
            min_genes=min_genes,
            target_sum=target_sum,
            progressbar=progressbar,
        )


def _download(
    atlas: Atlas,
    cache_dir: str | os.PathLike[str] | None,
    *,
    url: str | None,
    sha256: str | None,
    size: int | None,
    progressbar: bool,
) -> Path:
    """Return the file of an atlas, from the cache if it is the wanted one."""
    folder = as_path(cache_dir if cache_dir is not None else pooch.os_cache("scr2mae"))
    if url is None:
        cached = max(folder.glob(f"{atlas.name}-*.h5ad"), key=lambda file: file.stat().st_mtime, default=None)
        if cached is not None and _is_wanted(cached, sha256, size):
            logger.info("Using %s; delete it to ask the portal for a newer version.", cached)
            return cached
        url, announced = _resolve(atlas)
        size = announced if size is None else size
    asset = PurePosixPath(urlsplit(url).path).name
    return fetch(
        url, folder, filename=f"{atlas.name}-{asset}", sha256=sha256, size=size, progressbar=progressbar
    )


def _is_wanted(cached: Path, sha256: str | None, size: int | None) -> bool:
    if size not in (None, cached.stat().st_size):
        return False
    return sha256 is None or pooch.file_hash(str(cached), alg="sha256") == sha256.lower()


def _resolve(atlas: Atlas) -> tuple[str, int | None]:
    """Return the address and size of the current version on the portal, else the pinned address."""
    try:
        response = requests.get(f"{atlas.api}/collections/{atlas.collection_id}", timeout=TIMEOUT)
        response.raise_for_status()
        datasets = {dataset["dataset_id"]: dataset for dataset in response.json()["datasets"]}
        assets = {asset["filetype"]: asset for asset in datasets[atlas.dataset_id]["assets"]}
        return str(assets["H5AD"]["url"]), int(assets["H5AD"]["filesize"])
    except (requests.RequestException, KeyError, TypeError, ValueError) as error:
        logger.warning(
            "The portal returned no address for %s (%s: %s); using the dated version %s.",
            *(atlas.name, type(error).__name__, error, atlas.pinned_url),
        )
        return atlas.pinned_url, None
