"""MLP and U-Net: masked pixels, loss, embeddings, refused images."""

import numpy as np
import pytest
import torch
from torch import nn

from scr2mae.extra import vision
from scr2mae.extra.vision.pixels import draw_pixel_mask, masked_mse

from .conftest import make_images, make_mlp, make_unet

NETWORKS = {"mlp": make_mlp, "unet": make_unet}


@pytest.mark.parametrize(
    ("n_hidden", "n_latent"), [(h, k) for h in (16, 512) for k in (16, 32, 64, 256, 1024)]
)
def test_the_mlp_has_the_layers_of_the_paper(n_hidden, n_latent):
    network = vision.MaskedMLP(n_hidden=n_hidden, n_latent=n_latent)
    shapes = [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(784, n_hidden), (n_hidden, n_latent), (n_latent, 784)]
    assert [m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm1d)] == [
        n_hidden,
        n_latent,
    ]


@pytest.mark.parametrize("base", [8, 16, 32])
def test_the_unet_has_four_levels_each_way_and_doubles_its_channels(base):
    network = vision.MaskedUNet(base_channels=base)
    down = [block[0].out_channels for block in network.down]
    assert down == [base * 2**i for i in range(4)]
    assert [block[0].in_channels for block in network.up] == [2 * n for n in reversed(down)]
    assert all(
        sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in block) == 2 for block in network.up
    )
    bottleneck, skips = network.encode(torch.zeros(2, 3, 64, 64))
    assert bottleneck.shape == (2, 16 * base, 4, 4)
    assert [skip.shape[2] for skip in skips] == [64, 32, 16, 8]
    assert network(torch.zeros(2, 3, 64, 48)).shape == (2, 3, 64, 48)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.37, 0.9, 1.0])
def test_each_image_masks_its_own_rounded_share_in_all_channels(ratio):
    mask = draw_pixel_mask(torch.zeros(5, 3, 12, 10), ratio, seed=1, step=2)
    assert mask.shape == (5, 1, 12, 10)
    assert mask.flatten(1).sum(dim=1).tolist() == [min(max(round(ratio * 120), 1), 119)] * 5
    assert ratio in (0.0, 1.0) or len({tuple(row.tolist()) for row in mask.flatten(1)}) == 5


def test_the_loss_is_the_mean_squared_error_over_masked_pixels():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 4, 3, 5, 5)).astype(np.float32)
    mask = rng.uniform(size=(4, 1, 5, 5)) < 0.4
    expected = ((a - b) ** 2)[np.broadcast_to(mask, a.shape)].mean()
    assert masked_mse(torch.tensor(a), torch.tensor(b), torch.tensor(mask)).item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ratio", [0.0, 1e-9, 0.5, 1.0])
def test_the_loss_and_its_gradient_are_finite_at_every_ratio(name, ratio, images):
    network = NETWORKS[name]()
    out = network.training_loss(images.batch(np.arange(4)), ratio=ratio, seed=0, step=0)
    out.loss.backward()
    assert out.n_obs_minibatch == 4
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_reaches_no_visible_pixel_and_masked_pixels_are_not_seen(name, images):
    network = NETWORKS[name]().eval()
    x = images.batch(np.arange(4))["image"]
    mask = draw_pixel_mask(x, 0.6, seed=0, step=5)
    prediction = network(x, mask).detach().requires_grad_()
    masked_mse(prediction, x, mask).backward()
    masked = mask.expand_as(x)
    assert (prediction.grad[~masked] == 0).all()
    assert (prediction.grad[masked] != 0).all()
    other = torch.where(masked, torch.rand_like(x), x)
    torch.testing.assert_close(network(other, mask), network(x, mask), rtol=0, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_embedding_depends_on_the_image_alone(name, images):
    network = NETWORKS[name]()
    together = vision.embed(network, images, batch_size=48)
    assert together.shape == (48, network.n_latent)
    np.testing.assert_allclose(vision.embed(network, images, batch_size=5), together, rtol=1e-4, atol=1e-6)
    assert network.training


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_mean_losses_over_images_under_the_same_masks(name, images):
    network = NETWORKS[name]()
    frame = vision.score(network, images, ratios=(0.2, 0.8), batch_size=20, seed=3)
    assert network.training
    assert frame["ratio"].tolist() == [0.2, 0.8]
    assert frame["n_images"].tolist() == [48, 48]
    network.eval()
    losses = [
        network.training_loss(images.batch(part), ratio=0.8, seed=3, step=step).loss.item() * len(part)
        for step, part in enumerate(np.split(np.arange(48), [20, 40]))
    ]
    assert frame["loss"][1] == pytest.approx(sum(losses) / 48)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_error_of_uncorrupted_images_is_that_of_the_network_s_output(name, images):
    network = NETWORKS[name]().eval()
    x = images.batch(np.arange(6))["image"]
    with torch.no_grad():
        expected = [(network(x[i : i + 1]) - x[i : i + 1]).square().mean().item() for i in range(6)]
    np.testing.assert_allclose(network.reconstruction_error(x), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (NETWORKS["unet"], (2, 3, 24, 16), "divisible by 16, got 24 x 16"),
        (NETWORKS["unet"], (2, 1, 16, 16), r"takes images of 3 channel\(s\), got 1"),
        (NETWORKS["mlp"], (2, 3, 14, 14), "16 x 16 pixels, got 14 x 14"),
        (NETWORKS["mlp"], (2, 16, 16), "must have shape"),
    ],
)
def test_images_that_do_not_fit_are_refused(make, shape, message):
    with pytest.raises(ValueError, match=message):
        make().training_loss({"image": torch.zeros(shape)}, ratio=0.5, seed=0, step=0)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="n_latent must be at least 1"):
        vision.MaskedMLP(n_latent=0)
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        vision.MaskedUNet(base_channels=0)


def test_the_simulated_classes_differ():
    images, labels = make_images(300)
    across = images[..., 0].astype(float)[:, 4:8].mean(axis=(1, 2)) - images[..., 0].mean(axis=(1, 2))
    assert across[labels == 0].mean() > across[labels == 1].mean() + 50
