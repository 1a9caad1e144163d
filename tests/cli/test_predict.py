"""``scr2mae probe --save`` and ``scr2mae predict``: one probe from the shell, applied to new donors."""

import io
import re
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from scr2mae import R2MAEModel, datasets
from scr2mae.probe import Probe, fit_probe

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "using_probes.md"


@pytest.fixture(scope="module")
def donors():
    return datasets.simulate_donors(
        n_donors=12, n_cells_per_donor=15, n_genes=40, n_cell_types=2, disease_effect=1.5, effect_fraction=0.4
    )


@pytest.fixture(scope="module")
def model(donors, train_tiny):
    known = donors[donors.obs["donor"].cat.codes < 9].copy()
    return train_tiny(known, max_epochs=10)


@pytest.fixture
def place(folder, donors, model):
    """Counts of donors to fit to and of new ones, and the model, in the working folder."""
    known = (donors.obs["donor"].cat.codes < 9).to_numpy()
    donors[known].copy().write_h5ad("reference.h5ad")
    new = donors[~known].copy()
    new.obs["donor"] = new.obs["donor"].cat.remove_unused_categories()
    new.write_h5ad("new.h5ad")
    model.save("model")
    return folder


def test_the_three_commands_of_the_guide_give_what_python_gives(place, run, capsys):
    text = GUIDE.read_text(encoding="utf-8")
    block = re.search(r"```console\n(\$ scr2mae embed .*?)```", text, re.S)[1].replace("\\\n", "")
    lines = [line.removeprefix("$ scr2mae ").strip() for line in block.splitlines() if line.startswith("$")]
    assert [line.split()[0] for line in lines] == ["embed", "probe", "predict"]
    for line in lines:
        assert run(f"{line} -q") == 0
    out, err = capsys.readouterr()
    assert err == ""
    trained = R2MAEModel.load("model")
    reference = ad.read_h5ad("reference.h5ad")
    fitted = fit_probe(reference, model=trained, target="disease", kind="classification", donor_key="donor")
    new = ad.read_h5ad("new.h5ad")
    predicted = ad.read_h5ad("predicted.h5ad")
    cells = fitted.predict(new)
    np.testing.assert_allclose(
        predicted.obs["disease_predicted_probability"], cells["probability"], rtol=1e-4
    )
    assert (predicted.obs["disease_predicted"].astype(str) == cells["prediction"].astype(str)).all()
    table = pd.read_csv(io.StringIO(out[out.index("donor\tprediction") :]), sep="\t", index_col=0)
    expected = fitted.predict_donors(new)
    assert (table["prediction"] == expected["prediction"]).all()
    np.testing.assert_allclose(table["probability"], expected["probability"], atol=1e-3)
    # The rest of the file is as it was.
    np.testing.assert_array_equal(predicted.X.toarray(), new.X.toarray())
    pd.testing.assert_frame_equal(predicted.obs[list(new.obs)], new.obs)


SAVE = "probe reference.h5ad --use-rep X_r2mae --model model --target disease:classification --donor-key donor --save probe -q"


def test_a_probe_is_saved_with_the_scores_that_are_printed(place, run, capsys):
    assert run(f"{SAVE} --reject 0.1 --calibration isotonic --n-bootstrap 5 -o scores.csv --scale yes") == 0
    printed = pd.read_csv(io.StringIO(capsys.readouterr().out), sep="\t")
    probe = Probe.load("probe")
    assert probe.calibration.method == "isotonic"
    assert probe.rejection.rate == 0.1
    assert probe.features.fingerprint == R2MAEModel.load("model").fingerprint
    np.testing.assert_allclose(printed["value"], probe.scores["value"].astype(float), atol=1e-4)
    np.testing.assert_allclose(pd.read_csv("scores.csv")["value"], probe.scores["value"].astype(float))


def test_a_kept_probe_has_intervals_without_an_option(place, run, capsys):
    assert run(SAVE) == 0
    printed = pd.read_csv(io.StringIO(capsys.readouterr().out), sep="\t").set_index("metric")
    lacking = set(printed.index[printed["ci_low"].isna()])
    assert lacking == {"calibration_error", "calibration_error_before"}


def test_a_panel_is_warned_of_once_in_a_job(place, run, capsys):
    assert run(f"{SAVE} --reject 0.1") == 0
    new = ad.read_h5ad("new.h5ad")
    new[:, :20].copy().write_h5ad("panel.h5ad")
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert run("predict panel.h5ad --model model --probe probe -o o.h5ad --donor-key donor") == 0
    assert capsys.readouterr().err.count("Few shared genes") == 1


def test_predict_takes_a_file_of_donors_and_a_column(place, run, rows, capsys):
    assert run(SAVE) == 0
    assert run("predict new.h5ad --model model --probe probe -o out.h5ad --key call -q") == 0
    capsys.readouterr()
    assert run("predict new.h5ad --model model --probe probe -o out.h5ad --key call --force -q") == 0
    assert rows() == {"output": "out.h5ad", "key": "call", "cells": "45", "unknown": "0"}
    line = (
        "predict new.h5ad --model model --probe probe -o out2.h5ad --donor-key donor --donors donors.csv -q"
    )
    assert run(line) == 0
    table = pd.read_csv("donors.csv", index_col=0)
    assert len(table) == 3
    assert {"prediction", "probability", "low", "high", "n_cells"} <= set(table)


def test_an_embedding_of_another_model_is_refused(place, run, capsys, donors, train_tiny):
    train_tiny(donors.copy(), max_epochs=1, model={"seed": 5}).save("other")
    assert run(SAVE) == 0
    assert run("predict new.h5ad --model other --probe probe -o out.h5ad -q") == 1
    assert "The probe belongs to another model" in capsys.readouterr().err
    assert run("embed new.h5ad --model other -o embedded.h5ad -q") == 0
    assert run("predict embedded.h5ad --probe probe -o out.h5ad -q") == 1
    assert "was made by another model" in capsys.readouterr().err
    assert not Path("out.h5ad").exists()
    assert run("embed new.h5ad --model model -o embedded.h5ad --force -q") == 0
    assert run("predict embedded.h5ad --probe probe -o out.h5ad -q") == 0


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("predict new.h5ad --probe none -o out.h5ad", 1, "No file or folder none."),
        ("predict new.h5ad --probe model -o out.h5ad", 1, "not a scr2mae probe folder"),
        ("predict new.h5ad --probe probe -o out.h5ad", 1, "no 'X_r2mae' in obsm or layers; scr2mae embed"),
        ("predict new.h5ad --probe probe --model model -o new.h5ad", 1, "new.h5ad exists"),
        ("predict new.h5ad --probe probe --model model -o out.h5ad --key age", 1, "has 'age' in obs already"),
        ("predict new.h5ad --probe probe -o out.h5ad --donors d.csv", 2, "--donors needs --donor-key"),
        (
            "predict new.h5ad --probe probe --model model -o out.h5ad --donor-key who",
            1,
            "no column 'who' in obs; --donor-key takes one of",
        ),
        (SAVE, 1, "probe exists and is not empty"),
        (
            SAVE.replace("--save probe", "--save p2") + " --target age:regression",
            2,
            "--save takes one embedding",
        ),
        (SAVE.replace("--save probe", ""), 2, "add --save"),
        (
            SAVE.replace("--save probe", "--save p2 --n-splits 3"),
            2,
            "donors and their cells; leave out --n-splits",
        ),
    ],
)
def test_what_cannot_be_done_leaves_nothing(line, code, message, place, run, capsys, files):
    assert run(SAVE) == 0
    before = files()
    capsys.readouterr()
    assert run(f"{line} -q") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert files() == before


def test_donors_of_several_columns_go_from_probe_to_predict(place, run, capsys):
    for name in ("reference.h5ad", "new.h5ad"):
        cells = ad.read_h5ad(name)
        cells.obs["study"] = name[:3]
        cells.write_h5ad(name)
    assert run(SAVE.replace("--donor-key donor", "--donor-key study donor")) == 0
    assert Probe.load("probe").donor_key == ("study", "donor")
    capsys.readouterr()
    assert run("predict new.h5ad --model model --probe probe -o out.h5ad --donor-key study donor -q") == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out), sep="\t", index_col=0)
    assert table.index.name == "study / donor"
    assert all(name.startswith("new / donor") for name in table.index)


def test_probe_and_predict_take_counts_of_raw(place, run, capsys):
    assert run(SAVE) == 0
    assert run("predict new.h5ad --model model --probe probe -o plain.h5ad -q") == 0
    for name in ("reference.h5ad", "new.h5ad"):
        cells = ad.read_h5ad(name)
        cells.raw = cells.copy()
        cells.X = cells.X.log1p()
        cells.write_h5ad(name)
    assert run(f"{SAVE} --use-raw --force") == 0
    assert run("predict new.h5ad --model model --probe probe -o raw.h5ad --use-raw -q") == 0
    plain, raw = ad.read_h5ad("plain.h5ad"), ad.read_h5ad("raw.h5ad")
    pd.testing.assert_frame_equal(raw.obs, plain.obs)
    assert raw.raw is not None
    capsys.readouterr()
    assert run("predict new.h5ad --probe probe -o no.h5ad --use-raw -q") == 2
    assert "--layer and --use-raw name counts, which a model embeds; add --model" in capsys.readouterr().err
    assert run(f"{SAVE.replace('--model model ', '')} --layer counts") == 2
    assert "add --save and --model" in capsys.readouterr().err


def test_cells_of_a_file_that_is_no_anndata_are_written_as_one(place, run, tmp_path):
    cells = ad.read_h5ad("new.h5ad")
    with h5py.File("new.h5mu", "w") as file:
        ad.io.write_elem(file.create_group("mod"), "rna", cells)
        ad.io.write_elem(file, "obs", cells.obs[[]])
        ad.io.write_elem(file, "var", cells.var[[]])
    assert run(SAVE) == 0
    for name in ("new.h5ad", "new.h5mu"):
        assert run(f"predict {name} --model model --probe probe -o {name}.out -q") == 0
    plain, written = ad.read_h5ad("new.h5ad.out"), ad.read_h5ad("new.h5mu.out")
    pd.testing.assert_frame_equal(written.obs, plain.obs)


@pytest.mark.filterwarnings(
    "ignore:zarr v3 autosharding:UserWarning",
    "ignore:Consolidated metadata",
    "ignore:Writing zarr v2 data:UserWarning",
)
def test_a_store_is_probed_and_predicted_like_a_file(place, run, capsys):
    assert run("embed reference.h5ad --model model -o embedded.h5ad -q") == 0
    assert run("embed new.h5ad --model model -o new_embedded.h5ad -q") == 0
    for name in ("embedded", "new", "new_embedded"):
        ad.read_h5ad(f"{name}.h5ad").write_zarr(f"{name}.zarr")
    scores, calls = [], []
    for suffix in ("h5ad", "zarr"):
        capsys.readouterr()
        line = f"probe embedded.{suffix} --use-rep X_r2mae X --target disease:classification --donor-key donor -q"
        assert run(f"{line} --n-splits 1") == 0
        scores.append(capsys.readouterr().out)
        save = SAVE.replace("reference.h5ad", f"embedded.{suffix}").replace(
            "--save probe", f"--save {suffix}"
        )
        assert run(save) == 0
        assert run(f"predict new.{suffix} --model model --probe {suffix} -o {suffix}.h5ad -q") == 0
        calls.append(ad.read_h5ad(f"{suffix}.h5ad"))
    assert scores[0] == scores[1]
    pd.testing.assert_frame_equal(calls[0].obs, calls[1].obs)
    assert calls[1].n_vars == 0
    assert run("predict new_embedded.zarr --probe zarr -o again.h5ad -q") == 0
    pd.testing.assert_frame_equal(ad.read_h5ad("again.h5ad").obs, calls[0].obs, rtol=1e-4)
    assert run("predict new.zarr --model model --probe zarr -o out.zarr -q") == 2
    assert "-o: the predictions are written to an .h5ad file" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning", "ignore:Consolidated metadata")
def test_a_store_that_embed_has_written_is_probed_and_predicted_without_counts(place, run, capsys):
    scores = []
    for suffix in ("h5ad", "zarr"):
        assert run(f"embed reference.h5ad --model model -o embedded.{suffix} -q") == 0
        assert run(f"embed new.h5ad --model model -o new_embedded.{suffix} -q") == 0
        capsys.readouterr()
        line = (
            f"probe embedded.{suffix} --use-rep X_r2mae --target disease:classification --donor-key donor -q"
        )
        assert run(f"{line} --n-splits 1") == 0
        scores.append(capsys.readouterr().out)
        assert run(f"{line} --save {suffix}") == 0
        assert run(f"predict new_embedded.{suffix} --probe {suffix} -o predicted_{suffix}.h5ad -q") == 0
    assert scores[0] == scores[1]
    of_file, of_store = (ad.read_h5ad(f"predicted_{suffix}.h5ad").obs for suffix in ("h5ad", "zarr"))
    pd.testing.assert_frame_equal(of_file, of_store)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_target_of_cells_is_counted_or_averaged_by_donor(kind, place, run, capsys):
    cells = ad.read_h5ad("reference.h5ad")
    cells.obs["depth"] = np.log(np.asarray(cells.X.sum(axis=1)).ravel())
    cells.write_h5ad("reference.h5ad")
    target = {"classification": "cell_type", "regression": "depth"}[kind]
    save = SAVE.replace("disease:classification", f"{target}:{kind}")
    assert run(f"{save} --cell-level {target}") == 0
    capsys.readouterr()
    line = "predict new.h5ad --model model --probe probe -o out.h5ad --donor-key donor --donors donors.csv"
    assert run(line) == 0
    out, err = capsys.readouterr()
    assert f"{target} is a property of cells, so the table describes the cells of each donor." in err
    obs = ad.read_h5ad("out.h5ad").obs
    printed = pd.read_csv(io.StringIO(out), sep="\t", index_col=0)
    written = pd.read_csv("donors.csv", index_col=0)
    predicted = obs[f"{target}_predicted"].groupby(obs["donor"].astype(str))
    if kind == "classification":
        for donor, calls in predicted:
            assert written.loc[donor].to_dict() == {name: (calls == name).sum() for name in written}
        assert written.to_numpy().sum() == len(obs)
        pd.testing.assert_frame_equal(printed, written)
    else:
        np.testing.assert_allclose(written["mean_prediction"], predicted.mean(), rtol=1e-5)
        assert list(written["n_cells"]) == [15, 15, 15]
        np.testing.assert_allclose(printed, written, atol=1e-4)
