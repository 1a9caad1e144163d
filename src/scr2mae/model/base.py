"""Base of the model's parts: the registered data and the network."""

from __future__ import annotations

import hashlib
import logging
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from scvi import settings
from scvi.model.base import BaseModelClass

from scr2mae._utils.compat import check_device, single_thread_after_fork
from scr2mae.data import CellSpec, read_cells
from scr2mae.data.backed import BackedCounts
from scr2mae.data.containers import check_anndata
from scr2mae.data.counts import warn_about_binary
from scr2mae.data.setup import check_foreign_setup, is_current, make_actual, register
from scr2mae.masking import as_ratio_schedule
from scr2mae.model.scvi_words import missing_method, understands_scvi
from scr2mae.nn.curriculum import Curriculum
from scr2mae.nn.linear_mlp import LinearMLPModule
from scr2mae.nn.module import R2MAEModule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scr2mae.data import Cells, Split
    from scr2mae.masking import RatioSchedule
    from scr2mae.model.alignment import Alignment
    from scr2mae.train.provenance import History

logger = logging.getLogger(__name__)

ENCODERS: dict[str, type[R2MAEModule]] = {"linear+mlp": LinearMLPModule, "mlp": R2MAEModule}
"""Networks by the name of their encoder."""

_DEFAULTS = {
    "linear+mlp": {"n_latent": 160, "n_layers_decoder": 0},
    "mlp": {"n_latent": 64, "n_layers_decoder": 1},
}

NOT_TRAINED = "The model is not trained yet; call model.train() first."
_NOT_ENCODER = ("decoder.", "to_logits.", "log_theta", "curriculum.")
_ALIGNED_TO = ("means", "masses", "covariance")  # the same for batches that a query adds


class CellModel(BaseModelClass):
    """Registered cells and a network that fits them."""

    _module_cls = R2MAEModule

    @understands_scvi
    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        n_hidden: int = 256,
        n_latent: int | None = None,
        n_layers: int = 1,
        encoder: str = "linear+mlp",
        n_layers_decoder: int | None = None,
        mask_ratio: float | Sequence[float] | RatioSchedule = (0.1, 0.5),
        curriculum: str | Curriculum | None = None,
        seed: int | None = None,
        registry: dict[str, Any] | None = None,
    ) -> None:
        if encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {list(ENCODERS)}, got {encoder!r}.")
        defaults = _DEFAULTS[encoder]
        if seed is None:
            seed = settings.seed or 0
        n_latent = defaults["n_latent"] if n_latent is None else n_latent
        n_layers_decoder = defaults["n_layers_decoder"] if n_layers_decoder is None else n_layers_decoder
        sizes = {
            "n_hidden": check_integer("n_hidden", n_hidden, smallest=1),
            "n_latent": check_integer("n_latent", n_latent, smallest=1),
            "n_layers": check_integer("n_layers", n_layers, smallest=1),
            "n_layers_decoder": check_integer("n_layers_decoder", n_layers_decoder, smallest=0),
        }
        seed = check_integer("seed", seed, smallest=0)
        self.curriculum = Curriculum.named(curriculum)
        self.mask_ratio = mask_ratio
        self._ratio_schedule(seed)
        if adata is not None:
            self._ensure_registered(adata)
        if registry is not None and "check_counts" not in registry.get("setup_args", {}):
            raise ValueError(
                f"registry= is of {registry.get('model_name')}, set up by another class; pass adata=, or the registry of a "
                f"{type(self).__name__}."
            )
        super().__init__(adata, registry=registry)
        self.init_params_: dict[str, Any] = {**sizes, "encoder": encoder, "seed": seed}
        self.split_: Split | None = None
        self.history_: History | None = None
        self.runs_: list[dict[str, Any]] = []
        self.n_new_categories_: list[int] | None = None
        self.alignment_: Alignment | None = None
        self.is_warm_ = False
        self.module = self.build_module()
        self._model_summary_string = (
            f"R2MAEModel with encoder {encoder!r}, {n_hidden} hidden units, {n_latent} latent dimensions, "
            f"{n_layers} + {n_layers_decoder} hidden layers, masking ratio {mask_ratio}."
        )

    @classmethod
    @understands_scvi
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        *,
        donor_key: str | Sequence[str] | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: str | Sequence[str] | None = None,
        continuous_covariate_keys: str | Sequence[str] | None = None,
        check_counts: bool = True,
        use_raw: bool = False,
        study_key: str | None = None,
        measured_key: str | None = None,
        infer_measured: bool = False,
        **kwargs: Any,
    ) -> None:
        """Register the raw counts and the covariates.

        Parameters
        ----------
        adata
            Raw counts, cells by genes, dense or sparse, in memory or backed.
        layer
            Layer of raw counts; None for ``X``.
        batch_key
            Column of ``obs`` with the batch, an input of encoder and decoder.
        labels_key, donor_key
            Columns with cell type and donor, for splits and probes; never inputs of the network. Several
            columns together name a donor: ``["study", "donor"]``.
        size_factor_key
            Column with the library size; if None, the total count is used.
        categorical_covariate_keys, continuous_covariate_keys
            Additional inputs to the network; continuous ones are standardized over the training cells.
        check_counts
            Whether to raise an error if counts are not integers.
        use_raw
            Whether to take the counts of the genes of ``adata`` from ``adata.raw``, as in files of CELLxGENE;
            they are put into ``layers["scr2mae_raw"]``, and read from ``raw`` of new data. For all genes of
            raw, pass ``adata.raw.to_adata()`` instead.
        study_key
            Column with the study, if studies have measured different genes. Not an input to the network: a
            gene that a study has not measured is masked in its cells and never scored. Detected automatically
            if :func:`scr2mae.data.join_studies` or ``scr2mae prepare --join outer`` made the data.
        measured_key
            Table in ``varm`` with a boolean column per study, True for the genes that it has measured; None for
            ``"scr2mae_measured"`` if there is one.
        infer_measured
            Whether, without a table, a gene without counts in a study but with counts in another is treated as
            not measured.
        kwargs
            ``source_registry``, the registry of a model to transfer from, and ``extend_categories``, whether to add
            categories that this registry lacks instead of raising an error.

        Raises
        ------
        KeyError
            If a layer or column does not exist.
        ValueError
            If ``X`` or the layer does not contain raw counts, gene names are not unique, a covariate has
            missing values, or a study has counts of a gene that it has not measured.
        """
        arguments = cls._get_setup_method_args(**locals())
        cls.register_manager(register(adata, arguments, **kwargs))

    def __getattr__(self, name: str) -> Any:
        """Raise AttributeError, with advice for methods of scvi-tools."""
        known = missing_method(name)
        raise AttributeError(known or f"{type(self).__name__!r} object has no attribute {name!r}")

    @classmethod
    def _ensure_registered(cls, adata: AnnData) -> None:
        """Register an AnnData that was not set up, or that is a copy or subset of one that was."""
        check_anndata(adata)
        make_actual(adata)
        manager = cls._setup_adata_manager_store.get(adata.uns.get("_scvi_uuid"))
        if manager is not None and manager.adata is adata and is_current(manager, adata):
            return
        if manager is None:
            check_foreign_setup(adata, cls)
        adata.uns.pop("_scvi_uuid", None)
        if manager is None:
            logger.info(
                "AnnData was not set up; taking raw counts from adata.X, no batch and no donor. "
                "Call R2MAEModel.setup_anndata first to choose otherwise."
            )
            cls.setup_anndata(adata)
        else:
            logger.info(
                "AnnData is a copy or subset, or was changed after its setup; setting it up in the same way."
            )
            cls.setup_anndata(adata, **manager.registry["setup_args"])

    def build_module(self) -> R2MAEModule:
        """Build the network; its initial weights depend only on the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return self.module_for(
                self.spec,
                self.init_params_,
                curriculum=self.curriculum,
                n_new_categories=self.n_new_categories_,
            )

    @classmethod
    def module_for(
        cls,
        spec: CellSpec,
        init_params: dict[str, Any],
        *,
        curriculum: Curriculum | None,
        n_new_categories: list[int] | None,
    ) -> R2MAEModule:
        """Build the network without a model instance.

        Parameters
        ----------
        spec
            Genes and columns that it reads.
        init_params
            Layer sizes, as in ``model.init_params_``.
        curriculum
            Settings of learned weights, or None.
        n_new_categories
            Number of new categories per covariate in the query, or None.

        Returns
        -------
        The network, in evaluation mode.
        """
        return ENCODERS[init_params["encoder"]](
            len(spec.var_names),
            n_categories=[len(categories) for _, categories in spec.categorical],
            n_new_categories=n_new_categories,
            n_continuous=len(spec.continuous),
            use_size_factor=spec.size_factor_key is not None,
            curriculum=curriculum,
            **{name: value for name, value in init_params.items() if name not in ("encoder", "seed")},
        ).eval()

    def to_device(self, device: torch.device | int | str) -> None:
        """Move the network to a device.

        Parameters
        ----------
        device
            Name such as ``"cpu"`` or ``"cuda:0"``, or the index of a GPU.

        Raises
        ------
        ValueError
            If this machine lacks it.
        """
        self.module.to(check_device(device))

    def _ratio_schedule(self, seed: int) -> RatioSchedule:
        if self.curriculum is None:
            return as_ratio_schedule(self.mask_ratio, seed=seed)
        return self.curriculum.ratio_schedule(self.mask_ratio, seed=seed)

    @property
    def seed(self) -> int:
        """Seed for weight initialization, masking and shuffling."""
        return self.init_params_["seed"]

    @property
    def spec(self) -> CellSpec:
        """Genes and columns of an AnnData that the model reads."""
        return CellSpec.from_registry(self.registry)

    @property
    def fingerprint(self) -> str:
        """Hash of genes, encoder and alignment, equal for models with equal embeddings.

        A query model has the fingerprint of its reference: rows of covariates and of aligned batches are left out.
        """
        return self.embedding_fingerprint()

    def embedding_fingerprint(self, *, integrated: bool | None = None) -> str:
        """Return the fingerprint of the embedding with or without the alignment of batches.

        Parameters
        ----------
        integrated
            As in :meth:`get_latent_representation`.
        """
        digest = hashlib.sha256("\n".join(self.spec.var_names).encode())
        parts = {
            name: value
            for name, value in self.module.state_dict().items()
            if ".tables." not in name and not name.startswith(_NOT_ENCODER)
        }
        if self.alignment_ is not None and integrated is not False:
            parts |= {f"alignment.{name}": getattr(self.alignment_, name) for name in _ALIGNED_TO}
        for name, value in sorted(parts.items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _cells(self, adata: AnnData | None, *, on_disk: bool = False) -> Cells:
        """Read the model's own data, or new data by gene name without registering them."""
        single_thread_after_fork()
        if adata is None and self.adata is None:
            raise ValueError("This model was loaded without data; pass adata=.")
        cells = read_cells(self.adata if adata is None else adata, self.spec, on_disk=on_disk)
        if adata is not None and not isinstance(cells.counts, BackedCounts):
            warn_about_binary(cells.counts.data.max(initial=0), self.spec.layer, adata)
        return cells

    def keep_split(self, split: Split) -> None:
        """Set the split of the model's cells.

        Parameters
        ----------
        split
            Indices of the cells on each side.
        """
        self.split_ = split
        self.train_indices_, self.validation_indices_ = split.train, split.validation
        self.test_indices_ = split.test


def check_integer(name: str, value: Any, *, smallest: int) -> int:
    """Return a value as int; raise unless it is an integer >= ``smallest``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value}.")
    return int(value)
