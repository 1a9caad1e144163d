"""Whether a file has the counts and columns that options name: read from its head, before PyTorch is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_LOOKED_AT = 100_000  # values of a matrix


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yield the root of an AnnData file or store; None if it is of another kind or cannot be read like one."""
    import h5py

    if path.is_dir():
        import zarr

        yield zarr.open_group(path, mode="r")
        return
    from scr2mae._utils.untrusted import check_store
    from scr2mae.data.formats import hdf5_kind

    try:
        file = h5py.File(path, mode="r")
    except OSError:  # damaged
        yield None
        return
    with file:
        is_anndata = hdf5_kind(file) == "anndata"
        if is_anndata:
            check_store(file, path=path, left_on_disk=("X", "raw/X"))
        yield file if is_anndata else None


def check_input(
    path: Path, *, layer: str | None, use_raw: bool, columns: Mapping[str, Any], integers: bool
) -> None:
    """Raise if a layer or a column of ``obs`` is missing, or if the first counts are none.

    ``columns`` has the names by flag; files that are not laid out as expected are left to their reader.
    """
    with _opened(path) as root:
        if root is None or not hasattr(root.get("obs"), "keys"):
            return
        _check_columns(root["obs"], path, columns)
        layers = sorted(root["layers"].keys()) if "layers" in root else []
        if layer is not None and layer not in layers:
            raise ValueError(
                f"{path} has no layer {layer!r}; --layer takes one of {layers}, and no --layer means X."
            )
        places = {f"layers[{name!r}]": (f"layers/{name}", f"--layer {name}") for name in layers}
        places = {"X": ("X", "no --layer"), **places, "raw": ("raw/X", "--use-raw")}
        place = "raw" if use_raw else "X" if layer is None else f"layers[{layer!r}]"
        value = _not_a_count(root, places[place][0], integers)
        if value is None:
            return
        others = {name: flag for name, (key, flag) in places.items() if key in root and name != place}
        whole = [name for name in others if _holds_counts(root, places[name][0])]
        found = (
            f"whole numbers are in {' and '.join(whole)}: pass {others[whole[0]]}"
            if whole
            else (
                f"none of {', '.join(others)} has whole numbers"
                if others
                else "it has neither layers nor raw"
            )
        )
        raise ValueError(
            f"Expected raw counts in {place} of {path}, got {value:g}; {found}. "
            "Estimated counts (SoupX, CellBender): --no-check-counts."
        )


def _check_columns(obs: Any, path: Path, columns: Mapping[str, Any]) -> None:
    """Raise for the first name that is not a column."""
    index = obs.attrs.get("_index", "_index")
    known = [name for name in obs if name not in (index, "__categories")]
    for flag, given in columns.items():
        for name in (given,) if isinstance(given, str) else given or ():
            if name not in known:
                raise ValueError(f"{path} has no column {name!r} in obs; {flag} takes one of {known}.")


def _values(root: Any, key: str) -> np.ndarray:
    """Return the first values of a matrix; none if there is no matrix of numbers that can be read."""
    import numpy as np

    try:
        matrix = root[key]
        if hasattr(matrix, "keys"):
            return np.asarray(matrix["data"][:_LOOKED_AT], dtype=float)
        return np.asarray(matrix[: max(1, _LOOKED_AT // max(1, matrix.shape[1]))], dtype=float).ravel()
    except (KeyError, IndexError, OSError, TypeError, ValueError):  # its reader says what is wrong
        return np.zeros(0)


def _not_a_count(root: Any, key: str, integers: bool) -> float | None:
    """Return the first value that is negative, not finite or, with ``integers``, fractional."""
    import numpy as np

    values = _values(root, key)
    with np.errstate(invalid="ignore"):
        wrong = ~(np.isfinite(values) & (values >= 0)) | (integers & (values != np.floor(values)))
    return float(values[wrong.argmax()]) if wrong.any() else None


def _holds_counts(root: Any, key: str) -> bool:
    """Return whether the first values are counts, and not only 0 and 1."""
    values = _values(root, key)
    return bool(values.size and values.max() > 1 and _not_a_count(root, key, True) is None)
