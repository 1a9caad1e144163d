"""Accept, rename or refuse arguments and methods of scvi-tools; errors say what to use instead.

``ARGUMENTS`` and ``METHODS`` list all of them; the page "Coming from scVI" shows both.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from typing import Any, TypeVar

from lightning.pytorch import Trainer

__all__ = ["ARGUMENTS", "METHODS", "Word", "missing_method", "understands_scvi"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Word:
    """Rule for handling an argument of scvi-tools.

    Values in ``same`` match what this package does anyway, so they are accepted and dropped. With
    ``any_value``, all values are. ``into`` names the argument that receives the value, such as
    ``"plan_kwargs.lr"`` for an entry of a mapping, and ``values`` maps values to those used here. Without
    ``into``, any other value raises an error, in which ``reason`` says why or what to use instead.
    """

    same: tuple[Any, ...] = ()
    reason: str = ""
    into: str | None = None
    values: tuple[tuple[Any, Any], ...] = ()
    any_value: bool = False


_NO_POSTERIOR = "an embedding is a point without a posterior, so there is nothing to sample"
_NO_KL = "the loss has no KL term"
_PLAN = "pass optimizer settings as plan_kwargs={'lr': ...}, and other settings as arguments of train"
_SCHEDULE = "use plan_kwargs={'learning_rate': scr2mae.train.LearningRateSchedule(...)}"
_DEVICE = "use accelerator='gpu' or 'cpu', and devices="
_FOLDER = "a model is saved as a folder; pass its path as dir_path"
_FROZEN = "only the weights of new categories are trained, so that embeddings stay comparable"

_SAMPLES = {
    "n_samples": Word((1, None), _NO_POSTERIOR),
    "n_samples_overall": Word((None,), _NO_POSTERIOR),
    "weights": Word((None, "uniform"), _NO_POSTERIOR),
    "give_mean": Word((True,), _NO_POSTERIOR),
    "return_mean": Word(
        (True,),
        "use get_masked_reconstruction, or get_reconstruction_error(return_mean=False) for values per cell",
    ),
    "return_dist": Word((False,), _NO_POSTERIOR),
    "mc_samples": Word(any_value=True),
    "silent": Word(any_value=True),
}

ARGUMENTS: dict[str, dict[str, Word]] = {
    "__init__": {
        "gene_likelihood": Word(("nb",), "counts are negative binomial with one dispersion per gene"),
        "dispersion": Word(("gene",), "each gene has one dispersion"),
        "latent_distribution": Word(("normal",), "an embedding is a point with unrestricted coordinates"),
        "dropout_rate": Word((0, 0.0), "masking regularizes the network; set mask_ratio="),
        "use_observed_lib_size": Word(
            (True,), "the library size is the total count; pass size_factor_key to setup_anndata"
        ),
        "use_size_factor_key": Word((False, None), "pass size_factor_key to setup_anndata"),
        "encode_covariates": Word((True,), "the encoder and the decoder read the covariates"),
        "deeply_inject_covariates": Word((False,), "only the first layer reads the covariates"),
        "use_batch_norm": Word(("both", True), "the encoder and the decoder use batch normalization"),
        "use_layer_norm": Word(("none", False), "the encoder and the decoder use batch normalization"),
        "batch_representation": Word(("one-hot",), "each batch has its own row of weights"),
    },
    "setup_anndata": {
        "copy": Word((False,), "pass adata.copy() to setup_anndata"),
        "sample_key": Word((None,), "use donor_key"),
        "indices_key": Word((None,), "use adata.obs_names"),
        "unlabeled_category": Word((None,), "training does not use labels; leave unknown ones as NaN"),
        "protein_expression_obsm_key": Word((None,), "proteins are not modeled"),
    },
    "train": {
        "lr": Word(into="plan_kwargs.lr"),
        "learning_rate": Word(into="plan_kwargs.lr"),
        "n_epochs": Word(into="max_epochs"),
        "epochs": Word(into="max_epochs"),
        "callback": Word(into="callbacks"),
        "gpus": Word((None,), _DEVICE),
        "frequency": Word((None,), "use check_val_every_n_epoch"),
        "lr_factor": Word((None,), _SCHEDULE),
        "lr_patience": Word((None,), _SCHEDULE),
        "lr_threshold": Word((None,), _SCHEDULE),
        "lr_min": Word((None,), _SCHEDULE),
        "num_workers": Word((None, 0), "counts are read without worker processes"),
        "pin_memory": Word(any_value=True),
        "drop_last": Word((False,), "all training cells are used"),
        "weight_decay": Word(into="plan_kwargs.weight_decay"),
        "eps": Word(into="plan_kwargs.eps"),
        "optimizer": Word(into="plan_kwargs.optimizer"),
        "shuffle_set_split": Word(into="datasplitter_kwargs.shuffle"),
        "external_indexing": Word(into="datasplitter_kwargs.external_indexing"),
        "ckpt_path": Word((None,), into="resume"),
        "use_gpu": Word((None,), _DEVICE),
        "load_sparse_tensor": Word(any_value=True),
        "simple_progress_bar": Word(any_value=True),
        "progress_bar_refresh_rate": Word(any_value=True),
        "check_val_every_n_epoch": Word((None,), into="check_val_every_n_epoch"),
        "early_stopping_monitor": Word(
            into="early_stopping_monitor",
            values=(
                ("elbo_validation", "validation_loss"),
                ("reconstruction_loss_validation", "validation_loss"),
            ),
        ),
        "early_stopping_warmup_epochs": Word((0,), "use early_stopping_patience"),
        "plan_config": Word((None,), _PLAN),
        "trainer_config": Word((None,), _PLAN),
        "train_config": Word((None,), _PLAN),
        "save_best": Word(
            (None, False), "use early_stopping=True or callbacks=[ModelCheckpoint(dirpath=...)]"
        ),
        "n_epochs_kl_warmup": Word((None,), _NO_KL),
        "n_steps_kl_warmup": Word((None,), _NO_KL),
        "max_kl_weight": Word((1.0,), _NO_KL),
        "min_kl_weight": Word((0.0,), _NO_KL),
        "reduce_lr_on_plateau": Word((False,), _SCHEDULE),
        "lr_scheduler_metric": Word((None,), _SCHEDULE),
        "adversarial_classifier": Word(
            (None, False), "there is no adversarial training; the network reads the batch"
        ),
    },
    "get_latent_representation": _SAMPLES,
    "get_normalized_expression": _SAMPLES,
    "get_likelihood_parameters": {**_SAMPLES, "give_mean": Word((True, False))},
    "get_reconstruction_error": {name: word for name, word in _SAMPLES.items() if name != "return_mean"},
    "posterior_predictive_sample": {"silent": Word(any_value=True)},
    "save": {
        "prefix": Word((None, ""), _FOLDER),
        "legacy_mudata_format": Word((False,), "a model has a single AnnData"),
        "datamodule": Word((None,), "a model is saved without its data module"),
    },
    "load": {
        "prefix": Word((None, ""), _FOLDER),
        "use_gpu": Word((None,), _DEVICE),
        "backup_url": Word((None,), "use from_hub"),
        "datamodule": Word((None,), "load the model, then call train(datamodule=...)"),
        "allowed_classes_names_list": Word((None,), "call load on the class that saved the model"),
    },
    "load_query_data": {
        "inplace_subset_query_vars": Word((False,), "call prepare_query_anndata(adata, model) first"),
        "use_gpu": Word((None,), _DEVICE),
        "unfrozen": Word((False,), _FROZEN),
        "freeze_expression": Word((True,), _FROZEN),
        "freeze_decoder_first_layer": Word((True,), _FROZEN),
        "freeze_batchnorm_encoder": Word((True,), _FROZEN),
        "freeze_batchnorm_decoder": Word((True,), _FROZEN),
        "freeze_dropout": Word(any_value=True),
        "freeze_classifier": Word(any_value=True),
        "registry": Word((None,), "pass the model or its folder"),
        "datamodule": Word((None,), "pass an AnnData"),
    },
}  # fmt: skip
"""Arguments of scvi-tools that the methods of this package do not have, by method."""

METHODS: dict[str, str] = {
    "differential_expression": (
        "there is no posterior to sample from, and cells of one donor are not independent. Sum the counts "
        "for each donor and cell type (pseudobulk), then test them with edgeR or PyDESeq2: "
        "https://www.sc-best-practices.org/conditions/differential_gene_expression.html"
    ),
    "get_elbo": "there is no evidence bound; use history['validation_loss'] or get_reconstruction_error()",
    "get_marginal_ll": (
        "there is no posterior to integrate over; use get_masked_reconstruction(), which gives the "
        "likelihood of masked genes"
    ),
    "get_feature_correlation_matrix": (
        "apply numpy.corrcoef to the result of get_normalized_expression() or posterior_predictive_sample()"
    ),
    "get_latent_library_size": "the library size of a cell is its total count, adata.X.sum(axis=1)",
    "get_aggregated_posterior": "there is no posterior; embed the cells with get_latent_representation()",
    "minify_adata": (
        "there are no posterior parameters to keep; store get_latent_representation() in obsm and drop X"
    ),
    "predict": "fit a probe to the embedding: scr2mae.probe.fit_probe(adata, model=model, ...)",
    "get_mde": "use scanpy.pp.neighbors and scanpy.tl.umap on the embedding",
}
"""Methods of scvi-tools models that this package does not have, and what to use instead."""


def missing_method(name: str) -> str | None:
    """Return the error message for a scvi-tools method that this package lacks, or None for other names."""
    return f"{name} is not available: {METHODS[name]}." if name in METHODS else None


def understands_scvi(function: F) -> F:
    """Decorate a method so that it accepts, renames or refuses the arguments of scvi-tools."""
    words = ARGUMENTS[function.__name__]
    parameters = signature(function).parameters
    kinds = {name: each.kind for name, each in parameters.items()}
    by_position = [name for name, kind in kinds.items() if kind is Parameter.POSITIONAL_OR_KEYWORD]
    by_name = [name for name, kind in kinds.items() if kind is Parameter.KEYWORD_ONLY]
    is_open = Parameter.VAR_KEYWORD in kinds.values() and function.__name__ != "train"
    known = {*parameters}
    if function.__name__ == "train":
        known |= {*signature(Trainer.__init__).parameters} - {"self"}

    @wraps(function)
    def method(*args: Any, **kwargs: Any) -> Any:
        """Check and translate the arguments, then call the decorated method."""
        called = type(args[0]).__name__ if function.__name__ == "__init__" else function.__name__
        if len(args) > len(by_position):
            raise TypeError(
                f"{called} takes only {by_position[1:]} by position, but got {len(args) - 1} values; "
                f"pass the others by name: {by_name}."
            )
        for name in [name for name in kwargs if name not in parameters]:
            if name in words:
                _translate(name, words[name], kwargs)
            elif not is_open and name not in known and not name.startswith("early_stopping_"):
                near = difflib.get_close_matches(name, sorted(known), n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it takes {[*by_position[1:], *by_name]}."
                raise TypeError(f"{called} does not know {name!r}; {hint}")
        plan = kwargs.get("plan_kwargs") or {}
        if foreign := [entry for entry in plan if entry in words and words[entry].into is None]:
            kwargs["plan_kwargs"] = plan = dict(plan)
            for entry in foreign:
                _translate(entry, words[entry], plan)
        return function(*args, **kwargs)

    return method  # type: ignore[return-value]


def _translate(name: str, word: Word, kwargs: dict[str, Any]) -> None:
    """Replace an argument of scvi-tools in ``kwargs`` with the one used here, or raise a TypeError."""
    value = kwargs.pop(name)
    if word.any_value or any(
        value is same or (type(value) is type(same) and value == same) for same in word.same
    ):
        return
    if word.into is None:
        same = f" (only {name}={word.same[0]!r}, which is the behavior here)" if word.same else ""
        raise TypeError(f"{name}={value!r} is not available{same}: {word.reason}.")
    value = dict(word.values).get(value, value) if word.values else value
    argument, _, entry = word.into.partition(".")
    if not entry:
        kwargs[argument] = value
    else:
        kwargs[argument] = {**(kwargs.get(argument) or {}), entry: value}
