"""Start a model from the weights of a trained one, with new rows for genes that it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from scr2mae._utils.files import as_path
from scr2mae.data import align_genes
from scr2mae.data.containers import check_anndata
from scr2mae.data.counts import check_genes
from scr2mae.data.genes import check_overlap
from scr2mae.data.setup import is_current
from scr2mae.model.base import CellModel
from scr2mae.model.hub import HubMixin
from scr2mae.model.query import aligned, known_rows
from scr2mae.model.saving import SavingMixin
from scr2mae.model.streaming import stream
from scr2mae.nn.likelihood import log_mean_of_counts
from scr2mae.nn.panels import measured_genes

if TYPE_CHECKING:
    from typing import Self

    from anndata import AnnData

    from scr2mae.data import CellSpec

# Axis of the genes in tensors of both networks, by the end of their names.
_GENE_AXES = {
    "to_logits.weight": 0,
    "to_logits.bias": 0,
    "log_theta": 0,
    "linear.frequencies": 0,
    "linear.logged_center": 0,
    "linear.logged_axes": 0,
    "linear.residual_center": 0,
    "linear.residual_axes": 0,
    "curriculum.to_rows.weight": 0,
    "curriculum.to_rows.bias": 0,
    "curriculum.hidden.0.weight": 1,
}
_MLP_AXES = {"encoder.first.linear.weight": 1}  # with encoder="mlp", whose inputs are genes
_COVARIATES = ("batch_key", "size_factor_key", "categorical_covariate_keys", "continuous_covariate_keys")
_PRECISION = 10.0  # of the prior of a new gene's weights in the decoder
_LARGEST = 3.0  # change of a new gene's log mean by one Newton step
# For biases and dispersions; more change the likelihood by less than 0.1 %.
_FIT_CELLS, _FIT_ROUNDS = 10_000, 3
# Weight of the trained model, in counts and squared means of a gene.
_PRIOR_COUNTS, _PRIOR_SQUARES = 1.0, 10.0


class PretrainedMixin(SavingMixin, HubMixin, CellModel):
    """``from_pretrained``: continue the training of a model on other cells."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str | Path | CellModel,
        adata: AnnData,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        min_shared: float = 0.1,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Start a model of your own cells from a trained one; :meth:`train` then continues its training.

        It embeds without further training too. Biases and dispersions of the decoder are fitted to your
        cells. Genes that the trained model knows and ``adata`` lacks stay masked. Genes that it does not know
        are added: the decoder predicts them from the start, by weights and dispersions estimated from the
        cells, while the fixed components of the default network do not read them.

        Parameters
        ----------
        pretrained
            Folder of a model, ``"owner/name"`` on the Hugging Face hub, or a model.
        adata
            Your cells, raw counts, genes in any order; it is not changed. If it was set up, its donors and
            layer are used, else those of the trained model.
        revision, token
            As in :meth:`from_hub`.
        min_shared
            Smallest fraction of the trained model's genes that must be in ``adata``.
        accelerator, device
            Device of the model.

        Returns
        -------
        A model whose ``adata`` is a copy with the genes of both. By default its :meth:`train` runs a quarter of the usual
        epochs at a third of the learning rate, and stops when the likelihood of the validation donors no longer improves.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If too few genes are shared, or the covariates are not those of the trained model.
        FileNotFoundError
            If there is neither such a folder nor such a repository.
        """
        check_anndata(adata)
        check_genes(adata)
        source = _load(cls, pretrained, revision=revision, token=token)
        if not source.is_trained_:
            raise RuntimeError("The model to start from is not trained.")
        spec = source.spec
        position = align_genes(adata.var_names, spec.var_names)
        check_overlap(adata, spec.var_names, position >= 0, min_shared=min_shared)
        new = np.setdiff1d(np.arange(adata.n_vars), position)
        genes = np.concatenate([spec.var_names, adata.var_names.to_numpy().astype(str)[new]])
        setup = _setup_of(cls, adata, source)
        cells = aligned(adata, genes, layer=setup.get("layer"))
        cls.setup_anndata(cells, **setup)
        model = cls(cells, mask_ratio=source.mask_ratio, curriculum=source.curriculum, **source.init_params_)
        _check_covariates(spec, model.spec)
        _copy_weights(source, model)
        model.is_trained_, model.runs_ = True, list(source.runs_)
        if len(new):
            _start_genes(model, len(spec.var_names))
        _fit_genes(model, seed=0)
        model.is_warm_ = True
        model.to_device(source.module.device)
        return model


def _load(cls: Any, pretrained: Any, **hub: Any) -> Any:
    """Load a folder if there is one, else from the hub."""
    if isinstance(pretrained, CellModel):
        return pretrained
    folder = as_path(pretrained)
    if folder.is_dir() or isinstance(pretrained, Path) or str(pretrained).count("/") != 1:
        return cls.load(folder, adata=False)
    return cls.from_hub(str(pretrained), **hub)


def _setup_of(cls: Any, adata: AnnData, source: CellModel) -> dict[str, Any]:
    """Return the arguments that an AnnData was set up with, else those of the trained model that it has columns for."""
    manager = cls._setup_adata_manager_store.get(adata.uns.get("_scvi_uuid"))
    if manager is not None and is_current(manager, adata):
        return dict(manager.registry["setup_args"])
    known = source.registry["setup_args"]
    kept = {name: known[name] for name in (*_COVARIATES, "check_counts")}
    layer, donor = known["layer"], known["donor_key"]
    kept["layer"] = layer if layer in adata.layers else None
    donors = [donor] if isinstance(donor, str) else list(donor or ())
    kept["donor_key"] = donor if donors and all(key in adata.obs for key in donors) else None
    return kept


def _check_covariates(theirs: CellSpec, ours: CellSpec) -> None:
    """Raise unless covariates are the same; a batch may be added to a model that had none."""
    keys = [[key for key, _ in spec.categorical] for spec in (theirs, ours)]
    added = keys[0][0] is None and keys[0][1:] == keys[1][1:]
    same = keys[0] == keys[1] or added
    if not same or theirs.continuous != ours.continuous or theirs.size_factor_key != ours.size_factor_key:
        wanted = {"batch_key": keys[0][0], "categorical_covariate_keys": keys[0][1:]}
        wanted |= {
            "continuous_covariate_keys": list(theirs.continuous),
            "size_factor_key": theirs.size_factor_key,
        }
        raise ValueError(
            f"The trained model has the covariates { ({k: v for k, v in wanted.items() if v}) }; set up adata with the same "
            "columns, or leave it without a setup."
        )


@torch.no_grad()
def _copy_weights(source: Any, model: Any) -> None:
    """Copy all weights; rows of genes by position, the known ones first, and rows of categories by name."""
    old, new = source.module.state_dict(), model.module.state_dict()
    n_old, n_new = source.module.n_vars, model.module.n_vars
    axes = _GENE_AXES | (_MLP_AXES if model.init_params_["encoder"] == "mlp" else {})
    for name, value in new.items():
        if ".tables." in name:
            continue
        axis = axes.get(name)
        if axis is None:
            value.copy_(old[name])
            continue
        n_kept = old[name].shape[axis]
        value.narrow(axis, 0, n_kept).copy_(old[name])
        if n_new > n_old and not name.startswith("curriculum."):
            value.narrow(axis, n_kept, value.shape[axis] - n_kept).zero_()
    for name, value in new.items():
        if ".tables." in name:
            _copy_table(name, value, old, source.spec, model.spec)
    model.module.load_state_dict(new)


def _copy_table(name: str, rows: torch.Tensor, old: dict[str, Any], theirs: CellSpec, ours: CellSpec) -> None:
    """Fill the rows of a covariate's categories: known ones by name, new ones with the mean of those."""
    table, number = name.rpartition(".")[0], int(name.split(".tables.")[1].split(".")[0])
    known = known_rows(old, table, like=rows)
    at = pd.Index(theirs.categorical[number][1]).get_indexer(pd.Index(ours.categorical[number][1]))
    at = np.where(at < len(known), at, -1)
    found = torch.from_numpy(at >= 0).to(rows.device)
    picked = known[torch.from_numpy(at.clip(min=0)).to(rows.device)]
    rows.copy_(torch.where(found.unsqueeze(1), picked, known.mean(dim=0)))


@torch.no_grad()
def _start_genes(model: Any, n_known: int) -> None:
    """Fit decoder, dispersion and frequency of the genes that were added, in closed form.

    With the decoder's features h, centered, the softmax denominators Z of the known genes and
    ``s = library / Z``, a gene has the weights of one Newton step of a Poisson regression with a normal prior, and
    the bias that then fits its total: ``w = (S + precision / r)^-1 sum (x / r - s) h`` with ``r = sum x / sum s`` and
    ``S = sum s h h'``.
    """
    module, cells = model.module, model._cells(None)
    known = torch.arange(module.n_vars, device=module.device) < n_known
    if hasattr(module, "linear"):
        _start_frequencies(module, cells, known)
    parts: dict[str, list[torch.Tensor]] = {"h": [], "s": [], "x": []}
    for _, tensors in stream(module, cells, None, None, desc="Starting new genes"):
        inputs = module._get_inference_input(tensors)
        z = module.inference(**inputs)["z"]
        h = module.decoder(z, inputs["categories"], inputs["continuous"])
        logits = (h @ module.to_logits.weight.T + module.to_logits.bias).double()
        seen = _seen(tensors, known)
        counts = tensors[REGISTRY_KEYS.X_KEY].double()
        library = (counts * seen).sum(dim=1).clamp(min=1.0)
        parts["s"].append(library / logits.masked_fill(~seen, -torch.inf).exp().sum(dim=1))
        parts["h"].append(h.double())
        parts["x"].append(counts[:, n_known:])
    h, s, x = (torch.cat(parts[name]) for name in ("h", "s", "x"))
    total = x.sum(dim=0) + 0.5  # half a count for genes without any
    rate = total / s.sum()
    center = (s.unsqueeze(1) * h).sum(dim=0) / s.sum()
    values, vectors = torch.linalg.eigh((h - center).T @ (s.unsqueeze(1) * (h - center)))
    gradient = vectors.T @ (h - center).T @ (x / rate - s.unsqueeze(1))  # (n_features, n_new)
    weights = vectors @ (gradient / (values.clamp(min=0).unsqueeze(1) + _PRECISION / rate))
    change = ((h - center) @ weights).clamp(-_LARGEST, _LARGEST).exp() * s.unsqueeze(1)
    bias = (total / change.sum(dim=0)).log()
    mean = change * bias.exp()
    excess = ((x - mean).square() - mean).sum(dim=0).clamp(min=1e-8)
    theta = (mean.square().sum(dim=0) / excess).clamp(1e-4, 1e3)
    module.to_logits.weight[n_known:] = weights.T.float()
    module.to_logits.bias[n_known:] = (bias - center @ weights).float()
    module.log_theta[n_known:] = theta.log().float()


@torch.no_grad()
def _fit_genes(model: Any, *, seed: int) -> None:
    """Fit biases and dispersions of the measured genes to the cells, with those of the trained model as prior.

    Studies differ most in how much of each gene they capture, and in how it varies. With the sums of
    counts ``x`` and means ``m`` of a gene, the bias changes by ``log((x + a) / (m + a))``, in a few rounds
    because genes share a softmax, and then ``1 / theta = (sum (x - m)^2 - m + b / theta) / (sum m^2 + b)``.
    """
    module, cells = model.module, model._cells(None)
    chosen = None
    if cells.n_obs > _FIT_CELLS:
        chosen = np.sort(np.random.default_rng(seed).choice(cells.n_obs, _FIT_CELLS, replace=False))
    for _ in range(_FIT_ROUNDS):
        total, expected, *_ = _gene_sums(module, cells, chosen)
        module.to_logits.bias += ((total + _PRIOR_COUNTS) / (expected + _PRIOR_COUNTS)).log().float()
    _, _, squares, excess = _gene_sums(module, cells, chosen)
    prior = _PRIOR_SQUARES * (-module.log_theta.double()).exp()
    inverse = (excess + prior) / (squares + _PRIOR_SQUARES)
    module.log_theta.copy_(-inverse.clamp(1e-3, 1e4).log())


def _gene_sums(module: Any, cells: Any, chosen: np.ndarray | None) -> torch.Tensor:
    """Return sums over the cells that measured a gene of x, m, m^2 and (x - m)^2 - m, float64, (4, n_vars)."""
    sums = torch.zeros(4, module.n_vars, dtype=torch.float64, device=module.device)
    for _, tensors in stream(module, cells, chosen, None, desc="Fitting genes"):
        _, outputs = module(tensors, compute_loss=False)
        measured = measured_genes(tensors)
        log_mean = log_mean_of_counts(outputs["logits"], module.log_library(tensors), measured=measured)
        x, mean = tensors[REGISTRY_KEYS.X_KEY].double(), log_mean.double().exp()
        for row, values in zip(sums, (x, mean, mean.square(), (x - mean).square() - mean), strict=True):
            row += (values if measured is None else values * measured).sum(dim=0)
    return sums


def _seen(tensors: dict[str, torch.Tensor], known: torch.Tensor) -> torch.Tensor:
    """Return the known genes that were measured, boolean, (n_vars,) or (n_obs, n_vars)."""
    measured = measured_genes(tensors)
    return known if measured is None else known & measured


def _start_frequencies(module: Any, cells: Any, known: torch.Tensor) -> None:
    """Add frequencies of new genes on the scale of the known ones, which stay."""
    frequencies = module.linear.frequencies
    total = torch.zeros(len(known), dtype=torch.float64, device=frequencies.device)
    depth = torch.zeros((), dtype=torch.float64, device=frequencies.device)
    for _, tensors in stream(module, cells, None, None, desc="Counting new genes"):
        counts, seen = tensors[REGISTRY_KEYS.X_KEY].double(), _seen(tensors, known)
        depth += ((counts * seen).sum(dim=1) / (frequencies * seen).sum(dim=-1)).sum()
        total += counts.sum(dim=0)
    frequencies[~known] = ((total[~known] + 0.5) / depth).float()
