"""One progress bar for all that takes long: after two seconds, and where somebody is looking."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["no_progress", "progress"]

_AFTER_SECONDS = 2.0
_is_hidden: ContextVar[bool] = ContextVar("is_hidden", default=False)


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    show: bool = True,
    after: float = _AFTER_SECONDS,
    **options: Any,
) -> Any:
    """Make a bar with speed and time left; quiet unless standard error is a terminal, or this is a notebook.

    Parameters
    ----------
    iterable
        What is counted; None to call ``update``.
    desc, unit
        What is done, to what.
    show
        False shows none.
    after
        Seconds until it appears.
    options
        Further arguments of :class:`tqdm.tqdm`, such as ``total``.

    Returns
    -------
    The bar; it iterates over ``iterable``, and is a context.
    """
    disable = None if show and not _is_hidden.get() else True
    return tqdm(iterable, desc=desc, unit=unit, delay=after, disable=disable, dynamic_ncols=True, **options)


@contextmanager
def no_progress(hidden: bool = True) -> Iterator[None]:
    """Show no bar of what runs inside, since a bar outside counts it, or nobody wants any.

    Parameters
    ----------
    hidden
        False changes nothing.
    """
    token = _is_hidden.set(hidden or _is_hidden.get())
    try:
        yield
    finally:
        _is_hidden.reset(token)
