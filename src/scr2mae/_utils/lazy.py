"""Names of a package that resolve on first use (PEP 562)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["lazy_names"]


def lazy_names(
    package: str, *, modules: Sequence[str] = (), objects: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package with these submodules and objects (name to submodule)."""
    found = dict(objects or {})
    names = sorted([*modules, *found])

    def get(name: str) -> Any:
        if name in found:
            return getattr(import_module(f"{package}.{found[name]}"), name)
        if name in modules:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {names}")

    return get, lambda: names
