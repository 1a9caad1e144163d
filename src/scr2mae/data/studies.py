"""Studies of an AnnData: their column in ``obs``, and the genes that each has measured."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi.data.fields import BaseAnnDataField

from scr2mae.data.columns import find_column
from scr2mae.data.panels import MEASURED_COLUMN, Panels, column_of, measured_positions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from anndata import AnnData
    from scipy import sparse

__all__ = [
    "STUDY_KEY",
    "MeasuredCheck",
    "Studies",
    "StudyField",
    "register_studies",
    "report_studies",
    "study_codes",
]

STUDY_KEY = "study"
"""Entry of the registry that holds the studies and their genes."""

_SHOWN = 5

logger = logging.getLogger(__name__)


def study_codes(adata: AnnData, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the names of the studies, sorted, and the code of each cell."""
    column = find_column(adata.obs, key)
    if n_missing := int(column.isna().sum()):
        raise ValueError(
            f"adata.obs[{key!r}] has {n_missing} missing values; name the study of each cell, or drop those cells."
        )
    names, codes = np.unique(column.astype(str).to_numpy(dtype=str), return_inverse=True)
    return names, codes.reshape(-1).astype(np.int64)


def _find_study_key(adata: AnnData) -> str:
    """Return the column of ``obs`` whose values are the studies of the table in ``varm``."""
    columns = set(_table_columns(adata.varm[MEASURED_COLUMN]))
    keys = []
    for key in adata.obs:
        values = adata.obs[key]
        is_text = isinstance(values.dtype, pd.CategoricalDtype) or values.dtype == object
        if is_text and {column_of(str(each)) for each in values.dropna().unique()} <= columns:
            keys.append(key)
    if len(keys) != 1:
        raise ValueError(
            f"adata.varm[{MEASURED_COLUMN!r}] says which genes each of {sorted(columns)[:_SHOWN]} has measured, but "
            f"{'no column' if not keys else f'each of {keys}'} of adata.obs holds these names; pass study_key=, or delete the "
            "table."
        )
    logger.info("Studies are in adata.obs[%r], their genes in adata.varm[%r].", keys[0], MEASURED_COLUMN)
    return str(keys[0])


def _table_columns(table: Any) -> list[str]:
    return [str(column) for column in table.columns] if isinstance(table, pd.DataFrame) else []


def _read_table(adata: AnnData, key: str, studies: np.ndarray) -> dict[str, np.ndarray]:
    """Return the genes of each study that a table in ``varm`` has, in the order of ``adata``."""
    table = adata.varm[key]
    where = f"adata.varm[{key!r}]"
    if not isinstance(table, pd.DataFrame):
        values = np.asarray(table)
        if values.ndim != 2 or values.shape[1] != len(studies):
            raise ValueError(
                f"{where} must have a column for each of the {len(studies)} studies {studies[:_SHOWN].tolist()}, got shape "
                f"{values.shape}; make it a data frame with the studies as columns."
            )
        table = pd.DataFrame(values, columns=[column_of(each) for each in studies])
    names = {column_of(each): each for each in studies}
    found = {}
    for column in table.columns:
        name = names.get(column_of(str(column)))
        if name is None:
            continue
        genes: pd.Series = table[column]
        if genes.isna().any():
            raise ValueError(
                f"{where}[{column!r}] has {int(genes.isna().sum())} missing values; say True or False for each gene."
            )
        numbers = genes.to_numpy()
        if numbers.dtype != bool and not np.isin(numbers.astype(object), [0, 1, True, False]).all():
            raise ValueError(
                f"{where}[{column!r}] must hold True and False, got {pd.unique(genes)[:_SHOWN].tolist()}."
            )
        found[name] = numbers.astype(bool)
    return found


def _zero_genes(blocks: Iterable[sparse.csr_matrix], codes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return which genes have no count in a study but have some in another, boolean, shape (n_vars, n_studies)."""
    seen, start = np.zeros(shape, dtype=bool), 0
    for block in blocks:
        of_block = codes[start : start + block.shape[0]]
        start += block.shape[0]
        for code in np.unique(of_block):
            rows = block[np.flatnonzero(of_block == code)]
            seen[np.unique(rows.indices[rows.data != 0]), code] = True
    return seen.any(axis=1, keepdims=True) & ~seen


@dataclass(frozen=True)
class Studies:
    """Names of the studies a model knows and the genes that each has measured.

    Attributes
    ----------
    key
        Column of ``obs`` with the study.
    measured_key
        Table in ``varm``; the default one if None.
    measured
        Genes of the model that each study has measured, boolean, shape (n_vars,) each.
    """

    key: str
    measured_key: str | None = None
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)

    def resolve(self, adata: AnnData, position: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the genes of the studies in an AnnData, (n_vars, n_studies), and the study of each cell, (n_obs,).

        ``position`` is the column of each gene of the model, -1 if absent. The AnnData's own table
        takes precedence over the model's; a study that is in neither has measured the genes that are present.
        None if the AnnData does not name studies.
        """
        if self.key not in adata.obs:
            return None
        names, codes = study_codes(adata, self.key)
        key = self.measured_key or MEASURED_COLUMN
        tables = _read_table(adata, key, names) if key in adata.varm else {}
        present = position >= 0
        measured = np.repeat(present[:, None], len(names), axis=1)
        for i, name in enumerate(names):
            if name in tables:
                measured[:, i] &= tables[name][position]
            elif name in self.measured:
                measured[:, i] &= self.measured[name]
        return measured, codes

    @classmethod
    def from_state(
        cls, arguments: Mapping[str, Any], state: Mapping[str, Any], n_vars: int
    ) -> Studies | None:
        """Read the entry of a registry; None without studies."""
        if arguments.get("study_key") is None:
            return None
        measured = {}
        for name, packed in state["measured"].items():
            bits = np.frombuffer(bytes.fromhex(packed), dtype=np.uint8)
            if len(bits) != (n_vars + 7) // 8:
                raise ValueError(
                    f"The genes of study {name!r} are damaged: {len(bits)} bytes for {n_vars} genes."
                )
            measured[name] = np.unpackbits(bits, count=n_vars).astype(bool)
        return cls(arguments["study_key"], arguments.get("measured_key"), measured)


class StudyField(BaseAnnDataField):
    """Registered studies; the registry keeps the genes of each, so that a saved model knows them."""

    registry_key, attr_name = STUDY_KEY, "obs"

    def __init__(self, key: str | None, measured: Mapping[str, np.ndarray] | None = None) -> None:
        self._key, self._measured = key, measured or {}

    @property
    def attr_key(self) -> str | None:
        """Column of ``obs``."""
        return self._key

    @property
    def is_empty(self) -> bool:
        """Whether there are no studies."""
        return self._key is None

    def get_data_registry(self) -> dict[str, Any]:
        """Return nothing: loaders of scvi-tools need not read the column."""
        return {}

    def validate_field(self, adata: AnnData) -> None:
        """Do nothing; :func:`register_studies` has checked."""

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Return the state of the registry."""
        return {
            "measured": {name: np.packbits(genes).tobytes().hex() for name, genes in self._measured.items()}
        }

    def transfer_field(
        self, state_registry: dict[str, Any], adata_target: AnnData, **_: Any
    ) -> dict[str, Any]:
        """Add the studies of new data to the known ones, whose genes stay."""
        return {"measured": {**self.register_field(adata_target)["measured"], **state_registry["measured"]}}

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Return the number of studies."""
        return {"n_study": len(state_registry.get("measured", {}))}

    def view_state_registry(self, state_registry: dict[str, Any]) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class MeasuredCheck:
    """Raise an error for counts in genes that the study of a cell has not measured."""

    adata: AnnData
    key: str
    panels: Panels
    genes: np.ndarray

    def __call__(self, counts: sparse.csr_matrix, rows: np.ndarray | slice = slice(None)) -> None:
        """Check the counts of the given cells, in the order of ``genes``."""
        found = self.panels.take(rows).first_unmeasured(counts)
        if found is None:
            return
        gene, wrong = found
        cells = self.adata.obs_names[rows][wrong]
        study = str(self.adata.obs[self.key].iloc[np.arange(self.adata.n_obs)[rows][wrong[0]]])
        raise ValueError(
            f"Gene {str(self.genes[gene])!r} has counts in {len(cells)} cells, such as {cells[:3].tolist()}, of study {study!r}, "
            "which has not measured it; correct the table of measured genes, or set these counts to zero."
        )


def register_studies(
    adata: AnnData,
    arguments: dict[str, Any],
    known: Studies | None,
    is_new: bool,
    read_blocks: Callable[[], Iterable[sparse.csr_matrix]],
) -> tuple[dict[str, np.ndarray], MeasuredCheck | None]:
    """Return the genes of each study of an AnnData in its setup, and the check of its counts.

    ``arguments`` are those of the setup; unless it ``is_new``, of a reference with the studies ``known``.
    Counts are read to infer measured genes, or to warn about genes without counts.
    """
    is_unnamed = arguments["study_key"] is None and arguments["measured_key"] is None
    if is_new and is_unnamed and MEASURED_COLUMN in adata.varm and not arguments["infer_measured"]:
        arguments["study_key"] = _find_study_key(adata)
    key, measured_key = arguments["study_key"], arguments["measured_key"]
    if key is None:
        if measured_key is not None or arguments["infer_measured"]:
            raise ValueError(
                "measured_key and infer_measured need study_key=, the column of adata.obs with the study."
            )
        return {}, None
    if is_new and measured_key is not None and measured_key not in adata.varm:
        raise KeyError(f"No {measured_key!r} in adata.varm; choose one of {list(adata.varm)}.")
    if is_new:
        find_column(adata.obs, key)  # raises
    position = measured_positions(adata.var, np.arange(adata.n_vars))
    studies = Studies(key, measured_key, {} if known is None else known.measured)
    found = studies.resolve(adata, position)
    if found is None:
        return {}, None
    measured, codes = found
    names = study_codes(adata, key)[0]
    if is_new:
        _check_columns(adata, studies, names)
        if (measured_key or MEASURED_COLUMN) not in adata.varm:
            measured &= ~_infer(adata, names, codes, read_blocks, infer=arguments["infer_measured"])
    by_study = {str(name): measured[:, i] for i, name in enumerate(names)}
    report_studies(by_study, adata.var_names.to_numpy().astype(str))
    check = MeasuredCheck(adata, key, Panels.from_table(measured, codes), adata.var_names.to_numpy())
    return by_study, check


def _check_columns(adata: AnnData, studies: Studies, names: np.ndarray) -> None:
    """Raise if a table lacks the column of a study."""
    key = studies.measured_key or MEASURED_COLUMN
    if key not in adata.varm:
        return
    tables = _read_table(adata, key, names)
    if absent := [str(name) for name in names if name not in tables]:
        raise ValueError(
            f"adata.varm[{key!r}] lacks the genes of {len(absent)} studies in adata.obs[{studies.key!r}], such as "
            f"{absent[:_SHOWN]}; its columns are {_table_columns(adata.varm[key])[:_SHOWN]}."
        )


def _infer(
    adata: AnnData,
    names: np.ndarray,
    codes: np.ndarray,
    read_blocks: Callable[[], Iterable[sparse.csr_matrix]],
    *,
    infer: bool,
) -> np.ndarray:
    """Return the genes to take as unmeasured because a study has no count of them; warn if they are kept."""
    zero = _zero_genes(read_blocks(), codes, (adata.n_vars, len(names)))
    sizes = zero.sum(axis=0)
    shown = "; ".join(
        f"{names[i]} lacks {sizes[i]}, such as {adata.var_names[zero[:, i]][:3].tolist()}"
        for i in np.flatnonzero(sizes)[:_SHOWN]
    )
    if infer:
        logger.info(
            "Taken as not measured, without a count in a study and with counts in another: %s.",
            shown or "none",
        )
        return zero
    if sizes.any():
        _warn(
            f"Some genes have no count in one study and some in another: {shown}. They are taken as measured; pass "
            "infer_measured=True if they were not, or a table in adata.varm (scr2mae.data.join_studies makes one)."
        )
    return np.zeros_like(zero)


def report_studies(measured: Mapping[str, np.ndarray], names: np.ndarray) -> None:
    """Raise if a study has measured nothing; warn about pairs that share no gene and genes that no study has."""
    sizes = {study: int(genes.sum()) for study, genes in measured.items()}
    if empty := [study for study, size in sizes.items() if not size]:
        raise ValueError(f"Study {empty[0]!r} has measured no gene; drop its cells, or correct its column.")
    apart = [(a, b) for a, b in combinations(measured, 2) if not (measured[a] & measured[b]).any()]
    if apart:
        shown = ", ".join(f"{a!r} and {b!r}" for a, b in apart[:_SHOWN])
        _warn(
            f"{len(apart)} pair(s) of studies have no gene in common: {shown}. Nothing ties their cells to one another but "
            "genes that a third study shares with both."
        )
    never = ~np.logical_or.reduce([*measured.values()])
    if never.any():
        _warn(
            f"No study has measured {int(never.sum())} genes, such as {names[never][:_SHOWN].tolist()}; nothing is learned of them."
        )
    logger.info("Studies and the genes that they have measured: %s.", sizes)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)
