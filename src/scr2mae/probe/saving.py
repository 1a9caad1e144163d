"""Kept probes as folders of safetensors and JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
import torch

from scr2mae._utils.model_folder import FolderFormat, read_folder, write_folder
from scr2mae.probe.calibration import Calibration, Method
from scr2mae.probe.features import Features
from scr2mae.probe.inputs import Kind
from scr2mae.probe.linear import LinearMap
from scr2mae.probe.rejection import Novelty, Rejection

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_TABLES = ("scores", "held_out", "reliability", "design")
_ENTRIES = ("target", "kind", "features", "donor_key", "donors", "is_cell_level", "classes", "value_range")
FORMAT = FolderFormat(
    "scr2mae.probe",
    "scr2mae probe",
    index="probe.json",
    required=frozenset((*_ENTRIES, *_TABLES, "n_folds", "calibration", "rejection", "weights")),
)


def write_probe(probe: Any, dir_path: str | Path, *, donor_names: bool, overwrite: bool) -> None:
    """Write a probe; without ``donor_names``, the donors and their held-out predictions are left out or anonymous."""
    arrays = _map_arrays("linear", probe.linear)
    for i, each in enumerate(probe.fold_maps):
        arrays |= _map_arrays(f"fold{i}", each)
    if probe.calibration is not None:
        for i, curve in enumerate(probe.calibration.curves):
            arrays |= {f"calibration{i}.x": curve[0], f"calibration{i}.y": curve[1]}
    rejection = probe.rejection
    if rejection is not None:
        arrays |= {"means": rejection.novelty.means, "whitening": rejection.novelty.whitening}
        arrays["distances"] = rejection.distances
        if rejection.surprises is not None:
            arrays["surprises"] = rejection.surprises
    tables = {name: _columns(getattr(probe, name)) for name in _TABLES}
    if not donor_names and tables["held_out"] is not None:
        del tables["held_out"]["donor"]
    document = {name: getattr(probe, name) for name in _ENTRIES} | tables
    document |= {
        "features": asdict(probe.features),
        "donors": list(probe.donors) if donor_names else [],
        "classes": None if probe.classes is None else probe.classes.tolist(),
        "n_folds": len(probe.fold_maps),
        "calibration": None
        if probe.calibration is None
        else {"method": probe.calibration.method, "n_curves": len(probe.calibration.curves)},
        "rejection": None
        if rejection is None
        else {
            "rate": rejection.rate,
            "threshold": rejection.threshold,
            "usual": rejection.usual,
            "n_genes": rejection.n_genes,
        },
    }
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float64))
        for name, value in arrays.items()
    }
    write_folder(dir_path, FORMAT, tensors, document, overwrite=overwrite)


def read_probe(dir_path: str | Path, *, follow_links: bool = False) -> dict[str, Any]:
    """Read and check a probe; return the attributes of :class:`Probe`."""
    tensors, document, _ = read_folder(dir_path, FORMAT, follow_links=follow_links)
    try:
        return _attributes(tensors, document)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The probe in {dir_path} is damaged: {error}. Restore the folder from a copy."
        ) from error


def download_probe(repo: str, name: str, *, revision: str | None, token: str | bool | None) -> dict[str, Any]:
    """Download a probe that was uploaded with its model, and read it."""
    from scr2mae.model.hub import download

    folder = download(repo, revision, FORMAT, subfolder=f"probes/{name}", token=token)
    return read_probe(folder, follow_links=True)


def _attributes(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a probe; raise if what was read is damaged."""
    arrays = {name: value.numpy() for name, value in tensors.items()}
    if any(value.dtype != np.float64 or not np.isfinite(value).all() for value in arrays.values()):
        raise ValueError("its numbers are not finite float64")
    kind, about = document["kind"], document["features"]
    if kind not in get_args(Kind):
        raise ValueError(f"it predicts a {kind!r}")
    classes = None if document["classes"] is None else np.array(document["classes"], dtype=str)
    names = None if about["names"] is None else tuple(map(str, about["names"]))
    features = Features(str(about["use_rep"]), int(about["n_features"]), names, about["fingerprint"])
    n_outputs = 1 if classes is None else len(classes)
    if (classes is None) != (kind == "regression") or n_outputs < (1 if classes is None else 2):
        raise ValueError("its classes do not suit its kind")
    if names is not None and len(names) != features.n_features:
        raise ValueError("its names do not fit its width")
    maps = [_map(arrays, "linear")] + [_map(arrays, f"fold{i}") for i in range(int(document["n_folds"]))]
    for each in maps:
        if each.coef.shape != (features.n_features, n_outputs) or each.intercept.shape != (n_outputs,):
            raise ValueError(
                f"weights of shape {each.coef.shape}, {features.n_features} by {n_outputs} expected"
            )
    limits = document["value_range"]
    return {
        "target": str(document["target"]),
        "kind": kind,
        "features": features,
        "donor_key": _key(document["donor_key"]),
        "donors": tuple(map(str, document["donors"])),
        "is_cell_level": bool(document["is_cell_level"]),
        "linear": maps[0],
        "fold_maps": tuple(maps[1:]),
        "classes": classes,
        "value_range": None if limits is None else (float(limits[0]), float(limits[1])),
        "calibration": _calibration(arrays, document["calibration"]),
        "rejection": _rejection(arrays, document["rejection"], features.n_features),
        **{name: _table(document[name]) for name in _TABLES},
    }


def _key(value: Any) -> str | tuple[str, ...]:
    """Return the name of a column, or of several that together name a donor."""
    return value if isinstance(value, str) else tuple(map(str, value))


def _map_arrays(name: str, each: LinearMap) -> dict[str, Any]:
    """Return the arrays of a linear map by name."""
    values = {"coef": each.coef, "intercept": each.intercept, "penalty": np.array([each.penalty])}
    return {f"{name}.{part}": value for part, value in values.items()}


def _map(arrays: Mapping[str, Any], name: str) -> LinearMap:
    return LinearMap(arrays[f"{name}.coef"], arrays[f"{name}.intercept"], float(arrays[f"{name}.penalty"][0]))


def _calibration(arrays: Mapping[str, Any], about: Mapping[str, Any] | None) -> Calibration | None:
    """Return the curves of the calibration, or None."""
    if about is None:
        return None
    if about["method"] not in get_args(Method):
        raise ValueError(f"its calibration is {about['method']!r}")
    curves = [
        (arrays[f"calibration{i}.x"], arrays[f"calibration{i}.y"]) for i in range(int(about["n_curves"]))
    ]
    return Calibration(about["method"], tuple(curves))


def _rejection(
    arrays: Mapping[str, Any], about: Mapping[str, Any] | None, n_features: int
) -> Rejection | None:
    """Return the rule that marks cells as unknown, or None."""
    if about is None:
        return None
    novelty = Novelty(arrays["means"], arrays["whitening"])
    if novelty.means.shape[1:] != (n_features,) or novelty.whitening.shape != (n_features, n_features):
        raise ValueError("its means do not fit its width")
    return Rejection(
        float(about["rate"]),
        novelty,
        arrays["distances"],
        float(about["threshold"]),
        arrays.get("surprises"),
        float(about["usual"]),
        int(about["n_genes"]),
    )


def _columns(table: pd.DataFrame | None) -> dict[str, list[Any]] | None:
    """Return a table as lists; NaN is null in JSON."""
    if table is None:
        return None
    return {
        str(name): column.astype(object).where(column.notna(), None).tolist()
        for name, column in table.items()
    }


def _table(columns: Mapping[str, list[Any]] | None) -> pd.DataFrame | None:
    """Return a table from lists, the inverse of :func:`_columns`."""
    if columns is None:
        return None
    table = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    return table.where(table.notna(), np.nan).infer_objects()
