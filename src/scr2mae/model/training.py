"""Training of a model: split, data module, plan, and the record of the run."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scr2mae._utils.compat import resolve_precision, torch_device
from scr2mae._utils.files import as_path
from scr2mae._utils.progress import no_progress
from scr2mae.data import CellDataModule, Split, split_cells
from scr2mae.data.backed import stays_on_disk
from scr2mae.data.columns import find_column, key_name
from scr2mae.data.donors import warn_about_copied_cells, warn_about_origin
from scr2mae.data.loaders import check_data_module, first_cells
from scr2mae.model.base import check_integer
from scr2mae.model.integration import IntegrationMixin
from scr2mae.model.provenance import describe_run
from scr2mae.model.scvi_words import understands_scvi
from scr2mae.nn.panels import CellPanels
from scr2mae.train import MaskedTrainingPlan, fit
from scr2mae.train.callbacks import CurriculumLog, expression_deciles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import LightningDataModule

# Share of a run over which weights are averaged; measured in docs/benchmarks/.
_AVERAGING = 0.1
# At three times the rate, the default network ends with the same likelihood after a third of the cells.
_LEARNING_RATES = {"linear+mlp": 3e-3, "mlp": 1e-3}
_N_SEEN = {"linear+mlp": 160_000, "mlp": 480_000}
# Cells, and counts of all genes, in the sample from which the linear path is fitted: at most 400 MB.
_START_CELLS, _START_COUNTS = 10_000, 100_000_000
_TRAIN_SIZE = 0.9
_WARM_EPOCHS, _WARM_RATE = 0.25, 1 / 3  # of a model that starts from a trained one


class TrainingMixin(IntegrationMixin):
    """``train`` and its parts."""

    @understands_scvi
    def train(
        self,
        max_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        batch_size: int = 128,
        split_key: str | Sequence[str] | bool | None = None,
        early_stopping: bool | None = None,
        seed: int | None = None,
        precision: str | int | None = "auto",
        counts_on: str = "auto",
        resume: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every_n_steps: int | None = None,
        steps_per_execution: int | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        datamodule: LightningDataModule | None = None,
        integration: bool = True,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model; a second call continues from the weights of the first.

        If the data were set up with ``batch_key``, their batches are then aligned in the embedding
        (:meth:`integrate`). A query model of :meth:`load_query_data` aligns its new batches and trains no
        weights unless ``max_epochs`` is given.

        Parameters
        ----------
        max_epochs
            Passes over the training cells. If None, from 33 for few cells to 6 for many; from 100 to 20 with
            ``encoder="mlp"``; a quarter of it for a model of :meth:`from_pretrained`.
        accelerator, devices
            As in :class:`lightning.pytorch.Trainer`.
        train_size, validation_size
            Fractions of cells; 0.9 by default, and all remaining cells for validation.
        batch_size
            Cells per mini-batch; each mini-batch has its own masking ratio.
        split_key
            Column of ``obs`` whose groups are kept together by the split. If None, use the registered donor
            column, or split individual cells if there is none; several columns together name a group; False
            splits individual cells, as in the paper.
        early_stopping
            Stop when the validation loss stops decreasing; by default only for a model of :meth:`from_pretrained`.
        seed
            Seed for splitting, shuffling and masking; defaults to the model's seed.
        precision
            ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``; ``"auto"`` uses bfloat16 for matrix products on
            hardware with native bfloat16 support. Any other value than ``"32-true"`` makes weights depend on
            the kind of hardware.
        counts_on
            Where to keep the counts during training: ``"device"``, ``"memory"`` or ``"disk"``. ``"auto"``
            uses the first option with enough space; ``"disk"`` only for a backed AnnData.
        resume
            Checkpoint, or ``checkpoint_dir`` of an earlier run, to continue from.
        checkpoint_dir
            Folder in which a checkpoint is written after every epoch.
        checkpoint_every_n_steps
            Number of mini-batches between additional checkpoints; if None, only one per epoch.
        steps_per_execution
            Mini-batches per Lightning iteration; more than one avoids most of the overhead of the loop for
            small networks and fast devices. Each mini-batch remains an optimizer step with the same result;
            checkpoints are written after the last one. If None, 16 unless something requires one mini-batch
            per iteration (a callback, a logger, several processes, accumulated or clipped gradients).
        plan_kwargs
            Arguments of :class:`scr2mae.train.MaskedTrainingPlan`: ``lr`` (3e-3 by default; 1e-3 with
            ``encoder="mlp"``), ``weight_decay``, ``eps``, ``optimizer``,
            ``averaging`` (a tenth of the run by default; None keeps the last weights, as in the paper), ``compile`` and
            ``compile_kwargs``.
        datasplitter_kwargs
            ``shuffle`` and ``external_indexing`` of :func:`scr2mae.data.split_cells`.
        datamodule
            Lightning data module that yields mini-batches under scvi-tools' keys, such as those of
            ``scvi.dataloaders``, instead of the model's data. Genes must be in the model's order, and batches
            must have the model's codes.
        integration
            Whether to align batches after training; not done for a ``datamodule``, whose cells the model does not have.
        trainer_kwargs
            Additional arguments of :class:`lightning.pytorch.Trainer`, such as ``logger``.

        Raises
        ------
        ValueError
            If an argument is out of range or there is nothing to train.
        FileNotFoundError
            If there is no checkpoint to resume from.
        NotADirectoryError
            If ``checkpoint_dir`` is a file.
        scr2mae.train.NonFiniteError
            If the loss or gradient was not finite for twenty steps in a row; the error message lists the
            cells. The model keeps its last finite weights and can be used.
        """
        if not any(p.requires_grad for p in self.module.parameters()):
            raise ValueError(
                "This query has no new category, so there is nothing to train; embed it as it is."
            )
        if max_epochs is not None:
            max_epochs = check_integer("max_epochs", max_epochs, smallest=1)
        # Convert NumPy integers, for Lightning and for the record of the run.
        batch_size = int(batch_size) if isinstance(batch_size, Integral) else batch_size
        devices = int(devices) if isinstance(devices, Integral) else devices
        train_size = _TRAIN_SIZE if train_size is None else train_size
        seed = check_integer("seed", self.seed if seed is None else seed, smallest=0)
        is_quiet = trainer_kwargs.get("enable_progress_bar") is False
        if integration and self.module.is_query and self.alignment_ is not None and max_epochs is None:
            with no_progress(is_quiet):
                self.integrate(seed=seed)
            return
        if checkpoint_dir is not None and as_path(checkpoint_dir).is_file():
            raise NotADirectoryError(f"{checkpoint_dir} is a file; checkpoints go into a folder.")
        obs_names = None
        if datamodule is not None:
            check_data_module(datamodule, self.spec)
            steps_per_execution = 1 if steps_per_execution is None else steps_per_execution
        else:
            split = {"train_size": train_size, "validation_size": validation_size}
            datamodule = self._data_module(
                self._split(split_key, seed=seed, **split, **(datasplitter_kwargs or {})),
                early_stopping=bool(early_stopping),
                batch_size=batch_size,
                seed=seed,
                counts_on=counts_on,
            )
            obs_names = self.adata.obs_names
        if early_stopping is None:
            early_stopping = self.is_warm_ and len(getattr(self.split_, "validation", ())) > 0
        self._standardize(datamodule, seed)
        if self.module.needs_start:
            self._start(datamodule, seed)
        plan = self._training_plan(seed, plan_kwargs or {})
        max_epochs = self._default_epochs(datamodule) if max_epochs is None else max_epochs
        arguments = {
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "train_size": train_size,
            "validation_size": validation_size,
            "split_key": split_key,
            "early_stopping": early_stopping,
            "precision": precision,
            "plan_kwargs": plan_kwargs,
            "datasplitter_kwargs": datasplitter_kwargs,
        }
        if not self.module.is_query:
            self.alignment_ = None
        about = describe_run(self, datamodule, seed=seed, resumed=resume is not None, train=arguments)
        try:
            self.trainer = fit(
                plan,
                datamodule,
                max_epochs=max_epochs,
                n_obs_epoch=_n_obs_epoch(datamodule),
                obs_names=obs_names,
                accelerator=accelerator,
                devices=devices,
                precision=resolve_precision(precision, torch_device(accelerator, "auto")),
                early_stopping=early_stopping,
                resume=resume,
                checkpoint_dir=checkpoint_dir,
                checkpoint_every_n_steps=checkpoint_every_n_steps,
                steps_per_execution=steps_per_execution,
                about=about,
                model=self,
                **self._trainer_arguments(plan, datamodule, trainer_kwargs),
            )
        finally:
            self._finish(plan)
        if integration and obs_names is not None and self._can_integrate():
            with no_progress(is_quiet):
                self.integrate(seed=seed)

    def _split(self, split_key: str | Sequence[str] | bool | None, **kwargs: Any) -> Split:
        """Split the model's cells by ``split_key``: None means the registered donor, False means cells."""
        if self.adata is None:
            raise ValueError("This model was loaded without data; load it with adata= to train it.")
        obs = self.adata.obs
        if split_key is True:
            raise ValueError(
                "split_key takes a column of adata.obs, None (the registered donor) or False (cells)."
            )
        key = self.registry["setup_args"].get("donor_key") if split_key is None else split_key or None
        groups = None if key is None else find_column(obs, key)
        warn_about_origin(groups, key, obs)
        name = None if key is None else key_name(key)
        return split_cells(self.adata.n_obs, groups=groups, key=name, **kwargs)

    def _data_module(
        self, split: Split, *, early_stopping: bool, counts_on: str, **kwargs: Any
    ) -> CellDataModule:
        """Read the model's own cells, and keep the split."""
        cells = self._cells(None, on_disk=stays_on_disk(self.adata, self.spec.layer, counts_on))
        if not cells.on_disk:
            warn_about_copied_cells(cells.counts, self.adata.obs_names)
        datamodule = CellDataModule(cells, split, counts_on=counts_on, **kwargs)
        self.keep_split(split)
        if early_stopping and not len(split.validation):
            raise ValueError("early_stopping=True needs validation cells; lower train_size.")
        return datamodule

    def _start(self, datamodule: Any, seed: int) -> None:
        """Fit the fixed components and the start values to a sample of the training cells."""
        n_obs = min(_START_CELLS, max(_START_COUNTS // self.module.n_vars, 1000))
        sample = list(first_cells(datamodule, n_obs, seed=seed))
        counts = torch.cat([tensors[REGISTRY_KEYS.X_KEY].float() for tensors in sample])
        log_library = torch.cat([self.module.log_library(tensors) for tensors in sample])
        panels = CellPanels.of(sample[0])
        if panels is not None:
            panels = panels._replace(of_cell=torch.cat([tensors["panel"] for tensors in sample]))
        module: Any = self.module
        module.start_from(counts, log_library, seed=seed, panels=panels)

    def _standardize(self, datamodule: Any, seed: int) -> None:
        """Fit mean and scale of the continuous covariates to the training cells of a first run."""
        if not self.spec.continuous or self.is_trained_ or self.module.is_query:
            return
        if isinstance(datamodule, CellDataModule):
            values = torch.from_numpy(datamodule.cells.continuous[datamodule.split.train])
        else:
            sample = first_cells(datamodule, _START_CELLS, seed=seed)
            values = torch.cat([tensors[REGISTRY_KEYS.CONT_COVS_KEY].float() for tensors in sample])
        layer: Any = self.module.standardize
        layer.fit(values)

    def _training_plan(self, seed: int, plan_kwargs: dict[str, Any]) -> MaskedTrainingPlan:
        """Return the training plan with the defaults of the network."""
        curriculum = None if self.module.is_query else self.curriculum
        rate = _LEARNING_RATES[self.init_params_["encoder"]]
        return MaskedTrainingPlan(
            self.module,
            ratio_schedule=self._ratio_schedule(seed),
            seed=seed,
            gradient_schedule=None if curriculum is None else curriculum.schedule,
            before=self.history_,
            **{"averaging": _AVERAGING, "lr": rate * _WARM_RATE if self.is_warm_ else rate, **plan_kwargs},
        )

    def _default_epochs(self, datamodule: Any) -> int:
        epochs = default_max_epochs(_n_obs_epoch(datamodule), _N_SEEN[self.init_params_["encoder"]])
        return max(1, round(epochs * _WARM_EPOCHS)) if self.is_warm_ else epochs

    def _trainer_arguments(
        self, plan: MaskedTrainingPlan, datamodule: Any, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Add arguments that follow from the data: whether there is validation, curves of the curriculum."""
        ours = datamodule if isinstance(datamodule, CellDataModule) else None
        given = kwargs.get("callbacks") or []
        callbacks = list(given) if isinstance(given, (list, tuple)) else [given]
        if plan.gradient_schedule is not None:
            mean = None if ours is None else np.asarray(ours.cells.counts.mean(axis=0)).ravel()
            callbacks.append(CurriculumLog(None if mean is None else expression_deciles(mean)))
        has_validation = ours is None or len(ours.split.validation) > 0
        return {
            **({} if has_validation else {"limit_val_batches": 0}),
            **kwargs,
            "callbacks": callbacks,
        }

    def _finish(self, plan: MaskedTrainingPlan) -> None:
        """Keep curves and record of a run, finished or interrupted."""
        self.module.eval()
        if plan.rows:
            run = self.module.runs_[-1]
            self.is_trained_ |= run["steps"] > run["skipped_steps"]
            self.history_ = plan.history
            self.runs_ = [*self.runs_, run]


def _n_obs_epoch(datamodule: Any) -> int:
    """Return the number of training cells of a data module; 0 if unknown."""
    if isinstance(datamodule, CellDataModule):
        return len(datamodule.split.train)
    return int(getattr(datamodule, "n_obs", 0))


def default_max_epochs(n_obs: int, n_seen: int = _N_SEEN["linear+mlp"]) -> int:
    """Return the number of epochs to see about ``n_seen`` cells, with ``n_obs`` clipped to 4,800 to 24,000."""
    return max(n_seen // 24_000, min(n_seen // 4_800, round(n_seen / max(n_obs, 1))))
