"""Check that a file has the columns and counts that are needed, before PyTorch is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from scr2mae.cli.options import Counts

__all__ = ["check_input", "read_index"]

_LOOKED_AT = 100_000  # values of a matrix
_RAW_LAYER = "scr2mae_raw"
_COVARIATES = ("batch_key", "size_factor_key", "categorical_covariate_keys", "continuous_covariate_keys")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yield the root of an AnnData file or store; None if it is of another kind or cannot be read like one."""
    import h5py

    if path.is_dir():
        import zarr

        try:
            group = zarr.open_group(path, mode="r")
        except (OSError, LookupError, TypeError, ValueError):  # damaged
            group = None
        yield group
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
    path: Path,
    *,
    columns: Mapping[str, Any],
    counts: Counts | None = None,
    integers: bool = True,
    model: Path | None = None,
    use_rep: Sequence[str] = (),
    new: str | None = None,
    numbers: Mapping[str, str] = MappingProxyType({}),
    methods: Callable[[list[str]], None] | None = None,
) -> None:
    """Raise if a column, an embedding or a matrix is missing, if the first values are not counts, or if a result exists.

    ``columns`` has names by flag, ``numbers`` flags by name for those that must hold numbers, and ``new`` is the place of
    the result; ``methods`` checks names beside the embeddings. A model reads its covariates, and counts from the
    place in ``counts`` or that of its own data. Files that are not laid out as expected are left to their reader.
    """
    setup = {} if model is None else _setup(model)
    with _opened(path) as root:
        if root is None or not hasattr(root.get("obs"), "keys"):
            return
        if new is not None and new in root:
            group, _, name = new.partition("/")
            raise FileExistsError(
                f"{path} has {name!r} in {group} already; choose another --key or pass --force."
            )
        _check_columns(root["obs"], path, columns, {name: setup.get(name) for name in _COVARIATES})
        _check_numbers(root["obs"], path, numbers)
        if methods is not None:
            methods(sorted(root["obsm"].keys()) if hasattr(root.get("obsm"), "keys") else [])
        groups = [root.get(group) for group in ("obsm", "layers")]
        known = ["X", *(name for group in groups if hasattr(group, "keys") for name in sorted(group.keys()))]
        if absent := [name for name in use_rep if name not in known]:
            raise ValueError(
                f"{path} has no {absent[0]!r} in obsm or layers; scr2mae embed adds one, or choose one of {known}."
            )
        if counts is not None and (setup or model is None):
            is_checked = integers and setup.get("check_counts", True)
            _check_counts(root, path, counts, setup.get("layer"), is_checked, is_query=model is not None)


def read_index(path: Path) -> dict[str, Any]:
    """Return the index of a model or probe folder; empty if it cannot be read, which its reader reports."""
    from scr2mae._utils.untrusted import read_json

    try:
        index = read_json(path, may_be_nan=("history", "runs"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def _setup(model: Path) -> dict[str, Any]:
    """Return the arguments of ``setup_anndata`` that a model keeps."""
    registry = read_index(model / "model.json").get("registry")
    setup = registry.get("setup_args") if isinstance(registry, dict) else None
    return setup if isinstance(setup, dict) else {}


def _check_columns(obs: Any, path: Path, columns: Mapping[str, Any], covariates: Mapping[str, Any]) -> None:
    """Raise for the first name that is not a column."""
    index = obs.attrs.get("_index", "_index")
    known = [name for name in obs if name not in (index, "__categories")]
    for source, given in {**columns, **covariates}.items():
        for name in (given,) if isinstance(given, str) else given or ():
            if name not in known:
                reader = (
                    f"{source} takes one of"
                    if source in columns
                    else f"the model reads it as {source}. It has"
                )
                raise ValueError(f"{path} has no column {name!r} in obs; {reader} {known}.")


def _check_numbers(obs: Any, path: Path, numbers: Mapping[str, str]) -> None:
    """Raise for the first column of text; others that hold no numbers are left to their reader."""
    for name, flag in numbers.items():
        values = obs[name]
        if hasattr(values, "keys"):  # categories, or values beside a mask of missing ones
            values = values.get("categories", values.get("values"))
        if values is None or hasattr(values, "keys") or not values.shape or not values.shape[0]:
            continue
        example = values[0]
        if isinstance(example, (str, bytes)):
            shown = example.decode(errors="replace") if isinstance(example, bytes) else str(example)
            other = f", or pass --target {name}:classification" if flag.startswith("--target") else ""
            raise ValueError(
                f"{flag} needs numbers, but obs[{name!r}] of {path} holds text such as {shown!r}; convert it to numbers{other}."
            )


def _check_counts(
    root: Any, path: Path, counts: Counts, of_model: str | None, integers: bool, *, is_query: bool
) -> None:
    """Raise if the matrix to read is missing or does not hold counts, and name the flag for one that does."""
    if counts.use_raw and counts.layer is not None:
        raise ValueError(f"--use-raw and --layer {counts.layer} name two matrices; give one of them.")
    layers = sorted(root["layers"].keys()) if "layers" in root else []
    places = {f"layers[{name!r}]": (f"layers/{name}", f"--layer {name}") for name in layers}
    places = {"X": ("X", "--layer X" if is_query else "no --layer"), **places, "raw": ("raw/X", "--use-raw")}
    layer = of_model if counts.layer is None and not counts.use_raw else counts.layer
    if counts.use_raw or (layer == _RAW_LAYER and layer not in layers):
        place = "raw"
    else:
        place = "X" if layer is None or (is_query and layer == "X") else f"layers[{layer!r}]"
    key = places[place][0] if place in places else None
    is_there = key is not None and key in root
    value = _not_a_count(root, key, integers) if key is not None and is_there else None
    if is_there and value is None:
        return
    others = {name: flag for name, (key, flag) in places.items() if key in root and name != place}
    whole = [name for name in others if _holds_counts(root, places[name][0])]
    found = (
        f"whole numbers are in {' and '.join(whole)}: pass {others[whole[0]]}"
        if whole
        else f"none of {', '.join(others)} has whole numbers"
        if others
        else "it has neither layers nor raw"
    )
    if not is_there:
        raise ValueError(f"{path} has no {place}, where counts are read; {found}.")
    estimates = "train the model with" if is_query else "pass"
    raise ValueError(
        f"Expected raw counts in {place} of {path}, got {value:g}; {found}. "
        f"For estimated counts (SoupX, CellBender), {estimates} --no-check-counts."
    )


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
