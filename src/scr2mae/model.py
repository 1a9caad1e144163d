"""The public class: set up, train, embed, impute, save."""

from __future__ import annotations

import logging
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from scr2mae import embed, hub, io, query, saved
from scr2mae._compat import torch_device
from scr2mae._precision import resolve_precision
from scr2mae.curriculum import Curriculum
from scr2mae.data import CellDataModule, CellSpec, Split, read_cells, split_cells, stays_on_disk
from scr2mae.data.foreign import check_data_module
from scr2mae.data.setup import make_actual, register
from scr2mae.masking import as_ratio_schedule
from scr2mae.module import R2MAEModule
from scr2mae.train import CurriculumLog, MaskedTrainingPlan, expression_deciles, fit, history, record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from lightning.pytorch import LightningDataModule

    from scr2mae.data import Cells
    from scr2mae.masking import RatioSchedule

__all__ = ["R2MAEModel"]

logger = logging.getLogger(__name__)

_AVERAGING = 0.1  # share of a run whose weights are averaged; measured on the documentation's benchmark page


class R2MAEModel(BaseModelClass):
    """Masked autoencoder of single-cell counts whose masking ratio is redrawn for every mini-batch.

    Parameters
    ----------
    adata
        Raw counts. Set up with :meth:`setup_anndata`, or not at all: then with that method's defaults.
    n_hidden, n_latent
        Width of the hidden layers and of the embedding.
    n_layers, n_layers_decoder
        Hidden layers of the encoder and of the decoder.
    mask_ratio
        Share of the genes hidden at a step: a float (a plain masked autoencoder), a pair ``(low, high)`` from
        which it is drawn anew for every mini-batch (R²MAE), or a schedule of :mod:`scr2mae.masking`.
    curriculum
        Learned weights on the loss: ``"cl"`` (from easy to hard), ``"cl_k0"`` (easy throughout), settings
        (:class:`scr2mae.curriculum.Curriculum`), or None.
    seed
        Seed of the initial weights, the masks and the order of cells. The global generators are left alone.
    registry
        Registry of a saved model, for a model without data; :meth:`load` passes it.

    Notes
    -----
    Method: Dong, Wang & Kluger, arXiv 2509.21650. The defaults suit 1,000 to 100,000 cells and are measured on
    the documentation's benchmark page; :meth:`paper` gives the paper's widths.

    Examples
    --------
    >>> import scr2mae
    >>> adata = scr2mae.datasets.simulate_donors(n_donors=6, n_cells_per_donor=20, n_genes=100)
    >>> scr2mae.R2MAEModel.setup_anndata(adata, batch_key="batch", donor_key="donor")
    >>> model = scr2mae.R2MAEModel(adata, n_hidden=16, n_latent=4)
    >>> model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    >>> adata.obsm["X_r2mae"] = model.get_latent_representation()
    >>> adata.obsm["X_r2mae"].shape
    (120, 4)
    """

    _module_cls = R2MAEModule

    def __init__(
        self,
        adata: AnnData | None = None,
        n_hidden: int = 256,
        n_latent: int = 64,
        n_layers: int = 1,
        *,
        n_layers_decoder: int = 1,
        mask_ratio: float | Sequence[float] | RatioSchedule = (0.1, 0.5),
        curriculum: str | Curriculum | None = None,
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        sizes = {
            "n_hidden": n_hidden,
            "n_latent": n_latent,
            "n_layers": n_layers,
            "n_layers_decoder": n_layers_decoder,
        }
        for name, value in sizes.items():
            check_whole_number(name, value, smallest=1)
        check_whole_number("seed", seed, smallest=0)
        self.curriculum = Curriculum.named(curriculum)
        self.mask_ratio = mask_ratio
        self._ratio_schedule(seed)
        if adata is not None:
            self._ensure_registered(adata)
        super().__init__(adata, registry=registry)
        self.init_params_ = {**{name: int(value) for name, value in sizes.items()}, "seed": int(seed)}
        self.split_: Split | None = None
        self.history_: history.History | None = None
        self.runs_: list[dict[str, Any]] = []
        self.n_new_categories_: list[int] | None = None
        self.module = self.build_module()
        self._model_summary_string = (
            f"R2MAEModel with {n_hidden} hidden units, {n_latent} latent dimensions, "
            f"{n_layers} + {n_layers_decoder} hidden layers, masking ratio {mask_ratio}."
        )

    @classmethod
    def paper(cls, adata: AnnData, **kwargs: Any) -> R2MAEModel:
        """Build a model of the paper's size: 1000 hidden units, 512 latent dimensions, two encoder layers.

        The widths are inferred from the authors' earlier code; the paper gives none. Train it with the paper's
        settings by ``model.train(50, batch_size=400, split_key=False)``.

        Parameters
        ----------
        adata
            Raw counts.
        kwargs
            Further arguments of the class.

        Returns
        -------
        The model, not trained yet.
        """
        return cls(adata, **{"n_hidden": 1000, "n_latent": 512, "n_layers": 2, **kwargs})

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        donor_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        check_counts: bool = True,
        **kwargs: Any,
    ) -> None:
        """Say where the raw counts and the covariates are.

        Parameters
        ----------
        adata
            Raw counts, cells by genes, dense or sparse, in memory or backed.
        layer
            Layer of raw counts; None for ``X``.
        batch_key
            Column of ``obs`` with the batch, which encoder and decoder are told.
        labels_key, donor_key
            Columns with cell type and donor: bookkeeping for splits and probes, never inputs of the network.
        size_factor_key
            Column that replaces the total count as library size.
        categorical_covariate_keys, continuous_covariate_keys
            Further columns that the network is told; continuous ones as they are, not standardised.
        check_counts
            Whether fractions are refused.
        kwargs
            ``source_registry``, the registry of a model to transfer from, and ``extend_categories``.

        Raises
        ------
        KeyError
            If a layer or column does not exist.
        ValueError
            If the counts are no raw counts, gene names repeat, or a covariate is missing.
        """
        arguments = cls._get_setup_method_args(**locals())
        cls.register_manager(register(adata, arguments, **kwargs))

    @classmethod
    def _ensure_registered(cls, adata: AnnData) -> None:
        """Register an AnnData that was never set up, or that is a copy or subset of one that was."""
        make_actual(adata)
        manager = cls._setup_adata_manager_store.get(adata.uns.get("_scvi_uuid"))
        if manager is not None and manager.adata is adata:
            return
        adata.uns.pop("_scvi_uuid", None)
        if manager is None:
            logger.info(
                "AnnData was not set up; taking raw counts from adata.X, no batch and no donor. "
                "Call R2MAEModel.setup_anndata first to choose otherwise."
            )
            cls.setup_anndata(adata)
        else:
            logger.info("AnnData is a copy or subset of one that was set up; setting it up alike.")
            cls.setup_anndata(adata, **manager.registry["setup_args"])

    def build_module(self) -> R2MAEModule:
        """Make the network; its weights depend on the seed alone."""
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
        """Make a network for cells, without a model around it.

        Parameters
        ----------
        spec
            What it reads.
        init_params
            Its widths, as ``model.init_params_`` has them.
        curriculum
            Settings of learned weights, or None.
        n_new_categories
            How many categories came with a query, or None.

        Returns
        -------
        The network, in evaluation mode.
        """
        return cls._module_cls(
            len(spec.var_names),
            n_categories=[len(categories) for _, categories in spec.categorical],
            n_new_categories=n_new_categories,
            n_continuous=len(spec.continuous),
            use_size_factor=spec.size_factor_key is not None,
            curriculum=curriculum,
            **{name: value for name, value in init_params.items() if name != "seed"},
        ).eval()

    def _ratio_schedule(self, seed: int) -> RatioSchedule:
        if self.curriculum is None:
            return as_ratio_schedule(self.mask_ratio, seed=seed)
        return self.curriculum.ratio_schedule(self.mask_ratio, seed=seed)

    @property
    def seed(self) -> int:
        """Seed of weights, masks and order of cells."""
        return self.init_params_["seed"]

    @property
    def spec(self) -> CellSpec:
        """What the model reads of an AnnData."""
        return CellSpec.from_registry(self.registry)

    def _cells(self, adata: AnnData | None, *, on_disk: bool = False) -> Cells:
        """Read the model's own data, or new data by name, without registering them."""
        if adata is None and self.adata is None:
            raise ValueError("This model was loaded without data; pass adata=.")
        return read_cells(self.adata if adata is None else adata, self.spec, on_disk=on_disk)

    def _trained_cells(self, adata: AnnData | None, indices: Any) -> tuple[Cells, np.ndarray | None]:
        self._check_if_trained(warn=False, message="The model is not trained yet; call model.train() first.")
        cells = self._cells(adata, on_disk=True)  # each is read once
        return cells, embed.positions(indices, cells.n_obs)

    def _split(self, split_key: str | bool | None, **kwargs: Any) -> Split:
        """Split the model's cells by ``split_key``: None means the registered donor, False means cells."""
        if self.adata is None:
            raise ValueError("This model was loaded without data; load it with adata= to train it.")
        obs = self.adata.obs
        if split_key is True:
            raise ValueError(
                "split_key takes a column of adata.obs, None (the registered donor) or False (cells)."
            )
        key = self.registry["setup_args"].get("donor_key") if split_key is None else split_key or None
        if key is not None and key not in obs:
            raise KeyError(
                f"No {key!r} in adata.obs to split by; choose one of {list(obs)}, or split_key=False."
            )
        return split_cells(self.adata.n_obs, groups=None if key is None else obs[key], key=key, **kwargs)

    def train(
        self,
        max_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float = 0.9,
        validation_size: float | None = None,
        batch_size: int = 128,
        split_key: str | bool | None = None,
        early_stopping: bool = False,
        seed: int | None = None,
        precision: str | int | None = "auto",
        counts_on: str = "auto",
        resume: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        datamodule: LightningDataModule | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train; a second call goes on from the weights of the first.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; None chooses by the number of cells.
        accelerator, devices
            As in :class:`lightning.pytorch.Trainer`.
        train_size, validation_size
            Shares of cells; validation takes the rest by default.
        batch_size
            Cells a mini-batch, each with its own masking ratio.
        split_key
            Column whose groups stay on one side of the split. None means the registered donor, or cells where there
            is none; False means cells, as in the paper.
        early_stopping
            Stop when the validation loss no longer falls.
        seed
            Seed of split, order and masks; None for the model's.
        precision
            As in :class:`lightning.pytorch.Trainer`; ``"auto"`` multiplies matrices in bfloat16 where the processor does
            that in hardware. Only ``"32-true"`` gives the same weights on every kind of processor.
        counts_on
            Where counts are while the network trains: ``"device"``, ``"memory"`` or ``"disk"``. ``"auto"`` takes the
            first of them where they fit, and the disk only if they are there (a backed AnnData).
        resume
            Checkpoint, or ``checkpoint_dir`` of an earlier run, to go on from.
        checkpoint_dir
            Folder that receives a checkpoint after every epoch.
        plan_kwargs
            Arguments of :class:`scr2mae.train.MaskedTrainingPlan`: ``lr``, ``weight_decay``, ``eps``, ``optimizer``,
            ``averaging`` (a tenth of the run by default; None keeps the last weights, as in the paper).
        datasplitter_kwargs
            ``shuffle`` and ``external_indexing`` of :func:`scr2mae.data.split_cells`.
        datamodule
            Lightning data module that yields mini-batches under scvi-tools' keys, such as those of ``scvi.dataloaders``,
            in place of the model's data: the model's genes in its order, batches numbered as the model numbers them.
        trainer_kwargs
            Further arguments of :class:`lightning.pytorch.Trainer`, such as ``logger``.

        Raises
        ------
        ValueError
            If an argument is out of range or there is nothing to train.
        FileNotFoundError
            If there is no checkpoint to resume from.
        NotADirectoryError
            If ``checkpoint_dir`` is a file.
        scr2mae.train.NonFiniteError
            If twenty steps in a row had a loss or gradient that is not finite; it names the cells. The model keeps the weights
            of before and can be used.
        """
        if not any(p.requires_grad for p in self.module.parameters()):
            raise ValueError(
                "This query has no new category, so there is nothing to train; embed it as it is."
            )
        if max_epochs is not None:
            check_whole_number("max_epochs", max_epochs, smallest=1)
        seed = self.seed if seed is None else seed
        check_whole_number("seed", seed, smallest=0)
        if checkpoint_dir is not None and Path(checkpoint_dir).is_file():
            raise NotADirectoryError(f"{checkpoint_dir} is a file; checkpoints go into a folder.")
        callbacks = list(trainer_kwargs.pop("callbacks", None) or [])
        gradient_schedule = None
        if self.curriculum is not None and not self.module.is_query:
            gradient_schedule = self.curriculum.schedule
        if datamodule is None:
            split = self._split(
                split_key,
                train_size=train_size,
                validation_size=validation_size,
                seed=seed,
                **(datasplitter_kwargs or {}),
            )
            cells = self._cells(None, on_disk=stays_on_disk(self.adata, self.spec.layer, counts_on))
            datamodule = CellDataModule(cells, split, batch_size=batch_size, seed=seed, counts_on=counts_on)
            self.keep_split(split)
            n_obs, obs_names = len(split.train), self.adata.obs_names
            if not len(split.validation):
                if early_stopping:
                    raise ValueError("early_stopping=True needs validation cells; lower train_size.")
                trainer_kwargs.setdefault("limit_val_batches", 0)
            if gradient_schedule is not None:
                callbacks.append(
                    CurriculumLog(expression_deciles(np.asarray(cells.counts.mean(axis=0)).ravel()))
                )
        else:
            check_data_module(datamodule, self.spec)
            n_obs, obs_names = int(getattr(datamodule, "n_obs", 0)), None
        plan = MaskedTrainingPlan(
            self.module,
            ratio_schedule=self._ratio_schedule(seed),
            seed=seed,
            gradient_schedule=gradient_schedule,
            before=self.history_,
            **{"averaging": _AVERAGING, **(plan_kwargs or {})},
        )
        max_epochs = max_epochs or default_max_epochs(n_obs)
        about = saved.describe_run(
            self,
            datamodule,
            seed=seed,
            resumed=resume is not None,
            train={
                "max_epochs": max_epochs,
                "batch_size": batch_size,
                "train_size": train_size,
                "validation_size": validation_size,
                "split_key": split_key,
                "early_stopping": early_stopping,
                "precision": precision,
                "plan_kwargs": plan_kwargs,
                "datasplitter_kwargs": datasplitter_kwargs,
            },
        )
        try:
            self.trainer = fit(
                plan,
                datamodule,
                max_epochs=max_epochs,
                n_obs_epoch=n_obs,
                obs_names=obs_names,
                accelerator=accelerator,
                devices=devices,
                precision=resolve_precision(precision, torch_device(accelerator, "auto")),
                early_stopping=early_stopping,
                resume=resume,
                checkpoint_dir=checkpoint_dir,
                callbacks=callbacks,
                **trainer_kwargs,
            )
        finally:
            self._finish(plan, about)

    def keep_split(self, split: Split) -> None:
        """Remember which cells train, validate and are left out.

        Parameters
        ----------
        split
            Positions of the cells on each side, of the data that the model was made with.
        """
        self.split_ = split
        self.train_indices_, self.validation_indices_, self.test_indices_ = (
            split.train,
            split.validation,
            split.test,
        )

    def _finish(self, plan: MaskedTrainingPlan, about: dict[str, Any]) -> None:
        """Take over what a run, whole or broken off, has learned, and what it was."""
        self.module.eval()
        if plan.rows:
            self.is_trained_ = True
            self.history_ = plan.history
            self.runs_ = [*self.runs_, record.seal({**plan.run, **about})]

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
        *,
        precision: str | int | None = "32-true",
        out: Any = None,
    ) -> np.ndarray:
        """Embed cells; nothing is masked, and each embedding depends on its cell alone.

        Parameters
        ----------
        adata
            Raw counts; None for the model's own. Genes may come in any order and some may be absent: they are
            treated as masked.
        indices
            Positions of the cells to embed, or a boolean mask; None for all.
        batch_size
            Cells at a time.
        precision
            ``"32-true"``, or ``"bf16-mixed"``: several times faster where the processor multiplies bfloat16 in hardware, and
            within 3 % of each dimension's standard deviation; ``"auto"`` chooses it there.
        out
            Array that receives the embedding, slice by slice: of zarr, HDF5 or NumPy, shape ``(n_obs, n_latent)``. None
            makes a new one in memory.

        Returns
        -------
        float32, shape ``(n_obs, n_latent)``; ``out`` where it is given.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If too few genes are shared, or a batch is unknown.
        MemoryError
            If there is no room for the embedding, and no ``out``.
        """
        cells, where = self._trained_cells(adata, indices)
        return embed.latent(
            self.module, cells, indices=where, batch_size=batch_size, precision=precision, out=out
        )

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        transform_batch: str | int | Sequence[str | int] | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | str = 1.0,
        batch_size: int | None = None,
        return_numpy: bool = False,
    ) -> pd.DataFrame | np.ndarray:
        """Decode cells to expression, for all genes of the reference, measured in the cell or not.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        transform_batch
            Batch, or batches to average over, that cells are decoded as; None for their own.
        gene_list
            Genes to return; None for all.
        library_size
            What a cell's genes add up to, or ``"observed"`` (also ``"latent"``, scvi-tools' word) for the cell's own
            depth: measured genes then add up to its library size and imputed genes come on top.
        return_numpy
            Return an array; else a frame with cell and gene names.

        Returns
        -------
        Shape ``(n_obs, n_genes)``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If a gene or a batch is unknown.
        ValueError
            If ``library_size`` is another word.
        MemoryError
            If there is no room for the result.
        """
        is_known = library_size in ("observed", "latent")
        if not is_known and (isinstance(library_size, str) or not 0 < library_size < np.inf):
            raise ValueError(
                f"library_size must be a number above 0, 'observed' or 'latent', got {library_size!r}."
            )
        spec = self.spec
        genes = embed.gene_positions(spec, gene_list)
        codes = embed.batch_codes(spec, transform_batch)
        cells, where = self._trained_cells(adata, indices)
        values = embed.normalized_expression(
            self.module,
            cells,
            genes=genes,
            batches=codes,
            library_size=None if isinstance(library_size, str) else float(library_size),
            indices=where,
            batch_size=batch_size,
        )
        if return_numpy:
            return values
        names = (self.adata if adata is None else adata).obs_names
        return pd.DataFrame(
            values, index=names if where is None else names[where], columns=spec.var_names[genes]
        )

    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> dict[str, float]:
        """Mean negative log-likelihood of a cell's measured counts, in nats, nothing masked.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.

        Returns
        -------
        ``{"reconstruction_loss": mean over cells of the sum over genes}``, as scvi-tools reports it.
        """
        cells, where = self._trained_cells(adata, indices)
        error = embed.reconstruction_error(self.module, cells, indices=where, batch_size=batch_size)
        return {"reconstruction_loss": float(error.mean())}

    def get_masked_reconstruction(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        ratios: Sequence[float] = (0.1, 0.2, 0.3, 0.5, 0.7),
        seed: int = 0,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Hide genes and measure how well the others predict them (the paper's Tables 7 and 8).

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`; ``indices=model.validation_indices`` for unseen cells.
        ratios
            Shares of the genes to hide.
        seed
            Which genes are hidden: the same for every model and cell.

        Returns
        -------
        One row a ratio: ``pearson`` (mean over cells of the correlation over hidden genes between predicted and
        observed log-normalised expression) and ``nll`` (mean negative log-likelihood of a hidden count, nats).
        """
        cells, where = self._trained_cells(adata, indices)
        rows = []
        for ratio in ratios:
            pearson, nll = embed.masked_reconstruction(
                self.module, cells, ratio=ratio, seed=seed, indices=where, batch_size=batch_size
            )
            rows.append({"ratio": ratio, "pearson": float(np.nanmean(pearson)), "nll": float(nll.mean())})
        return pd.DataFrame(rows).set_index("ratio")

    def get_curriculum_weights(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Loss weight of each gene at each masking ratio, averaged over cells.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.

        Returns
        -------
        Genes by ratios; rows sum to the number of ratios, columns to the number of genes.

        Raises
        ------
        ValueError
            If the model was made without a curriculum.
        """
        if self.curriculum is None:
            raise ValueError("This model has no curriculum; make it with curriculum='cl' or 'cl_k0'.")
        cells, where = self._trained_cells(adata, indices)
        weights = embed.curriculum_weights(self.module, cells, indices=where, batch_size=batch_size)
        schedule = self._ratio_schedule(self.seed)
        values = getattr(schedule, "values", range(self.curriculum.n_ratios))
        return pd.DataFrame(weights, index=self.spec.var_names, columns=pd.Index(values, name="ratio"))

    @staticmethod
    def prepare_query_anndata(  # type: ignore[override]
        adata: AnnData,
        reference_model: R2MAEModel | str | Path,
        return_reference_var_names: bool = False,
        inplace: bool = True,
        *,
        min_shared: float = 0.1,
    ) -> AnnData | pd.Index | None:
        """Align the genes of new data with a reference by name, Ensembl version suffixes aside.

        Parameters
        ----------
        adata
            New data.
        reference_model
            A model, or the folder of one.
        return_reference_var_names
            Return the reference's gene names and do nothing else.
        inplace
            Change ``adata``; else return a new AnnData.
        min_shared
            Smallest share of the reference's genes that must be there.

        Returns
        -------
        None, or what was asked for. Absent genes become empty sparse columns, False in
        ``var["scr2mae_measured"]``, and are treated as masked.

        Raises
        ------
        ValueError
            If gene names repeat, or fewer than ``min_shared`` are shared.
        """
        if return_reference_var_names:
            return pd.Index(query.reference_genes(reference_model))
        aligned = query.align_anndata(adata, reference_model, min_shared=min_shared)
        if not inplace:
            return aligned
        adata._init_as_actual(aligned)
        return None

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData,
        reference_model: R2MAEModel | str | Path,
        *,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> R2MAEModel:
        """Make a model that also knows the batches of new data; only their weights are left to train.

        Parameters
        ----------
        adata
            New data, genes aligned by :meth:`prepare_query_anndata`, columns named as in the reference.
        reference_model
            A trained model, or the folder of one; it is not changed.
        accelerator, device
            Where the new model goes.

        Returns
        -------
        The model; cells of the reference embed in it as before, bit for bit, before and after it is trained.

        Raises
        ------
        ValueError
            If genes are not aligned, or the reference was made without a ``batch_key``.
        """
        place = torch_device(accelerator, device)
        reference = reference_model if isinstance(reference_model, cls) else cls.load(reference_model)  # type: ignore[arg-type]
        model = query.grow(adata, reference)
        model.to_device(place)
        return model

    def save(  # type: ignore[override]
        self, dir_path: str | Path, *, overwrite: bool = False
    ) -> None:
        """Save the model as a folder of safetensors and JSON.

        Parameters
        ----------
        dir_path
            Folder to make.
        overwrite
            Whether a folder that exists may be written to; until the last moment it holds the old model, then the new.

        Raises
        ------
        FileExistsError
            If the folder is not empty and ``overwrite`` is False.
        """
        tensors, metadata = saved.describe(self)
        io.write_model(dir_path, tensors, metadata, overwrite=overwrite)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> R2MAEModel:
        """Load a saved model. Nothing is unpickled.

        Parameters
        ----------
        dir_path
            Its folder.
        adata
            Data to attach, genes as in the model; None for a model that embeds what it is given.
        accelerator, device
            Where the model goes.

        Returns
        -------
        The model, ready to embed.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If the folder is damaged or foreign, or the genes of ``adata`` are not the model's.
        """
        place = torch_device(accelerator, device)
        model = saved.restore(cls, *io.read_model(dir_path), adata=adata, place=dir_path)
        model.to_device(place)
        return model

    @staticmethod
    def load_registry(dir_path: str | Path) -> dict[str, Any]:  # type: ignore[override]
        """Read how the data of a saved model were set up. Nothing is unpickled.

        Parameters
        ----------
        dir_path
            Its folder.

        Returns
        -------
        The registry, as ``model.registry``.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If the folder is damaged or foreign.
        """
        return io.read_metadata(dir_path)["registry"]

    @staticmethod
    def view_setup_args(dir_path: str | Path) -> None:  # type: ignore[override]
        """Print the arguments of :meth:`setup_anndata` that the data of a saved model were set up with.

        Parameters
        ----------
        dir_path
            Its folder.
        """
        AnnDataManager.view_setup_method_args(io.read_metadata(dir_path)["registry"])

    @classmethod
    def convert_legacy_save(cls, *args: Any, **kwargs: Any) -> None:
        """Refuse: there are no folders of this class in scvi-tools' old layout, which is a pickle.

        Parameters
        ----------
        args, kwargs
            Not looked at.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            f"{cls.__name__} was never saved in scvi-tools' old layout, and reading that would unpickle it; "
            "model folders of every version are read by load()."
        )

    def push_to_hub(self, repo: str, **kwargs: Any) -> str:
        """Upload the model to the Hugging Face hub, with a card; see :func:`scr2mae.hub.push_to_hub`.

        Parameters
        ----------
        repo
            ``"owner/name"``.
        kwargs
            ``private``, ``revision``, ``commit_message``, ``license``, ``group_names``, ``card`` and ``token``.

        Returns
        -------
        Hash of the commit.
        """
        return hub.push_to_hub(self, repo, **kwargs)

    @classmethod
    def from_hub(cls, repo: str, *, revision: str | None = None, **kwargs: Any) -> R2MAEModel:
        """Load a model from the Hugging Face hub. Nothing is unpickled; see :func:`scr2mae.hub.from_hub`.

        Parameters
        ----------
        repo
            ``"owner/name"``.
        revision
            Branch, tag or commit; None for ``main``.
        kwargs
            ``adata``, ``accelerator``, ``device`` and ``token``.

        Returns
        -------
        The model, ready to embed.
        """
        return hub.from_hub(cls, repo, revision=revision, **kwargs)

    def export_scvi(self, dir_path: str | Path, *, overwrite: bool = False) -> None:
        """Write ``model.pt``, a pickle in scvi-tools' layout; see :func:`scr2mae.hub.export_scvi`.

        Parameters
        ----------
        dir_path
            Folder that receives the file.
        overwrite
            Whether a file that is there is replaced.
        """
        hub.export_scvi(self, dir_path, overwrite=overwrite)


def check_whole_number(name: str, value: Any, *, smallest: int) -> None:
    """Refuse what is no whole number, or too small a one.

    Raises
    ------
    TypeError
        If it is of another kind.
    ValueError
        If it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    if value < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value}.")


def default_max_epochs(n_obs: int) -> int:
    """Epochs for a number of training cells: about 480,000 cells seen in all, but 20 to 100 passes."""
    return max(20, min(100, round(480_000 / max(n_obs, 1))))
