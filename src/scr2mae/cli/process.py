"""Helpers around the work of a command: imports, messages, processes and results."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Let Ctrl-C end the process at once while heavy libraries load, when there is nothing to clean up yet.

    An exception raised inside their C++ code would abort with a core dump.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Formatter(logging.Formatter):
    """``scr2mae: message``, with the message rewritten."""

    def __init__(self, say: Callable[[str], str]) -> None:
        super().__init__()
        self.say = say

    def format(self, record: logging.LogRecord) -> str:
        return f"scr2mae: {self.say(super().format(record))}"


@contextlib.contextmanager
def messages_on_stderr(*, quiet: bool, debug: bool, say: Callable[[str], str] = str) -> Iterator[None]:
    """Send log lines, warnings and whatever a library prints to stderr, so that stdout has results only.

    ``say`` rewrites messages in the words of the command line.
    """
    from scr2mae._utils.progress import no_progress

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(say))
    logger = logging.getLogger("scr2mae")
    level = logger.level

    told = set()

    def show(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
        text = say(" ".join(str(message).split()))
        if text not in told:  # a job reads its data several times
            sys.stderr.write(f"scr2mae: warning: {text}\n")
        told.add(text)

    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(), no_progress(quiet):
        if not debug:
            warnings.showwarning = show
            # These are for programmers, not for users of the program.
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


def is_first_process() -> bool:
    """Return whether this is the process that writes, among those that train together."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return not getattr(rank_zero_only, "rank", 0)


def last_losses(history: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Return the last training and validation loss, if recorded."""
    curves = ("train_loss", "validation_loss")
    return {name: f"{history[name][name].iloc[-1]:.4f}" for name in curves if name in history}


def results(rows: Mapping[str, Any] | None = None, /, **more: Any) -> str:
    """Return one line per result: its name, a tab and its value."""
    return "\n".join(f"{name}\t{value}" for name, value in {**(rows or {}), **more}.items())
