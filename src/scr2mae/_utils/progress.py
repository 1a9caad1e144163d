"""Progress bars, shown after two seconds and on a terminal or in a notebook only, and log lines of long operations."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["is_hidden", "log_level", "log_lines_shown", "no_progress", "progress"]

_DELAY = 2.0  # seconds
_is_disabled: ContextVar[bool] = ContextVar("is_disabled", default=False)


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    show: bool = True,
    after: float = _DELAY,
    **options: Any,
) -> Any:
    """Return a :class:`tqdm.tqdm` that appears after some seconds; without an iterable, call its ``update``."""
    disable = None if show and not _is_disabled.get() else True  # None: disable unless stderr is a terminal
    return tqdm(iterable, desc=desc, unit=unit, delay=after, disable=disable, dynamic_ncols=True, **options)


@contextmanager
def no_progress(disabled: bool = True) -> Iterator[None]:
    """Show no bars inside the block, such as those of single steps that an outer bar already counts."""
    token = _is_disabled.set(disabled or _is_disabled.get())
    try:
        yield
    finally:
        _is_disabled.reset(token)


def is_hidden() -> bool:
    """Return whether the caller is inside ``no_progress``."""
    return _is_disabled.get()


@contextmanager
def log_lines_shown() -> Iterator[None]:
    """Write the package's log lines to stderr inside the block, unless logging was configured by the caller."""
    logger = logging.getLogger("scr2mae")
    if logger.hasHandlers() or is_hidden():
        yield
        return
    handler, level = logging.StreamHandler(), logger.level
    logger.addHandler(handler)
    if level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def log_level(level: int, *names: str) -> Iterator[None]:
    """Set the level of some loggers while the block runs."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(level)
        yield
    finally:
        for logger, previous in zip(loggers, levels, strict=True):
            logger.setLevel(previous)
