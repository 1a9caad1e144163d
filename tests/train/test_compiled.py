"""Compiled training steps: the eager ones in value, gradient, checkpoints and skipped steps, and few compilations."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

import scr2mae.nn.likelihood
import scr2mae.nn.module
from scr2mae import R2MAEModel
from scr2mae.nn.curriculum import Curriculum
from scr2mae.nn.module import R2MAEModule
from scr2mae.nn.panels import MEASURED_KEY
from scr2mae.train import MaskedTrainingPlan, NonFiniteError
from scr2mae.train.compiled import compile_loss

Train = Callable[..., R2MAEModel]
N_OBS, N_VARS = 12, 40
TRACED = {"backend": "aot_eager", "fullgraph": True}  # all but the generation of machine code
COMPILED = {"compile": True, "compile_kwargs": TRACED}
ONE_SIZE = {"batch_size": 36, "split_key": False}  # 108 cells train, in three mini-batches
QUERY = {"n_categories": [3, 2], "n_new_categories": [1, 0]}
WAITS = ("nonzero", "item", "cpu", "scr2mae")  # operations for which a GPU's host waits
COVARIATES = {"n_categories": [3, 2], "n_continuous": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"n_layers": 3, "n_layers_decoder": 2},
    "covariates": COVARIATES,
    "size factor": {"use_size_factor": True},
    "gene panel": {},
    "query": QUERY,
    "curriculum": {"curriculum": Curriculum(n_ratios=3)},
    "curriculum a cell": {"curriculum": Curriculum(n_ratios=3, per_cell=True)},
}


class Counting:
    """A backend that runs what it is given as it is, and keeps it."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward

    def __reduce__(self) -> str:
        raise AssertionError("what is compiled belongs in no file")

    @property
    def operations(self) -> set[str]:
        return {str(node.target) for graph in self.graphs for node in graph.graph.nodes}


@pytest.fixture(params=["of a CPU", "of a GPU"])
def formulas(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The loss as it is compiled for either kind of device."""
    if request.param == "of a GPU":
        for module in (scr2mae.nn.module, scr2mae.nn.likelihood):
            monkeypatch.setattr(module, "shapes_are_free", lambda device: False)
    return request.param


def build(name: str) -> tuple[R2MAEModule, dict[str, torch.Tensor], dict[str, Any]]:
    """A network in training, a mini-batch for it, and further arguments of its loss."""
    torch.manual_seed(0)
    options = NETWORKS[name]
    module = R2MAEModule(N_VARS, n_hidden=16, n_latent=5, **options).train()
    with torch.no_grad():
        module.log_theta.normal_()
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "X": torch.poisson(torch.full((N_OBS, N_VARS), 1.5), generator=generator),
        "batch": torch.arange(N_OBS)[:, None] % 3,
        "extra_categorical_covs": torch.arange(N_OBS)[:, None] % 2,
        "extra_continuous_covs": torch.randn(N_OBS, 2, generator=generator),
        "size_factor": torch.linspace(5, 90, N_OBS)[:, None],
    }
    if name == "gene panel":
        tensors[MEASURED_KEY] = torch.arange(N_VARS) % 4 > 0
        tensors["X"] = tensors["X"] * tensors[MEASURED_KEY]
    weighting = {"ratio_index": 1, "grad_scale": -0.5} if "curriculum" in options else {}
    return module, tensors, weighting


def score(name: str, **how: Any) -> dict[str, torch.Tensor]:
    """Loss, gradients and running statistics of a step."""
    module, tensors, weighting = build(name)
    if "backend" in how:
        how = {"compiled": compile_loss(module, **how)}
    loss = module.training_loss(tensors, ratio=0.4, seed=0, step=2, **weighting, **how).loss
    loss.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients, **{f"buffer {k}": v for k, v in module.named_buffers()}}


@pytest.mark.filterwarnings(
    r"ignore:The \.grad attribute of a Tensor that is not a leaf"
)  # ``fit`` ignores it
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_gradients_and_statistics_are_those_of_an_eager_step(name: str, formulas: str) -> None:
    eager, compiled = score(name), score(name, **TRACED)
    assert compiled.keys() == eager.keys()
    assert any(key.endswith(("new", "weight")) for key in eager)
    torch.testing.assert_close(compiled, eager, rtol=2e-5, atol=1e-7)


def test_compiled_steps_agree_under_autocast(formulas: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager, compiled = score("covariates"), score("covariates", **TRACED)
    torch.testing.assert_close(compiled, eager, rtol=2e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["covariates", "curriculum"])
@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf")
def test_generated_code_agrees(name: str, formulas: str) -> None:
    torch.testing.assert_close(score(name, backend="inductor"), score(name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("curriculum", [None, "cl"])
def test_ratio_and_step_need_no_new_graph_and_a_smaller_last_mini_batch_needs_one(
    curriculum: str | None, adata: AnnData, train_tiny: Train, formulas: str
) -> None:
    backend = Counting()
    kwargs = {"compile": True, "compile_kwargs": {"backend": backend, "fullgraph": True}}
    model = train_tiny(
        adata, max_epochs=4, train_size=0.9, model={"curriculum": curriculum}, plan_kwargs=kwargs
    )
    assert len(model.split_.train) % 32 > 1
    ratios = model.history_["mask_ratio_step"]["mask_ratio_step"]
    assert ratios.nunique() > 4
    # A curriculum's weights have no gradient while its network is frozen, at first.
    assert len(backend.graphs) == (2 if curriculum is None else 3)


def test_graphs_for_a_gpu_do_not_wait_for_it(
    adata: AnnData, train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (scr2mae.nn.module, scr2mae.nn.likelihood):
        monkeypatch.setattr(module, "shapes_are_free", lambda device: False)
    backend = Counting()
    # A value that decides a shape or a branch, or goes to the host, would break the one graph, which is an error.
    kwargs = {"compile": True, "compile_kwargs": {"backend": backend, "fullgraph": True}}
    train_tiny(adata, plan_kwargs=kwargs)
    inputs = [node for node in backend.graphs[0].graph.nodes if node.op == "placeholder"]
    assert all(isinstance(node.meta["example_value"], torch.Tensor) for node in inputs)
    operations = {name.replace("getitem", "get") for name in backend.operations}
    assert not {name for name in operations if any(each in name for each in WAITS)}


def test_a_compiled_run_gives_the_model_of_an_eager_one(
    simulate: Callable[..., AnnData], covariates: dict[str, Any], train_tiny: Train, tmp_path: Path
) -> None:
    options = {"setup": covariates, "precision": "32-true", **ONE_SIZE}
    eager = train_tiny(simulate(), **options)
    compiled = train_tiny(simulate(), **options, plan_kwargs=COMPILED)
    assert len(compiled.history_["train_loss_step"]) == 6
    assert set(compiled.history_) == set(eager.history_)
    for name, curve in eager.history_.items():
        np.testing.assert_allclose(compiled.history_[name], curve, rtol=1e-4, err_msg=name)
    assert list(compiled.module.state_dict()) == list(eager.module.state_dict())
    torch.testing.assert_close(compiled.module.state_dict(), eager.module.state_dict(), rtol=1e-2, atol=1e-4)
    compiled.save(tmp_path / "model")
    loaded = R2MAEModel.load(tmp_path / "model", adata=compiled.adata)
    np.testing.assert_array_equal(loaded.get_latent_representation(), compiled.get_latent_representation())


def test_a_compiled_run_resumes_bit_for_bit(
    simulate: Callable[..., AnnData], train_tiny: Train, tmp_path: Path
) -> None:
    options = {"plan_kwargs": COMPILED, **ONE_SIZE}
    whole = train_tiny(simulate(), max_epochs=2, **options)
    train_tiny(simulate(), max_epochs=1, **options, checkpoint_dir=tmp_path)
    resumed = train_tiny(simulate(), max_epochs=2, **options, resume=tmp_path)
    torch.testing.assert_close(resumed.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)


def test_bad_cells_are_named_without_further_compilations(adata: AnnData) -> None:
    adata.obs["age"] = np.float32(3e38)
    R2MAEModel.setup_anndata(adata, continuous_covariate_keys=["age"])
    model, backend = R2MAEModel(adata, n_hidden=16, n_latent=4), Counting()
    model.module.standardize.fit = lambda values: None
    with pytest.raises(NonFiniteError, match=r"last 20 steps .* cells \['cell\d+', .*drop or scale them"):
        model.train(
            50,
            batch_size=32,
            accelerator="cpu",
            enable_progress_bar=False,
            plan_kwargs={"compile": True, "compile_kwargs": {"backend": backend}},
        )
    assert len(backend.graphs) == 2
    assert model.history["skipped_steps"]["skipped_steps"].sum() == 20


def test_a_query_trains_its_new_rows_alone(simulate: Callable[..., AnnData], reference: R2MAEModel) -> None:
    query = R2MAEModel.load_query_data(simulate(80, seed=3, batches=("b0", "b2")), reference)
    before = {name: p.clone() for name, p in query.module.named_parameters()}
    query.train(2, batch_size=32, accelerator="cpu", enable_progress_bar=False, plan_kwargs=COMPILED)
    moved = {n for n, p in query.module.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if n.endswith(".new")} != set()


def test_one_process_compiles_more_networks_than_pytorch_keeps_graphs_of_a_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = Counting()
    monkeypatch.setattr(torch._dynamo.config, "cache_size_limit", 2)  # 8 by default
    for width in range(2, 6):
        module = R2MAEModule(N_VARS, n_hidden=width, n_latent=2)
        tensors = {"X": torch.ones(4, N_VARS), "batch": torch.zeros(4, 1)}
        compiled = compile_loss(module, backend=backend)
        for step in range(2):
            module.training_loss(tensors, ratio=0.3, seed=0, step=step, compiled=compiled)
    assert len(backend.graphs) == 4


def test_a_copied_plan_trains_its_own_network() -> None:
    module = R2MAEModule(N_VARS, n_hidden=4, n_latent=2)
    plan = MaskedTrainingPlan(module, ratio_schedule=lambda step, total: 0.3, **COMPILED)
    copied = copy.deepcopy(plan)
    _, tensors, _ = build("plain")
    copied.module.training_loss(tensors, ratio=0.3, seed=0, step=0, **copied._compiled).loss.backward()
    assert all(p.grad is not None for p in copied.module.parameters())
    assert all(p.grad is None for p in plan.module.parameters())


def test_without_a_compiler_the_error_says_what_is_missing(adata: AnnData, train_tiny: Train) -> None:
    def missing(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise FileNotFoundError("g++ is not here")

    with pytest.raises(
        RuntimeError, match=r"could not be compiled: .*g\+\+ is not here\. .* install it, or train without"
    ):
        train_tiny(adata, plan_kwargs={"compile": True, "compile_kwargs": {"backend": missing}})


def test_a_network_without_masked_nll_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a network with the method masked_nll, which Linear lacks"):
        MaskedTrainingPlan(torch.nn.Linear(2, 2), ratio_schedule=lambda step, total: 0.3, compile=True)
