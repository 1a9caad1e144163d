"""The cases of ``test_bad_inputs.py``: input, exception and a piece of its message."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

import scr2mae
from scr2mae import R2MAEModel, benchmark, datasets, masking, metrics, pl, probe, theory
from scr2mae.data import align_genes, open_store, split_cells
from scr2mae.masking import DiscreteRatio, FixedRatio, UniformDecayRatio, UniformRatio, draw_mask
from scr2mae.nn.curriculum import Curriculum, CurriculumWeights, GradientSchedule, sinkhorn

__all__ = ["CASES", "LINES", "Case", "Place"]

TINY = {"n_hidden": 8, "n_latent": 2}
QUICK = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}


@dataclass
class Place:
    """What a case may use."""

    adata: AnnData
    trained: R2MAEModel
    reference: R2MAEModel
    folder: Path
    model: R2MAEModel | None = field(default=None)

    def prepare(self, case: "Case") -> None:
        """Spoil the counts, and build the model that a case is about, before anything is watched."""
        if case.spoil is not None:
            self.adata = case.spoil(self.adata)
        if case.of_model:
            R2MAEModel.setup_anndata(self.adata, donor_key="donor", batch_key="batch")
            self.model = R2MAEModel(self.adata, **TINY)

    def write_inputs(self) -> None:
        """Files that command lines name, in the folder."""
        self.adata.layers["counts"] = self.adata.X.copy()
        self.adata.write_h5ad(self.folder / "counts.h5ad")
        logged = self.adata.copy()
        logged.X = logged.X.log1p()
        logged.write_h5ad(self.folder / "logged.h5ad")
        self.trained.save(self.folder / "model")
        (self.folder / "run").mkdir()
        (self.folder / "run" / "last.ckpt").write_text("mine")
        with h5py.File(self.folder / "foreign.h5ad", "w") as file:
            file["numbers"] = [1, 2]
        whole = (self.folder / "counts.h5ad").read_bytes()
        (self.folder / "cut.h5ad").write_bytes(whole[:-1000])


@dataclass(frozen=True)
class Case:
    """Bad input and what becomes of it."""

    name: str
    error: type[Exception]
    message: str
    call: Callable[[Place], Any]
    spoil: Callable[[AnnData], AnnData] | None = None
    of_model: bool = False


def _with(value: float) -> Callable[[AnnData], AnnData]:
    def spoil(adata: AnnData) -> AnnData:
        X = adata.X.toarray()
        X[7, 9] = value
        adata.X = sp.csr_matrix(X)
        return adata

    return spoil


def _duplicate_gene(adata: AnnData) -> AnnData:
    adata.var_names = ["gene0", "gene0", *adata.var_names[2:]]
    return adata


def _missing(column: str) -> Callable[[AnnData], AnnData]:
    def spoil(adata: AnnData) -> AnnData:
        adata.obs[column] = adata.obs[column].where(np.arange(adata.n_obs) != 4)
        return adata

    return spoil


def _text_age(adata: AnnData) -> AnnData:
    adata.obs["age"] = [f"{age:.1f} years" for age in adata.obs["age"]]
    return adata


def _infinite_age(adata: AnnData) -> AnnData:
    adata.obs["age"] = np.r_[np.inf, adata.obs["age"].to_numpy()[1:]]
    return adata


def _foreign_genes(adata: AnnData) -> AnnData:
    adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    return adata


def _new_batch(adata: AnnData) -> AnnData:
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories({"b1": "new"})
    return adata


def _zero_size(adata: AnnData) -> AnnData:
    adata.obs["size"] = np.r_[0.0, np.ones(adata.n_obs - 1)]
    return adata


def _nan_embedding(adata: AnnData) -> AnnData:
    adata.obsm["X_mine"][3, 1] = np.nan
    return adata


def _one_donor(adata: AnnData) -> AnnData:
    adata.obs["donor"] = "the only one"
    return adata


def _setup(**arguments: Any) -> Callable[[Place], Any]:
    return lambda p: R2MAEModel.setup_anndata(p.adata, **arguments)


def _build(**arguments: Any) -> Callable[[Place], Any]:
    return lambda p: R2MAEModel(p.adata, **arguments)


def _train(**arguments: Any) -> Callable[[Place], Any]:
    return lambda p: p.model.train(**(QUICK | arguments))


def _get(method: str, **arguments: Any) -> Callable[[Place], Any]:
    return lambda p: getattr(p.trained, method)(p.adata, **arguments)


def _probe(**arguments: Any) -> Callable[[Place], Any]:
    settings = {
        "use_rep": "X_mine",
        "targets": {"disease": "classification"},
        "donor_key": "donor",
        "n_splits": 1,
    }
    return lambda p: probe.linear_probe(p.adata, **(settings | arguments))


def _benchmark(**arguments: Any) -> Callable[[Place], Any]:
    settings = {
        "targets": {"disease": "classification"},
        "donor_key": "donor",
        "methods": ["pca"],
        "n_splits": 1,
    }
    return lambda p: benchmark.run(p.adata, out=p.folder / "out", **(settings | arguments))


def _prepare(
    paths: Any = "counts.h5ad", output: str = "store.h5ad", **arguments: Any
) -> Callable[[Place], Any]:
    return lambda p: datasets.prepare(p.folder / paths, p.folder / output, progressbar=False, **arguments)


def _fetch(url: str = "https://127.0.0.1:9/x.h5ad", **arguments: Any) -> Callable[[Place], Any]:
    return lambda p: datasets.fetch(url, p.folder, **arguments)


SETUP = [
    Case("setup: negative", ValueError, "got -1 (negative) at cell 'cell7', gene 'gene9'", _setup(), _with(-1)),
    Case("setup: fraction", ValueError, "got 0.5 (fractional) at cell 'cell7'", _setup(), _with(0.5)),
    Case("setup: NaN", ValueError, "got nan (not finite) at cell 'cell7'", _setup(), _with(np.nan)),
    Case("setup: infinity", ValueError, "got inf (not finite)", _setup(check_counts=False), _with(np.inf)),
    Case("setup: layer", KeyError, "No 'raw' in adata.layers; choose one of []", _setup(layer="raw")),
    Case("setup: batch", KeyError, "No 'x' in adata.obs; choose one of ['donor'", _setup(batch_key="x")),
    Case("setup: donor", KeyError, "No 'x' in adata.obs", _setup(donor_key="x")),
    Case("setup: labels", KeyError, "No 'x' in adata.obs", _setup(labels_key="x")),
    Case("setup: size", KeyError, "No 'x' in adata.obs", _setup(size_factor_key="x")),
    Case("setup: categorical", KeyError, "No 'x'", _setup(categorical_covariate_keys=["donor", "x"])),
    Case("setup: continuous", KeyError, "No 'x'", _setup(continuous_covariate_keys=["x"])),
    Case("setup: genes twice", ValueError, "['gene0'] occur more than once", _setup(), _duplicate_gene),
    Case("setup: age infinite", ValueError, "adata.obs['age'] must be finite", _setup(continuous_covariate_keys=["age"]), _infinite_age),
    Case("setup: no batch of a cell", ValueError, "adata.obs['batch'] has 1 missing", _setup(batch_key="batch"), _missing("batch")),
    Case("setup: no age of a cell", ValueError, "adata.obs['age'] has 1 missing", _setup(continuous_covariate_keys=["age"]), _missing("age")),
    Case("setup: age in words", ValueError, "adata.obs['age'] must be numeric", _setup(continuous_covariate_keys=["age"]), _text_age),
    Case("setup: one gene", ValueError, "at least two genes", _setup(), lambda a: a[:, :1].copy()),
    Case("setup: no cells", ValueError, "empty AnnData (0 x 60)", _setup(), lambda a: a[:0].copy()),
    Case("setup: no counts", ValueError, "adata.X is None", _setup(), lambda a: AnnData(obs=a.obs, var=a.var)),
]  # fmt: skip

BUILD = [
    Case("model: no width", ValueError, "n_hidden must be at least 1, got 0", _build(n_hidden=0)),
    Case("model: width a fraction", TypeError, "n_latent must be an integer, got 2.5", _build(n_latent=2.5)),
    Case("model: width a word", TypeError, "n_hidden must be an integer, got '64'", _build(n_hidden="64")),
    Case("model: width true", TypeError, "n_layers must be an integer, got True", _build(n_layers=True)),
    Case(
        "model: no such encoder",
        ValueError,
        "encoder must be one of ['linear+mlp', 'mlp'], got 'cnn'",
        _build(encoder="cnn"),
    ),
    Case("model: no decoder", ValueError, "n_layers_decoder must be at least 0", _build(n_layers_decoder=-2)),
    Case("model: seed negative", ValueError, "seed must be at least 0, got -1", _build(seed=-1)),
    Case("model: seed a fraction", TypeError, "seed must be an integer", _build(seed=0.5)),
    Case("model: ratio above one", ValueError, "must lie in [0, 1], got 1.1", _build(mask_ratio=1.1)),
    Case("model: ratio NaN", ValueError, "must lie in [0, 1], got nan", _build(mask_ratio=float("nan"))),
    Case("model: range backwards", ValueError, "low <= high, got (0.5, 0.1)", _build(mask_ratio=(0.5, 0.1))),
    Case("model: three ratios", ValueError, "must be a pair (low, high)", _build(mask_ratio=(0.1, 0.2, 0.3))),
    Case("model: ratio a word", TypeError, "must be a float, a pair", _build(mask_ratio="0.5")),
    Case("model: curriculum", ValueError, "must be 'cl', 'cl_k0'", _build(curriculum="hard")),
    Case("model: curriculum of a decay", ValueError, "needs a fixed ratio, a range", _build(curriculum="cl", mask_ratio=masking.DecayRatio())),
    Case("model: logged counts", ValueError, "Expected raw counts in adata.X", _build(), _with(0.3)),
    Case("model: nothing", ValueError, "adata or registry must be provided", lambda p: R2MAEModel()),
]  # fmt: skip

TRAIN = [
    Case(f"train: {name}", error, message, _train(**arguments), of_model=True)
    for name, error, message, arguments in [
        ("no epochs", ValueError, "max_epochs must be at least 1, got 0", {"max_epochs": 0}),
        ("half an epoch", TypeError, "max_epochs must be an integer, got 0.5", {"max_epochs": 0.5}),
        ("share above one", ValueError, "train_size must lie in (0, 1]", {"train_size": 1.5}),
        ("shares above one", ValueError, "must not exceed 1", {"train_size": 0.9, "validation_size": 0.3}),
        ("split by nothing", KeyError, "No 'x' in adata.obs; choose one of", {"split_key": "x"}),
        ("split by true", ValueError, "split_key takes a column", {"split_key": True}),
        ("batch of one", ValueError, "batch_size must be at least 2, got 1", {"batch_size": 1}),
        ("seed negative", ValueError, "seed must be at least 0", {"seed": -3}),
        ("accelerator", ValueError, "accelerator must be 'auto', 'cpu'", {"accelerator": "abacus"}),
        ("place of counts", ValueError, "counts_on must be one of", {"counts_on": "tape"}),
        ("counts not on disk", ValueError, "counts_on='disk', but the counts are in memory", {"counts_on": "disk"}),
        ("optimizer", ValueError, "optimizer must be one of", {"plan_kwargs": {"optimizer": "Newton"}}),
        ("learning rate", ValueError, "lr and eps must be positive", {"plan_kwargs": {"lr": -1.0}}),
        ("positions outside", ValueError, "must lie in [0, 120)", {"datasplitter_kwargs": {"external_indexing": [[0, 1, 500]]}}),
        ("stopping without validation", ValueError, "needs validation cells", {"train_size": 1.0, "early_stopping": True, "split_key": False}),
        ("option of nobody", TypeError, "nonsense", {"nonsense": 1}),
    ]
] + [
    Case("train: no checkpoint", FileNotFoundError, "No checkpoint at", lambda p: p.model.train(resume=p.folder / "none", **QUICK), of_model=True),
    Case("train: notes as checkpoint", ValueError, "notes.txt is not a checkpoint of this package", lambda p: p.model.train(resume=p.folder / "notes.txt", **QUICK), of_model=True),
    Case("train: checkpoints into a file", NotADirectoryError, "is a file; checkpoints go into a folder", lambda p: p.model.train(checkpoint_dir=p.folder / "notes.txt", **QUICK), of_model=True),
    Case("train: without data", ValueError, "loaded without data; load it with adata=", lambda p: R2MAEModel(registry=p.trained.registry, **TINY).train(**QUICK)),
]  # fmt: skip

USE = [
    Case("embed: untrained", RuntimeError, "not trained yet; call model.train() first", lambda p: p.model.get_latent_representation(), of_model=True),
    Case("embed: indices outside", IndexError, "within the 120 cells", _get("get_latent_representation", indices=[0, 120])),
    Case("embed: short mask", ValueError, "one entry per cell (120)", _get("get_latent_representation", indices=np.ones(5, bool))),
    Case("embed: indices with fractions", TypeError, "indices must be a list of integers", _get("get_latent_representation", indices=[0.5, 1.5])),
    Case("embed: indices in words", TypeError, "indices must be a list of integers", _get("get_latent_representation", indices=["cell1"])),
    Case("embed: batch size", ValueError, "batch_size must be at least 1, got -5", _get("get_latent_representation", batch_size=-5)),
    Case("embed: precision", ValueError, "precision must be 'auto' or one of", _get("get_latent_representation", precision="8")),
    Case("embed: wrong array", ValueError, "out must have shape (120, 4)", _get("get_latent_representation", out=np.zeros((3, 4)))),
    Case("embed: no gene shared", ValueError, "No shared genes", _get("get_latent_representation"), _foreign_genes),
    Case("embed: too few genes", ValueError, "Too few shared genes", _get("get_latent_representation"), lambda a: a[:, :3].copy()),
    Case("embed: genes twice", ValueError, "['gene0'] occur more than once", _get("get_latent_representation"), _duplicate_gene),
    Case("embed: fractions", ValueError, "Expected raw counts in adata.X", _get("get_latent_representation"), _with(0.5)),
    Case("embed: batch unseen", ValueError, "['new'], which the model has not seen", lambda p: p.reference.get_latent_representation(p.adata), _new_batch),
    Case("embed: no batch", KeyError, "No 'batch' in adata.obs", lambda p: p.reference.get_latent_representation(p.adata), lambda a: AnnData(a.X, obs=a.obs.drop(columns="batch"), var=a.var)),
    Case("setup: size nought", ValueError, "adata.obs['size'] must be positive", _setup(size_factor_key="size"), _zero_size),
    Case("expression: gene", KeyError, "does not know the genes ['TP53']", _get("get_normalized_expression", gene_list=["gene1", "TP53"])),
    Case("expression: batch", KeyError, "No batch ['b7']", _get("get_normalized_expression", transform_batch="b7")),
    Case("expression: library a word", ValueError, "'observed' or 'latent', got 'median'", _get("get_normalized_expression", library_size="median")),
    Case("expression: library negative", ValueError, "must be a number above 0", _get("get_normalized_expression", library_size=-1.0)),
    Case("reconstruction: ratio", ValueError, "must lie in [0, 1], got 2", _get("get_masked_reconstruction", ratios=[2.0])),
    Case("error: untrained", RuntimeError, "not trained yet", lambda p: p.model.get_reconstruction_error(), of_model=True),
    Case("weights: no curriculum", ValueError, "has no curriculum", _get("get_curriculum_weights")),
    Case("save: folder in use", FileExistsError, "pass overwrite=True", lambda p: p.trained.save(p.folder / "full")),
    Case("save: a file", NotADirectoryError, "is a file; a model is saved as a folder", lambda p: p.trained.save(p.folder / "notes.txt", overwrite=True)),
    Case("load: nothing", FileNotFoundError, "No model folder at", lambda p: R2MAEModel.load(p.folder / "none")),
    Case("load: a folder of something", FileNotFoundError, "has no model.json, only ['something']", lambda p: R2MAEModel.load(p.folder / "full")),
    Case("load: an accelerator", ValueError, "accelerator must be", lambda p: R2MAEModel.load_query_data(p.adata, p.reference, accelerator="abacus")),
    Case("query: not aligned", ValueError, "prepare_query_anndata(adata, model), then R2MAEModel.load_query_data(", lambda p: R2MAEModel.load_query_data(p.adata, p.reference), lambda a: a[:, ::-1].copy()),
    Case("query: no batch key", ValueError, "set up without batch_key", lambda p: R2MAEModel.load_query_data(p.adata, p.trained)),
    Case("query: no model", FileNotFoundError, "No model folder at", lambda p: R2MAEModel.load_query_data(p.adata, p.folder / "none")),
    Case("prepare query: no gene shared", ValueError, "No shared genes", lambda p: R2MAEModel.prepare_query_anndata(p.adata, p.trained), _foreign_genes),
    Case("prepare query: too few", ValueError, "min_shared=0.9 requires more", lambda p: R2MAEModel.prepare_query_anndata(p.adata, p.trained, min_shared=0.9), lambda a: a[:, :40].copy()),
    Case("export: in use", FileExistsError, "model.pt already exists", lambda p: p.trained.export_scvi(p.folder / "scvi")),
    Case("hub: untrained", RuntimeError, "not trained yet", lambda p: p.model.push_to_hub("ann/x"), of_model=True),
    Case("hub: name", ValueError, "repo must be 'owner/name'", lambda p: R2MAEModel.from_hub("a/b/c")),
]  # fmt: skip

PROBES = [
    Case("probe: embedding", KeyError, "No 'X_other' in adata.obsm or adata.layers", _probe(use_rep="X_other")),
    Case("probe: column", KeyError, "No 'x' in adata.obs", _probe(targets={"x": "classification"})),
    Case("probe: kind", ValueError, "to be one of", _probe(targets={"age": "number"})),
    Case("probe: words as numbers", ValueError, "holds text such as", _probe(targets={"disease": "regression"})),
    Case("probe: no target", ValueError, "at least one", _probe(targets={})),
    Case("probe: donors", KeyError, "No 'x' in adata.obs", _probe(donor_key="x")),
    Case("probe: one donor", ValueError, "needs two donors, adata.obs['donor'] has one", _probe(), _one_donor),
    Case("probe: NaN", ValueError, "'X_mine' holds 1 NaN", _probe(), _nan_embedding),
    Case("probe: training donors", ValueError, "n_train_donors between 1 and 5", _probe(n_train_donors=6)),
    Case("probe: confidence", ValueError, "confidence between 0 and 1", _probe(confidence=95)),
    Case("splits: none", ValueError, "at least one split", lambda p: probe.donor_splits(p.adata, targets={"disease": "classification"}, donor_key="donor", n_splits=0)),
    Case("split: one donor", ValueError, "at least two donors", lambda p: probe.donor_split(["a"] * 5)),
    Case("split: leak", ValueError, "on both sides", lambda p: probe.check_no_donor_leak(["a", "b"], ["b"])),
    Case("split: manifest", ValueError, "split manifest of schema", lambda p: probe.DonorSplit.from_manifest({"schema_version": 99})),
    Case("ridge: NaN", ValueError, "NaN", lambda p: probe.RidgeProbe().fit(np.full((9, 2), np.nan), np.arange(9.0))),
    Case("logistic: one class", ValueError, "class", lambda p: probe.LogisticProbe().fit(np.eye(6), ["a"] * 6)),
    Case("metrics: column missing", ValueError, "Got 1 columns of scores for 2 classes", lambda p: metrics.macro_auroc([0, 1], [[0.1], [0.2]], classes=[0, 1])),
    Case("metrics: zero matrix", ValueError, "zero matrix", lambda p: metrics.effective_rank(np.zeros((3, 2)))),
    Case("metrics: lengths", ValueError, "inconsistent numbers of samples", lambda p: metrics.spearman([1.0, 2.0], [1.0])),
    Case("metrics: shapes", ValueError, "pass the same cells and genes", lambda p: metrics.masked_pearson(np.ones((2, 3)), np.ones((2, 4)), np.ones(3, bool))),
    Case("metrics: one group", ValueError, "at least two groups", lambda p: metrics.knn_label_recovery(np.eye(4), [0, 1, 0, 1], groups=["a"] * 4)),
    Case("benchmark: method", ValueError, "No method ['r3mae']", _benchmark(methods=["r3mae"])),
    Case("benchmark: seeds", ValueError, "Wanted distinct seeds", _benchmark(seeds=(1, 1))),
    Case("benchmark: donors", KeyError, "No 'x' in adata.obs", _benchmark(donor_key="x")),
    Case("benchmark: fractions", ValueError, "Expected raw counts in adata.X", _benchmark(), _with(0.5)),
    Case("benchmark: cells seen", ValueError, "pretrain_on must be one of", _benchmark(pretrain_on="test")),
]  # fmt: skip

FUNCTIONS = [
    Case("mask: one item", ValueError, "at least two items", lambda p: draw_mask(1, 0.5, seed=0, step=0)),
    Case("mask: ratio", ValueError, "ratio must lie in [0, 1]", lambda p: draw_mask(5, -0.1, seed=0, step=0)),
    Case("mask: observations", ValueError, "n_obs must be >= 0", lambda p: draw_mask(5, 0.5, seed=0, step=0, n_obs=-1)),
    Case("ratio: NaN", ValueError, "must lie in [0, 1], got nan", lambda p: FixedRatio(float("nan"))),
    Case("ratio: range", ValueError, "low <= high", lambda p: UniformRatio(0.6, 0.5)),
    Case("ratio: none", ValueError, "needs at least one value", lambda p: DiscreteRatio(())),
    Case("ratio: not rising", ValueError, "must increase strictly", lambda p: DiscreteRatio((0.2, 0.2))),
    Case("ratio: beyond one", ValueError, "2 * high - low <= 1", lambda p: UniformDecayRatio(0.1, 0.9)),
    Case("ratio: step", ValueError, "step must be >= 0", lambda p: masking.DecayRatio()(-1, 10)),
    Case("sinkhorn: zero", ValueError, "must be positive", lambda p: sinkhorn(torch.zeros(3, 2))),
    Case("sinkhorn: vector", ValueError, "must have shape", lambda p: sinkhorn(torch.ones(3))),
    Case("sinkhorn: rounds", ValueError, "n_iter must be at least 1", lambda p: sinkhorn(torch.ones(3, 2), n_iter=0)),
    Case("curriculum: one column", ValueError, "n_ratios must be at least 2", lambda p: Curriculum(n_ratios=1)),
    Case("curriculum: offset", ValueError, "offset must be positive", lambda p: CurriculumWeights(5, 3, offset=0.0)),
    Case("curriculum: times", ValueError, "start must come before end", lambda p: GradientSchedule(start=0.6, end=0.5)),
    Case("schemes: domain", ValueError, "domain must be one of", lambda p: scr2mae.schemes("audio")),
    Case("theory: ratio", ValueError, "strictly between 0 and 1", lambda p: theory.RatioLaw([1.0], [1.0])),
    Case("theory: not square", ValueError, "non-empty square matrix", lambda p: theory.Covariance(np.ones((2, 3)))),
    Case("theory: not symmetric", ValueError, "must be symmetric", lambda p: theory.Covariance(np.array([[1.0, 0.5], [0.1, 1.0]]))),
    Case("theory: not positive", ValueError, "must be positive definite", lambda p: theory.Covariance(np.array([[1.0, 2.0], [2.0, 1.0]]))),
    Case("theory: counts", KeyError, "genes are not in adata.var_names", lambda p: theory.mask_profile(p.adata, genes=["gene1", "TP53", "x"], gamma=0.5)),
    Case("genes: versions", ValueError, "occur in several versions", lambda p: align_genes(["ENSG00000000003.1", "ENSG00000000003.2"], np.array(["ENSG00000000003", "B"]))),
    Case("split: share", ValueError, "train_size must lie in (0, 1]", lambda p: split_cells(100, train_size=0.0)),
    Case("split: a cell twice", ValueError, "contains a cell twice", lambda p: split_cells(100, external_indexing=[[0, 1], [1, 2]])),
    Case("split: too few", ValueError, "Training needs at least two cells", lambda p: split_cells(100, train_size=0.001)),
    Case("store: nothing", FileNotFoundError, "No file or folder", lambda p: open_store(p.folder / "none.zarr")),
    Case("store: text", ValueError, "is not an HDF5 file", lambda p: open_store(p.folder / "notes.txt")),
    Case("store: folder", ValueError, "a folder without a zarr group", lambda p: open_store(p.folder / "full")),
    Case("simulate: one donor", ValueError, "n_donors", lambda p: datasets.simulate_donors(n_donors=1)),
    Case("simulate: share", ValueError, "effect_fraction", lambda p: datasets.simulate_donors(effect_fraction=0.9)),
    Case("simulate: no cells", ValueError, "n_cells_per_donor", lambda p: datasets.simulate_donors(n_cells_per_donor=0)),
    Case("genes: too many counts wanted", ValueError, "n_top_genes", lambda p: datasets.highly_variable_genes(p.adata, n_top_genes=0, progressbar=False)),
    Case("preprocess: fractions", ValueError, "Raw counts are non-negative integers", lambda p: datasets.preprocess(p.adata, progressbar=False), _with(0.5)),
    Case("prepare: no genes", ValueError, "n_top_genes must be at least 1", _prepare(n_top_genes=0)),
    Case("prepare: join", ValueError, "join must be 'inner' or 'outer'", _prepare(join="left")),
    Case("prepare: memory", ValueError, "at least a million bytes", _prepare(memory_limit=10)),
    Case("prepare: no input", FileNotFoundError, "No file or folder", _prepare()),
    Case("prepare: text", ValueError, "is not an HDF5 file", _prepare("notes.txt")),
    Case("prepare: output", ValueError, ".zarr", _prepare(output="store.csv")),
    Case("fetch: http", ValueError, "must be https, or http with a sha256", _fetch("http://example.org/x.h5ad")),
    Case("fetch: file", ValueError, "must be https", _fetch("file:///etc/passwd")),
    Case("fetch: name", ValueError, "A file name has letters", _fetch(filename="../x.h5ad")),
    Case("fetch: hash", ValueError, "must be 64 hexadecimal digits", _fetch(sha256="abc")),
    Case("fetch: retries", ValueError, "retries must not be negative", _fetch(retries=-1)),
    Case("pl: embedding", KeyError, "No 'X_x' in adata.obsm", lambda p: pl.embedding(p.adata, "X_x", color="donor")),
    Case("pl: color", KeyError, "No 'x' in adata.obs", lambda p: pl.embedding(p.adata, "X_mine", color="x")),
    Case("pl: nothing to draw", ValueError, "at least one model or frame", lambda p: pl.reconstruction({})),
    Case("pl: no curves", ValueError, "Expected a history with the curve 'train_loss', got []", lambda p: pl.training_curves({})),
    Case("pl: no scores", ValueError, "methods and the column 'Rank', got []", lambda p: pl.benchmark_scores(pd.DataFrame())),
]  # fmt: skip

CASES = [*SETUP, *BUILD, *TRAIN, *USE, *PROBES, *FUNCTIONS]

PROBE = "probe counts.h5ad --use-rep X_mine --target disease:classification --donor-key donor -q"
BENCH = "benchmark counts.h5ad --donor-key donor --target disease:classification -o out --methods pca -q"

LINES = [
    ("", 2, "a command is missing"),
    ("fly", 2, 'Unknown command "fly"'),
    ("train counts.h5ad", 2, "parameter --output requires an argument"),
    ("train - -o new", 2, "'-' (a stream) is not supported; give the path"),
    ("train counts.h5ad -o -", 2, "'-' (a stream) is not supported"),
    ("embed - --model model -o out.h5ad", 2, "'-' (a stream) is not supported"),
    ("embed counts.h5ad --model model -o -", 2, "'-' (a stream) is not supported"),
    ("train counts.h5ad -o new --mask-ratio half", 2, "expected a number from 0 to 1, got 'half'"),
    ("train counts.h5ad -o new --mask-ratio 0.1 0.2 0.3", 2, "takes one number, or a low and a high one"),
    ("train '' -o new", 2, "the path is empty"),
    ("train counts.h5ad -o new --mask-ratio 1.5", 2, "expected a number from 0 to 1, got '1.5'"),
    ("train counts.h5ad -o new --mask-ratio 0.5 0.1", 2, "takes one number, or a low and a high one"),
    ("train counts.h5ad -o new --n-latent 0", 2, "expected a whole number of at least 1, got '0'"),
    ("train counts.h5ad -o new --seed -1", 2, "expected a whole number of at least 0, got '-1'"),
    ("train counts.h5ad -o new --devices many", 2, "expected 'auto', a number of devices, or positions"),
    ("train counts.h5ad -o new --split-key donor --split-cells", 2, "not allowed with --split-key"),
    ("train counts.h5ad -o new --train-size 0", 2, "--train-size must be above 0"),
    (
        "train counts.h5ad -o new --train-size 1 --early-stopping",
        2,
        "--early-stopping needs validation cells",
    ),
    ("train counts.h5ad -o new --checkpoint-every 5", 2, "--checkpoint-every needs --checkpoint-dir"),
    ("train counts.h5ad -o new --max-ep 3", 2, "Unknown option: --max-ep"),
    ("embed counts.h5ad --model model -o out.h5ad --key a/b", 2, "expected a name without '/', got 'a/b'"),
    ("demo -o -", 2, "'-' (a stream) is not supported"),
    (f"{PROBE} --target age", 2, "expected COLUMN:classification or COLUMN:regression, got 'age'"),
    (f"{PROBE} --n-splits 0", 2, "expected a whole number of at least 1, got '0'"),
    (f"{BENCH} --seeds 1 1", 2, "--seeds must differ, got 1 1"),
    (f"{BENCH} --atlas hlca", 2, "give either --target or --atlas"),
    ("prepare counts.h5ad", 2, "parameter --output requires an argument"),
    ("prepare counts.h5ad -o s.zarr --memory-limit 0", 2, "expected gigabytes, at least 0.001, got '0'"),
    ("dna train none.zarr", 2, "parameter --output requires an argument"),
    ("vision pretrain none", 2, "parameter --output requires an argument"),
    ("text fly", 2, 'Unknown command "fly"'),
    ("train none.h5ad -o new", 1, "No file none.h5ad."),
    ("train full -o new", 1, "full is a folder without a zarr store"),
    ("train notes.txt -o new", 1, "notes.txt is not an HDF5 file; expected an AnnData"),
    ("train counts.h5ad -o notes.txt", 1, "notes.txt is a file; expected a folder to write to"),
    ("train counts.h5ad -o full", 1, "full exists and is not empty; choose another path or pass --force"),
    ("train counts.h5ad -o notes.txt/model", 1, "notes.txt is a file, so notes.txt/model cannot be made"),
    ("train counts.h5ad -o new --resume none", 1, "No checkpoint none; give a .ckpt file"),
    (
        "train counts.h5ad -o new --checkpoint-dir run",
        1,
        "run/last.ckpt exists; continue from it with --resume",
    ),
    ("train counts.h5ad -o new --checkpoint-dir notes.txt", 1, "notes.txt is a file; expected a folder"),
    ("train counts.h5ad -o new --layer spliced -q", 1, "has no layers['spliced'], where counts are read; "),
    (
        "train counts.h5ad -o new --donor-key patient -q",
        1,
        "has no column 'patient' in obs; --donor-key takes",
    ),
    ("train logged.h5ad -o new -q", 1, "Expected raw counts in X of logged.h5ad"),
    ("train foreign.h5ad -o new", 1, "foreign.h5ad is damaged or not an AnnData file ("),
    ("train cut.h5ad -o new", 1, "cut.h5ad is damaged or not an AnnData file ("),
    ("embed none.h5ad --model model -o out.h5ad", 1, "No file none.h5ad."),
    ("embed counts.h5ad --model none -o out.h5ad", 1, "No file or folder none."),
    ("embed counts.h5ad --model full -o out.h5ad", 1, "full is not a scr2mae model folder"),
    ("embed counts.h5ad --model model -o full", 1, "full is a folder; expected a file to write to"),
    ("embed counts.h5ad --model model -o notes.txt", 1, "notes.txt exists; choose another path"),
    ("embed counts.h5ad --model model -o notes.txt/out.h5ad", 1, "notes.txt is a file, so notes.txt cannot"),
    ("embed counts.h5ad --model model -o out.h5ad --key X_mine -q", 1, "has 'X_mine' in obsm already"),
    ("demo -o full", 1, "full exists and is not empty; choose another path or pass --force"),
    (PROBE.replace("counts", "none"), 1, "No file none.h5ad."),
    (PROBE.replace("X_mine", "X_other"), 1, "has no 'X_other' in obsm or layers; scr2mae embed adds one"),
    (f"{PROBE} -o notes.txt", 1, "notes.txt exists; choose another path or pass --force"),
    (f"{PROBE} --n-train-donors 8", 1, "n_train_donors between 1 and 5"),
    (BENCH.replace("-o out", "-o notes.txt"), 1, "notes.txt is a file; expected a folder"),
    (BENCH.replace("key donor", "key patient"), 1, "has no column 'patient' in obs; --donor-key takes"),
    (BENCH.replace("pca", "r3mae"), 1, "No method ['r3mae']; choose from"),
    ("prepare none.h5ad -o s.zarr", 1, "No file or folder none.h5ad"),
    ("prepare counts.h5ad -o counts.h5ad", 1, "counts.h5ad"),
    ("dna train none.zarr -o new", 1, "No alignment none.zarr"),
    ("vision pretrain none -o new", 1, "No file or folder none"),
]
