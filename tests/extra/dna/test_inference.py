"""Embeddings of windows, and predictions of masked bases."""

import numpy as np
import pandas as pd
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


def test_every_known_base_is_predicted_once_while_it_is_masked(tiny, msa):
    windows = dna.make_windows(msa, size=16, step=16).iloc[[3, 8, 255]]
    data = dna.MSAWindowDataset(msa, windows)
    model = tiny(initializer_range=0.3)
    frame = dna.predict_bases(model, data, ratio=0.25, batch_size=2, accelerator="cpu")
    assert len(frame) == 3 * 16
    for (start, strand), part in zip(
        windows[["start", "strand"]].to_numpy(),
        [frame.iloc[first : first + 16] for first in (0, 16, 32)],
        strict=True,
    ):
        wanted = msa.get("chr1", start, start + 16, strand)[:, 0].astype(str)
        assert (part["base"].to_numpy() == wanted).all()
        pos = np.arange(start, start + 16)
        assert (part["pos"].to_numpy() == (pos if strand == "+" else pos[::-1])).all()
    log_probs = frame[[f"log_prob_{base}" for base in "ACGT"]].to_numpy()
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-5)


def test_a_prediction_does_not_see_the_base_itself(tiny, msa):
    model = tiny(initializer_range=0.5)
    symbols = msa.get("chr1", 0, 16).copy()
    columns = [f"log_prob_{base}" for base in "ACGT"]
    windows = pd.DataFrame({"chrom": ["chr1"], "start": [0], "end": [16], "strand": ["+"]})
    found = {}
    for base in "ACGT":
        symbols[5, 0] = base.encode()
        data = dna.MSAWindowDataset(dna.GenomeMSA.from_numpy(symbols.copy(), chrom="chr1"), windows)
        found[base] = dna.predict_bases(model, data, accelerator="cpu")[columns].to_numpy()
    for base in "CGT":
        np.testing.assert_array_equal(found[base][5], found["A"][5])
        assert not np.allclose(np.delete(found[base], 5, axis=0), np.delete(found["A"], 5, axis=0))
    with pytest.raises(ValueError, match=r"ratio must lie in \(0, 0.5\], got 0.9"):
        dna.predict_bases(model, data, ratio=0.9)
