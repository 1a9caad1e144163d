"""``scr2mae predict``: a copy of a file of cells, with the predictions of a kept probe in it."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Annotated

from scr2mae.cli import options as opt
from scr2mae.cli.cells import opened_cells, place_counts
from scr2mae.cli.columns import check_input, read_index
from scr2mae.cli.files import check_counts, check_exists, check_output, replacing
from scr2mae.cli.process import loading, results

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

logger = logging.getLogger(__name__)


def predict(
    input: Annotated[
        opt.InPath,
        opt.doc("Raw counts or the probe's embedding: an .h5ad or Cell Ranger's .h5 file, or a .zarr store."),
    ],
    /,
    *,
    probe: Annotated[opt.InPath, opt.doc("Folder of the probe, from `scr2mae probe --save`.")],
    output: Annotated[
        opt.OutPath, opt.doc("File to write: the input, of a store obs only, with the predictions (.h5ad).")
    ],
    model: Annotated[
        opt.InPath | None,
        opt.doc("Folder of the model that embeds the counts; else the embedding in the file."),
    ] = None,
    donor_key: Annotated[
        opt.Key | None,
        opt.doc(
            "Column of obs with the donors, or several that together name one; also predicts each donor."
        ),
    ] = None,
    sample_key: Annotated[opt.Key | None, opt.doc("Column of obs with the samples of the donors.")] = None,
    donors: Annotated[opt.OutPath | None, opt.doc("File for the predictions of donors (.csv).")] = None,
    confidence: Annotated[opt.Fraction, opt.doc("Coverage of the intervals of donors.")] = 0.9,
    key: Annotated[
        opt.ObsmKey | None, opt.doc("Column for the predictions; by default TARGET_predicted.")
    ] = None,
    force: opt.Force = False,
    counts: opt.Counts = opt.Counts(),
    accelerator: opt.Accelerator = "auto",
    messages: opt.Messages = opt.Messages(),
) -> str:
    r"""Predict cells and donors with a probe that was kept.

    Copy an AnnData file and add class or value, probability and margin of each cell to obs. With --donor-key, print
    a table of donors: the prediction for each, or the number of its cells by predicted class if the target belongs to
    cells. A probe refuses the embedding of another model than its own.

    Examples
    --------
    scr2mae predict new.h5ad --model model/ --probe probe/ -o predicted.h5ad
    scr2mae predict new.h5ad --model model/ --probe probe/ -o predicted.h5ad \
        --donor-key donor --donors donors.csv
    """
    if counts != opt.Counts() and model is None:
        raise opt.UsageError("--layer and --use-raw name counts, which a model embeds; add --model")
    if donors is not None and donor_key is None:
        raise opt.UsageError("--donors needs --donor-key")
    if output.suffix == ".zarr":
        raise opt.UsageError("-o: the predictions are written to an .h5ad file")
    check_counts(input)
    check_exists(probe, model)
    check_output(output, force=force)
    if donors is not None:
        check_output(donors, force=force)
    about = read_index(probe / "probe.json")
    key = key or f"{about.get('target')}_predicted"
    features = about.get("features")
    use_rep = (str(features.get("use_rep")),) if isinstance(features, dict) else ()
    check_input(
        input,
        columns={"--donor-key": donor_key, "--sample-key": sample_key},
        counts=None if model is None else counts,
        model=model,
        use_rep=use_rep if model is None else (),
        new=None if force else f"obs/{key}",
    )
    with loading():
        from scr2mae.probe import Probe

    trained = None
    if model is not None:
        from scr2mae.model import R2MAEModel

        trained = R2MAEModel.load(model, accelerator=accelerator)
    kept = Probe.load(probe, model=trained)
    with opened_cells(input, trained, counts, use_rep=use_rep) as adata:
        if trained is None and adata.isbacked and kept.features.use_rep not in adata.obsm:
            adata = adata.to_memory()
        logger.info("Predicting %s for %d cells of %s.", kept.target, adata.n_obs, input)
        place = place_counts(adata, trained, counts)
        cells = kept.predict(place, model=trained, donor_key=donor_key, key_added=key)
        table = None
        if donor_key is not None and kept.is_cell_level:
            table = _by_donor(cells, place.obs, [donor_key, *([] if sample_key is None else [sample_key])])
            logger.info(
                "%s is a property of cells, so the table describes the cells of each donor.", kept.target
            )
        elif donor_key is not None:
            table = kept.predict_donors(
                place, donor_key, sample_key=sample_key, model=trained, confidence=confidence
            )
        obs = place.obs
    _write(input, output, obs)
    if table is None:
        n_unknown = int(cells["unknown"].sum()) if "unknown" in cells else 0
        return results(output=output, key=key, cells=len(cells), unknown=n_unknown)
    if donors is not None:
        with replacing(donors) as part:
            table.to_csv(part)
    return table.to_csv(sep="\t", float_format="%.4f", na_rep="nan")


def _by_donor(cells: pd.DataFrame, obs: pd.DataFrame, keys: list[opt.Key]) -> pd.DataFrame:
    """Return the number of cells per predicted class, or the mean of predicted numbers, of each donor and sample."""
    import pandas as pd

    from scr2mae.data.columns import find_column, key_name

    units = [find_column(obs, key).rename(key_name(key)).astype(str) for key in keys]
    if "probability" in cells:
        return pd.crosstab(units, cells["prediction"])
    grouped = cells["prediction"].groupby(units)
    return pd.DataFrame({"n_cells": grouped.size(), "mean_prediction": grouped.mean()})


def _write(source: Path, output: Path, obs: pd.DataFrame) -> None:
    """Copy a file and replace its table of cells; for a store or another format, write that table alone."""
    import h5py
    from anndata import AnnData
    from anndata.io import write_elem

    from scr2mae.data.formats import hdf5_kind

    is_anndata = False
    if source.is_file():
        with h5py.File(source) as file:
            is_anndata = hdf5_kind(file) == "anndata"
    with replacing(output) as part:
        if not is_anndata:
            AnnData(obs=obs).write_h5ad(part)
            return
        shutil.copyfile(source, part)
        with h5py.File(part, "r+") as file:
            del file["obs"]
            write_elem(file, "obs", obs)
