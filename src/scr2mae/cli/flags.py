"""Rewrite messages of the library for the command line: arguments become flags."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

_CALL = re.compile(r"\b(?:write|call|pass) (?:\w+\.)?(?:setup_anndata|train)\((?:adata, )?([^()]+)\)")
_ARGUMENT = re.compile(r"\b([a-z][a-z_]*)=(True|False|None|'[^']*'|\"[^\"]*\"|\[[^\]]*\]|[-+\w]+(?:\.\d+)?)")
_OPPOSITES = {
    "check_counts=False": "--no-check-counts",
    "integration=False": "--no-integration",
    "split_key=False": "--split-cells",
    "enable_progress_bar=False": "--quiet",
    "overwrite=True": "--force",
}


def in_flags(names: Collection[str]) -> Callable[[str], str]:
    """Return the function that rewrites ``layer='counts'`` to ``--layer counts``, for flags that a command has."""

    def flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        opposite = _OPPOSITES.get(found[0])
        if opposite is not None:
            return opposite if opposite in names else found[0]
        option = "--" + name.replace("_", "-")
        option = option if option in names else option.removesuffix("s")
        if option not in names or value == "False":
            return found[0]
        if value == "None":
            return f"no {option}"
        words = [word.strip().strip("'\"") for word in value.strip("[]").split(",")]
        return option if value == "True" else " ".join([option, *words])

    def rewrite(text: str) -> str:
        return _ARGUMENT.sub(flag, _CALL.sub(r"pass \1", text))

    return rewrite
