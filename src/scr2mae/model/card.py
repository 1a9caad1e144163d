"""Write a model card, which describes a model and its training in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scr2mae.data import CellSpec
from scr2mae.data.splits import SIDES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scr2mae.model.state import ModelState

__all__ = ["model_card"]

TAGS = ["biology", "single-cell", "scRNA-seq", "masked-autoencoder", "r2mae", "scverse"]
_SHOWN_GENES = 5

_TEXT = """\
# {name}

Embeddings of single-cell counts by a masked autoencoder that masks a different fraction of the genes at every step
([R²MAE](https://arxiv.org/abs/2509.21650)), made with `scr2mae`. The table below was filled in from the record of training.

## Use

```python
import scr2mae  # pip install 'scr2mae[hub]'

model = scr2mae.R2MAEModel.from_hub({repo!r}, revision={revision!r})
adata.obsm["X_r2mae"] = model.get_latent_representation(adata)  # raw counts; genes are matched by name
```

Genes that `adata` lacks are treated as masked; do not pad with zeros. Name the hash of a commit as `revision` where results
must not change.

## Training

| | |
|---|---|
{table}

{probes}## Data

Which cells these were, where they come from and under which terms: to be written by the owner of this repository.

## Not for

- Diagnosis, or any decision about a patient.
- Differential expression on imputed or reconstructed values: they are predictions of a network, with its confidence and its errors.
- Another species, another gene vocabulary, or tissues and assays unlike those of training, unless donors held out there show that it works.
- Scores on the cells of training: judge the embedding on donors that training did not see.

## Files

`model.json` (settings, gene names, names of batches and covariate categories, curves) and a safetensors file named by its hash (weights,
positions of the split). Neither can hold code, and counts are not included.
"""


_PROBE = """\
## Probe `{name}`

```python
probe = scr2mae.probe.Probe.from_hub({repo!r}, {name!r}, revision={revision!r}, model=model)
calls = probe.predict_donors(adata, donor_key)  # or probe.predict(adata), per cell
```

| | |
|---|---|
{table}

"""


def model_card(
    state: ModelState,
    *,
    repo: str,
    revision: str,
    versions: Mapping[str, str],
    probes: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Return a model card in Markdown, without its YAML header.

    ``versions`` maps names of libraries to their versions, and ``probes`` maps names of the probes uploaded
    with the model to their descriptions.
    """
    document = state.document
    rows = {**_data_rows(document), **_network_rows(document), **_training_rows(state)}
    rows["Versions"] = ", ".join(f"{library} {version}" for library, version in versions.items())
    place = {"repo": repo, "revision": revision}
    sections = [
        _PROBE.format(name=name, table=_table(about), **place) for name, about in (probes or {}).items()
    ]
    return _TEXT.format(name=repo.rpartition("/")[2], table=_table(rows), probes="".join(sections), **place)


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())


def _cell(value: str) -> str:
    """Escape the characters that end a table cell, since names of columns and genes can contain them."""
    return value.replace("|", "\\|").replace("\n", " ")


def _data_rows(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the table rows that describe the data."""
    registry = document["registry"]
    spec = CellSpec.from_registry(registry)
    genes = ", ".join(spec.var_names[:_SHOWN_GENES])
    more = " ..." if len(spec.var_names) > _SHOWN_GENES else ""
    rows = {
        "Cells": f"{registry['field_registries']['X']['state_registry']['n_obs']:,}",
        "Genes": f"{len(spec.var_names):,} ({genes}{more})",
        "Counts": f"`layers[{spec.layer!r}]`" if spec.layer else "`X`",
    }
    if spec.studies is not None:
        sizes = [f"{name} ({int(genes.sum()):,} genes)" for name, genes in spec.studies.measured.items()]
        rows["Studies"] = f"`{spec.studies.key}`: {', '.join(sizes)}"
    (batch_key, batches), *further = spec.categorical
    if batch_key is not None:
        rows["Batch"] = f"`{batch_key}`, {len(batches)} known"
    if names := [name for name, _ in further] + list(spec.continuous):
        rows["Further covariates"] = ", ".join(f"`{name}`" for name in names)
    return rows


def _network_rows(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the table rows that describe the network and its masking."""
    sizes = document["init_params"]
    ratio = document["mask_ratio"]
    shown = {
        list: lambda: f"drawn from {ratio[0]:g} to {ratio[1]:g} for every mini-batch (R²MAE)",
        float: lambda: f"{ratio:g}, fixed",
        dict: lambda: ", ".join(f"{name} {value}" for name, value in ratio.items()),
    }
    rows = {
        "Network": f"{sizes['encoder']}, {sizes['n_layers']} encoder and {sizes['n_layers_decoder']} decoder layers of "
        f"{sizes['n_hidden']} units, embedding of {sizes['n_latent']} dimensions",
        "Masking ratio": shown[type(ratio)]() if type(ratio) in shown else "a schedule defined by the owner",
    }
    if document["curriculum"] is not None:
        rows["Curriculum"] = ", ".join(f"{name} {value}" for name, value in document["curriculum"].items())
    return rows


def _training_rows(state: ModelState) -> dict[str, str]:
    """Return the table rows that describe the split and the training."""
    document = state.document
    rows = {"Seed": str(document["init_params"]["seed"])}
    split = document["split"]
    if split is not None:
        sizes = {side: len(state.tensors[f"split.{side}"]) for side in SIDES}
        sides = ", ".join(f"{size:,} {side}" for side, size in sizes.items() if size)
        unit = f"whole groups of `{split['key']}`" if split["key"] else "single cells"
        rows["Split"] = f"{sides} cells; {unit} held out"
    curves = document["history"]
    if "train_loss" in curves:
        rows["Epochs"] = str(len(curves["train_loss"]["values"]))
    for name, label in (("train_loss", "Training loss"), ("validation_loss", "Validation loss")):
        if curves.get(name, {}).get("values"):
            rows[label] = f"{curves[name]['values'][-1]:.4f} nats per masked count, at the end"
    return rows
