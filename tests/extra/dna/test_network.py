"""The network: its size, what its logits depend on, its loss and curriculum, and invalid inputs."""

import pytest
import torch
from torch.nn import functional as F

from scr2mae.extra import dna
from scr2mae.extra.dna.corruption import corrupt, draw_base_mask
from scr2mae.nn.curriculum import Curriculum

# --- size and input


def test_the_default_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = dna.GPNMSAForMaskedLM(dna.GPNMSAConfig())
    # 12 layers of four square maps, a block of 3072 and two normalizations; a dense head and six symbols
    layer = 4 * (768 * 768 + 768) + (768 * 3072 + 3072) + (3072 * 768 + 768) + 4 * 768
    head = (768 * 768 + 768) + 2 * 768 + (768 * 6 + 6)
    assert sum(p.numel() for p in model.parameters()) == 12 * layer + head == 85_651_206
    assert all(p.device.type == "meta" for p in model.parameters())


def test_the_input_is_one_hot_human_symbol_then_one_hot_species_then_zeros(random_tokens, tiny):
    human, others = random_tokens()
    x = tiny().embed_tokens(human, others)
    wanted = torch.cat(
        [F.one_hot(human.long(), 6), F.one_hot(others.long(), 5).flatten(2), torch.zeros(4, 16, 32 - 21)],
        dim=-1,
    )
    assert torch.equal(x, wanted.float())


def test_seeds_make_the_same_and_other_weights(tiny):
    first, again, other = (tiny(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head_dense.weight"], other["head_dense.weight"])


def test_making_a_network_leaves_the_global_generator_alone(tiny):
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    tiny(seed=7)
    assert torch.equal(torch.rand(1), wanted)


# --- dependence of the logits


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_do_not_depend_on_padding(random_tokens, tiny, side):
    model = tiny().eval()
    human, others = random_tokens()
    padded_human, padded_others = random_tokens(n_positions=24, seed=5)
    own = slice(8, 24) if side == "left" else slice(0, 16)
    padded_human[:, own], padded_others[:, own] = human, others
    attention_mask = torch.zeros(4, 24, dtype=torch.bool)
    attention_mask[:, own] = True
    alone = model(human, others).logits
    together = model(padded_human, padded_others, attention_mask=attention_mask).logits[:, own]
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=1e-5)


def test_logits_do_not_depend_on_the_batch(random_tokens, tiny):
    model = tiny().eval()
    human, others = random_tokens(8)
    together = model(human, others).logits
    for i in (0, 3, 7):
        torch.testing.assert_close(
            model(human[i : i + 1], others[i : i + 1]).logits[0], together[i], atol=2e-6, rtol=1e-5
        )


def test_logits_depend_on_every_position_and_species(random_tokens, tiny):
    model = tiny().eval()
    human, others = random_tokens(1)
    before = model(human, others).logits[0, 0]
    for position in (1, 15):
        changed = human.clone()
        changed[0, position] = 1 + changed[0, position] % 4
        assert not torch.allclose(model(changed, others).logits[0, 0], before, atol=1e-7)
    for species in range(3):
        changed = others.clone()
        changed[0, 9, species] = (changed[0, 9, species] + 1) % 5
        assert not torch.allclose(model(human, changed).logits[0, 0], before, atol=1e-7)


# --- the loss


def test_the_loss_is_the_weighted_mean_of_the_element_losses(random_tokens, tiny):
    model = tiny().eval()
    human, others = random_tokens()
    labels = human.long().clone()
    labels[:, ::3] = -100
    rng = torch.Generator().manual_seed(0)
    weight, curriculum = torch.rand(4, 16, generator=rng), torch.rand(4, 16, generator=rng)
    out = model(human, others, labels=labels, loss_weight=weight, curriculum_weight=curriculum)
    scored = labels != -100
    nll = -out.logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(out.element_loss, torch.where(scored, nll, 0.0))
    wanted = (nll * weight * curriculum)[scored].sum() / weight[scored].sum()
    torch.testing.assert_close(out.loss, wanted)
    torch.testing.assert_close(model(human, others, labels=labels).loss, nll[scored].mean())


def test_the_training_loss_is_that_of_the_forward_pass_on_corrupted_windows(random_tokens, tiny):
    model = tiny().eval()
    human, others = random_tokens(6)
    weight = torch.rand(6, 16, generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": human, "aux_features": others, "loss_weight": weight}
    draw = {"seed": 4, "step": 9}
    mask = draw_base_mask(human, 0.3, **draw)
    labels = human.long().masked_fill(~mask, -100)
    wanted = model(corrupt(human, mask, **draw), others, labels=labels, loss_weight=weight).loss
    found = model.training_loss(batch, ratio=0.3, **draw)
    torch.testing.assert_close(found.loss, wanted)
    assert found.n_obs_minibatch == 6


def test_the_training_loss_neither_masks_nor_sees_padding(random_tokens, tiny):
    model = tiny().eval()
    human, others = random_tokens(6)
    attention_mask = torch.ones(6, 16, dtype=torch.bool)
    attention_mask[:, 10:] = False
    losses = []
    for filling in (1, 4):
        filled, filled_others = human.clone(), others.clone()
        filled[:, 10:], filled_others[:, 10:] = filling, filling
        batch = {"input_ids": filled, "aux_features": filled_others, "attention_mask": attention_mask}
        losses.append(model.training_loss(batch, ratio=0.5, seed=0, step=0).loss)
    torch.testing.assert_close(losses[0], losses[1])


def test_dropout_is_a_function_of_seed_and_step(random_tokens, tiny):
    model = tiny(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    human, others = random_tokens()
    batch = {"input_ids": human, "aux_features": others}
    torch.manual_seed(0)
    first = model.training_loss(batch, ratio=0.3, seed=1, step=2).loss
    torch.manual_seed(1)
    assert torch.equal(model.training_loss(batch, ratio=0.3, seed=1, step=2).loss, first)
    model.eval()
    assert not torch.equal(model.training_loss(batch, ratio=0.3, seed=1, step=2).loss, first)


# --- curriculum


def test_curriculum_weights_multiply_the_loss_and_have_mean_one(random_tokens, tiny):
    model = tiny(curriculum="cl").eval()
    human, others = random_tokens(8)
    batch = {"input_ids": human, "aux_features": others}
    draw = {"ratio": 0.4, "seed": 0, "step": 3}
    mask = draw_base_mask(human, 0.4, seed=0, step=3)
    hidden = model.encode(corrupt(human, mask, seed=0, step=3), others)[mask]
    weights = model.curriculum_weights(hidden)
    n = int(mask.sum())
    assert weights.shape == (n, 10)
    torch.testing.assert_close(weights.sum(0), torch.full((10,), float(n)), rtol=1e-4, atol=1e-3)
    nll = F.cross_entropy(model.predict(hidden), human.long()[mask], reduction="none")
    found = model.training_loss(batch, **draw, ratio_index=4, grad_scale=1.0).loss
    torch.testing.assert_close(found, (nll * weights[:, 4]).mean())
    torch.testing.assert_close(model.training_loss(batch, **draw).loss, nll.mean())


def test_grad_scale_reverses_the_curriculum_and_never_reaches_the_backbone(random_tokens, tiny):
    model = tiny(curriculum=Curriculum(n_ratios=4)).eval()
    human, others = random_tokens(8)
    batch = {"input_ids": human, "aux_features": others}
    gradients = {}
    for grad_scale in (1.0, -1.0, 0.0):
        model.zero_grad()
        model.training_loss(
            batch, ratio=0.4, seed=0, step=0, ratio_index=1, grad_scale=grad_scale
        ).loss.backward()
        gradients[grad_scale] = {name: p.grad.clone() for name, p in model.named_parameters()}
    own = [name for name in gradients[1.0] if name.startswith("curriculum")]
    assert any(bool(gradients[1.0][name].any()) for name in own)
    for name, there in gradients[1.0].items():
        back, off = gradients[-1.0][name], gradients[0.0][name]
        torch.testing.assert_close(back, -there if name in own else there)
        torch.testing.assert_close(off, torch.zeros_like(there) if name in own else there)


def test_a_ratio_index_without_a_curriculum_is_refused(random_tokens, tiny):
    human, others = random_tokens()
    with pytest.raises(ValueError, match=r"has no curriculum; give its GPNMSAConfig"):
        tiny().training_loss(
            {"input_ids": human, "aux_features": others}, ratio=0.3, seed=0, step=0, ratio_index=0
        )


def test_biases_and_normalizations_do_not_decay(tiny):
    model = tiny(curriculum="cl")
    decayed, others = model.parameter_groups(0.01)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert {id(p) for p in others["params"]} == {
        id(p) for name, p in model.named_parameters() if name.endswith("bias") or "norm" in name
    }
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_a_network_without_species_takes_the_human_column_alone(random_tokens, tiny):
    human, others = random_tokens()
    model = tiny(n_species=0).eval()
    assert model(human).logits.shape == (4, 16, 6)
    with pytest.raises(ValueError, match=r"takes 0 species besides the human column, aux_features has 3"):
        model(human, others)


def test_the_number_of_species_must_be_the_configured_one(random_tokens, tiny):
    human, others = random_tokens(n_species=2)
    with pytest.raises(ValueError, match=r"takes 3 species besides the human column, aux_features has 2"):
        tiny()(human, others)


def test_windows_beyond_the_longest_are_refused(random_tokens, tiny):
    human, others = random_tokens(1, 65)
    with pytest.raises(
        ValueError, match=r"Windows of 65 positions are longer than max_position_embeddings=64"
    ):
        tiny()(human, others)


@pytest.mark.parametrize(
    ("human", "others", "message"),
    [
        (6, 1, r"input_ids must hold tokens from 0 to 5 \(of '-ACGT\?'\), got 1 to 6"),
        (1, 5, r"aux_features must hold tokens from 0 to 4 \(of '-ACGT'\), got 1 to 5"),
        (1, -1, r"aux_features must hold tokens from 0 to 4 .* got -1 to 1"),
    ],
)
def test_tokens_of_another_alphabet_are_refused(tiny, human, others, message):
    """Such tokens would set the channel of another symbol or species."""
    tokens, species = torch.ones(1, 8, dtype=torch.long), torch.ones(1, 8, 3, dtype=torch.long)
    tokens[0, 3], species[0, 3, 1] = human, others
    with pytest.raises(ValueError, match=message):
        tiny()(tokens, species)


def test_inputs_of_another_shape_or_kind_are_refused(random_tokens, tiny):
    human, others = random_tokens()
    with pytest.raises(ValueError, match=r"n_positions, n_species\); got \(4, 16\) and \(4, 15, 3\)"):
        tiny()(human, others[:, 1:])
    with pytest.raises(TypeError, match=r"input_ids must hold integers.*torch.float32"):
        tiny()(human.float(), others)
