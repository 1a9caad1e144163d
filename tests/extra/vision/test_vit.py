"""ViT-MAE: masks, loss, initialization, unchanged configuration, checkpoints."""

import copy

import numpy as np
import pytest
import torch
from transformers import ViTMAEForPreTraining

import scr2mae
from scr2mae.extra import vision
from scr2mae.extra.vision.vit import normalize, position_table
from scr2mae.masking import draw_mask

from .conftest import TINY, make_vit

N_PATCHES = 16


@pytest.fixture(scope="module")
def vit():
    """A network that no test changes."""
    return make_vit().eval()


@pytest.fixture
def x(images):
    return images.batch(np.arange(6))["image"]


@pytest.mark.parametrize("ratio", [0.0, 1e-6, 0.031, 0.33, 0.5, 0.6, 0.75, 0.9, 0.97, 1.0])
def test_each_image_masks_the_rounded_share_of_its_patches_as_drawn(vit, x, ratio):
    out = vit(x, ratio=ratio, seed=3, step=7)
    assert out.mask.sum(dim=1).tolist() == [min(max(round(ratio * N_PATCHES), 1), N_PATCHES - 1)] * 6
    assert torch.equal(out.mask.bool(), draw_mask(N_PATCHES, ratio, seed=3, step=7, n_obs=6))
    assert torch.isfinite(out.loss)


@pytest.mark.parametrize("n", [4, 9, 49, 100, 196])
def test_no_number_of_patches_is_lost_to_rounding(n):
    side = round(n**0.5)
    torch.manual_seed(0)
    network = vision.R2ViTMAE(
        vision.vit_config(image_size=2 * side, patch_size=2, **{**TINY, "num_hidden_layers": 0})
    )
    for n_hidden in range(1, n):
        assert (
            network(torch.zeros(1, 3, 2 * side, 2 * side), ratio=n_hidden / n, seed=0, step=0).mask.sum()
            == n_hidden
        )


def test_the_configuration_is_left_as_it_was_even_by_an_error(vit, x):
    before = copy.deepcopy(vit.config.to_dict())
    vit(x, ratio=0.9, seed=0, step=0)
    vit.embed(x)
    vit.config.mask_ratio = before["mask_ratio"]
    with pytest.raises(RuntimeError):
        vit(x.to(torch.float64), ratio=0.1, seed=0, step=0)
    assert vit.config.to_dict() == before
    assert vit.mae.vit.embeddings.config.mask_ratio == 0.75


@pytest.mark.parametrize("name", scr2mae.schemes("vision"))
def test_the_loss_and_its_gradient_are_finite_under_every_scheme(name, x):
    network = make_vit()
    schedule = scr2mae.schemes("vision")[name].mask_ratio
    for step in range(4):
        network.training_loss({"image": x}, ratio=schedule(step, 4), seed=0, step=step).loss.backward()
    grads = [p.grad for p in network.parameters() if p.requires_grad]
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert sum(float(grad.abs().sum()) for grad in grads) > 0


def test_the_loss_is_that_of_normalized_masked_patches(vit, x):
    out = vit(x, ratio=0.5, seed=0, step=1)
    z = normalize(x).unfold(2, 4, 4).unfold(3, 4, 4)  # (n, c, rows, columns, 4, 4)
    patches = z.permute(0, 2, 3, 4, 5, 1).reshape(6, N_PATCHES, 48)
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    expected = (out.logits - target).square()[out.mask.bool()].mean()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_reaches_no_visible_patch_target_and_masked_patches_are_not_seen(vit, x):
    kept = {}
    hook = vit.mae.decoder.decoder_pred.register_full_backward_hook(
        lambda _, __, grad: kept.update(grad=grad[0])
    )
    out = vit(x, ratio=0.6, seed=0, step=2)
    out.loss.backward()
    hook.remove()
    masked, grad = out.mask.bool(), kept["grad"][:, 1:]
    assert (grad[~masked] == 0).all()
    assert (grad[masked].abs().sum(dim=-1) > 0).all()
    pixels = masked.view(6, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(x)
    other = vit(torch.where(pixels, torch.rand_like(x), x), ratio=0.6, seed=0, step=2)
    torch.testing.assert_close(other.logits, out.logits, rtol=0, atol=0)


def test_weights_start_as_in_the_original():
    config = vision.vit_config("tiny", image_size=32, patch_size=4)
    assert config.layer_norm_eps == 1e-6
    assert config.norm_pix_loss
    torch.manual_seed(0)
    network = vision.R2ViTMAE(config)
    weights = dict(network.mae.named_parameters())
    table = weights["vit.embeddings.position_embeddings"]
    assert not table.requires_grad
    # Row r, column c of the grid: sine of the column first; class token zero.
    frequency = 10_000 ** (-5 / 48)
    assert table[0, 1 + 8 * 2 + 3, 5].item() == pytest.approx(np.sin(3 * frequency), abs=1e-6)
    assert table[0, 1 + 8 * 2 + 3, 96 + 5].item() == pytest.approx(np.sin(2 * frequency), abs=1e-6)
    assert table[0, 1 + 8 * 2 + 3, 144 + 5].item() == pytest.approx(np.cos(2 * frequency), abs=1e-6)
    assert (table[0, 0] == 0).all()
    torch.testing.assert_close(weights["decoder.decoder_pos_embed"].data, position_table(128, 8))
    for name in (
        "vit.layers.0.mlp.fc1",
        "decoder.decoder_embed",
        "decoder.decoder_layers.1.attention.o_proj",
    ):
        n_out, n_in = weights[f"{name}.weight"].shape
        bound = (6 / (n_in + n_out)) ** 0.5
        assert weights[f"{name}.weight"].abs().max() <= bound
        assert weights[f"{name}.weight"].std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert (weights[f"{name}.bias"] == 0).all()
    patch = weights["vit.embeddings.patch_embeddings.projection.weight"]
    assert patch.abs().max() <= (6 / (192 + 48)) ** 0.5
    for name in ("vit.embeddings.cls_token", "decoder.mask_token"):
        assert weights[name].std().item() == pytest.approx(0.02, rel=0.2)


def test_base_is_vit_base_with_the_decoder_of_mae():
    with torch.device("meta"):
        base = ViTMAEForPreTraining(vision.vit_config("base"))
    trained = {name: p.numel() for name, p in base.named_parameters() if p.requires_grad}
    # A ViT-B/16 has 85.8 million parameters without classifier and learned positions.
    assert sum(n for name, n in trained.items() if name.startswith("vit.")) == 85_647_360
    assert base.decoder.decoder_pred.out_features == 768
    assert (len(base.vit.layers), len(base.decoder.decoder_layers)) == (12, 8)


def test_a_checkpoint_loads_in_plain_transformers_and_back(vit, x, tmp_path):
    vit.save_pretrained(tmp_path)
    plain = ViTMAEForPreTraining.from_pretrained(tmp_path).eval()
    assert plain.config.mask_ratio == 0.75
    weights = plain.state_dict()
    torch.testing.assert_close(dict(weights), dict(vit.mae.state_dict()), rtol=0, atol=0)
    noise = torch.arange(N_PATCHES).float().expand(6, -1)
    plain.config.mask_ratio = 0.5
    logits = plain(normalize(x), noise=noise).logits
    assert torch.isfinite(logits).all()
    back = vision.from_pretrained(tmp_path)
    torch.testing.assert_close(back.embed(x), vit.embed(x), rtol=0, atol=0)


def test_the_image_processor_of_a_checkpoint_does_what_the_network_does(vit, images, tmp_path):
    from transformers import ViTImageProcessor

    vit.save_pretrained(tmp_path)
    processor = ViTImageProcessor.from_pretrained(tmp_path)
    pixels = images.images[0].permute(1, 2, 0).numpy()
    processed = processor(pixels, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        processed, normalize(images.batch(np.arange(1))["image"]), rtol=1e-4, atol=1e-4
    )


def test_embedding_sees_all_patches_in_order_and_is_the_mean_over_them(vit, x):
    noise = torch.arange(N_PATCHES).float().expand(6, -1)
    vit.mae.config.mask_ratio, before = 0.0, vit.mae.config.mask_ratio
    states = vit.mae.vit(normalize(x), noise=noise).last_hidden_state
    vit.mae.config.mask_ratio = before
    torch.testing.assert_close(vit.embed(x), states[:, 1:].mean(dim=1))


def test_reconstruction_keeps_visible_pixels_and_fills_masked_ones(vit, x):
    shown, mask = vit.reconstruct(x, ratio=0.75, seed=0, step=0)
    assert mask.float().mean().item() == 0.75
    masked = mask.expand_as(x)
    torch.testing.assert_close(shown[~masked], x[~masked])
    assert not torch.allclose(shown[masked], x[masked])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image_size": 30, "patch_size": 16},
            r"divisible by patch_size, got 30 and 16.*\[2, 3, 5, 6, 10, 15\]",
        ),
        ({"image_size": 16, "patch_size": 16}, "single patch"),
        ({"hidden_size": 30}, "hidden_size must be divisible by 4"),
        ({"decoder_num_attention_heads": 7}, "decoder_hidden_size must be divisible by 4 and by its 7 heads"),
        ({"patch_size": (4, 8)}, "must be square"),
        ({"preset": "huge"}, r"one of \['base', 'tiny'\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        vision.vit_config(**arguments)


@pytest.mark.parametrize("shape", [(2, 3, 20, 20), (2, 1, 16, 16)])
def test_images_of_another_size_are_refused(vit, shape):
    with pytest.raises(ValueError, match="The network takes images of"):
        vit(torch.zeros(shape), ratio=0.5, seed=0, step=0)


def test_only_weights_of_two_dimensions_and_more_are_decayed():
    network = make_vit()
    groups = network.parameter_groups(0.05)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert {p.dim() for p in groups[1]["params"]} == {1}
    n_trained = sum(p.requires_grad for p in network.parameters())
    assert sum(len(group["params"]) for group in groups) == n_trained
