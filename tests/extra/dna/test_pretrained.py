"""Folders of networks, and published weights."""

import json

import pytest
import torch

from scr2mae.extra import dna


@pytest.mark.parametrize("curriculum", [None, "cl"])
def test_a_saved_network_comes_back(random_tokens, tiny, tmp_path, curriculum):
    model = tiny(seed=3, curriculum=curriculum).eval()
    model.save_pretrained(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    back = dna.GPNMSAForMaskedLM.from_pretrained(tmp_path / "model")
    assert back.config == model.config
    assert not back.training
    human, others = random_tokens()
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


def test_logits_of_published_weights_are_those_of_roformer(random_tokens, tiny, published):
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

    human, others = random_tokens()
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
        match=r"do not fit the configuration: \['layers.1.key.bias', 'layers.1.key.weight'\] are missing",
    ):
        dna.GPNMSAForMaskedLM.from_songlab_state_dict(short, config)
    with pytest.raises(ValueError, match=r"size mismatch for layers.0.query.weight: .*\[5, 32\].*\[32, 32\]"):
        dna.GPNMSAForMaskedLM.from_songlab_state_dict(
            {**published, "model.encoder.layer.0.attention.self.query.weight": torch.zeros(5, 32)}, config
        )


def test_the_names_of_the_species_come_back_with_the_weights(tiny, tmp_path):
    model = tiny()
    for species in (None, ("a", "b", "c")):
        model.species_ = species
        model.save_pretrained(tmp_path, overwrite=True)
        assert dna.GPNMSAForMaskedLM.from_pretrained(tmp_path).species_ == species
