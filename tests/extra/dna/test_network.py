"""The network: its size, its positions, what its logits depend on, and whose weights it takes."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scr2mae.extra import dna
from scr2mae.extra.dna.corruption import corrupt, draw_base_mask, flip_labels
from scr2mae.extra.dna.layers import rotary_tables, rotate
from scr2mae.nn.curriculum import Curriculum

N_SPECIES = 3


def windows(n_obs=4, n_positions=16, *, seed=0, n_species=N_SPECIES):
    """Random tokens, without gaps in the human column."""
    rng = np.random.default_rng(seed)
    human = torch.tensor(rng.integers(1, 5, size=(n_obs, n_positions)), dtype=torch.uint8)
    others = torch.tensor(rng.integers(0, 5, size=(n_obs, n_positions, n_species)), dtype=torch.uint8)
    return human, others


# --- size and input


def test_the_default_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = dna.GPNMSAForMaskedLM(dna.GPNMSAConfig())
    # 12 layers of four square maps, a block of 3072 and two normalizations; a dense head and six symbols
    layer = 4 * (768 * 768 + 768) + (768 * 3072 + 3072) + (3072 * 768 + 768) + 4 * 768
    head = (768 * 768 + 768) + 2 * 768 + (768 * 6 + 6)
    assert sum(p.numel() for p in model.parameters()) == 12 * layer + head == 85_651_206
    assert all(p.device.type == "meta" for p in model.parameters())


def test_the_input_is_one_hot_human_symbol_then_one_hot_species_then_zeros(tiny):
    human, others = windows()
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


# --- rotary positions


def test_rotary_angles_are_those_of_the_formula():
    cos, sin = rotary_tables(40, 8)
    for position in (0, 1, 7, 39):
        for pair in range(4):
            angle = position / 10_000 ** (2 * pair / 8)
            assert float(cos[position, pair]) == pytest.approx(math.cos(angle), abs=1e-6)
            assert float(sin[position, pair]) == pytest.approx(math.sin(angle), abs=1e-6)


def test_rotation_is_a_multiplication_of_complex_numbers():
    cos, sin = rotary_tables(9, 6)
    x = torch.randn(2, 3, 9, 6, generator=torch.Generator().manual_seed(0))
    turned = torch.view_as_complex(x.unflatten(-1, (3, 2)).contiguous()) * torch.complex(cos, sin)
    torch.testing.assert_close(rotate(x, cos, sin), torch.view_as_real(turned).flatten(-2))


def test_scores_of_rotated_queries_and_keys_depend_on_their_distance_alone():
    cos, sin = rotary_tables(50, 16)
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    score = [float(rotate(q, cos[t], sin[t]) @ rotate(k, cos[t - 5], sin[t - 5])) for t in (5, 6, 20, 49)]
    assert score == pytest.approx([score[0]] * 4, abs=1e-5)


# --- what logits depend on


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_do_not_depend_on_padding(tiny, side):
    model = tiny().eval()
    human, others = windows()
    padded_human, padded_others = windows(n_positions=24, seed=5)
    own = slice(8, 24) if side == "left" else slice(0, 16)
    padded_human[:, own], padded_others[:, own] = human, others
    attention_mask = torch.zeros(4, 24, dtype=torch.bool)
    attention_mask[:, own] = True
    alone = model(human, others).logits
    together = model(padded_human, padded_others, attention_mask=attention_mask).logits[:, own]
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=1e-5)


def test_logits_do_not_depend_on_the_batch(tiny):
    model = tiny().eval()
    human, others = windows(8)
    together = model(human, others).logits
    for i in (0, 3, 7):
        torch.testing.assert_close(
            model(human[i : i + 1], others[i : i + 1]).logits[0], together[i], atol=2e-6, rtol=1e-5
        )


def test_logits_depend_on_every_position_and_species(tiny):
    model = tiny().eval()
    human, others = windows(1)
    before = model(human, others).logits[0, 0]
    for position in (1, 15):
        changed = human.clone()
        changed[0, position] = 1 + changed[0, position] % 4
        assert not torch.allclose(model(changed, others).logits[0, 0], before, atol=1e-7)
    for species in range(N_SPECIES):
        changed = others.clone()
        changed[0, 9, species] = (changed[0, 9, species] + 1) % 5
        assert not torch.allclose(model(human, changed).logits[0, 0], before, atol=1e-7)


# --- the loss


def test_the_loss_is_the_weighted_mean_of_the_element_losses(tiny):
    model = tiny().eval()
    human, others = windows()
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


def test_the_masked_loss_is_that_of_the_forward_pass_on_the_corrupted_windows(tiny):
    model = tiny().eval()
    human, others = windows(6)
    weight = torch.rand(6, 16, generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": human, "aux_features": others, "loss_weight": weight}
    draw = {"seed": 4, "step": 9}
    mask = draw_base_mask(human, 0.3, **draw)
    labels = human.long().masked_fill(~mask, -100)
    wanted = model(corrupt(human, mask, **draw), others, labels=labels, loss_weight=weight).loss
    found = model.training_loss(batch, ratio=0.3, **draw)
    torch.testing.assert_close(found.loss, wanted)
    assert found.n_obs_minibatch == 6


def test_padding_is_neither_hidden_nor_seen_by_the_masked_loss(tiny):
    model = tiny().eval()
    human, others = windows(6)
    attention_mask = torch.ones(6, 16, dtype=torch.bool)
    attention_mask[:, 10:] = False
    losses = []
    for filling in (1, 4):
        filled, filled_others = human.clone(), others.clone()
        filled[:, 10:], filled_others[:, 10:] = filling, filling
        batch = {"input_ids": filled, "aux_features": filled_others, "attention_mask": attention_mask}
        losses.append(model.training_loss(batch, ratio=0.5, seed=0, step=0).loss)
    torch.testing.assert_close(losses[0], losses[1])


def test_dropout_is_a_function_of_seed_and_step(tiny):
    model = tiny(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    human, others = windows()
    batch = {"input_ids": human, "aux_features": others}
    torch.manual_seed(0)
    first = model.training_loss(batch, ratio=0.3, seed=1, step=2).loss
    torch.manual_seed(1)
    assert torch.equal(model.training_loss(batch, ratio=0.3, seed=1, step=2).loss, first)
    model.eval()
    assert not torch.equal(model.training_loss(batch, ratio=0.3, seed=1, step=2).loss, first)


# --- corruption


def test_the_share_of_known_bases_is_hidden_and_gaps_never_are():
    human, _ = windows(50, 40)
    human[:, ::4] = 0
    for ratio in (0.05, 0.15, 0.3):
        mask = draw_base_mask(human, ratio, seed=0, step=1)
        assert int(mask.sum()) == round(ratio * int((human > 0).sum()))
        assert not bool((mask & (human == 0)).any())


def test_windows_without_bases_are_refused():
    with pytest.raises(
        ValueError, match=r"Only 0 of 16 positions in a mini-batch have a known base; leave such windows out"
    ):
        draw_base_mask(torch.zeros(2, 8, dtype=torch.uint8), 0.3, seed=0, step=0)


def test_of_the_hidden_bases_eighty_percent_are_masked_ten_random_ten_kept():
    human = torch.ones(200, 200, dtype=torch.uint8)
    mask = draw_base_mask(human, 0.5, seed=0, step=0)
    corrupted = corrupt(human, mask, seed=0, step=0)
    assert torch.equal(corrupted[~mask], human[~mask])
    shares = torch.bincount(corrupted[mask].long(), minlength=6) / int(mask.sum())
    # a random base is the old one a quarter of the time
    wanted = [0, 0.1 + 0.025, 0.025, 0.025, 0.025, 0.8]
    np.testing.assert_allclose(shares.numpy(), wanted, atol=0.01)


def test_labels_flip_with_their_probability_and_else_stay():
    labels = torch.ones(40_000, dtype=torch.long)
    probability = torch.zeros(40_000)
    probability[20_000:] = 0.5
    flipped = flip_labels(labels, probability, seed=0, step=0)
    assert torch.equal(flipped[:20_000], labels[:20_000])
    shares = torch.bincount(flipped[20_000:], minlength=5)[1:] / 20_000
    np.testing.assert_allclose(shares.numpy(), [0.5 + 0.125, 0.125, 0.125, 0.125], atol=0.01)


def test_draws_differ_from_step_to_step_and_repeat():
    human, _ = windows(20, 40)
    masks = [draw_base_mask(human, 0.2, seed=0, step=step) for step in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


# --- curriculum


def test_curriculum_weights_multiply_the_loss_and_have_mean_one(tiny):
    model = tiny(curriculum="cl").eval()
    human, others = windows(8)
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


def test_the_multiplier_turns_the_curriculum_and_never_reaches_the_backbone(tiny):
    model = tiny(curriculum=Curriculum(n_ratios=4)).eval()
    human, others = windows(8)
    batch = {"input_ids": human, "aux_features": others}
    gradients = {}
    for multiplier in (1.0, -1.0, 0.0):
        model.zero_grad()
        model.training_loss(
            batch, ratio=0.4, seed=0, step=0, ratio_index=1, grad_scale=multiplier
        ).loss.backward()
        gradients[multiplier] = {name: p.grad.clone() for name, p in model.named_parameters()}
    own = [name for name in gradients[1.0] if name.startswith("curriculum")]
    assert any(bool(gradients[1.0][name].any()) for name in own)
    for name, there in gradients[1.0].items():
        back, off = gradients[-1.0][name], gradients[0.0][name]
        torch.testing.assert_close(back, -there if name in own else there)
        torch.testing.assert_close(off, torch.zeros_like(there) if name in own else there)


def test_a_column_without_a_curriculum_is_refused(tiny):
    human, others = windows()
    with pytest.raises(ValueError, match=r"has no curriculum; give its GPNMSAConfig"):
        tiny().training_loss(
            {"input_ids": human, "aux_features": others}, ratio=0.3, seed=0, step=0, ratio_index=0
        )


def test_biases_and_normalisations_do_not_decay(tiny):
    model = tiny(curriculum="cl")
    decayed, others = model.parameter_groups(0.01)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert {id(p) for p in others["params"]} == {
        id(p) for name, p in model.named_parameters() if name.endswith("bias") or "norm" in name
    }
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


# --- folders and published weights


@pytest.mark.parametrize("curriculum", [None, "cl"])
def test_a_saved_network_comes_back(tiny, tmp_path, curriculum):
    model = tiny(seed=3, curriculum=curriculum).eval()
    model.save_pretrained(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    back = dna.GPNMSAForMaskedLM.from_pretrained(tmp_path / "model")
    assert back.config == model.config
    assert not back.training
    human, others = windows()
    assert torch.equal(back(human, others).logits, model(human, others).logits)


def test_a_folder_of_an_earlier_version_without_hashes_is_read(tiny, tmp_path):
    model = tiny(seed=3)
    model.species_ = ("a", "b", "c")
    model.save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    del document["weights"]
    (tmp_path / "config.json").write_text(json.dumps(document, indent=1))
    back = dna.GPNMSAForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(back.head_dense.weight, model.head_dense.weight)
    assert back.species_ == ("a", "b", "c")


def test_a_snapshot_whose_files_are_links_as_in_the_cache_of_the_hub_loads(tiny, tmp_path):
    tiny(seed=3).save_pretrained(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    back = dna.GPNMSAForMaskedLM.from_pretrained(tmp_path / "snapshot")
    assert torch.equal(back.head_dense.weight, tiny(seed=3).head_dense.weight)


def test_a_model_is_not_overwritten_unless_asked(tiny, tmp_path):
    tiny().save_pretrained(tmp_path)
    with pytest.raises(FileExistsError, match=r"pass overwrite=True"):
        tiny().save_pretrained(tmp_path)
    tiny(seed=1).save_pretrained(tmp_path, overwrite=True)
    back = dna.GPNMSAForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(back.head_dense.weight, tiny(seed=1).head_dense.weight)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"is a file"):
        tiny().save_pretrained(tmp_path / "file")


def test_damaged_and_foreign_folders_say_so(tiny, tmp_path):
    tiny().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    stored, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(stored[:100])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        dna.GPNMSAForMaskedLM.from_pretrained(tmp_path)
    weights.write_bytes(stored)
    document = json.loads(text)
    for changed, message in (
        ({**document, "schema_version": 99}, r"schema version 99"),
        ({"hidden_size": 768}, r"from_songlab_state_dict"),
        ({**document, "config": {**document["config"], "color": 1}}, r"Unknown keys.*color"),
        (
            {**document, "config": {**document["config"], "num_hidden_layers": 3}},
            r"do not fit the configuration",
        ),
    ):
        config.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            dna.GPNMSAForMaskedLM.from_pretrained(tmp_path)
    config.write_text(text[:20])
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        dna.GPNMSAForMaskedLM.from_pretrained(tmp_path)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        dna.GPNMSAForMaskedLM.from_pretrained(tmp_path)


def songlab_names(n_layers):
    """Names and shapes of a published model's weights at the sizes of the tiny network."""
    width, inner = 32, 48
    shapes = {"model.encoder.embed_positions.weight": (64, 8)}
    for i in range(n_layers):
        layer = f"model.encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= {
                f"{layer}.attention.{part}.weight": (width, width),
                f"{layer}.attention.{part}.bias": (width,),
            }
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{part}.weight": (width,), f"{layer}.{part}.bias": (width,)}
        shapes |= {
            f"{layer}.intermediate.dense.weight": (inner, width),
            f"{layer}.intermediate.dense.bias": (inner,),
        }
        shapes |= {f"{layer}.output.dense.weight": (width, inner), f"{layer}.output.dense.bias": (width,)}
    head = "cls.predictions"
    shapes |= {f"{head}.bias": (6,), f"{head}.decoder.weight": (6, width)}
    for part in ("dense", "LayerNorm"):
        shape = (width, width) if part == "dense" else (width,)
        shapes |= {f"{head}.transform.{part}.weight": shape, f"{head}.transform.{part}.bias": (width,)}
    return shapes


@pytest.fixture
def published():
    rng = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=rng) for name, shape in songlab_names(2).items()}


def test_published_weights_go_where_they_belong(tiny, published):
    model = dna.GPNMSAForMaskedLM.from_songlab_state_dict(published, tiny().config)
    state = model.state_dict()
    assert len(state) == len(published) - 1  # without the table of positions
    assert torch.equal(
        state["layers.1.attention_norm.weight"],
        published["model.encoder.layer.1.attention.output.LayerNorm.weight"],
    )
    assert torch.equal(
        state["layers.0.contract.weight"], published["model.encoder.layer.0.output.dense.weight"]
    )
    assert torch.equal(
        state["layers.0.attention_output.bias"],
        published["model.encoder.layer.0.attention.output.dense.bias"],
    )
    assert torch.equal(state["head_decoder.bias"], published["cls.predictions.bias"])


def test_logits_of_published_weights_are_those_of_roformer(tiny, published):
    roformer = pytest.importorskip("transformers.models.roformer.modeling_roformer")
    config = roformer.RoFormerConfig(
        vocab_size=6, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        layer_norm_eps=1e-12, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    layers = torch.nn.ModuleList(roformer.RoFormerLayer(config, layer_idx=i) for i in range(2)).eval()
    head = roformer.RoFormerOnlyMLMHead(config).eval()
    prefix = "model.encoder.layer."
    layers.load_state_dict({k.removeprefix(prefix): v for k, v in published.items() if k.startswith(prefix)})
    own = {k.removeprefix("cls."): v for k, v in published.items() if k.startswith("cls.")}
    head.load_state_dict(own | {"predictions.decoder.bias": own["predictions.bias"]})
    positions = roformer.RoFormerSinusoidalPositionalEmbedding(64, 8)
    positions.weight = torch.nn.Parameter(positions.create_weight())

    human, others = windows()
    model = dna.GPNMSAForMaskedLM.from_songlab_state_dict(published, tiny().config)
    with torch.no_grad():
        h = model.embed_tokens(human, others)
        table = positions(h.shape[:2])[None, None]
        for layer in layers:
            h = layer(h, sinusoidal_pos=table)
            h = h if torch.is_tensor(h) else h[0]
        torch.testing.assert_close(model(human, others).logits, head(h), atol=1e-5, rtol=1e-5)


def test_weights_of_another_model_are_refused(tiny, published):
    config = tiny().config
    with pytest.raises(ValueError, match=r"unknown names \['bert.pooler.weight'\]"):
        dna.GPNMSAForMaskedLM.from_songlab_state_dict(
            {**published, "bert.pooler.weight": torch.zeros(1)}, config
        )
    with pytest.raises(ValueError, match=r"unknown names \['model.encoder.layer.2"):
        dna.GPNMSAForMaskedLM.from_songlab_state_dict(
            {**published, "model.encoder.layer.2.output.dense.bias": torch.zeros(32)}, config
        )
    short = {name: t for name, t in published.items() if "layer.1.attention.self.key" not in name}
    with pytest.raises(
        ValueError,
        match=r"do not fit the configuration: .*Missing.*\"layers.1.key.weight\", \"layers.1.key.bias\"",
    ):
        dna.GPNMSAForMaskedLM.from_songlab_state_dict(short, config)
    with pytest.raises(ValueError, match=r"size mismatch for layers.0.query.weight: .*\[5, 32\].*\[32, 32\]"):
        dna.GPNMSAForMaskedLM.from_songlab_state_dict(
            {**published, "model.encoder.layer.0.attention.self.query.weight": torch.zeros(5, 32)}, config
        )


# --- configuration


def test_the_configuration_of_the_published_model_is_read():
    described = {
        "model_type": "GPNRoFormer", "vocab_size": 6, "n_aux_features": 445, "aux_features_vocab_size": 5,
        "hidden_size": 768, "num_hidden_layers": 12, "hidden_act": "gelu", "embedding_size": None, "torch_dtype": "float32",
    }  # fmt: skip
    assert dna.GPNMSAConfig.from_songlab_config(described) == dna.GPNMSAConfig()
    for wrong in (
        {"rotary_value": True},
        {"hidden_act": "relu"},
        {"vocab_size": 7},
        {"n_aux_features": 444},
        {"embedding_size": 100},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dna.GPNMSAConfig.from_songlab_config({**described, **wrong})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, r"multiple of 2 \* num_attention_heads = 8"),
        ({"n_species": 6, "hidden_size": 32}, r"6 species need 36 channels .* more than hidden_size=32"),
        ({"n_species": -1}, r"n_species must be >= 0, got -1"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers must be at least 1"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must lie in \[0, 1\)"),
        ({"curriculum": "easy"}, r"curriculum must be 'cl', 'cl_k0'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tiny, sizes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**sizes)


def test_a_network_without_species_takes_the_human_column_alone(tiny):
    human, others = windows()
    model = tiny(n_species=0).eval()
    assert model(human).logits.shape == (4, 16, 6)
    with pytest.raises(ValueError, match=r"takes 0 species besides the human column, aux_features has 3"):
        model(human, others)


def test_the_number_of_species_must_be_the_configured_one(tiny):
    human, others = windows(n_species=2)
    with pytest.raises(ValueError, match=r"takes 3 species besides the human column, aux_features has 2"):
        tiny()(human, others)


def test_windows_beyond_the_longest_are_refused(tiny):
    human, others = windows(1, 65)
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
    """Else they would light the channel of another symbol or species."""
    tokens, species = torch.ones(1, 8, dtype=torch.long), torch.ones(1, 8, 3, dtype=torch.long)
    tokens[0, 3], species[0, 3, 1] = human, others
    with pytest.raises(ValueError, match=message):
        tiny()(tokens, species)


def test_inputs_of_another_shape_or_kind_are_refused(tiny):
    human, others = windows()
    with pytest.raises(ValueError, match=r"n_positions, n_species\); got \(4, 16\) and \(4, 15, 3\)"):
        tiny()(human, others[:, 1:])
    with pytest.raises(TypeError, match=r"input_ids must hold integers.*torch.float32"):
        tiny()(human.float(), others)


def test_the_names_of_the_species_come_back_with_the_weights(tiny, tmp_path):
    model = tiny()
    for species in (None, ("a", "b", "c")):
        model.species_ = species
        model.save_pretrained(tmp_path, overwrite=True)
        assert dna.GPNMSAForMaskedLM.from_pretrained(tmp_path).species_ == species
