"""``scr2mae embed``: a copy of a file of counts, with the embedding in it."""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from scr2mae.cli import options as opt
from scr2mae.cli.cells import opened_cells, place_counts
from scr2mae.cli.columns import check_input
from scr2mae.cli.files import check_counts, check_exists, check_free, check_writable, replacing
from scr2mae.cli.process import loading, results

if TYPE_CHECKING:
    from collections.abc import Iterator

    import h5py
    from anndata import AnnData

logger = logging.getLogger(__name__)

_CELLS_PER_CHUNK = 8192


def embed(
    input: Annotated[
        opt.InPath,
        opt.doc("Raw counts: an .h5ad or Cell Ranger's .h5 file, or a .zarr store."),
    ],
    /,
    *,
    model: Annotated[opt.InPath, opt.doc("Folder of the model.")],
    output: Annotated[opt.OutPath, opt.doc("File to write: .h5ad, or .zarr with only obs and embedding.")],
    force: Annotated[bool, opt.doc("Replace the output, or an embedding of this name in the input.")] = False,
    key: Annotated[opt.ObsmKey, opt.doc("Name of the embedding in obsm.")] = "X_r2mae",
    batch_size: Annotated[opt.PositiveInt | None, opt.doc("Cells per mini-batch.")] = None,
    precision: Annotated[
        Literal["32-true", "bf16-mixed", "auto"],
        opt.doc("Precision of the arithmetic; auto is bf16-mixed where the hardware supports it."),
    ] = "32-true",
    no_integration: Annotated[bool, opt.doc("Embed without the alignment of batches.")] = False,
    counts: opt.Counts = opt.Counts(),
    accelerator: opt.Accelerator = "auto",
    messages: opt.Messages = opt.Messages(),
) -> str:
    r"""Embed cells with a trained model.

    Copy an AnnData file and add the embedding of its cells to obsm. Genes are matched by name; those that the
    file lacks are treated as masked. From or to a .zarr store, the output has only obs and the embedding.

    Examples
    --------
    scr2mae embed counts.h5ad --model model/ -o embedded.h5ad
    scr2mae embed new_donors.h5ad --model model/ -o new_donors_embedded.h5ad \
        --batch-size 4096
    scr2mae embed store.zarr --model model/ -o embedding.zarr
    scr2mae embed embedded.h5ad --model model_seed1/ -o both.h5ad --key X_seed1
    """
    check_counts(input)
    check_exists(model)
    to_store = output.suffix == ".zarr"
    if not to_store:
        check_free(output, folder=False, force=force)
    check_writable(output.parent)
    # A store is not copied, so an embedding in it is not replaced.
    result = None if force or input.is_dir() else f"obsm/{key}"
    check_input(input, columns={}, counts=counts, model=model, new=result)
    with loading():
        from scr2mae.model import R2MAEModel

    trained = R2MAEModel.load(model, accelerator=accelerator)
    with opened_cells(input, trained, counts) as adata:
        logger.info("Embedding %d cells of %s.", adata.n_obs, input)
        shape = adata.n_obs, trained.init_params_["n_latent"]
        new = _new_store if to_store else _new_file
        integrated = False if no_integration else None
        made_by = {f"{key}_model": trained.embedding_fingerprint(integrated=integrated)}
        with new(adata, shape, source=input, output=output, key=key, force=force, made_by=made_by) as rows:
            trained.get_latent_representation(
                place_counts(adata, trained, counts),
                batch_size=batch_size,
                precision=precision,
                integrated=integrated,
                out=rows,
            )
    return results(output=output, key=key, cells=shape[0], dimensions=shape[1])


@contextmanager
def _new_file(
    adata: AnnData,
    shape: tuple[int, int],
    *,
    source: Path,
    output: Path,
    key: str,
    force: bool,
    made_by: dict[str, str],
) -> Iterator[h5py.Dataset]:
    """Yield the rows of an embedding in a copy of the input; rename the copy once they are filled."""
    from anndata import AnnData

    with replacing(output) as part:
        if source.is_file() and adata.isbacked:  # with all that is in it, as it was encoded
            shutil.copyfile(source, part)
        elif source.is_file():  # read from another format
            adata.write_h5ad(part)
        else:
            AnnData(obs=adata.obs).write_h5ad(part)
        with _new_obsm(part, key, shape, made_by) as rows:
            yield rows


@contextmanager
def _new_store(
    adata: AnnData,
    shape: tuple[int, int],
    *,
    source: Path,
    output: Path,
    key: str,
    force: bool,
    made_by: dict[str, str],
) -> Iterator[Any]:
    """Yield the rows of an embedding in a new store; rename the store once they are filled."""
    import pandas as pd

    from scr2mae.data.prepare import writer

    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    writer.check_output(output, [source], overwrite=force)
    with writer.work_folder(output) as folder:
        part = folder / "store.zarr"
        with writer.create_group(part) as group:
            var = pd.DataFrame(index=pd.Index([], dtype=str))
            writer.write_tables(group, obs=adata.obs, var=var, uns={"scr2mae": made_by})
            rows = _append(group["obsm"], key, shape, chunks=(_CELLS_PER_CHUNK, shape[1]))
            yield rows
        writer.publish(part, output)


@contextmanager
def _new_obsm(
    path: Path, key: str, shape: tuple[int, int], made_by: dict[str, str]
) -> Iterator[h5py.Dataset]:
    """Create or replace an array of ``obsm`` in an AnnData file, and yield it to be filled row by row.

    The fingerprint of the model goes to ``uns``, so that probes refuse embeddings of other models.
    """
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        if "obsm" not in file:
            write_elem(file, "obsm", {})
        group = file["obsm"]
        if not isinstance(group, h5py.Group):
            raise ValueError(
                "The input was written by an AnnData before 0.7, which cannot be added to; "
                "read it and write it again with a newer one."
            )
        for name in ("uns", "uns/scr2mae"):
            if name not in file:
                write_elem(file, name, {})
        for name, fingerprint in made_by.items():
            write_elem(file, f"uns/scr2mae/{name}", fingerprint)
        yield _append(group, key, shape, maxshape=shape, chunks=True)


def _append(group: Any, key: str, shape: tuple[int, int], **options: Any) -> Any:
    """Create an array of zeros as anndata writes it, without ever holding all rows in memory."""
    import numpy as np
    from anndata.io import write_elem

    write_elem(group, key, np.zeros((0, shape[1]), dtype=np.float32), dataset_kwargs=options)
    group[key].resize(shape)
    return group[key]
