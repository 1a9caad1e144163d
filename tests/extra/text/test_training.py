"""Pretraining and finetuning by the one plan: every scheme, repeatable, resumed bit for bit, accumulated, on two ranks."""

import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback

import scr2mae
from scr2mae.extra import text
from scr2mae.extra.batches import ThreadedLoader
from scr2mae.extra.text import LabeledText, RobertaClassifier, finetune_scores
from scr2mae.masking import DecayRatio, FixedRatio

from .conftest import RUN, labeled

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def assert_same(first, second):
    """Equal weights and curves, bit for bit."""
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert first.history_.keys() == second.history_.keys()
    for name, curve in first.history_.items():
        pd.testing.assert_frame_equal(curve, second.history_[name], check_exact=True)


class KilledError(Exception):
    """What ends a run in these tests."""


class KillAt(Callback):
    """Save a checkpoint before a given step and break off there."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KilledError


TWO_RANKS = """
import json, sys
from lightning.pytorch.callbacks import Callback
from scr2mae.extra import text
class Seen(Callback):
    first = None
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rank, self.world_size = trainer.global_rank, trainer.world_size
        self.first = batch.tolist() if self.first is None else self.first
if __name__ == "__main__":
    blocks = text.TokenBlocks.load(sys.argv[1])
    model = text.RobertaR2MAE(blocks.tokenizer, size="tiny", hidden_size=16, num_hidden_layers=1, intermediate_size=32)
    seen = Seen()
    text.pretrain(model, blocks, batch_size=8, accumulate_grad_batches=1, accelerator="cpu", devices=2,
                  strategy="ddp", enable_progress_bar=False, callbacks=[seen])
    out = {"ratios": model.history_["mask_ratio_step"]["mask_ratio_step"].tolist(),
           "weights": model.network.lm_head.bias.tolist(), "world": seen.world_size, "first": seen.first}
    with open(f"{sys.argv[2]}/rank{seen.rank}.json", "w") as file:
        json.dump(out, file)
"""


def test_a_network_learns_what_the_language_allows(build, blocks, pretrain):
    # Words are drawn independently: where each is equally likely, its entropy is what the best network reaches.
    model = pretrain(build(mask_ratio=0.3), max_epochs=15, lr=1e-2)
    curve = model.history_["train_loss"]["train_loss"]
    untrained = math.log(len(model.tokenizer))
    assert curve.iloc[0] < untrained
    assert curve.iloc[-1] < 0.6 * untrained
    losses = text.score(model, blocks, ratios=(0.15,))
    assert losses["accuracy"].item() > 0.1


@pytest.mark.parametrize("name", list(scr2mae.schemes("text")))
def test_every_scheme_trains_with_finite_losses_and_its_own_ratios(build, pretrain, blocks, name):
    scheme = scr2mae.schemes("text", seed=4)[name]
    model = pretrain(build(mask_ratio=scheme.mask_ratio, curriculum=scheme.curriculum), max_epochs=1, seed=4)
    n_steps = -(-len(blocks) // 8)
    losses, ratios = (model.history_[f"{curve}_step"].iloc[:, 0] for curve in ("train_loss", "mask_ratio"))
    assert len(losses) == n_steps
    assert losses.map(math.isfinite).all()
    schedule = model.ratio_schedule(4)
    assert ratios.tolist() == [schedule(step, n_steps) for step in range(n_steps)]


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_the_loss_is_finite_at_the_ends_of_masked_diffusion(build, pretrain, ratio):
    model = pretrain(build(mask_ratio=FixedRatio(ratio)), max_epochs=1, limit_train_batches=3)
    assert model.history_["train_loss_step"]["train_loss_step"].map(math.isfinite).all()


def test_a_seed_repeats_a_run_whatever_the_global_generator(build, pretrain):
    torch.manual_seed(0)
    first = pretrain(build(**DROPOUT), max_epochs=1)
    torch.manual_seed(99)
    assert_same(pretrain(build(**DROPOUT), max_epochs=1), first)
    other = pretrain(build(**DROPOUT), max_epochs=1, seed=1)
    assert not torch.equal(other.network.lm_head.bias, first.network.lm_head.bias)


def test_a_run_broken_off_in_mid_epoch_ends_where_the_unbroken_one_does(build, pretrain, blocks, tmp_path):
    options = {"accumulate_grad_batches": 2, "validation": blocks}
    whole = pretrain(build(**DROPOUT, mask_ratio=DecayRatio(0.4, 0.15)), **options)
    broken = build(**DROPOUT, mask_ratio=DecayRatio(0.4, 0.15))
    checkpoint = tmp_path / "killed.ckpt"
    with pytest.raises(KilledError):
        pretrain(broken, callbacks=[KillAt(7, checkpoint)], **options)
    resumed = build(**DROPOUT, mask_ratio=DecayRatio(0.4, 0.15))
    assert_same(pretrain(resumed, resume=checkpoint, **options), whole)


def test_checkpoints_are_written_and_gone_on_from(build, pretrain, tmp_path):
    whole = pretrain(build(), max_epochs=2, learning_rate=None)
    pretrain(build(), max_epochs=1, learning_rate=None, checkpoint_dir=tmp_path)
    resumed = pretrain(build(), max_epochs=2, learning_rate=None, resume=tmp_path)
    assert torch.equal(resumed.network.lm_head.bias, whole.network.lm_head.bias)


def test_each_micro_batch_has_a_ratio_of_its_own_and_counts_the_same(build, blocks):
    lr, half = 1e-3, blocks.tokens[:16]
    run = {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "learning_rate": None,
        "gradient_clip_val": None,
    }
    run |= {"weight_decay": 0.0, "lr": lr, "batch_size": 8}
    model = build(mask_ratio=(0.1, 0.9))
    expected = build(mask_ratio=(0.1, 0.9)).train()
    text.pretrain(
        model, text.TokenBlocks(half, blocks.tokenizer), max_epochs=1, accumulate_grad_batches=2, **run
    )
    ratios = model.history_["mask_ratio_step"]["mask_ratio_step"].tolist()
    assert len(ratios) == 2
    assert ratios[0] != ratios[1]
    loader = ThreadedLoader(text.TokenBlocks(half, blocks.tokenizer), batch_size=8, shuffle=True, seed=0)
    losses = [
        expected.training_loss(tokens, ratio=ratio, seed=0, step=step).loss
        for step, (tokens, ratio) in enumerate(zip(loader, ratios, strict=True))
    ]
    (sum(losses) / 2).backward()
    optimizer = torch.optim.AdamW(expected.parameters(), lr=lr, weight_decay=0.0)
    optimizer.step()
    torch.testing.assert_close(model.network.lm_head.bias, expected.network.lm_head.bias)


def test_mixed_precision_trains_with_weights_in_float32(build, pretrain):
    model = pretrain(build(), precision="bf16-mixed", max_epochs=1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    exact = pretrain(build(), max_epochs=1).history_["train_loss"]["train_loss"].item()
    assert model.history_["train_loss"]["train_loss"].item() == pytest.approx(exact, rel=0.01)


def test_validation_has_the_same_masks_at_every_epoch_and_scheme(build, pretrain, blocks):
    run = {"validation": blocks, "lr": 1e-30, "weight_decay": 0.0}
    first = pretrain(build(mask_ratio=0.15), **run).history_
    second = pretrain(build(mask_ratio=(0.5, 0.9)), **run).history_
    for ratio in text.VALIDATION_RATIOS:
        values = [h[f"validation_loss_{ratio:g}"].iloc[:, 0].tolist() for h in (first, second)]
        assert values[0] == values[1]
        assert len(set(values[0])) == 1


def test_curves_of_a_second_run_continue_those_of_the_first(build, pretrain):
    model = pretrain(build(), max_epochs=1)
    n_steps = len(model.history_["train_loss_step"])
    pretrain(model, max_epochs=1, seed=1)
    assert model.history_["train_loss_step"].index.tolist() == list(range(2 * n_steps))


def test_bad_input_is_named(build, pretrain, documents, blocks):
    other = text.BytePairTokenizer.train(documents, vocab_size=280)
    with pytest.raises(ValueError, match=r"packed with a tokenizer of 280 tokens that is not the network's"):
        pretrain(blocks=text.pack(documents, other, length=16))
    with pytest.raises(ValueError, match="validation was packed"):
        pretrain(validation=text.pack(documents, other, length=16))
    with pytest.raises(ValueError, match=r"blocks of 16 tokens and the network positions for 8"):
        pretrain(build(max_position_embeddings=10))
    with pytest.raises(ValueError, match="max_epochs must be at least 1"):
        pretrain(max_epochs=0)
    with pytest.raises(ValueError, match="lie in"):
        text.score(build(), blocks, ratios=(1.5,))
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        pretrain(resume="nowhere")


@pytest.mark.slow
def test_two_ranks_share_ratios_and_weights_and_split_the_text(documents, tokenizer, build, tmp_path):
    blocks = text.pack(documents, tokenizer, length=16, out=tmp_path / "packed")
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    subprocess.run([sys.executable, script, tmp_path / "packed", tmp_path], check=True, timeout=300)
    one, two = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert one["world"] == 2
    assert one["weights"] == two["weights"]
    schedule = build(mask_ratio=(0.15, 0.40)).ratio_schedule(0)
    assert one["ratios"] == two["ratios"] == [schedule(step, 0) for step in range(-(-len(blocks) // 16))]
    assert one["first"] != two["first"]


def test_a_classifier_learns_a_task(build):
    scores = finetune_scores(
        build(), labeled(320), labeled(100, seed=1), seeds=(0, 1), max_epochs=4, lr=1e-2, **RUN
    )
    assert scores["seed"].tolist() == [0, 1]
    assert scores["accuracy"].mean() > 0.97


def test_a_classifier_of_pairs_looks_at_both(build):
    # Which class depends on the second sentence alone; without it one can but guess.
    pairs = {seed: labeled(320, seed=seed, pairs=True) for seed in (0, 1)}
    data = {
        seed: LabeledText(
            each.first, each.second, [int("cat" in second) for second in each.second], ("0", "1")
        )
        for seed, each in pairs.items()
    }
    scores = finetune_scores(build(), data[0], data[1], seeds=(0,), max_epochs=5, lr=1e-2, **RUN)
    assert scores["accuracy"].item() > 0.95


def test_finetuning_leaves_the_pretrained_model_as_it_is_and_repeats(build):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = {"seeds": (3,), "max_epochs": 1, "lr": 1e-3, **RUN}
    first = finetune_scores(model, labeled(64), labeled(32, seed=1), **run)
    torch.manual_seed(77)
    pd.testing.assert_frame_equal(finetune_scores(model, labeled(64), labeled(32, seed=1), **run), first)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_finetuning_returns_the_classifier_with_its_curves(build):
    classifier = RobertaClassifier.from_network(build(), 2)
    run = {**RUN, "max_epochs": 2, "lr": 1e-3}
    assert text.finetune(classifier, labeled(64), validation=labeled(32, seed=1), **run) is classifier
    assert len(classifier.history_["train_loss"]) == 2
    probability = text.predict_proba(classifier, labeled(32, seed=1), length=24)
    expected = -np.log(probability[np.arange(32), labeled(32, seed=1).labels]).mean()
    assert classifier.history_["validation_loss"].iloc[-1].item() == pytest.approx(expected, rel=1e-4)
    assert not classifier.training


def test_bad_finetuning_is_named(build):
    model, data = build(), labeled(8)
    three = LabeledText(["a"], None, [2], ("x", "y", "z"))
    with pytest.raises(ValueError, match="must have the same classes"):
        finetune_scores(model, data, three)
    with pytest.raises(ValueError, match="seeds is empty"):
        finetune_scores(model, data, data, seeds=())
    with pytest.raises(ValueError, match="length must lie between 5 and 512"):
        finetune_scores(model, data, data, length=600)
    with pytest.raises(ValueError, match="has 3 classes"):
        text.predict_proba(RobertaClassifier.from_network(model, 2), three)
    with pytest.raises(ValueError, match="n_classes must be at least 2"):
        RobertaClassifier.from_network(model, 1)
    with pytest.raises(ValueError, match="ratio must be 0"):
        RobertaClassifier.from_network(model, 2).training_loss({}, ratio=0.15, seed=0, step=0)
