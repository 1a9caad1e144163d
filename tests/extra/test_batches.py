"""Threaded loaders, the data module and inference over mini-batches."""

import numpy as np
import pytest
import torch

from scr2mae.extra import vision
from scr2mae.extra.batches import BatchDataModule, ThreadedLoader, map_batches


@pytest.fixture
def images() -> vision.ImageArray:
    """48 images of 4 x 4 pixels."""
    return vision.ImageArray(np.random.default_rng(0).uniform(size=(48, 4, 4)))


def test_threads_decode_the_same_mini_batches_in_the_same_order(images):
    loaders = [ThreadedLoader(images, batch_size=7, n_workers=n, shuffle=True, seed=2) for n in (0, 3)]
    for loader in loaders:
        loader.sampler.set_epoch(1)
    for plain, threaded in zip(*loaders, strict=True):
        torch.testing.assert_close(plain, threaded, rtol=0, atol=0)
    state = loaders[1].state_dict()
    assert state == {"epoch": 1, "seen": 7}
    loaders[1].load_state_dict({"epoch": 1, "seen": 5})
    rest = list(loaders[1])
    assert len(rest) == 2
    torch.testing.assert_close(rest[0], list(loaders[0])[5], rtol=0, atol=0)


def test_an_error_in_a_thread_reaches_the_caller(images, monkeypatch):
    def batch(indices):
        raise ValueError("damaged")

    monkeypatch.setattr(images, "batch", batch)
    with pytest.raises(ValueError, match="damaged"):
        list(ThreadedLoader(images, batch_size=2, n_workers=2))


def test_each_rank_sees_its_share(images):
    module = BatchDataModule(images, None, batch_size=8, drop_single=True)
    module.trainer = type("Trainer", (), {"global_rank": 1, "world_size": 3})()
    assert len(module.train_dataloader()) == 2
    assert module.train_dataloader().sampler.rank == 1


def test_the_validation_data_come_in_order_and_may_be_absent(images):
    module = BatchDataModule(images, images, batch_size=20)
    batches = [batch["image"] for batch in module.val_dataloader()]
    assert torch.equal(torch.cat(batches), images.images)
    assert BatchDataModule(images, batch_size=20).val_dataloader() == []


@pytest.mark.parametrize("training", [True, False])
def test_inference_restores_the_mode_and_takes_no_gradients(images, training):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3), torch.nn.Dropout(0.5))
    network.train(training)
    seen = []

    def function(batch):
        seen.append((network.training, torch.is_grad_enabled()))
        return network(batch["image"])

    out = map_batches(network, images, function, batch_size=20)
    assert out.shape == (48, 3)
    assert out.dtype == np.float32
    assert set(seen) == {(False, False)}
    assert network.training == training


def test_bad_input_is_named(images):
    with pytest.raises(ValueError, match="n_workers must be >= 0"):
        ThreadedLoader(images, batch_size=2, n_workers=-1)
