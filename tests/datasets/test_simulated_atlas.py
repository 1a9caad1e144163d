"""Simulated atlases: files that the loaders read and the paper's tasks can be made of."""

import numpy as np
import pytest

from scr2mae import benchmark, datasets


@pytest.mark.parametrize(("atlas", "load"), [("hlca", datasets.hlca), ("sea_ad", datasets.sea_ad)])
def test_a_simulated_atlas_is_read_as_the_portals_file_is(tmp_path, atlas, load):
    made = datasets.simulate_atlas(atlas, n_donors=16, n_cells_per_donor=12, n_genes=80)
    made.write_h5ad(tmp_path / "atlas.h5ad")
    loaded = load(tmp_path / "atlas.h5ad", n_top_genes=50)
    assert loaded.n_vars == 50
    np.testing.assert_array_equal(
        loaded.X.toarray(), made.raw[loaded.obs_names, loaded.var_names].X.toarray()
    )
    per_cell = np.expm1(made.X.toarray()).sum(axis=1)
    np.testing.assert_allclose(per_cell, 1e4, rtol=1e-3)
    for task in benchmark.tasks(atlas):
        labels = task.labels(loaded.obs)
        known = labels.notna()
        assert labels[known].nunique() >= 2
        if task.name == "Age":
            assert 0 < known.sum() < len(known)
    if atlas == "hlca":
        assert (loaded.obs["ann_finest_level"] == "Unknown").any()
    else:
        assert (loaded.obs["ADNC"] == "Reference").any()


def test_an_unknown_atlas_is_refused():
    with pytest.raises(ValueError, match="atlas must be one of"):
        datasets.simulate_atlas("kidney")
