"""The card says what the record of training says, and its header is what the hub reads."""

import re

import numpy as np
import pytest

from scr2mae import R2MAEModel
from scr2mae.masking import DecayRatio
from scr2mae.model.card import model_card
from scr2mae.model.saving import to_state

huggingface_hub = pytest.importorskip("huggingface_hub")

REPO = "ann/blood"


def card(model: R2MAEModel) -> str:
    return model_card(to_state(model), repo=REPO, revision="main", versions={"scr2mae": "1.2.3"})


def rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| ([A-Z][^|]*?) \| (.*) \|$", text, re.M))


def test_the_table_is_the_record_of_training(reference):
    table = rows(card(reference))
    last = reference.history_["validation_loss"]["validation_loss"].iloc[-1]
    assert table["Cells"] == "120"
    assert table["Genes"] == "60 (gene0, gene1, gene2, gene3, gene4 ...)"
    assert table["Batch"] == "`batch`, 2 known"
    assert table["Further covariates"] == "`chemistry`, `age`"
    encoder, n_decoder = reference.init_params_["encoder"], reference.init_params_["n_layers_decoder"]
    assert table["Network"] == (
        f"{encoder}, 1 encoder and {n_decoder} decoder layers of 16 units, embedding of 4 dimensions"
    )
    assert table["Masking ratio"] == "drawn from 0.1 to 0.5 for every mini-batch (R²MAE)"
    assert table["Epochs"] == "2"
    assert float(table["Validation loss"].split()[0]) == pytest.approx(last, abs=5e-5)
    assert table["Versions"] == "scr2mae 1.2.3"
    n_train, n_validation = map(int, re.match(r"(\d+) train, (\d+) validation", table["Split"]).groups())
    assert (n_train, n_validation) == (len(reference.split_.train), len(reference.split_.validation))
    assert table["Split"].endswith("whole groups of `donor` held out")


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [(0.25, "0.25, fixed"), (DecayRatio(0.5, 0.1), "schedule DecayRatio, high 0.5, low 0.1")],
)
def test_other_schedules_are_named(train_tiny, adata, ratio, shown):
    text = card(train_tiny(adata, model={"mask_ratio": ratio, "curriculum": None}))
    assert rows(text)["Masking ratio"].startswith(shown)


def test_a_curriculum_is_described(train_tiny, adata):
    assert "n_ratios 10" in rows(card(train_tiny(adata, model={"curriculum": "cl"})))["Curriculum"]


def test_the_lines_of_use_run_and_load_the_model(fake_hub, trained, adata):
    trained.push_to_hub(REPO)
    text = fake_hub.repositories[REPO].tree("main")[1]["README.md"].decode()
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    exec(code, {"adata": adata})
    np.testing.assert_array_equal(adata.obsm["X_r2mae"], trained.get_latent_representation(adata))


@pytest.mark.parametrize("license", [None, "cc-by-4.0"])
def test_the_header_is_what_the_hub_reads(fake_hub, trained, license):
    trained.push_to_hub(REPO, license=license)
    text = fake_hub.repositories[REPO].tree("main")[1]["README.md"].decode()
    header = huggingface_hub.ModelCard(text).data
    assert header.library_name == "scr2mae"
    assert "single-cell" in header.tags
    assert header.license == license


def test_a_card_edited_by_hand_is_kept_when_asked(fake_hub, trained):
    trained.push_to_hub(REPO)
    repository = fake_hub.repositories[REPO]
    repository.commit({**repository.tree("main")[1], "README.md": b"mine"}, branch="main")
    trained.push_to_hub(REPO, card=False)
    assert repository.tree("main")[1]["README.md"] == b"mine"


def test_names_cannot_break_out_of_the_table(train_tiny, adata):
    adata.obs = adata.obs.rename(columns={"batch": "a | b"})
    adata.var_names = ["x|y\nz", *adata.var_names[1:]]
    table = rows(card(train_tiny(adata, setup={"batch_key": "a | b"})))
    assert table["Batch"] == r"`a \| b`, 2 known"
    assert table["Genes"].startswith(r"60 (x\|y z, gene1")


def test_the_card_says_what_the_model_is_not_for(trained):
    section = re.search(r"^## Not for\n(.*?)^## ", card(trained), re.M | re.S)[1]
    assert len(re.findall(r"^- ", section, re.M)) >= 3
