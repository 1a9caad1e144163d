"""Embeddings of windows."""

import numpy as np
import pytest
import torch

from scr2mae.extra import dna


def test_an_embedding_is_the_hidden_state_of_the_center_with_nothing_masked(tiny, msa):
    model = tiny(initializer_range=0.3).train()
    windows = dna.make_windows(msa, size=17, step=40).iloc[[0, 5, 120, 199]]
    assert set(windows["strand"]) == {"+", "-"}
    data = dna.MSAWindowDataset(msa, windows)
    found = dna.embed(model, data, batch_size=3, accelerator="cpu")
    assert (found.dtype, found.shape) == (np.float32, (4, 32))
    assert model.training
    batch = data.batch(np.arange(4))
    with torch.no_grad():
        hidden = model.eval()(batch["input_ids"], batch["aux_features"]).hidden
    np.testing.assert_allclose(found, hidden[:, 8], atol=1e-5)


def test_both_strands_of_a_window_are_embedded_at_the_same_base(tiny, msa):
    model = tiny(initializer_range=0.3).eval()
    windows = dna.make_windows(msa, size=16, step=4000)
    data = dna.MSAWindowDataset(msa, windows)
    found = dna.embed(model, data, accelerator="cpu")
    batch = data.batch(np.arange(2))
    with torch.no_grad():
        hidden = model(batch["input_ids"], batch["aux_features"]).hidden
    np.testing.assert_allclose(found, torch.stack([hidden[0, 8], hidden[1, 7]]), atol=1e-5)


def test_windows_of_another_alignment_cannot_be_embedded(tiny, dataset):
    with pytest.raises(ValueError, match=r"takes 2 species besides the reference, the alignment has 3"):
        dna.embed(tiny(n_species=2), dataset)
    with pytest.raises(ValueError, match=r"longer than max_position_embeddings=16"):
        dna.embed(tiny(max_position_embeddings=16), dataset)
