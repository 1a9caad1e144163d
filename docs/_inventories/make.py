"""Write the intersphinx inventories that cross-links need, so that the site builds without a network.

An inventory (`objects.inv`) maps the name of an object to its page on a project's site. The full files are large and
must be downloaded; here are those objects alone that these pages and docstrings refer to, with the addresses that the
projects' own inventories give. A build that complains of a reference target not found wants one more line below, then

    python docs/_inventories/make.py

tests/test_docs.py compares the files with this table.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Site:
    """A documentation site.

    Attributes
    ----------
    url
        Root of the site, with a slash at its end.
    objects
        Role of the Python domain to the address of the page, relative to ``url``, to the names that are on it.
        In an address ``$`` stands for the name.
    """

    url: str
    objects: dict[str, dict[str, str]]


SITES = {
    "python": Site(
        "https://docs.python.org/3/",
        {
            "class": {
                "library/functions.html#$": "bool float int object",
                "library/os.html#$": "os.PathLike",
                "library/stdtypes.html#$": "bytes dict list range set str tuple",
                "library/collections.abc.html#$": (
                    "collections.abc.Callable collections.abc.Hashable collections.abc.Iterable "
                    "collections.abc.Iterator collections.abc.Mapping collections.abc.Sequence"
                ),
                "library/pathlib.html#$": "pathlib.Path",
                "library/typing.html#$": "typing.NamedTuple typing.Protocol",
            },
            "function": {"library/dataclasses.html#$": "dataclasses.asdict"},
            "data": {
                "library/constants.html#$": "None",
                "library/typing.html#$": "typing.Any typing.Literal typing.Self",
            },
            "exception": {
                "library/exceptions.html#$": (
                    "FileExistsError FileNotFoundError IndexError KeyError OSError RuntimeError TypeError "
                    "UserWarning ValueError"
                ),
            },
        },
    ),
    "numpy": Site(
        "https://numpy.org/doc/stable/",
        {
            "class": {
                "reference/generated/$.html#$": "numpy.dtype numpy.ndarray",
                "reference/arrays.scalars.html#$": "numpy.bool numpy.float32 numpy.float64 numpy.int64 numpy.intp numpy.str_",
                "reference/random/generator.html#$": "numpy.random.Generator",
            },
            "function": {"reference/generated/$.html#$": "numpy.nanmean"},
            "data": {"reference/typing.html#$": "numpy.typing.ArrayLike numpy.typing.NDArray"},
        },
    ),
    "scipy": Site(
        "https://docs.scipy.org/doc/scipy/",
        {
            "class": {
                "reference/generated/$.html#$": "scipy.sparse.csr_array scipy.sparse.csr_matrix scipy.sparse.spmatrix",
            },
        },
    ),
    "pandas": Site(
        "https://pandas.pydata.org/docs/",
        {"class": {"reference/api/$.html#$": "pandas.DataFrame pandas.Index pandas.Series"}},
    ),
    "torch": Site(
        "https://docs.pytorch.org/docs/stable/",
        {
            "class": {
                "tensors.html#$": "torch.Tensor",
                "tensor_attributes.html#$": "torch.device",
                "generated/$.html#$": "torch.nn.Module torch.optim.Adam torch.optim.AdamW",
            },
            "function": {"generated/$.html#$": "torch.compile"},
        },
    ),
    "anndata": Site(
        "https://anndata.readthedocs.io/en/stable/",
        {
            "class": {"generated/$.html#$": "anndata.AnnData"},
            "function": {"generated/$.html#$": "anndata.read_h5ad"},
        },
    ),
    "scanpy": Site(
        "https://scanpy.readthedocs.io/en/stable/",
        {
            "function": {
                "generated/$.html#$": (
                    "scanpy.datasets.pbmc68k_reduced scanpy.pl.umap scanpy.pp.highly_variable_genes "
                    "scanpy.pp.log1p scanpy.pp.neighbors scanpy.pp.normalize_total scanpy.tl.leiden scanpy.tl.umap"
                ),
            },
        },
    ),
    "scvi-tools": Site(
        "https://docs.scvi-tools.org/en/stable/",
        {
            "class": {
                "api/reference/$.html#$": (
                    "scvi.data.AnnDataManager scvi.model.SCVI scvi.model.base.ArchesMixin "
                    "scvi.model.base.BaseModelClass scvi.model.base.UnsupervisedTrainingMixin "
                    "scvi.module.base.BaseModuleClass scvi.module.base.LossOutput"
                ),
            },
        },
    ),
    "lightning": Site(
        "https://lightning.ai/docs/pytorch/stable/",
        {
            "class": {
                # by the short paths that one imports them from
                "api/lightning.pytorch.trainer.trainer.Trainer.html": "lightning.pytorch.Trainer",
                "api/lightning.pytorch.core.LightningDataModule.html": "lightning.pytorch.LightningDataModule",
                "api/lightning.pytorch.core.LightningModule.html": "lightning.pytorch.LightningModule",
                "api/lightning.pytorch.callbacks.Callback.html": "lightning.pytorch.callbacks.Callback",
                "api/lightning.pytorch.callbacks.ProgressBar.html": "lightning.pytorch.callbacks.ProgressBar",
            },
        },
    ),
    "scikit-learn": Site(
        "https://scikit-learn.org/stable/",
        {
            "class": {
                "modules/generated/$.html#$": (
                    "sklearn.base.BaseEstimator sklearn.base.ClassifierMixin sklearn.base.RegressorMixin "
                    "sklearn.linear_model.LogisticRegression sklearn.linear_model.Ridge"
                ),
            },
            "exception": {"modules/generated/$.html#$": "sklearn.exceptions.UndefinedMetricWarning"},
        },
    ),
    "requests": Site(
        "https://requests.readthedocs.io/en/latest/",
        {"exception": {"api/#$": "requests.RequestException"}},
    ),
    "matplotlib": Site(
        "https://matplotlib.org/stable/",
        {"class": {"api/_as_gen/$.html#$": "matplotlib.axes.Axes"}},
    ),
}


def inventory(name: str, site: Site) -> bytes:
    """Return a Sphinx inventory, version 2."""
    lines = []
    for role, pages in site.objects.items():
        for page, names in pages.items():
            # the format's own abbreviation: a trailing $ repeats the name
            lines += [
                f"{each} py:{role} 1 {page.replace('$.html', f'{each}.html')} -" for each in names.split()
            ]
    header = (
        f"# Sphinx inventory version 2\n# Project: {name}\n# Version: stable\n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    return header.encode() + zlib.compress(("\n".join(sorted(lines)) + "\n").encode(), 9)


if __name__ == "__main__":
    for name, site in SITES.items():
        (HERE / f"{name}.inv").write_bytes(inventory(name, site))
